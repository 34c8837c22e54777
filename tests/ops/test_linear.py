"""Packed linears against float64: every width and mix, storage form, instruction set, path and number of tokens.

The exact path may differ from (q - zero) * S by the rounding of fp32 sums only. The fast path rounds activations to
integers; its error has a hard bound, half a step for every activation, which each output is held to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from exl2_tui.core.errors import DtypeError, ShapeError
from exl2_tui.core.formats import DenseWeight, Exl2Weight, GptqWeight, LinearWeight
from exl2_tui.core.formats.packing import pack_columns, pack_rows
from exl2_tui.core.ops import Isa, capabilities, pack_linear, quant_matmul

TOKENS = [1, 2, 3, 4, 5, 6, 7, 16, 33, 64]
WIDTHS = [2, 3, 4, 5, 6, 8]
MIX = [(8, 32), (6, 128), (5, 64), (5, 32), (4, 128), (4, 128), (3, 96), (3, 32), (2, 64), (2, 32)]
FP32_ERROR = 1e-5  # of the length of the summed products; up to 700 of them, added in any order

fp64 = torch.float64


@dataclass
class Case:
    """A weight, its meaning (K, N) in float64, and for each input feature the width and the group of its codes."""

    weight: LinearWeight
    dense: Tensor
    bits: Tensor
    group: Tensor


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def to_the_ends(codes: Tensor, bits: Tensor | int) -> Tensor:
    """The smallest code or the largest one, whichever is nearer."""
    return torch.where(codes >= 2 ** (torch.as_tensor(bits) - 1), 2 ** torch.as_tensor(bits) - 1, 0).to(torch.uint8)


def exl2_case(
    groups: list[tuple[int, int]],
    n: int,
    *,
    bias: bool = False,
    scale: float = 0.02,
    seed: int = 0,
    outermost: bool = False,
) -> Case:
    g = generator(seed)
    rows = torch.tensor([rows for _, rows in groups])
    group = torch.repeat_interleave(torch.arange(len(groups)), rows)
    bits = torch.tensor([bits for bits, _ in groups])[group]
    codes = (torch.rand(len(group), n, generator=g) * 2.0 ** bits[:, None]).to(torch.uint8)
    codes = to_the_ends(codes, bits[:, None]) if outermost else codes
    scale_codes = torch.randint(16, (len(groups), n), generator=g, dtype=torch.uint8)
    scale_max = (scale * (0.2 + torch.rand(len(groups), generator=g))).half()
    perm = torch.randperm(len(group), generator=g)
    values = torch.randn(n, generator=g).half() if bias else None
    weight = Exl2Weight.from_codes(codes, scale_codes, scale_max, groups, perm, values)
    packed = (codes.to(fp64) - 2.0 ** (bits[:, None] - 1)) * weight.scale_steps()[:, :n].to(fp64)[group]
    dense, by_input, group_by_input = torch.empty_like(packed), torch.empty_like(bits), torch.empty_like(group)
    dense[perm], by_input[perm], group_by_input[perm] = packed, bits, group
    return Case(weight, dense, by_input, group_by_input)


def gptq_case(
    bits: int,
    group_size: int,
    k: int = 320,
    n: int = 64,
    *,
    order: str = "sorted",
    seed: int = 0,
    outermost: bool = False,
) -> Case:
    g = generator(seed)
    size = k if group_size < 0 else group_size
    groups = -(-k // size)
    group = torch.arange(k) // size
    if order == "shuffled":
        group = group[torch.randperm(k, generator=g)]
    elif order == "uneven":  # no writer makes this, but a file can hold it
        group = torch.randint(groups, (k,), generator=g)
    codes = torch.randint(1 << bits, (k, n), generator=g).to(torch.uint8)
    zeros = torch.randint(1 << bits, (groups, n), generator=g)
    if outermost:
        codes, zeros = to_the_ends(codes, bits), to_the_ends(zeros, bits).long()
    scales = (0.001 + 0.01 * torch.rand(groups, n, generator=g)).half()
    weight = GptqWeight(
        qweight=pack_rows(codes, bits),
        qzeros=pack_columns(zeros.to(torch.uint8), bits),
        scales=scales,
        g_idx=None if order == "sorted" else group.int(),
        bias=torch.randn(n, generator=g).half(),
        bits=bits,
        group_size=size,
        v2=True,
    )
    dense = (codes.to(fp64) - zeros[group]) * scales.to(fp64)[group]
    return Case(weight, dense, torch.full((k,), bits), group)


def activations(tokens: int, features: int) -> Tensor:
    """Some features are much larger than others, as in a trained model."""
    g = generator(tokens)
    return torch.randn(tokens, features, generator=g) * torch.randn(features, generator=g).exp()


def bias_of(case: Case) -> Tensor:
    return torch.zeros(1, dtype=fp64) if case.weight.bias is None else case.weight.bias.to(fp64)


def fp32_bound(case: Case, x: Tensor) -> Tensor:
    products = (x.to(fp64).square() @ case.dense.square()).mean(1, keepdim=True).sqrt()
    return FP32_ERROR * (products + bias_of(case).abs().max())


def forms(case: Case) -> Tensor:
    """(K,) what becomes of an activation: 1 one byte, 2 two bytes, 3 a pair. The rule of csrc/cpu/linear_layout.h, in
    other words."""
    average, perm = float(case.bits.double().mean()), getattr(case.weight, "perm", None)
    size = len(case.bits)
    shares = (0.35 + (average - 4) * 0.4333, (average - 5.25) * 0.45)
    pairs, two_bytes = (int(size * min(1.0, max(0.0, share))) for share in shares)
    if perm is None:
        pairs, two_bytes = size, size if average >= 5.75 else 0
    pairs = 0 if average <= 3.5 else pairs
    found = torch.empty_like(case.bits)
    order = torch.arange(size) if perm is None else perm
    width = case.bits[order]
    changes = [row for row in range(1, size) if width[row] != width[row - 1] and pairs <= row <= pairs + size // 8]
    pairs = changes[0] if changes and perm is not None else pairs
    for g in range(int(case.group.max()) + 1):  # a group is of one kind, that of its first row
        members = order[case.group[order] == g]
        first = int((case.group < g).sum())
        bits = int(case.bits[members][0]) if len(members) else 0
        if bits == 8 or (bits == 6 and first < two_bytes):
            found[members] = 2
        else:
            found[members] = 3 if bits in (4, 5, 6) and first < pairs else 1
    return found


# Of a pair (csrc/cpu/linear_pairs.h): the largest rounding error, as half a step of so many to the largest byte, and
# what of such a byte is kept for the shared digits. The former is that of the lattice's cell: the larger of
# |v1x| + |v2'x| and |v1y| + |v2'y|; v2': v2's part at a right angle to v1.
PAIR_STEPS = {4: (64 / 16.3, 8), 5: (64 / 10, 4), 6: (32 / 10.6, 2)}


def rounding_bound(case: Case, x: Tensor) -> Tensor:
    """The most that rounding activations can cost: half a step each, the step no larger than its group's would be."""
    steps = torch.empty_like(x, dtype=fp64)
    form = forms(case)
    # A byte leaves room for a code (csrc/cpu/linear_sums.h): one of EXL2 is -2^(bits - 1) at least, of GPTQ -2^bits.
    largest = 128 - 2.0 ** (case.bits - int(isinstance(case.weight, Exl2Weight)))
    levels = torch.where(form == 1, largest, 32511.0)
    for bits, (steps_of_pair, kept) in PAIR_STEPS.items():
        levels = torch.where((form == 3) & (case.bits == bits), (largest - kept) * steps_of_pair, levels)
    for g in range(int(case.group.max()) + 1):
        members = case.group == g
        if members.any():
            steps[:, members] = x[:, members].abs().amax(1, keepdim=True) / levels[members].to(fp64)
    return 0.5 * steps @ case.dense.abs()


