"""KeyRow: the last row of a screen: what keys do here and now. One widget, drawn in the frame in which that changes.

Textual's footer is a widget per key, all of them made anew a moment after every move of the focus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Input, TextArea

from exl2_tui.hints import keys_of
from exl2_tui.keymap import KEYS, effective, spell
from exl2_tui.widgets.bars import Row

ORDER = {key.id: number for number, key in enumerate(KEYS)}
ROOMY = {key.id for key in KEYS if key.roomy}
GAP = 2  # cells that a Row keeps between its sides
PINNED = ("app.help", "app.palette")  # at the end of the row, whatever else there is


@dataclass(frozen=True, slots=True)
class Shown:
    """A key of the row: what it is called, what it does, and what a click presses."""

    id: str
    key: str
    name: str
    label: str
    help: str

    @property
    def cells(self) -> int:
        return Content(f" {self.name} {self.label} ").cell_length


class KeyRow(Row):
    """Keys with their labels, as many as there is room for; a click presses the key."""

    DEFAULT_CSS: ClassVar[str] = "KeyRow { dock: bottom; background: $background; }"

    def __init__(self, labels: Callable[[], Mapping[str, str]] = dict) -> None:
        """labels: by id, of keys that do now something else than what their label in the keymap says."""
        super().__init__(id="keys-here")
        self._labels = labels
        self._left: list[Shown] = []
        self._right: list[Shown] = []

    def on_mount(self) -> None:
        self.screen.bindings_updated_signal.subscribe(self, self._bindings_changed)

    def on_unmount(self) -> None:
        self.screen.bindings_updated_signal.unsubscribe(self)

    def on_resize(self) -> None:
        self._fill()

    def _bindings_changed(self, screen: Screen[object]) -> None:
        if screen is self.screen and self.is_attached and self.app.app_focus:
            self._fill()

    def _fill(self) -> None:
        keys = self._keys()
        self._right = [key for key in keys if key.id in PINNED]
        room = self.content_size.width - sum(key.cells for key in self._right) - GAP
        self._left = []
        for key in sorted(keys, key=lambda key: key.id in ROOMY):
            if key.id not in PINNED and key.cells <= room:
                self._left.append(key)
                room -= key.cells
        self.put(_line(self._left), _line(self._right))

    def _keys(self) -> list[Shown]:
        """What the row may show, escape first, in the order of the keymap; an action once, by the first of its keys."""
        names, labels = effective(keys_of(self)), self._labels()
        found: dict[str, Shown] = {}
        typing = isinstance(self.screen.focused, Input | TextArea)
        for active in self.screen.active_bindings.values():
            binding = active.binding
            name = binding.id or binding.action
            spelled = spell(names.get(name, binding.key))
            typed = typing and len(spelled) == 1 and spelled.isascii()  # it belongs to the text
            if name not in found and not typed and active.enabled and (binding.show or name in ROOMY):
                label = labels.get(name, binding.description)
                found[name] = Shown(name, binding.key, spelled, label, active.tooltip)
        return sorted(found.values(), key=lambda key: (key.key != "escape", ORDER.get(key.id, len(ORDER))))

    def _at(self, x: int) -> Shown | None:
        """The key at a column."""
        start = 0
        for key in self._left:
            if start <= x < start + key.cells:
                return key
            start += key.cells
        start = self.content_size.width - sum(key.cells for key in self._right)
        for key in self._right:
            if start <= x < start + key.cells:
                return key
            start += key.cells
        return None

    def on_click(self, event: events.Click) -> None:
        key = self._at(event.x)
        if key is not None:
            self.app.simulate_key(key.key)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        key = self._at(event.x)
        self.tooltip = Content(key.help) if key is not None and key.help else None


def _line(keys: Iterable[Shown]) -> Content:
    parts: list[tuple[str, str]] = []
    for key in keys:
        parts += [(f" {key.name} ", "bold $footer-key-foreground"), (f"{key.label} ", "$footer-description-foreground")]
    return Content.assemble(*parts)
