"""ModelsService on its threads, with a source that only pretends: answers, cancelling, and nothing that waits."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import HubError, NotFoundError
from exl2_tui.core.events import Event
from exl2_tui.core.model_events import (
    DownloadEnded,
    DownloadFinished,
    DownloadPlan,
    DownloadsListed,
    HubPlanned,
    HubRevision,
    HubRevisions,
    HubSearched,
    LibraryFailed,
    LibraryListed,
    ModelDetailed,
    ModelVerified,
    ScanProgress,
    VerifyEnded,
    VerifyProgress,
)
from exl2_tui.core.requests import LoadOptions
from exl2_tui.models_service import ModelsService
from tests.service.test_service import LIMIT, Listener

LISTED = LibraryListed((), None, "fp16", None, 0, 0)
PLAN = DownloadPlan("o/m", "main", "0" * 40, "/own/m", (), 0, 0)


class Source:
    """Whatever is slow waits for `go`, or for its cancel token."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.entered = threading.Semaphore(0)
        self.error: Exception | None = None  # of the next download

    def _wait(self, cancel: CancelToken | None = None) -> None:
        self.entered.release()
        while not self.go.wait(0.002):
            if cancel is not None:
                cancel.check()

    def scan(
        self, options: LoadOptions, reclaim: int, cancel: CancelToken, tell: Callable[[Event], None]
    ) -> LibraryListed:
        tell(ScanProgress(reclaim, "a"))
        self._wait(cancel)
        return LISTED

    def details(self, path: str, options: LoadOptions, reclaim: int) -> ModelDetailed:
        return ModelDetailed(path)

    def verify(self, path: str, name: str, cancel: CancelToken) -> Iterator[Event]:
        yield VerifyProgress(path, 0, 10, "x")
        self._wait(cancel)
        yield ModelVerified(path, name, (), (), 1, 1, 0.1)

    def search(self, words: str) -> Any:
        if words == "slow":
            self._wait()
        if words == "bad":
            raise HubError("no network", hint="Plug it in")
        if words == "bug":
            raise ZeroDivisionError("oops")
        return (), 7

    def revisions(self, repo: str) -> tuple[str, ...]:
        return ("main", "4.0bpw")

    def look_at_revision(self, repo: str, revision: str, options: LoadOptions, reclaim: int) -> HubRevision:
        return HubRevision(revision, 5, 4.0, "yes")

    def plan(self, repo: str, revision: str, options: LoadOptions, reclaim: int) -> DownloadPlan:
        return PLAN

    def download(self, plan: DownloadPlan, cancel: CancelToken) -> Iterator[Event]:
        self._wait(cancel)
        error, self.error = self.error, None
        if error is not None:
            raise error
        yield DownloadFinished("m", plan.repo, plan.revision, plan.folder, 0)

    def stored_plan(self, name: str) -> DownloadPlan | None:
        return PLAN if name == "m" else None

    def unfinished(self) -> DownloadsListed:
        return DownloadsListed(())

    def discard(self, name: str) -> None:
        raise NotFoundError("there is none", hint="Look")


class Bench:
    def __init__(self) -> None:
        self.source = Source()
        self.heard = Listener()
        self.service = ModelsService(self.heard, lambda: self.source)  # type: ignore[arg-type, return-value]

    def wait(self, kind: type[Event]) -> Any:
        return self.heard.wait(lambda event: isinstance(event, kind))

    def count(self, kind: type[Event]) -> int:
        return sum(isinstance(event, kind) for _, event in self.heard.events)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.source.go.set()
    bench.service.close(1.0)


def test_a_newer_scan_takes_the_place_of_the_one_before(bench: Bench) -> None:
    bench.service.scan(LoadOptions(), 1)
    assert bench.source.entered.acquire(timeout=LIMIT)
    bench.service.scan(LoadOptions(), 2)
    assert bench.source.entered.acquire(timeout=LIMIT)  # the first gave way without being let go
    bench.source.go.set()
    assert bench.wait(LibraryListed) == LISTED
    assert bench.wait(LibraryFailed) == LibraryFailed("", "")
    assert bench.count(LibraryListed) == 1


