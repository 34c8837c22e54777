"""Calibration: the token rows on which layers are fitted, measured and finally judged.

Rows come from a file of the user (`dataset.py`) or from the built-in set, which needs no download: original
pieces (`default_text.py`), the documentation and source code of this Python installation, and random tokens.
"""

from __future__ import annotations

import random
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import JobError
from exl2_tui.core.quant.dataset import Dialogue, read_records
from exl2_tui.core.quant.default_text import DIALOGUES, LANGUAGES, PROSE

PIECE = 1 << 14
"""Characters that are tokenized at once, so that a text of gigabytes is read only as far as it is needed."""
TEMPLATES = {
    "ChatML": "<|im_start|>",
    "Llama 2": "[INST]",
    "Llama 3": "<|start_header_id|>",
    "Gemma": "<start_of_turn>",
    "Phi-3": "<|assistant|>",
    "Alpaca": "### Instruction:",
    "Vicuna": "\nASSISTANT:",
}
"""What a text in a chat template is recognised by."""


class Encoder(Protocol):
    """What calibration needs of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def bos_id(self) -> int | None: ...

    def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]: ...


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
    template: str | None = None,
    cancel: CancelToken | None = None,
) -> Calibration:
    """Builds all rows. `chat` renders a dialogue in the model's own template; `generated` is text the model wrote;
    template: a conversation as the model's own template writes it, None if it has none.

    Raises JobError for a dataset that is missing, malformed or too short for a single row.
    """
    style: list[str] = []
    if spec.dataset is None:
        documents = default_documents(tokenizer, vocab_size, spec, chat, generated)
        description = "(default)"
    else:
        seen = _Style(template)
        documents = list(_dataset_documents(spec, spec.dataset, tokenizer, chat, seen, cancel))
        style = list(seen.doubts())
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
        warnings=(*_doubts(rows, spec, found, held_out), *style),
    )


def _dataset_documents(
    spec: CalibrationSpec,
    dataset: Path,
    tokenizer: Encoder,
    chat: Callable[[Dialogue], list[int]] | None,
    seen: _Style,
    cancel: CancelToken | None,
) -> Iterator[list[int]]:
    """The file's records as tokens, until there are enough; conversations in the model's own template."""

    def encoded(record: str | Dialogue) -> Iterator[list[int]]:
        if not isinstance(record, str) and chat is not None:
            seen.chats += 1
            yield chat(record)
            return
        text = record if isinstance(record, str) else "\n".join(line for turn in record for line in turn)
        special = seen.note(text)
        for piece in _pieces(text):
            yield tokenizer.encode(piece, special=special)

    wanted = (spec.rows + spec.held_out_rows) * spec.length
    for record in read_records(dataset, spec.column):
        for tokens in encoded(record):
            if cancel is not None:
                cancel.check()
            yield tokens
            wanted -= len(tokens)
            if wanted <= 0:
                return


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces of about PIECE characters, cut at lines or spaces where there are any."""
    start = 0
    while len(text) - start > PIECE:
        cut = max(text.rfind("\n", start, start + PIECE), text.rfind(" ", start + PIECE // 2, start + PIECE)) + 1
        end = cut if cut > start else start + PIECE
        yield text[start:end]
        start = end
    yield text[start:]


class _Style:
    """Whether a dataset's conversations are written as the model's own template would."""

    def __init__(self, template: str | None) -> None:
        self.own = None if template is None else {name for name, mark in TEMPLATES.items() if mark in template}
        self.chats = 0
        self.found: Counter[str] = Counter()

    def note(self, text: str) -> bool:
        """Looks at a text; True if it is in the model's own template, so that its control tokens are meant."""
        names = {name for name, mark in TEMPLATES.items() if mark in text}
        self.found.update(names)
        return bool(self.own and names & self.own)

    def doubts(self) -> Iterator[str]:
        if self.own is None:
            return
        own, foreign = sum(self.found[name] for name in self.own), set(self.found) - self.own
        if foreign:
            names = " and ".join(sorted(foreign))
            yield (
                f"the calibration text holds conversations in the template of {names}, which is not this model's own: "
                'give them as "messages" in JSONL, they are then written in its template'
            )
        elif not own and not self.chats:
            yield (
                "this model has a chat template, but the calibration text holds no conversations: "
                'some "messages" in JSONL would keep its answers better'
            )


def _doubts(rows: Tensor, spec: CalibrationSpec, found: int, held_out: int) -> Iterator[str]:
    if found < spec.rows + spec.held_out_rows:
        yield f"the calibration text fills {found} rows of {spec.length} tokens instead of {spec.rows}"
    if rows.numel() < 16_384:
        yield f"only {rows.numel():,} tokens to calibrate with: quality suffers below about 16,000"
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
