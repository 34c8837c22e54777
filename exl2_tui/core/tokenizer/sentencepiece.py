"""tokenizer.model through library `sentencepiece`."""

from __future__ import annotations

import dataclasses
import re
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from exl2_tui.core.errors import TokenizerError
from exl2_tui.core.tokenizer.backend import Part
from exl2_tui.core.tokenizer.files import AddedPiece, SideFiles, read_bytes
from exl2_tui.core.tokenizer.sentencepiece_file import BYTE, CONTROL, UNKNOWN, USER_DEFINED, ModelFile
from exl2_tui.core.tokenizer.spelling import Spelling

MAX_MODEL_BYTES = 64 << 20
BYTE_SPELLING = Spelling(byte_fallback=True)
TEXT_SPELLING = Spelling(replacements=(("▁", " "),))


class SentencePieceBackend:
    """A SentencePiece model plus the added tokens of the JSON files.

    The library finds user-defined pieces in any text; those that steer a chat are turned into control pieces while
    loading, which it never finds. Control tokens in a prompt are placed here: the text between them is encoded on its
    own, with the model's dummy space in front of the first text only (or of every one: `prefix_everywhere`).
    """

    def __init__(
        self, path: Path, pieces: Sequence[AddedPiece], *, add_prefix_space: bool | None, prefix_everywhere: bool
    ) -> None:
        """add_prefix_space None: as the model file says. Raises TokenizerError."""
        file = ModelFile.parse(read_bytes(path, MAX_MODEL_BYTES), path)
        marked = {piece.text for piece in pieces if piece.control}
        control = {
            index
            for index, piece in enumerate(file.pieces)
            if piece.kind == CONTROL
            or piece.text in marked
            or (piece.kind == USER_DEFINED and AddedPiece(piece.text, index, special=False).control)
        }
        unknown = {index for index, piece in enumerate(file.pieces) if piece.kind == UNKNOWN}
        self._byte_ids = frozenset(index for index, piece in enumerate(file.pieces) if piece.kind == BYTE)
        self._ids = {piece.text: index for index, piece in enumerate(file.pieces)}
        self._pieces = {index: text for text, index in self._ids.items()}
        self._added = self._place(pieces, path)
        self.size = max(self._pieces) + 1
        self.control_ids = frozenset(control | unknown | {i for i, piece in self._added.items() if piece.control})

        prefix = file.add_dummy_prefix if add_prefix_space is None else add_prefix_space
        self.leading_spaces = 1 if prefix else 0
        demoted = frozenset(control - unknown)
        self._bare = _processor(file.serialize(control=demoted, dummy_prefix=False), path)
        self._first = _processor(file.serialize(control=demoted, dummy_prefix=True), path) if prefix else self._bare
        self._later = self._first if prefix_everywhere else self._bare
        self._edges = (file.bos_piece, file.eos_piece)

        visible = {i for i, piece in self._added.items() if not piece.control and i >= len(file.pieces)}
        self._visible = self._pattern(visible)
        self._everything = self._pattern(visible | self.control_ids)

    def with_defaults(self, side: SideFiles) -> SideFiles:
        """`side` with begin and end of text by the model file's own pieces where no JSON file names them."""
        bos, eos = self._edges
        return dataclasses.replace(side, bos=bos if side.bos is None else side.bos, eos=side.eos or (eos,))

    def encode(self, text: str, *, special: bool) -> list[int]:
        parts = self._split(text, self._everything) if special else [text]
        return [token_id for ids in self.encode_parts(parts) for token_id in ids]

    def encode_parts(self, parts: Sequence[Part]) -> list[list[int]]:
        ids: list[list[int]] = [[] for _ in parts]
        run: list[int] = []
        before: Part | None = None
        for index, part in enumerate(parts):
            if isinstance(part, str):
                run.append(index)
                continue
            self._encode_run(parts, run, ids, before, part)
            ids[index] = [part] if isinstance(part, int) else list(part)
            before, run = part, []
        self._encode_run(parts, run, ids, before, None)
        return ids

    def piece(self, token_id: int) -> str | None:
        return self._pieces.get(token_id)

    def token_id(self, piece: str) -> int | None:
        return self._ids.get(piece)

    def text_bytes(self, token_id: int) -> bytes:
        text = self._pieces.get(token_id, "")
        if token_id in self.control_ids:
            return text.encode()
        return (BYTE_SPELLING if token_id in self._byte_ids else TEXT_SPELLING).to_bytes(text)

    def _encode_run(
        self, parts: Sequence[Part], run: list[int], ids: list[list[int]], before: Part | None, after: Part | None
    ) -> None:
        """Encodes the texts parts[run] as one and hands the tokens out to `ids`, by the byte where each starts."""
        text = "".join(str(parts[index]) for index in run)
        kept = text.lstrip() if self._strips(before, "rstrip") else text
        skipped = len(text.encode()) - len(kept.encode())
        kept = kept.rstrip() if self._strips(after, "lstrip") else kept
        starts: list[int] = []
        position = -skipped
        for index in run:
            starts.append(position)
            position += len(str(parts[index]).encode())

        position = 0
        start = before is None
        for section in self._split(kept, self._visible):
            if isinstance(section, str):
                tokens = (self._first if start else self._later).encode(section, out_type=int)
                # The dummy prefix is the one byte that the text does not have.
                position -= bool(self.leading_spaces and (start or self._later is self._first))
            else:
                assert isinstance(section, int)
                tokens = [section]
            start = False
            for token_id in tokens:
                owner = run[max(0, bisect_right(starts, max(position, 0)) - 1)]
                ids[owner].append(token_id)
                position += len(self.text_bytes(token_id))

    def _strips(self, part: Part | None, side: str) -> bool:
        piece = self._added.get(part) if isinstance(part, int) else None
        return piece is not None and bool(getattr(piece, side))

    def _split(self, text: str, pattern: re.Pattern[str] | None) -> list[Part]:
        """The text cut at added tokens, which become ids; whitespace goes where their flags say."""
        if pattern is None or not text:
            return [text] if text else []
        parts: list[Part] = []
        at = 0
        for match in pattern.finditer(text):
            piece = self._added.get(self._ids[match[0]])
            begin, end = match.span()
            if piece and piece.single_word and (text[begin - 1 : begin].isalnum() or text[end : end + 1].isalnum()):
                continue
            between = text[at:begin]
            between = between.rstrip() if piece and piece.lstrip else between
            if between:
                parts.append(between)
            parts.append(self._ids[match[0]])
            at = end
            if piece and piece.rstrip:
                at += len(text[at:]) - len(text[at:].lstrip())
        if at < len(text):
            parts.append(text[at:])
        return parts

    def _place(self, pieces: Sequence[AddedPiece], path: Path) -> dict[int, AddedPiece]:
        """Gives every added token its id: the one of the model file or the declared one; without any it is left out."""
        placed: dict[int, AddedPiece] = {}
        for piece in pieces:
            token_id = self._ids.get(piece.text)
            if token_id is None:
                token_id = piece.token_id
                if token_id is None:
                    continue  # a pad token that was merely named: the model has no row for it
                if token_id in self._pieces:
                    raise TokenizerError(
                        f"the JSON files beside it give {piece.text!r} the id {token_id}, "
                        f"which belongs to {self._pieces[token_id]!r}",
                        file=path,
                        hint="Take all tokenizer files from the same model",
                    )
                self._ids[piece.text] = token_id
                self._pieces[token_id] = piece.text
            placed[token_id] = piece
        return placed

    def _pattern(self, token_ids: set[int] | frozenset[int]) -> re.Pattern[str] | None:
        """Finds the longest of these pieces at the leftmost place."""
        texts = sorted((self._pieces[i] for i in token_ids), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts))) if texts else None


def _processor(model: bytes, path: Path) -> SentencePieceProcessor:
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except (RuntimeError, ValueError, OSError) as error:
        raise TokenizerError(
            f"not a SentencePiece model: {str(error)[:200]}", file=path, hint="Fetch the file again"
        ) from error
    return processor
