"""SettingsPlace: changing settings, and what is remembered without being asked: the last model, the last mode."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING

from textual.timer import Timer

from exl2_tui.core.events import LoadFinished
from exl2_tui.settings import Settings, save_settings
from exl2_tui.state import Changes, HoldsSettings
from exl2_tui.themes import THEMES, colours_are_off, known_theme_name

if TYPE_CHECKING:
    from exl2_tui.app import Exl2App

SAVE_SECONDS = 0.3


class SettingsPlace:
    """Settings are used at once and saved on a thread a moment after the last change."""

    def __init__(self, app: Exl2App) -> None:
        self._app = app
        self._timer: Timer | None = None

    @property
    def now(self) -> Settings:
        return self._app.session.settings

    def open(self) -> None:
        from exl2_tui.screens.settings import SettingsScreen

        app = self._app
        if not any(isinstance(screen, SettingsScreen) for screen in app.screen_stack):
            app.action_place_chat()
            app.push_screen(SettingsScreen(app.session, self.use))

    def open_sampler(self) -> None:
        from exl2_tui.screens.sampler import SamplerPanel

        app = self._app
        if not isinstance(app.screen, SamplerPanel):
            session = app.session
            app.push_screen(
                SamplerPanel(self.now, self.use, session.preview_sampler, prompts_read=lambda: session.prompts_read)
            )

    def use(self, settings: Settings) -> None:
        """Takes new settings with all they change on screen."""
        app = self._app
        theme, keys = settings.appearance.theme, settings.keys
        if theme != self.now.appearance.theme and theme in THEMES:
            app.theme = known_theme_name(theme)
        changes = Changes(status=True)
        if keys != self.now.keys:
            app.set_keymap(keys)
            changes = Changes(model=True, status=True, turns=True, queue=True, keys=True)
        self.change(settings)
        app.repaint(changes)

    def next_theme(self) -> None:
        app = self._app
        if colours_are_off():
            app.say("NO_COLOR is set, so there are no colours to choose from")
            return
        names = list(THEMES)
        current = next((name for name in names if THEMES[name].name == app.theme), names[0])
        name = names[(names.index(current) + 1) % len(names)]
        app.theme = THEMES[name].name
        app.say(f"Theme {name}")
        self.change(dataclasses.replace(self.now, appearance=dataclasses.replace(self.now.appearance, theme=name)))

    def change(self, settings: Settings) -> None:
        """Takes new settings and saves them soon."""
        self._app.session.settings = settings
        for screen in self._app.drawn:
            if isinstance(screen, HoldsSettings):
                screen.take(settings)
        if self._timer is not None:
            self._timer.stop()
        self._timer = self._app.set_timer(SAVE_SECONDS, self._save)

    def finish(self) -> None:
        """The app has ended: what waits is written."""
        if self._timer is not None:
            self.write()

    def write(self) -> None:
        """Writes the file; call it on a thread while the app runs."""
        self._write(self.now)

    def remember_model(self, asked_for: str, event: LoadFinished) -> None:
        """asked_for: path or name; "" if the app chose the model."""
        name = asked_for or event.path or event.model
        if name and name != self.now.models.last:
            self.change(dataclasses.replace(self.now, models=dataclasses.replace(self.now.models, last=name)))

    def remember_mode(self, mode: str) -> None:
        self.change(dataclasses.replace(self.now, chat=dataclasses.replace(self.now.chat, mode=mode)))

    def _save(self) -> None:
        self._timer = None
        work = partial(self._write, self.now)
        self._app.run_worker(work, thread=True, group="settings", exit_on_error=False)

    def _write(self, settings: Settings) -> None:
        try:
            save_settings(settings)
        except OSError as error:
            self._app.report(f"Settings could not be saved: {error.strerror}")
