"""Checkpoint: a model directory as data.

Every *.safetensors file of the directory counts, by its own header; model.safetensors.index.json is looked at only to
explain what is missing, since quantized directories often carry a stale one. Which format a linear layer has is seen
from its tensors alone. What layers a model needs is not known here.
Source: spec/exl2-format.md sections 1 and 2, spec/gptq-format.md section 6.
"""

from __future__ import annotations

import re
from collections.abc import KeysView
from pathlib import Path
from types import TracebackType
from typing import Literal

from torch import Tensor

from exl2_tui.core.checkpoint.gptq_settings import GptqSettings
from exl2_tui.core.checkpoint.header import MAX_HEADER_BYTES, MAX_TENSORS, TensorInfo
from exl2_tui.core.checkpoint.linears import read_linear
from exl2_tui.core.checkpoint.place import TensorPlace
from exl2_tui.core.checkpoint.safetensors import SafetensorsFile, open_file
from exl2_tui.core.errors import CheckpointError, NotFoundError, ShapeError, UnsupportedError
from exl2_tui.core.formats import LinearWeight
from exl2_tui.core.json_keys import read_json_object

Kind = Literal["exl2", "gptq", "float"]

INDEX_FILE = "model.safetensors.index.json"
MAX_FILES = 2000
MAX_INDEX_BYTES = 32 << 20
_DETECTION: tuple[tuple[str, Kind], ...] = (("q_weight", "exl2"), ("qweight", "gptq"), ("weight", "float"))
_OTHER_WEIGHTS = {".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack"}
_CONVERT = (
    'Convert it on a machine that may run its code: python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('OLD', torch_dtype='auto').save_pretrained('NEW', safe_serialization=True)\", then copy the "
    "tokenizer files"
)

_SHAPE_HINT = "config.json and the weights do not belong together"
_INDEXED = re.compile(rb':\s*"([\w.+-]{1,200}\.safetensors)"')


class Checkpoint:
    """An opened model directory. What was read stays after close(). Used by one thread at a time."""

    def __init__(self, path: Path, config: dict[str, object], owners: dict[str, SafetensorsFile]) -> None:
        self.path = path
        self.config = config
        self._owners = owners
        self._files = tuple(dict.fromkeys(owners.values()))
        self._gptq_settings: GptqSettings | None = None

    @classmethod
    def open(cls, path: Path | str) -> Checkpoint:
        """Reads config.json and the headers of all files, nothing else.

        Raises NotFoundError if there is no such directory, UnsupportedError for one in another format, ConfigError and
        CheckpointError for files that are damaged.
        """
        path = Path(path)
        paths = _tensor_files(path)
        config = read_json_object(path / "config.json")
        owners: dict[str, SafetensorsFile] = {}
        header_bytes = 0
        for file in map(open_file, paths):
            header_bytes += file.header_bytes
            if header_bytes > MAX_HEADER_BYTES or len(owners) + len(file.tensors) > MAX_TENSORS:
                limit = f"{MAX_TENSORS} tensors and {MAX_HEADER_BYTES} header bytes"
                raise CheckpointError(f"expected at most {limit}, found more", file=path)
            twice = next((name for name in file.tensors if name in owners), None)
            if twice is not None:
                raise CheckpointError(
                    f"expected each tensor once, found it also in {owners[twice].path.name}",
                    file=file.path,
                    tensor=twice,
                    hint="The directory holds two models or two copies of one; keep the files of one",
                )
            owners.update(dict.fromkeys(file.tensors, file))
        return cls(path, config, owners)

    @property
    def names(self) -> KeysView[str]:
        """Names of all tensors."""
        return self._owners.keys()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold tensors."""
        return tuple(file.path for file in self._files)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(info.nbytes for file in self._files for info in file.tensors.values())

    def __contains__(self, name: object) -> bool:
        return name in self._owners

    def info(self, name: str) -> TensorInfo:
        """Where a tensor lies, its dtype and shape. Raises CheckpointError if there is none of that name."""
        return self._owner(name).tensors[name]

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """The tensor, read into memory of its own. With `shape`, raises CheckpointError for any other.

        Raises CheckpointError if it is missing, UnsupportedError for a dtype no weight has.
        """
        owner = self._owner(name)
        found = owner.tensors[name].shape
        if shape is not None and found != shape:
            raise CheckpointError(
                f"expected shape {list(shape)}, found {list(found)}", file=owner.path, tensor=name, hint=_SHAPE_HINT
            )
        return owner.tensor(name)

    def place(self, name: str) -> TensorPlace:
        """Where the tensor lies in its file, for those who read parts of it. Raises as `tensor`."""
        return self._owner(name).place(name)

    def linear_kind(self, prefix: str) -> Kind | None:
        """The format of the linear layer `prefix` (as "model.layers.0.mlp.up_proj"); None if it has no weights."""
        return next((kind for suffix, kind in _DETECTION if f"{prefix}.{suffix}" in self._owners), None)

    def linear(self, prefix: str, in_features: int, out_features: int, bias: bool | None = None) -> LinearWeight:
        """The layer's tensors, checked against the shape the model expects.

        bias: whether the model has one there; None takes what is found. A bias of zeros that the model does not have
        is left out. Raises CheckpointError for missing or contradicting tensors, UnsupportedError for other layouts.
        """
        if in_features < 1 or out_features < 1:
            raise ShapeError(f"expected a layer of at least 1 x 1, found {in_features} x {out_features}", tensor=prefix)
        kind = self.linear_kind(prefix)
        if kind is None:
            raise self._missing(f"{prefix}.weight", "weight, q_weight (EXL2) or qweight (GPTQ)")
        return read_linear(self, kind, prefix, in_features, out_features, bias)

    @property
    def gptq_settings(self) -> GptqSettings:
        """What the directory says about its GPTQ tensors. Raises UnsupportedError for other programs' layouts."""
        if self._gptq_settings is None:
            self._gptq_settings = GptqSettings.read(self.path, self.config)
        return self._gptq_settings

    def release(self, name: str) -> None:
        """For sources that count what was copied: here there is nothing to give back, what was read is the reader's."""

    def close(self) -> None:
        for file in self._files:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _owner(self, name: str) -> SafetensorsFile:
        if name not in self._owners:
            raise self._missing(name, "this tensor")
        return self._owners[name]

    def _missing(self, name: str, expected: str) -> CheckpointError | UnsupportedError:
        """The error for a tensor that is nowhere, with the most likely reason."""
        settings = self.config.get("quantization_config")
        method = settings.get("quant_method") if isinstance(settings, dict) else None
        if isinstance(method, str) and method not in ("exl2", "gptq"):
            return UnsupportedError(
                f"expected {expected}, found none: the model is quantized with {ascii(method)[:40]}",
                file=self.path,
                tensor=name,
                hint="Use a copy in EXL2, GPTQ or 16-bit floats",
            )
        absent = sorted(_indexed_files(self.path / INDEX_FILE) - {file.path.name for file in self._files})
        hint = None
        if absent:
            shown = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if len(absent) > 3 else "")
            hint = f"{INDEX_FILE} lists files that are not here: {shown}; finish the download"
        return CheckpointError(f"expected {expected}, found none", file=self.path, tensor=name, hint=hint)


