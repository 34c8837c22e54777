"""Second moments of a stage's inputs while two streams run side by side: the original model's and the quantized one's.

The quantized stream has drifted: X̂ is what a linear will really see, X what it saw in the original. The weight that
brings X̂ W closest to what the original adds, X W plus the drift R - R̂ of the residual it adds to, is
W + (X̂ᵀX̂)^-1 X̂ᵀ[(X - X̂) W + (R - R̂)]. Source: spec/quantizer.md section 15, GPTAQ and Qronos.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.quant.halves import Half, batches


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


class _Recorder:
    """Keeps the last input of a linear, flattened to (tokens, K)."""

    def __init__(self) -> None:
        self.seen: Tensor | None = None

    def __call__(self, x: Tensor) -> None:
        self.seen = x.detach().flatten(0, -2)

    def take(self) -> Tensor:
        assert self.seen is not None
        seen, self.seen = self.seen, None
        return seen


def moments(
    original: Half,
    working: Half,
    short: str,
    reference: Tensor,
    drifted: Tensor,
    *,
    writes: bool,
    cancel: CancelToken | None,
) -> Moments:
    """Runs reference (R, T, C) through `original` and drifted (R, T, C) through `working`, watching linear `short`."""
    features = original.linears[short].weight.shape[1]
    device = reference.device
    hessian = torch.zeros(features, features, device=device)
    cross = torch.zeros(features, features, device=device)
    residual = torch.zeros(features, reference.shape[2], device=device) if writes else None
    ours, theirs = _Recorder(), _Recorder()
    original.linears[short].observer, working.linears[short].observer = ours, theirs
    try:
        for (part, x), (_, y) in zip(batches(reference, cancel), batches(drifted, cancel), strict=True):
            original.forward(x)
            working.forward(y)
            fresh, seen = ours.take(), theirs.take()
            hessian.addmm_(seen.T, seen)
            cross.addmm_(seen.T, fresh - seen)
            if residual is not None:
                residual.addmm_(seen.T, (x - y).flatten(0, -2))
            del part
    finally:
        original.linears[short].observer = working.linears[short].observer = None
    rows = reference.shape[0]
    return Moments(hessian / rows, cross / rows, None if residual is None else residual / rows)
