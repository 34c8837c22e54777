"""What a job has done so far, as it lies on the disk: the state file and everything it names.

The order of writing makes it crash-proof: new artifacts first, then the state file that names them, then the old ones
are deleted. Before a resumed job trusts an artifact, `mend` compares it with its hash.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exl2_tui.core.errors import JobError, QuantizationError
from exl2_tui.core.quant.calibration import Calibration
from exl2_tui.core.quant.measurement import Measurement
from exl2_tui.core.quant.recipes import QuantizedLayer, States
from exl2_tui.core.quant.workdir import (
    CALIBRATION,
    EMBEDDING,
    MEASUREMENT,
    WorkDir,
    hash_file,
    read_state,
    write_durably,
)
from exl2_tui.core.requests import ConvertRequest

_FREE_TO_CHANGE = {"work", "measure_to"}
"""Options that a resumed job takes from the new command, since they do not change what was computed."""


class Record:
    """The state of one job; `state` is what the state file holds."""

    def __init__(self, work: WorkDir, state: dict[str, Any], device: torch.device) -> None:
        self.work = work
        self.state = state
        self.device = device
        self._saved: dict[str, tuple[Tensor, dict[str, str]]] = {}

    @staticmethod
    def fresh(request: ConvertRequest, source: Mapping[str, str], claimed: list[str]) -> dict[str, Any]:
        """The state of a job that has done nothing. source: what identifies the model's files; claimed: directories
        in which an earlier job of this work directory wrote its models."""
        return {
            "request": _plain(request),
            "source": dict(source),
            "stage": "calibrate",
            "step": 0,
            "target": 0,
            "states": {},
            "strategies": [],
            "rows": [],
            "parts": [],
            "results": [],
            "warnings": [],
            "claimed": claimed,
            "seconds": 0.0,
            "timing": {},
        }

    @property
    def stage(self) -> str:
        return str(self.state["stage"])

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @property
    def target(self) -> int:
        """Index of the bitrate being made."""
        return int(self.state["target"])

    def save(self, stage: str, step: int, states: States | None = None, took: tuple[str, float] | None = None) -> None:
        """Makes everything up to here survive. states: what the next step needs; took: kind and seconds of this one.

        Tensors in `states` are replaced by views of their files, since they can exceed the memory.
        """
        if states is not None:
            known: dict[str, dict[str, str]] = {}
            for name, tensor in states.items():
                saved = self._saved.get(name)
                if saved is None or saved[0] is not tensor:
                    file = f"states/{stage}-{self.target}-{step:05d}-{name}.safetensors"
                    digest = self.work.write_tensors(file, {name: tensor})
                    saved = self.work.view(file, name, self.device), {"file": file, "sha256": digest}
                    states[name] = saved[0]
                    self._saved[name] = saved
                known[name] = saved[1]
            self.state["states"] = known
            self._saved = {name: self._saved[name] for name in states}
        if took is not None:
            self.state["timing"].setdefault(took[0], []).append(round(took[1], 3))
        self.state["stage"], self.state["step"] = stage, step
        self.work.write_state(self.state)
        parts = {EMBEDDING} if self.state["parts"] else set()
        self.work.keep_only({CALIBRATION, *parts, *self._artifacts()})

    def load_states(self) -> States:
        """States of the step before, read back exactly as they were written; {} at the start of a stage."""
        states: States = {}
        for name, entry in self.state["states"].items():
            states[name] = self.work.view(entry["file"], name, self.device)
            self._saved[name] = states[name], entry
        return states

    def claim(self, target: Path) -> None:
        """Notes durably that the models in this directory are this job's, before the first is written."""
        if str(target) not in self.state["claimed"]:
            self.state["claimed"].append(str(target))
            self.work.write_state(self.state)

    def continue_after_measuring(self, request: ConvertRequest) -> None:
        """A job that was asked to measure only, and has, goes on if it is now asked for models."""
        if self.stage == "done" and not self.state["results"] and request.measure_to is None:
            self.state["stage"] = "allocate"
        self.state["request"]["measure_to"] = request.measure_to

    # Calibration rows

    def keep_calibration(self, made: Calibration) -> None:
        tensors = {"rows": made.rows.int(), "measure": made.measure.int(), "held_out": made.held_out.int()}
        digest = self.work.write_tensors(CALIBRATION, dict(tensors))
        self.state["calibration"] = {"sha256": digest, "description": made.description}
        self.state["warnings"] = list(made.warnings)

    def calibration(self) -> Calibration:
        made = self.state["calibration"]
        stored = self.work.read_tensors(CALIBRATION, made["sha256"])
        rows, measure, held_out = (stored[name].long() for name in ("rows", "measure", "held_out"))
        return Calibration(rows, measure, held_out, made["description"])

    # Measurement

    def keep_measurement(self, found: Measurement, layers: int) -> None:
        """Replaces measurement.json."""
        content = json.dumps(found.to_json(layers), indent=4).encode()
        write_durably(self.work.path / MEASUREMENT, content)

    def seal_measurement(self) -> None:
        """Notes the hash of the finished measurement.json with the next save."""
        self.state["measurement_sha256"] = hash_file(self.work.path / MEASUREMENT)

    def measurement(self) -> Measurement:
        return Measurement.read(self.work.path / MEASUREMENT)

    # Finished layers

    def add_part(self, name: str, tensors: dict[str, Tensor], done: QuantizedLayer) -> None:
        """A finished layer, on disk but not yet named by the state file."""
        self.add_tensors(name, tensors)
        for linear in done.linears:
            self.state["rows"].append(
                {
                    "key": linear.prefix,
                    "recipe": linear.params.describe(),
                    "bpw": linear.params.bpw(*linear.solution.codes.shape),
                    "error": linear.error,
                    "seconds": round(linear.seconds, 3),
                }
            )

    def add_tensors(self, name: str, tensors: dict[str, Tensor]) -> None:
        """A further part of the model being made."""
        file = f"quantized-{self.target}/{name}.safetensors"
        digest = self.work.write_tensors(file, dict(tensors))
        self.state["parts"].append({"name": file, "sha256": digest})

    def finish_target(self, path: Path, *, broken: bool) -> None:
        """One model is done; the next save goes on with the next bitrate."""
        self.state["results"].append({"path": str(path), "broken": broken})
        self.state["target"] += 1
        self.state["parts"], self.state["rows"] = [], []

    # Trust

    def parts(self, poll: Callable[[], None]) -> list[Path]:
        """Files of the finished layers, each compared with its hash. Raises JobError for one that was damaged."""
        for part in self.state["parts"]:
            self.work.verify(part["name"], part["sha256"], poll)
        return [self.work.path / part["name"] for part in self.state["parts"]]

    def mend(self, poll: Callable[[], None]) -> Iterator[str]:
        """Compares every artifact with its hash; what is damaged is forgotten, so that it is computed again.

        Yields a sentence for people about every thing that must be done again. Raises JobError where nothing can be
        computed again without its input: the calibration rows. `poll` is called often and may raise.
        """
        if self.stage in ("calibrate", "done"):
            return
        self.work.verify(CALIBRATION, self.state["calibration"]["sha256"])
        damaged = next(
            (name for name, sha256 in self._artifacts().items() if not self.work.holds(name, sha256, poll)), None
        )
        if self.stage == "measure" or (self.stage == "allocate" and self.state["request"]["measurement"] is None):
            if damaged is None and not self._measurement_intact():
                damaged = MEASUREMENT
            if damaged is not None:
                self._restart("measure")
                yield f"{damaged} was damaged since it was written: this model is measured again from the first layer"
        elif self.stage == "allocate":
            self.work.verify(MEASUREMENT, self.state["measurement_sha256"])
        elif damaged is not None:
            self._restart("quantize")
            yield f"{damaged} was damaged since it was written: this model is quantized again from the first layer"

    def _artifacts(self) -> dict[str, str]:
        """Hash by name of the states and finished layers."""
        parts = {part["name"]: part["sha256"] for part in self.state["parts"]}
        return {**parts, **{entry["file"]: entry["sha256"] for entry in self.state["states"].values()}}

    def _measurement_intact(self) -> bool:
        """Whether measurement.json is what was written; while measuring it may be one layer ahead of the state."""
        if self.stage == "allocate":
            return self.work.holds(MEASUREMENT, self.state["measurement_sha256"])
        if self.step == 0:
            return True
        try:
            self.measurement()
        except QuantizationError:
            return False
        return True

    def _restart(self, stage: str) -> None:
        """Back to the first layer of a stage, with nothing kept of it."""
        timing = self.state["timing"]
        layers = sum("/layer-" in part["name"] for part in self.state["parts"])
        tuned = timing.get("tune", [])
        each = len(tuned) // (self.target + 1) if self.stage == "compile" else max(0, self.step - layers - 1)
        lost = {"measure": len(timing.get("measure", []))} if stage == "measure" else {"quantize": layers, "tune": each}
        for kind, count in lost.items():
            taken = timing.get(kind, [])
            timing[kind] = taken[: len(taken) - count]
        self.state["parts"], self.state["rows"] = [], []
        self.save(stage, 0, {})


