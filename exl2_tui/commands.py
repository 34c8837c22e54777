"""The command palette: every action that has a key, by what it does."""

from __future__ import annotations

from functools import partial

from textual.command import DiscoveryHit, Hit, Hits, Provider

from exl2_tui.keymap import KEYS, Key, effective, spell
from exl2_tui.text import plain

PLACES = ("models", "hub", "downloads", "convert", "wizard", "job")  # screens whose id is the place of their keys


class KeyCommands(Provider):
    """Runs actions of the screen below the palette."""

    def _commands(self) -> list[tuple[Key, str]]:
        chosen = effective(getattr(self.app, "key_overrides", {}))
        places = ("app", self.screen.id if self.screen.id in PLACES else "chat")
        return [(key, spell(chosen[key.id])) for key in KEYS if key.place in places and key.id != "app.palette"]

    async def discover(self) -> Hits:
        for key, name in self._commands():
            yield DiscoveryHit(f"{key.label}: {key.help}", partial(self._run, key), help=name)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for key, name in self._commands():
            text = f"{key.label}: {key.help}"
            if (score := matcher.match(text)) > 0:
                yield Hit(score, matcher.highlight(text), partial(self._run, key), help=plain(name).plain)

    async def _run(self, key: Key) -> None:
        target = "app" if key.place == "app" else "screen"
        await self.app.run_action(f"{target}.{key.action}")
