"""The small JSON files beside a tokenizer: which pieces are special, which ids begin and end a text.

All of them are optional and all of them may be hostile: sizes are checked before reading, types before use.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exl2_tui.core.errors import TokenizerError
from exl2_tui.core.sizes import size_of
from exl2_tui.core.tokenizer.backend import MAX_VOCAB

MAX_JSON_BYTES = 16 << 20
MAX_TOKENIZER_BYTES = 64 << 20
MAX_PIECE = 1000
MAX_ADDED = 200_000

CONTROL_SHAPE = re.compile(
    r"<\|[^|]*\|>|<｜[^｜]*｜>|\[/?[A-Z_]+\]|</?s>|<(?:bos|eos|pad|unk|mask|sop|eop)>|<(?:start|end)_of_\w+>|<</?SYS>>"
)
"""Spellings that steer a chat. Many repositories forget to mark such pieces as special."""


@dataclass(frozen=True, slots=True)
class AddedPiece:
    """A piece that is cut out of the text before the vocabulary's algorithm runs. Flags as in library `tokenizers`."""

    text: str
    token_id: int | None
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    single_word: bool = False

    @property
    def control(self) -> bool:
        """True if text a person typed must never turn into it."""
        return self.special or CONTROL_SHAPE.fullmatch(self.text) is not None


@dataclass(frozen=True, slots=True)
class SideFiles:
    """What the JSON files say, already checked. rows: how many tokens the model has embeddings for, if it says so."""

    rows: int | None
    pieces: tuple[AddedPiece, ...]
    bos: int | str | None
    eos: tuple[int | str, ...]
    unk: str | None
    add_bos: bool | None
    legacy: bool
    add_prefix_space: bool | None


def read_bytes(path: Path, limit: int) -> bytes:
    """The file's bytes; raises TokenizerError if it cannot be read or is larger than `limit` bytes."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise TokenizerError(
                f"expected at most {size_of(limit)}, found {size_of(size)}",
                file=path,
                hint="Fetch the file again from the model's page",
            )
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        reason = error.strerror or error
        raise TokenizerError(f"cannot be read: {reason}", file=path, hint="Check its permissions") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one if there is no such file."""
    if not path.exists():
        return {}
    try:
        value = json.loads(read_bytes(path, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"not valid JSON: {error}", file=path, hint="Fetch the file again") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"expected a JSON object, found {type(value).__name__}", file=path, hint="Fetch it again")
    return value


def read_side_files(directory: Path) -> SideFiles:
    """config.json, generation_config.json, tokenizer_config.json, special_tokens_map.json and added_tokens.json.

    Ids come from config.json first, then from the names in tokenizer_config.json and special_tokens_map.json; every
    EOS of config.json, generation_config.json and tokenizer_config.json ends a text.
    """
    settings_path = directory / "tokenizer_config.json"
    settings = read_json(settings_path)
    names = {**read_json(directory / "special_tokens_map.json"), **settings}
    config = read_json(directory / "config.json")
    if isinstance(config.get("text_config"), dict):
        config = {**config, **config["text_config"]}
    generation = read_json(directory / "generation_config.json")

    size = config.get("vocab_size")
    rows = size if isinstance(size, int) and not isinstance(size, bool) and 0 < size <= MAX_VOCAB else None
    pieces = _added_pieces(directory, names, settings_path)
    eos: list[int | str] = [*_ids(config.get("eos_token_id")), *_ids(generation.get("eos_token_id"))]
    eos_name = _spelling(names.get("eos_token"))
    if eos_name:
        eos.append(eos_name)
    bos_ids = _ids(config.get("bos_token_id"))
    add_bos = settings.get("add_bos_token")
    prefix = settings.get("add_prefix_space")
    return SideFiles(
        rows=rows,
        pieces=tuple(p for p in pieces if rows is None or p.token_id is None or p.token_id < rows),
        bos=bos_ids[0] if bos_ids else _spelling(names.get("bos_token")),
        eos=tuple(dict.fromkeys(eos)),
        unk=_spelling(names.get("unk_token")),
        add_bos=add_bos if isinstance(add_bos, bool) else None,
        legacy=settings.get("legacy") is True,
        add_prefix_space=prefix if isinstance(prefix, bool) else None,
    )


def _ids(value: object) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool) and 0 <= v < MAX_VOCAB]


def _spelling(value: object) -> str | None:
    """A special token's text: written as a string or as an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _added_pieces(directory: Path, names: dict[str, Any], settings_path: Path) -> tuple[AddedPiece, ...]:
    """Pieces by spelling, in the order of their ids; tokenizer_config.json outranks added_tokens.json."""
    found: dict[str, AddedPiece] = {}

    added_path = directory / "added_tokens.json"
    for text, token_id in read_json(added_path).items():
        _checked(text, token_id, added_path)
        found[text] = AddedPiece(text, token_id, special=False)

    decoder = names.get("added_tokens_decoder", {})
    if not isinstance(decoder, dict):
        raise TokenizerError("added_tokens_decoder is not a JSON object", file=settings_path, hint="Fetch it again")
    for key, entry in decoder.items():
        token_id = int(key) if key.isascii() and key.isdigit() and len(key) < 10 else None
        text = _checked(_spelling(entry), token_id, settings_path)
        marks = entry if isinstance(entry, dict) else {}
        flags = {name: marks.get(name) is True for name in ("lstrip", "rstrip", "normalized", "single_word", "special")}
        found[text] = AddedPiece(text, token_id, **flags)

    extra = names.get("additional_special_tokens")
    roles = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
    listed = [names.get(role) for role in roles] + (extra if isinstance(extra, list) else [])
    for entry in listed:
        spelling = _spelling(entry)
        if spelling is None:
            continue
        text = _checked(spelling, 0, settings_path)
        known = found.get(text, AddedPiece(text, None, special=True))
        found[text] = AddedPiece(
            text, known.token_id, True, known.lstrip, known.rstrip, known.normalized, known.single_word
        )
    if len(found) > MAX_ADDED:
        raise TokenizerError(f"{len(found)} added tokens, at most {MAX_ADDED} make sense", file=settings_path)
    return tuple(sorted(found.values(), key=lambda p: MAX_VOCAB if p.token_id is None else p.token_id))


def _checked(text: object, token_id: object, path: Path) -> str:
    """`text` if it and its id are usable."""
    if not isinstance(text, str) or not 0 < len(text) <= MAX_PIECE:
        raise TokenizerError(
            f"an added token's text must be 1 to {MAX_PIECE} characters, found {str(text)[:50]!r}",
            file=path,
            hint="Fetch the file again from the model's page",
        )
    if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < MAX_VOCAB:
        raise TokenizerError(
            f"added token {text[:50]!r} has the id {str(token_id)[:50]!r}, expected a number from 0 to {MAX_VOCAB - 1}",
            file=path,
            hint="Fetch the file again from the model's page",
        )
    return text