def test_of_models_the_cursor_passes_only_the_last_is_read(bench: Bench) -> None:
    bench.service.scan(LoadOptions())
    assert bench.source.entered.acquire(timeout=LIMIT)
    for path in ("/a", "/b", "/c"):
        bench.service.details(path, LoadOptions())
    bench.source.go.set()
    assert bench.wait(ModelDetailed) == ModelDetailed("/c")
    assert bench.count(ModelDetailed) == 1


def test_verifying_can_be_stopped(bench: Bench) -> None:
    bench.service.verify("/m", "m")
    bench.wait(VerifyProgress)
    bench.service.stop_verify()
    assert bench.wait(VerifyEnded) == VerifyEnded("/m")
    bench.source.go.set()
    bench.service.verify("/m", "m")
    assert bench.wait(ModelVerified).sound


def test_nothing_waits_for_the_hub(bench: Bench) -> None:
    bench.service.search("slow", 1)
    assert bench.source.entered.acquire(timeout=LIMIT)
    bench.service.search("other", 2)
    assert bench.wait(HubSearched) == HubSearched(2, "other", (), 7)
    bench.source.go.set()
    bench.service.plan("o/m", "main", 3, LoadOptions())
    assert bench.wait(HubPlanned).plan == PLAN
    assert bench.count(HubSearched) == 1  # the slow answer came too late to be told


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [("bad", "no network", "Plug it in"), ("bug", "ZeroDivisionError", "bug in exl2-tui")],
)
def test_what_goes_wrong_is_an_answer(bench: Bench, words: str, message: str, hint: str) -> None:
    bench.service.search(words, 1)
    found = bench.wait(HubSearched)
    assert message in found.error and hint in found.hint and found.token == 1
    bench.service.discard("x")
    assert bench.wait(LibraryFailed) == LibraryFailed("there is none", "Look")


def test_revisions_arrive_as_they_are_known(bench: Bench) -> None:
    bench.service.revisions("o/m", 5, LoadOptions())
    bench.heard.wait(lambda event: isinstance(event, HubRevisions) and event.done)
    told = [event for _, event in bench.heard.events if isinstance(event, HubRevisions)]
    assert [[row.size for row in event.revisions] for event in told] == [[0, 0], [5, 0], [5, 5]]
    assert [event.done for event in told] == [False, False, True]


def test_downloads_wait_for_each_other_and_stop_at_once(bench: Bench) -> None:
    bench.service.download("m", PLAN)
    bench.service.download("m", PLAN)  # twice is once
    bench.service.resume("n", "o/n", "main")
    assert bench.source.entered.acquire(timeout=LIMIT)
    bench.service.stop_download("n")
    assert bench.wait(DownloadEnded) == DownloadEnded("n", "", "")
    bench.service.stop_download("m")
    assert bench.count(DownloadEnded) == 2  # told before its thread has noticed
    bench.service.resume("m", "o/m", "main")
    bench.source.go.set()
    assert bench.wait(DownloadFinished).path == "/own/m"
    assert bench.count(DownloadEnded) == 2


def test_whoever_hears_of_the_end_of_a_download_may_go_on_with_it_at_once(bench: Bench) -> None:
    """It is no second asking for one that runs."""

    def hear(event: Event) -> None:
        bench.heard(event)
        if isinstance(event, DownloadEnded):
            bench.service.resume("m", "o/m", "main")

    bench.service._receiver = hear
    bench.source.error = HubError("no network")
    bench.source.go.set()
    bench.service.download("m", PLAN)
    assert bench.wait(DownloadFinished).path == "/own/m"
    assert bench.count(DownloadEnded) == 1


def test_a_download_whose_plan_is_lost_says_so(bench: Bench) -> None:
    bench.service.resume("gone", "o/gone", "main")
    ended = bench.wait(DownloadEnded)
    assert ended.repo == "o/gone" and "cannot be read" in ended.message


def test_closing_ends_a_download_and_silences_it(bench: Bench) -> None:
    bench.service.download("m", PLAN)
    assert bench.source.entered.acquire(timeout=LIMIT)
    bench.service.close(LIMIT)
    assert not any(thread.name == "exl2-download" for thread in threading.enumerate())
    assert bench.count(DownloadEnded) == bench.count(DownloadFinished) == 0


def test_nothing_heavy_is_imported_before_the_first_question() -> None:
    program = (
        "import sys; from exl2_tui.models_service import ModelsService\n"
        "ModelsService(print)\n"
        "assert not {'torch', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
