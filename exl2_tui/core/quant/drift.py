"""Second moments of a stage's inputs while two streams run side by side: the original model's and the quantized one's.

The quantized stream has drifted: X̂ is what a linear will really see, X what it saw in the original. The weight that
brings X̂ W closest to what the original adds, X W plus the drift R - R̂ of the residual it adds to, is
W + (X̂ᵀX̂)^-1 X̂ᵀ[(X - X̂) W + (R - R̂)]. Source: spec/quantizer.md section 15, GPTAQ and Qronos.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.model.norm import RMSNorm
from exl2_tui.core.quant.halves import Half, batches, to_half


@dataclass(frozen=True, slots=True)
class Moments:
    """hessian X̂ᵀX̂ and cross X̂ᵀ(X - X̂), both (K, K); residual X̂ᵀ(R - R̂) (K, C), None unless the stage writes to the
    residual stream. float32, per row of states."""

    hessian: Tensor
    cross: Tensor
    residual: Tensor | None

    def target(self, weight: Tensor, share: float, damping: float) -> Tensor:
        """The weight (K, N) to aim at: `share` of the way from `weight` to the one that cancels the drift."""
        if share == 0.0:
            return weight
        wanted = self.cross @ weight
        if self.residual is not None:
            wanted += self.residual
        damped = self.hessian.clone()
        damped.diagonal().add_(damping * float(damped.diagonal().mean()) + 1e-8)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if int(failed):
            return weight
        return weight + share * torch.cholesky_solve(wanted, lower)


class _Seen(Exception):  # noqa: N818 - no error: it ends a forward pass of which nothing more is needed
    pass


class _Recorder:
    """Keeps the last input of a linear, flattened to (tokens, K); with `stop` the pass ends there."""

    def __init__(self, *, stop: bool) -> None:
        self.seen: Tensor | None = None
        self.stop = stop

    def __call__(self, x: Tensor) -> None:
        self.seen = x.detach().flatten(0, -2)
        if self.stop:
            raise _Seen

    def take(self) -> Tensor:
        assert self.seen is not None
        seen, self.seen = self.seen, None
        return seen


def moments(
    original: Half,
    working: Half,
    stage: int,
    reference: Tensor,
    drifted: Tensor,
    cancel: CancelToken | None,
    *,
    in_place: bool = False,
) -> tuple[Moments, Tensor]:
    """Runs reference (R, T, C) through `original` and drifted (R, T, C) through `working` as far as the inputs of a
    stage. Also returns the states after `original`, (R, T, C) float16, for the last stage; before it, they are empty.
    in_place: they overwrite `reference`.
    """
    short = original.stages[stage][0]
    writes = stage == len(original.stages) - 1
    features = original.linears[short].weight.shape[1]
    device = reference.device
    hessian = torch.zeros(features, features, device=device)
    cross = torch.zeros(features, features, device=device)
    residual = torch.zeros(features, reference.shape[2], device=device) if writes else None
    after = reference[:0] if not writes else reference if in_place else torch.empty_like(reference)
    ours, theirs = _Recorder(stop=not writes), _Recorder(stop=True)
    original.linears[short].observer, working.linears[short].observer = ours, theirs
    try:
        for (part, x), (_, y) in zip(batches(reference, cancel), batches(drifted, cancel), strict=True):
            with suppress(_Seen):
                after[part] = to_half(original.forward(x), original.key)
            with suppress(_Seen):
                working.forward(y)
            fresh, seen = ours.take(), theirs.take()
            hessian.addmm_(seen.T, seen)
            cross.addmm_(seen.T, fresh - seen)
            if residual is not None:
                residual.addmm_(seen.T, (x - y).flatten(0, -2))
    finally:
        original.linears[short].observer = working.linears[short].observer = None
    rows = reference.shape[0]
    return Moments(hessian / rows, cross / rows, None if residual is None else residual / rows), after


def head_moments(norm: RMSNorm, reference: Tensor, drifted: Tensor, cancel: CancelToken | None) -> Moments:
    """The same for the output head, from the states (R, T, C) of both streams before the final norm."""
    features, rows = reference.shape[2], reference.shape[0]
    hessian = torch.zeros(features, features, device=reference.device)
    cross = torch.zeros_like(hessian)
    for (_, x), (_, y) in zip(batches(reference, cancel), batches(drifted, cancel), strict=True):
        fresh, seen = norm.forward(x).flatten(0, -2), norm.forward(y).flatten(0, -2)
        hessian.addmm_(seen.T, seen)
        cross.addmm_(seen.T, fresh - seen)
    return Moments(hessian / rows, cross / rows, None)
