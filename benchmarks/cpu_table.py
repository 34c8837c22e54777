"""The tables of docs/performance.md from benchmarks/results/cpu_vs_llamacpp.json: python benchmarks/cpu_table.py

Writes between the marks <!-- cpu: begin --> and <!-- cpu: end -->, so that text and data cannot part; --check only
tells whether they agree. Ratios are medians of the ratios of rounds, in which both engines ran one after the other.
Rows during which other processes kept more than a tenth of a core busy are left out and named.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cpu_vs_llamacpp.json"
DOCUMENT = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- cpu: begin -->\n", "<!-- cpu: end -->\n"
SPEED_HEAD = (
    "| model, llama.cpp's type | stored MB, ours (theirs) | threads | t/s at depth 0 | ratio "
    "| of bandwidth, ours (theirs) | bound | t/s at depth {depth} | ratio | prompt of 512, t/s | ratio |"
)
START_HEAD = (
    "| model, llama.cpp's type | load, s | first token, s | the same, cold cache | load and a prompt of 512, s "
    "| peak memory, MB | file + cache, MB | over it |"
)


MOST_OTHERS = 0.1  # cores


class Row:
    """One row of the results, with what is derived from it."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.row = row
        self.rival: str = row["rounds"]["rival"]
        self.rivals = [engine for engine in row["rounds"]["pace"] if engine != "ours"]  # that ran
        self.decode: list[dict[str, float]] = row["rounds"]["decode"]

    @property
    def name(self) -> str:
        isa = f", {self.row['isa']}" if self.row["isa"] else ""
        return f"{self.row['model']} {self.row['kind']}{isa}"

    @property
    def is_quiet(self) -> bool:
        return float(self.row["rounds"]["others"]) <= MOST_OTHERS

    def speed(self, engine: str, depth: int) -> float:
        """Tokens per second."""
        return 1 / statistics.median(entry[f"{engine} {depth}"] for entry in self.decode)

    def ratio(self, depth: int) -> tuple[float, float]:
        """Median over the rounds, and half the distance of the outer quartiles."""
        return spread([entry[f"{self.rival} {depth}"] / entry[f"ours {depth}"] for entry in self.decode])

    def share(self, engine: str) -> float:
        """Of the bandwidth measured just before, at depth 0; weights only."""
        read = self.row["our_read" if engine == "ours" else "their_read"]
        return statistics.median(read / entry[f"{engine} 0"] / entry[f"bandwidth {engine} 0"] for entry in self.decode)

    def bound(self) -> float:
        """The ratio that reading our bytes at the measured bandwidth, and nothing else, would give."""
        return statistics.median(
            entry[f"{self.rival} 0"] * entry["bandwidth ours 0"] / self.row["our_read"] for entry in self.decode
        )

    def bandwidths(self) -> list[float]:
        return [value for entry in self.decode for name, value in entry.items() if name.startswith("bandwidth")]

    def prompt(self, engine: str) -> float:
        return 1 / statistics.median(entry[engine] for entry in self.row["rounds"]["prompt"])

    def prompt_rival(self) -> str:
        return max(self.rivals, key=self.prompt)

    def prompt_ratio(self) -> tuple[float, float]:
        rival = self.prompt_rival()
        return spread([entry[rival] / entry["ours"] for entry in self.row["rounds"]["prompt"]])

    def line(self) -> str:
        depth, row = self.row["depth"], self.row
        cells = [
            self.name,
            f"{row['our_read'] / 1e6:.0f} ({row['their_read'] / 1e6:.0f})",
            str(row["threads"]),
            f"{figure(self.speed('ours', 0))} ({figure(self.speed(self.rival, 0))})",
            "**{:.2f}** ± {:.2f}".format(*self.ratio(0)),
            f"{self.share('ours'):.0%} ({self.share(self.rival):.0%})",
            f"{self.bound():.2f}",
            f"{figure(self.speed('ours', depth))} ({figure(self.speed(self.rival, depth))})",
            "**{:.2f}** ± {:.2f}".format(*self.ratio(depth)),
            f"{figure(self.prompt('ours'))} ({figure(self.prompt(self.prompt_rival()))})",
            "**{:.2f}** ± {:.2f}".format(*self.prompt_ratio()),
        ]
        return f"| {' | '.join(cells)} |"

    def start_line(self) -> str:
        def middle(engine: str, cache: str, field: str) -> float:
            found = [entry for entry in self.row["starts"] if entry["engine"] == engine and entry["cache"] == cache]
            return statistics.median(float(entry[field]) for entry in found if field in entry)

        def both(cache: str, field: str) -> str:
            theirs = min(middle(engine, cache, field) for engine in self.rivals)
            return f"{middle('ours', cache, field):.2f} ({theirs:.2f})"

        def memory(engine: str) -> float:
            return middle(engine, "warm", "peak_memory") - middle(engine, "warm", "idle_memory")

        whole = self.row["our_file"] + self.row["cache_bytes"]
        theirs = min(map(memory, self.rivals))
        cells = [
            self.name,
            both("warm", "load"),
            both("warm", "first_token"),
            both("cold", "first_token"),
            both("warm", "first_token_of_prompt"),
            f"{memory('ours') / 1e6:.0f} ({theirs / 1e6:.0f})",
            f"{whole / 1e6:.0f}",
            f"{memory('ours') / whole - 1:+.0%}",
        ]
        return f"| {' | '.join(cells)} |"


