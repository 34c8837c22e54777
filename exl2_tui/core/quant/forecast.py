"""What a conversion will take: peak memory, disk and time, from the shapes alone, before anything is started."""

from __future__ import annotations

import shutil
from pathlib import Path

from exl2_tui.core.errors import MemoryLimitError
from exl2_tui.core.job_events import JobEstimate
from exl2_tui.core.model.memory import available_memory
from exl2_tui.core.quant import selftext
from exl2_tui.core.quant.calibration import CalibrationSpec
from exl2_tui.core.quant.halves import TOKENS_AT_ONCE
from exl2_tui.core.quant.machine import measured_speed
from exl2_tui.core.quant.plan import CLASSIC_RECIPES, make_plan
from exl2_tui.core.quant.preflight import targets
from exl2_tui.core.quant.recipe import head_recipe
from exl2_tui.core.quant.rows import cache_bytes
from exl2_tui.core.quant.source import LOGITS_AT_ONCE, SourceModel
from exl2_tui.core.quant.tune import Schedule
from exl2_tui.core.requests import ConvertRequest
from exl2_tui.core.sizes import size_of

BASE_MEMORY = 480 << 20
"""Python and torch themselves (290 MiB), and what the heap keeps of pieces that were freed (180 MiB were seen)."""
UNUSED = 1.3
"""What the allocator holds for every byte in use, at most: 1.23 was seen while the default rows were measured."""
FLOAT = 4


def forecast(request: ConvertRequest, model: SourceModel, spec: CalibrationSpec, job: str) -> JobEstimate:
    """The estimate for a job with these calibration rows; sizes in bytes."""
    plan = make_plan(request, model, spec, measured_speed(str(model.device)))
    work, models = disk_needs(request, model, spec)
    folder, output = existing(Path(request.work)), existing(targets(request)[0])
    together = folder.stat().st_dev == output.stat().st_dev
    disk = work + models if together else work
    free = shutil.disk_usage(folder).free
    memory = peak_memory(request, model, spec), available_memory() or 0
    return JobEstimate(job, *memory, disk, free, plan.seconds, plan.stages)


def peak_memory(request: ConvertRequest, model: SourceModel, spec: CalibrationSpec) -> int:
    """The most that is resident at once, in bytes: the largest of what the stages need."""
    needs = _Needs(request, model, spec)
    stages = [needs.head(), needs.logits()]
    if request.recipe == "refined":
        stages += [needs.refined_layer(), needs.tuning()]
    else:
        stages.append(needs.classic_layer())
    if request.measurement is None:
        stages += needs.refined_measure() if request.recipe == "refined" else [needs.classic_measure()]
    if request.calibration is None and needs.is_small:
        stages.append(needs.self_text())
    return BASE_MEMORY + needs.mapped + int(UNUSED * max(stages))


