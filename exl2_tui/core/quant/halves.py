"""The two halves of a transformer block as the quantizer sees them, and running rows of hidden states through them.

A half is attention or MLP with its norm and the residual connection. Inside it, linears that see the same input form a
stage: q, k, v then o; gate, up then down. Hidden states are kept in float16 between halves, rows (R, T, C).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import QuantizationError
from exl2_tui.core.model.block import Block
from exl2_tui.core.model.linear import Linear
from exl2_tui.core.model.rope import RopeTable

TOKENS_AT_ONCE = 2048
"""Rows are run in batches of about this many tokens: large enough for the matrix unit, small in memory."""
HALF_MAX = 65504.0
MAX_OVERFLOW = 0.005
"""Share of hidden-state elements that may exceed float16 before the job gives up."""


@dataclass(frozen=True, slots=True)
class Half:
    """key: such as model.layers.0.self_attn. linears by short name; stages of short names, in running order.

    forward: (B, T, C) float32 -> (B, T, C) float32 with the residual.
    """

    key: str
    linears: dict[str, Linear]
    stages: tuple[tuple[str, ...], ...]
    forward: Callable[[Tensor], Tensor]

    @property
    def observed(self) -> tuple[str, ...]:
        """One linear per stage, whose input is that of the whole stage."""
        return tuple(stage[0] for stage in self.stages)

    def full_name(self, short: str) -> str:
        return f"{self.key}.{short}"


def halves(block: Block, layer: int, rope: RopeTable) -> tuple[Half, Half]:
    """Attention and MLP of a block. rope holds the positions of one row."""
    prefix = f"model.layers.{layer}"
    short = {name.rsplit(".", 1)[1]: linear for name, linear in block.linears.items()}

    def attention(x: Tensor) -> Tensor:
        return x + block.attn.forward(block.attn_norm.forward(x), rope, None)

    def mlp(x: Tensor) -> Tensor:
        return x + block.mlp.forward(block.mlp_norm.forward(x))

    first = ("q_proj", "k_proj", "v_proj"), ("o_proj",)
    second = ("gate_proj", "up_proj"), ("down_proj",)
    return (
        Half(f"{prefix}.self_attn", {name: short[name] for stage in first for name in stage}, first, attention),
        Half(f"{prefix}.mlp", {name: short[name] for stage in second for name in stage}, second, mlp),
    )


def batches(states: Tensor, cancel: CancelToken | None) -> Iterator[tuple[slice, Tensor]]:
    """Slices of rows and their states (B, T, C) as float32, polling the cancel token between them."""
    rows = max(1, TOKENS_AT_ONCE // states.shape[1])
    for start in range(0, states.shape[0], rows):
        if cancel is not None:
            cancel.check()
        part = slice(start, start + rows)
        yield part, states[part].float()


def to_half(states: Tensor, where: str) -> Tensor:
    """float16 with large values clamped. Raises QuantizationError for NaN or more than a few overflows."""
    if bool(states.isnan().any()):
        raise QuantizationError(
            f"the hidden states after {where} hold NaN",
            tensor=where,
            hint="The source model is damaged or overflows on the calibration text.",
        )
    overflow = states.abs() > HALF_MAX
    if float(overflow.float().mean()) > MAX_OVERFLOW:
        raise QuantizationError(
            f"{100 * float(overflow.float().mean()):.1f} % of the hidden states after {where} exceed float16",
            tensor=where,
            hint="This model's activations do not fit float16, which EXL2 needs.",
        )
    return states.clamp(-HALF_MAX, HALF_MAX).half()


def run(half: Half, states: Tensor, cancel: CancelToken | None = None, *, in_place: bool = False) -> Tensor:
    """All rows (R, T, C) float16 through a half -> (R, T, C) float16; in_place: `states` itself, overwritten."""
    result = states if in_place else torch.empty_like(states)
    for part, x in batches(states, cancel):
        result[part] = to_half(half.forward(x), half.key)
    return result


class HessianSum:
    """Sums X^T X (K, K) float32 over everything a linear is called with; `mean` divides by the rows of states."""

    def __init__(self, features: int, device: torch.device) -> None:
        self.total = torch.zeros(features, features, dtype=torch.float32, device=device)
        self.tokens = 0

    def __call__(self, x: Tensor) -> None:
        flat = x.detach().reshape(-1, x.shape[-1]).float()
        self.total.addmm_(flat.T, flat)
        self.tokens += flat.shape[0]


def collect(half: Half, states: Tensor, cancel: CancelToken | None = None) -> tuple[dict[str, Tensor], Tensor]:
    """Hessians by short name of each stage's first linear, scaled per row as the classic recipe has them, and the
    output states (R, T, C) float16."""
    sums = {
        name: HessianSum(half.linears[name].weight.shape[1], half.linears[name].weight.device) for name in half.observed
    }
    for name, observer in sums.items():
        half.linears[name].observer = observer
    try:
        result = run(half, states, cancel)
    finally:
        for name in sums:
            half.linears[name].observer = None
    return {name: observer.total / states.shape[0] for name, observer in sums.items()}, result


def relative_error(result: Tensor, target: Tensor) -> float:
    """Mean over rows of ||result - target|| / ||target||, both (R, T, C)."""
    errors = []
    for row, wanted in zip(result, target, strict=True):
        norm = torch.linalg.vector_norm(wanted.float())
        errors.append(float(torch.linalg.vector_norm(row.float() - wanted.float()) / norm.clamp_min(1e-12)))
    return sum(errors) / len(errors)
