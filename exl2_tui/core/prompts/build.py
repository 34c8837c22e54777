"""A conversation and a row of the table become the pieces of a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from string import Formatter

from exl2_tui.core.prompts.encoded import Piece, SegmentRole
from exl2_tui.core.prompts.modes import PromptMode
from exl2_tui.core.requests import Message
from exl2_tui.core.tokenizer import Tokenizer

SPEAKERS: Mapping[str, SegmentRole] = {"system": "system", "user": "user", "assistant": "assistant"}


def build(
    messages: Sequence[Message],
    mode: PromptMode,
    tokenizer: Tokenizer,
    *,
    user_name: str,
    bot_name: str,
    add_generation: bool,
) -> list[Piece]:
    """The pieces in order, BOS included. System messages, wherever they are, are joined and come first."""
    writer = _Writer(mode, tokenizer, {"user_name": user_name, "bot_name": bot_name})
    system = "\n\n".join(m.content.strip() for m in messages if m.role == "system" and m.content.strip())
    block = [*writer.write(mode.system, {"system": system})] if system else []
    pieces: list[Piece] = []
    if mode.bos == "always" or (mode.bos == "tokenizer" and tokenizer.adds_bos):
        pieces += writer.write("{bos}")
    if not mode.system_in_user:
        pieces += block
        block = []
    for message in messages:
        if message.role == "user":
            pieces += writer.write(mode.user, {"user": message.content}, block)
            block = []
        elif message.role == "assistant":
            pieces += writer.write(mode.header)
            pieces += writer.reply(message)
    if add_generation:
        pieces += writer.write(mode.header)
    return pieces


def reply_ids(message: Message, tokenizer: Tokenizer) -> tuple[int, ...] | None:
    """The ids of an earlier reply if they may stand for its text, without the token that ended it.

    They may not if they spell something else (the text was edited, the model changed) or hold control tokens.
    """
    ids = list(message.token_ids or ())
    while ids and ids[-1] in tokenizer.special_ids:
        ids.pop()
    if not ids or not all(0 <= i < tokenizer.vocab_size and i not in tokenizer.special_ids for i in ids):
        return None
    if tokenizer.decode(ids, continuation=True).strip() != message.content.strip():
        return None
    return tuple(ids)


class _Writer:
    """Fills the fields of a mode's texts."""

    def __init__(self, mode: PromptMode, tokenizer: Tokenizer, names: dict[str, str]) -> None:
        self._mode = mode
        self._tokenizer = tokenizer
        self._names = names

    def write(self, text: str, words: Mapping[str, str] | None = None, block: Sequence[Piece] = ()) -> Iterator[Piece]:
        """words: what a person or model said, by role. block: pieces for {system_block}."""
        for literal, field, _, _ in Formatter().parse(text):
            yield from template_pieces(literal, self._tokenizer)
            if field is None:
                continue
            if field in ("bos", "eos"):
                token_id = self._tokenizer.bos_id if field == "bos" else self._tokenizer.eos_id
                if token_id is not None:
                    yield Piece(token_id, self._tokenizer.piece(token_id), "template")
            elif field == "system_block":
                yield from block
            elif field in self._names:
                yield Piece(self._names[field], self._names[field], "template")
            else:
                said = (words or {})[field]
                said = said.strip() if self._mode.trim else said
                yield Piece(said, said, SPEAKERS[field])

    def reply(self, message: Message) -> Iterator[Piece]:
        """An earlier reply and what closes it."""
        ids = reply_ids(message, self._tokenizer)
        if ids is None:
            yield from self.write(self._mode.reply + self._mode.close, {"assistant": message.content})
            return
        # The ids hold the space between header and reply, and often the line break that belongs to the close.
        said = self._tokenizer.decode(ids, continuation=True)
        yield Piece(ids, said, "assistant")
        close = self._mode.close
        white = len(close) - len(close.lstrip())
        held = next((size for size in range(white, 0, -1) if said.endswith(close[:size])), 0)
        yield from self.write(close[held:])


def template_pieces(text: str, tokenizer: Tokenizer) -> Iterator[Piece]:
    """Text of a template: control tokens in it become tokens."""
    for part in tokenizer.split(text):
        yield Piece(part, part if isinstance(part, str) else tokenizer.piece(part), "template")