def require_same(stored: Mapping[str, Any], request: ConvertRequest, path: Path) -> None:
    """A resumed job must be the same job. Raises JobError naming the first option that differs."""
    for name, value in _plain(request).items():
        if name not in _FREE_TO_CHANGE and stored.get(name) != value:
            raise JobError(
                f"the job in this directory has {name} {stored.get(name)!r}, not {value!r}",
                file=path,
                hint="Give the same options to resume it, another directory, or -nr to start anew.",
            )


def claimed_by(work: Path) -> list[str]:
    """Directories in which the job of a work directory has written models, [] where that cannot be read."""
    try:
        state = read_state(work)
    except JobError:
        return []
    claimed = [] if state is None else state.get("claimed")
    return [str(path) for path in claimed] if isinstance(claimed, list) else []


def stored_request(work: Path) -> ConvertRequest:
    """The request of the job in a work directory, to resume it. Raises JobError if there is none."""
    state = read_state(work)
    if state is None:
        raise JobError("there is no job in this directory", file=work)
    try:
        stored = {**state["request"], "bits": tuple(state["request"]["bits"]), "work": str(work)}
        return ConvertRequest(**stored)
    except (KeyError, TypeError) as error:
        raise JobError(f"the job file is damaged ({error!r})", file=work, hint="Start anew with -nr.") from None


def _plain(request: ConvertRequest) -> dict[str, Any]:
    """The request as JSON gives it back."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(request)))
    return plain
