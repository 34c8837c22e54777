"""Our CUDA engine against exllamav2 on the same files, on one GPU, in one run, measured alternately.

    python benchmarks/gpu_vs_exllamav2.py                                # all cases
    python benchmarks/gpu_vs_exllamav2.py 7B:exl2:4.0 7B:gptq-act        # some
    python benchmarks/gpu_vs_exllamav2.py --seconds 540 --results FILE   # stops in time; the next call goes on

Per case: a directory with random weights, made on the GPU, is loaded by both engines; decode at depth 0 and 2048 (the
token's way to the host included), a prompt of 2048, kernel time per token and layer from a profile, the share of the
read bandwidth measured in the same run, and how close the logits of both are. Medians of the repetitions; the spread
is (max - min) / median. exllamav2 is the PyPI package, with whatever attention it finds; docs/cuda.md says how to bring
it to a machine without a network.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from gpu_models import CONTEXT, SHAPES, Case, write_model
from torch import Tensor

from exl2_tui.core.generation.generator import PASSAGE_SECONDS
from exl2_tui.core.generation.sampler import Sampler
from exl2_tui.core.model.passage import WritesPassages
from exl2_tui.core.requests import SamplerSettings

DEPTH = 2048
TOKENS = 48  # per repetition of a decode
PROFILED = 8
DEFAULT = (
    "7B:exl2:4",
    "1.1B:exl2:4",
    "8B:exl2:4",
    "7B:exl2:2.5",
    "7B:exl2:5",
    "7B:exl2-g32:4",
    "7B:gptq",
    "7B:gptq-act",
    "34B:exl2:2.5",
    "70B:exl2:2.5",
)


class Engine(Protocol):
    """One model with one cache."""

    def run(self, ids: Sequence[int]) -> Tensor:
        """Appends the tokens; logits (V,) float32 on the CPU of the last one."""

    def write(self, token: int, count: int) -> int:
        """Appends the token and the most probable ones behind it, `count` in all; the one behind them."""

    def truncate(self, length: int) -> None: ...

    def close(self) -> None: ...


class Ours:
    def __init__(self, path: Path, device: torch.device) -> None:
        from exl2_tui.core.checkpoint import Checkpoint
        from exl2_tui.core.config import ModelConfig
        from exl2_tui.core.model.loader import load_model
        from exl2_tui.core.requests import LoadOptions

        with Checkpoint.open(path) as checkpoint:
            self.model = load_model(checkpoint, ModelConfig.from_dir(path), LoadOptions(CONTEXT, device=str(device)))
        if device.type == "cuda" and not self.model.kernels.startswith("CUDA"):
            raise SystemExit(f"our kernels are not used: {self.model.kernels}")
        self.cache = self.model.new_cache(CONTEXT)

    def run(self, ids: Sequence[int]) -> Tensor:
        return self.model.forward(ids, self.cache)

    def write(self, token: int, count: int) -> int:
        """In passages, as the generator writes."""
        assert isinstance(self.model, WritesPassages)
        sampler = Sampler(SamplerSettings.greedy(), self.model.config.vocab_size)
        history = sampler.history()
        while count:
            choice = sampler.ahead(history, count)
            assert choice is not None
            passage = self.model.write(token, self.cache, choice, stop_ids=(), seconds=PASSAGE_SECONDS)
            tokens = list(passage.tokens)
            if passage.logits is not None:
                tokens.append(sampler.sample(passage.logits, history))
            token = tokens[-1]
            count -= len(tokens)
        return token

    def truncate(self, length: int) -> None:
        self.cache.truncate(length)

    def close(self) -> None:
        self.model.close()


class ExLlamaV2:
    """As exllamav2's own speed test runs it: one forward per token, argmax on the GPU."""

    def __init__(self, path: Path, device: torch.device) -> None:
        try:
            import exllamav2
        except ImportError as error:
            raise SystemExit(
                f'exllamav2 cannot be imported ({error}): see docs/cuda.md, "Running on a lent GPU"'
            ) from None
        config = exllamav2.ExLlamaV2Config(str(path))
        config.max_seq_len = CONTEXT
        self.model = exllamav2.ExLlamaV2(config)
        self.model.load()
        self.cache = exllamav2.ExLlamaV2Cache(self.model, max_seq_len=CONTEXT)

    def run(self, ids: Sequence[int]) -> Tensor:
        logits = self.model.forward(torch.tensor([list(ids)]), self.cache, last_id_only=True)
        last: Tensor = logits[0, -1]
        return last.float().cpu()

    def write(self, token: int, count: int) -> int:
        for _ in range(count):
            token = int(self.model.forward(torch.tensor([[token]]), self.cache)[0, -1].argmax())
        return token

    def truncate(self, length: int) -> None:
        self.cache.current_seq_len = length

    def close(self) -> None:
        self.model.unload()


