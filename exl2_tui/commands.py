"""The command palette: every action that has a key, by what it does; choices that need none; chats, models, modes."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.content import Content
from textual.fuzzy import Matcher

from exl2_tui.keymap import KEYS, Key, effective, spell
from exl2_tui.store.base import ChatRow
from exl2_tui.text import one_line
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
            if key.place in places and key.id != "app.palette" and self._possible(key)
        ]
        commands.append(("Welcome: what this machine has, and where to begin", "", app.welcome))
        commands += [(f"Theme: {name}", "", partial(self._use_theme, name)) for name in THEMES]
        commands += [(f"Sampler: {name}", "", partial(self._use_preset, name)) for name in PRESET_NAMES]
        return commands

    def _possible(self, key: Key) -> bool:
        """Whether the action does something now."""
        name, _, parameter = key.action.rstrip(")").partition("(")
        return key.place == "app" or self.screen.check_action(name, (parameter,)) is not False

    async def discover(self) -> Hits:
        for text, name, run in self._commands():
            yield DiscoveryHit(_line(Content(text), name, _room(self.app.size.width)), run, text)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for text, name, run in self._commands():
            if (score := matcher.match(text)) > 0:
                named = text.lower().startswith(query.strip().lower())  # "export" means Export, not what mentions it
                yield Hit(
                    score * (2 if named else 1), _line(_lit(matcher, text), name, _room(self.app.size.width)), run, text
                )

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


class ChoiceCommands(Provider):
    """Chats, models and prompt modes by name; typing finds them, so that the list of actions stays short."""

    async def startup(self) -> None:
        """Asks for what there is; the answers are there before anybody has typed a word."""
        self._chats: list[ChatRow] = []
        app = cast("Exl2App", self.app)
        if app.service is not None:
            app.service.list_models()
            app.service.list_modes()
        self._chats = await asyncio.wrap_future(app.chats.rows())

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for text, note, run in self._choices():
            if (score := matcher.match(text)) > 0:
                yield Hit(score, _line(_lit(matcher, text), note, _room(self.app.size.width)), run, text)

    def _choices(self) -> list[tuple[str, str, Callable[[], Any]]]:
        app = cast("Exl2App", self.app)
        here = app.session.chat
        choices: list[tuple[str, str, Callable[[], Any]]] = [
            (f"Chat: {one_line(row.title, 60)}", "", partial(app.open_chat, row.id))
            for row in self._chats
            if row.id != here.id
        ]
        choices += [
            (f"Model: {one_line(model.name, 50)}", one_line(model.format, 16), partial(app.load_model, model.path))
            for model in app.known_models
            if not model.problem
        ]
        choices += [
            (f"Prompt mode: {one_line(mode.name, 30)}", "in use" if mode.name == here.mode else "", run)
            for mode in app.known_modes
            for run in (partial(app.use_mode, mode.name),)
        ]
        return choices


def _line(text: Content, note: str, room: int) -> Content:
    """What a row does, and at its end the key: one row each, so that a small terminal shows more of them."""
    text = text.stylize("bold", 0, text.plain.find(":") + 1)
    right = Content.styled(f"  {note}", "$secondary")
    return text.truncate(room - right.cell_length, ellipsis=True, pad=True) + right


def _room(width: int) -> int:
    """Cells of a row in a terminal of that width: see CommandPalette in dialogs.tcss."""
    return min(86, int(0.94 * width)) - 6


def _lit(matcher: Matcher, text: str) -> Content:
    """The text with what matches lit up. Matcher.highlight would take brackets in a title for markup."""
    content = Content(text)
    for at in matcher.fuzzy_search.match(matcher.query, text)[1]:
        content = content.stylize("bold underline", at, at + 1)
    return content


PRESET_NAMES = ("balanced", "precise", "creative", "greedy")  # of settings_form, which the first frame does not need
