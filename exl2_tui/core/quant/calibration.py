"""Calibration: the token rows on which layers are fitted, measured and finally judged.

Rows come from a file of the user (text, JSONL, parquet) or from the built-in set, which needs no download: original
pieces (`default_text.py`), the documentation and source code of this Python installation, and random tokens.
"""

from __future__ import annotations

import json
import random
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from exl2_tui.core.errors import JobError
from exl2_tui.core.quant.default_text import DIALOGUES, LANGUAGES, PROSE

MAX_FILE_BYTES = 1 << 30
MAX_CHARACTERS = 64 << 20
"""Text read at most: at two characters per token this is more than the largest sensible set."""
PREFERRED_COLUMNS = ("text", "content", "prompt", "instruction", "messages", "conversations", "turns")


class Encoder(Protocol):
    """What calibration needs of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def bos_id(self) -> int | None: ...

    def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]: ...


Dialogue = Sequence[tuple[str, str]]
"""(user, assistant) turns."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """rows (R, L), measure (M, L'), held_out (E, L) int64 token ids; held_out is never fitted to.

    description names the source; warnings are sentences for the user.
    """

    rows: Tensor
    measure: Tensor
    held_out: Tensor
    description: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CalibrationSpec:
    """How many rows of how many tokens, and where from. dataset None: the built-in set. column None: chosen."""

    dataset: Path | None
    column: str | None
    rows: int
    length: int
    measure_rows: int
    measure_length: int
    held_out_rows: int
    seed: int = 0


def prepare(
    spec: CalibrationSpec,
    tokenizer: Encoder,
    vocab_size: int,
    chat: Callable[[Dialogue], list[int]] | None = None,
    generated: Sequence[list[int]] = (),
) -> Calibration:
    """Builds all rows. `chat` renders a dialogue in the model's own template; `generated` is text the model wrote.

    Raises JobError for a dataset that is missing, malformed or too short for a single row.
    """
    if spec.dataset is None:
        documents = default_documents(tokenizer, vocab_size, spec, chat, generated)
        description = "(default)"
    else:
        documents = [tokenizer.encode(text) for text in read_texts(spec.dataset, spec.column)]
        description = spec.dataset.name
    for document in documents:
        if document and max(document) >= vocab_size:
            raise JobError(f"the tokenizer gives id {max(document)}, but the model knows only {vocab_size} tokens")
    wanted = spec.rows + spec.held_out_rows
    stream = [token for document in documents for token in document]
    found = min(wanted, len(stream) // spec.length)
    if found == 0:
        raise JobError(
            f"the calibration text has {len(stream)} tokens, one row needs {spec.length}",
            file=spec.dataset,
            hint="Use more text or shorter rows (--length).",
        )
    chunks = torch.tensor(stream[: found * spec.length], dtype=torch.int64).view(found, spec.length)
    held_out = min(spec.held_out_rows, found // 4)
    order = torch.randperm(found, generator=torch.Generator().manual_seed(spec.seed))
    aside = order[:held_out].sort().values
    kept = order[held_out : held_out + spec.rows].sort().values
    rows = chunks[kept]
    measured = torch.linspace(0, len(rows) - 1, min(spec.measure_rows, len(rows))).round().long()
    return Calibration(
        rows=rows,
        measure=rows[measured][:, : spec.measure_length].contiguous(),
        held_out=chunks[aside] if held_out else rows[:1],
        description=description,
        warnings=tuple(_doubts(rows, spec, found, held_out)),
    )


def _doubts(rows: Tensor, spec: CalibrationSpec, found: int, held_out: int) -> Iterator[str]:
    if found < spec.rows + spec.held_out_rows:
        yield f"the calibration text fills {found} rows of {spec.length} tokens instead of {spec.rows}"
    if rows.numel() < 16_384:
        yield f"only {rows.numel()} tokens calibrate this model: quality will suffer below about 16,000"
    if not held_out:
        yield "there is too little text to keep any aside: the result is judged on the rows it was fitted to"
    blocks = rows[:, : rows.shape[1] // 32 * 32].reshape(-1, 32)
    if len(blocks) and len(torch.unique(blocks, dim=0)) < 0.7 * len(blocks):
        yield "the calibration text repeats itself: many runs of 32 tokens occur more than once"
    if len(torch.unique(rows)) < 200:
        yield f"the calibration text uses only {len(torch.unique(rows))} different tokens"


def default_documents(
    tokenizer: Encoder,
    vocab_size: int,
    spec: CalibrationSpec,
    chat: Callable[[Dialogue], list[int]] | None,
    generated: Sequence[list[int]],
) -> list[list[int]]:
    """The built-in set, mixed: original pieces once, then documentation and code by turns until the rows are full."""
    generator = random.Random(spec.seed)
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    pieces = [bos + tokenizer.encode(text) for text in (*PROSE, *LANGUAGES)]
    for dialogue in DIALOGUES:
        if chat is not None:
            pieces.append(chat(dialogue))
        else:
            lines = [f"User: {question}\nAssistant: {answer}" for question, answer in dialogue]
            pieces.append(bos + tokenizer.encode("\n".join(lines)))
    pieces += [list(document) for document in generated]
    noise = [generator.randrange(vocab_size) for _ in range(spec.length)]
    wanted = (spec.rows + spec.held_out_rows) * spec.length
    documents = [noise, *pieces]
    total = sum(map(len, documents))
    library = library_texts(generator)
    while total < wanted:
        text = next(library, None)
        if text is None:
            break
        documents.append(bos + tokenizer.encode(text))
        total += len(documents[-1])
    generator.shuffle(documents)
    return documents


def library_texts(generator: random.Random) -> Iterator[str]:
    """Documentation and source code that every Python installation has, in turns, in pieces of some 4,000 letters."""
    documentation = _python_topics()
    stdlib = Path(sysconfig.get_path("stdlib"))
    code = sorted(path for path in stdlib.glob("*.py") if not path.name.startswith("_"))
    generator.shuffle(documentation)
    generator.shuffle(code)
    while documentation or code:
        for _ in range(2):
            if documentation:
                yield documentation.pop()[:4000]
        if code:
            try:
                yield code.pop().read_text(encoding="utf-8")[:4000]
            except (OSError, UnicodeDecodeError):
                continue  # one unreadable library file is no loss


def _python_topics() -> list[str]:
    """The language reference that `help()` shows; some slim installations leave it out."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return []
    return [text for _, text in sorted(topics.items()) if len(text) > 400]


def read_texts(file: Path, column: str | None) -> list[str]:
    """The texts of a .txt, .jsonl, .json or .parquet file. Raises JobError if there are none."""
    try:
        size = file.stat().st_size
    except OSError as error:
        raise JobError(f"the calibration file cannot be read ({error.strerror})", file=file) from None
    if size > MAX_FILE_BYTES:
        raise JobError(f"the calibration file has {size} bytes, at most {MAX_FILE_BYTES} are read", file=file)
    if file.suffix == ".parquet":
        texts = _read_parquet(file, column)
    else:
        content = file.read_bytes().decode("utf-8", errors="replace")
        texts = list(_read_jsonl(content, file, column)) if file.suffix in (".jsonl", ".json") else [content]
    kept: list[str] = []
    characters = 0
    for text in texts:
        if text.strip():
            kept.append(text)
            characters += len(text)
        if characters > MAX_CHARACTERS:
            break
    if not kept:
        raise JobError("the calibration file holds no text", file=file)
    return kept


def _read_jsonl(content: str, file: Path, column: str | None) -> Iterator[str]:
    records: list[object] = []
    if content.lstrip().startswith("["):
        whole = _parse(content, file, 1)
        records = whole if isinstance(whole, list) else []
    else:
        for number, line in enumerate(content.splitlines(), 1):
            if line.strip():
                records.append(_parse(line, file, number))
    for record in records:
        if isinstance(record, str):
            yield record
        elif isinstance(record, dict):
            yield flatten(record[_choose(record, file, column)])


def _parse(text: str, file: Path, line: int) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise JobError(f"line {line} is not valid JSON ({error})", file=file) from None


def _choose(record: dict[str, object], file: Path, column: str | None) -> str:
    """The column asked for, else a well-known name, else the one with the longest text."""
    if column is not None:
        if column not in record:
            raise JobError(f'there is no column "{column}", only {", ".join(map(repr, record))}', file=file)
        return column
    for name in PREFERRED_COLUMNS:
        if name in record:
            return name
    if not record:
        raise JobError("a record has no columns", file=file)
    return max(record, key=lambda name: len(flatten(record[name])))


def flatten(value: object) -> str:
    """The text in a JSON value: strings as they are, lists and objects (chat turns) joined by line breaks."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return flatten(value["content"]) if "content" in value else "\n".join(map(flatten, value.values()))
    if isinstance(value, list):
        return "\n".join(map(flatten, value))
    return "" if value is None else str(value)


def _read_parquet(file: Path, column: str | None) -> list[str]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise JobError(
            "reading parquet files needs pyarrow", file=file, hint="Install exl2-tui[parquet], or use a text file."
        ) from None
    texts: list[str] = []
    characters = 0
    try:
        source = parquet.ParquetFile(file)
        for batch in source.iter_batches(batch_size=256):
            for record in batch.to_pylist():
                # The reference converter joins all columns of a row; one column is taken where asked for.
                texts.append(flatten(record[_choose(record, file, column)]) if column else flatten(record))
                characters += len(texts[-1])
            if characters > MAX_CHARACTERS:
                break
    except (pyarrow.ArrowException, OSError) as error:
        raise JobError(f"the file is not valid parquet ({error})", file=file) from None
    return texts
