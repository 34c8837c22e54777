"""What a conversion said that it would take, against what it took: time, peak memory and disk.

    python benchmarks/quant_estimates.py WORK MODEL [MODEL ...] [--wide] [--convert "-b 4 -r 16 -l 512"]

Each model is converted by `exl2-tui convert` in a process of its own; memory is the most that was ever resident, mapped
files included. --wide adds a random model of 4 layers of hidden size 2048, with the tokenizer of the first MODEL.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from random_models import Shape, write_convertible

WIDE = Shape(2048, 5632, 4, 32, 4, vocab=8192)


@dataclass(frozen=True)
class Taken:
    """Seconds of the whole process, bytes resident at most, the stage in which that was, bytes on disk at most."""

    seconds: float
    memory: int
    stage: str
    disk: int


class DiskWatch(threading.Thread):
    """The most bytes that a directory ever held."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder = folder
        self.most = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.1):
            with suppress(FileNotFoundError):  # a file was replaced meanwhile: the next look is soon enough
                sizes = [file.stat().st_size for file in self.folder.rglob("*") if file.is_file()]
                self.most = max(self.most, sum(sizes))


def convert(model: Path, work: Path, options: list[str]) -> tuple[dict[str, float], Taken]:
    """The estimate and what really was."""
    shutil.rmtree(work, ignore_errors=True)
    command = [sys.executable, "-m", "exl2_tui", "convert", "-i", str(model), "-o", str(work), *options, "--json"]
    watch = DiskWatch(work)
    watch.start()
    began = time.monotonic()
    estimate: dict[str, float] = {}
    stage, peak, peak_stage = "start", 0, "start"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            resident = most_resident(process.pid)
            if resident > peak:
                peak, peak_stage = resident, stage
            if event["event"] == "JobEstimate":
                estimate = event
            elif event["event"] == "StageStarted":
                stage = event["stage"]
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - began
    watch.over.set()
    if process.returncode:
        sys.exit(f"the conversion ended with status {process.returncode}")
    memory = used.ru_maxrss << 10
    return estimate, Taken(seconds, memory, peak_stage if memory <= peak else stage, watch.most)


def most_resident(pid: int) -> int:
    """Bytes, 0 once the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--wide", action="store_true")
    parser.add_argument("--convert", default="-b 4", help="options of `exl2-tui convert`")
    options = parser.parse_args()
    models = list(options.models)
    if options.wide:
        models.append(write_convertible(options.work / "wide", WIDE, 1024, models[0]))
    print(
        "| model | options | time: told, real | memory: told, real (stage) | disk: told, real |\n|---|---|---|---|---|"
    )
    for model in models:
        told, real = convert(model, options.work / f"job-{model.name}", shlex.split(options.convert))
        print(
            f"| {model.name} | {options.convert} | {told['seconds']:.0f} s, {real.seconds:.0f} s "
            f"({told['seconds'] / real.seconds:.2f}) | {told['peak_memory'] >> 20}, {real.memory >> 20} MiB "
            f"({told['peak_memory'] / real.memory:.2f}, {real.stage}) | {told['disk'] >> 20}, {real.disk >> 20} MiB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
