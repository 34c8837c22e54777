"""The chat template a model brings along: finding it, rendering it, and telling its text from the people's.

A template renders to one string in which contents and control tokens look alike. So whatever spells a control token
in a message is replaced by an inert placeholder before rendering, and put back as plain text afterwards: trimming,
slicing or quoting in the template work as usual, and nothing a person typed becomes a control token.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from exl2_tui.core.errors import PromptError, TokenizerError
from exl2_tui.core.prompts.build import SPEAKERS, reply_ids, template_pieces
from exl2_tui.core.prompts.encoded import Piece, SegmentRole
from exl2_tui.core.prompts.sandbox import SANDBOX
from exl2_tui.core.requests import Message
from exl2_tui.core.tokenizer import Tokenizer
from exl2_tui.core.tokenizer.files import read_bytes, read_json

MAX_SOURCE_BYTES = 256 << 10
MAX_OUTPUT = 1 << 20
"""Characters a template may add to the conversation."""

TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
Contents = Sequence[tuple[str, str]]
"""(role, content) of every message."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A template's source, where it was found, and the spellings of special tokens it may ask for."""

    source: str
    file: Path
    tokens: Mapping[str, str] = field(default_factory=dict)

    def render(self, contents: Contents, *, add_generation: bool) -> str:
        """The whole prompt as text; raises PromptError if the template fails, takes too long or writes too much."""
        variables = {
            **self.tokens,
            "messages": [{"role": role, "content": content} for role, content in contents],
            "add_generation_prompt": add_generation,
            "tools": None,
            "documents": None,
        }
        limit = MAX_OUTPUT + 2 * sum(len(content) for _, content in contents)
        try:
            return SANDBOX.render(self.source, variables, limit)
        except PromptError as error:
            raise PromptError(error.message, file=self.file, hint="Choose a prompt mode instead of auto") from error


def find_template(directory: Path | str, tokenizer: Tokenizer) -> ChatTemplate | None:
    """chat_template.jinja, else chat_template.json, else `chat_template` in tokenizer_config.json.

    Of several named templates the one called "default" is taken, else the first. Raises PromptError for a file that is
    too large or malformed; None if the model has no template.
    """
    directory = Path(directory)
    path = directory / "chat_template.jinja"
    try:
        settings = read_json(directory / "tokenizer_config.json")
        if path.exists():
            source: object = read_bytes(path, MAX_SOURCE_BYTES).decode()
        else:
            path = directory / "chat_template.json"
            source = read_json(path).get("chat_template")
            if source is None:
                path = directory / "tokenizer_config.json"
                source = settings.get("chat_template")
        names = {**read_json(directory / "special_tokens_map.json"), **settings}
    except (TokenizerError, UnicodeDecodeError) as error:
        raise PromptError(getattr(error, "message", "it is not UTF-8"), file=path, hint="Fetch it again") from error
    if isinstance(source, list):
        named = {str(entry.get("name")): entry.get("template") for entry in reversed(source) if isinstance(entry, dict)}
        source = named.get("default", next(reversed(named.values()), None))
    if not source:
        return None
    if not isinstance(source, str) or len(source.encode("utf-8", "replace")) > MAX_SOURCE_BYTES:
        raise PromptError(f"expected a text of at most {MAX_SOURCE_BYTES >> 10} KiB", file=path, hint="Fetch it again")

    tokens: dict[str, str] = {}
    for name in TOKEN_NAMES:
        value = names.get(name)
        spelling = value.get("content") if isinstance(value, dict) else value
        if isinstance(spelling, str):
            tokens[name] = spelling
    for name, token_id in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id)):
        if name not in names and token_id is not None:
            tokens[name] = tokenizer.piece(token_id)
    return ChatTemplate(source, path, tokens)


