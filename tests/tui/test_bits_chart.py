"""The text chart of bits: columns stand on zero, layers share columns where there are many."""

from __future__ import annotations

import pytest

from exl2_tui.core.model_events import LinearBits
from exl2_tui.widgets.bits_chart import EIGHTHS, average_per_kind, bits_chart, halves


def model(bits: list[tuple[float, float]], head: float = 6.0) -> list[LinearBits]:
    """Layers with the given bits of attention and feed-forward."""
    linears = []
    for layer, (attention, feed) in enumerate(bits):
        linears.append(LinearBits(f"model.layers.{layer}.self_attn.q_proj", "exl2", attention - 1, 100, ""))
        linears.append(LinearBits(f"model.layers.{layer}.self_attn.o_proj", "exl2", attention + 1, 100, ""))
        linears.append(LinearBits(f"model.layers.{layer}.mlp.up_proj", "exl2", feed, 300, ""))
    return [*linears, LinearBits("lm_head", "exl2", head, 500, "")]


def heights(lines: list[str], first: int) -> list[int]:
    """Height of each column in eighths of a row, of the plot that begins at line `first`."""
    rows = [line[6:].rstrip() for line in lines[first : first + 3]]
    width = max(map(len, rows))
    columns = zip(*(row.ljust(width) for row in rows), strict=True)
    return [sum(EIGHTHS.index(cell) for cell in column) for column in columns]


def test_a_column_is_as_high_as_its_bits() -> None:
    lines = [line.plain for line in bits_chart(model([(2, 8), (4, 4), (8, 2)] * 10), 36)]
    assert lines[0].startswith("attention") and lines[0].endswith("average 4.67")
    assert heights(lines, 1) == [6, 12, 24] * 10  # of 24 eighths for 8 bits
    assert heights(lines, 5) == [24, 12, 6] * 10
    assert lines[1].startswith("   8 ┤") and all(len(line) <= 38 for line in lines)
    assert lines[-1].split()[0] == "0"


def test_many_layers_share_columns_and_few_are_wide() -> None:
    lines = [line.plain for line in bits_chart(model([(2, 2), (6, 6)] * 40), 46)]
    assert heights(lines, 1) == [16] * 40  # 4 of 6 bits on average
    wide = [line.plain for line in bits_chart(model([(4, 4)] * 3), 46)]
    assert wide[3].rstrip().endswith("└██ ██ ██")


def test_averages_are_weighted_by_size() -> None:
    attention, feed = halves(model([(3, 5)]))
    assert (attention, feed) == ([3.0], [5.0])
    assert average_per_kind(model([(3, 5), (5, 3)])) == [("q", 3.0), ("o", 5.0), ("up", 4.0), ("head", 6.0)]
    assert sum(bits for _, bits in average_per_kind(model([(3, 5)]))) == pytest.approx(2 + 4 + 5 + 6)


def test_names_that_fit_no_layer_give_no_chart() -> None:
    assert bits_chart([LinearBits("strange", "exl2", 4.0, 1, "")], 40) == []
    assert bits_chart([LinearBits("model.layers.0.mlp.up_proj", "exl2", 4.0, 1, "")], 40) == []
