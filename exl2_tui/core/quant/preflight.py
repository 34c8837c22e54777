"""What would make a conversion fail later, found before it starts: directories, the source, bitrates out of reach."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from exl2_tui.core.errors import JobError, QuantizationError
from exl2_tui.core.model.layout import LinearSpec, head_linear
from exl2_tui.core.quant.classic import ROUNDED_HEAD
from exl2_tui.core.quant.dataset import read_records
from exl2_tui.core.quant.recipe import QParams, classic_attention_options, classic_mlp_options
from exl2_tui.core.quant.refined import CANDIDATES
from exl2_tui.core.quant.source import SourceModel
from exl2_tui.core.requests import ConvertRequest, RecipeName

WHOLE_FILE = 64 << 20
"""Files up to this size are hashed whole, of larger ones SAMPLES pieces: a look at 140 GB would take minutes."""
SAMPLES = 64
SAMPLE_BYTES = 256 << 10
_SOURCE_FILES = ("*.json", "*.safetensors", "tokenizer.model")


def targets(request: ConvertRequest) -> list[Path]:
    """The directory of every model that is asked for, in the order of the bitrates: "nano-chat-4bpw" in the work
    directory, unless the request names another place."""
    if request.output is None:
        name = Path(request.source).name or "model"
        return [Path(request.work) / f"{name}-{bits:g}bpw" for bits in request.bits]
    if len(request.bits) == 1:
        return [Path(request.output)]
    return [Path(request.output) / f"{bits:g}bpw" for bits in request.bits]


def require_places(request: ConvertRequest) -> None:
    """Raises JobError unless everything can be written where the request says."""
    source, work = Path(request.source), Path(request.work)
    for place in (work, *targets(request)):
        if place == source or source in place.parents:
            raise JobError(
                "the conversion would write into the model it reads", file=place, hint="Choose another directory."
            )
    for target in targets(request):
        require_writable(target)
    if request.measure_to is not None:
        require_writable(Path(request.measure_to).parent)


def require_free(target: Path, claimed: Sequence[str]) -> None:
    """Raises JobError if the directory of a model holds another one. Those in `claimed`, which this job wrote, it may
    replace."""
    if str(target) in claimed or not target.is_dir():
        return
    found = next((file.name for file in target.iterdir() if file.name == "config.json" or _is_tensors(file)), None)
    if found is not None:
        raise JobError(
            f"the output directory already holds a model ({found})",
            file=target,
            hint="Choose an empty directory, or remove that model.",
        )


def require_kept(request: ConvertRequest) -> None:
    """Raises JobError if starting anew would delete what the new job is to read."""
    if request.measurement is not None and Path(request.work) in Path(request.measurement).parents:
        raise JobError(
            "starting anew deletes this directory's measurement, which is to be reused",
            file=request.measurement,
            hint="Copy it to another place first, or use another work directory.",
        )


def require_own(work: Path) -> None:
    """Raises JobError if a directory without a job holds a model: a job's files do not belong beside it."""
    found = next((file.name for file in work.iterdir() if file.name == "config.json" or _is_tensors(file)), None)
    if found is not None:
        raise JobError(
            f"the work directory already holds something else ({found})", file=work, hint="Choose an empty directory."
        )


def require_writable(folder: Path) -> None:
    """Raises JobError unless a file can be made in this directory, or in the nearest above it that exists."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not existing.is_dir():
        raise JobError("this is a file, but a directory is needed here", file=existing, hint="Choose another place.")
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".exl2-tui-"):
            pass
    except OSError as error:
        raise JobError(
            f"nothing can be written here ({error.strerror})",
            file=existing,
            hint="Choose another place, or make it writable.",
        ) from None


def fingerprint(source: Path) -> dict[str, str]:
    """What identifies the files of a model: a hash by name."""
    files = sorted({file for pattern in _SOURCE_FILES for file in source.glob(pattern)})
    try:
        return {file.name: _hash(file) for file in files}
    except OSError as error:
        raise JobError(f"the model cannot be read ({error.strerror})", file=error.filename or source) from None


def require_unchanged(stored: Mapping[str, str], found: Mapping[str, str], source: Path) -> None:
    """Raises JobError, naming the file, if the source is no longer the model that the job began with."""
    changed = sorted(name for name in {*stored, *found} if stored.get(name) != found.get(name))
    if changed:
        what = "is gone" if changed[0] not in found else "is new" if changed[0] not in stored else "has changed"
        raise JobError(
            f"this file of the model {what} since the conversion began",
            file=source / changed[0],
            hint="Put the original files back, or start anew with -nr.",
        )


def require_reachable(recipe: RecipeName, bits: Sequence[float], model: SourceModel) -> None:
    """Raises QuantizationError for a target below the smallest size that any measurement could lead to."""
    linears = model.decoder_linears()
    least = sum(
        min(params.total_bits(spec.in_features, spec.out_features) for params in _tried(recipe, spec))
        for spec in linears
    )
    weights = sum(spec.in_features * spec.out_features for spec in linears)
    if least > int(min(bits) * weights):
        raise QuantizationError(
            f"{min(bits):g} bits per weight are fewer than this model can have",
            hint=f"With scales and permutations its smallest size is {least / weights + 0.005:.2f} bits per weight.",
        )


def require_calibration(request: ConvertRequest) -> None:
    """Raises JobError if not even the first record of the calibration file can be read."""
    if request.calibration is not None:
        next(read_records(Path(request.calibration), request.column), None)


def require_head(request: ConvertRequest, model: SourceModel) -> None:
    """Raises QuantizationError if the head's bits are to be chosen, but the head is one that is only rounded."""
    head = head_linear(model.config)
    weights = head.in_features * head.out_features
    if request.head_bits is None and weights > ROUNDED_HEAD:
        raise QuantizationError(
            f"an output head of {weights / 1e9:.1f} billion weights is too large to measure what its bits are worth",
            tensor=f"{head.prefix}.weight",
            hint="Give the head's bits (-hb 6).",
        )


def _tried(recipe: RecipeName, linear: LinearSpec) -> Sequence[QParams]:
    if recipe == "refined":
        return CANDIDATES
    short = linear.prefix.rsplit(".", 1)[1]
    options = classic_attention_options() if ".self_attn." in linear.prefix else classic_mlp_options()
    return [option[short] for option in options]


def _is_tensors(file: Path) -> bool:
    return file.suffix in (".safetensors", ".gguf", ".bin")


def _hash(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        digest.update(size.to_bytes(8, "little"))
        whole = size <= WHOLE_FILE
        count = -(-size // SAMPLE_BYTES) if whole else SAMPLES
        for index in range(count):
            stream.seek(index * SAMPLE_BYTES if whole else index * (size - SAMPLE_BYTES) // (SAMPLES - 1))
            digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()
