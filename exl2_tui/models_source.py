"""CoreModels: the library, the Hub and downloads as the core has them, told as events. For the threads of
models_service.py and for the command line; imports nothing heavy before it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.events import Event
from exl2_tui.core.model_events import (
    DownloadPlan,
    DownloadsListed,
    HubModel,
    HubRevision,
    LibraryListed,
    ModelDetailed,
    ModelRemoved,
    RemovalPlan,
    ScanProgress,
)
from exl2_tui.core.requests import LoadOptions
from exl2_tui.settings import Settings, data_dir, load_settings

if TYPE_CHECKING:
    from exl2_tui.core.library.catalog import Library
    from exl2_tui.core.library.hub import Hub


def models_folder() -> Path:
    """The app's own folder of models, where downloads go."""
    return data_dir() / "models"


def open_library(settings: Settings | None = None) -> Library:
    """The models this person has; settings None reads them."""
    from exl2_tui.core.library.catalog import Library

    models = (settings or load_settings()[0]).models
    directories = [Path(directory).expanduser() for directory in models.directories]
    return Library(directories, models.last, own=models_folder(), state=data_dir() / "library")


class CoreModels:
    """Everything the places Models and Hub ask. One thing at a time per thread; nothing is kept but the connection."""

    def __init__(self) -> None:
        self._hub: Hub | None = None

    def scan(
        self, options: LoadOptions, reclaim: int, cancel: CancelToken, tell: Callable[[Event], None]
    ) -> LibraryListed:
        """The library with memory at the context and cache of `options`. Raises CancelledError."""
        from exl2_tui.core.library.machine import this_machine
        from exl2_tui.core.library.plan import free_space

        machine = this_machine(options, reclaim)
        done = 0

        def read(name: str) -> None:
            nonlocal done
            done += 1
            tell(ScanProgress(done, name))

        found = open_library().list(cancel, context=options.context, cache=options.cache, machine=machine, on_read=read)
        return LibraryListed(
            models=found,
            context=options.context,
            cache=options.cache,
            available=machine.available,
            disk_bytes=sum(model.size_bytes for model in found),
            free_disk=free_space(models_folder()),
            caches=machine.caches,
        )

    def details(self, path: str, options: LoadOptions, reclaim: int) -> ModelDetailed:
        from exl2_tui.core.library.details import details
        from exl2_tui.core.library.machine import this_machine

        return details(Path(path), this_machine(options, reclaim), options.context)

    def verify(self, path: str, name: str, cancel: CancelToken) -> Iterator[Event]:
        from exl2_tui.core.library.verify import verify

        return verify(Path(path), name, cancel)

    def plan_removal(self, path: str, name: str, loaded: str) -> RemovalPlan:
        from exl2_tui.core.library.removal import plan_removal

        return plan_removal(open_library(), Path(path), name, Path(loaded) if loaded else None)

    def remove(self, plan: RemovalPlan, loaded: str) -> ModelRemoved:
        from exl2_tui.core.library.removal import remove

        return remove(open_library(), plan, Path(loaded) if loaded else None)

    def search(self, words: str) -> tuple[tuple[HubModel, ...], int]:
        return self.hub.search(words)

    def revisions(self, repo: str) -> tuple[str, ...]:
        return self.hub.revisions(repo)

    def look_at_revision(self, repo: str, revision: str, options: LoadOptions, reclaim: int) -> HubRevision:
        from exl2_tui.core.library.machine import this_machine
        from exl2_tui.core.library.plan import look_at_revision

        machine = this_machine(options, reclaim)
        return look_at_revision(self.hub, repo, revision, machine, options.context, options.cache)

    def plan(self, repo: str, revision: str, options: LoadOptions, reclaim: int) -> DownloadPlan:
        from exl2_tui.core.library.machine import this_machine
        from exl2_tui.core.library.plan import plan_download

        machine = this_machine(options, reclaim)
        return plan_download(self.hub, repo, revision, models_folder(), machine, options.context, options.cache)

    def download(self, plan: DownloadPlan, cancel: CancelToken) -> Iterator[Event]:
        from exl2_tui.core.library.download import download

        return download(self.hub, plan, models_folder(), cancel)

    def stored_plan(self, name: str) -> DownloadPlan | None:
        """The plan of a download that was begun."""
        from exl2_tui.core.library.download import stored_plan

        return stored_plan(models_folder(), name)

    def unfinished(self) -> DownloadsListed:
        from exl2_tui.core.library.download import unfinished

        return DownloadsListed(unfinished(models_folder()))

    def discard(self, name: str) -> None:
        """Deletes what an unfinished download left."""
        from exl2_tui.core.library.download import discard

        discard(models_folder(), name)

    @property
    def hub(self) -> Hub:
        """Raises ExtensionError where huggingface_hub is not installed."""
        from exl2_tui.core.library.hub import Hub

        self._hub = self._hub or Hub()
        return self._hub
