"""The held-out items of val.jsonl in two halves: "choice" for choosing and ablation, "judge" for the final table only.

Texts: the first 20 were used for choosing before there were halves, so they belong to choice; of the others every third
does. Chats: those whose `src` does not start with "synth_", by turns, in the model's own template. Items are cut to 511
tokens after <s>.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from exl2_tui.core.config import ModelConfig
from exl2_tui.core.prompts import encode_chat
from exl2_tui.core.requests import Message
from exl2_tui.core.tokenizer import Tokenizer

Half = Literal["choice", "judge"]
LENGTH = 511
USED_BEFORE = 20


@dataclass(frozen=True, slots=True)
class Item:
    """kind: "text" or "chat"; ids (T,) int64 begin with <s>."""

    kind: str
    ids: Tensor


def items(model_dir: Path, val: Path, half: Half) -> list[Item]:
    tokenizer = Tokenizer.load(model_dir)
    config = ModelConfig.from_dir(model_dir)
    lines = [json.loads(line) for line in val.read_text().splitlines()]
    texts = [line for line in lines if line["kind"] == "text"]
    chats = [line for line in lines if line["kind"] == "chat" and not line["src"].startswith("synth_")]
    found: list[Item] = []
    for number, text in enumerate(texts):
        if (number < USED_BEFORE or number % 3 == 0) == (half == "choice"):
            found.append(Item("text", torch.tensor([1, *tokenizer.encode(text["text"])[:LENGTH]])))
    for number, chat in enumerate(chats):
        if (number % 2 == 0) == (half == "choice"):
            turns = [] if chat["system"] is None else [Message("system", chat["system"])]
            for position, turn in enumerate(chat["turns"]):
                turns.append(Message("assistant" if position % 2 else "user", turn))
            ids = encode_chat(turns, "auto", tokenizer, config, model_dir, add_generation=False).ids
            found.append(Item("chat", torch.tensor(list(ids)[: LENGTH + 1])))
    return found