Maker = Callable[[Path, torch.device], Engine]
ENGINES: dict[str, Maker] = {"ours": Ours, "exllamav2": ExLlamaV2}


def expected_seconds(case: Case) -> float:
    """To write, load twice and measure; before anything was measured, so on the safe side."""
    return 20 + 4e-9 * case.weight_bytes


def reason_to_skip(case: Case, done: set[str], seconds: float, room: int) -> str:
    """Why a case is left out, "" if it is to run. done: cases with results; seconds: left of this call.

    room: bytes of GPU memory; both models must fit at once.
    """
    if str(case) in done:
        return "done before"
    if 2 * case.weight_bytes + (8 << 30) > room:
        return f"two models of {case.weight_bytes / 1e9:.0f} GB do not fit into {room / 1e9:.0f} GB"
    if expected_seconds(case) > seconds:
        return f"may take {expected_seconds(case):.0f} s, but {max(0, seconds):.0f} s are left"
    return ""


def measure(engines: dict[str, Engine], repeats: int, vocab: int, layers: int, depth: int = DEPTH) -> dict[str, Any]:
    """Both engines in turn: tokens per second by job, spread, kernel times, and how far their logits are apart."""
    prompt = [(7919 * i + 13) % vocab for i in range(depth)]
    result: dict[str, Any] = {name: {} for name in engines}

    def decode(engine: Engine, start: int) -> float:
        engine.truncate(start)
        token = engine.write(7, 1)
        began = time.perf_counter()
        engine.write(token, TOKENS)
        return (time.perf_counter() - began) / TOKENS

    def read(engine: Engine) -> float:
        engine.truncate(0)
        began = time.perf_counter()
        engine.run(prompt)
        return (time.perf_counter() - began) / depth

    jobs = {
        "decode": lambda engine: decode(engine, 0),
        "prompt": read,  # also fills the cache for the next
        "decode_deep": lambda engine: decode(engine, depth),
    }
    for job, run in jobs.items():
        times: dict[str, list[float]] = {name: [] for name in engines}
        for engine in engines.values():
            run(engine)  # warm up
        for _ in range(repeats):
            for name, engine in engines.items():
                times[name].append(run(engine))
        for name, values in times.items():
            middle = statistics.median(values)
            result[name][job] = 1 / middle
            result[name][f"{job}_spread"] = (max(values) - min(values)) / middle
    for name, engine in engines.items():
        seconds = kernel_seconds(engine)
        result[name] |= {"kernel_ms": 1e3 * seconds, "kernel_us_per_layer": 1e6 * seconds / layers}
    result["distance"] = distance(list(engines.values()), prompt[:32])
    return result


def kernel_seconds(engine: Engine) -> float:
    """Time that kernels take on the GPU per token, at depth 0, from a profile; 0 without a GPU.

    Without the one that waits for the host's token (csrc/cuda/passage.cu).
    """
    if not torch.cuda.is_available():
        return 0.0
    engine.truncate(0)
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        engine.write(7, PROFILED)
        torch.cuda.synchronize()
    events = (event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA)
    times = (float(event.time_range.elapsed_us()) for event in events if "read_mail" not in event.name)
    return sum(times) * 1e-6 / PROFILED