def check(case: Case, isa: Isa, *, exact: bool) -> None:
    packed = pack_linear(case.weight, exact=exact, isa=isa)
    for tokens in TOKENS:
        x = activations(tokens, packed.in_features)
        expected = x.to(fp64) @ case.dense + bias_of(case)
        out = torch.full((tokens, packed.out_features), float("nan"))
        assert quant_matmul(x, packed, out, threads=1 + tokens % 2) is out
        bound = fp32_bound(case, x) if exact else fp32_bound(case, x) + rounding_bound(case, x)
        worst = ((out - expected).abs() / bound).max()
        assert worst <= 1, f"{tokens} tokens: {float(worst):.2f} of the bound"


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("bits", WIDTHS)
def test_exl2_widths(isa: Isa, bits: int, exact: bool) -> None:
    groups = [(bits, 128), (bits, 128), (bits, 64), (bits, 32)]
    check(exl2_case(groups, n=96, bias=bits % 2 == 0, seed=bits), isa, exact=exact)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("n", [1, 31, 83, 130])
def test_exl2_mix_and_columns_that_fill_no_tile(isa: Isa, n: int, exact: bool) -> None:
    check(exl2_case(MIX, n, bias=True), isa, exact=exact)


@pytest.mark.parametrize("groups", [[(5, 128)] * 3 + [(4, 128)], [(5, 64)] * 5 + [(4, 64)] * 3])
def test_exl2_pairs_end_where_the_width_changes(isa: Isa, groups: list[tuple[int, int]]) -> None:
    case = exl2_case(groups, n=48)
    assert not (set(case.bits[forms(case) == 3].tolist()) & set(case.bits[forms(case) == 1].tolist()))
    check(case, isa, exact=False)


