"""Downloads against a server that cuts, lies and stalls: what lands is whole and checked, what is here is kept."""

from __future__ import annotations

import fcntl
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.checkpoint.checksums import read_sums
from exl2_tui.core.errors import CancelledError, CheckpointError, HubError, JobError, MemoryLimitError
from exl2_tui.core.events import Event
from exl2_tui.core.library import download as download_module
from exl2_tui.core.library.catalog import Library
from exl2_tui.core.library.download import TRIES, discard, download, stored_plan, unfinished
from exl2_tui.core.library.hub import Hub
from exl2_tui.core.library.machine import Machine
from exl2_tui.core.library.plan import plan_download
from exl2_tui.core.library.verify import verify
from exl2_tui.core.model_events import DownloadFinished, DownloadPlan, DownloadProgress, ModelVerified
from tests.library.fake_hub import FakeHub, FakeRepo
from tests.support.models import write_random_model

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    model = write_random_model(tmp_path_factory.mktemp("model"))
    return {"README.md": b"", **{file.name: file.read_bytes() for file in model.iterdir()}}


class Place:
    """A hub with one repository, and an own folder."""

    def __init__(self, server: FakeHub, own: Path, files: dict[str, bytes]) -> None:
        self.server = server
        self.own = own
        self.files = files
        self.repo = server.add(FakeRepo("o/m", {"main": files, "4.0bpw": files}))
        self.cancel = CancelToken()

    def plan(self, revision: str = "main") -> DownloadPlan:
        return plan_download(Hub(), "o/m", revision, self.own, Machine("native", 10**9), None, "fp16")

    def run(self, plan: DownloadPlan | None = None, watch: Callable[[Event], None] | None = None) -> list[Event]:
        events = []
        for event in download(Hub(), plan or self.plan(), self.own, self.cancel):
            events.append(event)
            if watch is not None:
                watch(event)
        return events

    @property
    def fetched(self) -> list[str | None]:
        """Ranges asked of the weights."""
        return [asked for name, asked in self.server.ranges if name == WEIGHTS]

    @property
    def partial(self) -> Path:
        return self.own / ".downloads" / "m"


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, bytes]) -> Iterator[Place]:
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download_module, "REPORT_SECONDS", 0.0)
    monkeypatch.setattr(download_module._Run, "_wait", lambda self, seconds: self._cancel.check())
    server = FakeHub()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    yield Place(server, tmp_path / "own", files)
    server.close()


def test_a_model_lands_whole_checked_and_at_once(place: Place) -> None:
    target = place.own / "m"
    seen: list[bool] = []
    events = place.run(watch=lambda event: seen.append(target.exists()))
    assert seen[:-1] == [False] * (len(seen) - 1) and seen[-1]
    assert {file.name: file.read_bytes() for file in target.iterdir() if file.name != "SHA256SUMS"} == place.files
    assert read_sums(target) == {name: hashlib.sha256(data).hexdigest() for name, data in place.files.items()}
    assert "o/m revision main" in (target / "SHA256SUMS").read_text().splitlines()[0]
    last = events[-1]
    assert isinstance(last, DownloadFinished) and last.path == str(target)
    steps = [event for event in events if isinstance(event, DownloadProgress)]
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert steps[-1].done == steps[-1].total == sum(map(len, place.files.values()))
    assert steps[-1].file == WEIGHTS and steps[-1].index == steps[-1].count == 3
    assert [path.name for path in (place.own / ".downloads").iterdir()] == ["m.lock"]
    (found,) = [model for model in Library([], own=place.own).list() if model.source == "own"]
    assert (found.name, found.problem) == ("m", "")
    *_, result = verify(target, "m", CancelToken())
    assert isinstance(result, ModelVerified)
    assert {file.name: file.verdict for file in result.files}[WEIGHTS] == "ok"
    assert "here already" in place.plan().problem


