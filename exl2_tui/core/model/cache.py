"""The KV cache of one sequence."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import ContextError, MemoryLimitError, ShapeError, UnsupportedError

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


class KVCache:
    """Keys (after rope) and values of every layer, each (G, capacity, D), so that a head's tokens lie side by side.

    Memory is reserved at once but touched only as tokens arrive. Layers write at `length`; the model moves `length`
    on after the last layer, so an interrupted step leaves the cache as it was.
    kind "fp16" is for use, "fp32" adds no rounding and serves as the oracle. device: one for all, or one per layer.
    """

    def __init__(
        self,
        config: ModelConfig,
        capacity: int,
        kind: str = "fp16",
        device: torch.device | str | Sequence[torch.device] = "cpu",
    ) -> None:
        check_new(kind, DTYPES, capacity)
        shape = (config.num_key_value_heads, capacity, config.head_dim)
        places = layer_devices(config, device)
        self.kind = kind
        self.capacity = capacity
        self.length = 0
        try:
            self.keys = [torch.empty(shape, dtype=DTYPES[kind], device=place) for place in places]
            self.values = [torch.empty(shape, dtype=DTYPES[kind], device=place) for place in places]
        except RuntimeError:
            raise MemoryLimitError(
                f"there is no memory for a cache of {capacity} tokens", hint="Choose a smaller context."
            ) from None

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def truncate(self, length: int) -> None:
        check_truncate(length, self.length)
        self.length = length

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores keys and values (G, T, D) of the new tokens; returns those of all S, (G, S, D), in the same dtype."""
        end = self.length + keys.shape[1]
        self.keys[layer][:, self.length : end] = keys
        self.values[layer][:, self.length : end] = values
        return self.keys[layer][:, :end].to(keys.dtype), self.values[layer][:, :end].to(values.dtype)


def check_new(kind: str, kinds: Collection[str], capacity: int) -> None:
    """Raises UnsupportedError for a kind that is none of `kinds`, ShapeError for a cache without room."""
    if kind not in kinds:
        raise UnsupportedError(f'the cache kind "{kind}" is not one of {", ".join(kinds)}')
    if capacity < 1:
        raise ShapeError(f"a cache for {capacity} tokens is asked for, but it must hold at least one")


def layer_devices(config: ModelConfig, device: torch.device | str | Sequence[torch.device]) -> list[torch.device]:
    """The device of every layer. device: one for all, or one per layer."""
    if isinstance(device, torch.device | str):
        return [torch.device(device)] * config.num_hidden_layers
    return list(device)


def check_room(count: int, length: int, capacity: int) -> None:
    """Raises ContextError if `count` more tokens do not fit behind the `length` stored ones."""
    if length + count > capacity:
        raise ContextError(
            f"{count} tokens do not fit: the context holds {capacity} tokens and {length} are in use",
            hint="Load the model with a longer context, or shorten the conversation.",
        )


def check_truncate(length: int, stored: int) -> None:
    """Raises ShapeError unless `length` tokens are there to keep."""
    if not 0 <= length <= stored:
        raise ShapeError(f"the cache cannot be cut to {length} tokens: it holds {stored}")
