"""A calibration file of the user: text, JSONL, JSON or parquet, read piece by piece and never trusted.

A record is a text or, where its column holds the turns of a conversation, a dialogue. How it becomes tokens is not
known here.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from exl2_tui.core.errors import JobError
from exl2_tui.core.sizes import size_of

Dialogue = Sequence[tuple[str, str]]
"""(user, assistant) turns."""
Record = str | Dialogue

MAX_LINE_BYTES = 16 << 20
MAX_JSON_BYTES = 256 << 20
"""A JSON array has to be read whole; lines, text and parquet are read as far as they are needed."""
MAX_DEPTH = 32
READ_BYTES = 1 << 20
_TURNS = ("messages", "conversations", "turns")
PREFERRED_COLUMNS = ("text", "content", "prompt", "instruction", *_TURNS)
_ROLES = {"user": 0, "human": 0, "assistant": 1, "gpt": 1, "bot": 1, "model": 1}


def read_records(file: Path, column: str | None) -> Iterator[Record]:
    """The records of a .jsonl, .json or .parquet file, or the paragraphs of any other, which is taken as text.

    column None: a well-known name, else the column with the longest text; of parquet all columns, as the reference
    converter has it. Raises JobError, naming the line, for what is malformed, and if there is no text at all.
    """
    empty = True
    try:
        for record in _records(file, column):
            if record if not isinstance(record, str) else record.strip():
                empty = False
                yield record
    except OSError as error:
        raise JobError(f"the calibration file cannot be read ({error.strerror or error})", file=file) from None
    if empty:
        raise JobError("the calibration file holds no text", file=file)


def _records(file: Path, column: str | None) -> Iterator[Record]:
    if not file.is_file() and file.exists():
        raise JobError("the calibration file is no regular file", file=file)
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet(file, column)
    elif suffix == ".jsonl":
        for number, line in _lines(file):
            if line.strip():
                yield _record(_parse(line, file, f"line {number}"), file, f"line {number}", column)
    elif suffix == ".json":
        yield from _json(file, column)
    else:
        yield from _paragraphs(file)


def _json(file: Path, column: str | None) -> Iterator[Record]:
    """An array of records, one record, or lines after all."""
    size = file.stat().st_size
    if size > MAX_JSON_BYTES:
        raise JobError(
            f"a JSON file of {size} bytes cannot be read, at most {MAX_JSON_BYTES} are",
            file=file,
            hint="Write one record per line and name the file .jsonl.",
        )
    content = _decode(file.read_bytes(), file)
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError) as error:
        lines = [line for line in content.splitlines() if line.strip()]
        if content.lstrip().startswith("[") or len(lines) < 2:
            raise JobError(f"the file is not valid JSON ({_reason(error)})", file=file) from None
        for number, line in enumerate(lines, 1):
            yield _record(_parse(line, file, f"line {number}"), file, f"line {number}", column)
        return
    for number, value in enumerate(whole if isinstance(whole, list) else [whole], 1):
        yield _record(value, file, f"record {number}", column)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines. Raises JobError for one that is too long or not UTF-8."""
    with file.open("rb") as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise JobError(
                    f"line {number} has more than {size_of(MAX_LINE_BYTES)}",
                    file=file,
                    hint="Write one record per line.",
                )
            yield number, _decode(line, file, f"line {number}, ")


