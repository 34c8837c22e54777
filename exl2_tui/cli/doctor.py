"""`exl2-tui doctor`: what this machine offers and what keeps it from more."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path

import typer

from exl2_tui import __version__
from exl2_tui.cli import options as opt
from exl2_tui.cli.output import print_json, print_text
from exl2_tui.core.errors import Exl2Error
from exl2_tui.core.sizes import size_of
from exl2_tui.settings import config_dir, data_dir


def doctor(json: opt.Json = False) -> None:
    """Check the installation: Python, torch, kernels, memory, directories, built-in model. Status 1 if one fails."""
    report = {**_python(), **_kernels(), **_places(), **_built_in()}
    if json:
        print_json({name: {"ok": ok, "found": found} for name, (ok, found) in report.items()})
    else:
        width = max(len(name) for name in report)
        for name, (ok, found) in report.items():
            print_text(f"{'ok ' if ok else 'BAD'}  {name:<{width}}  {found}")
    if not all(ok for ok, _ in report.values()):
        raise typer.Exit(1)


Report = dict[str, tuple[bool, str]]


def _python() -> Report:
    names = ("torch", "safetensors", "sentencepiece", "tokenizers", "textual")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return {
        "exl2-tui": (True, __version__),
        "python": (sys.version_info >= (3, 10), f"{platform.python_version()} on {platform.platform()}"),
        "packages": (True, versions),
    }


def _kernels() -> Report:
    from exl2_tui.core.model.cuda.library import has_step, unavailable
    from exl2_tui.core.ops.native import capabilities

    found = capabilities()
    there = f"{found.label}; this machine runs {', '.join(found.isas)}; {found.library}"
    no_gpu = unavailable()
    way = "ready" if no_gpu or has_step() else "ready; decoding goes layer by layer: this GPU is older than Ampere"
    return {
        "CPU kernels": (found.native, there if found.native else found.reason),
        "CUDA kernels": (True, no_gpu or way),  # a machine without a GPU is a healthy one
    }


def _places() -> Report:
    from exl2_tui.core.model.memory import available_memory

    free = available_memory()
    memory = "unknown" if free is None else f"{size_of(free)} available"
    report = {"memory": (True, f"{memory}, {os.cpu_count()} cores")}
    for name, path in (("settings", config_dir()), ("data", data_dir())):
        report[name] = (_writable(path), str(path))
    return report


def _writable(path: Path) -> bool:
    """True if the directory, or the nearest parent there is, can be written to."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return os.access(path, os.W_OK)


def _built_in() -> Report:
    from exl2_tui.core.library.catalog import built_in_path
    from exl2_tui.core.library.describe import describe

    try:
        info = describe(built_in_path(), source="built-in")
    except Exl2Error as error:
        return {"built-in model": (False, str(error))}
    return {"built-in model": (not info.problem, info.problem or f"{info.name}, {info.format}")}
