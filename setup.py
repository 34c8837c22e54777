"""Builds the native libraries with ninja and installs them as package data; everything else is in pyproject.toml.

Development: `python setup.py build_ext --inplace` (or `pip install --no-build-isolation -e .`); a second run rebuilds
only what changed. The libraries use the stable ABI of LibTorch: they need torch's headers to compile, not torch itself
to link, contain no Python symbol and run on every torch from 2.10. Hence the wheel tag py3-none-<platform>.

csrc/*_cpu.cpp and csrc/cpu/*.cpp make exl2_tui/_C_cpu.so. A file whose name ends in _generic, _avx2 or _avx512 is
compiled for that instruction set, inside its own namespace (csrc/cpu/isa.h); one in _amx, where the compiler knows it.
csrc/*_cuda.cpp, csrc/cuda/*.cu and SHARED make exl2_tui/_C_cuda.so, where nvcc is found: without it if nvcc fails,
unless EXL2_TUI_CUDA=1; never with EXL2_TUI_CUDA=0. EXL2_TUI_CUDA_ARCH names architectures where there is no GPU to ask,
EXL2_TUI_CUDA_FLAGS holds more flags for nvcc, such as -lineinfo for a profiler.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path
from typing import NoReturn

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

if int(setuptools.__version__.split(".")[0]) < 77:  # pip --no-build-isolation takes whatever is there
    sys.exit(
        f"\nexl2-tui: setuptools {setuptools.__version__} is too old to build with. "
        "Run `pip install --upgrade setuptools ninja` first\n"
    )
from setuptools.command.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "csrc"
TORCH_TARGET = "0x020a000000000000"  # 2.10: the oldest torch that has all we call
ISA_FLAGS = {
    "generic": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c", "-mbmi2"],
    "avx512": [
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vbmi", "-mavx512vnni"),
        *("-mfma", "-mf16c", "-mbmi2", "-mprefer-vector-width=512"),
        # GCC 12 warns of its own header: "undefined" vectors are initialized with themselves (GCC bug 105593).
        *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
    ],
}
AMX_FLAGS = ["-mamx-tile", "-mamx-int8"]  # known to GCC and Clang from 11 on
ISA_FLAGS["amx"] = [*ISA_FLAGS["avx512"], *AMX_FLAGS]
# No -ffast-math: linked in, it sets flush-to-zero for the whole process, and EXL2 scales are often fp16 subnormals.
COMMON_FLAGS = [
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-semantic-interposition"),
    *("-Wall", "-Wextra", "-Werror"),
]
CUDA_ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
SHARED = ("sampler", "top")  # of csrc/cpu: passages on a GPU choose as those on the CPU
ONLY_THERE = {"90": "90a"}  # with instructions that no later GPU has (setmaxnreg)
CUDA_FLAGS = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-cudart", "static", "-DUSE_CUDA"]


def stop(message: str) -> NoReturn:
    """Ends the build with one readable sentence instead of a traceback."""
    sys.exit(f"\nexl2-tui: cannot build the native library: {message}\n")


def torch_include() -> Path:
    """torch's headers in the environment that the package is built for. Importing torch would cost seconds."""
    places = [Path(sysconfig.get_path(name)) / "torch" for name in ("purelib", "platlib")]
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        places.insert(0, Path(spec.origin).parent)
    remedy = (
        "torch 2.10 or newer must be installed first, since its headers are needed. Run "
        "`pip install torch ninja 'setuptools>=77'`, then `pip install --no-build-isolation .`"
    )
    for place in places:
        version = place / "include/torch/headeronly/version.h"
        if not version.is_file():
            continue
        numbers = dict(re.findall(r"^#define TORCH_VERSION_(MAJOR|MINOR) (\d+)", version.read_text(), re.MULTILINE))
        if (int(numbers["MAJOR"]), int(numbers["MINOR"])) < (2, 10):
            stop(f"torch {numbers['MAJOR']}.{numbers['MINOR']} is too old. {remedy}")
        return place / "include"
    stop(remedy)


