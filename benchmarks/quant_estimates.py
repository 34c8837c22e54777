"""What a conversion said that it would take, against what it took: time, peak memory and disk.

    python benchmarks/quant_estimates.py WORK MODEL [--random 2048,5632,2,32,4,8192] [--convert "-b 4 -r 16 -l 512"]

The model is converted by `exl2-tui convert` in a process of its own; memory is the most that was ever resident, mapped
files included. --cpu counts all seconds, those of the estimate as well, as CPU seconds of one thread, which other work
on the machine disturbs little. --random: instead a model of this shape (hidden, ffn, layers, heads, kv heads,
vocabulary) with the tokenizer of MODEL.
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


@dataclass(frozen=True)
class Taken:
    """Seconds of the whole process; bytes resident at most, mapped files included, by stage; bytes on disk at most."""

    seconds: float
    memory: dict[str, int]
    disk: int


class Watch(threading.Thread):
    """The most that a process and its directory take, stage by stage."""

    def __init__(self, pid: int, folder: Path) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.folder = folder
        self.stage = "start"
        self.memory: dict[str, int] = {}
        self.disk = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.05):
            self.memory[self.stage] = max(self.memory.get(self.stage, 0), resident(self.pid))
            with suppress(FileNotFoundError):  # a file was replaced meanwhile: the next look is soon enough
                sizes = [file.stat().st_size for file in self.folder.rglob("*") if file.is_file()]
                self.disk = max(self.disk, sum(sizes))


def resident(pid: int) -> int:
    """Bytes, 0 once the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS")), 0)


COUNTING_CPU = "import time; time.perf_counter = time.process_time; from exl2_tui.__main__ import main; main()"


def convert(model: Path, work: Path, options: list[str], *, cpu: bool) -> tuple[dict[str, float], Taken]:
    """The estimate and what really was."""
    shutil.rmtree(work, ignore_errors=True)
    program = ["-c", COUNTING_CPU] if cpu else ["-m", "exl2_tui"]
    command = [sys.executable, *program, "convert", "-i", str(model), "-o", str(work), *options, "--json"]
    environment = {**os.environ, **({"OMP_NUM_THREADS": "1"} if cpu else {})}
    began = time.monotonic()
    estimate: dict[str, float] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        watch = Watch(process.pid, work)
        watch.start()
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "JobEstimate":
                estimate = event
            elif event["event"] == "StageStarted":
                watch.stage = event["stage"]
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = used.ru_utime + used.ru_stime if cpu else time.monotonic() - began
    watch.over.set()
    watch.join()
    if process.returncode:
        sys.exit(f"the conversion ended with status {process.returncode}")
    peak = max(watch.memory, key=lambda stage: watch.memory[stage])
    return estimate, Taken(seconds, {**watch.memory, peak: used.ru_maxrss << 10}, watch.disk)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--random", type=Shape.parse)
    parser.add_argument("--convert", default="-b 4", help="options of `exl2-tui convert`")
    options = parser.parse_args()
    model = options.model
    if options.random is not None:
        model = write_convertible(options.work / "random", options.random, 1024, model)
    told, real = convert(model, options.work / "job", shlex.split(options.convert), cpu=options.cpu)
    memory = max(real.memory.values())
    print("| model | options | seconds told / real | MiB of memory told / real | MiB of disk told / real |")
    print("|---|---|---|---|---|")
    print(
        f"| {model.name} | `{options.convert}` | {told['seconds']:.0f} / {real.seconds:.0f} "
        f"({told['seconds'] / real.seconds:.2f}) | {told['peak_memory'] >> 20} / {memory >> 20} "
        f"({told['peak_memory'] / memory:.2f}) | {told['disk'] >> 20} / {real.disk >> 20} |"
    )
    print("MiB by stage:", ", ".join(f"{stage} {size >> 20}" for stage, size in real.memory.items()))


if __name__ == "__main__":
    main()
