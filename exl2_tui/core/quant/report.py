"""The report of a finished model: report.json for programs, report.md for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from exl2_tui.core.quant.source import Comparison


def report_data(
    *,
    source: str,
    recipe: str,
    target_bits: float,
    reached_bpw: float,
    head_bits: int,
    size: int,
    calibration: Mapping[str, Any],
    comparison: Comparison,
    layers: Sequence[Mapping[str, Any]],
    seconds: float,
    warnings: Sequence[str],
) -> dict[str, Any]:
    """Everything the two files say. layers: one row per linear with key, recipe, bpw, error, seconds."""
    return {
        "source": source,
        "recipe": recipe,
        "target_bits": target_bits,
        "reached_bpw": reached_bpw,
        "head_bits": head_bits,
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
    lines = [
        f"# {data['source']} at {data['reached_bpw']:.2f} bits per weight",
        "",
        "**This model is broken: do not use it.**" if judged["status"] == "broken" else "",
        f"Recipe {data['recipe']}, target {data['target_bits']:g} bpw, output head {data['head_bits']} bits, "
        f"{data['size_bytes'] / 1e6:.1f} MB, made in {data['seconds']:.0f} s.",
        f"Calibrated on {calibration['rows']} rows of {calibration['length']} tokens from {calibration['dataset']}.",
        "",
        f"Against the original on {judged['tokens']} held-out tokens:",
        "",
        "| KL divergence | same top token | perplexity | original |",
        "|---|---|---|---|",
        f"| {judged['kl_divergence']:.4f} | {100 * judged['top1_agreement']:.1f} % "
        f"| {judged['perplexity']:.3f} | {judged['original_perplexity']:.3f} |",
        "",
        *[f"- Warning: {warning}" for warning in data["warnings"]],
        "",
        "| linear | recipe | bpw | relative output error | seconds |",
        "|---|---|---|---|---|",
        *[
            f"| {row['key']} | {row['recipe']} | {row['bpw']:.3f} | {row['error']:.4f} | {row['seconds']:.1f} |"
            for row in data["layers"]
        ],
        "",
    ]
    return "\n".join(lines)
