"""EXL2 layers: the spec's worked example, a decoder written number by number, and what validate() refuses."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from exl2_tui.core.errors import CheckpointError, QuantizationError
from exl2_tui.core.formats import Exl2Weight
from exl2_tui.core.formats import exl2 as exl2_module
from exl2_tui.core.formats.exl2 import scale_steps


def sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def words_of(tensor: Tensor) -> str:
    return " ".join(f"{word & 0xFFFFFFFF:08x}" for word in tensor.flatten().tolist())


@pytest.fixture
def worked_example() -> Exl2Weight:
    k, n, g = torch.arange(32)[:, None], torch.arange(32)[None], torch.arange(3)[:, None]
    codes = torch.cat([(3 * k + 5 * n + 1) % 16, (k + 2 * n) % 8, (k + n) % 4]).to(torch.uint8)
    inverse = (5 * torch.arange(96) + 3) % 96
    return Exl2Weight.from_codes(
        codes,
        ((7 * g + n) % 16).to(torch.uint8),
        torch.tensor([0.02, 0.0123, 0.005]).half(),
        [(4, 32), (3, 32), (2, 32)],
        torch.argsort(inverse),
    )


def test_worked_example_of_the_spec(worked_example: Exl2Weight) -> None:
    weight = worked_example
    column_0 = "630da741 eb852fc9 630da741 eb852fc9 88fac688 c688fac6 fac688fa e4e4e4e4 e4e4e4e4"
    column_5 = "fc9630da 741eb852 fc9630da 741eb852 1a23eb1a eb1a23eb 23eb1a23 39393939 39393939"
    assert words_of(weight.q_weight[:, 0]) == column_0
    assert words_of(weight.q_weight[:, 5]) == column_5
    assert words_of(weight.q_scale[1]) == "edcba987 6543210f edcba987 6543210f"
    assert weight.q_groups.tolist() == [4, 0, 3, 4, 2, 7]
    assert weight.q_scale_max.view(torch.int16).tolist() == [0x251F, 0x224C, 0x1D1F]
    assert weight.q_invperm[:4].tolist() == [3, 8, 13, 18]
    assert weight.perm[:8].tolist() == [57, 38, 19, 0, 77, 58, 39, 20]
    assert sha256(weight.q_weight) == "aa07de5391b1598146c4fde094cf06a3db71c08f3d2b1a0d59a43314faf867e1"
    assert sha256(weight.q_scale) == "5e8ccc19eb59e7642fb47dd49c8d111cf09b18836fc9a1bf40dc02e5176fc005"
    decoded = weight.dequantize()
    assert sha256(decoded) == "4fab32f9b702e0096eb8fc26ade620c595ce7cf5652f07e9685cf814119318bb"
    bits = {(r, n): int(decoded.view(torch.int16)[r, n]) & 0xFFFF for r, n in ((0, 0), (0, 5), (1, 0), (19, 31))}
    assert bits == {(0, 0): 0x091F, (0, 5): 0xA334, (1, 0): 0x051F, (19, 31): 0xAFAE}


def test_steps_keep_fp16_subnormals() -> None:
    """m = fp16(max/256): the third is 1.95354e-5, stored as 1.95503e-5."""
    steps = scale_steps(torch.tensor([0.02, 0.0123, 0.005]).half(), torch.zeros(3, 4, dtype=torch.int32))
    assert [value & 0xFFFF for value in steps[:, 0].view(torch.int16).tolist()] == [0x051F, 0x0326, 0x0148]
    every_scale = torch.arange(1, 0x7C00, dtype=torch.int16).view(torch.float16)  # all positive finite numbers
    ascending = 0x76543210 | 0
    codes = torch.tensor([[ascending, -0x01234568]], dtype=torch.int32).expand(len(every_scale), 2)  # 0..15
    found = scale_steps(every_scale, codes).numpy()
    unit = (every_scale.numpy().astype(np.float64) / 256).astype(np.float16)
    expected = (np.arange(1, 17, dtype=np.float64) ** 2 * unit.astype(np.float64)[:, None]).astype(np.float16)
    assert np.array_equal(found.view(np.uint16), expected.view(np.uint16))


def decode_slowly(weight: Exl2Weight) -> np.ndarray:
    """Section 12 of the spec word for word, in numpy float64 with explicit roundings to fp16."""
    words = weight.q_weight.numpy().view(np.uint32)
    scale_words = weight.q_scale.numpy().view(np.uint32)
    numbers = weight.q_groups.numpy().view(np.uint16).tolist()
    maxima = weight.q_scale_max.numpy()
    inverse = weight.q_invperm.numpy()
    columns = words.shape[1]
    values = np.zeros((len(inverse), columns), dtype=np.float16)
    k = 0
    for g in range(len(numbers) // 2):
        bits, start = numbers[2 * g], numbers[2 * g + 1]
        end = numbers[2 * g + 3] if 2 * g + 3 < len(numbers) else words.shape[0]
        unit = np.float16(np.float64(maxima[g]) / 256)
        codes = np.array([(int(scale_words[g, n // 8]) >> (4 * (n % 8))) & 15 for n in range(columns)])
        steps = ((codes + 1.0) ** 2 * np.float64(unit)).astype(np.float16)
        streams = [sum(int(words[start + w, n]) << (32 * w) for w in range(end - start)) for n in range(columns)]
        for i in range((end - start) * 32 // bits):
            q = np.array([(stream >> (i * bits)) & ((1 << bits) - 1) for stream in streams])
            values[k] = ((q - 2.0 ** (bits - 1)) * steps.astype(np.float64)).astype(np.float16)
            k += 1
    return values[inverse][:, : weight.out_features]


@st.composite
def layers(draw: st.DrawFn) -> tuple[Exl2Weight, Tensor]:
    """A random layer and its codes: any mix of widths in falling order, groups of 32..160 rows, odd outputs."""
    widths = sorted(draw(st.lists(st.sampled_from((2, 3, 4, 5, 6, 8)), min_size=1, max_size=6)), reverse=True)
    groups = [(bits, 32 * draw(st.integers(1, 5))) for bits in widths]
    out_features = draw(st.integers(1, 100))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rows = sum(count for _, count in groups)
    codes = torch.cat(
        [torch.randint(0, 1 << bits, (count, out_features), generator=generator) for bits, count in groups]
    )
    exponent = draw(st.integers(-16, 6))
    scale_max = (torch.rand(len(groups), generator=generator) + 1).ldexp(torch.tensor(exponent)).half()
    bias = torch.randn(out_features, generator=generator).half() if draw(st.booleans()) else None
    weight = Exl2Weight.from_codes(
        codes.to(torch.uint8),
        torch.randint(0, 16, (len(groups), out_features), generator=generator).to(torch.uint8),
        scale_max,
        groups,
        torch.randperm(rows, generator=generator),
        bias,
    )
    return weight, codes.to(torch.uint8)


@settings(max_examples=25, deadline=None)
@given(layer=layers(), chunk=st.sampled_from((1, 5000, 1 << 22)))
def test_decode_equals_the_slow_decoder(layer: tuple[Exl2Weight, Tensor], chunk: int) -> None:
    weight, codes = layer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exl2_module, "CHUNK_ELEMENTS", chunk)
        fast = weight.dequantize().numpy()
    assert np.array_equal(fast.view(np.uint16), decode_slowly(weight).view(np.uint16))
    for group in weight.groups:
        rows = slice(group.start_row, group.start_row + group.rows)
        assert torch.equal(weight.codes(group)[:, : weight.out_features], codes[rows])
        assert bool((weight.codes(group)[:, weight.out_features :] == 1 << (group.bits - 1)).all())
    stored = weight.stored_tensors("p")
    assert weight.stored_bits == 8 * sum(tensor.nbytes for name, tensor in stored.items() if name != "p.bias")
    K, N, G = weight.in_features, weight.padded_out, len(weight.groups)
    by_formula = sum(group.rows * N * group.bits for group in weight.groups) + 48 * G + 4 * G * N + 32 * K
    assert weight.stored_bits == by_formula
    if weight.bias is not None:
        assert stored["p.bias"].shape == (N,)
        assert not bool(stored["p.bias"][weight.out_features :].any())


def test_encoding_of_rounded_weights_returns_them() -> None:
    """Encode section 12's last paragraph: codes from weights on the grid give the same weights back."""
    generator = torch.Generator().manual_seed(5)
    groups, perm = [(5, 64), (3, 32)], torch.randperm(96, generator=generator)
    scale_codes = torch.randint(0, 16, (2, 64), generator=generator).to(torch.uint8)
    scale_max = torch.tensor([0.01, 0.003]).half()
    steps = exl2_module.scale_steps_of_codes(scale_max, scale_codes)
    row_steps = torch.repeat_interleave(steps, torch.tensor([64, 32]), dim=0).float()
    zero = torch.repeat_interleave(torch.tensor([16.0, 4.0]), torch.tensor([64, 32]))[:, None]
    packed = 0.004 * torch.randn(96, 64, generator=generator)
    codes = torch.minimum((packed / row_steps).round() + zero, 2 * zero - 1).clamp_min(0).to(torch.uint8)
    expected = torch.empty(96, 64).half()
    expected[perm] = ((codes.float() - zero) * row_steps).half()
    weight = Exl2Weight.from_codes(codes, scale_codes, scale_max, groups, perm)
    assert torch.equal(weight.dequantize(), expected)