def test_the_access_token_stays_with_the_hub(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files come from another server, to which the Hub redirects."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    place.run()
    assert "Bearer hf_secret" in place.server.authorization
    assert place.server.shown_to_storage and set(place.server.shown_to_storage) == {None}


def test_connections_that_break_are_gone_on_with(place: Place) -> None:
    place.server.cut_after[WEIGHTS] = [5000, 1, 70_000]
    place.run()
    assert (place.own / "m" / WEIGHTS).read_bytes() == place.files[WEIGHTS]
    assert place.fetched == [None, "bytes=5000-", "bytes=5001-", "bytes=75001-"]


def test_a_hub_that_has_too_much_to_do_is_asked_again(place: Place) -> None:
    plan = place.plan()
    place.server.refusals = [(429, ""), (503, "")]
    place.run(plan)
    assert (place.own / "m" / WEIGHTS).read_bytes() == place.files[WEIGHTS] and place.server.refusals == []


def test_a_network_that_stays_away_is_an_error_and_the_next_try_goes_on(place: Place) -> None:
    place.server.cut_after[WEIGHTS] = [5000] + [0] * TRIES
    with pytest.raises(HubError) as caught:
        place.run()
    assert "goes on where it stopped" in (caught.value.hint or "")
    assert not (place.own / "m").exists()
    assert unfinished(place.own)[0].ready == sum(map(len, place.files.values())) - len(place.files[WEIGHTS]) + 5000
    place.server.ranges.clear()
    assert place.plan().ready == unfinished(place.own)[0].ready
    place.run(stored_plan(place.own, "m"))
    assert place.fetched == ["bytes=5000-"]
    assert [name for name, _ in place.server.ranges if name != WEIGHTS] == ["config.json"]  # only for the plan
    assert (place.own / "m" / WEIGHTS).read_bytes() == place.files[WEIGHTS]
    assert unfinished(place.own) == ()


def test_a_server_without_ranges_starts_the_file_over(place: Place) -> None:
    place.server.no_ranges = True
    place.server.cut_after[WEIGHTS] = [5000]
    place.run()
    assert (place.own / "m" / WEIGHTS).read_bytes() == place.files[WEIGHTS]


def test_what_is_not_the_announced_file_is_refused_and_deleted(place: Place) -> None:
    wrong = bytearray(place.files[WEIGHTS])
    wrong[-1] ^= 1
    place.server.wrong[WEIGHTS] = bytes(wrong)
    with pytest.raises(CheckpointError, match=r"hash of model\.safetensors"):
        place.run()
    assert not (place.own / "m").exists() and not list(place.partial.glob(WEIGHTS + "*"))
    config = bytearray(place.files["config.json"])
    config[-1] ^= 1
    plan = place.plan()
    place.server.wrong = {"config.json": bytes(config)}
    (place.partial / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"hash of config\.json"):
        place.run(plan)
    place.server.wrong.clear()
    place.run()
    assert (place.own / "m" / WEIGHTS).read_bytes() == place.files[WEIGHTS]


def test_a_longer_and_a_shorter_answer_are_refused(place: Place) -> None:
    place.server.wrong[WEIGHTS] = place.files[WEIGHTS] + b"more"
    with pytest.raises(CheckpointError, match="sends more"):
        place.run()
    place.server.wrong[WEIGHTS] = place.files[WEIGHTS][:1000]
    with pytest.raises(HubError):
        place.run()
    assert not (place.own / "m").exists()


def test_bytes_of_an_earlier_try_that_are_wrong_are_noticed(place: Place) -> None:
    place.server.cut_after[WEIGHTS] = [5000] + [0] * TRIES
    with pytest.raises(HubError):
        place.run()
    part = place.partial / (WEIGHTS + ".part")
    part.write_bytes(b"\0" + part.read_bytes()[1:])
    with pytest.raises(CheckpointError, match="hash"):
        place.run()
    place.run()
    assert (place.own / "m" / WEIGHTS).read_bytes() == place.files[WEIGHTS]


def test_cancelling_is_at_once_and_resuming_goes_on(place: Place) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, DownloadProgress) and event.file == WEIGHTS:
            place.cancel.cancel()

    with pytest.raises(CancelledError):
        place.run(watch=stop)
    have = (place.partial / (WEIGHTS + ".part")).stat().st_size
    assert 0 < have < len(place.files[WEIGHTS])
    place.cancel = CancelToken()
    place.server.ranges.clear()
    steps = place.run()
    assert place.fetched == [f"bytes={have}-"]
    assert any(isinstance(step, DownloadProgress) and step.step == "check" for step in steps)


