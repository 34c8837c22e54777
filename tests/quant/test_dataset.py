"""Calibration files: every kind says the same, and none can do harm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exl2_tui.core.errors import JobError
from exl2_tui.core.quant import dataset
from exl2_tui.core.quant.dataset import flatten, read_records

TEXTS = ["The first text.\nTwo lines.", "The second text."]
CHAT = [("Hi", "Hello"), ("And?", "Nothing.")]


def records(file: Path, content: str | bytes, column: str | None = None) -> list[object]:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_records(file, column))


def lines(*values: object) -> str:
    return "\n".join(json.dumps(value) for value in values)


def test_text_json_and_jsonl_say_the_same(tmp_path: Path) -> None:
    assert records(tmp_path / "a.txt", "\n".join(TEXTS)) == ["\n".join(TEXTS).replace(TEXTS[1], ""), TEXTS[1]]
    named = [{"id": "x" * 99, "text": text} for text in TEXTS]
    assert records(tmp_path / "a.jsonl", lines(*named)) == TEXTS
    assert records(tmp_path / "b.jsonl", lines(*({"id": 1, "body": text} for text in TEXTS))) == TEXTS
    assert records(tmp_path / "c.jsonl", lines(*TEXTS)) == TEXTS
    assert records(tmp_path / "a.jsonl", lines(*named), "id") == ["x" * 99] * 2
    assert records(tmp_path / "a.json", json.dumps(named, indent=2)) == TEXTS
    assert records(tmp_path / "b.json", lines(*named)) == TEXTS  # lines under the wrong name
    assert records(tmp_path / "bom.jsonl", b"\xef\xbb\xbf" + lines(*named).encode()) == TEXTS


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    parquet.write_table(arrow.table({"n": [1, 2], "text": TEXTS}), tmp_path / "a.parquet")
    assert list(read_records(tmp_path / "a.parquet", "text")) == TEXTS
    assert list(read_records(tmp_path / "a.parquet", None)) == [f"{n}\n{text}" for n, text in enumerate(TEXTS, 1)]
    turns = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]]
    parquet.write_table(arrow.table({"id": [7], "messages": turns}), tmp_path / "b.parquet")
    assert list(read_records(tmp_path / "b.parquet", None)) == [CHAT[:1]]
    with pytest.raises(JobError, match="parquet"):
        records(tmp_path / "bad.parquet", b"PAR1 not really")
    with pytest.raises(JobError, match="cannot be read"):
        list(read_records(tmp_path / "missing.parquet", None))


def test_conversations_are_found_in_every_usual_shape(tmp_path: Path) -> None:
    said = [text for pair in CHAT for text in pair]
    shapes = [
        {"messages": [{"role": "system", "content": "Be brief."}, *roles(said, "role", "content", "assistant")]},
        {"conversations": roles(said, "from", "value", "gpt")},
        {"turns": said},
        roles(said, "role", "content", "assistant"),
    ]
    assert records(tmp_path / "a.jsonl", lines(*shapes)) == [CHAT] * 4
    odd = [{"role": "assistant", "content": "I speak first"}, {"role": "user", "content": "Oh"}]
    assert records(tmp_path / "b.jsonl", lines(odd)) == ["I speak first\nOh"]
    assert flatten({"a": None, "b": [1, "x"]}) == "\n1\nx"


def roles(said: list[str], role: str, content: str, answerer: str) -> list[dict[str, str]]:
    user = "human" if role == "from" else "user"
    return [{role: (user, answerer)[n % 2], content: text} for n, text in enumerate(said)]


def test_long_texts_are_cut_at_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "READ_BYTES", 64)
    text = "".join(f"Line {n} of äöü and more.\n" for n in range(50))
    pieces = records(tmp_path / "a.txt", text)
    assert "".join(map(str, pieces)) == text and len(pieces) > 20
    assert all(str(piece).endswith("\n") for piece in pieces)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "   ", "no text"),
        ("a.txt", b"fine \xff\xfe not", "not UTF-8 text .*byte 5"),
        ("a.txt", b"fine \xc3", "not UTF-8 text"),
        ("a.txt", b"\x08\x00\x00\x00\x00 a model file", "zero bytes"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": "\xe4"}', "line 2, byte"),
        ("a.jsonl", '{"text": "fine"}\n{"text": ', "line 2 is not valid JSON"),
        ("a.jsonl", '{"text": "fine"}\n17', "line 2 is int"),
        ("a.jsonl", "{}", "line 1 has no columns"),
        ("a.jsonl", "[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ("a.jsonl", '{"text": ' + "[" * 200 + "]" * 200 + "}", "nested too deeply"),
        ("a.json", "[1, 2", "not valid JSON"),
        ("a.json", "[" * 100_000, "nested too deeply"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    with pytest.raises(JobError, match=said):
        records(tmp_path / name, content)


def test_what_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "MAX_LINE_BYTES", 1 << 20)
    with pytest.raises(JobError, match=r"line 2 has more than 1\.0 MB"):
        records(tmp_path / "a.jsonl", '"fine"\n"' + "x" * (1 << 20) + '"')
    monkeypatch.setattr(dataset, "MAX_JSON_BYTES", 10)
    with pytest.raises(JobError, match=r"at most 10"):
        records(tmp_path / "a.json", '["a long text"]')
    with pytest.raises(JobError, match="no column"):
        records(tmp_path / "b.jsonl", '{"text": "fine"}', "body")
    with pytest.raises(JobError, match="cannot be read"):
        list(read_records(tmp_path / "missing.txt", None))
    with pytest.raises(JobError, match="no regular file"):
        list(read_records(tmp_path, None))
