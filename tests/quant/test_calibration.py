from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from exl2_tui.core.errors import JobError
from exl2_tui.core.quant.calibration import CalibrationSpec, flatten, prepare, read_texts


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


def test_text_jsonl_and_parquet_say_the_same(tmp_path: Path) -> None:
    texts = ["The first text.\nTwo lines.", "The second text."]
    (tmp_path / "a.txt").write_text("\n".join(texts))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"id": "x" * 99, "text": text}) for text in texts))
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"id": 1, "body": text}) for text in texts))
    assert read_texts(tmp_path / "a.txt", None) == ["\n".join(texts)]
    assert read_texts(tmp_path / "a.jsonl", None) == texts
    assert read_texts(tmp_path / "b.jsonl", None) == texts
    assert read_texts(tmp_path / "a.jsonl", "id") == ["x" * 99] * 2
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    parquet.write_table(arrow.table({"n": [1, 2], "text": texts}), tmp_path / "a.parquet")
    assert read_texts(tmp_path / "a.parquet", "text") == texts
    assert read_texts(tmp_path / "a.parquet", None) == [f"{n}\n{text}" for n, text in enumerate(texts, 1)]
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert flatten(turns) == "Hi\nHello"


def test_warnings(tmp_path: Path) -> None:
    file = tmp_path / "same.txt"
    file.write_text("abcdefgh" * 200)
    found = " ".join(prepare(spec(file, rows=100), Bytes(), 260).warnings)
    assert "instead of 100" in found and "repeats itself" in found and "different tokens" in found
    file.write_text("x" * 70)
    assert any("judged on the rows" in warning for warning in prepare(spec(file), Bytes(), 260).warnings)


def test_refusals(tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("too short")
    with pytest.raises(JobError, match="9 tokens"):
        prepare(spec(file), Bytes(), 260)
    file.write_text("   ")
    with pytest.raises(JobError, match="no text"):
        read_texts(file, None)
    with pytest.raises(JobError, match="cannot be read"):
        read_texts(tmp_path / "missing.txt", None)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "fine"}\n{"text": ')
    with pytest.raises(JobError, match="line 2"):
        read_texts(broken, None)
    broken.write_text('{"text": "fine"}')
    with pytest.raises(JobError, match="no column"):
        read_texts(broken, "body")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(JobError, match="parquet"):
        read_texts(tmp_path / "bad.parquet", None)
    file.write_text("words " * 1000)
    with pytest.raises(JobError, match="knows only 100 tokens"):
        prepare(spec(file), Bytes(), 100)
