from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import CancelledError, JobError
from exl2_tui.core.quant.calibration import CalibrationSpec, prepare


class Bytes:
    """A tokenizer of single bytes."""

    vocab_size = 260
    bos_id = 256

    def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        return list(text.encode())


def spec(dataset: Path | None, **changes: object) -> CalibrationSpec:
    values: dict[str, object] = {
        "dataset": dataset, "column": None, "rows": 8, "length": 64, "measure_rows": 3, "measure_length": 32,
        "held_out_rows": 4,
    }  # fmt: skip
    return CalibrationSpec(**{**values, **changes})  # type: ignore[arg-type]


def test_the_built_in_set_fills_all_rows_with_several_kinds_of_text() -> None:
    made = prepare(spec(None, rows=100, length=256, held_out_rows=8), Bytes(), 260)
    assert made.rows.shape == (100, 256) and made.held_out.shape == (8, 256) and made.measure.shape == (3, 32)
    text = bytes(token for token in made.rows.flatten().tolist() if token < 256).decode(errors="ignore")
    for part in ("ferry", "capital of France", "柳", "import "):
        assert part in text
    assert made.warnings == ()
    held = {tuple(row) for row in made.held_out.tolist()}
    assert not held & {tuple(row) for row in made.rows.tolist()}
    again = prepare(spec(None, rows=100, length=256, held_out_rows=8), Bytes(), 260)
    assert torch.equal(made.rows, again.rows)


def test_dialogues_and_generated_text_go_in_as_they_are() -> None:
    made = prepare(spec(None, rows=400, held_out_rows=1), Bytes(), 260, lambda _: [258] * 10, [[259] * 5])
    assert (made.rows == 258).sum() + (made.held_out == 258).sum() > 50  # random tokens fill some rows too
    assert (made.rows == 259).any() or (made.held_out == 259).any()


def test_warnings(tmp_path: Path) -> None:
    file = tmp_path / "same.txt"
    file.write_text("abcdefgh" * 200)
    found = " ".join(prepare(spec(file, rows=100), Bytes(), 260).warnings)
    assert "instead of 100" in found and "repeats itself" in found and "different tokens" in found
    file.write_text("x" * 70)
    assert any("judged on the rows" in warning for warning in prepare(spec(file), Bytes(), 260).warnings)


def chats(*dialogues: list[tuple[str, str]]) -> str:
    def turns(question: str, answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    records = [[turn for pair in dialogue for turn in turns(*pair)] for dialogue in dialogues]
    return "\n".join(json.dumps({"messages": record}) for record in records)


def test_text_of_another_kind_than_the_template_is_told(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    template = "<|im_start|>user\nHi<|im_end|>\n"

    def warnings(content: str) -> str:
        file.write_text(content)
        return " ".join(prepare(spec(file, rows=1), Bytes(), 260, lambda _: [259] * 70, template=template).warnings)

    foreign = "".join(f'"[INST] Question {n} of many? [/INST] An answer."\n' for n in range(9))
    assert "template of Llama 2, which is not this model's own" in warnings(foreign)
    assert "no conversations" in warnings("".join(f'"Plain text number {n}."\n' for n in range(9)))
    own = "".join(f'"<|im_start|>user\\nQuestion {n}?<|im_end|>"\n' for n in range(9))
    assert "template" not in warnings(own) and "conversations" not in warnings(own)
    assert "conversations" not in warnings(chats([("Hi", "Hello")], [("Who?", "Me")]))


def test_conversations_are_written_in_the_template_and_texts_read_as_far_as_needed(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(
        chats(*[[(f"Question {n}", "Answer")] for n in range(40)]) + "\nnever parsed, since there is enough"
    )
    seen: list[object] = []

    def chat(dialogue: object) -> list[int]:
        seen.append(dialogue)
        return [259] * 32

    made = prepare(spec(file, rows=8), Bytes(), 260, chat)
    assert (made.rows == 259).all() and len(seen) == 24 and seen[3] == [("Question 3", "Answer")]
    text = tmp_path / "long.txt"
    text.write_text("word " * 100_000)
    token = CancelToken()
    token.cancel()
    with pytest.raises(CancelledError):
        prepare(spec(text), Bytes(), 260, cancel=token)


def test_refusals(tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("too short")
    with pytest.raises(JobError, match="9 tokens"):
        prepare(spec(file), Bytes(), 260)
    file.write_text("words " * 1000)
    with pytest.raises(JobError, match="knows only 100 tokens"):
        prepare(spec(file), Bytes(), 100)