def _indexed_files(index: Path) -> set[str]:
    """Files that an index names; empty if there is none to be read. Searched as text: it may be large and hostile."""
    if not index.is_file():
        return set()
    try:
        with index.open("rb") as stream:
            text = stream.read(MAX_INDEX_BYTES)
    except OSError:
        return set()
    names: set[str] = set()
    for match in _INDEXED.finditer(text):
        names.add(match.group(1).decode())
        if len(names) > MAX_FILES:
            break
    return names


def _tensor_files(directory: Path) -> list[Path]:
    """The directory's *.safetensors files by name; explains what is there if there are none."""
    try:
        entries = sorted(directory.iterdir())
    except FileNotFoundError as error:
        raise NotFoundError("there is no such model directory", file=directory) from error
    except NotADirectoryError as error:
        hint = f"Name the directory {directory.parent}" if directory.suffix == ".safetensors" else None
        raise UnsupportedError("expected a model directory, found a file", file=directory, hint=hint) from error
    except OSError as error:
        raise CheckpointError(f"cannot read the directory: {error.strerror or error}", file=directory) from error
    paths = [entry for entry in entries if entry.suffix == ".safetensors" and not entry.name.startswith(".")]
    if len(paths) > MAX_FILES:
        raise CheckpointError(f"expected at most {MAX_FILES} files of weights, found {len(paths)}", file=directory)
    if paths:
        return paths
    others = [entry for entry in entries if entry.suffix in _OTHER_WEIGHTS]
    if not others:
        hint = "Name the directory that holds config.json and the *.safetensors files"
        raise CheckpointError("expected *.safetensors files, found none", file=directory, hint=hint)
    if others[0].suffix in (".gguf", ".ggml"):
        message, hint = "GGUF files are not supported", "Use the original model or a copy in EXL2 or GPTQ"
    else:
        message, hint = "pickled weights are not read: opening them runs code from the file", _CONVERT
    raise UnsupportedError(f"expected *.safetensors, found {others[0].suffix}: {message}", file=others[0], hint=hint)
