"""Renders untrusted templates in a process of their own.

Why a process: a template is a program from the network. Jinja's sandbox keeps it from Python's internals, but not from
using all time and memory: a single operation ("a" * 10**9, a doubling string, a nested loop) cannot be interrupted from
inside the same process. A child can be killed, and the system limits its memory. It is started on first use, kept for
the next prompt (a render then costs about a millisecond) and replaced after every kill.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exl2_tui.core.errors import PromptError

START_SECONDS = 20.0
RENDER_SECONDS = 10.0
"""On the clock, for a machine that is busy; the child gives itself 2 seconds of processor time."""
REMEMBERED = 32


class Sandbox:
    """One child process, used by one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._refused: OrderedDict[str, str] = OrderedDict()

    def render(self, source: str, variables: Mapping[str, Any], max_output: int) -> str:
        """The rendered text; raises PromptError. A template that had to be killed is not tried again."""
        with self._lock:
            if source in self._refused:
                raise PromptError(self._refused[source])
            request = json.dumps({"source": source, "variables": dict(variables), "max_output": max_output})
            answer = self._ask(self._started(), request.encode() + b"\n", RENDER_SECONDS, 12 * max_output + 4096)
            if answer is None:
                reason = "it took too much time or memory"
                self._refused[source] = reason
                if len(self._refused) > REMEMBERED:
                    self._refused.popitem(last=False)
                raise PromptError(reason)
        if "error" in answer:
            raise PromptError(str(answer["error"])[:300])
        return str(answer["text"])

    def close(self) -> None:
        """Ends the child; the next render starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except OSError:
                        continue  # what was not yet written is of no interest any more
            process.wait()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        # Isolated and without site packages; the child is told where the two libraries it needs are.
        folders = {
            str(Path(spec.origin).parents[1])
            for spec in map(importlib.util.find_spec, ("jinja2", "markupsafe"))
            if spec is not None and spec.origin is not None
        }
        keep = ("SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(__file__).with_name("worker.py")), *sorted(folders)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in keep if name in os.environ},
                start_new_session=True,
            )
        except OSError as error:
            raise PromptError(f"the process that renders templates cannot be started: {error}") from error
        self._process = process
        if self._ask(process, b"", START_SECONDS, 4096) is None:
            raise PromptError("the process that renders templates does not start")
        return process

    def _ask(
        self, process: subprocess.Popen[bytes], request: bytes, seconds: float, max_answer: int
    ) -> dict[str, Any] | None:
        """One line in, one line out; None, with the child ended, if no good answer comes in time."""
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(seconds, process.kill)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(request)
            process.stdin.flush()
            answer = json.loads(process.stdout.readline(max_answer))
        except (OSError, ValueError):
            answer = None
        finally:
            timer.cancel()
        if not isinstance(answer, dict):
            self.close()
            return None
        return answer


SANDBOX = Sandbox()
atexit.register(SANDBOX.close)
