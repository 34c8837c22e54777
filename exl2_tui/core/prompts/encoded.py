"""What a conversation becomes: ids for the model, segments for a person who wants to see the exact prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from exl2_tui.core.tokenizer.backend import Part

SegmentRole = Literal["template", "system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a prompt before it is encoded; `text` is how it reads, `role` whose words it is."""

    part: Part
    text: str
    role: SegmentRole


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the prompt and the tokens that start in it. special: one control token, spelled out in `text`."""

    text: str
    ids: tuple[int, ...]
    special: bool
    role: SegmentRole


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt ready to run.

    mode is the one really used; note tells a person what was done differently from what they may expect, or is empty.
    The reply ends at any of stop_ids, or before any of stop_strings. The segments' ids, joined, are `ids`.
    """

    ids: tuple[int, ...]
    mode: str
    note: str
    stop_strings: tuple[str, ...]
    stop_ids: frozenset[int]
    segments: tuple[Segment, ...]