@pytest.mark.parametrize("groups", [[(6, 128)] * 3 + [(5, 96)], [(8, 128), (6, 128), (6, 64), (4, 64)]])
def test_exl2_with_every_form_of_activations_at_one_width(isa: Isa, groups: list[tuple[int, int]]) -> None:
    case = exl2_case(groups, n=48)
    assert forms(case).unique().tolist() == [2, 3]
    check(case, isa, exact=False)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    ("group_size", "order"),
    [
        (32, "sorted"),
        (128, "sorted"),
        (-1, "sorted"),
        (64, "shuffled"),
        (64, "uneven"),
        (16, "shuffled"),
        (100, "sorted"),
    ],
)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(isa: Isa, bits: int, group_size: int, order: str, exact: bool) -> None:
    check(gptq_case(bits, group_size, order=order), isa, exact=exact)


@pytest.mark.parametrize("bits", WIDTHS)
def test_outermost_activations_meet_outermost_codes(isa: Isa, bits: int) -> None:
    """Sums of both just fit (csrc/cpu/linear_sums.h). Such activations are rounded to themselves."""
    cases = [exl2_case([(bits, 128), (bits, 32)], n=48, outermost=True)]
    cases += [gptq_case(bits, 64, outermost=True)] if bits not in (5, 6) else []
    for case in cases:
        packed = pack_linear(case.weight, isa=isa)
        for tokens in TOKENS:
            x = 1 - 2.0 * torch.randint(2, (tokens, packed.in_features), generator=generator(tokens))
            wrong = quant_matmul(x, packed) - (x.to(fp64) @ case.dense + bias_of(case))
            assert (wrong.abs() <= fp32_bound(case, x)).all()


def test_gptq_zero_point_beyond_the_codes(isa: Isa) -> None:
    # Version 1 files store zero - 1: the true zero point may be 2^bits.
    case = gptq_case(3, 64)
    assert isinstance(case.weight, GptqWeight)
    beyond = GptqWeight(**{**vars_of(case.weight), "qzeros": torch.full_like(case.weight.qzeros, -1), "v2": False})
    assert torch.equal(beyond.zeros, torch.full_like(beyond.zeros, 8))
    dense = (beyond.codes().to(fp64) - 8) * beyond.scales.to(fp64)[case.group]
    check(Case(beyond, dense, case.bits, case.group), isa, exact=False)


def vars_of(weight: GptqWeight) -> dict[str, Any]:
    return {name: getattr(weight, name) for name in GptqWeight.__dataclass_fields__ if name != "kind"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("k", "n"), [(1, 1), (64, 32), (67, 41), (300, 130), (129, 16)])
def test_dense(isa: Isa, dtype: torch.dtype, k: int, n: int) -> None:
    g = generator(k)
    weight = DenseWeight(torch.randn(n, k, generator=g).to(dtype), torch.randn(n, generator=g).to(dtype))
    case = Case(weight, weight.weight.t().to(fp64), torch.full((k,), 16), torch.zeros(k, dtype=torch.int64))
    check(case, isa, exact=True)


def test_dense_subnormals_count(isa: Isa) -> None:
    weight = DenseWeight(torch.full((16, 64), 2.0**-24, dtype=torch.float16), None)
    out = quant_matmul(torch.ones(1, 64), pack_linear(weight, isa=isa))
    assert torch.equal(out, torch.full((1, 16), 64 * 2.0**-24))


def test_scales_are_rounded_as_the_file_means_them(isa: Isa) -> None:
    # scale_max / 256 is a subnormal half: flushed or left unrounded, every weight would be off by up to a percent.
    case = exl2_case([(4, 64), (2, 64)], n=64, scale=0.0007)
    x = torch.eye(128)
    assert isinstance(case.weight, Exl2Weight)
    found = quant_matmul(x, pack_linear(case.weight, exact=True, isa=isa))
    assert torch.equal(found, case.dense.float())
    assert ((found - case.weight.dequantize().float()).abs() <= 2e-3 * found.abs() + 2.0**-25).all()


