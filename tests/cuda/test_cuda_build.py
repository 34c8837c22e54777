"""The CUDA library is compiled and looked at on machines without a GPU: kernels, registers, symbols."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from support.compiled import compile_cpp
from support.cubin import Kernel, kernels

ROOT = Path(__file__).resolve().parents[2]
SPILLING = {"step_kernel": 144}  # bytes of stack that a kernel may take; none for all others
FROM_TORCH = ("aoti_torch_", "torch_")  # LibTorch's stable C interface
FROM_SYSTEM = re.compile(r"@+(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+$")


def load_setup() -> ModuleType:
    """setup.py as a module; its `if __name__` keeps it from building anything."""
    spec = importlib.util.spec_from_file_location("exl2_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def no_gpu_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No nvidia-smi, no nvcc, no architectures by name."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CUDA_HOME", "EXL2_TUI_CUDA", "EXL2_TUI_CUDA_ARCH"):
        monkeypatch.delenv(name, raising=False)


def fake_program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_nothing_is_compiled_for_cuda_without_a_gpu(
    no_gpu_tools: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """So that the first `make chat` stays short: nobody could run what nvcc makes."""
    compiler = fake_program(tmp_path / "nvcc", "exit 1")
    assert load_setup().nvcc() is None
    monkeypatch.setenv("EXL2_TUI_CUDA_ARCH", "9.0")
    assert load_setup().nvcc() == str(compiler)
    assert load_setup().cuda_architectures() == ("90",)
    monkeypatch.setenv("EXL2_TUI_CUDA", "0")
    assert load_setup().nvcc() is None


def test_the_gpus_of_this_machine_are_compiled_for(no_gpu_tools: None, tmp_path: Path) -> None:
    fake_program(tmp_path / "nvidia-smi", "echo 7.0; echo 9.0; echo 7.5; echo 8.6; echo 9.0")
    setup = load_setup()
    assert setup.cuda_architectures() == ("75", "86", "90")  # 7.0 is too old for the kernels
    compiler = fake_program(tmp_path / "nvcc", "echo compute_75 compute_80 compute_86 compute_90")
    targets = setup.cuda_targets(str(compiler))
    assert [target for target in targets if "sm_" in target] == [
        f"-gencode arch=compute_{name},code=sm_{name}" for name in ("75", "86", "90a")
    ]
    assert "-gencode arch=compute_90,code=compute_90" in targets  # for GPUs yet to come


def test_a_toolkit_that_knows_no_wanted_architecture_ends_the_build(
    no_gpu_tools: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EXL2_TUI_CUDA_ARCH", "120")
    compiler = fake_program(tmp_path / "nvcc", "echo compute_80 compute_90")
    with pytest.raises(SystemExit, match="knows none of the GPU architectures 120"):
        load_setup().cuda_targets(str(compiler))


def test_the_compiler_of_the_pypi_packages_is_found(
    no_gpu_tools: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EXL2_TUI_CUDA_ARCH", "90")
    compiler = fake_program(tmp_path / "site/nvidia/cu13/bin/nvcc", "exit 0")
    setup = load_setup()
    monkeypatch.setattr(setup.sysconfig, "get_path", lambda _: str(tmp_path / "site"))
    assert setup.nvcc() == str(compiler)


def compiled_for(architecture: str) -> Path:
    """_C_cuda.so, its GPU code not compressed; kept in build/ and compiled when sources change."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXL2_TUI_CUDA_ARCH", architecture)
        patch.setenv("EXL2_TUI_CUDA_FLAGS", "--no-compress")
        patch.delenv("EXL2_TUI_CUDA", raising=False)
        setup = load_setup()
        if setup.nvcc() is None:
            pytest.skip("nvcc is not installed: the CUDA library cannot be compiled here")
        rules, _, cuda = setup.write_rules(ROOT / "build" / f"cuda-check-{architecture}")
        command = [setup.ninja(), "-C", str(rules.directory), str(cuda)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
    assert isinstance(cuda, Path)
    return cuda


@pytest.fixture(scope="module")
def library() -> Path:
    return compiled_for("90")


@pytest.fixture(scope="module")
def found(library: Path) -> list[Kernel]:
    return kernels(library)


@pytest.mark.slow
def test_every_kernel_is_in_the_library(found: list[Kernel]) -> None:
    sources = "".join(path.read_text() for path in (ROOT / "csrc" / "cuda").glob("*.cu*"))
    written = set(re.findall(r"__global__[^;{]*?\b(\w+_kernel)\(", sources))
    launched = set(re.findall(r"(\w+_kernel)(?:<[\w, ]+>)?(?:<<<|;)", sources))
    assert launched and written == launched
    assert {kernel.plain_name for kernel in found} == written
    assert {kernel.architecture for kernel in found} == {90}
    # Of 4 kinds of caches: up to 8 tokens; one, with heads of 64, of 128 or any.
    assert sum(kernel.plain_name == "step_kernel" for kernel in found) == 16


@pytest.mark.slow
def test_kernels_keep_to_their_registers(found: list[Kernel]) -> None:
    for kernel in found:
        assert kernel.frame <= SPILLING.get(kernel.plain_name, 0), kernel
    steps = [kernel.registers for kernel in found if kernel.plain_name == "step_kernel"]
    assert max(steps) * 20 * 32 <= 65536  # one CUDA block of 20 warps has to fit on a multiprocessor


@pytest.mark.slow
def test_turing_gets_all_kernels_but_the_steps(found: list[Kernel]) -> None:
    """Those of the step are there by name, and empty. None uses the stack, but for the repacking at load time."""
    turing = kernels(compiled_for("75"))
    assert {kernel.architecture for kernel in turing} == {75}
    assert {kernel.plain_name for kernel in turing} == {kernel.plain_name for kernel in found}
    for kernel in turing:
        assert kernel.frame <= (80 if kernel.plain_name == "repack_kernel" else 0), kernel
        # Three CUDA blocks of the product have to fit on a multiprocessor, with GPTQ (kind 1) two.
        is_gptq = "plain_kernelILi1E" in kernel.name
        limits = {"step_kernel": 8, "plain_kernel": 128 if is_gptq else 80}
        assert kernel.registers <= limits.get(kernel.plain_name, 128), kernel


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="nm -D reads ELF files")
def test_only_the_stable_interface_of_torch_is_used(library: Path) -> None:
    listed = subprocess.run(["nm", "-D", str(library)], capture_output=True, text=True, check=True).stdout
    missing = [line.split()[1] for line in listed.splitlines() if line.split()[0] == "U"]
    foreign = [name for name in missing if not name.startswith(FROM_TORCH) and not FROM_SYSTEM.search(name)]
    assert missing and foreign == []
    needed = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    libraries = set(re.findall(r"NEEDED.*\[([\w+.-]+)\]", needed))
    assert "libtorch.so" in libraries
    assert not [name for name in libraries if "cuda" in name or "python" in name or name.startswith("libtorch_")]


@pytest.mark.slow
def test_torch_takes_the_library_and_its_operations(library: Path, tmp_path: Path) -> None:
    """In a process of its own, with a stand-in for the one symbol that only a torch with CUDA has."""
    if torch.version.cuda is None:
        compile_cpp(tmp_path, 'extern "C" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }')
    program = f"""
import ctypes, pathlib, torch
stand_in = pathlib.Path({str(tmp_path / "source.so")!r})
if stand_in.exists():
    ctypes.CDLL(str(stand_in), mode=ctypes.RTLD_GLOBAL)
torch.ops.load_library({str(library)!r})
from exl2_tui.core.model.cuda.library import NEWEST_OP
names = "repack dequantize decode_step quant_round quant_search prompt_rope prompt_norm prompt_order prompt_silu"
names += " cache_write cache_read top_logits write_passage plain_product has_step"
for name in names.split():
    assert hasattr(torch.ops.exl2_cuda, name), name
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"exl2_cuda::{{name}}", "CUDA"), name
assert hasattr(torch.ops.exl2_cuda, NEWEST_OP)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
