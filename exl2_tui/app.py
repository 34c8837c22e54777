"""Exl2App: wires service, session, settings and screens together. No feature lives here.

The first frame is drawn before anything heavy is imported: the service is made after it, and loads torch on a thread.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual import on
from textual.app import App
from textual.binding import BindingType
from textual.message import Message
from textual.timer import Timer

from exl2_tui.bridge import EventBridge
from exl2_tui.clipboard import OSC52_LIMIT, copy_with_helper
from exl2_tui.commands import KeyCommands
from exl2_tui.core.events import Event, LoadFinished, ModelsListed, ModesListed, PromptPreview
from exl2_tui.core.requests import SamplerSettings
from exl2_tui.keymap import bindings, problems
from exl2_tui.screens.chat import ChatScreen
from exl2_tui.session import ChatSession
from exl2_tui.settings import Settings, data_dir, load_settings, save_settings
from exl2_tui.signals import leave_on_signals
from exl2_tui.state import Changes, Clock, Draws, HearsService, ModelService
from exl2_tui.store.base import ChatStore
from exl2_tui.store.db import ChatDatabase
from exl2_tui.store.export import export
from exl2_tui.store.memory import MemoryStore
from exl2_tui.store.tree import Chat
from exl2_tui.text import one_line
from exl2_tui.themes import THEMES, theme_name
from exl2_tui.widgets.bars import StatusRow

FLUSH_SECONDS = 0.05
QUIT_SECONDS = 0.8
SAVE_SECONDS = 0.3
STYLES = Path(__file__).parent / "styles"

if TYPE_CHECKING:
    from exl2_tui.convert_place import ConvertFactory, ConvertPlace
    from exl2_tui.models_place import ModelsFactory, ModelsPlace
    from exl2_tui.settings_form import Group

StoreFactory = Callable[[Callable[[int], object], Callable[[str], object]], ChatStore]
ServiceFactory = Callable[[Callable[[Event], None]], ModelService]


class Exl2App(App[None]):
    """The full-screen program."""

    TITLE = "exl2-tui"
    ENABLE_COMMAND_PALETTE = True
    COMMANDS: ClassVar[set[Any]] = {KeyCommands}
    COMMAND_PALETTE_BINDING = "f22"  # ours is in the keymap
    CSS_PATH: ClassVar[list[str | Path]] = [
        STYLES / "base.tcss",
        STYLES / "dialogs.tcss",
        STYLES / "form.tcss",
        STYLES / "models.tcss",
        STYLES / "convert.tcss",
    ]  # type: ignore[assignment]
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("app")]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012 - the base class fixes the type
    VERTICAL_BREAKPOINTS = [(0, "-short"), (30, "-tall")]  # noqa: RUF012

    class Wake(Message):
        """Events wait in the bridge."""

    class Saved(Message):
        """A save that carried `token` is on disk."""

        def __init__(self, token: int) -> None:
            super().__init__()
            self.token = token

    class Problem(Message):
        """Something that needs no answer went wrong."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(
        self,
        service_factory: ServiceFactory,
        settings: Settings,
        *,
        model: str = "",
        mode: str = "",
        system: str | None = None,
        problem: str = "",
        theme: str = "exl2-dark",
        store_factory: StoreFactory | None = None,
        convert_factory: ConvertFactory | None = None,
        models_factory: ModelsFactory | None = None,
        clock: Clock = time.monotonic,
        wall_clock: Clock = time.time,
    ) -> None:
        super().__init__()
        for known in THEMES.values():
            self.register_theme(known)
        self.theme = theme
        self._service_factory = service_factory
        self._problems = [problem] if problem else []
        self._mounted = False
        self.clock = clock
        self._bridge = EventBridge(lambda: self.post_message(self.Wake()))
        self._flush_timer: Timer | None = None
        self._save_timer: Timer | None = None
        self._last_flush = 0.0
        self._model = model
        self.service: ModelService | None = None
        self.wall_clock = wall_clock
        self._store = (store_factory or _memory)(lambda token: self.post_message(self.Saved(token)), self.report)
        self.session = ChatSession(settings, self._store, clock=clock, wall_clock=wall_clock)
        self._convert_factory = convert_factory
        self._models_factory = models_factory
        if mode:
            self.session.chat.mode = mode
        if system is not None:
            self.session.chat.system = system

    @cached_property
    def convert(self) -> ConvertPlace:
        """Made when it is first needed: not for the first frame."""
        from exl2_tui.convert_place import ConvertPlace

        return ConvertPlace(self, self._convert_factory)

    @cached_property
    def models(self) -> ModelsPlace:
        """Made when it is first needed, as `convert`."""
        from exl2_tui.models_place import ModelsPlace

        return ModelsPlace(self, self._models_factory)

    @property
    def settings(self) -> Settings:
        return self.session.settings

    @property
    def key_overrides(self) -> dict[str, str]:
        return self.settings.keys

    def on_mount(self) -> None:
        self.set_keymap(self.settings.keys)
        self.push_screen(
            ChatScreen(
                self.session,
                copy=self.copy,
                mode_chosen=self._remember_mode,
                store=self._store,
                pick_chat=self._pick_chat,
                open_chat=self._chat_chosen,
                export=self._export,
                sampler=self.edit_sampler,
                clock=self.clock,
                wall_clock=self.wall_clock,
            )
        )
        self._mounted = True
        leave_on_signals(self._leave)
        for wrong in (*self._problems, *problems(self.settings.keys)):
            self.notify(one_line(wrong), severity="warning", timeout=12, markup=False)
        self.call_after_refresh(self._start_service)

    def _start_service(self) -> None:
        """After the first frame: only now the engine's modules are imported."""
        self.service = self._service_factory(self.push_event)
        self.session.attach(self.service)
        self.repaint(self.session.load(self._model, self.settings.load))
        self.run_worker(_import_the_rest, thread=True, group="imports", exit_on_error=False)

    # Events

    @on(Wake)
    def _woken(self) -> None:
        """Flushes at once when it is quiet, else when the pace of FLUSH_SECONDS allows."""
        wait = FLUSH_SECONDS - (time.monotonic() - self._last_flush)
        if wait <= 0:
            self._drain_bridge()
        elif self._flush_timer is None:
            self._flush_timer = self.set_timer(wait, self._drain_bridge)

    def _drain_bridge(self) -> None:
        self._flush_timer = None
        changes = Changes()
        for event in self._bridge.drain():
            if isinstance(event, PromptPreview | ModesListed | ModelsListed):
                for screen in self.screen_stack:
                    if isinstance(screen, HearsService):
                        screen.service_event(event)
                continue
            heard = self.convert.hears(event)
            if heard is None:
                heard = self.models.hears(event)
            if heard is not None:
                changes = changes | heard
                continue
            changes = changes | self.session.apply(event)
            if isinstance(event, LoadFinished):
                self._remember_model()
        self.repaint(changes)
        self._last_flush = time.monotonic()

    @on(Saved)
    def _turn_saved(self, event: Saved) -> None:
        self.repaint(self.session.saved(event.token))

    def repaint(self, changes: Changes) -> None:
        """Passes changes to the screens that show them."""
        if changes == Changes():
            return
        for screen in self.screen_stack:
            if isinstance(screen, Draws) and screen.is_mounted:
                screen.repaint(changes)
        if changes.jobs:
            self.convert.repaint()

    # Chats

    def close(self, timeout: float) -> None:
        """After the app has ended: what waits is written."""
        self.session.keep_unfinished()
        self._store.close(timeout)
        if self._save_timer is not None:
            self._write_settings(self.settings)
        self.convert.close(timeout)
        self.models.close(timeout)

    def _pick_chat(self) -> None:
        from exl2_tui.screens.chat_picker import ChatPicker

        def export(chat_id: str) -> None:
            self.run_worker(self._load_and_export(chat_id), group="chats", exit_on_error=False)

        def chosen(chat_id: str | None) -> None:
            self._chat_chosen(chat_id)
            self.repaint(Changes(chats=True))  # one may have been renamed or deleted

        self.push_screen(
            ChatPicker(
                self._store,
                self.session.chat.id,
                deleted=lambda chat_id: self.repaint(self.session.forget(chat_id)),
                renamed=lambda chat_id, title: self.repaint(self.session.renamed(chat_id, title)),
                export=export,
                wall_clock=self.wall_clock,
            ),
            chosen,
        )

    def _chat_chosen(self, chat_id: str | None) -> None:
        if chat_id is not None and chat_id != self.session.chat.id:
            self.run_worker(self._open_chat(chat_id), group="chats", exclusive=True, exit_on_error=False)

    async def _open_chat(self, chat_id: str) -> None:
        chat = await asyncio.wrap_future(self._store.load_chat(chat_id))
        if chat is not None:
            self.repaint(self.session.open(chat))

    async def _load_and_export(self, chat_id: str) -> None:
        chat = await asyncio.wrap_future(self._store.load_chat(chat_id))
        if chat is not None:
            self._export(chat)

    def _export(self, chat: Chat) -> None:
        directory = data_dir() / "exports"
        self.run_worker(partial(self._write_export, chat, directory), thread=True, group="export", exit_on_error=False)

    def _write_export(self, chat: Chat, directory: Path) -> None:
        try:
            markdown, _ = export(chat, directory)
        except OSError as error:
            self.call_from_thread(self._say, f"The chat could not be exported: {error.strerror}")
            return
        self.call_from_thread(self._say, f"Exported to {markdown} and .json")

    def push_event(self, event: Event) -> None:
        """An event from any thread."""
        self._bridge.push(event)

    def report(self, problem: str) -> None:
        """A problem from any thread that needs no answer, but must be seen; before the first frame it waits."""
        if self._mounted:
            self.post_message(self.Problem(problem))
        else:
            self._problems.append(problem)

    @on(Problem)
    def _problem_reported(self, event: Problem) -> None:
        self.notify(one_line(event.text), severity="warning", timeout=12, markup=False)

    # What is remembered

    def change_settings(self, settings: Settings) -> None:
        """Uses new settings at once and saves them on a thread a moment after the last change."""
        self.session.settings = settings
        if self._save_timer is not None:
            self._save_timer.stop()
        self._save_timer = self.set_timer(SAVE_SECONDS, self._save_settings)

    def _save_settings(self) -> None:
        self._save_timer = None
        work = partial(self._write_settings, self.settings)
        self.run_worker(work, thread=True, group="settings", exit_on_error=False)

    def _write_settings(self, settings: Settings) -> None:
        try:
            save_settings(settings)
        except OSError as error:
            self.report(f"Settings could not be saved: {error.strerror}")

    def _remember_model(self) -> None:
        info = self.session.model.info
        name = self._model or (info.path if info is not None else "") or self.session.model.name
        models = self.settings.models
        if name and name != models.last:
            self.change_settings(dataclasses.replace(self.settings, models=dataclasses.replace(models, last=name)))

    def _remember_mode(self, mode: str) -> None:
        chat = dataclasses.replace(self.settings.chat, mode=mode)
        self.change_settings(dataclasses.replace(self.settings, chat=chat))

    # Actions

    def copy(self, text: str, what: str) -> None:
        """OSC 52 at once, a helper program on a thread, one line of feedback."""
        size = len(text.encode("utf-8", "replace"))
        self.copy_to_clipboard(text)
        self.run_worker(
            partial(self._copy_with_helper, text, what, size), thread=True, group="clipboard", exit_on_error=False
        )

    def _copy_with_helper(self, text: str, what: str, size: int) -> None:
        helped = copy_with_helper(text)
        if not helped and size > OSC52_LIMIT:
            said = f"Copied {what} ({size:,} bytes; some terminals cut that much)"
        else:
            said = f"Copied {what}"
        self.call_from_thread(self._say, said)

    def _say(self, text: str) -> None:
        for screen in self.screen_stack:
            for status in screen.query(StatusRow):
                status.say(text)

    def action_help(self) -> None:
        from exl2_tui.screens.dialogs import HelpScreen

        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen(self.settings.keys))

    def action_place_chat(self) -> None:
        """Back to the chat from wherever one is."""
        while len(self.screen_stack) > 2:
            self.pop_screen()

    def action_models(self) -> None:
        self.models.open()

    def load_model(self, path: str, *, stay: bool = False) -> None:
        """Starts loading and goes to the chat, where its progress is shown; with `stay` it is shown right here."""
        self._model = path
        if not stay:
            self.action_place_chat()
        self.repaint(self.session.load(path, self.settings.load))

    def add_folder(self, path: str) -> None:
        models = self.settings.models
        if path not in models.directories:
            models = dataclasses.replace(models, directories=(*models.directories, path))
            self.session.settings = dataclasses.replace(self.settings, models=models)
            self.run_worker(self._save_and_scan, thread=True, group="settings", exit_on_error=False)

    def _save_and_scan(self) -> None:
        """The library reads the folders from the settings file, so that is written first."""
        self._write_settings(self.settings)
        self.call_from_thread(self.models.folder_saved)

    def action_convert(self) -> None:
        self.convert.open()

    def action_settings(self) -> None:
        from exl2_tui.settings_form import GROUPS

        self._open_form("Settings", GROUPS, {})

    def edit_sampler(self) -> None:
        from exl2_tui.settings_form import PRESETS, SAMPLER

        self._open_form("Sampler", (SAMPLER,), PRESETS)

    def _open_form(self, title: str, groups: tuple[Group, ...], presets: dict[str, SamplerSettings]) -> None:
        from exl2_tui.screens.form import FormScreen

        if not isinstance(self.screen, FormScreen):
            self.push_screen(FormScreen(title, groups, self.settings, self._form_changed, presets=presets))

    def _form_changed(self, settings: Settings) -> None:
        theme = settings.appearance.theme
        if theme != self.settings.appearance.theme and theme in THEMES:
            self.theme = THEMES[theme].name
        self.change_settings(settings)
        self.repaint(Changes(status=True))

    def action_next_theme(self) -> None:
        names = list(THEMES)
        current = next((name for name in names if THEMES[name].name == self.theme), names[0])
        name = names[(names.index(current) + 1) % len(names)]
        self.theme = THEMES[name].name
        self._say(f"Theme {name}")
        appearance = dataclasses.replace(self.settings.appearance, theme=name)
        self.change_settings(dataclasses.replace(self.settings, appearance=appearance))

    async def action_quit(self) -> None:
        """Leaves at once, unless a conversion runs; `run` gives the engine a moment to notice."""
        if not self.convert.ask_quit(self._leave):
            self._leave()

    def _leave(self) -> None:
        if self.service is not None:
            self.service.cancel()
        self.exit()


