"""Fixtures of the end-to-end tests: terminals that are closed whatever happens."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("pseudo-terminals", allow_module_level=True)

from tests.e2e.terminal import Terminal, Tmux, program, settings

Open = Callable[..., Terminal]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Settings, chats and conversions of this test only."""
    home = tmp_path / "home"
    settings(home)
    return home


@pytest.fixture
def terminals() -> Iterator[Callable[[list[str], Path, tuple[int, int]], Terminal]]:
    opened: list[Terminal] = []

    def start(command: list[str], home: Path, size: tuple[int, int]) -> Terminal:
        opened.append(Terminal(command, home, size=size))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


@pytest.fixture
def typing_app(terminals: Open, home: Path) -> Open:
    """Opens the app with a model that only pretends; arguments: see typing_app.py."""

    def start(*arguments: object, home: Path = home, size: tuple[int, int] = (80, 24)) -> Terminal:
        command = [sys.executable, "-m", "tests.e2e.typing_app", *map(str, arguments)]
        return terminals(command, home, size)

    return start


@pytest.fixture
def app(terminals: Open, home: Path) -> Open:
    """Opens `exl2-tui` as a person does, with the real engine."""

    def start(*arguments: object, size: tuple[int, int] = (80, 24)) -> Terminal:
        return terminals(program(*map(str, arguments)), home, size)

    return start


@pytest.fixture
def in_tmux(home: Path) -> Iterator[Callable[[], Tmux]]:
    """Opens `exl2-tui` in tmux, with the real engine."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    opened: list[Tmux] = []

    def start() -> Tmux:
        opened.append(Tmux(program(), home))
        return opened[-1]

    yield start
    for tmux in opened:
        tmux.close()
