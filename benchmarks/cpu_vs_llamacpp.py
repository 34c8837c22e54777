"""Our CPU engine against llama.cpp at equal stored bytes, in one run; the results go on where the last run stopped.

    python -m venv LLAMA; CMAKE_ARGS=-DGGML_NATIVE=ON LLAMA/bin/pip install llama-cpp-python   # built from source
    pip install gguf
    python benchmarks/cpu_vs_llamacpp.py --llama LLAMA/bin/python 1.1B 7B MODEL_DIRECTORY ...
    python benchmarks/cpu_table.py              # the results as the tables of docs/performance.md

A model is a shape of random weights, made here, or a directory of trained float16 weights; --exl2 names directories
with EXL2 conversions of trained models. Of random weights we choose bits so that the decoder's layers and the head
together hold the bytes that llama.cpp's do; what both really hold is read from both files.

A row is a model, a llama.cpp quantization and a number of threads. Both engines run in processes of their own
(cpu_engine.py) and take turns in short runs, each with a measurement of the memory's read bandwidth before it, so that
what else the machine does hits both; how many cores other processes kept busy is counted. llama.cpp runs as it is and
without its repacking of weights; the faster one counts, for decoding and for prompts separately. Every raw number goes
to benchmarks/results/cpu_vs_llamacpp.json, under the name of the processor.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from gguf_models import quantize, random_tensors, read_bytes, write_gguf
from random_models import SHAPES, Shape, write_dense, write_exl2

from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.model.estimate import cache_bytes, narrowed_bytes
from exl2_tui.core.model.layout import model_linears
from exl2_tui.core.model.weights import linear_names
from exl2_tui.core.speed import read_bandwidth, read_buffer

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cpu_vs_llamacpp.json"
# llama.cpp's quantizations, and the bits of our head; of the layers' bits see matched_bits().
KINDS = {"Q2_K": 6, "Q3_K_M": 6, "Q4_0": 6, "Q4_K_M": 6, "Q5_K_M": 6, "Q6_K": 6, "Q8_0": 8, "F16": 16, "BF16": 16}
PROMPT = 512
FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16}
RUN_SECONDS = 0.2  # of decoding at a time
CPU_NAMES = {  # by vendor, family and, of Intel's, model
    ("AuthenticAMD", 26): "Zen 5",
    ("AuthenticAMD", 25): "Zen 3/4",
    ("GenuineIntel", 6, 143): "Sapphire Rapids",
    ("GenuineIntel", 6, 207): "Emerald Rapids",
}


@dataclass(frozen=True)
class Pair:
    """The same model in both programs' formats. read: bytes of layers and head, which every token reads."""

    ours: Path
    theirs: Path
    our_read: int
    their_read: int
    context: int
    depth: int


class EngineEndedError(Exception):
    """A measured process ended before its answer."""


