"""Which helper program gets a copy, beside the terminal itself (that: test_terminal.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from exl2_tui.clipboard import copy_with_helper, helper_command


def install(folder: Path, name: str) -> Path:
    """A program of this name that keeps its arguments and what it is given."""
    folder.mkdir(exist_ok=True)
    got = folder / f"{name}.got"
    program = folder / name
    program.write_text(f'#!/bin/sh\n{{ echo "$@"; cat; }} > "{got}"\n')
    program.chmod(0o755)
    return got


@pytest.mark.parametrize(
    ("variable", "program", "arguments"),
    [
        ("WAYLAND_DISPLAY", "wl-copy", ""),
        ("DISPLAY", "xclip", "-selection clipboard"),
        ("DISPLAY", "xsel", "--clipboard --input"),
        ("TMUX", "tmux", "load-buffer -w -"),
    ],
)
def test_a_helper_that_fits_the_session_gets_the_text(
    variable: str, program: str, arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = install(tmp_path / "bin", program)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv(variable, "here")
    assert copy_with_helper("two\nlines é")
    assert got.read_text("utf-8") == f"{arguments}\ntwo\nlines é"


def test_a_display_is_nearer_than_a_multiplexer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for program in ("tmux", "xclip"):
        install(tmp_path / "bin", program)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("TMUX", "here")
    assert (helper_command() or ("",))[0] == "tmux"
    monkeypatch.setenv("DISPLAY", ":0")
    assert (helper_command() or ("",))[0] == "xclip"


def test_without_a_helper_nothing_is_run() -> None:
    assert helper_command() is None and not copy_with_helper("x")
