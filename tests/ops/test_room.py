"""Where packed weights lie: each on lines of its own, one behind the other, alive as long as anybody needs them."""

from __future__ import annotations

import pytest
import torch

from exl2_tui.core.ops import capabilities
from exl2_tui.core.ops.room import ALIGNMENT, LARGE_PAGE, WeightRoom

pytestmark = pytest.mark.skipif(not capabilities().native, reason="no native library")


def test_weights_follow_each_other_on_lines_of_their_own() -> None:
    room = WeightRoom(2 * LARGE_PAGE)
    taken = [room.take(nbytes) for nbytes in (1, ALIGNMENT, ALIGNMENT + 1, LARGE_PAGE)]
    assert [len(tensor) for tensor in taken] == [1, ALIGNMENT, ALIGNMENT + 1, LARGE_PAGE]
    first = taken[0].data_ptr()
    assert first % LARGE_PAGE == 0
    assert [tensor.data_ptr() - first for tensor in taken] == [0, ALIGNMENT, 2 * ALIGNMENT, 4 * ALIGNMENT]


def test_what_does_not_fit_begins_a_new_piece_and_nothing_is_overwritten() -> None:
    room = WeightRoom(1 << 16)
    taken = [room.take(nbytes).fill_(i) for i, nbytes in enumerate((40_000, 40_000, 200_000, 10))]
    assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in taken)
    assert all(bool((tensor == i).all()) for i, tensor in enumerate(taken))


def test_a_weight_outlives_the_room() -> None:
    tensor = WeightRoom(1 << 20).take(1000).fill_(7)
    torch.empty(1 << 20, dtype=torch.uint8).fill_(1)
    assert int(tensor.sum()) == 7000
