"""Tokenizer: one face for both kinds of tokenizer files.

If a directory holds both tokenizer.json and tokenizer.model, tokenizer.json is used: it carries the added tokens and
the exact whitespace rules that the model was published with, and it is what other programs read. tokenizer.model is
used where it is the only one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from exl2_tui.core.errors import TokenizerError
from exl2_tui.core.tokenizer.backend import Backend, Part
from exl2_tui.core.tokenizer.files import SideFiles, read_side_files
from exl2_tui.core.tokenizer.hf import HfBackend
from exl2_tui.core.tokenizer.sentencepiece import SentencePieceBackend
from exl2_tui.core.tokenizer.stream import StreamDecoder


class Tokenizer:
    """Text to ids and back; safe to use from several threads.

    vocab_size: largest id + 1; a model may have more rows (padding), never fewer: tokens without one are left out.
    bos_id, eos_id, unk_id: None if there is none. stop_ids: every id that ends a text. special_ids: control tokens;
    they are not shown, and text a person typed never becomes one. adds_bos: the model expects BOS before a text.
    """

    def __init__(self, backend: Backend, side: SideFiles, special_ids: Iterable[int], *, adds_bos: bool) -> None:
        self._backend = backend
        self.vocab_size = backend.size if side.rows is None else min(backend.size, side.rows)
        self.bos_id = self._resolve(side.bos)
        eos = [token_id for token_id in map(self._resolve, side.eos) if token_id is not None]
        self.eos_id = eos[0] if eos else None
        self.stop_ids = frozenset(eos)
        self.unk_id = self._resolve(side.unk)
        ends = {self.bos_id, *eos} - {None}
        specials = frozenset(special_ids) | frozenset(i for i in ends if i is not None)
        self.special_ids = frozenset(i for i in specials if i < self.vocab_size)
        self.adds_bos = self.bos_id is not None and adds_bos
        # The longest of several that begin at the same place, as the libraries do; matches nothing if there are none.
        spellings = sorted((self.piece(i) for i in self.special_ids if self.piece(i)), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, spellings)) or r"(?!)")

    @classmethod
    def load(cls, directory: Path | str) -> Tokenizer:
        """Reads the tokenizer of a model directory; raises TokenizerError that names the file and the remedy."""
        directory = Path(directory)
        side = read_side_files(directory)
        path = directory / "tokenizer.json"
        if path.exists():
            hf = HfBackend(path, side.pieces)
            first = hf.first_added_token()
            adds_bos = first is not None and first == _id_of(hf, side.bos)
            return cls(hf, side, hf.control_ids, adds_bos=adds_bos if side.add_bos is None else side.add_bos)
        path = directory / "tokenizer.model"
        if path.exists():
            sp = SentencePieceBackend(
                path, side.pieces, add_prefix_space=side.add_prefix_space, prefix_everywhere=side.legacy
            )
            if side.bos is None:
                side = sp.with_defaults(side)
            return cls(sp, side, sp.control_ids, adds_bos=side.add_bos is not False)
        raise TokenizerError(
            "no tokenizer.json and no tokenizer.model here",
            file=directory,
            hint="Copy one of them from the original model into this directory",
        )

    def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        """Ids of a text. BOS is put in front only if asked for, EOS never.

        special: pieces such as <|im_end|> in the text become their tokens. Without it they are spelled out like any
        other text, so that nobody can type a control token.
        """
        text = _scalars(text)
        ids = self._known(self._backend.encode(text, special=True)) if special else self.encode_parts([text])[0]
        return [self.bos_id, *ids] if bos and self.bos_id is not None else ids

    def encode_parts(self, parts: Sequence[Part]) -> list[list[int]]:
        """Ids per part of a prompt: texts as plain text, ints as control tokens, tuples of ids as they are.

        Joined, they are what encoding the whole rendered prompt with `special=True` gives, except that the texts
        cannot produce control tokens.
        """
        encoded = self._backend.encode_parts([_scalars(part) if isinstance(part, str) else part for part in parts])
        return [self._known(ids) for ids in encoded]

    def split(self, text: str) -> list[str | int]:
        """The text cut at everything that spells a control token; those are given as ids."""
        parts: list[str | int] = []
        at = 0
        for match in self._control.finditer(text):
            token_id = self._backend.token_id(match[0])
            assert token_id is not None
            parts += [text[at : match.start()], token_id]
            at = match.end()
        parts.append(text[at:])
        return [part for part in parts if part != ""]

    def decode(self, ids: Iterable[int], *, skip_special: bool = True, continuation: bool = False) -> str:
        """The text of ids; broken bytes become U+FFFD, ids outside the vocabulary nothing. See `stream`."""
        stream = self.stream(skip_special=skip_special, continuation=continuation)
        return "".join([stream.push(token_id) for token_id in ids]) + stream.flush()

    def stream(self, skip_special: bool = True, *, continuation: bool = False) -> StreamDecoder:
        """A decoder for tokens that arrive one by one.

        continuation: the tokens go on from an earlier text, so the space before the first word is part of the text.
        Otherwise it is removed where the tokenizer puts one in front of every text.
        """
        leading = 0 if continuation else self._backend.leading_spaces
        return StreamDecoder(self._backend.text_bytes, self.special_ids if skip_special else frozenset(), leading)

    def piece(self, token_id: int) -> str:
        """The vocabulary's spelling of a token, for display; empty for ids outside the vocabulary."""
        return self._backend.piece(token_id) or ""

    def token_id(self, piece: str) -> int | None:
        """The id of a piece spelled as in the vocabulary, or None."""
        return self._backend.token_id(piece)

    def control_id(self, piece: str) -> int | None:
        """The id of a control token such as <|im_end|>, or None if the vocabulary has no such control token."""
        token_id = self._backend.token_id(piece)
        return token_id if token_id in self.special_ids else None

    def text_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes a token adds to a text; may begin or end inside a character."""
        return self._backend.text_bytes(token_id)

    def _known(self, ids: list[int]) -> list[int]:
        return ids if not ids or max(ids) < self.vocab_size else [i for i in ids if i < self.vocab_size]

    def _resolve(self, name: int | str | None) -> int | None:
        token_id = _id_of(self._backend, name)
        return token_id if token_id is not None and token_id < self.vocab_size else None


def _id_of(backend: Backend, name: int | str | None) -> int | None:
    return backend.token_id(name) if isinstance(name, str) else name


def _scalars(text: str) -> str:
    """The text without lone surrogates, which no UTF-8 library can take (they come from broken terminal input)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text