class Child:
    """An engine in its process."""

    def __init__(self, python: str, engine: str, path: Path, threads: int, context: int, *flags: str) -> None:
        script = Path(__file__).with_name("cpu_engine.py")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [python, str(script), engine, str(path), str(threads), str(context), *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.started: dict[str, Any] = self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise EngineEndedError(f"a measured process ended early: {self.process.args}")
        return json.loads(line)

    def ask(self, *job: object) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Comparison:
    """Both engines on one pair with some threads."""

    def __init__(self, pair: Pair, threads: int, llama: str) -> None:
        self.pair, self.threads, self.llama = pair, threads, llama

    def child(self, engine: str, *flags: str) -> Child:
        pair = self.pair
        if engine == "ours":
            return Child(sys.executable, "ours", pair.ours, self.threads, pair.context, *flags)
        flags = ("--plain", *flags) if engine == "plain" else flags
        return Child(self.llama, "llama.cpp", pair.theirs, self.threads, pair.context, *flags)

    def rivals(self) -> list[str]:
        """llama.cpp as it is and without its repacking, of these what runs here."""
        found = [engine for engine in ("llama.cpp", "plain") if self._runs(engine)]
        if not found:
            raise SystemExit("llama.cpp does not run here")
        return found

    def _runs(self, engine: str) -> bool:
        """Built with AMX, 0.3.36 ends with an illegal instruction at its first prompt: its tiles have no shape."""
        try:
            child = self.child(engine)
            child.ask("prompt", 32)
            child.close()
        except EngineEndedError as error:
            print(f"  left out: {error}", flush=True)
            return False
        return True

    def starts(self, repeats: int) -> list[dict[str, Any]]:
        """Starts with the files out of the page cache, then in it: load time, time to the first token, memory.

        Each of our starts follows a process of llama.cpp and each of theirs one of ours: memory that a program has just
        given back is faster to get, and so neither finds its own. Two kinds of starts: with a single token, and, from
        the page cache only, with a prompt, after which memory is looked at.
        """
        found = []
        rivals = self.rivals()
        turns = [engine for rival in rivals for engine in ("ours", rival)]
        self.child("plain").close()
        for cache, flags in [("cold", []), *[("warm", []), ("warm", ["--prompt"])] * repeats]:
            for engine in turns:
                (drop_from_cache if cache == "cold" else read_into_cache)(self.files(engine))
                child = self.child(engine, *flags)
                entry = {"engine": engine, "cache": cache, **child.started}
                if flags:
                    entry["first_token_of_prompt"] = entry.pop("first_token")
                    entry["peak_memory"] = child.ask("peak")
                child.close()
                found.append(entry)
        return found

    def files(self, engine: str) -> list[Path]:
        return sorted(self.pair.ours.glob("*.safetensors")) if engine == "ours" else [self.pair.theirs]

    def rounds(self, count: int, prompts: int) -> dict[str, Any]:
        """Seconds per token of each engine, in rounds: of decoding at both depths, then of prompts."""
        found = self.rivals()
        children = {engine: self.child(engine) for engine in ("ours", *found)}
        labels = {engine: child.started["label"] for engine, child in children.items()}
        pace = {engine: min(child.ask("decode", 0, 4) for _ in range(3)) for engine, child in children.items()}
        rivals = [min(found, key=pace.__getitem__)]
        depths = [0, self.pair.depth]
        watch = Watch([os.getpid(), *(child.process.pid for child in children.values())])
        buffer = read_buffer()
        decoding = []
        for _ in range(count):
            entry: dict[str, Any] = {}
            for depth in depths:
                for engine in ("ours", *rivals):
                    entry[f"bandwidth {engine} {depth}"] = read_bandwidth(threads=self.threads, passes=3, buffer=buffer)
                    tokens = max(3, min(64, round(RUN_SECONDS / pace[engine])))
                    entry[f"{engine} {depth}"] = children[engine].ask("decode", depth, tokens)
            decoding.append(entry)
        prompting = [
            {engine: child.ask("prompt", PROMPT) for engine, child in children.items()} for _ in range(prompts)
        ]
        others = watch.others()
        for child in children.values():
            child.close()
        return {
            "labels": labels,
            "pace": pace,
            "rival": rivals[0],
            "others": others,
            "decode": decoding,
            "prompt": prompting,
        }


class Watch:
    """How many cores other processes kept busy, since it was made: a row is worth nothing if that is not near 0."""

    def __init__(self, pids: list[int]) -> None:
        self.pids = pids
        self.began = self._seconds()

    def others(self) -> float:
        wall, machine, ours = (now - before for now, before in zip(self._seconds(), self.began, strict=True))
        return max(0.0, (machine - ours) / wall)

    def _seconds(self) -> tuple[float, float, float]:
        """Of the clock; that any core was busy, or kept from us by the machine's host; that `pids` ran."""
        tick = os.sysconf("SC_CLK_TCK")
        user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
        fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.pids]
        ours = sum(int(found[11]) + int(found[12]) for found in fields)  # utime, stime
        return time.monotonic(), (user + nice + system + irq + softirq + steal) / tick, ours / tick


def drop_from_cache(files: list[Path]) -> None:
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_into_cache(files: list[Path]) -> None:
    buffer = bytearray(1 << 24)
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