def test_every_instruction_set_packs_the_same_bytes() -> None:
    for case in (exl2_case(MIX, n=83, bias=True), gptq_case(3, 64, order="uneven"), gptq_case(4, 128)):
        blobs = [pack_linear(case.weight, isa=isa, threads=2).blob for isa in capabilities().isas]
        assert [torch.equal(blob, blobs[0]) for blob in blobs] == [True] * len(blobs)


def test_memory_is_that_of_the_file() -> None:
    for bits in WIDTHS:
        for weight in (exl2_case([(bits, 64)] * 16, n=512).weight, exl2_case([(bits, 32)] * 32, n=512).weight):
            assert pack_linear(weight).nbytes <= 1.1 * weight.nbytes
    for group_size in (32, 128):
        weight = gptq_case(4, group_size, k=1024, n=512).weight
        assert pack_linear(weight).nbytes <= 1.15 * weight.nbytes


@pytest.mark.parametrize("bits", [3, 6])
def test_one_token_or_many_at_once_say_the_same(isa: Isa, bits: int) -> None:
    # The integer sums are exact, so only the order of few fp32 sums depends on how a prompt is cut into pieces.
    case = exl2_case([(bits, 64)] * 8, n=64)
    packed = pack_linear(case.weight, isa=isa)
    x = activations(530, 512)  # more than go through the tile unit at once
    looked_at = [*range(40), *range(500, 530)]
    together = quant_matmul(x, packed)[looked_at]
    alone = torch.cat([quant_matmul(x[i : i + 1], packed) for i in looked_at])
    assert (together - alone).abs().max() <= 2e-6 * together.abs().max()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_is_no_number_stays_visible(isa: Isa, poison: float, exact: bool) -> None:
    case = exl2_case(MIX, n=32)
    packed = pack_linear(case.weight, exact=exact, isa=isa)
    for tokens in (1, 9):
        x = activations(tokens, packed.in_features)
        clean = quant_matmul(x, packed)
        x[tokens - 1, 100] = poison
        found = quant_matmul(x, packed)
        assert not torch.isfinite(found[-1]).any()
        assert torch.equal(found[:-1], clean[:-1])


def test_zero_activations_and_no_tokens(isa: Isa) -> None:
    case = exl2_case(MIX, n=32, bias=True)
    packed = pack_linear(case.weight, isa=isa)
    assert torch.equal(quant_matmul(torch.zeros(3, packed.in_features), packed)[1].to(fp64), bias_of(case))
    assert quant_matmul(torch.zeros(0, packed.in_features), packed).shape == (0, 32)


@pytest.mark.parametrize("bits", WIDTHS)
def test_rounding_of_activations_is_small_against_that_of_weights(bits: int) -> None:
    """What the choice of 8 or 16 bits rests on: rounding activations adds less than a hundredth to the squared error
    that quantizing the weights makes, and so to the KL divergence."""
    g = generator(bits)
    case = exl2_case([(bits, 128)] * 16, n=64, seed=bits)
    assert isinstance(case.weight, Exl2Weight)
    features = case.weight.in_features
    # A file lists features by the size of their activations: log-normal here, as real ones roughly are.
    x = torch.randn(64, features, generator=g)
    x[:, case.weight.perm] *= torch.randn(features, generator=g).exp().sort(descending=True).values
    found = quant_matmul(x, pack_linear(case.weight))
    # The least a uniform grid can do: errors of each weight spread evenly over one step.
    steps = case.weight.scale_steps().to(fp64)[case.group]
    of_weights = x.to(fp64) @ ((torch.rand(steps.shape, generator=g, dtype=fp64) - 0.5) * steps)
    assert (found - x.to(fp64) @ case.dense).square().mean() <= 0.01 * of_weights.square().mean()


def test_refuses_what_does_not_fit() -> None:
    packed = pack_linear(exl2_case([(4, 64)], n=32).weight)
    with pytest.raises(ShapeError):
        quant_matmul(torch.zeros(1, 63), packed)
    with pytest.raises(DtypeError):
        quant_matmul(torch.zeros(1, 64, dtype=torch.float16), packed)
    with pytest.raises(ShapeError):
        quant_matmul(torch.zeros(1, 64), packed, torch.zeros(1, 31))
