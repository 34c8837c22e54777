"""Finds and loads the CUDA library, once, and says why it cannot be used where it cannot."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from exl2_tui.core.errors import ExtensionError

OLDEST = (8, 0)
LIBRARY = Path(__file__).resolve().parents[3] / "_C_cuda.so"


@cache
def unavailable() -> str | None:
    """Why models cannot run on a GPU here, or None if they can. Loads the library the first time."""
    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    if not torch.cuda.is_available():
        return "no CUDA device was found"
    if torch.cuda.get_device_capability() < OLDEST:
        return "the GPU is too old: the kernels need compute capability 8.0 (Ampere) or newer"
    if not LIBRARY.is_file():
        return "the CUDA kernels were not built, since nvcc was not found when this was installed"
    try:
        torch.ops.load_library(str(LIBRARY))  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError) as error:
        return f"the CUDA kernels cannot be loaded: {error}"
    return None


def require() -> None:
    """Raises ExtensionError unless models can run on a GPU here."""
    reason = unavailable()
    if reason is not None:
        raise ExtensionError(reason, hint="Use the device cpu, or see `exl2-tui doctor`.")
