"""The output head in the refined recipe: what its bits are worth, and solving it like any other linear.

It is the last thing a model does, so what a candidate costs need not be predicted: the KL divergence of its logits is
computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import QuantizationError
from exl2_tui.core.model.linear import Linear
from exl2_tui.core.model.norm import RMSNorm
from exl2_tui.core.quant.drift import Moments
from exl2_tui.core.quant.gptq import Solution, factorize
from exl2_tui.core.quant.halves import batches
from exl2_tui.core.quant.measurement import MeasuredLinear
from exl2_tui.core.quant.recipe import QParams, mix
from exl2_tui.core.quant.refine import refine
from exl2_tui.core.quant.source import LOGITS_AT_ONCE

CANDIDATES: tuple[QParams, ...] = (
    mix(32, 4, 2, high=(0.3,)),
    mix(64, 3),
    mix(32, 4, 3, high=(0.15,)),
    mix(64, 4, 3, high=(0.5,)),
    mix(64, 4),
    mix(64, 5, 4, high=(0.3,)),
    mix(64, 5, 4, high=(0.6,)),
    mix(128, 5),
    mix(128, 6, 5, high=(0.5,)),
    mix(128, 6),
    mix(128, 8, 6, high=(0.15,)),
    mix(128, 8, 6, high=(0.5,)),
    mix(128, 8),
)
"""What the head may get where its bits are part of the budget."""
JUDGED_TOKENS = 2048
"""Tokens on which candidates are judged: their logits are the largest thing there is."""


def measure_head(
    norm: RMSNorm, head: Linear, states: Tensor, damping: float, cancel: CancelToken | None
) -> list[MeasuredLinear]:
    """Each candidate with the KL divergence per token that it causes on states (R, T, C) after the last block."""
    weight = head.weight.float().T.contiguous()
    inputs = torch.cat([norm.forward(x).flatten(0, -2) for _, x in batches(states, cancel)])
    judged = inputs[:: max(1, len(inputs) // JUDGED_TOKENS)]
    options: list[MeasuredLinear] = []
    with _named():
        factor = factorize(inputs.T @ inputs / len(inputs), damping)
        for params in CANDIDATES:
            changed = refine(weight, factor, params, passes=0, cancel=cancel).weight
            kl = divergence(judged, weight, changed, cancel)
            options.append(MeasuredLinear(params, params.total_bits(*weight.shape), kl))
    return options


def refine_head(
    head: Linear,
    seen: Moments,
    params: QParams,
    drift: float,
    damping: float,
    passes: int,
    cancel: CancelToken | None,
) -> tuple[Solution, float]:
    """The head solved on the moments of its inputs, and the relative error of its logits."""
    weight = head.weight.float().T.contiguous()
    with _named():
        factor = factorize(seen.hessian, damping)
        solution = refine(seen.target(weight, drift, damping), factor, params, passes=passes, cancel=cancel)
    change = solution.weight - weight
    lost, whole = ((matrix * (seen.hessian @ matrix)).sum() for matrix in (change, weight))
    return solution, float((lost / whole.clamp_min(1e-12)).clamp_min(0.0).sqrt())


def divergence(inputs: Tensor, weight: Tensor, changed: Tensor, cancel: CancelToken | None) -> float:
    """KL per token (nats) if the head's weight (C, V) becomes `changed`, for its inputs (P, C)."""
    total = 0.0
    for start in range(0, len(inputs), LOGITS_AT_ONCE):
        if cancel is not None:
            cancel.check()
        part = inputs[start : start + LOGITS_AT_ONCE]
        p, q = functional.log_softmax(part @ weight, dim=-1), functional.log_softmax(part @ changed, dim=-1)
        total += float(functional.kl_div(q, p, reduction="sum", log_target=True).double())
    return max(total, 0.0) / len(inputs)


@contextmanager
def _named() -> Iterator[None]:
    """Names the tensor in any error."""
    try:
        yield
    except QuantizationError as error:
        raise QuantizationError(error.message, tensor="lm_head.weight", hint=error.hint) from None
