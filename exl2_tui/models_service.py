"""ModelsService: the bridge between a user interface and the library, the Hub and downloads.

Calls return at once; answers arrive as events at `post`. Scans, verifying and downloading each have a thread, so that
none waits for another; questions to the Hub have one each, since the network may leave one hanging.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import CancelledError, Exl2Error
from exl2_tui.core.events import Event
from exl2_tui.core.model_events import (
    DownloadEnded,
    DownloadFinished,
    DownloadPlan,
    DownloadsListed,
    HubModel,
    HubPlanned,
    HubRevision,
    HubRevisions,
    HubSearched,
    LibraryFailed,
    LibraryListed,
    ModelDetailed,
    ModelRemoved,
    RemovalPlan,
    VerifyEnded,
)
from exl2_tui.core.requests import LoadOptions
from exl2_tui.work_queue import WorkQueue

BUG = "This is a bug in exl2-tui; please report it."


class ModelsSource(Protocol):
    """What the service needs of the core; tests give a fake."""

    def scan(
        self, options: LoadOptions, reclaim: int, cancel: CancelToken, tell: Callable[[Event], None]
    ) -> LibraryListed: ...
    def details(self, path: str, options: LoadOptions, reclaim: int) -> ModelDetailed: ...
    def verify(self, path: str, name: str, cancel: CancelToken) -> Iterator[Event]: ...
    def plan_removal(self, path: str, name: str, loaded: str) -> RemovalPlan: ...
    def remove(self, plan: RemovalPlan, loaded: str) -> ModelRemoved: ...
    def search(self, words: str) -> tuple[tuple[HubModel, ...], int]: ...
    def revisions(self, repo: str) -> tuple[str, ...]: ...
    def look_at_revision(self, repo: str, revision: str, options: LoadOptions, reclaim: int) -> HubRevision: ...
    def plan(self, repo: str, revision: str, options: LoadOptions, reclaim: int) -> DownloadPlan: ...
    def download(self, plan: DownloadPlan, cancel: CancelToken) -> Iterator[Event]: ...
    def stored_plan(self, name: str) -> DownloadPlan | None: ...
    def unfinished(self) -> DownloadsListed: ...
    def discard(self, name: str) -> None: ...


class ModelsService:
    """reclaim: bytes of the model loaded now, which the next one may take. Tokens rise; an answer carries its own."""

    def __init__(self, post: Callable[[Event], None], make_source: Callable[[], ModelsSource] | None = None) -> None:
        self._receiver = post
        self._make_source = make_source or _real_source
        self._made: ModelsSource | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._scan = CancelToken()
        self._verify = CancelToken()
        self._looked_at = ""
        self._newest_question = -1
        self._downloads: deque[str] = deque()
        self._download: tuple[str, CancelToken] | None = None
        self._side = WorkQueue("exl2-library")
        self._checks = WorkQueue("exl2-verify")
        self._fetches = WorkQueue("exl2-download")

    # The library

    def scan(self, options: LoadOptions, reclaim: int = 0) -> None:
        """Answers with ScanProgress..., LibraryListed. A scan that is under way is given up for this one."""
        self._scan.cancel()
        token = self._scan = CancelToken()

        def work() -> Iterable[Event]:
            token.check()
            return [self._source().scan(options, reclaim, token, self._post)]

        self._side.put(lambda: self._tell(work, _failed))

    def details(self, path: str, options: LoadOptions, reclaim: int = 0) -> None:
        """Answers with ModelDetailed, unless another model is asked for meanwhile: cursors move fast."""
        self._looked_at = path

        def work() -> Iterable[Event]:
            return [self._source().details(path, options, reclaim)] if path == self._looked_at else ()

        self._side.put(lambda: self._tell(work, _failed))

    def verify(self, path: str, name: str) -> None:
        """Answers with VerifyProgress..., ModelVerified, or VerifyEnded. One at a time: the one before is stopped."""
        self._verify.cancel()
        token = self._verify = CancelToken()

        def work() -> Iterator[Event]:
            token.check()
            yield from self._source().verify(path, name, token)

        self._checks.put(lambda: self._tell(work, lambda message, hint: VerifyEnded(path, message, hint)))

    def stop_verify(self) -> None:
        self._verify.cancel()

    def plan_removal(self, path: str, name: str, loaded: str) -> None:
        """Answers with RemovalPlan; loaded: directory of the model in use, or ""."""
        self._side.put(lambda: self._tell(lambda: [self._source().plan_removal(path, name, loaded)], _failed))

    def remove(self, plan: RemovalPlan, loaded: str) -> None:
        """Deletes what the plan says. Answer: ModelRemoved."""
        self._side.put(lambda: self._tell(lambda: [self._source().remove(plan, loaded)], _failed))

    # The Hub

    def search(self, words: str, token: int) -> None:
        """Answers with HubSearched, unless a newer question to the Hub is asked meanwhile."""

        def work() -> Iterable[Event]:
            models, skipped = self._source().search(words)
            return [HubSearched(token, words, models, skipped)]

        self._question(token, work, lambda message, hint: HubSearched(token, words, (), 0, message, hint))

    def revisions(self, repo: str, token: int, options: LoadOptions, reclaim: int = 0) -> None:
        """Answers with HubRevisions, again for each revision that was looked at."""

        def work() -> Iterator[Event]:
            source = self._source()
            names = source.revisions(repo)
            rows = [HubRevision(name, 0, 0.0, "unknown") for name in names]
            yield HubRevisions(token, repo, tuple(rows), done=not rows)
            for number, name in enumerate(names):
                rows[number] = source.look_at_revision(repo, name, options, reclaim)
                yield HubRevisions(token, repo, tuple(rows), done=number == len(names) - 1)

        self._question(token, work, lambda message, hint: HubRevisions(token, repo, (), True, message, hint))

    def plan(self, repo: str, revision: str, token: int, options: LoadOptions, reclaim: int = 0) -> None:
        """Answers with HubPlanned."""

        def work() -> Iterable[Event]:
            return [HubPlanned(token, repo, revision, self._source().plan(repo, revision, options, reclaim))]

        self._question(token, work, lambda message, hint: HubPlanned(token, repo, revision, None, message, hint))

    # Downloads

    def download(self, name: str, plan: DownloadPlan) -> None:
        """Queues a download. Answers: DownloadProgress..., DownloadFinished or DownloadEnded."""
        self._enqueue(name, lambda: plan)

    def resume(self, name: str, repo: str, revision: str) -> None:
        """Goes on with one that was begun, otherwise as `download`."""

        def stored() -> DownloadPlan:
            plan = self._source().stored_plan(name)
            if plan is None:
                raise Exl2Error(f"what was stored about the download {name} cannot be read", hint="Start it anew")
            return plan

        self._enqueue(name, stored, repo, revision)

    def stop_download(self, name: str) -> None:
        """Stops it; what is here stays. Answer: DownloadEnded, at once, also where the Hub lets its thread wait."""
        with self._lock:
            waiting = name in self._downloads
            running = self._download is not None and self._download[0] == name
            if waiting:
                self._downloads.remove(name)
            elif self._download is not None and running:
                self._download[1].cancel()
        if waiting or running:
            self._post(DownloadEnded(name, "", ""))

    def discard(self, name: str) -> None:
        """Deletes what an unfinished download left. Answer: DownloadsListed."""

        def work() -> Iterable[Event]:
            self._source().discard(name)
            return [self._source().unfinished()]

        self._side.put(lambda: self._tell(work, _failed))

    def unfinished(self) -> None:
        """Answers with DownloadsListed."""
        self._side.put(lambda: self._tell(lambda: [self._source().unfinished()], _failed))

    def close(self, timeout: float) -> None:
        """Stops everything and returns within `timeout` seconds; nothing is posted afterwards."""
        self._closed = True
        with self._lock:
            self._downloads.clear()
            if self._download is not None:
                self._download[1].cancel()
        self._scan.cancel()
        self._verify.cancel()
        for queue in (self._side, self._checks, self._fetches):
            queue.stop()
        self._fetches.join(timeout)

    def _enqueue(self, name: str, plan: Callable[[], DownloadPlan], repo: str = "", revision: str = "") -> None:
        with self._lock:
            running = self._download is not None and self._download[0] == name and not self._download[1].cancelled
            if name in self._downloads or running:
                return
            self._downloads.append(name)
        self._fetches.put(lambda: self._fetch(name, plan, repo, revision))

    def _fetch(self, name: str, plan: Callable[[], DownloadPlan], repo: str, revision: str) -> None:
        token = CancelToken()
        with self._lock:
            if name not in self._downloads:
                return  # stopped before it began
            self._downloads.remove(name)
            self._download = name, token
        events = _guarded(
            lambda: self._source().download(plan(), token),
            lambda message, hint: DownloadEnded(name, repo, revision, message, hint),
        )
        ended: list[Event] = []  # told once nothing runs: who then asks to go on is not taken for asking twice
        for event in events:
            if isinstance(event, DownloadEnded | DownloadFinished):
                ended.append(event)
            elif not token.cancelled:
                self._post(event)
        with self._lock:
            self._download = None
            stopped = token.cancelled  # then its end was told
        for event in () if stopped else ended:
            self._post(event)

    def _question(self, token: int, work: Callable[[], Iterable[Event]], failed: Callable[[str, str], Event]) -> None:
        """On a thread of its own, a daemon: nobody waits for the network."""
        self._newest_question = token

        def run() -> None:
            for event in _guarded(work, failed):
                if token != self._newest_question:
                    return
                self._post(event)

        threading.Thread(target=run, name="exl2-hub", daemon=True).start()

    def _tell(self, work: Callable[[], Iterable[Event]], failed: Callable[[str, str], Event]) -> None:
        for event in _guarded(work, failed):
            self._post(event)

    def _source(self) -> ModelsSource:
        with self._lock:
            self._made = self._made or self._make_source()
            return self._made

    def _post(self, event: Event) -> None:
        if not self._closed:
            self._receiver(event)


def _guarded(work: Callable[[], Iterable[Event]], failed: Callable[[str, str], Event]) -> Iterator[Event]:
    """The events of `work`; whatever goes wrong becomes what `failed` makes of it."""
    try:
        yield from work()
    except CancelledError:
        yield failed("", "")
    except Exl2Error as error:
        yield failed(str(Exl2Error(error.message, file=error.file, tensor=error.tensor)), error.hint or "")
    except OSError as error:
        yield failed(f"{error.filename or 'the disk'}: {error.strerror or error}", "")
    except MemoryError:
        yield failed("There is not enough memory", "Close other programs.")
    except Exception as error:  # noqa: BLE001  a bug in the core must neither end the thread nor stay unseen
        yield failed(f"Internal error: {type(error).__name__}: {error}", BUG)


def _failed(message: str, hint: str) -> Event:
    return LibraryFailed(message, hint)


def _real_source() -> ModelsSource:
    from exl2_tui.models_source import CoreModels

    return CoreModels()
