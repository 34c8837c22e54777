"""Our CPU engine against llama.cpp on equal shapes and nearly equal bits per weight, in one run.

    pip install llama-cpp-python gguf           # built from source: native flags
    python benchmarks/cpu_vs_llamacpp.py 1.1B   # or 7B, or both

For every pair of quantizations both models are loaded, each in a process of its own, and measured alternately, so that
whatever else the machine does hits both. Medians of the repetitions; the spread is (max - min) / median. The bits per
weight of ours are set near what llama.cpp stores in its layers; docs/performance.md gives those of both files.
Results are printed as a table
and written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from random_models import SHAPES, Shape, quantize_gguf, write_dense, write_exl2, write_gguf

ROOT = Path(__file__).resolve().parents[1]
CONTEXT = 2688
DEPTH = 2048
PROMPT = 512
# llama.cpp's quantization, bits per weight asked of our layers, bits of our head (theirs: 6.56, Q8_0 8.5, F16 16)
PAIRS = (
    ("Q2_K", 3.00, 6),
    ("Q3_K_M", 3.91, 6),
    ("Q4_0", 4.50, 6),
    ("Q4_K_M", 4.78, 6),
    ("Q5_K_M", 5.63, 6),
    ("Q6_K", 6.56, 6),
    ("Q8_0", 8.05, 8),
    ("F16", 16.0, 16),
)


class Ours:
    """exl2-tui in this process."""

    def __init__(self, path: str, threads: int) -> None:
        from exl2_tui.core.checkpoint import Checkpoint
        from exl2_tui.core.config import ModelConfig
        from exl2_tui.core.model.loader import load_model, plan_load
        from exl2_tui.core.requests import LoadOptions

        options = LoadOptions(context=CONTEXT, device="cpu", threads=threads)
        with Checkpoint.open(path) as checkpoint:
            config = ModelConfig.from_dir(path)
            plan = plan_load(checkpoint, config, options)
            self.model = load_model(checkpoint, config, options, plan=plan)
        self.cache = self.model.new_cache(CONTEXT, "fp16")

    def run(self, count: int) -> None:
        self.model.forward([7] * count, self.cache)

    def truncate(self, length: int) -> None:
        self.cache.truncate(length)


class LlamaCpp:
    """llama.cpp in this process, through its own C interface."""

    def __init__(self, path: str, threads: int) -> None:
        import llama_cpp

        self.lib = llama_cpp
        self.llama = llama_cpp.Llama(
            path,
            n_ctx=CONTEXT,
            n_threads=threads,
            n_threads_batch=threads,
            n_batch=PROMPT,
            n_ubatch=PROMPT,
            verbose=False,
        )
        self.context = self.llama.ctx

    def run(self, count: int) -> None:
        tokens = (self.lib.llama_token * count)(*([7] * count))
        if self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(tokens, count)) != 0:
            raise SystemExit("llama_decode failed")
        self.lib.llama_get_logits_ith(self.context, -1)

    def truncate(self, length: int) -> None:
        self.lib.llama_memory_seq_rm(self.lib.llama_get_memory(self.context), 0, length, -1)


ENGINES: dict[str, Callable[[str, int], Any]] = {"ours": Ours, "llama.cpp": LlamaCpp}


def serve(pipe: Connection, engine: str, path: str, threads: int) -> None:
    """A worker: loads one model, then answers ("prompt" | "decode", length or depth, tokens) with seconds per token."""
    started = time.perf_counter()
    model = ENGINES[engine](path, threads)
    loaded = time.perf_counter() - started
    model.run(1)
    first = time.perf_counter() - started
    pipe.send({"load": loaded, "first_token": first})
    filled = 0
    while (job := pipe.recv()) is not None:
        kind, length, count = job
        if kind == "prompt":
            model.truncate(0)
            started = time.perf_counter()
            model.run(length)
            pipe.send((time.perf_counter() - started) / length)
            filled = length
            continue
        if filled < length:
            model.truncate(0)
            for _ in range(length // PROMPT):
                model.run(PROMPT)
            filled = length
        model.truncate(length)
        model.run(1)
        started = time.perf_counter()
        for _ in range(count):
            model.run(1)
        pipe.send((time.perf_counter() - started) / count)
    pipe.send(peak_memory())


def peak_memory() -> int:
    """Bytes of memory this process ever held. (ru_maxrss would count the parent's, too.)"""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024


class Worker:
    """One engine with one model in a process of its own."""

    def __init__(self, engine: str, path: Path, threads: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(theirs, engine, str(path), threads))
        self.process.start()
        self.start: dict[str, float] = self.pipe.recv()

    def measure(self, *job: object) -> float:
        self.pipe.send(job)
        return float(self.pipe.recv())

    def stop(self) -> int:
        """Peak memory in bytes."""
        self.pipe.send(None)
        peak = int(self.pipe.recv())
        self.process.join()
        return peak


def compare(ours: Path, theirs: Path, threads: int, repeats: int) -> dict[str, Any]:
    """Tokens per second of both, measured alternately."""
    workers = {"ours": Worker("ours", ours, threads), "llama.cpp": Worker("llama.cpp", theirs, threads)}
    jobs = {"decode": ("decode", 0, 24), "decode at 2048": ("decode", DEPTH, 16), "prompt": ("prompt", PROMPT, 0)}
    result: dict[str, Any] = {name: worker.start for name, worker in workers.items()}
    for label, job in jobs.items():
        times: dict[str, list[float]] = {name: [] for name in workers}
        for worker in workers.values():
            worker.measure(*job)  # warm up
        for _ in range(repeats):
            for name, worker in workers.items():
                times[name].append(worker.measure(*job))
        for name, values in times.items():
            middle = statistics.median(values)
            result[name][label] = 1 / middle
            result[name][f"{label} spread"] = (max(values) - min(values)) / middle
    for name, worker in workers.items():
        result[name]["peak_memory"] = worker.stop()
    return result


def files(folder: Path, name: str, shape: Shape, kind: str, bits: float, head_bits: int) -> tuple[Path, Path]:
    """Our directory and llama.cpp's file, made unless they are there."""
    full = folder / f"{name}-F16.gguf"
    if not full.is_file():
        write_gguf(full, shape, CONTEXT)
    if kind == "F16":
        ours = folder / f"{name}-fp16"
        return (ours if ours.is_dir() else write_dense(ours, shape, CONTEXT)), full
    theirs = folder / f"{name}-{kind}.gguf"
    if not theirs.is_file():
        quantize_gguf(full, theirs, kind, multiprocessing.cpu_count())
    ours = folder / f"{name}-exl2-{bits}"
    return (ours if ours.is_dir() else write_exl2(ours, shape, bits, head_bits, CONTEXT)), theirs


def weight_bytes(path: Path, shape: Shape) -> int:
    """Bytes that one token reads: all weights but the embedding."""
    stored = path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return stored - shape.vocab * shape.hidden * 2 if path.is_dir() else stored


def table(rows: list[dict[str, Any]], bandwidth: float) -> str:
    """Markdown. Our share of the read bandwidth counts weights only."""
    lines = [
        "| model | llama.cpp | bpw | threads | decode t/s (theirs) | ratio | of bandwidth "
        "| at 2048 | prompt 512 t/s | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        our, their = row["ours"], row["llama.cpp"]
        share = our["decode"] * row["our_bytes"] / bandwidth
        lines.append(
            f"| {row['shape']} | {row['kind']} | {row['bits']:.2f} | {row['threads']} "
            f"| {our['decode']:.1f} ({their['decode']:.1f}) | **{our['decode'] / their['decode']:.2f}** | {share:.0%} "
            f"| {our['decode at 2048']:.1f} ({their['decode at 2048']:.1f}), "
            f"{our['decode at 2048'] / their['decode at 2048']:.2f} "
            f"| {our['prompt']:.0f} ({their['prompt']:.0f}) | **{our['prompt'] / their['prompt']:.2f}** |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=["1.1B"], choices=[*SHAPES])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench-models", help="where models are made")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kinds", nargs="*", default=[kind for kind, _, _ in PAIRS])
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)

    from exl2_tui.core.speed import read_bandwidth

    bandwidth = read_bandwidth()
    rows = []
    for name in options.shapes:
        for kind, bits, head_bits in PAIRS:
            if kind not in options.kinds:
                continue
            ours, theirs = files(options.folder, name, SHAPES[name], kind, bits, head_bits)
            for threads in options.threads:
                row = compare(ours, theirs, threads, options.repeats)
                row |= {"shape": name, "kind": kind, "bits": bits, "threads": threads}
                row |= {
                    "our_bytes": weight_bytes(ours, SHAPES[name]),
                    "their_bytes": weight_bytes(theirs, SHAPES[name]),
                }
                rows.append(row)
                print(table(rows[-1:], bandwidth).splitlines()[-1], flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    report = {
        "commit": commit.stdout.strip(),
        "machine": platform.processor() or platform.machine(),
        "cores": multiprocessing.cpu_count(),
        "bandwidth": bandwidth,
        "rows": rows,
    }
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    target = results / f"cpu_vs_llamacpp_{'_'.join(options.shapes)}.json"
    target.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nread bandwidth {bandwidth / 1e9:.1f} GB/s\n\n{table(rows, bandwidth)}\n\n{target}")


if __name__ == "__main__":
    main()
