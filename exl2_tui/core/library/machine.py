"""What this machine would run a model with, told without importing torch: lists must not wait for it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from exl2_tui.core.model.footprint import Backend
from exl2_tui.core.model.memory import available_memory
from exl2_tui.core.requests import LoadOptions

_PACKAGE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Machine:
    """available: bytes a model may take, None if the system does not tell."""

    backend: Backend
    available: int | None


def this_machine(options: LoadOptions | None = None, reclaim: int = 0) -> Machine:
    """Where a load with these options would go, as the loader decides it before it knows the model.

    reclaim: bytes of the model loaded now, which makes room for the next one.
    """
    options = options or LoadOptions()
    asked = options.device not in ("auto", "cpu") or bool(options.gpu_split)
    by_itself = options.device == "auto" and options.cache == "fp16" and (_PACKAGE / "_C_cuda.so").is_file()
    if asked or by_itself:
        gpu = _gpu(options)
        if gpu is not None and (asked or gpu.backend == "cuda"):
            return Machine(gpu.backend, (gpu.available or 0) + reclaim)
    native = (_PACKAGE / "_C_cpu.so").is_file() and os.environ.get("EXL2_TUI_KERNELS", "") != "reference"
    available = available_memory()
    return Machine("native" if native else "reference", None if available is None else available + reclaim)


def _gpu(options: LoadOptions) -> Machine | None:
    """What the GPUs of a load can take, None if there is none. This does import torch."""
    import torch

    from exl2_tui.core.model.cuda import library

    if library.no_device() is not None:
        return None
    index = options.device.partition(":")[2]
    chosen = int(index) if index.isdigit() else torch.cuda.current_device()
    devices = range(torch.cuda.device_count()) if options.gpu_split else [chosen]
    limits = options.split_bytes() or ()
    rooms = [torch.cuda.mem_get_info(device)[0] for device in devices if device < torch.cuda.device_count()]
    if limits:
        rooms = [min(limit, room) for limit, room in zip(limits, rooms, strict=False)]
    return Machine("cuda" if library.unavailable() is None else "gpu-reference", sum(rooms))
