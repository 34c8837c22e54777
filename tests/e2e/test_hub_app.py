"""The Hub from the screen: the real huggingface_hub against a server of one's own that answers as the Hub does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Open
from tests.e2e.terminal import Terminal
from tests.library.fake_hub import FakeHub, FakeRepo
from tests.support.models import write_random_model

REPO = "o/tiny-chat-exl2"
WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub with one model on two branches; the app is told where it is."""
    server = FakeHub()
    model = write_random_model(tmp_path / "source", tokenizer=True)
    files = {file.name: file.read_bytes() for file in model.iterdir()}
    server.add(FakeRepo(REPO, {"main": {"README.md": b"see branches"}, "4.0bpw": files}, ["exl2"], downloads=42))
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    yield server
    server.close()


def search(terminal: Terminal, words: str) -> None:
    terminal.wait("ctx")
    terminal.press("f3")
    terminal.wait("FITS")
    terminal.press("h")
    terminal.wait("Words of a name")
    terminal.type(words)
    terminal.press("enter")


@pytest.mark.slow
def test_search_look_download_pull_the_plug_go_on_and_chat(app: Open, hub: FakeHub, home: Path) -> None:
    terminal = app()
    search(terminal, "tiny chat")
    terminal.wait(REPO)
    terminal.press("enter")
    terminal.wait(lambda screen: "✗ main" in screen and "fits" in terminal.row("4.0bpw"))
    terminal.press("enter")  # the cursor is on the revision that can be used
    terminal.wait(lambda screen: "Download" in screen and WEIGHTS in screen and "config.json" in screen)
    assert not any(name == WEIGHTS for name, _ in hub.ranges)  # nothing before the person agrees
    hub.stalls = WEIGHTS
    hub.stall.set()
    terminal.press("enter")
    terminal.wait(lambda screen: f"file {WEIGHTS}" in screen and "6 of 6 files" in screen and hub.stalled.is_set())
    terminal.kill()
    hub.stall.clear()

    again = app()
    again.wait("ctx")
    again.press("f3")
    again.wait("FITS")
    again.press("d")
    again.wait("Stopped; what is here stays")
    hub.ranges.clear()
    again.press("r")
    again.wait("Every file has the hash the Hub announced")
    ((_, asked),) = [one for one in hub.ranges if one[0] == WEIGHTS]
    assert asked is not None and asked.startswith("bytes=") and asked != "bytes=0-"
    weights = home / "models" / "tiny-chat-exl2-4.0bpw" / WEIGHTS
    assert weights.read_bytes() == hub.repos[REPO].revisions["4.0bpw"][WEIGHTS]
    again.press("c")
    again.wait(lambda screen: "tiny-chat-exl2-4.0bpw" in screen.splitlines()[0] and "ctx" in screen)
    again.type("hello")
    again.press("enter")
    again.wait("tokens ·")
    again.press("ctrl+q")
    assert again.ended() == 0


def test_what_the_hub_refuses_is_said_with_a_remedy(typing_app: Open, hub: FakeHub) -> None:
    repo = hub.repos[REPO]
    terminal = typing_app(size=(120, 40))
    search(terminal, "tiny")
    for status, said in (
        ((403, "GatedRepo"), "Accept the terms at"),
        ((404, "RepoNotFound"), "There is no repository"),
        ((401, ""), "Log in with `hf auth login`"),
        ((429, ""), "too many requests"),
        ((503, ""), "Try again in some minutes"),
    ):
        terminal.wait("⏎ shows its revisions")
        repo.status = status
        terminal.press("enter")
        terminal.wait(said)
        terminal.press("escape")
    repo.status = None
    terminal.wait("⏎ shows its revisions")
    terminal.press("enter")
    terminal.wait("4.0bpw")


def test_without_a_network_and_in_offline_mode(typing_app: Open, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.close()
    terminal = typing_app()
    search(terminal, "tiny")
    terminal.wait("cannot be reached")
    terminal.wait("Check the network connection")
    terminal.kill()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    terminal = typing_app()
    search(terminal, "tiny")
    terminal.wait("ffline mode is on")
    terminal.wait("Unset HF_HUB_OFFLINE")
