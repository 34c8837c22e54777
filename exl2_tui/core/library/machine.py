"""What this machine would run a model with, told without importing torch: lists must not wait for it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from exl2_tui.core.events import Fit
from exl2_tui.core.model.footprint import CACHE_KINDS, Backend, Footprint, MemoryEstimate
from exl2_tui.core.model.memory import available_memory
from exl2_tui.core.requests import CacheKind, LoadOptions

_PACKAGE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Machine:
    """available: bytes a model may take, None if the system does not tell.

    fallback: where the loader goes by itself if the model does not fit here.
    """

    backend: Backend
    available: int | None
    fallback: Machine | None = None

    @property
    def caches(self) -> tuple[CacheKind, ...]:
        """Cache kinds that can be had."""
        return CACHE_KINDS[self.backend]

    def plan(self, numbers: Footprint, context: int | None, cache: str) -> tuple[MemoryEstimate, Fit]:
        """What a load takes, and whether it fits, as the loader decides it."""
        found = numbers.at(context, cache, self.backend, self.available)
        if self.available is None:
            return found, "unknown"
        if found.fits == "no" and self.fallback is not None and cache in self.fallback.caches:
            other, fits = self.fallback.plan(numbers, context, cache)
            if fits != "no":
                return other, "cpu"
        return found, found.fits


def this_machine(options: LoadOptions | None = None, reclaim: int = 0) -> Machine:
    """Where a load with these options would go, as the loader decides it before it knows the model.

    reclaim: bytes of the model loaded now, which makes room for the next one.
    """
    options = options or LoadOptions()
    asked = options.device not in ("auto", "cpu") or bool(options.gpu_split)
    by_itself = options.device == "auto" and (_PACKAGE / "_C_cuda.so").is_file()
    if asked or by_itself:
        gpu = _gpu(options)
        if gpu is not None and (asked or gpu.backend == "cuda"):
            fallback = None if asked else _processor()  # without `reclaim`: that is what the GPU gets back
            return Machine(gpu.backend, (gpu.available or 0) + reclaim, fallback)
    return _processor(reclaim)


def _processor(reclaim: int = 0) -> Machine:
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
