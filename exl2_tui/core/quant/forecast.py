"""What a conversion will take: peak memory, disk and time, from the shapes alone, before anything is started."""

from __future__ import annotations

import shutil
from pathlib import Path

from exl2_tui.core.errors import MemoryLimitError
from exl2_tui.core.events import JobEstimate
from exl2_tui.core.model.memory import available_memory
from exl2_tui.core.quant import selftext
from exl2_tui.core.quant.calibration import CalibrationSpec
from exl2_tui.core.quant.recipe import head_recipe
from exl2_tui.core.quant.source import SourceModel
from exl2_tui.core.quant.tune import Schedule
from exl2_tui.core.requests import ConvertRequest

BASE_MEMORY = 400 << 20
"""Python and torch themselves."""
MATRICES_PER_SOLVE = 8
"""Copies of the Hessian (K, K) and of the weight (K, N) that exist at once while a linear is solved."""
SPEED = {"cpu": 4e10, "cuda": 2e13}
"""Floating-point operations per second that a job sustains on two cores or a data-centre GPU: within a factor of 3."""
PASSES = {"classic": (21, 2), "refined": (5, 5)}
"""Forward passes of a block while measuring and while quantizing; a backward pass counts as two, the sums of second
moments as another two of the refined recipe's five."""
TUNE_PASSES = 3
"""The same for a step of tuning: twice forward, and back to the inputs only."""
SOLVES = {"classic": 14, "refined": 25}
"""Candidates per linear while measuring."""


def forecast(request: ConvertRequest, model: SourceModel, spec: CalibrationSpec, job: str) -> JobEstimate:
    """The estimate for a job with these calibration rows; sizes in bytes."""
    rows, measure_rows, length = spec.rows, spec.measure_rows, spec.length
    config = model.config
    layers, hidden = config.num_hidden_layers, config.hidden_size
    block = [linear for linear in model.decoder_linears() if linear.prefix.startswith("model.layers.0.")]
    block_weights = sum(linear.in_features * linear.out_features for linear in block)
    widest, largest = (
        max(linear.in_features for linear in block),
        max(linear.in_features * linear.out_features for linear in block),
    )
    refined = request.recipe == "refined"
    states = rows * length * hidden * 2 * (4 if refined else 2)
    copies = 2 if refined else 1 + SOLVES["classic"] // 2
    solving = 4 * MATRICES_PER_SOLVE * (widest * widest + largest)
    head = config.vocab_size * hidden
    writing = 0
    if request.calibration is None and model.decoder_weights <= selftext.LARGEST_MODEL:
        writing = 4 * (model.decoder_weights + 2 * head)
    heads = 4 * (6 if refined else 4) * head + states
    batches = Schedule().batches(rows, length) if refined else []
    at_once = len(batches[0]) * length if batches else 0
    held = model.decoder_weights if model.decoder_weights <= selftext.LARGEST_MODEL else block_weights
    tuning = 4 * (held + 3 * head + at_once * hidden * (layers + 16)) if refined else 0
    memory = BASE_MEMORY + max(4 * copies * block_weights + solving + states, heads, writing, tuning)

    stored = [int(bits * model.decoder_weights / 8) for bits in request.bits]
    outer = head * 2 + head_recipe(request.head_bits or 6).total_bits(hidden, config.vocab_size) // 8
    trace = measure_rows * length * hidden * 2 * (layers + 2) if refined and request.measurement is None else 0
    models = sum(stored) + outer * len(stored)
    disk = max(trace, 2 * states) + models + max(stored) + outer
    folder = Path(request.work)
    while not folder.exists():
        folder = folder.parent

    measuring, quantizing = PASSES[request.recipe]
    forward = 2 * block_weights * layers
    solve = sum(2 * linear.in_features**2 * linear.out_features for linear in block) * layers
    if request.measurement is not None:
        measuring, tried = 0, 0
    else:
        tried = SOLVES[request.recipe]
    work = forward * length * (measuring * measure_rows + quantizing * rows * len(request.bits))
    work += solve * (tried + 4 * len(request.bits))
    work += TUNE_PASSES * len(batches) * at_once * len(request.bits) * (forward + 4 * head)
    speed = SPEED["cuda" if model.device.type == "cuda" else "cpu"]
    return JobEstimate(job, memory, available_memory() or 0, disk, shutil.disk_usage(folder).free, work / speed)


def require_room(found: JobEstimate) -> None:
    """Raises MemoryLimitError, saying what to change, if the job cannot fit."""
    if found.available_memory and found.peak_memory > found.available_memory:
        raise MemoryLimitError(
            f"this conversion needs about {found.peak_memory / 2**30:.1f} GiB of memory, "
            f"{found.available_memory / 2**30:.1f} GiB are free",
            hint="Use fewer or shorter calibration rows (--dataset-rows, --length).",
        )
    if found.disk > found.free_disk:
        raise MemoryLimitError(
            f"this conversion needs about {found.disk / 2**30:.1f} GiB of disk, {found.free_disk / 2**30:.1f} are free",
            file=found.job,
            hint="Free some space, or put the work directory on another disk.",
        )
