"""CPU seconds per layer of the refined solver: native kernels with one factorisation per stage, against plain torch.

    python benchmarks/quant_speed.py [--hidden 512 --ffn 1280 --kv 256]

Both do the same work, all candidates of the seven linears of one layer as measuring does, on one thread. The plain one
factorizes the Hessian for every candidate and runs the column loops as torch ops, as a direct reading would. Packing
the codes of the finished layer, a few dozen vector operations of torch, is timed beside.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from exl2_tui.core.quant import kernels
from exl2_tui.core.quant.gptq import factorize
from exl2_tui.core.quant.refine import refine
from exl2_tui.core.quant.refined import CANDIDATES


def hessian(features: int) -> Tensor:
    inputs = torch.randn(4 * features, features) @ (torch.randn(features, features) * torch.logspace(0, -2, features))
    return inputs.T @ inputs / 4


def layer_seconds(shapes: list[list[tuple[int, int]]], *, shared: bool) -> float:
    """CPU seconds for all candidates of stages of linears (K, N); `shared`: one factorisation per stage."""
    total = 0.0
    for stage in shapes:
        moments = hessian(stage[0][0])
        started = time.process_time()
        factor = factorize(moments, 0.02)
        total += time.process_time() - started
        for rows, columns in stage:
            weight = torch.randn(rows, columns) * 0.02
            started = time.process_time()
            for params in CANDIDATES:
                refine(weight, factor if shared else factorize(moments, 0.02), params, passes=0)
            total += time.process_time() - started
    return total


def packing_seconds(shapes: list[list[tuple[int, int]]], bits: int) -> float:
    """CPU seconds for packing the codes of all linears once."""
    total = 0.0
    for rows, columns in (shape for stage in shapes for shape in stage):
        codes = torch.randint(0, 1 << bits, (rows, columns), dtype=torch.uint8)
        started = time.process_time()
        kernels.pack_rows(codes, bits)
        total += time.process_time() - started
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--ffn", type=int, default=1280)
    parser.add_argument("--kv", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    hidden, ffn, kv = options.hidden, options.ffn, options.kv
    attention = [(hidden, hidden), (hidden, kv), (hidden, kv)]
    stages = [attention, [(hidden, hidden)], [(hidden, ffn), (hidden, ffn)], [(ffn, hidden)]]
    native = layer_seconds(stages, shared=True) if kernels.is_native(torch.device("cpu")) else float("nan")
    packing = packing_seconds(stages, 4)
    kernels.is_native = lambda _: False
    plain = layer_seconds(stages, shared=False)
    print(f"one layer, {len(CANDIDATES)} candidates per linear: native {native:.2f} s, plain torch {plain:.2f} s")
    print(f"{plain / native:.1f} times faster; {60 / native:.1f} layers per minute")
    slowly = packing_seconds(stages, 4)
    print(f"packing one layer of 4 bits: {1000 * packing:.2f} ms, plain torch {1000 * slowly:.2f} ms")


if __name__ == "__main__":
    main()
