"""tokenizer.json through library `tokenizers`."""

from __future__ import annotations

import itertools
import json
import secrets
import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import AddedToken
from tokenizers import Tokenizer as Library

from exl2_tui.core.errors import TokenizerError
from exl2_tui.core.tokenizer.backend import MAX_VOCAB, Part
from exl2_tui.core.tokenizer.files import AddedPiece
from exl2_tui.core.tokenizer.hf_file import read_tokenizer_json
from exl2_tui.core.tokenizer.spelling import Spelling, read_spelling

REMEDY = "Fetch the file again, or remove it to use tokenizer.model if there is one"
T = TypeVar("T")
Flags = tuple[bool, bool, bool]
"""lstrip, rstrip and normalized of an added token: how it treats the text beside it."""


class HfBackend:
    """A `tokenizers` tokenizer in which control tokens are placed by id, never found in text a person wrote.

    The library cuts added tokens out of the text before it encodes the rest, and how the rest is encoded depends on
    where the cuts are (leading spaces, stripping). So a control token is written into the text as a sentinel: an added
    token of equal flags with an unguessable spelling. The text around it is encoded exactly as beside the real token.
    """

    def __init__(self, path: Path, pieces: Sequence[AddedPiece]) -> None:
        """pieces: added tokens from the other files. Raises TokenizerError."""
        self._path = path
        self._lock = threading.Lock()
        self._library = _load(path)
        self._add(pieces, path)
        vocabulary = self._library.get_vocab(with_added_tokens=True)
        largest = max(vocabulary.values(), default=-1)
        if not 0 <= largest < MAX_VOCAB:
            raise TokenizerError(
                f"expected ids from 0 to {MAX_VOCAB - 1}, found {largest}", file=path, hint="Fetch the file again"
            )
        self.size = largest + 1
        self._pieces = {token_id: text for text, token_id in vocabulary.items()}

        added = self._library.get_added_tokens_decoder()
        self._added = frozenset(added)
        self.control_ids = frozenset(i for i, token in added.items() if _as_piece(token).control)
        self._control_texts = [added[i].content for i in self.control_ids if len(added[i].content) > 1]
        unk = getattr(self._library.model, "unk_token", None)
        unk_id = self._library.token_to_id(unk) if isinstance(unk, str) else None
        self._forbidden = self.control_ids - {unk_id}
        self._flags: dict[int, Flags] = {
            i: (added[i].lstrip, added[i].rstrip, added[i].normalized) for i in self.control_ids
        }
        # The library finds tokens marked as special only when told to, all others always.
        self._library.add_special_tokens([_marked(added[i]) for i in sorted(self.control_ids)])
        self._sentinels = self._add_sentinels({(False, False, False), *self._flags.values()})
        self._sentinel_ids = frozenset(i for _, i in self._sentinels.values())
        self._spelling: Spelling = read_spelling(json.loads(_state(self._library.decoder)), path)
        self.leading_spaces = self._spelling.leading_spaces
        self._bytes: dict[int, bytes] = {}

    def encode(self, text: str, *, special: bool) -> list[int]:
        if not special:
            return self.encode_parts([text])[0]
        with self._lock:
            self._library.encode_special_tokens = False
            return list(_guard(lambda: self._library.encode(text, add_special_tokens=False), self._path).ids)

    def encode_parts(self, parts: Sequence[Part]) -> list[list[int]]:
        ids = self._encode_parts(parts)
        leaked = any(
            not self._forbidden.isdisjoint(part_ids)
            for part, part_ids in zip(parts, ids, strict=True)
            if isinstance(part, str)
        )
        if not leaked:
            return ids
        # A vocabulary that has control pieces among its ordinary ones: cut their spelling apart.
        finer: list[Part] = []
        owner: list[int] = []
        for index, part in enumerate(parts):
            cuts: list[Part] = self._cut(part) if isinstance(part, str) else [part]
            finer += cuts
            owner += [index] * len(cuts)
        joined: list[list[int]] = [[] for _ in parts]
        for index, part, part_ids in zip(owner, finer, self._encode_parts(finer), strict=True):
            joined[index] += [i for i in part_ids if i not in self._forbidden] if isinstance(part, str) else part_ids
        return joined

    def first_added_token(self) -> int | None:
        """The id that the file's own post-processor puts before a text, usually BOS."""
        with self._lock:
            ids = _guard(lambda: self._library.encode("", add_special_tokens=True), self._path).ids
        return ids[0] if ids else None

    def piece(self, token_id: int) -> str | None:
        return self._pieces.get(token_id)

    def token_id(self, piece: str) -> int | None:
        token_id = self._library.token_to_id(piece)
        return None if token_id is None or token_id >= self.size else token_id

    def text_bytes(self, token_id: int) -> bytes:
        known = self._bytes.get(token_id)
        if known is None:
            text = self._pieces.get(token_id, "")
            if token_id in self.control_ids:
                known = text.encode()
            else:
                known = self._spelling.to_bytes(text, added=token_id in self._added)
            self._bytes[token_id] = known
        return known

    def _encode_parts(self, parts: Sequence[Part]) -> list[list[int]]:
        """One library call for all parts."""
        text: list[str] = []
        starts: list[int] = []
        position = 0
        for part in parts:
            starts.append(position)
            written = part if isinstance(part, str) else self._sentinel(part)
            text.append(written)
            position += len(written)
        with self._lock:
            self._library.encode_special_tokens = True
            encoding = _guard(lambda: self._library.encode("".join(text), add_special_tokens=False), self._path)

        ids: list[list[int]] = [[] for _ in parts]
        placed = [index for index, part in enumerate(parts) if not isinstance(part, str)]
        following = iter(placed)
        current = 0
        for token_id, (start, _) in zip(encoding.ids, encoding.offsets, strict=True):
            if token_id in self._sentinel_ids:
                current = next(following)
                part = parts[current]
                ids[current] = [part] if isinstance(part, int) else list(part)  # type: ignore[arg-type] # no str is placed
                continue
            # Offsets may stand still or point before a stripped space, but never go back over a part.
            current = max(current, bisect_right(starts, start) - 1)
            while not isinstance(parts[current], str):
                current += 1
            ids[current].append(token_id)
        return ids

    def _sentinel(self, part: int | tuple[int, ...]) -> str:
        flags = self._flags.get(part, (False, False, False)) if isinstance(part, int) else (False, False, False)
        return self._sentinels[flags][0]

    def _cut(self, text: str) -> list[Part]:
        """The text with a break after the first character of everything that spells a control token."""
        breaks = {0, len(text)}
        for control in self._control_texts:
            found = text.find(control)
            while found >= 0:
                breaks.add(found + 1)
                found = text.find(control, found + 1)
        ordered = sorted(breaks)
        parts: list[Part] = []
        for begin, end in itertools.pairwise(ordered):
            parts += [text[begin:end], ()]
        return parts[:-1]

    def _add(self, pieces: Sequence[AddedPiece], path: Path) -> None:
        """Added tokens that only the other files know, in the order of their ids; flags of known ones stay.

        One without an id anywhere (a pad token that was merely named) is left out: the model has no row for it.
        """
        pieces = [p for p in pieces if p.token_id is not None or self._library.token_to_id(p.text) is not None]
        known = {token.content for token in self._library.get_added_tokens_decoder().values()}
        for special in (False, True):
            new = [p for p in pieces if p.special is special and (special or p.text not in known)]
            tokens = [
                AddedToken(
                    p.text,
                    single_word=p.single_word,
                    lstrip=p.lstrip,
                    rstrip=p.rstrip,
                    normalized=p.normalized,
                    special=special,
                )
                for p in new
            ]
            _guard(partial(self._insert, tokens, special), path)

    def _insert(self, tokens: list[AddedToken], special: bool) -> None:
        (self._library.add_special_tokens if special else self._library.add_tokens)(tokens)

    def _add_sentinels(self, kinds: set[Flags]) -> dict[Flags, tuple[str, int]]:
        sentinels: dict[Flags, tuple[str, int]] = {}
        for lstrip, rstrip, normalized in sorted(kinds):
            text = f"\ue0f0{secrets.token_hex(8)}\ue0f1"
            token = AddedToken(text, lstrip=lstrip, rstrip=rstrip, normalized=normalized, special=False)
            self._library.add_tokens([token])
            token_id = self._library.token_to_id(text)
            assert token_id is not None
            sentinels[lstrip, rstrip, normalized] = (text, token_id)
        return sentinels


def _load(path: Path) -> Library:
    text = read_tokenizer_json(path)
    library: Library = _guard(lambda: Library.from_str(text), path)
    library.no_truncation()
    library.no_padding()
    return library


def _guard(action: Callable[[], T], path: Path) -> T:
    """Runs library code; its errors, also panics of the native side, come out as TokenizerError."""
    try:
        return action()
    except BaseException as error:
        # The library raises plain Exception for what it checks; a Rust panic derives from BaseException.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            message = f"library tokenizers cannot use it: {str(error)[:300] or type(error).__name__}"
            raise TokenizerError(message, file=path, hint=REMEDY) from error
        raise


def _state(component: Any) -> bytes:
    """The JSON of a part of the library's tokenizer; null if it has none."""
    if component is None:
        return b"null"
    state: bytes = component.__getstate__()
    return state


def _as_piece(token: AddedToken) -> AddedPiece:
    return AddedPiece(token.content, None, token.special)


def _marked(token: AddedToken) -> AddedToken:
    return AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=True,
    )