def distance(engines: Sequence[Engine], ids: Sequence[int]) -> float:
    """Relative difference of the logits after the same tokens, one at a time (see tools/check_with_exllamav2.py)."""
    found = []
    for engine in engines:
        engine.truncate(0)
        found.append([engine.run([token]) for token in ids][-1])
    return float((found[0] - found[-1]).norm() / found[-1].norm())


def read_results(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.is_file() else []
    return rows


def write_results(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Whole or not at all: a call that is cut off leaves the rows before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps({"rows": list(rows)}, indent=1) + "\n")
    partial.replace(path)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: ours, exllamav2 in brackets, ratio."""
    lines = [
        "| model | decode t/s | ratio | of bandwidth | decode at 2048 | ratio | prompt t/s | ratio "
        "| kernels, us per layer | logits apart |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours, theirs = row["ours"], row["exllamav2"]

        def both(job: str, ours: dict[str, float] = ours, theirs: dict[str, float] = theirs) -> str:
            return f"{ours[job]:.0f} ({theirs[job]:.0f}) | **{ours[job] / theirs[job]:.2f}**"

        share = ours["decode"] * row["read_bytes"] / row["bandwidth"]
        lines.append(
            f"| {row['case']} | {both('decode')} | {share:.0%} | {both('decode_deep')} | {both('prompt')} "
            f"| {ours['kernel_us_per_layer']:.1f} ({theirs['kernel_us_per_layer']:.1f}) | {row['distance']:.1e} |"
        )
    return "\n".join(lines)


def run_case(
    case: Case, folder: Path, device: torch.device, bandwidth: float, repeats: int, engines: dict[str, Maker]
) -> dict[str, Any]:
    """Writes, loads, measures and removes one case."""
    path = folder / str(case).replace(":", "-")
    shutil.rmtree(path, ignore_errors=True)
    began = time.perf_counter()
    shape = SHAPES[case.shape]
    try:
        write_model(path, case, device)
        stored = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        written = time.perf_counter() - began
        running = {name: make(path, device) for name, make in engines.items()}
        loaded = time.perf_counter() - began - written
        depth = min(DEPTH, CONTEXT - TOKENS - 2)
        row = measure(running, repeats, shape.vocab, shape.layers, depth)
        for engine in running.values():
            engine.close()
    finally:
        shutil.rmtree(path, ignore_errors=True)
    return row | {
        "case": str(case),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "bandwidth": bandwidth,
        "read_bytes": stored - 2 * shape.vocab * shape.hidden,  # all weights but the embedding
        "write_seconds": written,
        "load_seconds": loaded,
        "seconds": time.perf_counter() - began,
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", type=Case.parse, default=[Case.parse(text) for text in DEFAULT])
    parser.add_argument("--results", type=Path, default=Path("build/gpu_vs_exllamav2.json"), help="rows so far")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "gpu-models")
    parser.add_argument("--seconds", type=float, default=3600, help="starts no case that may end after this")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args(arguments)


def main() -> None:
    began = time.perf_counter()
    options = parse(sys.argv[1:])
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device was found: this benchmark needs one")
    from exl2_tui.core.speed import read_bandwidth

    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "{}.{}".format(*torch.cuda.get_device_capability()))
    device = torch.device("cuda", torch.cuda.current_device())
    name, room = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory
    rows = read_results(options.results)
    done = {row["case"] for row in rows if row["device"] == name}  # another GPU's rows are no comparison
    bandwidth = read_bandwidth(device)
    print(f"{name}, torch {torch.__version__}, read bandwidth {bandwidth / 1e9:.0f} GB/s", flush=True)
    for case in options.cases:
        reason = reason_to_skip(case, done, options.seconds - (time.perf_counter() - began), room)
        if reason:
            print(f"{case}: left out: {reason}", flush=True)
            continue
        row = run_case(case, options.folder, device, bandwidth, options.repeats, ENGINES)
        rows.append(row)
        write_results(options.results, rows)
        torch.cuda.empty_cache()
        print(table([row]).splitlines()[-1] + f" {row['seconds']:.0f} s", flush=True)
    print("\n" + table([row for row in rows if row["device"] == name]))


if __name__ == "__main__":
    main()
