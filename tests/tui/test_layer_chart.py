"""LayerChart: what the columns show at any width."""

from __future__ import annotations

import math

import pytest
from textual.app import App, ComposeResult

from exl2_tui.job_points import Part, Point
from exl2_tui.widgets.layer_chart import AXIS, LayerChart


class ChartApp(App[None]):
    def compose(self) -> ComposeResult:
        yield LayerChart()


def points(errors: list[float | None]) -> list[Point | None]:
    return [
        None if error is None else Point(f"k{index}", f"layer {index // 2} mlp", "mlp", {"x": Part(4.0, error, 1.0)})
        for index, error in enumerate(errors)
    ]


async def drawn(errors: list[float | None], width: int = 40, limit: float = 0.0) -> tuple[LayerChart, list[str]]:
    app = ChartApp()
    async with app.run_test(size=(width, 8)) as pilot:
        chart = app.query_one(LayerChart)
        chart.show(points(errors), limit)
        await pilot.pause()
        return chart, [chart.render_line(y).text for y in range(8)]


async def test_heights_follow_the_logarithm() -> None:
    _, rows = await drawn([0.1, 0.01, 0.001, None])
    columns = ["".join(row[AXIS + 4 * number] for row in rows[:6]) for number in range(4)]
    assert columns[0] == "██████"
    assert columns[1] == "  ████"
    assert columns[2] == "    ██"
    assert columns[3] == " " * 6


async def test_the_axis_names_its_decades() -> None:
    _, rows = await drawn([0.03])
    assert [row[:AXIS].strip() for row in rows[:6]] == [".1 ┤", "│", ".01 ┤", "│", ".001 ┤", "│"]


async def test_the_threshold_is_dotted_and_outliers_are_flagged() -> None:
    data = points([0.01, 0.5, 0.01])
    flagged = data[1]
    assert flagged is not None
    flagged.outlier = True
    app = ChartApp()
    async with app.run_test(size=(40, 8)):
        chart = app.query_one(LayerChart)
        chart.show(data, 0.05)
        rows = [chart.render_line(y).text for y in range(8)]
    assert sum("·" in row for row in rows[:6]) == 1
    assert rows[6][AXIS + 4] == "!" and rows[6].count("!") == 1


async def test_more_layers_than_columns_show_the_worst_of_each() -> None:
    errors: list[float | None] = [0.05] * 160
    errors[77] = 1.0
    _, rows = await drawn(errors, width=40)
    assert all(len(row) == 40 for row in rows)
    tall = [index for index in range(AXIS, 40) if rows[0][index] != " "]
    assert len(tall) == 1
    assert rows[5][AXIS:].strip() == "█" * (40 - AXIS)  # the whole width is used


@pytest.mark.parametrize("width", [5, 12, 13, 40, 79, 300])
@pytest.mark.parametrize("count", [0, 1, 2, 33, 160])
async def test_every_width_is_filled_exactly(width: int, count: int) -> None:
    _, rows = await drawn([0.01] * count, width=width, limit=0.02)
    assert {len(row) for row in rows} == {width}


async def test_what_is_no_number_is_full_height() -> None:
    _, rows = await drawn([math.nan, math.inf, 0.0, 0.01])
    assert rows[0][AXIS] == "█" and rows[0][AXIS + 4] == "█"
    assert rows[0][AXIS + 8] == " " and rows[5][AXIS + 8] == "▁"


async def test_the_cursor_names_the_worst_of_its_column_and_stays_inside() -> None:
    app = ChartApp()
    async with app.run_test(size=(20, 8)) as pilot:
        chart = app.query_one(LayerChart)
        chart.show(points([0.01 * (1 + index % 3) for index in range(60)]), 0.0)
        chart.focus()
        await pilot.press("end", "right", "right")
        assert chart.cursor == 20 - AXIS - 1
        assert chart.selected is not None and chart.selected.error == pytest.approx(0.03)
        await pilot.press("home")
        assert chart.cursor == 0
        await pilot.click(LayerChart, offset=(AXIS + 3, 2))
        assert chart.cursor == 3