def _paragraphs(file: Path) -> Iterator[str]:
    """A text in pieces of about READ_BYTES that end with a line where there is one."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    read = 0
    with file.open("rb") as stream:
        rest = ""
        while piece := stream.read(READ_BYTES):
            try:
                text = rest + decoder.decode(piece)
            except UnicodeDecodeError as error:
                raise _not_text(file, f"near byte {read + error.start}: {error.reason}") from None
            if "\0" in text:
                raise _not_text(file, "it holds zero bytes")
            read += len(piece)
            end = text.rfind("\n") + 1 or len(text)
            yield text[:end]
            rest = text[end:]
        try:
            yield rest + decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise _not_text(file, f"at its end: {error.reason}") from None


def _decode(content: bytes, file: Path, where: str = "") -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_text(file, f"{where}byte {error.start}: {error.reason}") from None


def _not_text(file: Path, what: str) -> JobError:
    return JobError(
        f"the calibration file is not UTF-8 text ({what})", file=file, hint="Save it as UTF-8, or choose a text file."
    )


def _parse(text: str, file: Path, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise JobError(f"{where} is not valid JSON ({_reason(error)})", file=file) from None


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _record(value: object, file: Path, where: str, column: str | None) -> Record:
    """The text or dialogue in one JSON value."""
    try:
        if isinstance(value, dict):
            name = _choose(value, file, where, column)
            return _dialogue(value[name], strings=name in _TURNS) or flatten(value[name])
        if isinstance(value, str | list):
            return _dialogue(value, strings=False) or flatten(value)
    except RecursionError:
        raise JobError(f"{where} is nested too deeply", file=file) from None
    raise JobError(f"{where} is {type(value).__name__}, expected a text or an object with one", file=file)


def _choose(record: Mapping[str, object], file: Path, where: str, column: str | None) -> str:
    """The column asked for, else a well-known name, else the one with the longest text."""
    if column is not None:
        if column not in record:
            raise JobError(
                f'{where} has no column "{column}", only {", ".join(map(repr, list(record)[:20]))}', file=file
            )
        return column
    for name in PREFERRED_COLUMNS:
        if name in record:
            return name
    if not record:
        raise JobError(f"{where} has no columns", file=file)
    return max(record, key=lambda name: len(flatten(record[name])))


def _dialogue(value: object, *, strings: bool) -> Dialogue | None:
    """Turns such as {"role": "user", "content": ...} or {"from": "human", "value": ...}; None for anything else.

    strings: whether strings alone are turns too, the first one the user's.

    A system message is left out: the model's template has a place for it, but not every template.
    """
    if not isinstance(value, list) or not value:
        return None
    if strings and len(value) > 1 and all(isinstance(turn, str) for turn in value):
        return list(zip(value[::2], value[1::2], strict=False))
    said: list[list[str]] = [[], []]
    for turn in value:
        if not isinstance(turn, dict):
            return None
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if role == "system":
            continue
        speaker = _ROLES.get(role) if isinstance(role, str) else None
        if speaker is None or not isinstance(content, str) or len(said[0]) - len(said[1]) != speaker:
            return None  # not a conversation of two in turns
        said[speaker].append(content)
    pairs = list(zip(*said, strict=False))
    return pairs or None


def flatten(value: object, depth: int = 0) -> str:
    """The text in a JSON value: strings as they are, lists and objects (chat turns) joined by line breaks.

    Raises RecursionError below MAX_DEPTH.
    """
    if depth > MAX_DEPTH:
        raise RecursionError
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        inner = [value["content"]] if "content" in value else value.values()
        return "\n".join(flatten(item, depth + 1) for item in inner)
    if isinstance(value, list):
        return "\n".join(flatten(item, depth + 1) for item in value)
    return "" if value is None else str(value)


def _parquet(file: Path, column: str | None) -> Iterator[Record]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise JobError(
            "reading parquet files needs pyarrow", file=file, hint="Install exl2-tui[parquet], or use a text file."
        ) from None
    if not file.exists():
        raise JobError("the calibration file cannot be read (no such file)", file=file)
    try:
        row = 0
        for batch in parquet.ParquetFile(file).iter_batches(batch_size=64):
            for record in batch.to_pylist():
                row += 1
                # The reference converter joins all columns of a row; one column is taken where asked for.
                if column is None and len(record) > 1 and not any(name in record for name in _TURNS):
                    yield flatten(record)
                else:
                    yield _record(record, file, f"row {row}", column)
    except pyarrow.ArrowException as error:
        raise JobError(f"the file is not valid parquet ({error})", file=file) from None
    except RecursionError:
        raise JobError("a row is nested too deeply", file=file) from None
