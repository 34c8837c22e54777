"""Which layers of a model go to which of several devices. Pure arithmetic over sizes: knows no device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exl2_tui.core.errors import MemoryLimitError
from exl2_tui.core.sizes import size_of


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """In bytes. layers: of each layer, its cache included; the embedding lies with the first, the head with the last.

    scratch: what every device in use needs besides.
    """

    layers: tuple[int, ...]
    embedding: int
    head: int
    scratch: int


@dataclass(frozen=True, slots=True)
class LayerRange:
    """Layers first ... last - 1 are on the device of this number."""

    device: int
    first: int
    last: int


def split_layers(sizes: ModelSizes, rooms: Sequence[int], names: Sequence[str]) -> tuple[LayerRange, ...]:
    """Fills the devices one after the other, so that as few as possible are used and hidden states travel least.

    rooms: bytes that may be taken of each; names: for the error. Devices too small for a single layer are left out.
    Raises MemoryLimitError if the model does not fit, saying by how much.
    """
    costs = list(sizes.layers)
    costs[0] += sizes.embedding
    costs[-1] += sizes.head
    ranges = []
    first = 0
    for device, room in enumerate(rooms):
        left = room - sizes.scratch
        last = first
        while last < len(costs) and costs[last] <= left:
            left -= costs[last]
            last += 1
        if last > first:
            ranges.append(LayerRange(device, first, last))
            first = last
    if first == len(costs):
        return tuple(ranges)
    missing = sum(costs[first:])
    listed = ", ".join(f"{name} {size_of(room)}" for name, room in zip(names, rooms, strict=True))
    raise MemoryLimitError(
        f"the layers from {first} of {len(costs)} on do not fit on the GPUs: {size_of(missing)} are left over, "
        f"with {listed} to use, {size_of(sizes.scratch)} of each for activations",
        hint="Choose a smaller context or a model of fewer bits, or allow more with --gpu-split.",
    )
