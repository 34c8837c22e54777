"""The calibration rows of one job: how many, in which template, and with what the model itself wrote."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.prompts import EncodedPrompt, encode_chat
from exl2_tui.core.quant import selftext
from exl2_tui.core.quant.calibration import Calibration, CalibrationSpec, prepare
from exl2_tui.core.quant.dataset import Dialogue
from exl2_tui.core.quant.default_text import DIALOGUES
from exl2_tui.core.quant.source import SourceModel
from exl2_tui.core.requests import ConvertRequest, Message
from exl2_tui.core.tokenizer import Tokenizer

HELD_OUT_ROWS = 8
CACHE_BYTES = 1 << 30
"""Keys and values held at most while the model writes: longer lists of texts are written in several batches."""
DEFAULT_LENGTH = 2048
DEFAULT_ROWS = 100
DEFAULT_MEASURE_ROWS = 16


def calibration_spec(request: ConvertRequest, context: int) -> CalibrationSpec:
    """The request's sizes with the defaults filled in; rows are never longer than the model's context."""
    length = min(request.length or DEFAULT_LENGTH, context)
    rows = request.rows or DEFAULT_ROWS
    return CalibrationSpec(
        dataset=None if request.calibration is None else Path(request.calibration),
        column=request.column,
        rows=rows,
        length=length,
        measure_rows=min(request.measure_rows or DEFAULT_MEASURE_ROWS, rows),
        measure_length=min(request.measure_length or length, length),
        held_out_rows=HELD_OUT_ROWS,
        seed=request.seed,
    )


def cache_bytes(config: ModelConfig, spec: CalibrationSpec) -> int:
    """Memory for keys and values while the model writes its part of the rows."""
    return min(_texts(spec), _batch(config, spec)) * _cache_row(config, spec)


def writing_steps(config: ModelConfig, spec: CalibrationSpec) -> int:
    """Steps in which the model writes its part of the rows, one token of each text of a batch at a time."""
    return -(-_texts(spec) // _batch(config, spec)) * min(spec.length, selftext.DOCUMENT)


def _texts(spec: CalibrationSpec) -> int:
    """How many texts the model writes."""
    return max(1, int(selftext.SHARE * spec.rows * spec.length) // min(spec.length, selftext.DOCUMENT))


def _cache_row(config: ModelConfig, spec: CalibrationSpec) -> int:
    """Bytes of keys and values of one text, float32."""
    return 2 * 4 * config.num_hidden_layers * config.kv_size * min(spec.length, selftext.DOCUMENT)


def _batch(config: ModelConfig, spec: CalibrationSpec) -> int:
    return max(1, CACHE_BYTES // _cache_row(config, spec))


def make_rows(
    model: SourceModel, spec: CalibrationSpec, cancel: CancelToken | None
) -> Generator[int, None, Calibration]:
    """Builds the rows; yields the tokens written so far while the model writes its own part."""
    tokenizer = Tokenizer.load(model.path)

    def written(dialogue: Dialogue, ask: bool) -> EncodedPrompt:
        """A dialogue in the model's own template; with `ask` only its first question, ready to be answered."""
        turns = [Message("user", dialogue[0][0])]
        if not ask:
            pairs = [(Message("user", question), Message("assistant", answer)) for question, answer in dialogue]
            turns = [message for pair in pairs for message in pair]
        return encode_chat(turns, "auto", tokenizer, model.config, model.path, add_generation=ask)

    def chat(dialogue: Dialogue, ask: bool = False) -> list[int]:
        return list(written(dialogue, ask).ids)

    generated: list[list[int]] = []
    if spec.dataset is None and model.decoder_weights <= selftext.LARGEST_MODEL:
        tokens = min(spec.length, selftext.DOCUMENT)
        asked = [chat(dialogue, ask=True) for dialogue in DIALOGUES]
        start = [tokenizer.bos_id or 0]  # most text starts from nothing, a third answers a question
        prompts = [asked[n // 3 % len(asked)] if n % 3 == 2 else start for n in range(_texts(spec))]
        batch = _batch(model.config, spec)
        for first in range(0, len(prompts), batch):
            steps = selftext.write(model, prompts[first : first + batch], tokens, spec.seed + first, cancel)
            generated += yield from steps
    example = written(DIALOGUES[0], ask=False)
    template = "".join(segment.text for segment in example.segments) if example.mode == "auto" else None
    return prepare(spec, tokenizer, model.config.vocab_size, chat, generated, template, cancel)