class _Needs:
    """Bytes that the stages of a job hold at once, beside what Python and torch take."""

    def __init__(self, request: ConvertRequest, model: SourceModel, spec: CalibrationSpec) -> None:
        config = model.config
        block = [linear for linear in model.decoder_linears() if linear.prefix.startswith("model.layers.0.")]
        self.model, self.config, self.spec = model, config, spec
        self.hidden, self.ffn, self.vocab = config.hidden_size, config.intermediate_size, config.vocab_size
        self.block = sum(linear.in_features * linear.out_features for linear in block)
        self.outputs = sum(linear.out_features for linear in block)
        self.head_weights = self.vocab * self.hidden
        self.measured = spec.measure_rows * spec.measure_length
        self.states = 2 * spec.rows * spec.length * self.hidden  # of all rows, float16
        self.at_once = max(TOKENS_AT_ONCE, spec.length)
        self.running = FLOAT * self.at_once * (6 * self.hidden + 4 * self.ffn)
        self.backward = FLOAT * self.at_once * 12 * (self.hidden + self.ffn)
        widest = max(linear.in_features for linear in block)
        largest = max(linear.in_features * linear.out_features for linear in block)
        self.solving = FLOAT * (9 * widest * widest + 8 * largest)
        self.is_small = model.decoder_weights <= selftext.LARGEST_MODEL

    @property
    def mapped(self) -> int:
        """Of the source's files: small models are read as a whole, of others the block and the head in use count, as
        the system takes back the rest when it likes."""
        weights = self.model.checkpoint.weight_bytes
        return weights if self.is_small else min(weights, 2 * (self.block + 2 * self.head_weights))

    def head(self) -> int:
        """Measuring or quantizing the head: copies of its weights, and the states of all rows."""
        return FLOAT * 8 * self.head_weights + max(2 * self.states, 2 * FLOAT * self.measured * self.hidden)

    def logits(self) -> int:
        """Comparing two models' predictions."""
        return FLOAT * (4 * self.head_weights + 6 * LOGITS_AT_ONCE * self.vocab)

    def refined_layer(self) -> int:
        """A block twice, the states of two streams before and after it."""
        return FLOAT * 2 * self.block + 4 * self.states + self.running + self.solving

    def tuning(self) -> int:
        batches = Schedule().batches(self.spec.rows, self.spec.length)
        together = len(batches[0]) * self.spec.length if batches else 0
        held = self.model.decoder_weights if self.is_small else self.block
        inputs = together * self.hidden * (self.config.num_hidden_layers + 4)
        logits = 6 * LOGITS_AT_ONCE * self.vocab
        backward = self.backward * together // self.at_once
        return FLOAT * (held + 3 * self.head_weights + inputs + logits) + backward + self.states

    def classic_layer(self) -> int:
        return FLOAT * self.block + 5 * self.states + self.running + self.solving

    def refined_measure(self) -> list[int]:
        """The head's gradient row by row; a block backward, with what its linears see and get back, of all tokens."""
        streams = 3 * FLOAT * self.measured * self.hidden
        seen = 2 * self.hidden + self.config.query_size + self.ffn
        traces = FLOAT * self.measured * (seen + self.outputs)
        judged = FLOAT * 2 * self.measured * max(self.hidden, self.ffn)
        return [
            FLOAT * (2 * self.head_weights + 5 * self.spec.measure_length * self.vocab) + streams,
            FLOAT * self.block + traces + streams + max(self.backward, self.solving + judged),
        ]

    def classic_measure(self) -> int:
        weights = (FLOAT + 2 * CLASSIC_RECIPES) * self.block
        return weights + 6 * self.measured * self.hidden + self.running + self.solving

    def self_text(self) -> int:
        copies = 1 if self.config.tie_word_embeddings else 2
        weights = FLOAT * (self.model.decoder_weights + copies * self.head_weights)
        return weights + cache_bytes(self.config, self.spec)


def disk_needs(request: ConvertRequest, model: SourceModel, spec: CalibrationSpec) -> tuple[int, int]:
    """Bytes of the job's own files at their peak, and of all finished models."""
    layers, hidden = model.config.num_hidden_layers, model.config.hidden_size
    head = model.config.vocab_size * hidden
    stored = [int(bits * model.decoder_weights / 8) for bits in request.bits]
    outer = head * 2 + head_recipe(request.head_bits or 6).total_bits(hidden, model.config.vocab_size) // 8
    measured = 2 * spec.measure_rows * spec.measure_length * hidden
    refined = request.recipe == "refined"
    measuring = 0 if request.measurement is not None else measured * ((layers + 4) if refined else 2)
    # Old states are deleted only when the new ones are safe; finished layers lie beside the model made of them.
    quantizing = 2 * spec.rows * spec.length * hidden * (4 if refined else 2) + max(stored) + outer
    if request.measure_to is not None:
        return measuring, 0
    return max(measuring, quantizing), sum(stored) + outer * len(stored)


def require_room(found: JobEstimate, request: ConvertRequest, model: SourceModel, spec: CalibrationSpec) -> None:
    """Raises MemoryLimitError, with the numbers and what to change, if the job cannot fit.

    What a resumed job has written already counts as free.
    """
    if found.available_memory and found.peak_memory > found.available_memory:
        raise MemoryLimitError(
            f"this conversion needs about {size_of(found.peak_memory)} of memory, "
            f"{size_of(found.available_memory)} are free",
            hint="Use fewer or shorter calibration rows (-r, -l, -mr, -ml), or close other programs.",
        )
    work = Path(request.work)
    _require_disk(work, found.disk, _bytes_in(work))
    output = targets(request)[0]
    if existing(output).stat().st_dev != existing(work).stat().st_dev:
        _require_disk(output, disk_needs(request, model, spec)[1], _bytes_in(output))


def existing(folder: Path) -> Path:
    """The folder itself, or the nearest above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def _require_disk(folder: Path, needed: int, used: int) -> None:
    free = shutil.disk_usage(existing(folder)).free
    if needed > free + used:
        raise MemoryLimitError(
            f"this conversion needs about {size_of(needed - used)} of disk here, {size_of(free)} are free",
            file=folder,
            hint="Free some space, or choose a directory on another disk.",
        )


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