def template_prompt(
    template: ChatTemplate, messages: Sequence[Message], tokenizer: Tokenizer, *, add_generation: bool
) -> tuple[list[Piece], str]:
    """The pieces of the rendered prompt and a note; raises PromptError.

    If the template refuses a system prompt, it is put in front of the first user message.
    """
    defused = _Defused(tokenizer)
    contents = [(message.role, defused.hide(message.content)) for message in messages]
    note = ""
    try:
        text = template.render(contents, add_generation=add_generation)
    except PromptError:
        merged = _without_system(messages)
        if merged is None:
            raise
        messages = merged
        contents = [(message.role, defused.hide(message.content)) for message in messages]
        text = template.render(contents, add_generation=add_generation)
        note = "the model's template takes no system prompt, so it stands before the first message"

    pieces: list[Piece] = []
    for stretch, speaker in _speakers(template, contents, text, add_generation=add_generation):
        if speaker is None:
            pieces += defused.pieces(stretch, "template")
            continue
        ids = reply_ids(messages[speaker], tokenizer) if messages[speaker].role == "assistant" else None
        if ids is None:
            pieces += defused.pieces(stretch, SPEAKERS[messages[speaker].role])
            continue
        said = tokenizer.decode(ids, continuation=True)
        if said[:1] == " " and pieces and isinstance(pieces[-1].part, str) and pieces[-1].text.endswith(" "):
            before = pieces[-1].text[:-1]  # the reply's tokens hold this space
            pieces[-1] = Piece(before, before, pieces[-1].role)
        pieces.append(Piece(ids, said, "assistant"))
    return pieces, note


def _without_system(messages: Sequence[Message]) -> list[Message] | None:
    """The messages with the system prompt inside the first user message, or None if there is no way to do that."""
    system = [message.content for message in messages if message.role == "system"]
    others = [message for message in messages if message.role != "system"]
    if not system or not others or others[0].role != "user":
        return None
    return [Message("user", "\n\n".join([*system, others[0].content])), *others[1:]]


def _speakers(
    template: ChatTemplate, contents: Contents, text: str, *, add_generation: bool
) -> list[tuple[str, int | None]]:
    """`text` in stretches, each with the index of the message it comes from, or None for the template's own words.

    Found by rendering once more with marks around contents, as they are or trimmed as many templates do. If that does
    not give the same text but for the marks, the template looks into the contents, and all of `text` counts as its own.
    """
    nonce = secrets.token_hex(8)
    mark = re.compile(f"\ue0f2{nonce}([0-9]+)\ue0f3(.*?)\ue0f2{nonce}\ue0f3", re.DOTALL)

    def shaped(shape: Callable[[str], str]) -> list[tuple[str, str]]:
        return [
            (role, f"\ue0f2{nonce}{index}\ue0f3{shape(content)}\ue0f2{nonce}\ue0f3")
            for index, (role, content) in enumerate(contents)
        ]

    shapes: list[Callable[[str], str]] = [str]
    if any(content != content.strip() for _, content in contents):
        shapes.append(str.strip)
    for shape in shapes:
        try:
            marked = template.render(shaped(shape), add_generation=add_generation)
        except PromptError:
            continue
        if mark.sub(lambda match: match[2], marked) != text:
            continue
        stretches: list[tuple[str, int | None]] = []
        at = 0
        for match in mark.finditer(marked):
            stretches += [(marked[at : match.start()], None), (match[2], int(match[1]))]
            at = match.end()
        return [*stretches, (marked[at:], None)]
    return [(text, None)]


class _Defused:
    """Placeholders for the control tokens that contents spell, unguessable and made anew for every prompt."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._nonce = secrets.token_hex(8)
        self._hidden: list[str] = []
        self._placeholder = re.compile(f"\ue0f0{self._nonce}([0-9]+)\ue0f1")

    def hide(self, content: str) -> str:
        shown = []
        for part in self._tokenizer.split(content):
            if isinstance(part, str):
                shown.append(part)
            else:
                shown.append(f"\ue0f0{self._nonce}{len(self._hidden)}\ue0f1")
                self._hidden.append(self._tokenizer.piece(part))
        return "".join(shown)

    def pieces(self, text: str, role: SegmentRole) -> list[Piece]:
        """Control tokens in `text` become tokens, placeholders the plain text they stand for."""
        pieces: list[Piece] = []
        for index, stretch in enumerate(self._placeholder.split(text)):
            if index % 2 == 0:
                pieces += [Piece(piece.part, piece.text, role) for piece in template_pieces(stretch, self._tokenizer)]
            else:
                pieces.append(Piece(self._hidden[int(stretch)], self._hidden[int(stretch)], role))
        joined: list[Piece] = []
        for piece in pieces:
            if joined and isinstance(piece.part, str) and isinstance(joined[-1].part, str):
                whole = joined[-1].part + piece.part
                joined[-1] = Piece(whole, whole, role)
            else:
                joined.append(piece)
        return joined
