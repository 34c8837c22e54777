"""What this machine offers to models, for people who start the program for the first time."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

from exl2_tui.core.events import MachineFound
from exl2_tui.core.model.memory import available_memory
from exl2_tui.core.sizes import size_of


def describe_machine(data: Path) -> MachineFound:
    """Looks at processor, memory, GPUs and the disk that holds `data`. Imports torch."""
    from exl2_tui.core.ops.native import capabilities

    found = capabilities()
    return MachineFound(
        cpu=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        kernels=found.label if found.native else "",
        memory_free=available_memory(),
        disk_free=_disk_free(data),
        gpus=_gpus(),
        note=found.reason,
    )


def _processor() -> str:
    """The processor's own name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _disk_free(path: Path) -> int | None:
    """Bytes free where the directory is, or will be made."""
    there = next((place for place in (path, *path.parents) if place.exists()), None)
    try:
        return None if there is None else shutil.disk_usage(there).free
    except OSError:
        return None


def _gpus() -> tuple[str, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    lines = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        lines.append(f"{name}, {size_of(free)} of {size_of(total)} free")
    return tuple(lines)
