"""Compiles headers that the CUDA kernels share with the CPU, so that tests run what the kernels run."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"


def compile_cpp(folder: Path, source: str) -> ctypes.CDLL:
    """`source` as a loaded library, with csrc and csrc/cuda to include from. Skips where there is no compiler."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    (folder / "source.cpp").write_text(source)
    # No contraction: on the CPU as on the GPU, only what the source calls fmaf is fused.
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off", f"-I{CSRC}", f"-I{CSRC / 'cuda'}"]
    files = [str(folder / "source.cpp"), "-o", str(folder / "source.so")]
    subprocess.run([*shlex.split(compiler), *flags, *files], check=True)
    return ctypes.CDLL(str(folder / "source.so"))
