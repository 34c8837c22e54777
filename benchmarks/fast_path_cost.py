"""What the fast path's rounding of activations costs, next to what quantization costs.

    python benchmarks/fast_path_cost.py ORIGINAL TEXTS.jsonl EXL2_DIRECTORY ...

TEXTS: lines of {"kind": "text", "text": ...}, each cut to 512 tokens. For every model the KL divergence of its
next-token distribution from the original's, with and without --exact, and between the two. The aim: a cost below 1 % of
the exact model's divergence at every bitrate; csrc/cpu/linear_layout.h (fine_rows) is where it is set.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.model.loader import load_model
from exl2_tui.core.model.protocol import LanguageModel
from exl2_tui.core.requests import LoadOptions
from exl2_tui.core.tokenizer import Tokenizer

LENGTH = 512


def load(path: Path, exact: bool) -> LanguageModel:
    with Checkpoint.open(path) as checkpoint:
        options = LoadOptions(context=LENGTH, device="cpu", exact=exact)
        return load_model(checkpoint, ModelConfig.from_dir(path), options)


def log_probabilities(model: LanguageModel, ids: list[int]) -> Tensor:
    """(T, V) float32."""
    return model.forward(ids, model.new_cache(LENGTH), all_logits=True).log_softmax(-1)


def divergence(p: Tensor, q: Tensor) -> float:
    """Sum over tokens of KL(p || q), both log probabilities (T, V)."""
    return float((p.exp() * (p - q)).sum(-1, dtype=torch.float64).sum())


def texts(directory: Path, file: Path, limit: int) -> Iterator[list[int]]:
    tokenizer = Tokenizer.load(directory)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for entry in [line for line in lines if line["kind"] == "text"][:limit]:
        yield tokenizer.encode(entry["text"], bos=True)[:LENGTH]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("original", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--limit", type=int, default=1000, help="texts")
    options = parser.parse_args()
    rows = list(texts(options.original, options.texts, options.limit))
    tokens = sum(map(len, rows))
    original = load(options.original, exact=True)
    print(f"{len(rows)} texts, {tokens} tokens\n\n| model | KL exact | KL fast | cost | KL of fast from exact |")
    print("|---|---|---|---|---|")
    for path in options.models:
        exact, fast = load(path, exact=True), load(path, exact=False)
        sums = [0.0, 0.0, 0.0]
        for ids in rows:
            p, a, b = (log_probabilities(model, ids) for model in (original, exact, fast))
            for i, pair in enumerate(((p, a), (p, b), (a, b))):
                sums[i] += divergence(*pair)
        quantized, rounded, between = (value / tokens for value in sums)
        cost = rounded / quantized - 1
        print(f"| {path.name} | {quantized:.5f} | {rounded:.5f} | {cost:+.2%} | {between:.2e} |", flush=True)


if __name__ == "__main__":
    main()
