"""Finds and loads the CUDA library, once, and says why it cannot be used where it cannot."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import torch

from exl2_tui.core.errors import ConfigError, ExtensionError

OLDEST = (7, 5)  # Turing: what nvcc 13 compiles for
LIBRARY = Path(__file__).resolve().parents[3] / "_C_cuda.so"
NEWEST_OP = "has_step"  # in every library that this source can use
REBUILD = "Install the CUDA toolkit and run `EXL2_TUI_CUDA=1 pip install --no-build-isolation .` again."


def no_device() -> str | None:
    """Why torch itself cannot use a GPU here, None if it can."""
    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    if not torch.cuda.is_available():
        return "no CUDA device was found"
    return None


def named_device(name: str) -> torch.device:
    """ "cuda" or "cuda:1". Raises ConfigError for anything else and for a number there is no device of, ExtensionError
    where torch cannot use a GPU."""
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", name)
    if match is None:
        raise ConfigError(f'the device "{name}" is none of auto, cpu, cuda, cuda:0, ...')
    require_device()
    index, count = int(match[1] or 0), torch.cuda.device_count()
    if index >= count:
        raise ConfigError(f'there is no device "{name}": this machine has {count}')
    return torch.device("cuda", index)


def require_device() -> None:
    """Raises ExtensionError unless torch can use a GPU."""
    reason = no_device()
    if reason is not None:
        raise ExtensionError(f"no GPU can be used: {reason}", hint='Use the device "cpu".')


def unavailable(device: torch.device | None = None) -> str | None:
    """Why our kernels cannot run on `device` (None: the current one), or None if they can."""
    reason = no_device()
    if reason is not None:
        return reason
    found = torch.cuda.get_device_capability(device)
    if found < OLDEST:
        return (
            f"the GPU is too old: it has compute capability {found[0]}.{found[1]}, "
            f"the kernels need {OLDEST[0]}.{OLDEST[1]} (Turing)"
        )
    return _load() or _not_compiled(device)


def require(device: torch.device | None = None) -> None:
    """Raises ExtensionError unless our kernels can run on `device`."""
    reason = unavailable(device)
    if reason is not None:
        raise ExtensionError(reason, hint="Use the device cpu, or see `exl2-tui doctor`.")


def has_step(device: torch.device | None = None) -> bool:
    """Whether a decode step can run as one kernel on `device`, where our kernels can: not on Turing.

    Raises RuntimeError where the library has nothing for that GPU.
    """
    index = None if device is None else device.index
    return _has_step(torch.cuda.current_device() if index is None else index)


@cache
def _has_step(index: int) -> bool:
    found: bool = torch.ops.exl2_cuda.has_step(torch.empty(0, device=f"cuda:{index}"))
    return found


def _not_compiled(device: torch.device | None) -> str | None:
    """Why the library, which could be loaded, does not run on `device`, or None."""
    try:
        has_step(device)
    except RuntimeError as error:
        return f"the CUDA kernels were not compiled for this GPU ({str(error).splitlines()[0]}). {REBUILD}"
    return None


@cache
def _load() -> str | None:
    """Loads the library; why it cannot be used, or None."""
    if not LIBRARY.is_file():
        return f"the CUDA kernels were not built, since nvcc was not found when this was installed. {REBUILD}"
    try:
        torch.ops.load_library(str(LIBRARY))  # type: ignore[no-untyped-call] # torch declares no types
    except (OSError, RuntimeError) as error:
        return f"the CUDA kernels cannot be loaded: {error}"
    if not hasattr(torch.ops.exl2_cuda, NEWEST_OP):
        return f"the CUDA kernels were built from an older version of the source. {REBUILD}"
    return None