def compiler() -> str:
    """The C++ compiler: $CXX, or the first that is installed."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name.split()[0]):
            return name
    stop("no C++ compiler found (looked for $CXX, g++, clang++, c++). On Debian or Ubuntu: apt install g++")


def ninja() -> str:
    """The ninja program, of the PyPI package or of the system."""
    beside = Path(sys.executable).parent / "ninja"
    if beside.is_file():
        return str(beside)
    if importlib.util.find_spec("ninja") is not None:
        import ninja as package

        return str(Path(package.BIN_DIR) / "ninja")
    found = shutil.which("ninja")
    if found is None:
        stop("ninja is missing: pip install ninja")
    return found


def nvcc() -> str | None:
    """The CUDA compiler, where there is one and a GPU to compile for (or architectures were named).

    That of $CUDA_HOME, else of the PATH, else of PyPI's nvidia-cuda-nvcc, nvidia-cuda-cccl and nvidia-cuda-runtime.
    """
    if os.environ.get("EXL2_TUI_CUDA") == "0" or not cuda_architectures():
        return None
    if home := os.environ.get("CUDA_HOME"):
        return shutil.which("nvcc", path=f"{home}/bin")
    packages = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu[0-9]*/bin"), reverse=True)
    return shutil.which("nvcc") or next(filter(None, (shutil.which("nvcc", path=str(p)) for p in packages)), None)


@cache
def cuda_architectures() -> tuple[str, ...]:
    """What to compile for: EXL2_TUI_CUDA_ARCH ("90", "80,90" or "all"), else the GPUs of this machine."""
    named = os.environ.get("EXL2_TUI_CUDA_ARCH", "")
    if named:
        return CUDA_ARCHITECTURES if named == "all" else tuple(named.replace(".", "").split(","))
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = [program, "--query-gpu=compute_cap", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        return ()
    numbers = {line.strip().replace(".", "") for line in found.stdout.splitlines() if line.strip()}
    return tuple(sorted((number for number in numbers if int(number) >= int(CUDA_ARCHITECTURES[0])), key=int))


def cuda_targets(nvcc_path: str) -> list[str]:
    """nvcc flags for the wanted architectures that it knows, and PTX of the newest for GPUs yet to come."""
    known = subprocess.run([nvcc_path, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    targets = [number for number in cuda_architectures() if f"compute_{number}" in known]
    if not targets:
        stop(f"{nvcc_path} knows none of the GPU architectures {', '.join(cuda_architectures())}")
    names = [ONLY_THERE.get(number, number) for number in targets]
    machine_code = [f"-gencode arch=compute_{name},code=sm_{name}" for name in names]
    return [*machine_code, f"-gencode arch=compute_{targets[-1]},code=compute_{targets[-1]}", "--threads 2"]


class NinjaFile:
    """A build.ninja that is only written when its text changes, so that a second build has nothing to do."""

    def __init__(self, directory: Path, variables: dict[str, str]) -> None:
        self.directory = directory
        self.lines = ["ninja_required_version = 1.5", *(f"{key} = {value}" for key, value in variables.items())]

    def rule(self, name: str, command: str, *, depfile: bool = False) -> None:
        self.lines += ["", f"rule {name}", f"  command = {command}", f"  description = {name} $out"]
        if depfile:
            self.lines += ["  depfile = $out.d", "  deps = gcc"]

    def build(
        self, output: Path, rule: str, inputs: list[Path], *, after: list[Path] | None = None, **extra: str
    ) -> None:
        def text(path: Path) -> str:
            return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

        behind = f" | {' '.join(map(text, after))}" if after else ""
        self.lines += ["", f"build {text(output)}: {rule} {' '.join(map(text, inputs))}{behind}"]
        self.lines += [f"  {key} = {value}" for key, value in extra.items()]

    def write(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "build.ninja"
        content = "\n".join(self.lines) + "\n"
        if not path.is_file() or path.read_text() != content:
            path.write_text(content)

    def run(self, program: str, target: Path) -> bool:
        """Brings `target` up to date; False if the compiler refused."""
        jobs = os.environ.get("MAX_JOBS")
        command = [program, "-C", str(self.directory), *(["-j", jobs] if jobs else []), str(target)]
        return subprocess.run(command, check=False).returncode == 0


def quoted(path: Path) -> str:
    return f'"{path}"'


def knows_amx() -> bool:
    command = [*compiler().split(), *AMX_FLAGS, "-x", "c++", "-fsyntax-only", "-"]
    return subprocess.run(command, input="", text=True, capture_output=True, check=False).returncode == 0


def isa_of(source: Path) -> str | None:
    return next((isa for isa in ISA_FLAGS if source.stem.endswith(f"_{isa}")), None)


def write_cpu(ninja_file: NinjaFile, build: Path, target: Path) -> None:
    """Rules for _C_cpu.so, and for the empty libtorch.so that stands for torch's own when linking."""
    stub = build / "stub/libtorch.so"
    (build / "stub").mkdir(parents=True, exist_ok=True)
    empty = build / "stub/empty.cpp"
    if not empty.is_file():
        empty.write_text("")
    apple = sys.platform == "darwin"
    ninja_file.rule("cxx", "$cxx -MMD -MF $out.d $cflags $isa -c $in -o $out", depfile=True)
    ninja_file.rule("stub", "$cxx -shared -fPIC -nostdlib -Wl,-soname,libtorch.so $in -o $out")
    # Against a stub, since torch's library would bind us to the C++ runtime and the glibc that it was built with.
    against = "-undefined dynamic_lookup" if apple else f"-Wl,--no-as-needed -L{quoted(stub.parent)} -ltorch"
    hygiene = "" if apple else "-Wl,--exclude-libs,ALL -Wl,--as-needed -pthread"
    ninja_file.rule("link", f"$cxx -shared $objects {against} {hygiene} -o $out")

    x86 = platform.machine().lower() in ("x86_64", "amd64")
    amx = x86 and knows_amx()
    objects = []
    for source in sorted([*SOURCES.glob("*_cpu.cpp"), *(SOURCES / "cpu").glob("*.cpp")]):
        isa = isa_of(source)
        if isa not in (None, "generic") and not (amx if isa == "amx" else x86):
            continue
        flags = ["-DEXL2_HAS_AMX=1"] if amx else []
        if isa is not None:
            flags += [f"-DEXL2_ISA_{isa.upper()}=1", *ISA_FLAGS[isa]]
        output = build / "cpu" / f"{source.stem}.o"
        ninja_file.build(output, "cxx", [source], isa=" ".join(flags))
        objects.append(output)
    if not apple:
        ninja_file.build(stub, "stub", [empty])
    ninja_file.build(
        target, "link", objects, after=[] if apple else [stub], objects=" ".join(quoted(path) for path in objects)
    )


