"""The bits of every layer as text: one column per layer, attention above, feed-forward below, and an average per kind.

Pure functions. Columns stand on zero, so that 2 bits look like half of 4; more layers than columns share one, which
shows their average.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from textual.content import Content

from exl2_tui.core.model_events import LinearBits

EIGHTHS = " ▁▂▃▄▅▆▇█"
AXIS = 5  # cells of the scale
ROWS = 3  # of each half
WIDEST = 3
KINDS = ("q", "k", "v", "o", "gate", "up", "down")


def bits_chart(linears: Sequence[LinearBits], width: int) -> list[Content]:
    """Rows of at most `width` cells; none for a model without layers."""
    attention, feed = halves(linears)
    if not attention:
        return []
    top = max(4, 2 * -(-int(max(*attention, *feed) + 0.999) // 2))
    columns = max(1, min(len(attention), width - AXIS - 1))
    wide = max(1, min(WIDEST, (width - AXIS - 1) // columns))
    lines = []
    for title, values in (("attention", attention), ("feed-forward", feed)):
        lines.append(Content.styled(f"{title:<{AXIS + 13}}average {sum(values) / len(values):.2f}", "$secondary"))
        lines += _plot(_shared(values, columns), top, wide)
    lines.append(Content.styled(" " * (AXIS + 1) + _numbers(len(attention), columns, wide), "$secondary"))
    return lines


def halves(linears: Sequence[LinearBits]) -> tuple[list[float], list[float]]:
    """Bits per weight of attention and feed-forward of each layer."""
    sums: dict[tuple[int, bool], list[float]] = {}
    for linear in linears:
        parts = linear.name.split(".")
        if len(parts) >= 5 and parts[2].isdigit():
            both = sums.setdefault((int(parts[2]), parts[3] == "mlp"), [0.0, 0.0])
            both[0] += linear.bits * linear.weights
            both[1] += linear.weights
    layers = sorted({layer for layer, _ in sums})
    values = [
        [sums[layer, mlp][0] / sums[layer, mlp][1] for layer in layers if (layer, mlp) in sums] for mlp in (False, True)
    ]
    return (values[0], values[1]) if len(values[0]) == len(values[1]) == len(layers) else ([], [])


def average_per_kind(linears: Sequence[LinearBits]) -> list[tuple[str, float]]:
    """("q", 3.1), ... and ("head", 6.0): where the bits of a mix went."""
    found = []
    for kind in KINDS:
        same = [linear for linear in linears if linear.name.endswith(f".{kind}_proj")]
        weights = sum(linear.weights for linear in same)
        if weights:
            found.append((kind, sum(linear.bits * linear.weights for linear in same) / weights))
    found += [("head", linear.bits) for linear in linears if linear.name == "lm_head"]
    return found


def _shared(values: Sequence[float], columns: int) -> list[float]:
    starts = [column * len(values) // columns for column in range(columns + 1)]
    return [sum(values[start:end]) / (end - start) for start, end in pairwise(starts)]


def _plot(values: Sequence[float], top: int, wide: int) -> list[Content]:
    lines = []
    for row in range(ROWS):
        below = (ROWS - 1 - row) * 8
        scale = f"{top:>{AXIS - 1}g} ┤" if row == 0 else " " * AXIS + ("└" if row == ROWS - 1 else "│")
        bars = ""
        for value in values:
            level = max(1, round(value / top * ROWS * 8))
            bars += EIGHTHS[max(0, min(8, level - below))] * (wide - (1 if wide > 1 else 0)) + (" " if wide > 1 else "")
        lines.append(Content.assemble((scale, "$secondary"), (bars, "$primary")))
    return lines


def _numbers(layers: int, columns: int, wide: int) -> str:
    """Layer numbers under the columns, as many as fit."""
    text = ""
    for column in range(columns):
        if column * wide >= len(text) + (1 if text else 0):
            text = text.ljust(column * wide) + str(column * layers // columns)
    return text[: columns * wide + 2]
