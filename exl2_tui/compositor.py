"""FrugalCompositor: draws only what can be seen of what has changed, and lays out only what moves.

Textual 8.2.8 renders, for every update, all rows of every widget whose container touches the changed area, also of
those that lie under others: one row of figures below an answer costs as much as the whole answer, eight widgets deep.
While an answer is written that was most of the time of a frame, and the engine waits meanwhile. What comes out is the
same, cell for cell (tests/tui/test_compositor.py). So is the place of every widget after `grow`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise, takewhile
from typing import cast

from textual._compositor import ChopsUpdate, Compositor, CompositorMap
from textual.geometry import Region, Size
from textual.map_geometry import MapGeometry
from textual.strip import Strip
from textual.widget import Widget

Span = tuple[int, int, int]  # row, first column, column after the last
Chops = list[dict[int, Strip | None]]


class FrugalCompositor(Compositor):
    """A Textual compositor, for `Screen._compositor`."""

    def grow(self, text: Widget, view: Widget, rows: int) -> dict[Widget, MapGeometry]:
        """Gives a text `rows` more rows at its end, in a scrolled view that shows its end: what is above it moves up.

        Returns the text and what is around it within the view, which got as many rows; nothing if one of them is not
        on the screen. Whoever calls it sees to the scroll position of the view.
        """
        old = self._visible_map if self._visible_map is not None else self._full_map
        inner = [text, *takewhile(lambda node: node is not view, text.ancestors)]
        if view not in old or not all(widget in old for widget in inner):
            return {}
        more = Size(0, rows)
        bottom = old[text].region.bottom
        clips: dict[object, Region] = {view: old[cast(Widget, inner[-1])].clip}  # of what is in a widget
        new: CompositorMap = {}
        for widget, place in reversed(old.items()):  # what is around something comes after it
            if widget is view:
                place = place._replace(virtual_size=place.virtual_size + more)
            elif place.order == old[view].order:  # a scroll bar
                self._dirty_regions.add(place.region)
            elif view in widget.ancestors:
                if widget in inner:
                    place = place._replace(
                        region=Region(place.region.x, place.region.y - rows, *(place.region.size + more)),
                        virtual_size=place.virtual_size + more,
                        container_size=place.container_size + more,
                        virtual_region=place.virtual_region.grow((0, 0, rows, 0)),
                    )
                elif place.region.y < bottom:
                    place = place._replace(region=place.region.translate((0, -rows)))
                elif widget.parent is view or widget.parent in inner:
                    place = place._replace(virtual_region=place.virtual_region.translate((0, rows)))
                clip = clips.get(widget.parent)
                if clip is None or not place.region.overlaps(clip):
                    continue  # it has left the screen
                clips[widget] = clip.intersection(place.region.shrink(widget.styles.gutter))
                place = place._replace(clip=clip)
            new[widget] = place
        self._cuts = self._layers = self._layers_visible = self._visible_widgets = None
        self._full_map_invalidated = True
        self._visible_map = dict(reversed(new.items()))
        filled = old[text].region.y < old[text].clip.y  # by the text: the rest of what moves is blank
        self._dirty_regions.add(new[text].clip.intersection(new[text].region) if filled else clips[view])
        return {cast(Widget, widget): new[cast(Widget, widget)] for widget in inner}

    def render_partial_update(self) -> ChopsUpdate | None:
        screen = self.size.region
        regions = [shown for region in self._dirty_regions if (shown := region.intersection(screen))]
        self._dirty_regions.clear()
        if not regions:
            return None
        spans = list(self._regions_to_spans(regions))
        return ChopsUpdate(self._filled(spans), spans, [line[1:] for line in self.cuts])

    def _render_chops(self, crop: Region, is_rendered_line: Callable[[int], bool]) -> Sequence[Mapping[int, Strip]]:
        spans = ((y, crop.x, crop.right) for y in crop.line_range if is_rendered_line(y))
        return cast(Sequence[Mapping[int, Strip]], self._filled(spans))

    def _filled(self, spans: Iterable[Span]) -> Chops:
        """Per row of the screen, strips by the column they begin at; None where nothing was asked for.

        Widgets come front to back and the first to fill a piece of a row keeps it. One that would fill nothing of what
        was asked for is not rendered, and once all of it is filled the others are not looked at.
        """
        cuts = self.cuts
        chops: Chops = [dict.fromkeys(line[:-1]) for line in cuts]
        empty: dict[int, set[int]] = {}  # by row: the first columns of pieces that were asked for and are not filled
        for y, first, end in spans:
            line = cuts[y]
            pieces = {cut for cut, after in pairwise(line) if cut < end and after > first}
            empty[y] = empty[y] | pieces if y in empty else pieces
        if not empty:
            return chops
        top, bottom = min(empty), max(empty) + 1
        for widget, (region, clip) in self.visible_widgets.items():
            shown = region.intersection(clip)
            left, right = shown.column_span
            found: dict[int, list[int]] = {}  # by row where something is left to fill: cuts within the widget
            for y in range(max(shown.y, top), min(shown.bottom, bottom)):
                if y in empty and any(left <= cut < right for cut in empty[y]):
                    found[y] = [cut for cut in cuts[y] if left <= cut <= right]
            if not found:
                continue
            first, after = min(found), max(found) + 1
            part = Region(shown.x - region.x, first - region.y, shown.width, after - first)
            for y, strip in enumerate(widget.render_lines(part), first):
                if y not in found:
                    continue
                inside, filled, missing = found[y], chops[y], empty[y]
                for cut, piece in zip(inside, strip.divide([cut - left for cut in inside[1:]]), strict=False):
                    if filled[cut] is None:
                        filled[cut] = piece
                        missing.discard(cut)
                if not missing:
                    del empty[y]
            if not empty:
                break
        return chops
