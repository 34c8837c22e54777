"""The report of a finished model: report.json for programs, report.md for people."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from exl2_tui.core.quant.source import Comparison
from exl2_tui.core.sizes import size_of


def report_data(
    *,
    source: str,
    recipe: str,
    target_bits: float,
    reached_bpw: float,
    head_bits: int,
    chosen_head_bpw: float,
    size: int,
    calibration: Mapping[str, Any],
    comparison: Comparison,
    layers: Sequence[Mapping[str, Any]],
    seconds: float,
    warnings: Sequence[str],
) -> dict[str, Any]:
    """Everything the two files say. layers: one row per linear with key, recipe, bpw, error, seconds. chosen_head_bpw:
    0 unless the head's bits were part of the budget."""
    return {
        "source": source,
        "recipe": recipe,
        "target_bits": target_bits,
        "reached_bpw": reached_bpw,
        "head_bits": head_bits,
        "chosen_head_bpw": chosen_head_bpw,
        "size_bytes": size,
        "calibration": dict(calibration),
        "evaluation": {
            "kl_divergence": comparison.kl,
            "top1_agreement": comparison.top1,
            "perplexity": comparison.perplexity,
            "original_perplexity": comparison.original_perplexity,
            "tokens": comparison.tokens,
            "status": "broken" if comparison.broken else "ok",
        },
        "seconds": seconds,
        "warnings": list(warnings),
        "layers": [dict(row) for row in layers],
    }


def report_text(data: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    judged, calibration = data["evaluation"], data["calibration"]
    source = "the built-in set" if calibration["dataset"] == "(default)" else calibration["dataset"]
    head = f"and {data['head_bits']} for the output head"
    if data["chosen_head_bpw"]:
        head = (
            f"and 6 for the output head, spent where they do most: {data['reached_bpw']:.2f} in the decoder and "
            f"{data['chosen_head_bpw']:.2f} in the head"
        )
    broken = ["**This model is broken: do not use it.**", ""] if judged["status"] == "broken" else []
    lines = [
        f"# {data['source']} at {data['reached_bpw']:.2f} bits per weight",
        "",
        *broken,
        f"{size_of(data['size_bytes'])}, made by the {data['recipe']} recipe in {data['seconds'] / 60:.1f} minutes "
        f"for a target of {data['target_bits']:g} bits per weight {head}, "
        f"calibrated on {calibration['rows']} rows of {calibration['length']} tokens from {source}.",
        "",
        f"Against the original on {judged['tokens']} tokens that were kept aside:",
        "",
        "| KL divergence | same top token | perplexity | of the original |",
        "|---|---|---|---|",
        f"| {judged['kl_divergence']:.4f} nats | {100 * judged['top1_agreement']:.1f} % "
        f"| {judged['perplexity']:.2f} | {judged['original_perplexity']:.2f} |",
        "",
        *[f"- Warning: {warning}" for warning in data["warnings"]],
        *([""] if data["warnings"] else []),
        "Bits per weight count scales and row order. The error is that of the output of the linear's half block (of "
        "the logits for the head) against the original, on the calibration rows.",
        "",
        "| linear | bits of its rows | bits per weight | error | seconds |",
        "|---|---|---:|---:|---:|",
        *[
            f"| {row['key']} | {_readable(row['recipe'])} | {row['bpw']:.2f} | {100 * row['error']:.2f} % "
            f"| {row['seconds']:.1f} |"
            for row in data["layers"]
        ],
        "",
    ]
    return "\n".join(lines)


def _readable(recipe: str) -> str:
    """ "0.1:4b_128g/0.9:3b_128g s4" -> "10 % 4, 90 % 3 in groups of 128"; "1:4b_32g s4" -> "4 in groups of 32"."""
    sections = re.findall(r"([\d.]+):(\d)b_(\d+)g", recipe)
    shares = [f"{100 * float(share):g} % {bits}" if float(share) < 1 else bits for share, bits, _ in sections]
    sizes = dict.fromkeys(size for *_, size in sections)
    return f"{', '.join(shares)} in groups of {' and '.join(sizes)}"
