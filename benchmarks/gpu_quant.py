"""Seconds to quantize one linear on a GPU: our kernels for the inner loops against the same loops in torch, in turn.

python benchmarks/gpu_quant.py            # 4096 x 4096 on cuda:0
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from exl2_tui.core.quant import kernels
from exl2_tui.core.quant.gptq import Factor, Solution, factorize
from exl2_tui.core.quant.recipe import QParams
from exl2_tui.core.quant.refine import refine
from exl2_tui.core.quant.refined import CANDIDATES


def solve(
    weight: torch.Tensor, factor: Factor, params: QParams, passes: int, *, native: bool
) -> tuple[float, Solution]:
    """Seconds, and what came out."""
    found = kernels.is_native
    kernels.is_native = found if native else lambda _: False
    try:
        began = time.perf_counter()
        solution = refine(weight, factor, params, passes=passes)
        float(solution.weight.sum())  # waits for the GPU
        return time.perf_counter() - began, solution
    finally:
        kernels.is_native = found


def compare(rows: int, columns: int, device: torch.device, passes: int, repeats: int) -> dict[str, float]:
    """Median seconds of both, and the share of codes that are equal."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4 * rows, rows, generator=generator) * torch.logspace(0, -2, rows)
    weight = (torch.randn(rows, columns, generator=generator) * 0.02).to(device)
    factor = factorize((inputs.T @ inputs).to(device) / len(inputs), 0.02)
    params = min(CANDIDATES, key=lambda candidate: abs(candidate.total_bits(rows, columns) / (rows * columns) - 4))
    times: dict[bool, list[float]] = {True: [], False: []}
    codes = {}
    for repeat in range(repeats + 1):
        for native in (True, False):
            seconds, solution = solve(weight, factor, params, passes, native=native)
            codes[native] = solution.codes
            if repeat:  # the first warms up
                times[native].append(seconds)
    equal = float((codes[True] == codes[False]).double().mean())
    return {
        "kernels": statistics.median(times[True]),
        "torch": statistics.median(times[False]),
        "equal": equal,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    device = torch.device(options.device)
    if not kernels.is_native(device):
        raise SystemExit(f"there are no compiled kernels for {device}: see exl2-tui doctor")
    found = compare(options.rows, options.columns, device, options.passes, options.repeats)
    print(
        f"{options.rows} x {options.columns}, {options.passes} passes on {device}: kernels {found['kernels']:.3f} s, "
        f"torch {found['torch']:.3f} s, {found['torch'] / found['kernels']:.1f} times; {found['equal']:.2%} codes equal"
    )


if __name__ == "__main__":
    main()
