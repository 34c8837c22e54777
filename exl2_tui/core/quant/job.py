"""The conversion job: a state machine that can be stopped anywhere and goes on where it was.

calibrate -> measure -> allocate -> for each bitrate: quantize, compile, evaluate. After every step the state names
everything the next one needs (`workdir.py`), so a crash repeats at most one layer and leads to the same file.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

import exl2_tui
from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import JobError, NotFoundError
from exl2_tui.core.events import (
    Allocated,
    CalibrationReady,
    Checkpointed,
    ConvertStage,
    Evaluated,
    Event,
    JobFinished,
    JobProgress,
    ModelWritten,
    QualityWarning,
    StageStarted,
)
from exl2_tui.core.quant import output
from exl2_tui.core.quant.calibration import Calibration, CalibrationSpec
from exl2_tui.core.quant.forecast import forecast, require_room
from exl2_tui.core.quant.measurement import Measurement
from exl2_tui.core.quant.recipes import ClassicRecipe, QuantizedLayer, Recipe, States
from exl2_tui.core.quant.refined import RefinedRecipe
from exl2_tui.core.quant.report import report_data, report_text
from exl2_tui.core.quant.rows import calibration_spec, make_rows
from exl2_tui.core.quant.source import Comparison, SourceModel, compare, parts_of
from exl2_tui.core.quant.strategy import Strategy
from exl2_tui.core.quant.workdir import WorkDir, read_state, write_durably
from exl2_tui.core.requests import ConvertRequest

_Result = TypeVar("_Result")
_FREE_TO_CHANGE = {"work", "measure_to"}
"""Options that a resumed job takes from the new command, since they do not change what was computed."""


class ConvertJob:
    """One conversion in one work directory, which it owns until closed."""

    def __init__(self, request: ConvertRequest, work: WorkDir, state: dict[str, Any], *, resumed: bool) -> None:
        self.request = request
        self.work = work
        self.state = state
        self.resumed = resumed
        self.name = str(work.path)
        device = request.device if request.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        self.model = SourceModel(Path(request.source), torch.device(device))
        make = ClassicRecipe if request.recipe == "classic" else RefinedRecipe
        self.recipe: Recipe = make(self.model, self.name, request.allocation, request.head_bits)
        self.cancel: CancelToken | None = None
        self._began = time.perf_counter()
        self._saved: dict[str, tuple[Tensor, dict[str, str]]] = {}

    @classmethod
    def open(cls, request: ConvertRequest, *, fresh: bool = False) -> ConvertJob:
        """Starts a job or resumes the one in the work directory; `fresh` deletes that first.

        Raises JobError if the directory belongs to another job, is locked or cannot be written.
        """
        if not Path(request.source).is_dir():
            raise NotFoundError("there is no such model directory", file=request.source)
        work = WorkDir(Path(request.work))
        try:
            if fresh:
                work.clear()
            state = work.read_state()
            if state is not None:
                _require_same(state["request"], request, work.path)
                if "rows" not in state.get("calibration", {"rows": None}):
                    raise JobError(
                        "the job in this directory was begun by an earlier version of this program",
                        file=work.path,
                        hint="Start it anew with -nr.",
                    )
                return cls(request, work, state, resumed=True)
            empty = {
                "request": json.loads(json.dumps(dataclasses.asdict(request))),
                "stage": "calibrate",
                "step": 0,
                "target": 0,
                "states": {},
            }
            lists: dict[str, Any] = {"strategies": [], "rows": [], "parts": [], "results": [], "warnings": []}
            job = cls(request, work, {**empty, **lists, "seconds": 0.0, "timing": {}}, resumed=False)
            job.model.require_float()
            return job
        except BaseException:
            work.close()
            raise

    def close(self) -> None:
        """Gives the work directory and the model back; the state on disk stays."""
        self.model.close()
        self.work.close()

    def run(self, cancel: CancelToken | None = None) -> Iterator[Event]:
        """Works until the job is finished, yielding what happens. Raises CancelledError when cancelled, and any
        Exl2Error with the job left as it was after the last Checkpointed."""
        self.cancel = cancel
        self._began = time.perf_counter()
        if self.state["stage"] != "done":
            expected = forecast(self.request, self.model, self._spec(), self.name)
            yield expected
            require_room(expected)
        if self.state["stage"] == "calibrate":
            yield from self._calibrate()
        calibration = self._calibration()
        if self.state["stage"] == "measure":
            yield from self._measure(calibration)
        if self.request.measure_to is not None:
            yield from self._finish()
            return
        if self.state["stage"] == "allocate":
            yield from self._allocate()
        while self.state["target"] < len(self.request.bits):
            if self.state["stage"] == "quantize":
                yield from self._quantize(calibration)
            yield from self._complete(calibration)
        yield from self._finish()

    # Stages

    def _calibrate(self) -> Iterator[Event]:
        yield self._started("calibrate")
        measured = self._given_measurement()
        steps = make_rows(self.model, self._spec(), self.cancel)
        made = yield from self._with_progress(steps, "calibrate", "token")
        tensors = {"rows": made.rows.int(), "measure": made.measure.int(), "held_out": made.held_out.int()}
        digest = self.work.write_tensors("calibration.safetensors", tensors)  # type: ignore[arg-type]
        count, length = made.rows.shape
        self.state["calibration"] = {
            "sha256": digest,
            "description": made.description,
            "rows": count,
            "length": length,
        }
        self.state["warnings"] = list(made.warnings)
        self._save("measure" if measured is None else "allocate", 0)
        yield CalibrationReady(
            self.name,
            made.description,
            len(made.rows),
            made.rows.shape[1],
            len(made.measure),
            len(made.held_out),
        )
        for warning in made.warnings:
            yield QualityWarning(self.name, warning)
        yield Checkpointed(self.name, "calibrate", 0)

    def _spec(self) -> CalibrationSpec:
        return calibration_spec(self.request, self.model.config.max_position_embeddings)

    def _given_measurement(self) -> Measurement | None:
        """The measurement of `-m`, copied into the work directory."""
        if self.request.measurement is None:
            return None
        found = Measurement.read(Path(self.request.measurement))
        for bits in self.request.bits:
            self.recipe.allocate(found, bits)  # refuses a measurement of another model before hours are spent
        self._write_measurement(found)
        return found

    def _measure(self, calibration: Calibration) -> Iterator[Event]:
        yield self._started("measure")
        found = Measurement.read(self.work.path / "measurement.json") if self.state["step"] else Measurement()
        states = self._load_states()
        for step in range(self.state["step"], self.recipe.measure_steps()):
            began = time.perf_counter()
            states = yield from self.recipe.measure_step(step, calibration, states, found, self.cancel)
            self._write_measurement(found)
            self._save("measure", step + 1, states, ("measure", time.perf_counter() - began))
            yield Checkpointed(self.name, "measure", step)
            yield self._progress("measure", f"layer {step}")
        if self.request.measure_to is not None:
            target = Path(self.request.measure_to)
            target = target / "measurement.json" if target.is_dir() else target
            write_durably(target, (self.work.path / "measurement.json").read_bytes())
        self._save("allocate", 0, {})

    def _allocate(self) -> Iterator[Event]:
        yield self._started("allocate")
        found = Measurement.read(self.work.path / "measurement.json")
        strategies = [self.recipe.allocate(found, bits) for bits in self.request.bits]
        self.state["strategies"] = [strategy.to_json() for strategy in strategies]
        self._save("quantize", 0)
        shapes = {spec.prefix: (spec.in_features, spec.out_features) for spec in self.model.decoder_linears()}
        for strategy in strategies:
            spent = tuple(recipe.bpw(*shapes[name]) for name, recipe in strategy.recipes.items())
            yield Allocated(
                self.name, strategy.bits, strategy.reached_bpw, tuple(strategy.recipes), spent, strategy.predicted_error
            )

    def _quantize(self, calibration: Calibration) -> Iterator[Event]:
        strategy = Strategy.from_json(self.state["strategies"][self.state["target"]])
        yield self._started("quantize", strategy.bits)
        layers = self.model.config.num_hidden_layers
        states = self._load_states()
        for layer in range(self.state["step"], layers):
            began = time.perf_counter()
            done, states = yield from self.recipe.quantize_layer(layer, calibration, states, strategy, self.cancel)
            self._add_part(f"layer-{layer:05d}", output.layer_tensors(self.model, layer, done), done)
            self._save("quantize", layer + 1, states, ("quantize", time.perf_counter() - began))
            yield Checkpointed(self.name, "quantize", layer)
            yield self._progress("quantize", f"layer {layer}")
        if self.state["step"] == layers:
            began = time.perf_counter()
            head = yield from self.recipe.quantize_head(states, strategy.head, self.cancel)
            self._add_part("head", output.head_tensors(self.model, head), head)
            states = self.recipe.tune_start(states)
            self._save("quantize", layers + 1, states, ("head", time.perf_counter() - began))
            yield Checkpointed(self.name, "quantize", layers)
        if self._tune_steps():
            yield from self._tune(calibration, states)
        self._save("compile", 0, {})

    def _tune(self, calibration: Calibration, states: States) -> Iterator[Event]:
        """Fits what is continuous in the finished layers, as further steps of quantizing; what changes becomes one more
        part."""
        layers, steps = self.model.config.num_hidden_layers, self._tune_steps()
        parts = parts_of(self.model, self._parts())
        for step in range(self.state["step"] - layers - 1, steps):
            if not states:
                break
            began = time.perf_counter()
            states = yield from self.recipe.tune_step(step, calibration, parts, states, self.cancel)
            if step + 1 == steps and states:
                file = f"quantized-{self.state['target']}/tuned.safetensors"
                self.state["parts"].append({"name": file, "sha256": self.work.write_tensors(file, dict(states))})
            kept = {} if step + 1 == steps else states
            self._save("quantize", layers + 2 + step, kept, ("tune", time.perf_counter() - began))
            yield self._progress("quantize", f"tuning, step {step + 1} of {steps}")

    def _complete(self, calibration: Calibration) -> Iterator[Event]:
        """Writes one finished model, judges it and goes on to the next target."""
        strategy = Strategy.from_json(self.state["strategies"][self.state["target"]])
        yield self._started("compile", strategy.bits)
        used = {
            "rows": calibration.rows.shape[0],
            "length": calibration.rows.shape[1],
            "dataset": calibration.description,
        }
        quantization: dict[str, Any] = {
            "quant_method": "exl2",
            "version": "0.3.2",  # of the reference converter whose format this is
            "bits": strategy.bits,
            "head_bits": strategy.head.bits[-1],
            "calibration": used,
            "made_by": f"exl2-tui {exl2_tui.__version__}",
            "recipe": self.request.recipe,
        }
        target, source = self._target(strategy.bits), self.model.path
        size = output.write_model(target, self._parts(), source, self.request.shard_size, quantization)
        judged = yield from self._evaluate(target, strategy.bits, calibration)
        output.write_config(target, source, {**quantization, "evaluation": judged.to_json()})
        self._account()
        report = report_data(
            source=source.name,
            recipe=self.request.recipe,
            target_bits=strategy.bits,
            reached_bpw=strategy.reached_bpw,
            head_bits=strategy.head.bits[-1],
            size=size,
            calibration=used,
            comparison=judged,
            layers=self.state["rows"],
            seconds=self.state["seconds"],
            warnings=self.state["warnings"],
        )
        write_durably(target / "report.json", json.dumps(report, indent=1).encode())
        write_durably(target / "report.md", report_text(report).encode())
        self.state["results"].append({"path": str(target), "broken": judged.broken})
        self.state["target"] += 1
        self.state["parts"], self.state["rows"] = [], []
        self._save("quantize", 0, {})
        yield ModelWritten(self.name, strategy.bits, strategy.reached_bpw, str(target), size)
        if judged.broken:
            yield QualityWarning(self.name, "the evaluation found this model broken: do not use it", str(target))

    def _parts(self) -> list[Path]:
        """The layer files of the current target and the embedding, each compared with its hash."""
        name = "embedding.safetensors"
        embedding = self.work.write_tensors(name, dict(output.embedding_tensors(self.model)))
        parts = [{"name": name, "sha256": embedding}, *self.state["parts"]]
        for part in parts:
            self._check_cancelled()
            self.work.verify(part["name"], part["sha256"])
        return [self.work.path / part["name"] for part in parts]

    def _evaluate(self, target: Path, bits: float, calibration: Calibration) -> Generator[Event, None, Comparison]:
        yield self._started("evaluate", bits)
        finished = SourceModel(target, self.model.device)
        try:
            steps = compare(self.model, finished, calibration.held_out, self.cancel)
            judged = yield from self._with_progress(steps, "evaluate", "layer")
        finally:
            finished.close()
        yield Evaluated(
            self.name,
            bits,
            judged.kl,
            judged.top1,
            judged.perplexity,
            judged.original_perplexity,
            judged.tokens,
            judged.broken,
        )
        return judged

    def _with_progress(
        self, steps: Generator[int, None, _Result], stage: ConvertStage, unit: str
    ) -> Generator[Event, None, _Result]:
        while True:
            try:
                step = next(steps)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            yield self._progress(stage, f"{unit} {step}")

    def _finish(self) -> Iterator[Event]:
        self._account()
        self._save("done", 0, {})
        results = self.state["results"]
        paths = tuple(result["path"] for result in results)
        yield JobFinished(self.name, paths, sum(result["broken"] for result in results), self.state["seconds"])

    # State

    def _save(self, stage: str, step: int, states: States | None = None, took: tuple[str, float] | None = None) -> None:
        """Makes everything up to here survive: the states under a new name first, then the state file."""
        self._check_cancelled()
        if states is not None:
            known: dict[str, dict[str, str]] = {}
            for name, tensor in states.items():
                saved = self._saved.get(name)
                if saved is None or saved[0] is not tensor:
                    file = f"states/{stage}-{self.state['target']}-{step:05d}-{name}.safetensors"
                    digest = self.work.write_tensors(file, {name: tensor})
                    # From here on a view of the file: states can exceed the memory.
                    saved = self.work.view(file, name, self.model.device), {"file": file, "sha256": digest}
                    states[name] = saved[0]
                    self._saved[name] = saved
                known[name] = saved[1]
            self.state["states"] = known
            self._saved = {name: self._saved[name] for name in states}
        if took is not None:
            self.state["timing"].setdefault(took[0], []).append(round(took[1], 3))
        self.state["stage"], self.state["step"] = stage, step
        self._account()
        self.work.write_state(self.state)
        named = {part["name"] for part in self.state["parts"]} | {"calibration.safetensors"}
        self.work.keep_only(named | {entry["file"] for entry in self.state["states"].values()})

    def _load_states(self) -> States:
        """States of the step before, read back exactly as they were written; {} at the start of a stage."""
        states: States = {}
        for name, entry in self.state["states"].items():
            self.work.verify(entry["file"], entry["sha256"])
            states[name] = self.work.view(entry["file"], name, self.model.device)
            self._saved[name] = states[name], entry
        return states

    def _tuned_steps(self) -> int:
        """Of the current target."""
        done = self.state["step"] - self.model.config.num_hidden_layers - 1
        return max(0, done) if self.state["stage"] == "quantize" else 0

    def _tune_steps(self) -> int:
        made = self.state.get("calibration")
        shape = (self._spec().rows, self._spec().length) if made is None else (made["rows"], made["length"])
        return self.recipe.tune_steps(*shape)

    def _add_part(self, name: str, tensors: dict[str, Tensor], done: QuantizedLayer) -> None:
        """A finished layer, on disk but not yet named by the state file."""
        file = f"quantized-{self.state['target']}/{name}.safetensors"
        digest = self.work.write_tensors(file, dict(tensors))
        self.state["parts"].append({"name": file, "sha256": digest})
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

    def _write_measurement(self, found: Measurement) -> None:
        content = json.dumps(found.to_json(self.model.config.num_hidden_layers), indent=4).encode()
        write_durably(self.work.path / "measurement.json", content)

    def _calibration(self) -> Calibration:
        made = self.state["calibration"]
        stored = self.work.read_tensors("calibration.safetensors", made["sha256"])
        rows, measure, held_out = (stored[name].long() for name in ("rows", "measure", "held_out"))
        return Calibration(rows, measure, held_out, made["description"])

    def _target(self, bits: float) -> Path:
        """Where the model of this bitrate goes."""
        if self.request.output is None:
            return self.work.path / f"model-{bits:g}bpw"
        return Path(self.request.output) / (f"{bits:g}bpw" if len(self.request.bits) > 1 else "")

    # Progress

    def _started(self, stage: ConvertStage, bits: float = 0.0) -> StageStarted:
        return StageStarted(self.name, stage, bits, resumed=self.resumed and self.state["step"] > 0)

    def _progress(self, stage: ConvertStage, detail: str) -> JobProgress:
        """Steps are layers measured and layers quantized; the seconds left extrapolate what they took so far, and what
        the steps of tuning took."""
        layers, targets = self.model.config.num_hidden_layers, len(self.request.bits)
        measuring = 0 if self.request.measurement else self.recipe.measure_steps()
        quantizing = 0 if self.request.measure_to else targets * layers
        tuning = 0 if self.request.measure_to else (targets - self.state["target"]) * self._tune_steps()
        timing = self.state["timing"]
        measured, quantized, tuned = (len(timing.get(name, [])) for name in ("measure", "quantize", "tune"))
        seconds: float | None = None
        measure_mean = sum(timing.get("measure", [])) / measured if measured else 0.0
        quantize_mean = sum(timing.get("quantize", [])) / quantized if quantized else measure_mean / 4
        tune_mean = sum(timing.get("tune", [])) / tuned if tuned else quantize_mean
        if measured or quantized:
            left = (
                (measuring - measured, measure_mean),
                (quantizing - quantized, quantize_mean),
                (tuning - self._tuned_steps(), tune_mean),
            )
            seconds = sum(steps * mean for steps, mean in left)
        return JobProgress(self.name, stage, measured + quantized, measuring + quantizing, detail, seconds)

    def _account(self) -> None:
        now = time.perf_counter()
        self.state["seconds"] += now - self._began
        self._began = now

    def _check_cancelled(self) -> None:
        if self.cancel is not None:
            self.cancel.check()


def _require_same(stored: dict[str, Any], request: ConvertRequest, path: Path) -> None:
    """A resumed job must be the same job. Raises JobError naming the first option that differs."""
    for name, value in json.loads(json.dumps(dataclasses.asdict(request))).items():
        if name not in _FREE_TO_CHANGE and stored.get(name) != value:
            raise JobError(
                f"the job in this directory has {name} {stored.get(name)!r}, not {value!r}",
                file=path,
                hint="Give the same options to resume it, another directory, or -nr to start anew.",
            )


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
