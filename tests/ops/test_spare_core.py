"""A worker stands aside for whoever asked for a core: the work is done all the same, and it comes back."""

from __future__ import annotations

import os
import selectors
import shlex
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from exl2_tui.core import spare_core as module
from exl2_tui.core.spare_core import SpareCore
from exl2_tui.loop import SparingSelector

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core: there are no workers")
def test_loops_under_the_thread_sanitizer(tmp_path: Path) -> None:
    """Whatever is asked at any moment, every item is done once, nobody waits for ever, and no access is a race."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path / "stress"
    sources = ("tests/support/crew_stress.cpp", "csrc/cpu/crew.cpp", "csrc/cpu/spare_core.cpp")
    flags = ["-std=c++17", "-O1", "-g", "-pthread", f"-I{ROOT / 'csrc'}", *(str(ROOT / name) for name in sources)]
    build = [*shlex.split(compiler), *flags, "-o", str(program)]
    if subprocess.run([*build, "-fsanitize=thread"], capture_output=True, check=False).returncode:
        subprocess.run(build, check=True)  # a compiler without the sanitizer: the results count all the same
    # The sanitizer of older compilers knows no addresses that are as random as those of newer systems.
    fixed = ["setarch", "--addr-no-randomize"]
    if not shutil.which("setarch") or subprocess.run([*fixed, "true"], capture_output=True, check=False).returncode:
        fixed = []
    done = subprocess.run([*fixed, str(program)], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "right\n", "")


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 5_000_000_000
        self.slept = 0.0
        monkeypatch.setattr(module.time, "monotonic_ns", lambda: self.now)
        monkeypatch.setattr(module.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_core_is_asked_for_only_where_somebody_works(clock: Clock) -> None:
    core = SpareCore()
    core.take()
    assert core._until.value == 0 and not clock.slept
    core._working.value = 1
    core.take()
    assert core._until.value == clock.now + 100_000_000 and clock.slept == module.LEAVE_SECONDS
    core.give_back()
    assert core._until.value == 0


def test_the_loop_has_the_core_while_it_is_awake(clock: Clock) -> None:
    core = SpareCore()
    core._working.value = 1
    selector = SparingSelector(core)
    ours, theirs = socket.socketpair()
    with selector, ours, theirs:
        selector.register(ours, selectors.EVENT_READ)
        theirs.send(b"x")
        assert len(selector.select(1.0)) == 1
        assert core._until.value > 0
        core._until.value = 7
        selector.select(0)  # more is to be done: nothing changes
        assert core._until.value == 7
        ours.recv(1)
        core._working.value = 0
        assert selector.select(0.001) == []
        assert core._until.value == 0
