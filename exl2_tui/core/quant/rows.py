"""The calibration rows of one job: how many, in which template, and with what the model itself wrote."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.prompts import encode_chat
from exl2_tui.core.quant import selftext
from exl2_tui.core.quant.calibration import Calibration, CalibrationSpec, Dialogue, prepare
from exl2_tui.core.quant.default_text import DIALOGUES
from exl2_tui.core.quant.source import SourceModel
from exl2_tui.core.requests import ConvertRequest, Message
from exl2_tui.core.tokenizer import Tokenizer

HELD_OUT_ROWS = 8
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


def make_rows(
    model: SourceModel, spec: CalibrationSpec, cancel: CancelToken | None
) -> Generator[int, None, Calibration]:
    """Builds the rows; yields the tokens written so far while the model writes its own part."""
    tokenizer = Tokenizer.load(model.path)

    def chat(dialogue: Dialogue, ask: bool = False) -> list[int]:
        """A dialogue in the model's own template; with `ask` only its first question, ready to be answered."""
        turns = [Message("user", dialogue[0][0])]
        if not ask:
            pairs = [(Message("user", question), Message("assistant", answer)) for question, answer in dialogue]
            turns = [message for pair in pairs for message in pair]
        return list(encode_chat(turns, "auto", tokenizer, model.config, model.path, add_generation=ask).ids)

    generated: list[list[int]] = []
    if spec.dataset is None and model.decoder_weights <= selftext.LARGEST_MODEL:
        tokens = min(spec.length, selftext.DOCUMENT)
        documents = max(1, int(selftext.SHARE * spec.rows * spec.length) // tokens)
        asked = [chat(dialogue, ask=True) for dialogue in DIALOGUES]
        start = [tokenizer.bos_id or 0]  # most text starts from nothing, a third answers a question
        prompts = [asked[n // 3 % len(asked)] if n % 3 == 2 else start for n in range(documents)]
        generated = yield from selftext.write(model, prompts, tokens, spec.seed, cancel)
    return prepare(spec, tokenizer, model.config.vocab_size, chat, generated)
