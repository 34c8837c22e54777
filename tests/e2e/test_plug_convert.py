"""Pulling the plug while converting: the same conversion goes on, wherever and by whomever it is resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Open
from tests.e2e.terminal import LIMIT, Terminal, program, surroundings
from tests.quant.tiny import make_tiny


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A model of seconds, but with enough layers to be stopped between two of them."""
    return make_tiny(tmp_path / "tiny", layers=6)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"Line {number} of a text about nothing much." for number in range(400)))
    return path


@pytest.fixture
def command(tiny: Path, text: Path, tmp_path: Path) -> list[str]:
    """The conversion as one would start it in a shell."""
    work, output = tmp_path / "work", tmp_path / "out"
    return program("convert", "-i", tiny, "-o", work, "-cf", output, "-c", text, "-r", "6", "-l", "64")


def in_shell(command: list[str], home: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, env=surroundings(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def stopping(stage: str, count: int, command: list[str]) -> list[str]:
    """The command of `program`, of a process that stops itself at the count-th step of a stage."""
    arguments = command[len(program()) :]
    return [sys.executable, "-m", "tests.e2e.stopping", stage, str(count), *arguments]


def stopped_in_shell(stage: str, count: int, command: list[str], home: Path) -> subprocess.Popen[bytes]:
    """A conversion in a shell, once it has stopped itself."""
    process = in_shell(stopping(stage, count, command), home)
    assert has_stopped(process, 0)
    return process


def has_stopped(process: subprocess.Popen[bytes], options: int = os.WNOHANG) -> bool:
    """Whether a process has stopped itself; it must not have ended. options: 0 to wait for either."""
    what = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT | options)
    assert what is None or what.si_code in (os.CLD_STOPPED, os.CLD_TRAPPED), "the process ended first"
    return what is not None


def at_list(terminal: Terminal) -> None:
    terminal.wait("ctx")
    terminal.press("f4")
    terminal.wait("tiny")


def digest(model: Path) -> bytes:
    return (model / "output.safetensors").read_bytes()


@pytest.mark.slow
def test_a_killed_conversion_is_recognised_and_goes_on_in_the_app(
    app: Open, command: list[str], home: Path, tmp_path: Path
) -> None:
    work, output = tmp_path / "work", tmp_path / "out"
    process = stopped_in_shell("quantize", 2, command, home)
    process.kill()
    process.wait()

    terminal = app()
    at_list(terminal)
    terminal.wait("interrupted")
    terminal.wait("Its process ended")
    terminal.press("r")
    terminal.wait_gone("interrupted")
    terminal.press("enter")
    terminal.wait("finished ·")  # the result is shown a moment before
    terminal.press("ctrl+q")
    assert terminal.ended() == 0

    whole = tmp_path / "whole"
    again = [str(whole) if part == str(output) else part for part in command]
    again = [str(tmp_path / "other") if part == str(work) else part for part in again]
    assert in_shell(again, home).wait(LIMIT) == 0
    assert digest(output) == digest(whole)


@pytest.mark.slow
def test_a_conversion_in_a_shell_is_live_in_the_app_and_can_be_paused_there(
    app: Open, command: list[str], home: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    process = stopped_in_shell("measure", 1, command, home)
    terminal = app()
    at_list(terminal)
    terminal.wait("elsewhere")
    terminal.press("enter")
    terminal.wait("● measure")
    terminal.press("p")
    terminal.wait(lambda _: (work / "pause").exists())
    process.send_signal(signal.SIGCONT)
    assert process.wait(LIMIT) == 130  # as after Ctrl-C
    terminal.wait("paused")
    terminal.press("r")
    terminal.wait("KL divergence")
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.slow
def test_the_end_of_an_app_that_converts(
    app: Open, terminals: Open, command: list[str], home: Path, tmp_path: Path
) -> None:
    first = stopped_in_shell("measure", 1, command, home)
    first.send_signal(signal.SIGINT)
    first.send_signal(signal.SIGCONT)
    assert first.wait(LIMIT) == 130

    terminal = terminals(stopping("measure", 2, program()), home, (80, 24))
    at_list(terminal)
    terminal.wait("paused")
    terminal.press("r")
    terminal.wait(lambda _: has_stopped(terminal.process))
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.kill(signal.SIGCONT) == 0

    again = app()
    at_list(again)
    again.wait("paused")
    again.press("ctrl+q")
    assert again.ended() == 0
    finished = subprocess.run(
        program("jobs", "resume", tmp_path / "work"),
        env=surroundings(home),
        capture_output=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr


@pytest.mark.slow
def test_a_model_that_goes_away_while_it_is_converted(
    app: Open, command: list[str], tiny: Path, home: Path, tmp_path: Path
) -> None:
    process = stopped_in_shell("measure", 1, command, home)
    tiny.rename(tmp_path / "elsewhere")
    process.send_signal(signal.SIGCONT)
    assert process.wait(LIMIT) == 1
    terminal = app(size=(120, 40))
    terminal.wait("ctx")
    terminal.press("f4")
    terminal.wait("failed")
    terminal.wait("No such file")
    (tmp_path / "elsewhere").rename(tiny)
    terminal.press("r")
    terminal.wait("finished")


@pytest.mark.slow
def test_a_disk_that_is_full_for_the_work_files(command: list[str], home: Path, tmp_path: Path) -> None:
    """The limit of one file stands for the disk: the states of the calibration rows no longer fit."""
    work = tmp_path / "work"
    limited = ["sh", "-c", 'ulimit -f 40; exec "$@"', "sh", *command]
    result = subprocess.run(limited, env=surroundings(home), capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert any(text in result.stderr for text in ("cannot be written", "cannot write", "disk is full")), result.stderr
    assert in_shell(command, home).wait(LIMIT) == 0
    assert json.loads((work / "job.json").read_bytes())["stage"] == "done"
    shutil.rmtree(work)