class Models:
    """Makes the files that are not there yet."""

    def __init__(self, folder: Path, llama: str, conversions: list[Path]) -> None:
        self.folder, self.llama, self.conversions = folder, llama, conversions
        folder.mkdir(parents=True, exist_ok=True)

    def pair(self, model: str, kind: str) -> Pair:
        if model in SHAPES:
            return self._random(model, SHAPES[model], kind)
        return self._trained(Path(model), kind)

    def _random(self, name: str, shape: Shape, kind: str) -> Pair:
        context, depth = 2688, 2048
        config = ModelConfig.from_dict(shape.config(context))
        full = self.folder / f"{name}-F16.gguf"
        theirs = full if kind == "F16" else self.folder / f"{name}-{kind}.gguf"
        if not theirs.is_file():
            if not full.is_file():
                write_gguf(full.with_suffix(".part"), config, random_tensors(), context).rename(full)
            if kind != "F16":
                quantize(self.llama, full, theirs, kind, os.cpu_count() or 1)
        their_read = sum(read_bytes(theirs))
        ours = self.folder / f"{name}-as-{kind}"
        if not (ours / "config.json").is_file():
            if kind in FLOATS:
                write_dense(ours, shape, context, dtype=FLOATS[kind])
            else:
                write_exl2(ours, shape, matched_bits(config, their_read, KINDS[kind]), KINDS[kind], context)
        return Pair(ours, theirs, stored_bytes(ours), their_read, context, depth)

    def _trained(self, directory: Path, kind: str) -> Pair:
        """Ours: the original for floats, else the conversion of it that is nearest in bytes."""
        config = ModelConfig.from_dir(directory)
        context = config.max_position_embeddings
        full = self.folder / f"{directory.name}-F16.gguf"
        theirs = full if kind == "F16" else self.folder / f"{directory.name}-{kind}.gguf"
        with Checkpoint.open(directory) as checkpoint:
            if not full.is_file():
                write_gguf(full.with_suffix(".part"), config, lambda name, _: checkpoint.tensor(name).numpy(), context)
                full.with_suffix(".part").rename(full)
        if not theirs.is_file():
            quantize(self.llama, full, theirs, kind, os.cpu_count() or 1)
        their_read = sum(read_bytes(theirs))
        candidates = [directory] if kind in FLOATS else self.conversions
        sizes = {path: stored_bytes(path) for path in candidates}
        ours = min(sizes, key=lambda path: abs(sizes[path] - their_read))
        return Pair(ours, theirs, sizes[ours], their_read, context, context - 128)


def stored_bytes(directory: Path) -> int:
    """Of all linears as they lie in memory, where a token reads each once; read_bytes() counts them in a GGUF file."""
    with Checkpoint.open(directory) as checkpoint:
        config = ModelConfig.from_dir(directory)
        names = [name for spec in model_linears(config) for name in linear_names(checkpoint, spec)]
        return sum(checkpoint.info(name).nbytes for name in names) - narrowed_bytes(checkpoint, config)


def matched_bits(config: ModelConfig, read: int, head_bits: float) -> float:
    """Bits per weight of the layers, so that with such a head both together take `read` bytes."""
    weights = [spec.in_features * spec.out_features for spec in model_linears(config) if spec.prefix != "lm_head"]
    head = config.vocab_size * config.hidden_size * head_bits / 8
    return (read - head) * 8 / sum(weights)


def commit() -> str:
    found = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
    return found.stdout.strip()


