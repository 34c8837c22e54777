"""Finds and loads the compiled CPU library once, and chooses the instruction set.

EXL2_TUI_ISA=generic|avx2|avx512|amx forces an instruction set, EXL2_TUI_KERNELS=reference switches the library off;
both are read at the first use. Knows nothing of what the ops compute.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from exl2_tui.core.errors import ExtensionError
from exl2_tui.core.spare_core import spare_core

Isa = Literal["generic", "avx2", "avx512", "amx"]
ISAS: tuple[Isa, ...] = ("generic", "avx2", "avx512", "amx")  # in the order of csrc/cpu/isa.h
LABELS: dict[Isa | None, str] = {
    "generic": "generic C++",
    "avx2": "AVX2",
    "avx512": "AVX-512",
    "amx": "AVX-512 and AMX",
    None: "reference (torch)",
}
LIBRARY = Path(__file__).resolve().parents[2] / "_C_cpu.so"
NEWEST_OP = "model_close"  # in every library that this source can use
REBUILD = "Run `pip install --no-build-isolation -e .` where the source is, or reinstall the package."


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What was found, for `doctor`. reason says why native kernels are not used; empty if they are."""

    library: Path | None
    isas: tuple[Isa, ...]  # that this machine can run
    isa: Isa | None  # in use
    reason: str

    @property
    def native(self) -> bool:
        return self.isa is not None

    @property
    def label(self) -> str:
        """For display, such as "AVX-512"."""
        return LABELS[self.isa]


_lock = threading.Lock()
_found: Capabilities | None = None


def capabilities() -> Capabilities:
    """Loads the library at the first call; never raises for a library that is missing or broken.

    Raises ExtensionError if EXL2_TUI_ISA or EXL2_TUI_KERNELS asks for what there is not.
    """
    global _found
    with _lock:
        if _found is None:
            _found = find()
        return _found


def isa_code(isa: Isa | None = None) -> int:
    """The number the native ops take: of the instruction set in use, or of a given one (for tests).

    Raises ExtensionError if native kernels cannot run here.
    """
    found = capabilities()
    chosen = isa or found.isa
    if chosen is None or (isa is not None and isa not in found.isas):
        raise ExtensionError(found.reason or f"this machine does not run {isa} code", hint=REBUILD)
    return ISAS.index(chosen)


def ops() -> Any:
    """torch.ops.exl2_cpu, once capabilities() has loaded it."""
    return torch.ops.exl2_cpu


def find() -> Capabilities:
    """What capabilities() remembers: reads the environment and loads the library if it is not loaded yet."""
    wanted = os.environ.get("EXL2_TUI_KERNELS", "")
    if wanted not in ("", "native", "reference"):
        raise ExtensionError(f'EXL2_TUI_KERNELS is "{wanted}", but must be "native" or "reference"')
    if wanted == "reference":
        return Capabilities(None, (), None, "switched off by EXL2_TUI_KERNELS=reference")
    if not LIBRARY.is_file():
        return _without(wanted, f"{LIBRARY.name} was not built into the package")
    try:
        if not hasattr(torch.ops.exl2_cpu, "available_isas"):  # a second copy in one process would crash
            torch.ops.load_library(str(LIBRARY))  # type: ignore[no-untyped-call] # torch declares no types
        mask = int(torch.ops.exl2_cpu.available_isas())
    except (OSError, RuntimeError, AttributeError) as error:
        detail = str(error.__cause__ or error).splitlines()[0]
        return _without(wanted, f"{LIBRARY.name} cannot be loaded by torch {torch.__version__}: {detail}")
    if not hasattr(torch.ops.exl2_cpu, NEWEST_OP):
        return _without(wanted, f"{LIBRARY.name} was built from an older version of the source")
    torch.ops.exl2_cpu.share_spare_core(*spare_core.addresses)
    isas = tuple(isa for code, isa in enumerate(ISAS) if mask >> code & 1)
    forced = os.environ.get("EXL2_TUI_ISA", "")
    if not forced:
        return Capabilities(LIBRARY, isas, isas[-1], "")
    if forced not in isas:
        raise ExtensionError(f'EXL2_TUI_ISA is "{forced}", but this machine runs {", ".join(isas)}')
    return Capabilities(LIBRARY, isas, isas[isas.index(forced)], "")


def _without(wanted: str, reason: str) -> Capabilities:
    if wanted == "native":
        raise ExtensionError(f"EXL2_TUI_KERNELS asks for native kernels, but {reason}", hint=REBUILD)
    return Capabilities(LIBRARY if LIBRARY.is_file() else None, (), None, reason)
