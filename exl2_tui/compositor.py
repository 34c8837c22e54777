"""FrugalCompositor: draws only what can be seen of what has changed.

Textual 8.2.8 renders, for every update, all rows of every widget whose container touches the changed area, also of
those that lie under others: one row of figures below an answer costs as much as the whole answer, eight widgets deep.
While an answer is written that was most of the time of a frame, and the engine waits meanwhile. What comes out is the
same, cell for cell (tests/tui/test_compositor.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import cast

from textual._compositor import Compositor
from textual.geometry import Region
from textual.strip import Strip


class FrugalCompositor(Compositor):
    """A Textual compositor, for `Screen._compositor`."""

    def _render_chops(self, crop: Region, is_rendered_line: Callable[[int], bool]) -> Sequence[Mapping[int, Strip]]:
        """Per row of the screen, strips by the column they begin at; None where nothing was asked for.

        Widgets come front to back and the first to fill a piece of a row keeps it. One that would fill nothing of the
        rows and columns asked for is not rendered.
        """
        cuts = self.cuts
        chops: list[dict[int, Strip | None]] = [dict.fromkeys(line[:-1]) for line in cuts]
        for widget, (region, clip) in self.visible_widgets.items():
            shown = region.intersection(clip)
            asked = shown.intersection(crop)
            if not asked:
                continue
            left, right = shown.column_span
            pieces: dict[int, list[int]] = {}  # by row where something is left to fill: cuts within the widget
            for y in asked.line_range:
                if not is_rendered_line(y):
                    continue
                line = chops[y]
                inside = [cut for cut in cuts[y] if left <= cut <= right]
                if any(line[cut] is None and cut < asked.right and end > asked.x for cut, end in pairwise(inside)):
                    pieces[y] = inside
            if not pieces:
                continue
            top, bottom = min(pieces), max(pieces) + 1
            part = Region(shown.x - region.x, top - region.y, shown.width, bottom - top)
            for y, strip in enumerate(widget.render_lines(part), top):
                if y in pieces:
                    inside, line = pieces[y], chops[y]
                    for cut, piece in zip(inside, strip.divide([cut - left for cut in inside[1:]]), strict=False):
                        if line[cut] is None:
                            line[cut] = piece
        return cast(Sequence[Mapping[int, Strip]], chops)
