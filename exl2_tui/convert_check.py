"""What the disk says about a conversion that is being set up. Used on a thread of jobs_service.py only."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from exl2_tui.convert_draft import AUTO, OFFERED_BITS, ConvertDraft, absolute, make_request, parse_bits, problems
from exl2_tui.core.errors import ConfigError, Exl2Error
from exl2_tui.core.job_events import ConvertChecked, FieldNote, JobEstimate
from exl2_tui.core.requests import ConvertRequest
from exl2_tui.core.sizes import size_of
from exl2_tui.settings import data_dir

if TYPE_CHECKING:
    from exl2_tui.core.quant.source import SourceModel

LOADED_CONTEXT = 8192
CALIBRATION_KINDS = (".txt", ".md", ".jsonl", ".json", ".parquet")


def check(draft: ConvertDraft, token: int) -> ConvertChecked:
    """Everything that can be found out before starting. Raises nothing for what a person can get wrong."""
    notes = list(problems(draft))
    source = absolute(draft.source)
    if source is None:
        return ConvertChecked(token, (FieldNote("source", "info", "Choose a model, or type its folder"), *notes))
    from exl2_tui.core.quant.source import SourceModel

    try:
        import torch

        if not Path(source).is_dir():
            raise ConfigError("There is no such folder")
        model = SourceModel(Path(source), torch.device("cpu"))
    except Exl2Error as error:
        return ConvertChecked(token, (FieldNote("source", "error", _sentence(error)), *notes))
    try:
        model.require_float()
        notes += _about_tokenizer(Path(source))
        notes += _about_files(draft, model)
        facts, size = _facts(model), model.checkpoint.weight_bytes
        sizes = _sizes(draft, model)
        estimate, loads = None, _loads(draft, model)
        earlier = "" if draft.measurement.strip() else earlier_measurement(draft, model)
        if earlier:
            notes.append(FieldNote("measurement", "info", f"One of this model is in {Path(earlier).parent.name}"))
        if not any(note.level == "error" and note.field in ("bits", "head_bits", "rows", "length") for note in notes):
            request = make_request(draft)
            notes += _about_head(request, model)
            estimate = _estimate(request, model)
            notes += _about_room(request, estimate)
        return ConvertChecked(token, tuple(notes), facts, size, sizes, estimate, loads, earlier)
    except Exl2Error as error:
        return ConvertChecked(token, (FieldNote("source", "error", _sentence(error)), *notes))
    finally:
        model.close()


def _facts(model: SourceModel) -> str:
    """Such as "Llama, 8 layers, 9.4 M weights, 24.4 MB"."""
    config = model.config
    family = config.architecture.removesuffix("ForCausalLM")
    weights = model.decoder_weights + config.vocab_size * config.hidden_size
    return f"{family}, {config.num_hidden_layers} layers, {_count(weights)} weights, vocabulary {config.vocab_size:,}"


def _sizes(draft: ConvertDraft, model: SourceModel) -> tuple[tuple[float, int], ...]:
    """Bytes of the finished model for every offered bitrate and those asked for."""
    try:
        asked = parse_bits(draft.bits)
    except ConfigError:
        asked = ()
    return tuple((bits, finished_bytes(model, bits, draft.fixed_head_bits)) for bits in sorted({*OFFERED_BITS, *asked}))


def _loads(draft: ConvertDraft, model: SourceModel) -> tuple[int, int] | None:
    """What the largest model asked for takes on this machine, with a context people use; None: nothing is asked."""
    from exl2_tui.core.library.machine import this_machine
    from exl2_tui.core.model.footprint import Footprint

    try:
        largest = max(parse_bits(draft.bits))
    except ConfigError:
        return None
    config = model.config
    embedding = config.vocab_size * config.hidden_size
    numbers = Footprint.of(
        config,
        packed=finished_bytes(model, largest, draft.fixed_head_bits),
        embedding=2 * embedding,
        elements=model.decoder_weights + 2 * embedding,
    )
    machine = this_machine()
    context = min(LOADED_CONTEXT, config.max_position_embeddings)
    return context, numbers.at(context, "fp16", machine.backend, machine.available).total


def earlier_measurement(draft: ConvertDraft, model: SourceModel) -> str:
    """The newest finished measurement that a conversion of this model with this recipe has left, "" without one."""
    from exl2_tui.core.quant.registry import jobs
    from exl2_tui.core.quant.workdir import MEASUREMENT

    own = absolute(draft.work)
    for job in reversed(jobs(data_dir())):
        measured = job.stage not in ("damaged", "calibrate", "measure") and job.path != own
        if not measured or job.recipe != draft.recipe or absolute(job.source) != absolute(draft.source):
            continue
        file = Path(job.path) / MEASUREMENT
        if file.is_file() and _about_measurement(file, draft, model).level == "ok":
            return str(file)
    return ""


def finished_bytes(model: SourceModel, bits: float, head_bits: int | None) -> int:
    """Decoder at `bits`, head by its recipe (None: as large as with 6 bits), embedding and norms in float16."""
    from exl2_tui.core.model.layout import head_linear
    from exl2_tui.core.quant.recipe import head_recipe

    head = head_linear(model.config)
    stored = head_recipe(head_bits or 6).total_bits(head.in_features, -(-head.out_features // 32) * 32)
    halves = model.config.hidden_size * (model.config.vocab_size + 2 * model.config.num_hidden_layers + 1)
    return int(model.decoder_weights * bits / 8) + stored // 8 + 2 * halves


def _about_tokenizer(source: Path) -> Iterator[FieldNote]:
    if not any((source / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        yield FieldNote(
            "source", "error", "It has no tokenizer (tokenizer.json or tokenizer.model), calibration needs one"
        )


def _about_files(draft: ConvertDraft, model: SourceModel) -> Iterator[FieldNote]:
    """Calibration and measurement: there, readable, and for this model."""
    calibration, measurement = absolute(draft.calibration), absolute(draft.measurement)
    if calibration is not None:
        file = Path(calibration)
        if not file.is_file():
            yield FieldNote("calibration", "error", "There is no such file")
        elif file.suffix.lower() not in CALIBRATION_KINDS:
            yield FieldNote("calibration", "warning", f"Expected one of {', '.join(CALIBRATION_KINDS)}; read as text")
        else:
            yield FieldNote("calibration", "ok", size_of(file.stat().st_size))
    if measurement is not None:
        yield _about_measurement(Path(measurement), draft, model)


def _about_head(request: ConvertRequest, model: SourceModel) -> Iterator[FieldNote]:
    from exl2_tui.core.quant.preflight import require_head

    try:
        require_head(request, model)
    except Exl2Error as error:
        yield FieldNote("head_bits", "error", _sentence(error))


def _about_measurement(file: Path, draft: ConvertDraft, model: SourceModel) -> FieldNote:
    from exl2_tui.core.model.layout import HEAD
    from exl2_tui.core.quant.measurement import Measurement

    try:
        found = Measurement.read(file)
        if draft.recipe == "classic" or not found.linears:
            found.require_halves(model.config.num_hidden_layers, file)
        elif missing := [spec.prefix for spec in model.decoder_linears() if spec.prefix not in found.linears]:
            return FieldNote("measurement", "error", f"It is of another model: {missing[0]} is missing")
        if draft.head_bits == AUTO and HEAD not in found.linears:
            return FieldNote("measurement", "error", "It does not say what head bits are worth. Pick a number.")
    except Exl2Error as error:
        return FieldNote("measurement", "error", _sentence(error))
    return FieldNote("measurement", "ok", "It fits this model, so measuring is skipped")


def _about_room(request: ConvertRequest, estimate: JobEstimate | None) -> Iterator[FieldNote]:
    """Work and output folders: free, writable and large enough; memory enough."""
    yield _about_work(request, estimate)
    if request.output is not None:
        yield _about_output(Path(request.output))
    if estimate is not None and estimate.available_memory and estimate.peak_memory > estimate.available_memory:
        needs = f"Needs {size_of(estimate.peak_memory)} of memory, {size_of(estimate.available_memory)} free"
        yield FieldNote("rows", "error", f"{needs}. Fewer or shorter rows need less.")


def _about_work(request: ConvertRequest, estimate: JobEstimate | None) -> FieldNote:
    from exl2_tui.core.quant.registry import summarize

    work = Path(request.work)
    if blocked := _file_in_the_way(work):
        return FieldNote("work", "error", blocked)
    parent = _existing(work)
    if not os.access(parent, os.W_OK):
        return FieldNote("work", "error", f"{parent} cannot be written")
    free = shutil.disk_usage(parent).free
    if estimate is not None and estimate.disk > free:
        return FieldNote(
            "work", "error", f"Needs {size_of(estimate.disk)} here, {size_of(free)} free. Pick another disk."
        )
    found = summarize(work) if work.is_dir() else None
    if found is not None:
        from exl2_tui.core.quant.job import stored_request

        if found.problem:
            return FieldNote("work", "error", f"There is a damaged job in it: {found.problem}")
        stored = stored_request(work)
        if stored != request:
            return FieldNote("work", "error", "Another conversion has its files here. Pick another folder.", taken=True)
        if found.stage == "done":
            return FieldNote("work", "error", "This conversion is finished. Pick another folder.", taken=True)
        return FieldNote("work", "warning", f"Goes on with the conversion in it ({found.stage}, step {found.step})")
    if work.is_dir() and any(work.iterdir()):
        return FieldNote("work", "warning", f"The folder is not empty; {size_of(free)} free")
    return FieldNote("work", "ok", f"{size_of(free)} free")


def _about_output(output: Path) -> FieldNote:
    if blocked := _file_in_the_way(output):
        return FieldNote("output", "error", blocked)
    if not os.access(_existing(output), os.W_OK):
        return FieldNote("output", "error", f"{_existing(output)} cannot be written")
    if output.is_dir() and any(output.iterdir()):
        return FieldNote("output", "error", "The folder is not empty. Pick a new one.", taken=True)
    return FieldNote("output", "ok", "It will be made" if not output.exists() else "It is empty")


def _estimate(request: ConvertRequest, model: SourceModel) -> JobEstimate:
    """The core's forecast, with what it takes where nothing is asked for."""
    from exl2_tui.core.quant.forecast import forecast
    from exl2_tui.core.quant.rows import calibration_spec

    spec = calibration_spec(request, model.config.max_position_embeddings)
    return forecast(request, model, spec, request.work)


def _file_in_the_way(path: Path) -> str:
    """What to say if a folder cannot be there because of a file; "" if it can."""
    file = next((part for part in (path, *path.parents) if part.is_file()), None)
    return "" if file is None else f"{file.name} is a file, not a folder"


def _existing(path: Path) -> Path:
    """The deepest folder on the way to `path` that exists."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _sentence(error: Exl2Error) -> str:
    """An error without the path, which the field above it shows."""
    text = error.message[:1].upper() + error.message[1:] + (f". {error.hint}" if error.hint else "")
    return f"{text} ({error.tensor})" if error.tensor else text


def _count(number: float) -> str:
    return f"{number / 1e9:.1f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"
