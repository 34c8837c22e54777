"""How fast this machine does what a conversion consists of, measured in about a second and remembered.

The parts are measured with the real functions on small matrices; `plan.py` scales them to the shapes of a model.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from exl2_tui.core.quant.gptq import factorize, solve
from exl2_tui.core.quant.recipe import mix
from exl2_tui.core.quant.refine import refine

SIZE = 512
"""Rows and columns of the matrices that are tried: small enough to be quick, large enough for the matrix unit."""
SOLVED = 256
"""Rows of those that are solved."""
TRIED = 0.1, 2
"""Seconds and times that each part is tried at least; the shortest time counts, as other work only adds to it."""
BESIDE = 1.15
"""What a job takes for every second of what is tried: small operations and cold caches lie between the large ones."""
STORAGE = 4e8
"""Bytes per second that are hashed, written and flushed: a cautious value, since trying a disk needs gigabytes."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds per unit: a float32 operation of a matrix product, an element of an element-wise operation, a row of a
    Hessian cubed when it is factorised, a weight that is solved as the classic recipe does it, as the refined one does
    when measuring, and as it does when quantizing. The solvers' own matrix products are counted apart."""

    product: float
    element: float
    factor: float
    classic: float
    tried: float
    refined: float


@lru_cache
def measured_speed(device: str) -> Speed:
    """The speed of "cpu", "cuda" or "cuda:N" with the threads torch has now. Takes about a second the first time."""
    where = torch.device(device)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(SIZE, SIZE, generator=generator).to(where)
    inputs = torch.randn(2 * SIZE, SIZE, generator=generator).to(where)
    wide = torch.randn(1 << 20, generator=generator).to(where)
    product = _seconds(where, lambda: inputs @ weight) / (4 * SIZE**3)
    small = inputs[:, :SOLVED].contiguous()
    factor, params = factorize(small.T @ small), mix(64, 4)

    def per_weight(work: Callable[[Tensor], object], products: int) -> float:
        """Seconds per weight of a solution, less its matrix products in units of K * K * N."""
        taken = _seconds(where, lambda: work(weight[:SOLVED]))
        return max(0.0, taken / (SOLVED * SIZE) - products * product * SOLVED)

    return Speed(
        product=product,
        element=_seconds(where, lambda: wide * 0.5) / wide.numel(),
        factor=_seconds(where, lambda: factorize(inputs.T @ inputs)) / SIZE**3,
        classic=per_weight(lambda matrix: solve(matrix, factor, params), 1),
        tried=per_weight(lambda matrix: refine(matrix, factor, params, passes=0), 1),
        refined=per_weight(lambda matrix: refine(matrix, factor, params, passes=2), 13),
    )


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """The shortest of the runs, with what comes beside."""
    taken: list[float] = []
    while sum(taken) < TRIED[0] or len(taken) < TRIED[1]:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - began)
    return BESIDE * min(taken)
