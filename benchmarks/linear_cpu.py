"""Single linears of 7B models on the CPU: python benchmarks/linear_cpu.py [--threads 1 2] [--isa avx2] [--json]

One token is bound by memory, so each row counts the bytes that the weight moves and says what fraction of the measured
read bandwidth that is; many tokens are bound by arithmetic: billions of operations (2 per weight and token) a second.
Each thread multiplies weights of its own, of 64 MiB and more together, so that none is still in a cache when it comes
round again. The median of the repetitions counts; on a busy machine only the best one means something.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from exl2_tui.core.formats import DenseWeight, Exl2Weight, LinearWeight
from exl2_tui.core.ops import Isa, PackedLinear, capabilities, pack_linear, quant_matmul
from exl2_tui.core.ops.native import ISAS
from exl2_tui.core.speed import read_bandwidth

SHAPES = [(4096, 4096), (4096, 11008), (11008, 4096)]
EXL2 = [(2, 32), (2, 64), (3, 64), (4, 32), (4, 128), (5, 128), (6, 128), (8, 128)]  # bits, rows of a group
TOKENS = [1, 4, 512]
COLD_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """bytes: of the packed weight, read once per call. Seconds are per call and thread."""

    weight: str
    k: int
    n: int
    tokens: int
    threads: int
    bytes: int
    median_seconds: float
    best_seconds: float
    gigabytes_per_second: float
    bandwidth_fraction: float
    gigaops_per_second: float


def random_exl2(bits: int, group: int, k: int, n: int) -> Exl2Weight:
    words = (k * bits // 32, n)
    starts = torch.arange(k // group) * (group * bits // 32)
    return Exl2Weight(
        q_weight=torch.randint(-(2**31), 2**31, words, dtype=torch.int32),
        q_scale=torch.randint(-(2**31), 2**31, (k // group, n // 8), dtype=torch.int32),
        q_scale_max=torch.full((k // group,), 0.01, dtype=torch.float16),
        q_groups=torch.stack([torch.full_like(starts, bits), starts], dim=1).flatten().to(torch.int16),
        q_invperm=torch.randperm(k).int(),
        bias=None,
        out_features=n,
    )


def weights(k: int, n: int) -> dict[str, tuple[LinearWeight, bool]]:
    """Name -> (weight, exact)."""
    found: dict[str, tuple[LinearWeight, bool]] = {
        f"exl2 {bits} bit / {group}": (random_exl2(bits, group, k, n), False) for bits, group in EXL2
    }
    found["exl2 4 bit / 128 exact"] = (random_exl2(4, 128, k, n), True)
    found["float16"] = (DenseWeight(torch.randn(n, k).half(), None), True)
    return found


def timed(packed: Sequence[Sequence[PackedLinear]], tokens: int, repeats: int) -> list[float]:
    """Seconds per call of each repetition; packed[t]: the copies that thread t goes through."""
    x = torch.randn(tokens, packed[0][0].in_features)
    outs = [torch.empty(tokens, packed[0][0].out_features) for _ in packed]
    seconds = []

    def run(mine: Sequence[PackedLinear], out: torch.Tensor) -> None:
        for weight in mine:
            quant_matmul(x, weight, out)

    for _ in range(repeats):
        others = [threading.Thread(target=run, args=pair) for pair in zip(packed[1:], outs[1:], strict=True)]
        started = time.perf_counter()
        for other in others:
            other.start()
        run(packed[0], outs[0])
        for other in others:
            other.join()
        seconds.append((time.perf_counter() - started) / len(packed[0]))
    return seconds


def copies(packed: PackedLinear, count: int) -> list[PackedLinear]:
    made = [packed]
    for _ in range(count - 1):
        blob = torch.empty(packed.blob.nbytes + 64, dtype=torch.uint8)
        blob = blob[-blob.data_ptr() % 64 :][: packed.blob.nbytes].copy_(packed.blob)
        fields = {name: getattr(packed, name) for name in PackedLinear.__dataclass_fields__}
        made.append(PackedLinear(**{**fields, "blob": blob}))
    return made


def measure(args: argparse.Namespace, bandwidth: float) -> list[Row]:
    rows = []
    for k, n in SHAPES[: args.shapes]:
        for name, (weight, exact) in weights(k, n).items():
            packed = pack_linear(weight, exact=exact, isa=args.isa)
            cold = copies(packed, max(args.threads) * (1 + COLD_BYTES // packed.nbytes))
            for tokens in args.tokens:
                for threads in args.threads:
                    share = len(cold) // threads if tokens < 64 else 1
                    parts = [cold[t * share : (t + 1) * share] for t in range(threads)]
                    seconds = timed(parts, tokens, args.repeats)
                    middle = statistics.median(seconds)
                    speed = threads * packed.nbytes / middle
                    row = Row(
                        weight=name,
                        k=k,
                        n=n,
                        tokens=tokens,
                        threads=threads,
                        bytes=packed.nbytes,
                        median_seconds=middle,
                        best_seconds=min(seconds),
                        gigabytes_per_second=speed / 1e9,
                        bandwidth_fraction=speed / bandwidth,
                        gigaops_per_second=threads * 2 * tokens * k * n / middle / 1e9,
                    )
                    rows.append(row)
                    if not args.json:
                        show(row)
    return rows


def show(row: Row) -> None:
    print(
        f"{row.weight:23} {row.k:5} x {row.n:5} {row.tokens:4} tokens {row.threads} threads"
        f" {row.bytes / 2**20:7.1f} MiB {row.median_seconds * 1e6:9.0f} us (best {row.best_seconds * 1e6:9.0f})"
        f" {row.gigabytes_per_second:6.1f} GB/s {row.bandwidth_fraction:5.0%} {row.gigaops_per_second:6.0f} GOP/s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--shapes", type=int, default=2, help="how many of the shapes")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--isa", choices=ISAS, default=None)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    isa: Isa | None = args.isa or capabilities().isa
    torch.set_num_threads(max(args.threads))
    bandwidth = read_bandwidth()
    if not args.json:
        print(f"{isa}; memory reads at {bandwidth / 1e9:.1f} GB/s with {max(args.threads)} threads")
    rows = measure(args, bandwidth)
    if args.json:
        print(json.dumps({"isa": isa, "bandwidth": bandwidth, "rows": [asdict(row) for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