def write_cuda(ninja_file: NinjaFile, build: Path, target: Path, sources: list[Path]) -> None:
    """Rules for _C_cuda.so. Compiled against the headers of whatever torch is there, also a CPU-only one."""
    ninja_file.rule("nvcc", "$nvcc -x cu -MD -MF $out.d $cudaflags -c $in -o $out", depfile=True)
    # nvcc looks for the runtime in lib64 only; the PyPI packages have it in lib.
    runtime = quoted(Path(str(nvcc())).parents[1] / "lib")
    link = f"$nvcc -shared -cudart static $objects -L{runtime} -L$stub -Xlinker --no-as-needed -ltorch -o $out"
    ninja_file.rule("nvlink", link)
    objects = [build / "cpu" / f"{name}.o" for name in SHARED]
    for source in sources:
        output = build / "cuda" / f"{source.stem}.o"
        ninja_file.build(output, "nvcc", [source])
        objects.append(output)
    ninja_file.build(
        target,
        "nvlink",
        objects,
        after=[build / "stub/libtorch.so"],
        objects=" ".join(quoted(path) for path in objects),
        stub=quoted(build / "stub"),
    )


def write_rules(build: Path) -> tuple[NinjaFile, Path, Path | None]:
    """The build.ninja in `build`, and what it makes: _C_cpu.so, and _C_cuda.so where that is built."""
    includes = [f"-I{quoted(SOURCES)}", f"-isystem {quoted(torch_include())}"]
    define = f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"
    variables = {"cxx": compiler(), "cflags": " ".join([*COMMON_FLAGS, define, *includes])}
    cuda_sources = cuda_files()
    if cuda_sources:
        own = os.environ.get("EXL2_TUI_CUDA_FLAGS", "").split()
        flags = [*CUDA_FLAGS, *cuda_targets(str(nvcc())), *own, define, *includes]
        variables |= {"nvcc": str(nvcc()), "cudaflags": " ".join(flags)}
    ninja_file = NinjaFile(build, variables)
    cpu, cuda = build / "_C_cpu.so", build / "_C_cuda.so"
    write_cpu(ninja_file, build, cpu)
    if cuda_sources:
        write_cuda(ninja_file, build, cuda, cuda_sources)
    ninja_file.write()
    return ninja_file, cpu, cuda if cuda_sources else None


class NinjaBuild(build_ext):
    """setuptools names the outputs; ninja makes all of them in one run."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"  # no Python tag: there is nothing of Python in it

    def run(self) -> None:
        build = ROOT / "build" / "native"
        build.mkdir(parents=True, exist_ok=True)
        with (build / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two builds at once would write the same objects
            self.build(build)

    def build(self, build: Path) -> None:
        ninja_file, cpu, cuda = write_rules(build)
        program = ninja()
        if not ninja_file.run(program, cpu):
            stop("compiling failed; the compiler's messages are above")
        self.install(cpu, "_C_cpu")
        if cuda is not None:
            if ninja_file.run(program, cuda):
                self.install(cuda, "_C_cuda")
            elif os.environ.get("EXL2_TUI_CUDA") == "1":
                stop("compiling for CUDA failed; nvcc's messages are above")
            else:
                print("exl2-tui: nvcc could not compile the CUDA library (see above); going on without it")

    def install(self, library: Path, name: str) -> None:
        """Copies a library to where setuptools wants the extension exl2_tui.<name>: the build tree or the package."""
        target = Path(self.get_ext_fullpath(f"exl2_tui.{name}"))
        if target.is_file() and target.read_bytes() == library.read_bytes():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        # Renamed into place: a process that has the old library mapped keeps it, instead of crashing.
        temporary = target.with_suffix(".so.new")
        shutil.copyfile(library, temporary)
        temporary.replace(target)


def cuda_files() -> list[Path]:
    """Sources of the CUDA library; empty where it is not built."""
    if nvcc() is None:
        return []
    return sorted([*SOURCES.glob("*_cuda.cpp"), *(SOURCES / "cuda").glob("*.cu")])


class PlatformWheel(bdist_wheel):
    """Any Python 3, no Python ABI, this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


if __name__ == "__main__":
    setup(
        # The CUDA library lies beside this one where it could be built.
        ext_modules=[Extension("exl2_tui._C_cpu", sources=[])],
        cmdclass={"build_ext": NinjaBuild, "bdist_wheel": PlatformWheel},
    )
