"""Where a tensor lies in an open file, for readers that want parts of it, at any time later.

safetensors.py reads whole tensors, and sees to it that the file is still the one that was opened. Who comes back for
parts looks for itself, with what is told here.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from exl2_tui.core.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """descriptor: of the open file, good until the checkpoint is closed; who reads later duplicates it.

    offset: of the first element, in bytes from the start of the file, which need not be a multiple of anything.
    size, modified: of the whole file, in bytes and ns, when its header was read; others mean that somebody wrote to it.
    """

    file: Path
    tensor: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    descriptor: int
    offset: int
    size: int
    modified: int

    def error(self, code: int) -> CheckpointError:
        """Why the tensor cannot be read any more. code: an errno; ESTALE: the file is not the one that was opened."""
        if code == errno.ESTALE:
            return changed(self.file, self.tensor)
        return CheckpointError(
            f"cannot read the file: {os.strerror(code)}",
            file=self.file,
            tensor=self.tensor,
            hint="See that its disk is there, then load the model again",
        )


def changed(file: Path, tensor: str | None = None) -> CheckpointError:
    """The error for a file that was written to, cut short or replaced."""
    return CheckpointError(
        "the file changed after it was opened", file=file, tensor=tensor, hint="Load the model again"
    )
