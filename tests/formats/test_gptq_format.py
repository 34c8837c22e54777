"""GPTQ layers: the spec's worked example, zero points in every variant, act-order, and what validate() refuses."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.gptq_writer import pack_stream, quantize_linear, subtract_one
from torch import Tensor

from exl2_tui.core.errors import CheckpointError
from exl2_tui.core.formats import GptqWeight
from exl2_tui.core.formats import gptq as gptq_module


def words(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array).view(np.int32))


@pytest.fixture
def worked_example() -> GptqWeight:
    r, n, g = np.arange(64)[:, None], np.arange(32)[None], np.arange(2)[:, None]
    zeros = (3 * g + n) % 15 + 1
    return GptqWeight(
        qweight=words(pack_stream((3 * r + 5 * n + 1) % 16, 4)),
        qzeros=words(pack_stream((zeros - 1).T, 4).T),
        scales=torch.from_numpy(((1 + g + n % 7) / 1024).astype(np.float16)),
        g_idx=torch.from_numpy(((37 * r[:, 0]) % 64 // 32).astype(np.int32)),
        bias=None,
        bits=4,
        group_size=32,
        v2=False,
    )


def test_worked_example_of_the_spec(worked_example: GptqWeight) -> None:
    weight = worked_example
    weight.validate()
    assert [f"{w & 0xFFFFFFFF:08x}" for w in weight.qweight[0, :3].tolist()] == ["630da741", "b852fc96", "0da741eb"]
    row_1 = "a9876543 3210edcb ba987654 43210edc"
    assert " ".join(f"{w & 0xFFFFFFFF:08x}" for w in weight.qzeros[1].tolist()) == row_1
    decoded = weight.dequantize()
    assert [float(decoded[r, n]) for r, n in ((0, 0), (1, 0), (2, 9), (63, 31))] == [0, 0, -0.017578125, 0.02734375]
    digest = hashlib.sha256(decoded.numpy().tobytes()).hexdigest()
    assert digest == "d0efd7ae9acbd89584eb81cdbb34bba08661913581c09c21063a80c455b40426"
    assert weight.perm is not None
    assert weight.perm[:8].tolist() == [0, 2, 4, 6, 7, 9, 11, 14]
    assert weight.perm[32:36].tolist() == [1, 3, 5, 8]
    assert weight.group_rows == (32, 32)


def zeros_of(true_zeros: np.ndarray, bits: int, *, v2: bool, quantizer: str) -> np.ndarray:
    stored = pack_stream(true_zeros.T, bits).T if v2 else subtract_one(true_zeros, bits, quantizer)
    outputs = true_zeros.shape[1]
    weight = GptqWeight(
        qweight=torch.zeros(bits, outputs, dtype=torch.int32),
        qzeros=words(stored),
        scales=torch.ones(true_zeros.shape).half(),
        g_idx=None,
        bias=None,
        bits=bits,
        group_size=32,
        v2=v2,
        gptqmodel=quantizer == "gptqmodel",
    )
    return weight.zeros.numpy()


def test_zero_points_of_zero_in_the_words_of_the_spec() -> None:
    true_zeros = np.array([[0, 8, 8, 0, 3, 8, 15, 1] * 4])
    assert subtract_one(true_zeros, 4, "gptqmodel")[0, 0] == 0x0E71F76F
    assert pack_stream(true_zeros.T, 4)[0, 0] == 0x1F830880
    assert np.array_equal(zeros_of(true_zeros, 4, v2=False, quantizer="gptqmodel"), true_zeros)
    assert np.array_equal(zeros_of(true_zeros, 4, v2=True, quantizer="autogptq"), true_zeros)


@pytest.mark.parametrize("bits", (2, 3, 4, 8))
@pytest.mark.parametrize("variant", ("v2", "gptqmodel", "autogptq"))
def test_every_zero_point(bits: int, variant: str) -> None:
    """AutoGPTQ's version 1 cannot hold 0, so it starts at 1; 3-bit files of AutoGPTQ hold z-1 in each field."""
    generator = np.random.default_rng(bits)
    lowest = 1 if variant == "autogptq" else 0
    true_zeros = generator.integers(lowest, 1 << bits, (7, 64))
    assert np.array_equal(zeros_of(true_zeros, bits, v2=variant == "v2", quantizer=variant), true_zeros)