def test_cancelling_ends_a_server_that_says_nothing(place: Place) -> None:
    place.server.stall.set()

    def when_it_stalls() -> None:
        place.server.stalled.wait(60)
        place.cancel.cancel()

    thread = threading.Thread(target=when_it_stalls)
    thread.start()
    with pytest.raises(CancelledError):
        place.run()
    thread.join()
    assert place.server.stall.is_set()  # the server never went on


def test_a_revision_that_moved_keeps_what_is_the_same(place: Place) -> None:
    place.server.cut_after[WEIGHTS] = [5000] + [0] * TRIES
    with pytest.raises(HubError):
        place.run()
    place.repo.revisions["main"] = {**place.files, "config.json": place.files["config.json"] + b"\n"}
    place.server.ranges.clear()
    place.run()
    assert place.fetched == ["bytes=5000-"]
    assert (place.own / "m" / "config.json").read_bytes() == place.files["config.json"] + b"\n"


def test_another_program_at_the_same_download(place: Place) -> None:
    (place.own / ".downloads").mkdir(parents=True)
    with (place.own / ".downloads" / "m.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(JobError, match="another program"):
            place.run()
    place.run()


def test_a_full_disk_is_told_and_nothing_is_lost(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = place.plan()

    def full(stream: object, piece: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(download_module, "_write", full)
        with pytest.raises(MemoryLimitError, match="disk is full"):
            place.run(plan)
    monkeypatch.setattr(download_module, "free_space", lambda folder: 1000)
    with pytest.raises(MemoryLimitError, match="too full"):
        place.run(plan)
    monkeypatch.undo()


def test_two_revisions_and_two_owners_lie_beside_each_other(place: Place) -> None:
    place.run()
    place.run(place.plan("4.0bpw"))
    place.server.add(FakeRepo("other/m", {"main": place.files}))
    plan = plan_download(Hub(), "other/m", "main", place.own, Machine("native", 10**9), None, "fp16")
    place.run(plan)
    names = {path.name for path in place.own.iterdir() if not path.name.startswith(".")}
    assert names == {"m", "m-4.0bpw", "other--m"}


def test_a_begun_download_can_be_given_up(place: Place) -> None:
    place.server.cut_after[WEIGHTS] = [5000] + [0] * TRIES
    with pytest.raises(HubError):
        place.run()
    assert discard(place.own, "m") == unfinished_size(place)
    assert unfinished(place.own) == () and not place.partial.exists()
    with pytest.raises(JobError):
        discard(place.own, "../../somewhere")


def unfinished_size(place: Place) -> int:
    return sum(map(len, place.files.values())) - len(place.files[WEIGHTS]) + 5000


@pytest.mark.parametrize(
    "change",
    [
        {"folder": "/somewhere/else"},
        {"repo": "../x"},
        {"commit": "main"},
        {"files": [{"name": "../x", "size": 1, "sha256": "", "git_sha1": ""}]},
        {"files": 5},
        {"unknown": 1},
    ],
)
def test_a_stored_plan_that_was_tampered_with_is_not_followed(place: Place, change: dict[str, object]) -> None:
    place.server.cut_after[WEIGHTS] = [5000] + [0] * TRIES
    with pytest.raises(HubError):
        place.run()
    file = place.own / ".downloads" / "m.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert stored_plan(place.own, "m") is None and unfinished(place.own) == ()


def test_a_plan_with_a_problem_is_not_begun(place: Place) -> None:
    with pytest.raises(HubError, match="too large"):
        place.run(replace(place.plan(), problem="too large"))
    assert not place.own.exists()
