"""Everything about one model that can be told without loading it: shape, prompt mode, memory, bits of every layer."""

from __future__ import annotations

from pathlib import Path

from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.config_rope import RopeConfig
from exl2_tui.core.errors import Exl2Error
from exl2_tui.core.library.describe import describe_layers
from exl2_tui.core.library.machine import Machine
from exl2_tui.core.model.estimate import footprint
from exl2_tui.core.model.footprint import Footprint
from exl2_tui.core.model_events import LinearBits, MemoryRow, ModelDetailed
from exl2_tui.core.prompts import encode_chat
from exl2_tui.core.requests import Message
from exl2_tui.core.tokenizer import Tokenizer

CONTEXTS = (2048, 4096, 8192, 16384, 32768, 65536, 131072)
MOST_ROWS = 4


def details(path: Path, machine: Machine, context: int | None = None) -> ModelDetailed:
    """context: one the person chose, which gets a row of its own. Whatever is wrong goes into `problem`."""
    try:
        found = describe_layers(path)
        with Checkpoint.open(path) as checkpoint:
            config = ModelConfig.from_dir(path)
            numbers = footprint(checkpoint, config)
    except Exl2Error as error:
        return ModelDetailed(str(path), problem=str(error))
    mode, note = _prompt_mode(path, config)
    return ModelDetailed(
        path=str(path),
        architecture=config.architecture,
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        ffn_size=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        context=config.max_position_embeddings,
        rope=rope_text(config.rope),
        tied_head=config.tie_word_embeddings,
        mode=mode,
        mode_note=note,
        memory=memory_rows(numbers, machine, context),
        linears=tuple(
            LinearBits(
                linear.name,
                linear.kind,
                linear.bits_per_weight,
                linear.in_features * linear.out_features,
                linear.recipe,
            )
            for linear in found.linears
        ),
    )


def memory_rows(numbers: Footprint, machine: Machine, chosen: int | None) -> tuple[MemoryRow, ...]:
    """A few contexts up to the model's own, and the chosen one, each with every cache kind that can be had."""
    own = numbers.longest
    contexts = [context for context in CONTEXTS if context < own][-MOST_ROWS + 1 :]
    contexts = sorted({*contexts, min(own, CONTEXTS[-1]), *([chosen] if chosen is not None else [])})
    rows = []
    for context in contexts:
        for kind in machine.caches:
            found, fits = machine.plan(numbers, context, kind)
            rows.append(MemoryRow(context, kind, found.weights, found.cache, found.scratch, fits))
    return tuple(rows)


def rope_text(rope: RopeConfig) -> str:
    """Such as "base 500,000, llama3 x8"."""
    text = f"base {rope.theta:,.0f}"
    if rope.kind != "default":
        text += f", {rope.kind}" + (f" x{rope.factor:g}" if rope.factor != 1 else "")
    return text


def _prompt_mode(path: Path, config: ModelConfig) -> tuple[str, str]:
    """What "auto" means for this model, and a note; a tokenizer that cannot be read is the note."""
    try:
        prompt = encode_chat([Message("user", "Hello")], "auto", Tokenizer.load(path), config, path)
    except Exl2Error as error:
        return "?", error.message
    return prompt.mode, prompt.note
