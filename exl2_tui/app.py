"""Exl2App: wires service, session, settings and screens together. No feature lives here.

The first frame is drawn before anything heavy is imported: the service is made after it, and loads torch on a thread.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, cast

from textual import events, on
from textual.binding import BindingType
from textual.message import Message
from textual.screen import Screen
from textual.timer import Timer

from exl2_tui.bridge import EventBridge
from exl2_tui.chats_place import ChatsPlace
from exl2_tui.clipboard import OSC52_LIMIT, copy_with_helper
from exl2_tui.commands import ChoiceCommands, KeyCommands
from exl2_tui.core.events import (
    Event,
    LoadFinished,
    MachineFound,
    ModeChoice,
    ModelInfo,
    ModelsListed,
    ModesListed,
    PromptPreview,
    SamplerPreview,
)
from exl2_tui.hangup import end_with_terminal
from exl2_tui.keymap import bindings, problems
from exl2_tui.loop import new_event_loop
from exl2_tui.pace import Pace
from exl2_tui.screens.chat import ChatScreen
from exl2_tui.session import ChatSession
from exl2_tui.settings import Settings, data_dir, is_first_run, load_settings
from exl2_tui.settings_place import SettingsPlace
from exl2_tui.signals import leave_on_signals, watch_terminal
from exl2_tui.state import Changes, Clock, Draws, HearsService, ModelService
from exl2_tui.store.base import ChatStore
from exl2_tui.store.db import ChatDatabase
from exl2_tui.store.memory import MemoryStore
from exl2_tui.themes import theme_name
from exl2_tui.toasts import WarningApp
from exl2_tui.widgets.bars import StatusRow

QUIT_SECONDS = 0.8
# How long a thread that computes in Python may keep the interpreter from another one that asks. The engine asks after
# every native call; with Python's own 5 ms it stood still for most of every frame.
SWITCH_SECONDS = 0.0001
SMALLEST = (60, 16)  # cells; below, one line says so

if TYPE_CHECKING:
    from exl2_tui.convert_place import ConvertFactory, ConvertPlace
    from exl2_tui.models_place import ModelsFactory, ModelsPlace

StoreFactory = Callable[[Callable[[int], object], Callable[[str], object]], ChatStore]
ServiceFactory = Callable[[Callable[[Event], None]], ModelService]


class Exl2App(WarningApp):
    """The full-screen program."""

    TITLE = "exl2-tui"
    ENABLE_COMMAND_PALETTE = True
    COMMANDS: ClassVar[set[Any]] = {KeyCommands, ChoiceCommands}
    COMMAND_PALETTE_BINDING = "f22"  # ours is in the keymap
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("app")]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012 - the base class fixes the type
    VERTICAL_BREAKPOINTS = [(0, "-short"), (30, "-tall")]  # noqa: RUF012 - likewise

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
        first_run: bool = False,
        store_factory: StoreFactory | None = None,
        convert_factory: ConvertFactory | None = None,
        models_factory: ModelsFactory | None = None,
        clock: Clock = time.monotonic,
        wall_clock: Clock = time.time,
    ) -> None:
        super().__init__(theme)
        self._service_factory = service_factory
        self._problems = [problem] if problem else []
        self._mounted = False
        self._ending = threading.Lock()
        self.clock = clock
        self._bridge = EventBridge(lambda: self.post_message(self.Wake()))
        self._flush_timer: Timer | None = None
        self._pace = Pace()
        self._model = model
        self._first_run = first_run
        self.known_models: tuple[ModelInfo, ...] = ()  # as last heard; the palette finds them by name
        self.known_modes: tuple[ModeChoice, ...] = ()
        self.service: ModelService | None = None
        self.wall_clock = wall_clock
        self._store = (store_factory or _memory)(lambda token: self.post_message(self.Saved(token)), self.report)
        self.session = ChatSession(settings, self._store, clock=clock, wall_clock=wall_clock)
        self.chats = ChatsPlace(self, self._store)
        self.preferences = SettingsPlace(self)
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
                mode_chosen=self.preferences.remember_mode,
                store=self._store,
                pick_chat=self.chats.pick,
                open_chat=self.chats.open,
                export=self.chats.export,
                sampler=self.preferences.open_sampler,
                clock=self.clock,
                wall_clock=self.wall_clock,
            )
        )
        self._mounted = True
        leave_on_signals(self._leave, self._hung_up)
        if not self.is_headless:
            watch_terminal(self._hung_up)
        for wrong in (*self._problems, *problems(self.settings.keys)):
            self.warn(wrong)
        self.call_after_refresh(self._start_service)

    def _start_service(self) -> None:
        """After the first frame: only now the engine's modules are imported, and styles that other screens need."""
        self.read_later_styles()
        gc.enable()
        gc.freeze()  # what is there now stays; a collection need not walk over it in the middle of an answer
        self.service = self._service_factory(self.push_event)
        self.session.attach(self.service)
        self.repaint(self.session.load(self._model, self.settings.load))
        self.run_worker(_import_the_rest, thread=True, group="imports", exit_on_error=False)
        from exl2_tui.first_steps import look_back

        if self._first_run:
            self.welcome()
        else:
            look_back(self)

    def on_resize(self, event: events.Resize) -> None:
        """Where nothing can be drawn in a useful way, one line says so instead of garbage."""
        from exl2_tui.screens.too_small import TooSmall

        small = event.size.width < SMALLEST[0] or event.size.height < SMALLEST[1]
        if small and not isinstance(self.screen, TooSmall):
            self.push_screen(TooSmall(SMALLEST))
        elif not small and isinstance(self.screen, TooSmall):
            self.pop_screen()

    def welcome(self) -> None:
        """What this machine has and where to begin; on the first start, and from the palette."""
        from exl2_tui.first_steps import show

        show(self)

    # Events

    @on(Wake)
    def _woken(self) -> None:
        """Flushes at once when it is quiet, else when the pace allows."""
        wait = self._pace.wait(self.session.pace)
        if wait <= 0:
            self._drain_bridge()
        elif self._flush_timer is None:
            self._flush_timer = self.set_timer(wait, self._drain_bridge)

    def _drain_bridge(self) -> None:
        self._flush_timer = None
        changes = Changes()
        for event in self._bridge.drain():
            if isinstance(event, ModelsListed):
                self.known_models = event.models
            elif isinstance(event, ModesListed):
                self.known_modes = event.modes
            if isinstance(event, PromptPreview | ModesListed | ModelsListed | SamplerPreview | MachineFound):
                for screen in self.drawn:
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
                self.preferences.remember_model(self._model, event)
        self.repaint(changes)
        self._pace.drawn()

    @on(Saved)
    def _turn_saved(self, event: Saved) -> None:
        self.repaint(self.session.saved(event.token))

    @property
    def drawn(self) -> list[Screen[Any]]:
        """The screens that can be drawn on: none once the app is leaving, because Textual takes their parts away."""
        stack = self.screen_stack if self.is_running else []
        return [screen for screen in stack if screen.is_mounted and screen.is_attached]

    def repaint(self, changes: Changes) -> None:
        """Passes changes to the screens that show them."""
        if changes == Changes():
            return
        for screen in self.drawn:
            if isinstance(screen, Draws):
                screen.repaint(changes)
        if changes.jobs:
            self.convert.repaint()

    def close(self, timeout: float) -> None:
        """At the end: what waits is written, what runs is stopped, all of it within `timeout` seconds."""
        end = time.monotonic() + timeout
        self.session.keep_unfinished()
        self._store.close(timeout)
        self.preferences.finish()
        for part in (self.convert, self.models, self.service):
            if part is not None:
                part.close(max(0.0, end - time.monotonic()))

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
        self.warn(event.text)

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
        self.call_from_thread(self.say, said)

    def say(self, text: str) -> None:
        """One line of feedback, on every screen that has a place for it."""
        for screen in self.screen_stack:
            for status in screen.query(StatusRow):
                status.say(text)

    def action_help(self) -> None:
        """Help for what has the focus: the nearest text about it, and the keys of its place first."""
        from exl2_tui.screens.dialogs import HelpScreen, help_about, place_of

        screen = self.screen
        if isinstance(screen, HelpScreen):
            screen.dismiss()
        else:
            self.push_screen(HelpScreen(place_of(screen), help_about(screen), self.settings.keys))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """A dialog that waits for a key gets every key."""
        if getattr(self.screen_stack[-1] if self.screen_stack else None, "takes_every_key", False):
            return False
        return super().check_action(action, parameters)

    def action_place_chat(self) -> None:
        """Back to the chat from wherever one is."""
        while len(self.screen_stack) > 2:
            self.pop_screen()

    def open_chat(self, chat_id: str) -> None:
        """Goes to the chat and shows another one there."""
        self.action_place_chat()
        self.chats.open(chat_id)

    def use_mode(self, mode: str) -> None:
        """Goes to the chat and uses another prompt mode there."""
        self.action_place_chat()
        for screen in self.drawn:
            if isinstance(screen, ChatScreen):
                screen.use_mode(mode)

    def action_models(self) -> None:
        self.models.open()

    def load_model(self, path: str, *, stay: bool = False) -> None:
        """Starts loading and goes to the chat, where its progress is shown; with `stay` it is shown right here."""
        self._model = path
        if not stay:
            self.action_place_chat()
        self.repaint(self.session.load(path, self.settings.load))

    def action_convert(self) -> None:
        self.convert.open()

    def action_settings(self) -> None:
        self.preferences.open()

    def action_next_theme(self) -> None:
        self.preferences.next_theme()

    async def action_quit(self) -> None:
        """Leaves at once, unless a conversion or a download runs; `run` gives the engine a moment to notice."""
        if not self.convert.ask_quit(self._leave) and not self.models.ask_quit(self._leave):
            self._leave()

    def _leave(self) -> None:
        if self.service is not None:
            self.service.cancel()
        self.exit()

    def _hung_up(self) -> None:
        """The terminal is gone: nothing to restore, and Textual's driver can wait for ever to write to it.

        On any thread; the second of a signal and the watch finds the first at work.
        """
        if not self._ending.acquire(blocking=False):
            return
        if self.service is not None:
            self.service.cancel()
        self.close(QUIT_SECONDS)
        os._exit(0)


