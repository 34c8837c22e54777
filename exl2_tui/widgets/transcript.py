"""Transcript: the branch in view, of which at most a window of turns is mounted.

Cost per update grows with every mounted widget, so a chat of 500 turns holds the same 30 as a short one; scrolling to
an end moves the window. While the reader is scrolled up nothing is drawn below, only counted.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.geometry import Region, Size
from textual.layout import DockArrangeResult
from textual.message import Message
from textual.scrollbar import ScrollBar
from textual.widget import Widget
from textual.widgets import Static

from exl2_tui.store.tree import Chat, Turn
from exl2_tui.widgets.growing import Growing
from exl2_tui.widgets.slim_bar import SlimBar

if TYPE_CHECKING:
    from exl2_tui.widgets.turn_view import TurnView

STEP = 10  # turns the window moves by, at most half of it
TEXT_LIMIT = 400_000  # characters of mounted turns; a giant answer pushes older ones out


class _Turns(Vertical, Growing):
    """The turns of the window."""


class Transcript(VerticalScroll, can_focus=False):
    """Shows a chat. `show` after turns changed, `feed` after text arrived."""

    DEFAULT_CSS: ClassVar[str] = """
    /* The bar's column stays free: else all turns are laid out anew, other rows and all, when the bar comes or goes. */
    Transcript { height: 1fr; scrollbar-size-vertical: 1; scrollbar-gutter: stable; }
    /* At least as high as the view: an anchored container would push shorter content to its bottom. */
    #turns { height: auto; min-height: 100%; }
    #turns > .-edge { height: 1; color: $secondary; padding: 0 3; display: none; }
    Transcript.-more-above #turns > #earlier { display: block; }
    Transcript.-more-below #turns > #later { display: block; }
    #turns > #empty { height: auto; padding: 1 3; display: none; }
    Transcript.-empty #turns > #empty { display: block; }
    """

    class Following(Message):
        """Whether the reader is at the end changed, or how many lines wait there."""

        def __init__(self, waiting: int) -> None:
            super().__init__()
            self.waiting = waiting

    def __init__(self, turns: int = 30) -> None:
        super().__init__(id="transcript")
        self._limit = turns
        self._turns: list[Turn] = []
        self._chat: Chat | None = None
        self._views: dict[str, TurnView] = {}
        self._start = 0
        self._end = 0
        self._marked: str | None = None
        self._moving = False
        self._pattern: re.Pattern[str] | None = None
        self._welcome = Content("")

    def arrange(self, size: Size, optimal: bool = False) -> DockArrangeResult:
        """Whether the bar is shown is known as soon as the height is, for this very layout: its column is free anyway.
        Textual would lay out everything once more."""
        arranged = super().arrange(size, optimal)
        self.set_reactive(Widget.show_vertical_scrollbar, arranged.total_region.bottom > size.height)
        return arranged

    def _size_updated(self, size: Size, virtual_size: Size, container_size: Size, layout: bool = True) -> bool:
        """More rows need no second layout."""
        return super()._size_updated(size, virtual_size, container_size, layout=False)

    @property
    def shows_end(self) -> bool:
        """Whether it is scrolled to its end, and stays there when there are more rows."""
        at_end = self.show_vertical_scrollbar and self.scroll_y == self.max_scroll_y
        return at_end and self._anchored and not self._anchor_released

    def grown(self, rows: int) -> None:
        """There are more rows; it shows the end, as before."""
        self.set_reactive(Widget.virtual_size, self.virtual_size + Size(0, rows))
        end = self.max_scroll_y
        self.set_reactive(Widget.scroll_y, end)
        self.set_reactive(Widget.scroll_target_y, end)
        bar = self.vertical_scrollbar
        bar.set_reactive(ScrollBar.window_virtual_size, self.virtual_size.height)
        bar.set_reactive(ScrollBar.position, end)

    @property
    def vertical_scrollbar(self) -> ScrollBar:
        if self._vertical_scrollbar is None:
            self._vertical_scrollbar = SlimBar(name="vertical", thickness=self.scrollbar_size_vertical)
            self.app._start_widget(self, self._vertical_scrollbar)
        return self._vertical_scrollbar

    def compose(self) -> ComposeResult:
        with _Turns(id="turns"):
            yield Static("", id="empty", markup=False)
            yield Static("", id="earlier", classes="-edge", markup=False)
            yield Static("↓ later turns", id="later", classes="-edge", markup=False)

    def on_mount(self) -> None:
        self.anchor()

    @property
    def following(self) -> bool:
        """Whether the reader sees the end, so that new text may be drawn."""
        return self._end >= len(self._turns) and self.max_scroll_y - self.scroll_y <= 1

    @property
    def marked(self) -> Turn | None:
        return next((turn for turn in self._turns if turn.id == self._marked), None)

    def view(self, turn: Turn) -> TurnView | None:
        """The widget of a turn, if it is in the window."""
        return self._views.get(turn.id)

    def set_welcome(self, content: Content) -> None:
        """What an empty chat shows."""
        if not content.is_same(self._welcome):
            self._welcome = content
            self.query_one("#empty", Static).update(content)

    def show(self, chat: Chat, *, to_end: bool = False) -> None:
        """Brings the widgets in step with the branch in view; another chat is shown from its end."""
        new_chat = self._chat is None or self._chat.id != chat.id
        at_end = new_chat or to_end or self.following
        self._chat = chat
        self._turns = chat.path()
        if self.marked is None:
            self._marked = None
        self.set_class(not self._turns, "-empty")
        if at_end:
            self._window_at_end()
            self._sync()
            self.anchor()
        else:
            self._end = min(max(self._end, self._start + 1), len(self._turns))
            self._start = min(self._start, self._end)
            self._sync()

    def feed(self, turn: Turn) -> None:
        """Draws new text of the turn being written, if the reader is there to see it."""
        view = self._views.get(turn.id)
        if view is None:
            return
        if self.following:
            view.feed()
        elif view.unseen:
            self.post_message(self.Following(max(1, view.unseen_lines)))

    def finish(self, turn: Turn) -> None:
        """The turn has ended."""
        view = self._views.get(turn.id)
        if view is not None:
            view.finish()

    def hints_changed(self) -> None:
        """Keys have other names than before."""
        for view in self._views.values():
            view.hints_changed()

    def go_to_end(self) -> None:
        """Shows the newest turn and follows it again."""
        if self._chat is not None:
            self.show(self._chat, to_end=True)

    def page(self, pages: int) -> None:
        """Scrolls by pages; at an end of the window, the window moves."""
        if pages < 0 and self.scroll_y <= 0 and self._start > 0:
            self._move(-1)
        elif pages < 0:
            self.scroll_page_up(animate=False)
        elif self.scroll_y >= self.max_scroll_y and self._end < len(self._turns):
            self._move(1)
        else:
            self.scroll_page_down(animate=False)

    def go_to_top(self) -> None:
        """Shows the first turn."""
        self._start, self._end = 0, min(self._limit, len(self._turns))
        self.release_anchor()
        self._sync()
        self.scroll_home(animate=False)

    def mark(self, step: int) -> Turn | None:
        """Moves the turn cursor; from nowhere, up goes to the last turn. Past the last one it goes away."""
        if not self._turns:
            return None
        ids = [turn.id for turn in self._turns]
        at = ids.index(self._marked) if self._marked in ids else len(ids)
        return self.mark_turn(self._turns[max(0, at + step)] if at + step < len(ids) else None)

    def mark_turn(self, turn: Turn | None) -> Turn | None:
        """Puts the turn cursor on a turn, or nowhere."""
        self._marked = turn.id if turn else None
        if turn is not None:
            self._bring(turn)
        for view in self._views.values():
            view.set_class(view.turn.id == self._marked, "-marked")
        if turn is not None:
            self._views[turn.id].scroll_visible(animate=False)
        return turn

    def find(self, pattern: re.Pattern[str] | None, turn: Turn | None, number: int) -> None:
        """Lights up a pattern in all turns of the window, and shows its `number`-th occurrence in `turn`."""
        self._pattern = pattern
        if turn is not None:
            self.release_anchor()
            self._bring(turn)

        def light() -> None:
            for view in self._views.values():
                place = view.find(pattern, number if turn is not None and view.turn.id == turn.id else -1)
                if place is not None:
                    widget, row = place
                    spot = Region(0, widget.virtual_region.y + row, 1, 1)
                    above = widget.parent
                    while isinstance(above, Widget) and above is not self:
                        spot = spot.translate(above.virtual_region.offset)
                        above = above.parent
                    self.scroll_to_region(spot, animate=False, center=True, immediate=True)

        self.call_after_refresh(light)

    def _bring(self, turn: Turn) -> None:
        """Moves the window so that the turn is in it."""
        if turn.id not in self._views:
            self._start = max(0, min(self._turns.index(turn), len(self._turns) - self._limit))
            self._end = min(len(self._turns), self._start + self._limit)
            self._sync()

    def watch_scroll_y(self, old: float, new: float) -> None:
        super().watch_scroll_y(old, new)
        if self._moving or not self.is_mounted:
            return
        if new <= 0 and old > 0 and self._start > 0:
            self._move(-1)
        elif self.max_scroll_y - new <= 1:
            if self._end < len(self._turns):
                self._move(1)
            else:
                self._catch_up()

    def _catch_up(self) -> None:
        """The reader came back to the end: draw what waited."""
        self.post_message(self.Following(0))
        for view in self._views.values():
            if view.turn.state == "writing":
                view.feed()

    def _window_at_end(self) -> None:
        self._end = len(self._turns)
        self._start = self._end
        size = 0
        while self._start > 0 and self._end - self._start < self._limit:
            size += len(self._turns[self._start - 1].text)
            if size > TEXT_LIMIT and self._end - self._start >= 2:
                break
            self._start -= 1

    def _move(self, direction: int) -> None:
        """Moves the window up (-1) or down (1) and keeps the reader's place by the turn at the edge."""
        step = direction * max(1, min(STEP, self._limit // 2))
        edge = self._turns[self._start if step < 0 else self._end - 1]
        if step < 0:
            self._start = max(0, self._start + step)
            self._end = min(len(self._turns), self._start + self._limit)
        else:
            self._end = min(len(self._turns), self._end + step)
            self._start = max(0, self._end - self._limit)
        self._sync()

        def settle() -> None:
            view = self._views.get(edge.id)
            if view is not None:
                self.scroll_to_widget(view, animate=False, top=step < 0, immediate=True)

        self.call_after_refresh(settle)

    def _sync(self) -> None:
        """Mounts and removes views so that exactly the window is there, in order.

        Until that is laid out, scroll positions mean nothing and must not move the window.
        """
        self._moving = True
        self.call_after_refresh(self._settled)
        wanted = self._turns[self._start : self._end]
        versions = {turn.id: self._versions(turn) for turn in wanted}
        for turn_id, view in list(self._views.items()):
            place = versions.get(turn_id)
            begun_again = view.finished and view.turn.state == "writing"
            if place is None or (view.version, view.versions) != place or begun_again:
                view.remove()
                del self._views[turn_id]
        turns = self.query_one("#turns")
        with self.app.batch_update():
            before: Widget = self.query_one("#later")
            for turn in reversed(wanted):
                known = self._views.get(turn.id)
                if known is None:
                    known = self._views[turn.id] = self._new_view(turn, *versions[turn.id])
                    turns.mount_all([known], before=before)
                before = known
            self.set_class(self._start > 0, "-more-above")
            self.set_class(self._end < len(self._turns), "-more-below")
            if self._start > 0:
                self.query_one("#earlier", Static).update(f"↑ {self._start:,} earlier turns", layout=False)

    def _new_view(self, turn: Turn, version: int, versions: int) -> TurnView:
        from exl2_tui.widgets.turn_view import TurnView  # an empty chat, as in the first frame, does without

        view = TurnView(turn, version, versions)
        view.set_class(turn.id == self._marked, "-marked")
        return view

    def _settled(self) -> None:
        self._moving = False
        if self.following:
            self._catch_up()

    def _versions(self, turn: Turn) -> tuple[int, int]:
        """Number of this version and how many there are."""
        if self._chat is None:
            return (1, 1)
        ids = [version.id for version in self._chat.siblings(turn)]
        return (ids.index(turn.id) + 1, len(ids))
