"""What a conversion will take: peak memory, disk and time, from the shapes alone, before anything is started."""

from __future__ import annotations

import shutil
from pathlib import Path

from exl2_tui.core.errors import MemoryLimitError
from exl2_tui.core.events import JobEstimate
from exl2_tui.core.model.memory import available_memory
from exl2_tui.core.quant import selftext
from exl2_tui.core.quant.calibration import CalibrationSpec
from exl2_tui.core.quant.halves import TOKENS_AT_ONCE
from exl2_tui.core.quant.machine import measured_speed
from exl2_tui.core.quant.plan import make_plan
from exl2_tui.core.quant.preflight import targets
from exl2_tui.core.quant.recipe import head_recipe
from exl2_tui.core.quant.rows import cache_bytes
from exl2_tui.core.quant.source import LOGITS_AT_ONCE, SourceModel
from exl2_tui.core.quant.tune import Schedule
from exl2_tui.core.requests import ConvertRequest

BASE_MEMORY = 330 << 20
"""Python and torch themselves."""
UNUSED = 1.1
"""What the allocator holds for every byte in use."""
FLOAT = 4


def forecast(request: ConvertRequest, model: SourceModel, spec: CalibrationSpec, job: str) -> JobEstimate:
    """The estimate for a job with these calibration rows; sizes in bytes."""
    seconds = make_plan(request, model, spec, measured_speed(str(model.device))).seconds
    work, models = disk_needs(request, model, spec)
    folder, output = existing(Path(request.work)), existing(targets(request)[0])
    together = folder.stat().st_dev == output.stat().st_dev
    disk = work + models if together else work
    free = shutil.disk_usage(folder).free
    return JobEstimate(job, peak_memory(request, model, spec), available_memory() or 0, disk, free, seconds)


def peak_memory(request: ConvertRequest, model: SourceModel, spec: CalibrationSpec) -> int:
    """The most that is resident at once, in bytes: the largest of what the stages need."""
    config = model.config
    hidden, length = config.hidden_size, spec.length
    block = [linear for linear in model.decoder_linears() if linear.prefix.startswith("model.layers.0.")]
    weights = sum(linear.in_features * linear.out_features for linear in block)
    widest = max(linear.in_features for linear in block)
    largest = max(linear.in_features * linear.out_features for linear in block)
    head = config.vocab_size * hidden
    refined = request.recipe == "refined"
    states = 2 * spec.rows * length * hidden  # of all rows, float16
    measured = spec.measure_rows * spec.measure_length
    at_once = max(TOKENS_AT_ONCE, length)
    running = FLOAT * at_once * (6 * hidden + 4 * config.intermediate_size)
    solving = FLOAT * (7 * widest * widest + 8 * largest)

    stages = [
        FLOAT * (7 if refined else 5) * head + 2 * states,
        FLOAT * (3 * head + 6 * LOGITS_AT_ONCE * config.vocab_size),
    ]
    if refined:
        stages.append(FLOAT * 2 * weights + 4 * states + running + solving)
        batches = Schedule().batches(spec.rows, length)
        together = len(batches[0]) * length if batches else 0
        held = model.decoder_weights if model.decoder_weights <= selftext.LARGEST_MODEL else weights
        stages.append(FLOAT * (held + 3 * head + together * hidden * (config.num_hidden_layers + 16)))
    else:
        stages.append(FLOAT * weights + 3 * states + running + solving)
    if request.measurement is None and refined:
        traces = FLOAT * measured * sum(linear.in_features + linear.out_features for linear in block)
        # Twice: the traces of all batches are joined while their parts are still there.
        stages.append(FLOAT * weights + 2 * traces + 3 * FLOAT * measured * hidden + running)
        stages.append(FLOAT * (2 * head + 4 * spec.measure_length * config.vocab_size + 2 * measured * hidden))
    elif request.measurement is None:
        stages.append(FLOAT * weights + 2 * _classic_candidates() * weights + 6 * measured * hidden + running + solving)
    if request.calibration is None and model.decoder_weights <= selftext.LARGEST_MODEL:
        copies = 1 if config.tie_word_embeddings else 2
        stages.append(FLOAT * (model.decoder_weights + copies * head) + cache_bytes(config, spec))
    return BASE_MEMORY + int(UNUSED * max(stages))


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
            f"this conversion needs about {_gib(found.peak_memory)} of memory, {_gib(found.available_memory)} are free",
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
            f"this conversion needs about {_gib(needed - used)} of disk here, {_gib(free)} are free",
            file=folder,
            hint="Free some space, or choose a directory on another disk.",
        )


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _classic_candidates() -> int:
    """Quantized copies of a linear that the classic measurement holds, float16."""
    return 14
