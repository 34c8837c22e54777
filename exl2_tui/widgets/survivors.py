"""Survivors: which tokens each step of the sampler leaves over, as a table. A pure function of the steps."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from exl2_tui.core.events import SamplerStep, TokenChance
from exl2_tui.text import clean, one_line

TITLES = {
    "model": "model",
    "penalties": "repeat",
    "temperature": "temp",
    "top_k": "top-k",
    "top_p": "top-p",
    "min_p": "min-p",
    "typical_p": "typical",
    "greedy": "greedy",
}
CELLS = 7  # of a column of probabilities
NAME_CELLS = (9, 18)  # least and most of the column of tokens
BAR_CELLS = 10
EXTRA_ROWS = 3  # at most, for tokens that come last or not at all with the model, but survive


def survivors_table(steps: Sequence[SamplerStep], width: int, height: int) -> Content:
    """A row per token, the most probable of the model first; a column per step with the token's probability.

    width, height: cells and rows there are. Where not all columns fit, the first ones give way; a dot stands for a
    token that a step dropped, and the last column, of what may really be drawn, is drawn as bars if there is room.
    """
    fit = max(1, (width - NAME_CELLS[0]) // CELLS)
    shown = list(steps[-fit:])
    name_cells = min(NAME_CELLS[1], max(NAME_CELLS[0], width - CELLS * len(shown)))
    bars = width - name_cells - CELLS * len(shown) >= BAR_CELLS + 2
    rows = [
        Content.styled("".ljust(name_cells) + "".join(f"{TITLES[step.name]:>{CELLS}}" for step in shown), "$secondary"),
        Content.styled(
            "left".ljust(name_cells) + "".join(f"{_count(step.survivors):>{CELLS}}" for step in shown), "$primary"
        ),
    ]
    chances = [{chance.token: chance.probability for chance in step.best} for step in shown]
    for chance in _tokens(steps, max(1, height - len(rows))):
        parts: list[str | tuple[str, str]] = []
        left = chance.token in chances[-1]
        name = one_line(_spell(chance.text), name_cells - 1)
        parts.append((_pad(name, name_cells), "" if left else "$secondary"))
        for number, column in enumerate(chances):
            probability = column.get(chance.token)
            if probability is None:
                parts.append((f"{'·':>{CELLS}}", "$secondary"))
            else:
                last = number == len(chances) - 1
                parts.append((f"{_percent(probability):>{CELLS}}", "bold $primary" if last else "$secondary"))
        if bars and left:
            parts.append(("  " + "━" * max(1, round(chances[-1][chance.token] * BAR_CELLS)), "$primary"))
        rows.append(Content.assemble(*parts))
    return Content("\n").join(rows)


def _tokens(steps: Sequence[SamplerStep], room: int) -> list[TokenChance]:
    """The most probable tokens of the model, and a few of the last step that are not among them."""
    first = list(steps[0].best[:room])
    known = {chance.token for chance in first}
    others = [chance for chance in steps[-1].best if chance.token not in known]
    extra = others[: min(EXTRA_ROWS, room // 2)]
    return [*first[: room - len(extra)], *extra]


def _spell(text: str) -> str:
    """A token so that its spaces and line feeds can be seen."""
    text = clean(text).replace("\n", "⏎").replace("\t", "⇥")
    return text.replace(" ", "␣") if text.strip() != text or not text else text


def _pad(text: str, cells: int) -> str:
    return text + " " * max(0, cells - Content(text).cell_length)


def _count(number: int) -> str:
    return f"{number:,}" if number < 100_000 else f"{number / 1000:.0f}k"


def _percent(share: float) -> str:
    return "<0.1%" if share < 0.001 else f"{share:.1%}"
