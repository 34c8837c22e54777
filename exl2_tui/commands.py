"""The command palette: every action that has a key, by what it does, and choices that need none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider

from exl2_tui.keymap import KEYS, Key, effective, spell
from exl2_tui.text import plain
from exl2_tui.themes import THEMES

if TYPE_CHECKING:
    from exl2_tui.app import Exl2App

PLACES = (
    "models",
    "hub",
    "downloads",
    "convert",
    "wizard",
    "job",
    "settings",
)  # screens whose id is the place of their keys


class KeyCommands(Provider):
    """Runs actions of the screen below the palette."""

    def _commands(self) -> list[tuple[str, str, Callable[[], Any]]]:
        """Text, key and what to do."""
        app = cast("Exl2App", self.app)
        chosen = effective(app.key_overrides)
        places = ("app", self.screen.id if self.screen.id in PLACES else "chat")
        commands: list[tuple[str, str, Callable[[], Any]]] = [
            (f"{key.label}: {key.help}", spell(chosen[key.id]), partial(self._run, key))
            for key in KEYS
            if key.place in places and key.id != "app.palette"
        ]
        commands.append(("Welcome: what this machine has, and where to begin", "", app.welcome))
        commands += [(f"Theme: {name}", "", partial(self._use_theme, name)) for name in THEMES]
        commands += [(f"Sampler: {name}", "", partial(self._use_preset, name)) for name in PRESET_NAMES]
        return commands

    async def discover(self) -> Hits:
        for text, name, run in self._commands():
            yield DiscoveryHit(text, run, help=name)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for text, name, run in self._commands():
            if (score := matcher.match(text)) > 0:
                yield Hit(score, matcher.highlight(text), run, help=plain(name).plain)

    async def _run(self, key: Key) -> None:
        target = "app" if key.place == "app" else "screen"
        await self.app.run_action(f"{target}.{key.action}")

    def _use_theme(self, name: str) -> None:
        preferences = cast("Exl2App", self.app).preferences
        now = preferences.now
        preferences.use(dataclasses.replace(now, appearance=dataclasses.replace(now.appearance, theme=name)))

    def _use_preset(self, name: str) -> None:
        from exl2_tui.settings_form import PRESETS

        preferences = cast("Exl2App", self.app).preferences
        sampler = dataclasses.replace(PRESETS[name], seed=preferences.now.sampler.seed)
        preferences.use(dataclasses.replace(preferences.now, sampler=sampler))


PRESET_NAMES = ("balanced", "precise", "creative", "greedy")  # of settings_form, which the first frame does not need