@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from((2, 3, 4, 8)),
    blocks=st.integers(1, 8),
    outputs=st.sampled_from((32, 96)),
    group_size=st.sampled_from((-1, 16, 32, 64, 128)),
    desc_act=st.booleans(),
    sym=st.booleans(),
    v2=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_decodes_what_another_writer_meant(
    bits: int, blocks: int, outputs: int, group_size: int, desc_act: bool, sym: bool, v2: bool, seed: int
) -> None:
    features = 32 * blocks
    source = np.random.default_rng(seed).normal(0, 0.02, (outputs, features)).astype(np.float32)
    stored, meant = quantize_linear(
        source, bits=bits, group_size=group_size, desc_act=desc_act, sym=sym, v2=v2, seed=seed
    )
    weight = GptqWeight(
        **{name: torch.from_numpy(stored[name]) for name in ("qweight", "qzeros", "scales", "g_idx")},
        bias=None,
        bits=bits,
        group_size=features if group_size == -1 else group_size,
        v2=v2,
    )
    weight.validate()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gptq_module, "CHUNK_ELEMENTS", 3000)
        decoded = weight.dequantize()
    assert np.array_equal(decoded.numpy(), meant)
    # The kernels' view: rows gathered by perm, groups one after another in the sizes of group_rows.
    order = torch.arange(features) if weight.perm is None else weight.perm
    group = torch.repeat_interleave(torch.arange(len(weight.group_rows)), torch.tensor(weight.group_rows))
    assert torch.equal(weight.row_groups[order], group)
    assert sum(weight.group_rows) == features


def test_uneven_groups_are_looked_up_row_by_row(worked_example: GptqWeight) -> None:
    uneven = (torch.arange(64) % 5 == 0).int()
    weight = dataclasses.replace(worked_example, g_idx=uneven)
    weight.validate()
    codes, zeros = weight.codes().int(), weight.zeros.int()
    expected = (codes - zeros[uneven.long()]).half() * weight.scales[uneven.long()]
    assert torch.equal(weight.dequantize(), expected)
    assert weight.group_rows == (51, 13)
    assert weight.perm is not None
    assert weight.perm[51:54].tolist() == [0, 5, 10]


FAULTS = {
    "group beyond": (lambda w: {"g_idx": w.g_idx * 2}, "g_idx", "from 0 to 1, found 0 to 2"),
    "group negative": (lambda w: {"g_idx": w.g_idx - 1}, "g_idx", "found -1 to 0"),
    "infinite": (lambda w: {"scales": w.scales / 0}, "scales", "finite"),
    "bits": (lambda w: {"bits": 5}, "qweight", "found 5"),
    "zeros": (lambda w: {"qzeros": w.qzeros[:, :3]}, "qzeros", "shape (2, 4)"),
    "columns": (lambda w: {"qweight": w.qweight[:, :31]}, "qweight", "multiples of 32"),
    "g_idx": (lambda w: {"g_idx": w.g_idx[:60]}, "g_idx", "shape (64,)"),
    "groups": (lambda w: {"group_size": 16}, "scales", "4 groups of 16 rows"),
    "dtype": (lambda w: {"scales": w.scales.float()}, "scales", "torch.float16"),
    "bias": (lambda w: {"bias": torch.zeros(3).half()}, "bias", "shape (32,)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_validate_names_tensor_and_fault(worked_example: GptqWeight, fault: str) -> None:
    change, tensor, message = FAULTS[fault]
    broken = dataclasses.replace(worked_example, **change(worked_example))
    with pytest.raises(CheckpointError) as caught:
        broken.validate("m.safetensors", "a.b")
    assert caught.value.tensor == f"a.b.{tensor}"
    assert message in str(caught.value)


def test_size_counts_everything_stored() -> None:
    stored, _ = quantize_linear(
        np.ones((128, 1024), dtype=np.float32), bits=4, group_size=128, desc_act=False, sym=True, v2=False
    )
    weight = GptqWeight(
        **{name: torch.from_numpy(stored[name]) for name in ("qweight", "qzeros", "scales")},
        g_idx=None,
        bias=None,
        bits=4,
        group_size=128,
        v2=False,
    )
    assert weight.bits_per_weight == pytest.approx(4.15625)
    assert weight.kind == "gptq"
