"""How long a conversion goes on after Ctrl-C, in every stage.

    python benchmarks/quant_cancel.py WORK MODEL [--random 2048,5632,2,32,4,8192] [--convert "-b 3 -r 16"] [--check]

For each stage a job is started (or resumed) by `exl2-tui convert`, let run into that stage and a random while further,
and interrupted; the time until the process has ended is taken. --random: instead a model of this shape (hidden, ffn,
layers, heads, kv heads, vocabulary) with the tokenizer of MODEL. `left behind`: how often the process ended in the
middle of a computation that did not notice (which the command line does after 0.5 s), instead of at its next check.
--check: in the end the job that was interrupted runs to its end, another one runs without a stop, and the files of both
must have the same hash.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from random_models import Shape, write_convertible

from exl2_tui.cli.conversion import PATIENCE

STAGES = ("start", "calibrate", "measure", "allocate", "quantize", "head", "tune", "compile", "evaluate")


class Run:
    """One process and the stage it has told to be in."""

    def __init__(self, command: list[str], job: Path, layers: int) -> None:
        self.layers = layers
        self.state = job / "job.json"
        self.stage = "start"
        self.seen = {"start"}
        self.changed = threading.Condition()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._enter(self._stage(json.loads(line)))
        self._enter("over")

    def _enter(self, stage: str | None) -> None:
        with self.changed:
            self.stage = stage or self.stage
            self.seen.add(self.stage)
            self.changed.notify_all()

    def _stage(self, event: dict[str, Any]) -> str | None:
        kind = event["event"]
        if kind == "StageStarted":
            done = json.loads(self.state.read_bytes())["step"] if event["stage"] == "quantize" else 0
            return self._quantizing(done) or str(event["stage"])
        if kind == "Checkpointed" and event["stage"] == "quantize":
            return self._quantizing(event["layer"] + 1)
        return None

    def _quantizing(self, done: int) -> str | None:
        """What comes after so many steps of quantizing: the head, tuning, or None for another layer."""
        return None if done < self.layers else "head" if done == self.layers else "tune"

    def reach(self, stage: str) -> bool:
        """Waits until the job is in this stage; False if it ended before."""
        with self.changed:
            self.changed.wait_for(lambda: self.seen & {stage, "over"})
            return stage in self.seen

    def interrupt(self) -> float:
        """Seconds from Ctrl-C to the end."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        self.process.wait()
        return time.monotonic() - began

    def finish(self) -> None:
        if self.process.wait():
            assert self.process.stderr is not None
            sys.exit(self.process.stderr.read())


def hashes(job: Path) -> dict[str, str]:
    """SHA-256 of the files of all finished models by name."""
    files = sorted(job.glob("*bpw/*.safetensors"))
    return {file.relative_to(job).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--random", type=Shape.parse)
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--within", type=float, default=4.0, help="seconds after a stage's beginning, at most")
    parser.add_argument("--convert", default="-b 3 -r 16 -l 512", help="options of `exl2-tui convert`")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    model, job = options.model, options.work / "job"
    if options.random is not None:
        model = write_convertible(options.work / "random", options.random, 1024, model)
    layers = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    shutil.rmtree(job, ignore_errors=True)

    def start(job: Path) -> Run:
        command = [sys.executable, "-m", "exl2_tui", "convert", "-i", str(model), "-o", str(job)]
        return Run([*command, *shlex.split(options.convert), "--json"], job, layers)

    randomness = random.Random(0)
    print("| stage | times | longest | left behind |\n|---|---|---|---|")
    for stage in options.stages.split(","):
        waits: list[float] = []
        for _ in range(options.times):
            run = start(job)
            if not run.reach(stage):  # it was over before Ctrl-C came: once more from the beginning
                shutil.rmtree(job)
                run = start(job)
                if not run.reach(stage):
                    break
            time.sleep(randomness.uniform(0.0, 0.0 if stage == "allocate" else options.within))
            if run.stage != stage:
                stage_now = f"{stage}, in fact {run.stage}"
                print(f"(missed {stage_now})", flush=True)
            waits.append(run.interrupt())
            if run.process.returncode not in (130, -signal.SIGINT):
                assert run.process.stderr is not None
                print(f"status {run.process.returncode} in {run.stage}: {run.process.stderr.read()[-500:]}")
        left = sum(wait >= PATIENCE for wait in waits)
        longest = f"{max(waits):.2f} s" if waits else "not reached"
        print(f"| {stage} | {len(waits)} | {longest} | {left} |", flush=True)
    if options.check:
        whole = options.work / "whole"
        shutil.rmtree(whole, ignore_errors=True)
        for folder in (job, whole):
            start(folder).finish()
        same = hashes(job) == hashes(whole) != {}
        print(f"after all that the finished files are {'the same' if same else 'DIFFERENT'}")


if __name__ == "__main__":
    main()
