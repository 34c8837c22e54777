"""Both recipes at all bitrates, judged on the judge half of val.jsonl: what benchmarks/quality/README.md shows.

    python benchmarks/quality/table.py MODELS VAL.jsonl WORK RESULTS.json [--models nano-chat,small-chat] [--rows 32]

MODELS holds the float16 directories. Every row is a plain conversion job in WORK: a job that was interrupted goes on
with the same command, and a row that RESULTS.json already has is not judged again. At the end, and with --print at
once, the tables are printed as Markdown; intervals are 95 % of 10,000 bootstrap samples of the items.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import heldout
import texts
import torch
from heldout import Run, Score

from exl2_tui.core.job_events import JobFinished, JobProgress, ModelWritten, Tuned
from exl2_tui.core.quant.job import ConvertJob
from exl2_tui.core.requests import ConvertRequest

BITS = (2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)
KINDS: dict[str, dict[str, Any]] = {
    "classic": {"recipe": "classic", "bits": BITS},
    "refined": {"recipe": "refined", "bits": (2.5, 4.0, 8.0, 3.0, 6.0, 3.5, 5.0)},
    "auto": {"recipe": "refined", "bits": BITS[:4], "head_bits": None},
}
"""Columns of the table: the recipes, and the refined one with the bits of the head inside the budget."""
SAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Made:
    """A finished model: CPU seconds since the one before; KL on rows that tuning did not see, before and after it."""

    bits: float
    path: Path
    seconds: float
    tuned: tuple[float, float] | None


class Results:
    """The file of all rows: key "model/kind/bits" -> bytes, summary and the scores per item."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}

    def add(self, key: str, made: Made, scores: list[Score]) -> None:
        self.rows[key] = {
            "bytes": heldout.stored_bytes(made.path),
            "cpu_seconds": round(made.seconds),
            "tuned": made.tuned,
            **{kind: heldout.summary(scores, kind) for kind in ("text", "chat")},
            "items": [
                [score.kind, score.tokens, round(score.kl, 5), score.same, round(score.loss, 4)] for score in scores
            ],
        }
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(self.rows, indent=None, separators=(",", ":")).replace('},"', '},\n"') + "\n")
        partial.replace(self.file)


def convert(request: ConvertRequest) -> Iterator[Made]:
    """Every finished model of a job."""
    job = ConvertJob.open(request)
    began = cpu_seconds()
    tuned: tuple[float, float] | None = None
    try:
        for event in job.run():
            if isinstance(event, JobProgress):
                print(f"{request.work}: {event.stage} {event.detail}, {event.done} of {event.total}", flush=True)
            elif isinstance(event, Tuned):
                tuned = round(event.kl_before, 5), round(event.kl_after, 5)
            elif isinstance(event, ModelWritten):
                yield Made(event.bits, Path(event.path), cpu_seconds() - began, tuned)
                began, tuned = cpu_seconds(), None
            elif isinstance(event, JobFinished):  # a model that was written just before the process was killed
                for bits, path in zip(request.bits, event.paths, strict=True):
                    yield Made(bits, Path(path), 0.0, None)
    finally:
        job.close()


def cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


def measure(models: Path, val: Path, work: Path, name: str, kind: str, rows: int, results: Results) -> None:
    """One job, and the judgement of each of its models."""
    source = models / name
    items = texts.items(source, val, "judge")
    original: Run | None = None
    request = ConvertRequest(
        source=str(source),
        work=str(work / f"{name}-{kind}"),
        rows=rows,
        length=512,
        measure_rows=10,
        **KINDS[kind],
    )
    for made in convert(request):
        key = f"{name}/{kind}/{made.bits:g}"
        if key in results.rows:
            continue
        original = original or heldout.run(heldout.load(source), items)
        results.add(key, made, heldout.judge(original, heldout.run(heldout.load(made.path), items), items))


def interval(
    ours: list[list[Any]], theirs: list[list[Any]], value: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> tuple[float, float, float]:
    """The value on all items and the 2.5 and 97.5 percentiles over bootstrap samples of them.

    value: from sums (S, 4) of tokens, KL, same top-1 and loss, of both candidates, to (S,).
    """
    a, b = (torch.tensor([item[1:] for item in items], dtype=torch.float64) for items in (ours, theirs))
    picks = torch.randint(len(a), (SAMPLES, len(a)), generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(SAMPLES, len(a), dtype=torch.float64).scatter_add_(1, picks, torch.ones_like(picks).double())
    spread = value(counts @ a, counts @ b).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return float(value(a.sum(0)[None], b.sum(0)[None])[0]), float(spread[0]), float(spread[1])


def tables(results: Results) -> Iterator[str]:
    """Markdown, one table per model and compared kind."""
    names = sorted({key.split("/")[0] for key in results.rows})
    for name in names:
        for kind in ("refined", "auto"):
            rows = [bits for bits in BITS if f"{name}/{kind}/{bits:g}" in results.rows]
            if rows:
                yield f"### {name}, {kind} against classic"
                yield ""
                yield (
                    "| bpw | bytes classic / " + kind + " | KL classic | KL " + kind + " | KL ratio (95 %) "
                    "| top-1, points (95 %) | perplexity, % (95 %) | KL ratio on chats (95 %) |"
                )
                yield "|---|---|---|---|---|---|---|---|"
                for bits in rows:
                    pair = [results.rows.get(f"{name}/{which}/{bits:g}") for which in ("classic", kind)]
                    if pair[0] is not None and pair[1] is not None:
                        yield table_row(bits, pair[0], pair[1])
                yield ""


def table_row(bits: float, classic: dict[str, Any], ours: dict[str, Any]) -> str:
    def items(row: dict[str, Any], kind: str) -> list[list[Any]]:
        return [item for item in row["items"] if item[0] == kind]

    def ratio(kind: str) -> str:
        found = interval(items(ours, kind), items(classic, kind), lambda a, b: a[:, 1] / b[:, 1])
        return "{:.2f} ({:.2f} to {:.2f})".format(*found)

    text = items(ours, "text"), items(classic, "text")
    top1 = interval(*text, lambda a, b: 100 * (a[:, 2] / a[:, 0] - b[:, 2] / b[:, 0]))
    perplexity = interval(*text, lambda a, b: 100 * ((a[:, 3] / a[:, 0] - b[:, 3] / b[:, 0]).exp() - 1))
    return (
        f"| {bits:g} | {classic['bytes']:,} / {ours['bytes']:,} | {classic['text']['kl']:.4f} "
        f"| {ours['text']['kl']:.4f} | {ratio('text')} | {'{:+.2f} ({:+.2f} to {:+.2f})'.format(*top1)} "
        f"| {'{:+.2f} ({:+.2f} to {:+.2f})'.format(*perplexity)} | {ratio('chat')} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("val", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--models", dest="names", default="nano-chat,small-chat")
    parser.add_argument("--kinds", default="classic,refined,auto")
    parser.add_argument("--rows", type=int, default=32, help="calibration rows of 512 tokens; 10 of them measure")
    parser.add_argument("--print", action="store_true", help="only print the tables of RESULTS.json")
    options = parser.parse_args()
    results = Results(options.results)
    if not options.print:
        for name in options.names.split(","):
            for kind in options.kinds.split(","):
                if any(f"{name}/{kind}/{bits:g}" not in results.rows for bits in KINDS[kind]["bits"]):
                    measure(options.models, options.val, options.work, name, kind, options.rows, results)
    for line in tables(results):
        print(line)


if __name__ == "__main__":
    main()
