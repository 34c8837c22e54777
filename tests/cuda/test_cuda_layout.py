"""How linears are cut for the GPU: pure arithmetic, checked without one."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from support.compiled import compile_cpp

from exl2_tui.core.model.cuda.decoder import LAYER_FORMAT, MAX_STEP, MODEL_FORMAT
from exl2_tui.core.model.cuda.linear import (
    HEADER_BYTES,
    SCALE_BYTES,
    WARPS,
    cut_segments,
    empty_linear,
    share_segments,
)

CPU = torch.device("cpu")
MIXES = [
    [(4, 4)] * 32,
    [(8, 1), (6, 2), (5, 2), (4, 3), (3, 2), (2, 2)],
    [(2, 2)] * 172,
    [(16, 344)],
    [(3, 86)],
    [(4, 1)],
    [(8, 1)] * 5 + [(4, 1)] * 83,
    [(5, 2)] * 3 + [(4, 2)] * 30 + [(4, 1)] * 2,
    [(4, 6)] * 12 + [(4, 2)] * 3,
]


@pytest.mark.parametrize("widths", MIXES)
def test_segments_cover_all_blocks_in_order(widths: list[tuple[int, int]]) -> None:
    segments = cut_segments(widths)
    blocks = [(s.bits, s.group + b // s.group_blocks, s.first_block + b) for s in segments for b in range(s.blocks)]
    expected = [(bits, group) for group, (bits, count) in enumerate(widths) for _ in range(count)]
    assert [block[:2] for block in blocks] == expected
    assert [block[2] for block in blocks] == list(range(len(expected)))
    assert all(1 <= s.blocks <= 4 for s in segments)


@pytest.mark.parametrize("widths", MIXES)
@pytest.mark.parametrize("kind", ["exl2", "gptq", "float"])
def test_every_segment_belongs_to_one_warp(widths: list[tuple[int, int]], kind: str) -> None:
    linear = empty_linear(kind, widths, 100, CPU)
    plan = linear.plan(offset=5)
    assert len(plan) == 12 * 8 + WARPS * 16
    assert struct.unpack_from("<7q", plan, 40)[2] == 4  # strips of 100 columns
    segments = cut_segments(widths)
    next_segment = 0
    for warp in range(WARPS):
        begin, end, first, last, start, stop = struct.unpack_from("<4H2I", plan, 96 + 16 * warp)
        assert begin == next_segment <= end
        assert last - first == sum(segment.blocks for segment in segments[begin:end])
        assert begin == end or first == segments[begin].first_block
        assert start * 16 == linear.starts[begin]
        if begin < end:
            assert stop * 16 == linear.starts[begin + 1]
        next_segment = end
    assert next_segment == len(linear.starts) - 1


@pytest.mark.parametrize("widths", [[(4, 4)] * 32, [(5, 4)] * 4 + [(4, 4)] * 20 + [(3, 4)] * 8], ids=["one", "mixed"])
def test_long_columns_keep_all_warps_equally_busy(widths: list[tuple[int, int]]) -> None:
    linear = empty_linear("exl2", widths, 32, CPU)
    shares = [struct.unpack_from("<4H2I", linear.plan(), 96 + 16 * warp) for warp in range(WARPS)]
    assert {end - begin for begin, end, *_ in shares} == {2}


@pytest.mark.parametrize("size", [1, 2])
def test_small_groups_share_segments(size: int) -> None:
    segments = cut_segments([(8, 1)] * 3 + [(4, size)] * (124 // size))
    assert [(s.bits, s.blocks, s.group_blocks) for s in segments[:3]] == [(8, 2, 1), (8, 1, 1), (4, 4, size)]
    assert {(s.blocks, s.group_blocks) for s in segments[2:]} == {(4, size)}


@pytest.mark.parametrize(("count", "largest", "idle"), [(32, 2, 0), (86, 6, 1), (33, 3, 0), (7, 1, 9), (172, 11, 0)])
def test_no_warp_has_more_segments_than_it_must(count: int, largest: int, idle: int) -> None:
    begins = share_segments(count)
    shares = [end - begin for begin, end in pairwise(begins)]
    assert begins[0] == 0 and begins[-1] == count and len(shares) == WARPS
    assert max(shares) == largest and min(shares) >= 0 and shares.count(0) == idle


def test_stored_bytes_are_those_of_the_codes_and_one_header_per_segment() -> None:
    linear = empty_linear("exl2", [(4, 4)] * 32, 64, CPU)
    assert linear.codes.numel() == 2 * 32 * (4 * 512 + HEADER_BYTES + SCALE_BYTES["exl2"])
    small = empty_linear("gptq", [(4, 1)] * 128, 64, CPU)
    assert small.codes.numel() == 2 * 32 * (4 * 512 + HEADER_BYTES + 4 * SCALE_BYTES["gptq"])
    assert all(start % 16 == 0 for start in linear.starts)


def test_structs_have_the_sizes_that_are_packed(tmp_path: Path) -> None:
    library = compile_cpp(
        tmp_path,
        """
        #include "plan.h"
        using namespace exl2::cuda;
        extern "C" int model_bytes() { return sizeof(Model); }
        extern "C" int layer_bytes() { return sizeof(Layer); }
        extern "C" int linear_bytes() { return sizeof(Linear); }
        extern "C" int most_tokens() { return kMaxTokens; }
        extern "C" int warps() { return kWarps; }
        """,
    )
    assert library.model_bytes() == struct.calcsize(MODEL_FORMAT)
    assert library.layer_bytes() == struct.calcsize(LAYER_FORMAT)
    assert library.linear_bytes() == len(empty_linear("exl2", [(4, 4)], 32, CPU).plan())
    assert (library.most_tokens(), library.warps()) == (MAX_STEP, WARPS)