def test_scratch_memory_stays_modest() -> None:
    """A layer of 7B size: beside the result, decoding holds a chunk of about 4M weights."""
    rows, columns, bits = 4096, 11008, 4
    words = torch.randint(-(2**31), 2**31 - 1, (rows * bits // 32, columns), dtype=torch.int32)
    groups = rows // 128
    numbers = [number for g in range(groups) for number in (bits, g * 128 * bits // 32)]
    weight = Exl2Weight(
        q_weight=words,
        q_scale=torch.zeros(groups, columns // 8, dtype=torch.int32),
        q_scale_max=torch.full((groups,), 0.01).half(),
        q_groups=torch.tensor(numbers, dtype=torch.int16),
        q_invperm=torch.arange(rows, dtype=torch.int32),
        bias=None,
        out_features=columns,
    )
    weight.validate()
    with torch.profiler.profile(profile_memory=True) as profile:
        result = weight.dequantize()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert result.nbytes <= peak < result.nbytes + (64 << 20)


FAULTS = {
    "rows": (lambda w: {"q_invperm": torch.arange(128).int()}, "q_groups", "groups of 128 rows together"),
    "twice": (lambda w: {"q_invperm": torch.zeros_like(w.q_invperm)}, "q_invperm", "every number from 0 to 95"),
    "beyond": (lambda w: {"q_invperm": w.q_invperm + 1}, "q_invperm", "every number from 0 to 95"),
    "negative": (lambda w: {"q_invperm": w.q_invperm - 1}, "q_invperm", "every number from 0 to 95"),
    "nan": (lambda w: {"q_scale_max": w.q_scale_max * float("nan")}, "q_scale_max", "finite scales of 0 or more"),
    "inf": (lambda w: {"q_scale_max": w.q_scale_max / 0}, "q_scale_max", "found inf"),
    "minus": (lambda w: {"q_scale_max": -w.q_scale_max}, "q_scale_max", "finite scales of 0 or more"),
    "bits 7": (lambda w: {"q_groups": int16([7, 0, 3, 4, 2, 7])}, "q_groups", "found 7"),
    "bits 0": (lambda w: {"q_groups": int16([0, 0, 3, 4, 2, 7])}, "q_groups", "found 0"),
    "rising": (lambda w: {"q_groups": int16([3, 0, 4, 3, 2, 7])}, "q_groups", "widths that never rise"),
    "starts late": (lambda w: {"q_groups": int16([4, 1, 3, 4, 2, 7])}, "q_groups", "first group at word row 0"),
    "standing": (lambda w: {"q_groups": int16([4, 0, 3, 0, 2, 7])}, "q_groups", "group 0 to start before word row 0"),
    "too far": (lambda w: {"q_groups": int16([4, 0, 3, 4, 2, 10])}, "q_groups", "group 2 to start before word row 9"),
    "unsigned": (lambda w: {"q_groups": int16([4, 0, 3, 4, 2, -3])}, "q_groups", "found 65533"),
    "sixteen rows": (lambda w: {"q_groups": int16([4, 0, 3, 4, 2, 8])}, "q_groups", "a multiple of 32 rows"),
    "odd count": (lambda w: {"q_groups": int16([4, 0, 3, 4, 2])}, "q_groups", "shape"),
    "scales": (lambda w: {"q_scale": w.q_scale[:2]}, "q_scale", "shape"),
    "dtype": (lambda w: {"q_weight": w.q_weight.float()}, "q_weight", "dtype torch.int32"),
    "vector": (lambda w: {"q_weight": w.q_weight[0]}, "q_weight", "2 dimensions"),
    "outputs": (lambda w: {"out_features": 33}, "q_weight", "shape (9, 64)"),
    "bias": (lambda w: {"bias": torch.zeros(31).half()}, "bias", "shape (32,)"),
    "many groups": (lambda w: {"q_scale_max": torch.ones(4).half()}, "q_scale_max", "at most one group per 32"),
}


def int16(numbers: list[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int16)


@pytest.mark.parametrize("fault", FAULTS)
def test_validate_names_tensor_and_fault(worked_example: Exl2Weight, fault: str) -> None:
    change, tensor, message = FAULTS[fault]
    broken = dataclasses.replace(worked_example, **change(worked_example))
    with pytest.raises(CheckpointError) as caught:
        broken.validate("model.safetensors", "a.b")
    assert caught.value.tensor == f"a.b.{tensor}"
    assert caught.value.file == "model.safetensors"
    assert message in str(caught.value)


def test_a_group_of_zeros_may_have_scale_zero(worked_example: Exl2Weight) -> None:
    weight = dataclasses.replace(worked_example, q_scale_max=torch.zeros(3).half())
    weight.validate()
    assert not bool(weight.dequantize().any())


def test_writer_refuses_what_the_reference_would_not_load() -> None:
    codes, scale_codes = torch.zeros(64, 32, dtype=torch.uint8), torch.zeros(2, 32, dtype=torch.uint8)
    scale_max, perm = torch.full((2,), 0.01).half(), torch.arange(64)
    halves = [(4, 32), (4, 32)]
    with pytest.raises(QuantizationError, match="multiples of 32"):
        Exl2Weight.from_codes(codes[:48], scale_codes, scale_max, [(4, 32), (4, 16)], perm[:48])
    with pytest.raises(QuantizationError, match="48 rows of 4 bits"):
        Exl2Weight.from_codes(codes, scale_codes, scale_max, [(4, 48), (2, 16)], perm)
    with pytest.raises(QuantizationError, match="widths that never rise"):
        Exl2Weight.from_codes(codes, scale_codes, scale_max, [(3, 32), (4, 32)], perm)
    with pytest.raises(QuantizationError, match="at least 2"):
        Exl2Weight.from_codes(codes, scale_codes, scale_max * 1e-4, halves, perm)
    with pytest.raises(QuantizationError, match="a permutation of 64"):
        Exl2Weight.from_codes(codes, scale_codes, scale_max, halves, torch.zeros(64))
    with pytest.raises(QuantizationError, match="together"):
        Exl2Weight.from_codes(codes, scale_codes[:1], scale_max[:1], [(4, 32)], perm)