def spread(values: list[float]) -> tuple[float, float]:
    """Median, and half the distance of the outer quartiles."""
    if len(values) < 2:
        return values[0], 0.0
    quartiles = statistics.quantiles(values, n=4, method="inclusive")
    return statistics.median(values), (quartiles[2] - quartiles[0]) / 2


def figure(speed: float) -> str:
    return f"{speed:.0f}" if speed >= 100 else f"{speed:.1f}"


def under(head: str) -> str:
    return "|" + "---|" * (head.count("|") - 1)


def text(machine: str, found_rows: dict[str, Any]) -> str:
    found = [Row(row) for row in found_rows.values()]
    rows = [row for row in found if row.is_quiet]
    loud = [f"{row.name} with {row.row['threads']} threads" for row in found if not row.is_quiet]
    if not rows:
        return f"### {machine}\n\nNo row was measured on a quiet machine yet.\n"
    widths = [value / 1e9 for row in rows for value in row.bandwidths()]
    commits = sorted({row.row[field] for row in rows for field in ("commit", "starts_commit") if field in row.row})
    lines = [
        f"### {machine}\n",
        "Read bandwidth, measured before every run of a round: "
        f"{min(widths):.0f} to {max(widths):.0f} GB/s. Commits: {', '.join(commits)}.",
    ]
    for depth in sorted({row.row["depth"] for row in rows}, reverse=True):
        head = SPEED_HEAD.format(depth=depth)
        lines += ["", head, under(head), *(row.line() for row in rows if row.row["depth"] == depth)]
    started = [row for row in rows if "starts" in row.row]
    if started:
        lines += ["", START_HEAD, under(START_HEAD), *(row.start_line() for row in started)]
    if loud:
        lines += ["", f"Left out, since the machine was not quiet: {', '.join(loud)}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if the document is not up to date"
    )
    options = parser.parse_args()
    document = DOCUMENT.read_text()
    before, rest = document.split(BEGIN)
    _, after = rest.split(END)
    tables = [text(machine, rows) for machine, rows in json.loads(RESULTS.read_text()).items()]
    fresh = "\n".join([f"{before}{BEGIN}", *tables, f"{END}{after}"])
    if fresh == document:
        return
    if options.check:
        raise SystemExit(f"{DOCUMENT.name} does not show {RESULTS.name}: run benchmarks/cpu_table.py")
    DOCUMENT.write_text(fresh)


if __name__ == "__main__":
    main()
