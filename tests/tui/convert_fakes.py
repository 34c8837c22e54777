"""A service of conversions that only pretends, and events as a conversion of eight layers reports them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

from exl2_tui.convert_draft import OFFERED_BITS, ConvertDraft
from exl2_tui.core.events import Event
from exl2_tui.core.job_events import (
    Allocated,
    CalibrationReady,
    Checkpointed,
    ConvertChecked,
    Evaluated,
    FieldNote,
    JobEnded,
    JobEstimate,
    JobFinished,
    JobInfo,
    JobOpened,
    JobProgress,
    JobsListed,
    JobStatus,
    LayerMeasured,
    LayerQuantized,
    ModelWritten,
    StageStarted,
)
from exl2_tui.core.requests import ConvertRequest

LAYERS = 8
LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


class FakeConvert:
    """Every call is recorded; the test posts what happens."""

    def __init__(self, post: Callable[[Event], None]) -> None:
        self.post = post
        self.started: list[ConvertRequest] = []
        self.calls: list[tuple[str, str]] = []
        self.drafts: list[tuple[ConvertDraft, int]] = []
        self.listed: tuple[JobInfo, ...] = ()
        self.closed = False
        self.answering = True
        self.notes: tuple[FieldNote, ...] = ()
        self.taken: set[str] = set()  # names of work folders in which there is something
        self.measurement = ""

    def start(self, request: ConvertRequest, *, fresh: bool = False) -> str:
        self.started.append(request)
        return request.work

    def resume(self, job: str) -> None:
        self.calls.append(("resume", job))

    def pause(self, job: str) -> None:
        self.calls.append(("pause", job))

    def delete(self, job: str) -> None:
        self.calls.append(("delete", job))
        self.listed = tuple(info for info in self.listed if info.job != job)
        self.list_jobs()

    def list_jobs(self) -> None:
        self.calls.append(("list", ""))
        self.post(JobsListed(self.listed))

    def look(self, job: str) -> None:
        self.calls.append(("look", job))

    def follow(self, job: str) -> None:
        self.calls.append(("follow", job))

    def check(self, draft: ConvertDraft, token: int) -> None:
        self.drafts.append((draft, token))
        if self.answering:
            self.answer()

    def close(self, timeout: float) -> None:
        self.closed = True

    def answer(self) -> None:
        """The newest draft is fine, but for `notes`; without a source there is nothing to say."""
        draft, token = self.drafts[-1]
        if not draft.source:
            self.post(ConvertChecked(token, (FieldNote("source", "info", "Choose a model, or type its folder"),)))
            return
        notes = self.notes or (FieldNote("work", "ok", "61.0 GB free"), FieldNote("output", "ok", "It will be made"))
        if Path(draft.work).name in self.taken:
            notes = (FieldNote("work", "error", "This conversion is finished. Pick another folder.", taken=True),)
        if self.measurement:
            notes = (*notes, FieldNote("measurement", "info", "One of this model is in nano-4"))
        stages = (("calibrate", 20.0), ("measure", 70.0), ("quantize", 90.0), ("finish", 10.0))
        estimate = JobEstimate("w", 1_200_000_000, 8_000_000_000, 90_000_000, 61_000_000_000, 190.0, stages)
        sizes = tuple((bits, int(6_300_000 + 1_500_000 * bits)) for bits in OFFERED_BITS)
        facts = "Llama, 8 layers, 12.2 M weights, vocabulary 8,192"
        self.post(
            ConvertChecked(token, notes, facts, 24_400_432, sizes, estimate, (1024, 60_000_000), self.measurement)
        )

    def play(self, events: Iterator[Event]) -> None:
        for event in events:
            self.post(event)


def info(
    job: str, *, status: JobStatus = "stopped", stage: str = "measure", done: int = 9, name: str = "nano-chat"
) -> JobInfo:
    models = (f"{job}/model",) if status == "finished" else ()
    total = 3 * LAYERS + 1
    problem = "the job file was written by another version" if status == "damaged" else ""
    return JobInfo(job, f"/models/{name}", (4.0,), "refined", stage, done, total, status, models, 130.0, problem)


def opened(job: str, **options: object) -> JobOpened:
    found = info(job, **{"status": "running", "stage": "calibrate", "done": 0, **options})  # type: ignore[arg-type]
    return JobOpened(job, found, LAYERS, 2 * LAYERS + 1, ())


def calibrated(job: str) -> Iterator[Event]:
    yield StageStarted(job, "calibrate")
    yield CalibrationReady(job, "(default)", 100, 1024, 16, 8)
    yield Checkpointed(job, "calibrate", 0)


def measured(job: str, steps: int = 2 * LAYERS + 1) -> Iterator[Event]:
    """Forward through the layers, then candidates from the last layer to the first."""
    yield StageStarted(job, "measure")
    for step in range(steps):
        if step > LAYERS:
            layer = 2 * LAYERS - step
            for linear in LINEARS:
                key = f"model.layers.{layer}.{linear}"
                yield LayerMeasured(job, key, (2.1, 4.0, 8.0), (0.02, 0.001 + 0.0002 * layer, 0.00001), 0.4)
        yield Checkpointed(job, "measure", step)
        yield JobProgress(job, "measure", step + 1, 3 * LAYERS + 1, f"layer {step}", 60.0)


def error_of(layer: int, linear: str) -> float:
    """A plausible curve; one layer is far worse than its like."""
    if layer == 6 and linear.startswith("mlp"):
        return 0.31
    return 0.012 * (1.4 + math.sin(layer + (0.5 if linear.startswith("mlp") else 0.0)))


def quantized(job: str, layers: int = LAYERS) -> Iterator[Event]:
    keys = tuple(f"model.layers.{layer}.{linear}" for layer in range(LAYERS) for linear in LINEARS)
    yield Allocated(job, 4.0, 3.998, keys, (4.0,) * len(keys), 0.04)
    yield StageStarted(job, "quantize", 4.0)
    for layer in range(layers):
        for linear in LINEARS:
            error = error_of(layer, linear)
            yield LayerQuantized(
                job, f"model.layers.{layer}.{linear}", "0.1:5b_64g/0.9:4b_64g s4", 4.12, error, 1.2 + layer / 10
            )
        yield Checkpointed(job, "quantize", layer)
        yield JobProgress(job, "quantize", 2 * LAYERS + 2 + layer, 3 * LAYERS + 1, f"layer {layer}", 10.0)


def judged(job: str, *, broken: bool = False) -> Iterator[Event]:
    yield LayerQuantized(job, "lm_head", "0.15:8b_128g/0.85:6b_128g s4", 6.4, 0.003, 4.0)
    yield Checkpointed(job, "quantize", LAYERS)
    yield StageStarted(job, "compile", 4.0)
    yield StageStarted(job, "evaluate", 4.0)
    kl, perplexity = (7.5, 3456.0) if broken else (0.0213, 14.31)
    yield Evaluated(job, 4.0, kl, 0.931, perplexity, 14.02, 8184, broken)
    yield ModelWritten(job, 4.0, 3.998, f"{job}/nano-chat-4bpw", 12_300_000)
    yield JobFinished(job, (f"{job}/nano-chat-4bpw",), int(broken), 187.0)


def ended(job: str, message: str = "", hint: str = "") -> JobEnded:
    return JobEnded(job, "failed" if message else "paused", message, hint)
