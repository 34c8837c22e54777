"""Finding the library and choosing an instruction set, in fresh processes; the worker threads while idle and forked."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from exl2_tui.core import ops
from exl2_tui.core.errors import ExtensionError
from exl2_tui.core.formats import DenseWeight
from exl2_tui.core.ops import Capabilities, capabilities, native

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def multiply(threads: int) -> None:
    weight = ops.pack_linear(DenseWeight(torch.eye(64), None))
    x = torch.arange(64.0)[None]
    assert torch.allclose(ops.quant_matmul(x, weight, threads=threads), x, rtol=1e-2)


def test_an_instruction_set_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    for isa in capabilities().isas:
        monkeypatch.setenv("EXL2_TUI_ISA", isa)
        assert native.find().isa == isa


def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXL2_TUI_ISA", "mmx")
    if capabilities().native:
        with pytest.raises(ExtensionError, match='EXL2_TUI_ISA is "mmx", but this machine runs generic'):
            native.find()


def test_kernels_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXL2_TUI_KERNELS", "reference")
    assert native.find() == Capabilities(None, (), None, "switched off by EXL2_TUI_KERNELS=reference")
    monkeypatch.setenv("EXL2_TUI_KERNELS", "fast")
    with pytest.raises(ExtensionError, match='"fast"'):
        native.find()


def test_a_library_that_is_missing_or_broken_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "_C_cpu.so")
    found = native.find()
    assert not found.native
    assert "was not built" in found.reason
    monkeypatch.setenv("EXL2_TUI_KERNELS", "native")
    with pytest.raises(ExtensionError, match="was not built"):
        native.find()


def test_reference_ops_work_without_the_library() -> None:
    code = """
import torch
from exl2_tui.core import ops
from exl2_tui.core.formats import DenseWeight
packed = ops.pack_linear(DenseWeight(torch.eye(8) * 2, None))
assert torch.equal(ops.quant_matmul(torch.ones(1, 8), packed), torch.full((1, 8), 2.0))
assert ops.rms_norm(torch.ones(2, 4), torch.ones(4), 0.0).sum() == 8
"""
    done = run(code, EXL2_TUI_KERNELS="reference")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not capabilities().native, reason="no native kernels here")
def test_idle_workers_use_no_processor_time() -> None:
    multiply(threads=2)
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1


@pytest.mark.skipif(not capabilities().native or not hasattr(os, "fork"), reason="no native kernels or no fork here")
def test_a_forked_child_starts_its_own_workers() -> None:
    code = """
import os, torch
from exl2_tui.core import ops
from exl2_tui.core.formats import DenseWeight
weight = ops.pack_linear(DenseWeight(torch.eye(64), None), exact=True)
x = torch.arange(64.0)[None]
assert torch.equal(ops.quant_matmul(x, weight, threads=2), x)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(ops.quant_matmul(x, weight, threads=2), x) else 1)
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(ops.quant_matmul(x, weight, threads=2), x)
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_the_library_needs_no_python_and_no_particular_torch() -> None:
    library = capabilities().library
    if library is None:
        pytest.skip("no library here")
    content = library.read_bytes()
    assert b"PyObject" not in content
    assert b"libtorch_cpu.so" not in content
    assert b"libc10.so" not in content
