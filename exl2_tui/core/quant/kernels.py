"""The loops over the codes of a linear, natively where a compiled library has them, else in torch.

The torch versions are the specification and run on any device; results agree up to the order of float32 sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from exl2_tui.core.formats import packing
from exl2_tui.core.model.cuda import library as cuda
from exl2_tui.core.ops.native import capabilities, isa_code, ops


def is_native(device: torch.device) -> bool:
    """Whether the compiled kernels are used for tensors on this device."""
    if device.type == "cuda":
        return cuda.unavailable(device) is None
    return device.type == "cpu" and capabilities().native and hasattr(ops(), "quant_round")


def sequential_round(
    base: Tensor, reference: Tensor | None, coupling: Tensor, pivots: Tensor, steps: Tensor, bits: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rounds rows in turn, each moved by the errors of those before: rounded, codes and delta, all (R, N).

    x_k = base_k + sum over i < k of coupling[k, i] * delta_i is rounded to the nearest of the 2^bits values of `steps`;
    delta_k = (reference_k - rounded_k) / pivots_k, with x_k itself where reference is None.
    base, reference (R, N), coupling (R, R) (lower triangle), pivots (R,), steps (N,) float32. rounded and delta are
    float32, rounded holding exact fp16 values; codes are uint8.
    """
    rounded, delta = torch.empty_like(base), torch.empty_like(base)
    codes = torch.empty(base.shape, dtype=torch.uint8, device=base.device)
    if is_native(base.device):
        inputs = (
            base.contiguous(),
            base.new_empty(0) if reference is None else reference.contiguous(),
            coupling.contiguous(),
            pivots.contiguous(),
            steps.contiguous(),
            bits,
        )
        if base.device.type == "cuda":
            torch.ops.exl2_cuda.quant_round(*inputs, delta, rounded, codes)
        else:
            ops().quant_round(*inputs, delta, rounded, codes, isa_code(), torch.get_num_threads())
        return rounded, codes, delta
    zero, largest = 1 << (bits - 1), (1 << bits) - 1
    for k in range(base.shape[0]):
        x = base[k] + coupling[k, :k] @ delta[:k] if k else base[k]
        code = torch.round(x / steps).add_(zero).clamp_(0, largest)
        rounded[k] = ((code - zero) * steps).half().float()
        codes[k] = code.to(torch.uint8)
        delta[k] = ((x if reference is None else reference[k]) - rounded[k]) / pivots[k]
    return rounded, codes, delta


def search_codes(
    group: Tensor, weights: Tensor, maxima: Tensor, middles: Tensor, bits: int, offsets: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """For each maximum the best scale code per column, codes (M, N) uint8, and what it costs in all, (M,) float64.

    The cost is sum weights_k (x_kn - rounded)^2; tried are middles + offsets (consecutive numbers), within 0..15.
    group (R, N) float32; weights (R,) float32; maxima (M,) float16; middles (M, N) uint8.
    """
    codes = torch.empty_like(middles)
    totals = torch.empty(len(maxima), dtype=torch.float64, device=group.device)
    units = (maxima.float() / 256).half().float()
    if is_native(group.device):
        inputs = (group.contiguous(), weights.contiguous(), units, middles.contiguous(), bits, offsets[0], offsets[-1])
        if group.device.type == "cuda":
            costs = torch.empty(middles.shape, device=group.device)
            torch.ops.exl2_cuda.quant_search(*inputs, codes, costs)
            return codes, costs.sum(dim=1, dtype=torch.float64)
        ops().quant_search(*inputs, codes, totals, isa_code(), torch.get_num_threads())
        return codes, totals
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    for index, unit in enumerate(units):
        lowest = torch.full(group.shape[1:], torch.inf, device=group.device)
        for offset in offsets:
            tried = (middles[index].to(torch.int16) + offset).clamp(0, 15)
            steps = ((tried + 1).float().square() * unit).half().float()
            error = torch.round(group / steps).clamp_(low, high).mul_(steps).sub_(group)
            cost = (error.square_() * weights[:, None]).sum(dim=0)
            codes[index] = torch.where(cost < lowest, tried.to(torch.uint8), codes[index])
            lowest = torch.minimum(lowest, cost)
        totals[index] = lowest.sum(dtype=torch.float64)
    return codes, totals


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """As packing.pack_rows: codes (K, N) uint8 -> words (K*bits/32, N) int32, on the CPU."""
    if not is_native(codes.device):
        return packing.pack_rows(codes, bits)
    words = torch.empty(packing.word_rows(len(codes), bits), codes.shape[1], dtype=torch.int32)
    ops().quant_pack(codes.contiguous(), bits, words, torch.get_num_threads())
    return words
