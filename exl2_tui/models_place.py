"""ModelsPlace: the Models part of the app, wired: library, Hub, downloads. Costs nothing until somebody goes there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from exl2_tui.core.events import Event, LoadFinished, ModelInfo, Unloaded
from exl2_tui.core.model_events import (
    DownloadEnded,
    DownloadFinished,
    DownloadPlan,
    HubPlanned,
    HubRevisions,
    HubSearched,
    LibraryFailed,
    LibraryListed,
    ModelRemoved,
    ModelVerified,
    RemovalPlan,
    VerifyEnded,
    VerifyProgress,
)
from exl2_tui.core.requests import CacheKind, LoadOptions
from exl2_tui.core.sizes import size_of
from exl2_tui.keymap import with_keys
from exl2_tui.models_state import Download, ModelsState
from exl2_tui.session import ChatSession
from exl2_tui.state import Changes, Clock
from exl2_tui.text import from_home, one_line

if TYPE_CHECKING:
    from textual.screen import Screen

    from exl2_tui.app import Exl2App

CONTEXTS: tuple[int | None, ...] = (None, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
HubAnswer = HubSearched | HubRevisions | HubPlanned
VerifyNews = VerifyProgress | ModelVerified | VerifyEnded


class LibraryService(Protocol):
    """The part of `models_service.ModelsService` the app uses. Every answer arrives as an event; no call blocks."""

    def scan(self, options: LoadOptions, reclaim: int = 0) -> None: ...
    def details(self, path: str, options: LoadOptions, reclaim: int = 0) -> None: ...
    def verify(self, path: str, name: str) -> None: ...
    def stop_verify(self) -> None: ...
    def plan_removal(self, path: str, name: str, loaded: str) -> None: ...
    def remove(self, plan: RemovalPlan, loaded: str) -> None: ...
    def search(self, words: str, token: int) -> None: ...
    def revisions(self, repo: str, token: int, options: LoadOptions, reclaim: int = 0) -> None: ...
    def plan(self, repo: str, revision: str, token: int, options: LoadOptions, reclaim: int = 0) -> None: ...
    def download(self, name: str, plan: DownloadPlan) -> None: ...
    def resume(self, name: str, repo: str, revision: str) -> None: ...
    def stop_download(self, name: str) -> None: ...
    def discard(self, name: str) -> None: ...
    def unfinished(self) -> None: ...
    def close(self, timeout: float) -> None: ...


ModelsFactory = Callable[[Callable[[Event], None]], LibraryService]


@runtime_checkable
class ShowsModels(Protocol):
    """A screen of this place."""

    def models_changed(self) -> None: ...


@runtime_checkable
class HearsHub(Protocol):
    """The screen that asked the Hub."""

    def hub_answered(self, event: HubAnswer) -> None: ...


@runtime_checkable
class HearsVerify(Protocol):
    """The dialog that shows a check."""

    def verify_news(self, event: VerifyNews) -> None: ...


class ModelsPlace:
    """What the screens of this place may do, and what the app asks of it."""

    def __init__(self, app: Exl2App, factory: ModelsFactory | None) -> None:
        self.app = app
        self.state = ModelsState()
        self._factory = factory or _real_service
        self._service: LibraryService | None = None
        self._token = 0
        self._looked_at = ""  # whose details were asked for last
        self._telling = False  # how many models there are is told once they were looked for
        self._added = ""  # a folder of which is told, once it was looked into, what is in it

    @property
    def session(self) -> ChatSession:
        return self.app.session

    @property
    def clock(self) -> Clock:
        return self.app.clock

    @property
    def wall_clock(self) -> Clock:
        return self.app.wall_clock

    @property
    def service(self) -> LibraryService:
        """Asking for the first time starts it."""
        if self._service is None:
            self._service = self._factory(self.app.push_event)
            self._service.unfinished()
        return self._service

    @property
    def options(self) -> LoadOptions:
        """What the next load will use; the screens show memory for it."""
        return self.app.settings.load

    @property
    def reclaim(self) -> int:
        """Bytes that the next model gets from the one loaded now."""
        info = self.session.model.info
        return info.weight_bytes + info.cache_bytes if self.session.ready and info is not None else 0

    @property
    def loaded_path(self) -> str:
        info = self.session.model.info
        return info.path if self.session.ready and info is not None else ""

    # Events

    def hears(self, event: Event) -> Changes | None:
        """Takes an event of the bridge; None if it is none of this place's."""
        if isinstance(event, LoadFinished | Unloaded):
            if self._service is not None and self.state.listed is not None:
                self.app.call_later(self.scan)  # when the session knows, too: what is free and what was used changed
            return None
        if isinstance(event, HubSearched | HubRevisions | HubPlanned):
            if event.token == self._token:
                self._each(HearsHub, lambda screen: screen.hub_answered(event))
        elif isinstance(event, VerifyProgress | ModelVerified | VerifyEnded):
            self._each(HearsVerify, lambda screen: screen.verify_news(event))
        elif isinstance(event, RemovalPlan):
            self._ask_removal(event)
        elif isinstance(event, LibraryFailed):
            self.state.scanning = False
            if event.message:
                self.app.report(" ".join(filter(None, (event.message, event.hint))))
        elif not self.state.apply(event):
            return None
        if isinstance(event, LibraryListed) and self._added:
            self._tell_added(event)
        elif isinstance(event, LibraryListed) and self._telling:
            self.say(f"Looked again: {_models(len(event.models))}")
        if isinstance(event, LibraryListed | LibraryFailed):
            self._telling = False
        if isinstance(event, ModelRemoved):
            freed = size_of(event.freed)
            self.say(
                f"Deleted {one_line(event.name, 40)}: {freed} freed" + (f". {event.problem}" if event.problem else "")
            )
            self.scan()
        if isinstance(event, DownloadFinished | DownloadEnded):
            self._announce(event)
        badge = self.state.badge
        changed = badge != self.session.downloading
        self.session.downloading = badge
        self._each(ShowsModels, lambda screen: screen.models_changed())
        return Changes(model=changed)

    # The library

    def scan(self, *, tell: bool = False) -> None:
        """tell: the person asked for it and wants to know what came of it."""
        self._telling = self._telling or tell
        self.state.scanning = True
        self.service.scan(self.options, self.reclaim)

    def look(self, model: ModelInfo) -> None:
        """Asks for details that are not known yet."""
        if not model.problem and model.path not in self.state.details and model.path != self._looked_at:
            self._looked_at = model.path
            self.service.details(model.path, self.options, self.reclaim)

    def choose_memory(self, context: int | None, cache: CacheKind) -> None:
        """Loads use this from now on, and every row shows what it takes."""
        load = dataclasses.replace(self.options, context=context, cache=cache)
        self.app.preferences.change(dataclasses.replace(self.app.settings, load=load))
        self.state.details.clear()
        self._looked_at = ""
        self.scan()

    def load(self, path: str, *, stay: bool = False) -> None:
        """Loads a model, unless it is the one that is loaded, and in the same way: that one keeps its cache."""
        if path != self.loaded_path or self.session.model.options != self.options:
            self.app.load_model(path, stay=stay)
            return
        if not stay:
            self.app.action_place_chat()
        self.say("It is loaded already")

    def unload(self) -> None:
        self.app.repaint(self.session.unload())

    def cancel_load(self) -> None:
        self.app.repaint(self.session.cancel_load())

    def add_folder(self, path: str, *, tell: bool = False) -> None:
        """Looks for models there, too, from now on. tell: the person wants to know what came of it."""
        settings = self.session.settings
        told = path if tell else ""
        if path in settings.models.directories:
            self._folder_saved(told)
            return
        models = dataclasses.replace(settings.models, directories=(*settings.models.directories, path))
        self.session.settings = dataclasses.replace(settings, models=models)
        work = partial(self._save_and_scan, told)
        self.app.run_worker(work, thread=True, group="settings", exit_on_error=False)

    def _save_and_scan(self, told: str) -> None:
        """The library reads the folders from the settings file, so that is written first."""
        self.app.preferences.write()
        self.app.call_from_thread(self._folder_saved, told)

    def _folder_saved(self, told: str) -> None:
        """The settings file names a new folder by now. told: of which the person is told what is in it."""
        self._added = told or self._added
        if self._service is not None:
            self.scan()

    def _tell_added(self, event: LibraryListed) -> None:
        folder, self._added = Path(self._added), ""
        count = sum(folder in (Path(model.path), *Path(model.path).parents) for model in event.models)
        self.say(f"{_models(count).capitalize()} in {from_home(folder)}")

    def verify(self, model: ModelInfo) -> None:
        from exl2_tui.screens.model_dialogs import VerifyDialog

        self.app.push_screen(VerifyDialog(model, self.service.stop_verify))
        self.service.verify(model.path, model.name)

    def ask_remove(self, model: ModelInfo) -> None:
        """Finds out what would be deleted; then the person is asked."""
        self.service.plan_removal(model.path, model.name, self.loaded_path)

    def convert(self, model: ModelInfo) -> None:
        self.app.convert.open()
        self.app.convert.wizard(model.path)

    def _ask_removal(self, plan: RemovalPlan) -> None:
        from exl2_tui.screens.model_dialogs import RemoveDialog

        if plan.refused:
            self.say(f"{one_line(plan.name, 40)}: {plan.refused}")
            return

        def answered(agreed: bool | None) -> None:
            if agreed:
                self.service.remove(plan, self.loaded_path)

        self.app.push_screen(RemoveDialog(plan), answered)

    # The Hub

    def search(self, words: str) -> None:
        self.service.search(words, self._next_token())

    def revisions(self, repo: str) -> None:
        self.service.revisions(repo, self._next_token(), self.options, self.reclaim)

    def plan(self, repo: str, revision: str) -> None:
        self.service.plan(repo, revision, self._next_token(), self.options, self.reclaim)

    def nevermind(self) -> None:
        """Answers to what was asked so far are not wanted any more."""
        self._next_token()

    def _next_token(self) -> int:
        self._token += 1
        return self._token

    # Downloads

    def download(self, plan: DownloadPlan) -> None:
        name = Path(plan.folder).name
        self.state.started(plan, name)
        self.service.download(name, plan)
        self.show("downloads")

    def resume(self, one: Download) -> None:
        one.status, one.message, one.hint = "waiting", "", ""
        self.service.resume(one.id, one.repo, one.revision)

    def stop(self, one: Download) -> None:
        if one.status == "running":
            one.status = "stopping"
        self.service.stop_download(one.id)

    def discard(self, one: Download) -> None:
        """Deletes what there is of an unfinished one."""
        self.service.discard(one.id)

    def unlist(self, one: Download) -> None:
        """A finished one is no longer listed; its model stays."""
        self.state.downloads.pop(one.id, None)
        self._each(ShowsModels, lambda screen: screen.models_changed())

    def ask_quit(self, leave: Callable[[], None]) -> bool:
        """While something is downloaded: asks, and calls `leave` if the person wants to. False: nothing is."""
        active = sorted((one for one in self.state.downloads.values() if one.active), key=lambda one: -one.share)
        if not active:
            return False
        from exl2_tui.screens.dialogs import ChoiceDialog

        def answered(choice: str | None) -> None:
            if choice == "leave":
                leave()

        more = f", and {len(active) - 1} more {'waits' if len(active) == 2 else 'wait'}" if len(active) > 1 else ""
        text = f"{one_line(active[0].id, 40)} is at {active[0].share:.0%}{more}. What is here is kept; " + with_keys(
            "{app.models}, {models.downloads} and {downloads.resume} go on with it.", self.app.key_overrides
        )
        choices = [("stay", "Stay here"), ("leave", "Stop it and quit")]
        if not isinstance(self.app.screen, ChoiceDialog):
            self.app.push_screen(ChoiceDialog("A download is running", text, choices), answered)
        return True

    def _announce(self, event: DownloadFinished | DownloadEnded) -> None:
        """Says that a download is over to whoever does not look at it."""
        from exl2_tui.screens.downloads import DownloadsScreen

        if isinstance(event, DownloadFinished) and self.state.listed is not None:
            self.scan()
        if isinstance(self.app.screen, DownloadsScreen) or (isinstance(event, DownloadEnded) and not event.message):
            return
        name = one_line(event.id, 40)
        if isinstance(event, DownloadFinished):
            self.app.bell()
            lists = with_keys("{app.models} lists it.", self.app.key_overrides)
            self.app.notify(f"{name} is here. {lists}", timeout=10, markup=False)
        else:
            text = f"The download of {name} stopped: {one_line(event.message, 200)}. It can go on."
            self.app.notify(text, severity="error", timeout=12, markup=False)

    # Screens

    def open(self) -> None:
        """Shows the library, on top of the chat."""
        self.show("models")

    def show(self, tab: str) -> None:
        """One of the lists of this place, in place of the others."""
        from exl2_tui.screens.downloads import DownloadsScreen
        from exl2_tui.screens.hub import HubScreen
        from exl2_tui.screens.models import ModelsScreen

        kinds: dict[str, Callable[[ModelsPlace], Screen[None]]] = {
            "models": ModelsScreen,
            "hub": HubScreen,
            "downloads": DownloadsScreen,
        }
        if self.app.screen.id == tab:
            return
        self.app.action_place_chat()
        self.app.push_screen(kinds[tab](self))

    def back_to_chat(self) -> None:
        self.app.action_place_chat()

    def say(self, text: str) -> None:
        self.app.repaint(Changes(flash=text))

    def close(self, timeout: float) -> None:
        """After the app has ended: a download stops where it is, and can go on."""
        if self._service is not None:
            self._service.close(timeout)

    def _each(self, kind: type, call: Callable[..., None]) -> None:
        for screen in self.app.drawn:
            if isinstance(screen, kind):
                call(screen)


def _models(count: int) -> str:
    return "no models" if not count else "1 model" if count == 1 else f"{count:,} models"


def _real_service(post: Callable[[Event], None]) -> LibraryService:
    from exl2_tui.models_service import ModelsService

    return ModelsService(post)