def _memory(saved: Callable[[int], object], problem: Callable[[str], object]) -> ChatStore:
    return MemoryStore(saved)


def _import_the_rest() -> None:
    """What the first frame did not need, so that the first answer and the first dialog need not wait for it."""
    for name in ("widgets.turn_view", "widgets.live_text", "screens.dialogs", "screens.mode_picker", "screens.sampler"):
        importlib.import_module(f"exl2_tui.{name}")


def run(
    model: str | None = None,
    mode: str | None = None,
    system: str | None = None,
    service_factory: ServiceFactory | None = None,
) -> NoReturn:
    """Opens the app; the process ends when the person quits. model: path or name; None: the last one or built-in."""
    gc.disable()  # nothing to collect before the first frame; see _start_service
    sys.setswitchinterval(SWITCH_SECONDS)
    settings, problem = load_settings()
    app = Exl2App(
        service_factory or _real_service,
        settings,
        model=model or "",
        mode=mode or "",
        system=system,
        problem=problem,
        theme=theme_name(settings.appearance.theme),
        first_run=model is None and is_first_run(),
        store_factory=lambda saved, report: ChatDatabase(data_dir() / "chats.db", saved, report),
    )
    end_with_terminal(sys.stdin.fileno(), lambda: _end(app, 1))
    app.run(loop=new_event_loop())
    _end(app, app.return_code or 0)


def _end(app: Exl2App, status: int) -> NoReturn:
    """Closes everything and ends the process: taking torch and a long chat apart takes half a second."""
    app.close(QUIT_SECONDS)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # whoever read it has gone
            stream.flush()
    os._exit(status)


def _real_service(post: Callable[[Event], None]) -> ModelService:
    from exl2_tui.service import Service

    return cast(ModelService, Service(post))
