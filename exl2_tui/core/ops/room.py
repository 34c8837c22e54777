"""Memory for packed weights: large pieces on large pages, handed out one weight after another.

A weight in a piece of its own begins and ends amid a large page (2 MiB), where the system takes small ones: 364 of the
604 MiB of a 1.1B model lay on large pages that way. Weights that follow each other share them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from exl2_tui.core.ops import native

ALIGNMENT = 64  # a cache line, as the kernels want
LARGE_PAGE = 2 << 20


class WeightRoom:
    """Hands out memory from pieces of `piece` bytes; a piece lives as long as any tensor that lies in it.

    What is never written takes no memory: of each piece at most one large page is lost.
    """

    def __init__(self, piece: int = 0) -> None:
        self._piece = piece
        self._free = torch.empty(0, dtype=torch.uint8)

    def take(self, nbytes: int) -> Tensor:
        """(nbytes,) uint8 with anything in it, on a cache line of its own."""
        aligned = -(-nbytes // ALIGNMENT) * ALIGNMENT
        if aligned > len(self._free):
            self._free = _pages(max(aligned, self._piece))
        taken, self._free = self._free[:nbytes], self._free[aligned:]
        return taken


def _pages(nbytes: int) -> Tensor:
    """At least nbytes, on large pages where that many fit."""
    boundary = LARGE_PAGE if nbytes >= LARGE_PAGE else ALIGNMENT
    raw = torch.empty(nbytes + boundary, dtype=torch.uint8)
    pages = raw[-raw.data_ptr() % boundary :][:nbytes]
    native.ops().large_pages(pages)
    return pages
