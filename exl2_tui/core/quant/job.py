"""The conversion job: a state machine that can be stopped anywhere and goes on where it was.

calibrate -> measure -> allocate -> for each bitrate: quantize, compile, evaluate. After every step the state names
everything the next one needs (`workdir.py`), so a crash repeats at most one layer and leads to the same file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

import exl2_tui
from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import NotFoundError
from exl2_tui.core.events import Event
from exl2_tui.core.job_events import (
    Allocated,
    CalibrationReady,
    Checkpointed,
    ConvertStage,
    Evaluated,
    JobFinished,
    JobProgress,
    ModelWritten,
    QualityWarning,
    StageStarted,
)
from exl2_tui.core.model.cuda import library
from exl2_tui.core.model.layout import head_linear
from exl2_tui.core.quant import output, preflight
from exl2_tui.core.quant.calibration import Calibration
from exl2_tui.core.quant.forecast import forecast, require_room
from exl2_tui.core.quant.machine import measured_speed
from exl2_tui.core.quant.measurement import Measurement
from exl2_tui.core.quant.plan import make_plan
from exl2_tui.core.quant.recipes import ClassicRecipe, Recipe, States
from exl2_tui.core.quant.record import Record, claimed_by, require_same, stored_request
from exl2_tui.core.quant.refined import RefinedRecipe
from exl2_tui.core.quant.report import report_data, report_text
from exl2_tui.core.quant.rows import calibration_spec, make_rows
from exl2_tui.core.quant.source import Comparison, SourceModel, compare, parts_of
from exl2_tui.core.quant.strategy import Strategy
from exl2_tui.core.quant.workdir import EMBEDDING, MEASUREMENT, WorkDir, write_durably
from exl2_tui.core.requests import ConvertRequest

__all__ = ["ConvertJob", "stored_request"]

_Result = TypeVar("_Result")


def _device(name: str) -> torch.device:
    """Raises ConfigError or ExtensionError for one that this machine does not have."""
    if name == "auto":
        name = "cpu" if library.no_device() else "cuda"
    return torch.device(name) if name == "cpu" else library.named_device(name)


class ConvertJob:
    """One conversion in one work directory, which it owns until closed."""

    def __init__(self, request: ConvertRequest, work: WorkDir, state: dict[str, Any], *, resumed: bool) -> None:
        self.request = request
        self.work = work
        self.resumed = resumed
        self.name = str(work.path)
        device = _device(request.device)
        self.record = Record(work, state, device)
        self.model = SourceModel(Path(request.source), device)
        make = ClassicRecipe if request.recipe == "classic" else RefinedRecipe
        self.recipe: Recipe = make(self.model, self.name, request.allocation, request.head_bits)
        self.spec = calibration_spec(request, self.model.config.max_position_embeddings)
        self.plan = make_plan(request, self.model, self.spec, measured_speed(str(device)))
        self.cancel: CancelToken | None = None
        self._began = self._saved = time.perf_counter()

    @classmethod
    def open(cls, request: ConvertRequest, *, fresh: bool = False) -> ConvertJob:
        """Starts a job or resumes the one in the work directory; `fresh` deletes that if the new one can begin.

        Raises JobError if the directory belongs to another job, is locked or cannot be written, if a model cannot go
        where it should, if the source has changed since or the calibration file cannot be read; QuantizationError if
        there can be no result. Then everything is left as it was.
        """
        source = Path(request.source)
        if not source.is_dir():
            raise NotFoundError("there is no such model directory", file=request.source)
        preflight.require_places(request)
        work = WorkDir(Path(request.work))
        try:
            claimed = claimed_by(work.path)
            for target in preflight.targets(request):
                preflight.require_free(target, claimed)
            found = preflight.fingerprint(source)
            state = None if fresh else work.read_state()
            if state is not None and state["stage"] != "calibrate":
                require_same(state["request"], request, work.path)
                preflight.require_unchanged(state["source"], found, source)
                return cls(request, work, state, resumed=True)
            if not work.is_begun:
                preflight.require_own(work.path)
            job = cls(request, work, Record.fresh(request, found, claimed), resumed=False)
            job._require_sense()
            if fresh:
                preflight.require_kept(request)
                require_room(forecast(request, job.model, job.spec, job.name), request, job.model, job.spec)
                work.clear(claimed)
            if claimed:
                work.write_state(job.state)  # or a crash before the first save would forget them
            return job
        except BaseException:
            work.close()
            raise

    def _require_sense(self) -> None:
        """Raises what would otherwise be found only after hours."""
        self.model.require_float()
        preflight.require_reachable(self.request.recipe, self.request.bits, self.model)
        preflight.require_head(self.request, self.model)
        preflight.require_calibration(self.request)
        measured = self._given_measurement()
        if measured is not None:
            for bits in self.request.bits:
                self.recipe.allocate(measured, bits)  # refuses a measurement of another model

    @property
    def state(self) -> dict[str, Any]:
        """What the state file says, see record.py."""
        return self.record.state

    def close(self) -> None:
        """Gives the work directory and the model back; the state on disk stays."""
        self.model.close()
        self.work.close()

    def run(self, cancel: CancelToken | None = None) -> Iterator[Event]:
        """Works until the job is finished, yielding what happens. Raises CancelledError when cancelled, and any
        Exl2Error with the job left as it was after the last Checkpointed."""
        self.cancel = cancel
        self._began = self._saved = time.perf_counter()
        record = self.record
        record.continue_after_measuring(self.request)
        if record.stage != "done":
            expected = forecast(self.request, self.model, self.spec, self.name)
            yield expected
            require_room(expected, self.request, self.model, self.spec)
            for sentence in record.mend(self._check_cancelled):
                yield QualityWarning(self.name, sentence)
        if record.stage == "calibrate":
            yield from self._calibrate()
        calibration = record.calibration()
        if record.stage == "measure":
            yield from self._measure(calibration)
        if self.request.measure_to is not None:
            yield self._finish_measuring(Path(self.request.measure_to))
            return
        if record.stage == "allocate":
            yield from self._allocate()
        while record.target < len(self.request.bits):
            if record.stage == "quantize":
                yield from self._quantize(calibration)
            yield from self._complete(calibration)
        yield self._finish()

    # Stages

    def _calibrate(self) -> Iterator[Event]:
        yield self._started("calibrate")
        self._save("calibrate", 0)
        measured = self._given_measurement()
        yield from self._with_progress(self.model.inspect(self.cancel), "calibrate", "checking tensor")
        steps = make_rows(self.model, self.spec, self.cancel)
        made = yield from self._with_progress(steps, "calibrate", "writing text, token")
        self.record.keep_calibration(made)
        if measured is None:
            self._save("measure", 0)
        else:
            self.record.keep_measurement(measured, self.model.config.num_hidden_layers)
            self.record.seal_measurement()
            self._save("allocate", 0)
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

    def _given_measurement(self) -> Measurement | None:
        """The measurement of `-m`."""
        return None if self.request.measurement is None else Measurement.read(Path(self.request.measurement))

    def _measure(self, calibration: Calibration) -> Iterator[Event]:
        yield self._started("measure")
        found = self.record.measurement() if self.record.step else Measurement()
        states = self.record.load_states()
        for step in range(self.record.step, self.recipe.measure_steps()):
            began = time.perf_counter()
            states = yield from self.recipe.measure_step(step, calibration, states, found, self.cancel)
            self.record.keep_measurement(found, self.model.config.num_hidden_layers)
            self._save("measure", step + 1, states, ("measure", time.perf_counter() - began))
            yield Checkpointed(self.name, "measure", step)
            yield self._progress("measure", f"step {step + 1} of {self.recipe.measure_steps()}")
        self.record.seal_measurement()
        self._save("allocate", 0, {})

    def _finish_measuring(self, target: Path) -> JobFinished:
        """Writes the measurement where `-om` says; a later command without it goes on from here."""
        target = target / MEASUREMENT if target.is_dir() else target
        target.parent.mkdir(parents=True, exist_ok=True)
        write_durably(target, (self.work.path / MEASUREMENT).read_bytes())
        if self.record.stage == "allocate":
            self._save("done", 0, {})
        return JobFinished(self.name, (), 0, self.state["seconds"])

    def _allocate(self) -> Iterator[Event]:
        yield self._started("allocate")
        found = self.record.measurement()
        strategies = [self.recipe.allocate(found, bits) for bits in self.request.bits]
        self.state["strategies"] = [strategy.to_json() for strategy in strategies]
        self._save("quantize", 0)
        shapes = {spec.prefix: (spec.in_features, spec.out_features) for spec in self.model.decoder_linears()}
        for strategy in strategies:
            spent = tuple(recipe.bpw(*shapes[name]) for name, recipe in strategy.recipes.items())
            yield Allocated(
                self.name,
                strategy.bits,
                strategy.reached_bpw,
                tuple(strategy.recipes),
                spent,
                strategy.predicted_error,
                self._chosen_head_bpw(strategy),
            )

    def _quantize(self, calibration: Calibration) -> Iterator[Event]:
        strategy = self._strategy()
        yield self._started("quantize", strategy.bits)
        layers = self.model.config.num_hidden_layers
        states = self.record.load_states()
        for layer in range(self.record.step, layers):
            began = time.perf_counter()
            done, states = yield from self.recipe.quantize_layer(layer, calibration, states, strategy, self.cancel)
            self.record.add_part(f"layer-{layer:05d}", output.layer_tensors(self.model, layer, done), done)
            self._save("quantize", layer + 1, states, ("quantize", time.perf_counter() - began))
            yield Checkpointed(self.name, "quantize", layer)
            yield self._progress("quantize", f"layer {layer + 1} of {layers}")
        if self.record.step == layers:
            began = time.perf_counter()
            head = yield from self.recipe.quantize_head(states, strategy.head, self.cancel)
            self.record.add_part("head", output.head_tensors(self.model, head), head)
            states = self.recipe.tune_start(states)
            self._save("quantize", layers + 1, states, ("head", time.perf_counter() - began))
            yield Checkpointed(self.name, "quantize", layers)
        if self._tune_steps(calibration):
            yield from self._tune(calibration, states)
        self._save("compile", 0, {})

    def _tune(self, calibration: Calibration, states: States) -> Iterator[Event]:
        """Fits what is continuous in the finished layers, as further steps of quantizing; what changes becomes one more
        part."""
        layers, steps = self.model.config.num_hidden_layers, self._tune_steps(calibration)
        parts = parts_of(self.model, self._parts())
        for step in range(self.record.step - layers - 1, steps):
            if not states:
                break
            began = time.perf_counter()
            states = yield from self.recipe.tune_step(step, calibration, parts, states, self.cancel)
            if step + 1 == steps and states:
                self.record.add_tensors("tuned", dict(states))
            kept = {} if step + 1 == steps else states
            self._save("quantize", layers + 2 + step, kept, ("tune", time.perf_counter() - began))
            yield self._progress("quantize", f"tuning, step {step + 1} of {steps}")

    def _tune_steps(self, calibration: Calibration) -> int:
        return self.recipe.tune_steps(calibration.rows.shape[0], calibration.rows.shape[1])

    def _complete(self, calibration: Calibration) -> Iterator[Event]:
        """Writes one finished model, judges it and goes on to the next target."""
        strategy = self._strategy()
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
        target, source = preflight.targets(self.request)[self.record.target], self.model.path
        preflight.require_free(target, self.state["claimed"])
        self.record.claim(target)
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
            chosen_head_bpw=self._chosen_head_bpw(strategy),
            size=size,
            calibration=used,
            comparison=judged,
            layers=self.state["rows"],
            seconds=self.state["seconds"],
            warnings=self.state["warnings"],
        )
        write_durably(target / "report.json", json.dumps(report, indent=1).encode())
        write_durably(target / "report.md", report_text(report).encode())
        self.record.finish_target(target, broken=judged.broken)
        self._save("quantize", 0, {})
        yield ModelWritten(self.name, strategy.bits, strategy.reached_bpw, str(target), size)
        if judged.broken:
            yield QualityWarning(self.name, "the evaluation found this model broken: do not use it", str(target))

    def _parts(self) -> list[Path]:
        """The embedding and the layer files of the current target, each compared with its hash."""
        self.work.write_tensors(EMBEDDING, dict(output.embedding_tensors(self.model)))
        return [self.work.path / EMBEDDING, *self.record.parts(self._check_cancelled)]

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
                return stop.value  # type: ignore[no-any-return] # what steps returned; the class has no type for it
            yield self._progress(stage, f"{unit} {step}")

    def _finish(self) -> JobFinished:
        if self.record.stage != "done":
            self._save("done", 0, {})
        results = self.state["results"]
        paths = tuple(result["path"] for result in results)
        return JobFinished(self.name, paths, sum(result["broken"] for result in results), self.state["seconds"])

    # Bookkeeping

    def _strategy(self) -> Strategy:
        return Strategy.from_json(self.state["strategies"][self.record.target])

    def _chosen_head_bpw(self, strategy: Strategy) -> float:
        """Bits per weight of the head where they are part of the budget, else 0."""
        head = head_linear(self.model.config)
        return strategy.head.bpw(head.in_features, head.out_features) if self.request.head_bits is None else 0.0

    def _save(self, stage: str, step: int, states: States | None = None, took: tuple[str, float] | None = None) -> None:
        self._check_cancelled()
        self._account()
        self.record.save(stage, step, states, took)
        self._saved = time.perf_counter()

    def _started(self, stage: ConvertStage, bits: float = 0.0) -> StageStarted:
        return StageStarted(self.name, stage, bits, resumed=self.resumed and self.record.step > 0)

    def _progress(self, stage: ConvertStage, detail: str) -> JobProgress:
        timing = self.state["timing"]
        left = self.plan.left(timing, self.record.target)
        if stage == "calibrate":
            left += self.plan.calibrate
        left = max(0.0, left - (time.perf_counter() - self._saved))
        return JobProgress(self.name, stage, self.plan.done(timing), self.plan.steps, detail, left)

    def _account(self) -> None:
        now = time.perf_counter()
        self.state["seconds"] += now - self._began
        self._began = now

    def _check_cancelled(self) -> None:
        if self.cancel is not None:
            self.cancel.check()
