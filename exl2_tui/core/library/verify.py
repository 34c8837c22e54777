"""Is a model what it should be: hashes of its files, shapes against its config, every number finite.

Reads every byte twice, once for the hashes and once for the numbers; nothing is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.checkpoint.checksums import SUMS_FILE, file_pieces, known_hash, new_digest, read_sums
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import CheckpointError, Exl2Error
from exl2_tui.core.events import Event
from exl2_tui.core.model.layout import EMBEDDING, FINAL_NORM, LinearSpec, layer_norms, model_linears
from exl2_tui.core.model.weights import linear_names, read_linear, read_matrix, read_norm, take_inventory
from exl2_tui.core.model_events import FileCheck, FileVerdict, ModelVerified, TensorFault, VerifyProgress
from exl2_tui.core.tokenizer import Tokenizer

STEP_VALUES = 4 << 20  # looked at between two tests of the cancel token
MOST_FAULTS = 500  # a hostile file may have a quarter of a million bad tensors
FLOATS = {"F16", "BF16", "F32"}


def verify(path: Path, name: str, cancel: CancelToken) -> Iterator[Event]:
    """VerifyProgress..., then ModelVerified, which tells all faults. Raises CancelledError; OSError becomes a fault."""
    started = time.perf_counter()
    check = _Check(path, cancel)
    yield from check.files()
    yield from check.contents()
    faults = check.faults
    if len(faults) > MOST_FAULTS:
        faults = [*faults[:MOST_FAULTS], TensorFault("", f"and {len(faults) - MOST_FAULTS} more")]
    yield ModelVerified(
        path=str(path),
        name=name,
        files=tuple(check.checked),
        faults=tuple(faults),
        tensors=check.tensors,
        values=check.values,
        seconds=time.perf_counter() - started,
    )


class _Check:
    """One run; collects what it finds."""

    def __init__(self, path: Path, cancel: CancelToken) -> None:
        self._path = path
        self._cancel = cancel
        self._sums = read_sums(path)
        self._files = sorted(
            file for file in path.iterdir() if not file.name.startswith(".") and file.name != SUMS_FILE
        )
        self._files = [file for file in self._files if file.is_file() or file.is_symlink()]
        sizes = {file: _size(file) for file in self._files}
        hashed = sum(size for file, size in sizes.items() if known_hash(file, self._sums) is not None)
        self._total = hashed + sum(size for file, size in sizes.items() if file.suffix == ".safetensors")
        self._done = 0
        self.checked: list[FileCheck] = []
        self.faults: list[TensorFault] = []
        self.tensors = 0
        self.values = 0

    def files(self) -> Iterator[Event]:
        """Hashes every file whose hash is known."""
        for file in self._files:
            known = known_hash(file, self._sums)
            size = _size(file)
            if known is None:
                self.checked.append(FileCheck(file.name, size, "unknown", "no hash to compare with"))
                continue
            digest = new_digest(known.kind, size)
            try:
                for piece in file_pieces(file, self._cancel):
                    digest.update(piece)
                    self._done += len(piece)
                    yield self._progress(f"hash of {file.name}")
            except OSError as error:
                self.checked.append(FileCheck(file.name, size, "damaged", f"cannot be read: {error.strerror}"))
                continue
            found = digest.hexdigest()
            verdict: FileVerdict = "ok" if found == known.value else "damaged"
            note = known.origin
            if verdict == "damaged":
                note = f"expected {known.value[:12]}… by {known.origin}, found {found[:12]}…"
            self.checked.append(FileCheck(file.name, size, verdict, note))
        absent = self._sums.keys() - {file.name for file in self._files}
        for name in sorted(absent):
            self.checked.append(FileCheck(name, 0, "damaged", f"{SUMS_FILE} names it, but it is not here"))

    def contents(self) -> Iterator[Event]:
        """Shapes by the config, then every tensor's numbers, then the tokenizer."""
        try:
            config = ModelConfig.from_dir(self._path)
            checkpoint = Checkpoint.open(self._path)
        except Exl2Error as error:
            self._fault(error)
            return
        with checkpoint:
            self._done += sum(map(_size, checkpoint.files)) - checkpoint.weight_bytes  # the headers are read by now
            inventory = take_inventory(checkpoint, config)
            self.faults += [TensorFault(tensor, "is missing") for tensor in inventory.missing]
            missing = set(inventory.missing)
            for spec in model_linears(config):
                self._cancel.check()
                if f"{spec.prefix}.weight" not in missing:
                    self._shape_of_linear(checkpoint, spec)
            self._shapes_of_vectors(checkpoint, config, missing)
            for tensor in checkpoint.names:
                yield from self._numbers(checkpoint, tensor)
        try:
            Tokenizer.load(self._path)
        except Exl2Error as error:
            self._fault(error)

    def _shape_of_linear(self, checkpoint: Checkpoint, spec: LinearSpec) -> None:
        try:
            read_linear(checkpoint, spec)
        except Exl2Error as error:
            self._fault(error, spec.prefix)
        for name in linear_names(checkpoint, spec):
            checkpoint.release(name)

    def _shapes_of_vectors(self, checkpoint: Checkpoint, config: ModelConfig, missing: set[str]) -> None:
        try:
            if EMBEDDING not in missing:
                read_matrix(checkpoint, EMBEDDING, config.vocab_size, config.hidden_size)
        except Exl2Error as error:
            self._fault(error, EMBEDDING)
        norms = {FINAL_NORM: (1, config.hidden_size)}
        for layer in range(config.num_hidden_layers):
            norms.update(layer_norms(config, layer))
        for name, (heads, size) in norms.items():
            if name in missing:
                continue
            try:
                read_norm(checkpoint, name, heads, size)
            except Exl2Error as error:
                self._fault(error, name)

    def _numbers(self, checkpoint: Checkpoint, name: str) -> Iterator[Event]:
        info = checkpoint.info(name)
        self.tensors += 1
        if info.dtype in FLOATS and info.nbytes:
            try:
                tensor = checkpoint.tensor(name).reshape(-1)
            except CheckpointError as error:
                self._fault(error, name)
                return
            bad = [0, 0, 0]
            for start in range(0, tensor.numel(), STEP_VALUES):
                self._cancel.check()
                piece = tensor[start : start + STEP_VALUES]
                bad = [have + more for have, more in zip(bad, _not_finite(piece), strict=True)]
                self.values += piece.numel()
                self._done += piece.numel() * piece.element_size()
                yield self._progress(name)
            checkpoint.release(name)
            if any(bad):
                kinds = ("NaN", "infinity", "-infinity")
                found = ", ".join(f"{count:,} x {kind}" for count, kind in zip(bad, kinds, strict=True) if count)
                self.faults.append(TensorFault(name, f"{found} among {tensor.numel():,} values"))
        else:
            self._done += info.nbytes
            yield self._progress(name)

    def _progress(self, what: str) -> VerifyProgress:
        return VerifyProgress(str(self._path), min(self._done, self._total), self._total, what)

    def _fault(self, error: Exl2Error, tensor: str = "") -> None:
        where = f"{Path(error.file).name}: " if error.file and not error.tensor else ""
        self.faults.append(TensorFault(error.tensor or tensor, where + error.message))


def _not_finite(piece: Tensor) -> tuple[int, int, int]:
    """How many NaN, infinity and -infinity."""
    if bool(torch.isfinite(piece).all()):
        return 0, 0, 0
    return int(piece.isnan().sum()), int(piece.isposinf().sum()), int(piece.isneginf().sum())


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