def _memory(saved: Callable[[int], object], problem: Callable[[str], object]) -> ChatStore:
    return MemoryStore(saved)


def _import_the_rest() -> None:
    """What the first frame did not need, so that the first answer and the first dialog need not wait for it."""
    for name in ("widgets.live_text", "screens.dialogs", "screens.mode_picker", "screens.chat_picker"):
        importlib.import_module(f"exl2_tui.{name}")


def run(
    model: str | None = None,
    mode: str | None = None,
    system: str | None = None,
    service_factory: ServiceFactory | None = None,
) -> None:
    """Opens the app and returns when the person quits. model: path or name; None takes the last one or the built-in."""
    settings, problem = load_settings()
    app = Exl2App(
        service_factory or _real_service,
        settings,
        model=model or "",
        mode=mode or "",
        system=system,
        problem=problem,
        theme=theme_name(settings.appearance.theme),
        store_factory=lambda saved, report: ChatDatabase(data_dir() / "chats.db", saved, report),
    )
    app.run()
    app.close(QUIT_SECONDS)
    service = app.service
    if service is not None:
        service.close(QUIT_SECONDS)
    if app.return_code:
        raise SystemExit(app.return_code)


def _real_service(post: Callable[[Event], None]) -> ModelService:
    from exl2_tui.service import Service

    return cast(ModelService, Service(post))
