"""The KV cache on GPUs: fp16, or codes of 8 or 4 bits as csrc/cuda/cache.cuh lays them out.

    kind    keys, values    bits per element, units included (heads of 32 elements or more)
    fp16    16, 16          16
    q8      8, 8            8.5
    q6      8, 4            6.5
    q4      4, 4            4.5

Blocks of coded heads are stored multiplied with the orthonormal Hadamard matrix (QuaRot, Ashkboos et al. 2024), so that
no element sticks out of its block. The functions here are what the kernels compute, in torch: without a GPU they are
what runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import MemoryLimitError
from exl2_tui.core.model.cache import check_new, check_truncate, layer_devices
from exl2_tui.core.model.footprint import CACHE_BITS, CACHE_KINDS
from exl2_tui.core.model.rope import RopeTable, rope_table

BLOCK = 32  # elements that share a unit
NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)  # where the codes of eight elements lie in their word
NO_UNITS = torch.empty(0, dtype=torch.float16)


class CudaCache:
    """Keys and values (G, capacity, D) of every layer, on the layer's device, and the rope table for all positions.

    Coded: uint8 (G, capacity, D * bits / 8) and units float16 (G, capacity, blocks). Memory is reserved at once.
    Whoever appends moves `length` on after the last layer. device: one for all, or one per layer.
    """

    def __init__(
        self,
        config: ModelConfig,
        capacity: int,
        kind: str = "fp16",
        device: torch.device | str | Sequence[torch.device] = "cpu",
    ) -> None:
        check_new(kind, CACHE_KINDS["cuda"], capacity)
        places = layer_devices(config, device)
        heads, dim = config.num_key_value_heads, config.head_dim

        def reserve(bits: int) -> tuple[list[Tensor], list[Tensor]]:
            if bits == 16:
                rows = [torch.empty(heads, capacity, dim, dtype=torch.float16, device=place) for place in places]
                return rows, [NO_UNITS] * len(places)
            codes = (heads, capacity, dim * bits // 8)
            units = (heads, capacity, -(-dim // BLOCK))
            return (
                [torch.empty(codes, dtype=torch.uint8, device=place) for place in places],
                [torch.empty(units, dtype=torch.float16, device=place) for place in places],
            )

        self.kind = kind
        self.key_bits, self.value_bits = CACHE_BITS[kind]
        self.capacity = capacity
        self.head_dim = dim
        self.length = 0
        try:
            self.keys, self.key_units = reserve(self.key_bits)
            self.values, self.value_units = reserve(self.value_bits)
            table = rope_table(config, capacity, 0, capacity)
            self._ropes = {place: table.to(place) for place in dict.fromkeys(places)}
        except RuntimeError:
            raise MemoryLimitError(
                f"there is no memory for a cache of {capacity} tokens", hint="Choose a smaller context."
            ) from None

    @property
    def nbytes(self) -> int:
        tensors = (*self.keys, *self.values, *self.key_units, *self.value_units)
        return sum(tensor.nbytes for tensor in tensors)

    @property
    def is_coded(self) -> bool:
        return self.key_bits != 16

    def rope(self, device: torch.device, start: int = 0, count: int | None = None) -> RopeTable:
        """The rows of `count` positions from `start` on (all that follow), on one of the cache's devices."""
        table = self._ropes[device]
        end = self.capacity if count is None else start + count
        return RopeTable(table.cos[start:end], table.sin[start:end])

    def truncate(self, length: int) -> None:
        check_truncate(length, self.length)
        self.length = length

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores keys and values (G, T, D) float16 of the new tokens; all S tokens as read() gives them."""
        end = self.length + keys.shape[1]
        if self.is_coded:
            _write(keys, self.keys[layer], self.key_units[layer], self.length)
            _write(values, self.values[layer], self.value_units[layer], self.length)
        else:
            self.keys[layer][:, self.length : end] = keys
            self.values[layer][:, self.length : end] = values
        return self.read(layer, end)

    def read(self, layer: int, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values (G, count, D) float16 of the first tokens: the cache itself where it is not coded."""
        if not self.is_coded:
            return self.keys[layer][:, :count], self.values[layer][:, :count]
        return (
            _read(self.keys[layer], self.key_units[layer], count, self.head_dim),
            _read(self.values[layer], self.value_units[layer], count, self.head_dim),
        )


def hadamard(x: Tensor) -> Tensor:
    """x (..., n) float32, n a power of two, times the orthonormal Hadamard matrix: its own inverse."""
    dim = x.shape[-1]
    step = 1
    while step < dim:
        pairs = x.view(*x.shape[:-1], dim // (2 * step), 2, step)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        x = torch.stack((first + second, first - second), dim=-2).view(x.shape)
        step *= 2
    return torch.mul(x, dim**-0.5)


def encode(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """rows (..., D) -> codes uint8 (..., D * bits / 8) and units float16 (..., blocks). bits: 8 or 4.

    The largest of a block is 127 units away from code 128, or 120 from the middle of the 16 codes, which are 16 apart.
    """
    blocks = hadamard(rows.float().view(*rows.shape[:-1], -1, min(BLOCK, rows.shape[-1])))
    units = (blocks.abs().amax(-1) * (1 / (127 if bits == 8 else 120))).clamp(max=65504).half()
    steps = units.float()
    scaled = blocks * torch.where(steps > 0, 1 / steps, 0)[..., None]
    if bits == 8:
        codes = scaled.round().clamp(-127, 127) + 128
        return codes.flatten(-2).to(torch.uint8), units
    words = ((scaled + 120) / 16).round().clamp(0, 15).to(torch.uint8).view(*rows.shape[:-1], -1, 8)
    ordered = torch.empty_like(words)
    ordered[..., list(NIBBLES)] = words
    return (ordered[..., ::2] | ordered[..., 1::2] << 4).flatten(-2), units


def decode(codes: Tensor, units: Tensor, dim: int) -> Tensor:
    """What encode() was given, rounded: (..., D) float32."""
    if codes.shape[-1] == dim:
        numbers = codes.float() - 128
    else:
        nibbles = torch.stack((codes & 15, codes >> 4), -1).view(*codes.shape[:-1], -1, 8)
        numbers = nibbles[..., list(NIBBLES)].flatten(-2).float() * 16 - 120
    return hadamard(numbers.view(*units.shape, -1) * units.float()[..., None]).flatten(-2)


def _write(rows: Tensor, codes: Tensor, units: Tensor, start: int) -> None:
    if codes.is_cuda:
        torch.ops.exl2_cuda.cache_write(rows.contiguous(), codes, units, start)
        return
    bits = 8 * codes.shape[-1] // rows.shape[-1]
    end = start + rows.shape[1]
    codes[:, start:end], units[:, start:end] = encode(rows, bits)


def _read(codes: Tensor, units: Tensor, count: int, dim: int) -> Tensor:
    if not codes.is_cuda:
        return decode(codes[:, :count], units[:, :count], dim).half()
    rows = units.new_empty(codes.shape[0], count, dim)
    torch.ops.exl2_cuda.cache_read(codes, units, rows, 0)
    return rows
