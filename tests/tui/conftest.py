"""Fixtures for the app: a fake service, a home of its own, clocks that stand still, nothing that blinks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, TextArea

from exl2_tui.app import Exl2App
from exl2_tui.settings import Settings
from tests.tui.convert_fakes import FakeConvert
from tests.tui.fakes import FakeClock, FakeService
from tests.tui.model_fakes import FakeModels


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings and chats of this test only; no helper program touches a clipboard; cursors do not blink."""
    monkeypatch.setenv("EXL2_TUI_HOME", str(tmp_path))
    monkeypatch.setenv("TEXTUAL_ANIMATIONS", "none")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("TMUX", raising=False)
    monkeypatch.setattr(TextArea.cursor_blink, "_default", False)
    monkeypatch.setattr(Input.cursor_blink, "_default", False)
    monkeypatch.setattr(Pilot._wait_for_screen, "__defaults__", (300.0,))  # of 30 seconds, which is little when busy
    return tmp_path


MakeApp = Callable[..., Exl2App]


@pytest.fixture
def make_app() -> MakeApp:
    """Builds an app whose service is a FakeService and whose clock stands still."""

    def make(settings: Settings | None = None, **options: object) -> Exl2App:
        options.setdefault("clock", FakeClock())
        options.setdefault("wall_clock", FakeClock(1_700_000_000.0))
        options.setdefault("models_factory", FakeModels)
        return Exl2App(FakeService, settings or Settings(), model="nano-chat", **options)  # type: ignore[arg-type]

    return make


@pytest.fixture
def convert_app(make_app: MakeApp) -> MakeApp:
    """Builds an app whose conversions only pretend, too."""
    return partial(make_app, convert_factory=FakeConvert)
