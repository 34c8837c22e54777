"""For all tests: their surroundings, and where the shared models lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
# What a person or a CI may have set, and programs under test would heed. Tests set what they are about themselves.
FOREIGN = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "COLUMNS", "LINES", "TMUX", "EXL2_TUI_HOME")
FOREIGN_FAMILIES = ("HF_", "HUGGING_FACE_", "TEXTUAL")


def pytest_configure() -> None:
    """All tests see the same surroundings, whoever runs them."""
    for name in [*os.environ]:
        if name in FOREIGN or name.startswith(FOREIGN_FAMILIES):
            del os.environ[name]
    os.environ["TERM"] = "xterm-256color"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The project's shared folder (trained models, held-out text). It lies beside the checkout, not in it."""
    if not SHARED.is_dir():
        pytest.skip("the shared folder with trained models is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def nano_chat(shared: Path) -> Path:
    """A trained 12M-parameter fp16 Llama model."""
    return shared / "models" / "nano-chat"


@pytest.fixture(scope="session")
def small_chat(shared: Path) -> Path:
    """A trained 32M-parameter fp16 Llama model."""
    return shared / "models" / "small-chat"


@pytest.fixture(scope="session")
def nano_chat_exl2(shared: Path) -> Path:
    """nano-chat as a real EXL2 file at 4.0 bpw, written by the reference program."""
    return shared / "models" / "nano-chat-exl2-4.0"