def machine() -> str:
    """As /proc/cpuinfo tells it."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    kind = (fields.get("vendor_id", ""), int(fields.get("cpu family", 0)), int(fields.get("model", 0)))
    core = CPU_NAMES.get(kind) or CPU_NAMES.get(kind[:2])
    flags = fields.get("flags", "").split()
    vectors = "AVX-512 with VNNI" if "avx512_vnni" in flags else "AVX2"
    vectors += " and AMX" if "amx_int8" in flags else ""
    name = fields.get("model name", platform.machine())
    return f"{name}{f' ({core})' if core else ''}, {os.cpu_count()} cores, {vectors}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help=f"{', '.join(SHAPES)} or a directory")
    parser.add_argument("--llama", default=sys.executable, help="the Python that has llama-cpp-python")
    parser.add_argument("--exl2", type=Path, nargs="*", default=[], help="conversions of the trained model")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench-models", help="where models are made")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7, help="of decoding")
    parser.add_argument("--prompts", type=int, default=3, help="repetitions of the prompt")
    parser.add_argument("--starts", type=int, default=0, help="also measure loading, so many turns from a warm cache")
    parser.add_argument("--only-starts", action="store_true", help="and nothing else, of rows that are there")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no row after so long")
    parser.add_argument("--again", action="store_true", help="measure rows again that are there")
    parser.add_argument("--only-make", action="store_true", help="make the files, measure nothing")
    options = parser.parse_args()
    began = time.monotonic()
    models = Models(options.folder, options.llama, options.exl2)
    report = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    rows = report.setdefault(machine(), {})
    isa = os.environ.get("EXL2_TUI_ISA", "")
    for model in options.models:
        for kind in options.kinds:
            pair = models.pair(model, kind)
            off = pair.our_read / pair.their_read - 1
            print(f"{model} {kind}: {pair.our_read / 1e6:.1f} MB ({pair.their_read / 1e6:.1f}, {off:+.2%})", flush=True)
            for threads in [] if options.only_make else options.threads:
                key = " ".join([Path(model).name, kind, str(threads), isa]).strip()
                done = rows.get(key, {})
                if options.only_starts and not done:
                    continue
                parts = [*([] if options.only_starts else ["rounds"]), *(["starts"] if options.starts else [])]
                wanted = [part for part in parts if options.again or part not in done]
                if not wanted or time.monotonic() - began > 60 * options.minutes:
                    continue
                comparison = Comparison(pair, threads, options.llama)
                row = {
                    **done,
                    "model": Path(model).name,
                    "kind": kind,
                    "threads": threads,
                    "isa": isa,
                    "our_read": pair.our_read,
                    "their_read": pair.their_read,
                    "depth": pair.depth,
                    "our_file": sum(file.stat().st_size for file in pair.ours.glob("*.safetensors")),
                    "their_file": pair.theirs.stat().st_size,
                    "cache_bytes": cache_bytes(ModelConfig.from_dir(pair.ours), pair.context, "fp16"),
                }
                version = {"commit": commit(), "date": datetime.now(timezone.utc).isoformat(timespec="minutes")}
                if "starts" in wanted:
                    row["starts"] = comparison.starts(options.starts)
                    row["starts_commit"] = version["commit"]
                if "rounds" in wanted:
                    row["rounds"] = comparison.rounds(options.rounds, options.prompts)
                    row |= version
                rows[key] = row
                RESULTS.write_text(json.dumps(report, indent=1) + "\n")
                print(f"  {key}: {short(row)} ({time.monotonic() - began:.0f} s)", flush=True)


def short(row: dict[str, Any]) -> str:
    """The row's ratios, for whoever watches."""
    rounds = row["rounds"]
    rival = rounds["rival"]
    rivals = [engine for engine in rounds["pace"] if engine != "ours"]
    found = []
    for depth in (0, row["depth"]):
        ours = statistics.median(entry[f"ours {depth}"] for entry in rounds["decode"])
        theirs = statistics.median(entry[f"{rival} {depth}"] for entry in rounds["decode"])
        width = statistics.median(entry[f"bandwidth ours {depth}"] for entry in rounds["decode"])
        found.append(
            f"at {depth} {1 / ours:.1f} t/s ({1 / theirs:.1f}), {theirs / ours:.2f}, "
            f"{row['our_read'] / ours / width:.0%} of {width / 1e9:.0f} GB/s"
        )
    for field in ("load", "first_token_of_prompt") if "starts" in row else ():
        ours, *theirs = (
            statistics.median(
                entry[field]
                for entry in row["starts"]
                if entry["engine"] == engine and entry["cache"] == "warm" and field in entry
            )
            for engine in ("ours", *rivals)
        )
        found.append(f"{field} {ours:.2f} s ({min(theirs):.2f})")
    ours = statistics.median(entry["ours"] for entry in rounds["prompt"])
    theirs = min(statistics.median(entry[name] for entry in rounds["prompt"]) for name in rivals)
    return "; ".join(
        [
            *found,
            f"prompt {1 / ours:.0f} ({1 / theirs:.0f}), {theirs / ours:.2f}",
            f"rival {rival}",
            f"others {rounds['others']:.2f} cores",
        ]
    )


if __name__ == "__main__":
    main()
