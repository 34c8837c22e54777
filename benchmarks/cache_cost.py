"""What a coded cache costs on a GPU: KL divergence of the next-token distribution from that with the fp16 cache.

    python benchmarks/cache_cost.py TEXTS.jsonl MODEL_DIRECTORY ...

TEXTS: lines of {"kind": "text", "text": ...}, each cut to 512 tokens, read as prompts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fast_path_cost import LENGTH, divergence, texts

from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.model.footprint import CACHE_KINDS
from exl2_tui.core.model.loader import load_model
from exl2_tui.core.requests import LoadOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--limit", type=int, default=1000, help="texts")
    options = parser.parse_args()
    first, *others = CACHE_KINDS["cuda"]
    print(f"| model | tokens | {' | '.join(others)} |")
    print("|---|---|" + "---|" * len(others))
    for path in options.models:
        with Checkpoint.open(path) as checkpoint:
            model = load_model(checkpoint, ModelConfig.from_dir(path), LoadOptions(context=LENGTH, device="cuda"))
        rows = list(texts(path, options.texts, options.limit))
        sums = dict.fromkeys(others, 0.0)
        for ids in rows:
            found = [
                model.forward(ids, model.new_cache(LENGTH, kind), all_logits=True).log_softmax(-1)
                for kind in (first, *others)
            ]
            for kind, coded in zip(others, found[1:], strict=True):
                sums[kind] += divergence(found[0], coded)
        tokens = sum(map(len, rows))
        print(
            f"| {path.name} | {tokens} | {' | '.join(f'{value / tokens:.1e}' for value in sums.values())} |", flush=True
        )
        model.close()


if __name__ == "__main__":
    main()
