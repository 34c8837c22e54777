"""encode_chat: from a conversation to a prompt that can be run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from exl2_tui.core.errors import PromptError
from exl2_tui.core.prompts.build import build
from exl2_tui.core.prompts.encoded import EncodedPrompt, Piece, Segment
from exl2_tui.core.prompts.modes import PromptMode, get
from exl2_tui.core.prompts.template import find_template, template_prompt
from exl2_tui.core.requests import Message
from exl2_tui.core.tokenizer import Tokenizer

TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|end_of_turn|>", "<|EOT|>")
"""Control tokens that end a reply where a template uses them, even if no config lists them as EOS."""

BY_TOKENS = (
    ("<|im_start|>", "chatml"),
    ("<|start_header_id|>", "llama3"),
    ("<start_of_turn>", "gemma"),
    ("<|end_of_turn|>", "openchat"),
    ("<|end|>", "phi3"),
    ("[INST]", "mistral"),
)
"""A control token that only models of one format have."""

BY_NAME = (
    ("tinyllama", "chat", "tinyllama"),
    ("codellama", "instruct", "codellama"),
    ("mistral", "instruct", "mistral"),
    ("llama", "chat", "llama"),
    ("vicuna", "", "vicuna"),
    ("alpaca", "", "alpaca"),
    ("zephyr", "", "zephyr"),
    ("solar", "instruct", "solar"),
    ("deepseek-coder", "instruct", "deepseek"),
)
"""Two words in the directory's name, for models older than chat templates."""


class HasArchitecture(Protocol):
    """What is needed of a model's config."""

    @property
    def architecture(self) -> str: ...


def encode_chat(
    messages: Sequence[Message],
    mode: str,
    tokenizer: Tokenizer,
    config: HasArchitecture | None,
    model_dir: Path | str | None,
    *,
    user_name: str = "User",
    bot_name: str = "Chatbort",
    add_generation: bool = True,
) -> EncodedPrompt:
    """The prompt for the next reply (add_generation), or the conversation so far.

    Control tokens come from the mode's or template's own text only; contents of messages are plain text, whatever they
    spell. An earlier reply with token_ids that spell its text keeps them, so that the cache stays valid. A missing
    system prompt leaves its part out. Raises PromptError for an unknown mode; a chat template that is broken or
    hostile is replaced by a fitting mode, and the note says so.
    """
    chosen, note = get(mode), ""
    if mode == "auto":
        try:
            template = find_template(model_dir, tokenizer) if model_dir is not None else None
            if template is not None:
                pieces, note = template_prompt(template, messages, tokenizer, add_generation=add_generation)
                ends = [end for end in TURN_ENDS if end in template.source]
                return _encode(pieces, tokenizer, "auto", note, ends, ())
            reason = "the model has no chat template"
        except PromptError as error:
            reason = f"the model's chat template cannot be used ({error.message})"
        chosen, why = _fitting(tokenizer, config, model_dir)
        note = f"{reason}; mode {chosen.name} was taken, {why}"
    pieces = build(messages, chosen, tokenizer, user_name=user_name, bot_name=bot_name, add_generation=add_generation)
    missing = [text for text in chosen.control if tokenizer.control_id(text) is None]
    if missing:
        spelled = f"this model's tokenizer has no {', '.join(missing)}, so mode {chosen.name} spells them out as text"
        note = f"{note}; {spelled}" if note else spelled
    return _encode(pieces, tokenizer, chosen.name, note, chosen.ends, _stop_strings(chosen, user_name))


def _encode(
    pieces: Sequence[Piece],
    tokenizer: Tokenizer,
    mode: str,
    note: str,
    ends: Iterable[str],
    stop_strings: tuple[str, ...],
) -> EncodedPrompt:
    pieces = [piece for piece in _single_bos(pieces, tokenizer.bos_id) if piece.text or piece.part]
    encoded = tokenizer.encode_parts([piece.part for piece in pieces])
    segments = tuple(
        Segment(piece.text, tuple(ids), isinstance(piece.part, int), piece.role)
        for piece, ids in zip(pieces, encoded, strict=True)
    )
    end_ids = {end: tokenizer.control_id(end) for end in ends}
    return EncodedPrompt(
        ids=tuple(token_id for ids in encoded for token_id in ids),
        mode=mode,
        note=note,
        stop_strings=(*stop_strings, *(end for end, token_id in end_ids.items() if token_id is None)),
        stop_ids=tokenizer.stop_ids | {token_id for token_id in end_ids.values() if token_id is not None},
        segments=segments,
    )


def _single_bos(pieces: Iterable[Piece], bos_id: int | None) -> list[Piece]:
    """The pieces without a BOS that directly follows another."""
    kept: list[Piece] = []
    for piece in pieces:
        if bos_id is None or piece.part != bos_id or not kept or kept[-1].part != bos_id:
            kept.append(piece)
    return kept


def _stop_strings(mode: PromptMode, user_name: str) -> tuple[str, ...]:
    """Stop strings with the user's name in its spellings; one letter and other cases only at the start of a line."""
    spellings = {
        "{user_name}": user_name,
        "{USER_NAME}": user_name.upper(),
        "{user_name_lower}": user_name.lower(),
        "{U}": user_name[:1],
    }
    stops: dict[str, None] = {}
    for stop in mode.stops:
        for field, value in spellings.items():
            stop = stop.replace(field, value)
        if stop.strip(" \n:"):
            stops[stop] = None
    return tuple(stops)


def _fitting(
    tokenizer: Tokenizer, config: HasArchitecture | None, model_dir: Path | str | None
) -> tuple[PromptMode, str]:
    """The mode for a model without a usable template, and why."""
    for text, name in BY_TOKENS:
        if tokenizer.control_id(text) is not None:
            return get(name), f"since its tokenizer has {text}"
    directory = "" if model_dir is None else Path(model_dir).resolve().name.lower()
    for word, other, name in BY_NAME:
        if word in directory and other in directory:
            return get(name), "going by its name"
    architecture = "the model" if config is None else config.architecture
    return get("raw"), f"which suits {architecture} with or without chat training"
