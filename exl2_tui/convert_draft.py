"""ConvertDraft: what a person has typed so far about a conversion, and the request and command it amounts to."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from exl2_tui.core.errors import ConfigError
from exl2_tui.core.job_events import FieldNote
from exl2_tui.core.requests import ConvertRequest

OFFERED_BITS = (2.5, 3.0, 3.5, 4.0, 4.65, 5.0, 6.0, 8.0)
AUTO = "auto"
"""Head bits that are chosen with the rest."""
HEAD_BITS = ("2", "3", "4", "5", "6", "8", AUTO)
RECIPES = ("refined", "classic")


@dataclass(frozen=True, slots=True)
class ConvertDraft:
    """Every field as text, as the form holds it; "" takes the default."""

    source: str = ""
    bits: str = "4.0"
    head_bits: str = "6"
    recipe: str = "refined"
    calibration: str = ""
    rows: str = ""
    length: str = ""
    measurement: str = ""
    work: str = ""
    output: str = ""

    @property
    def fixed_head_bits(self) -> int | None:
        """None: they are chosen with the rest."""
        return None if self.head_bits == AUTO else int(self.head_bits)


def parse_bits(text: str) -> tuple[float, ...]:
    """ "3.0, 4" -> (3.0, 4.0). Raises ConfigError saying what is wrong with it."""
    parts = [part.strip() for part in text.replace(";", ",").split(",") if part.strip()]
    try:
        values = tuple(float(part) for part in parts)
    except ValueError:
        raise ConfigError("Write a number such as 4.0, or several: 3.0, 4.0") from None
    if not values:
        raise ConfigError("How many bits per weight? 4.0 is a good start")
    if any(not 2.0 <= value <= 8.0 for value in values):
        raise ConfigError("Bits per weight lie between 2 and 8")
    if len(set(values)) != len(values):
        raise ConfigError("The same value is there twice")
    return values


def parse_count(text: str, low: int, high: int) -> int | None:
    """A whole number, None for "". Raises ConfigError."""
    if not text.strip():
        return None
    try:
        value = int(text.replace(",", "").replace("_", ""))
    except ValueError:
        raise ConfigError("Write a whole number, or nothing") from None
    if not low <= value <= high:
        raise ConfigError(f"Must lie between {low:,} and {high:,}")
    return value


def problems(draft: ConvertDraft) -> tuple[FieldNote, ...]:
    """What can be said about the fields without looking at the disk."""
    notes: list[FieldNote] = []
    try:
        parse_bits(draft.bits)
    except ConfigError as error:
        notes.append(FieldNote("bits", "error", error.message))
    if draft.head_bits == AUTO:
        notes.append(_about_auto(draft))
    counts = (("rows", draft.rows, 1, 100_000), ("length", draft.length, 32, 1 << 20))
    notes += filter(None, (_count_problem(*count) for count in counts))
    for field, text in (("work", draft.work), ("output", draft.output)):
        if not text.strip():
            notes.append(FieldNote(field, "error", "A folder is needed here"))
    return tuple(notes)


def _about_auto(draft: ConvertDraft) -> FieldNote:
    if draft.recipe != "refined":
        return FieldNote("head_bits", "error", "Only the refined recipe can choose them. Pick a number.")
    return FieldNote("head_bits", "info", "Chosen with the rest, for a file as large as with 6")


def _count_problem(field: str, text: str, low: int, high: int) -> FieldNote | None:
    try:
        parse_count(text, low, high)
    except ConfigError as error:
        return FieldNote(field, "error", error.message)
    return None


def make_request(draft: ConvertDraft) -> ConvertRequest:
    """The request a draft stands for. Raises ConfigError if a field cannot be read."""
    return ConvertRequest(
        source=absolute(draft.source) or "",
        work=absolute(draft.work) or "",
        bits=parse_bits(draft.bits),
        head_bits=draft.fixed_head_bits,
        recipe="classic" if draft.recipe == "classic" else "refined",
        output=absolute(draft.output),
        calibration=absolute(draft.calibration),
        rows=parse_count(draft.rows, 1, 100_000),
        length=parse_count(draft.length, 32, 1 << 20),
        measurement=absolute(draft.measurement),
    )


def absolute(text: str) -> str | None:
    """A path as the core wants it: absolute, without ~; None for ""."""
    if not text.strip():
        return None
    try:
        return str(Path(text.strip()).expanduser().resolve())
    except (RuntimeError, ValueError):  # ~nobody, or a NUL
        return str(Path(text.strip().replace("\0", "")).resolve())


def command(request: ConvertRequest) -> str:
    """The command line that does the same, one option per line, ready to paste into a shell."""
    parts = [f"exl2-tui convert -i {shlex.quote(request.source)}", f"-o {shlex.quote(request.work)}"]
    parts.append(f"-b {','.join(f'{value:g}' for value in request.bits)}")
    if request.output is not None:
        parts.append(f"-cf {shlex.quote(request.output)}")
    for option, value, default in (
        ("-hb", AUTO if request.head_bits is None else request.head_bits, 6),
        ("--recipe", request.recipe, "refined"),
        ("-c", request.calibration, None),
        ("-r", request.rows, None),
        ("-l", request.length, None),
        ("-m", request.measurement, None),
    ):
        if value != default:
            parts.append(f"{option} {shlex.quote(str(value))}")
    return " \\\n  ".join(parts)


def suggested_names(source: str, bits: str, number: int = 1) -> tuple[str, str]:
    """Folder names for work and output: "nano-chat-4bpw", "nano-chat-exl2-4bpw"; with a number if those are taken."""
    name = Path(source.strip().rstrip("/")).name or "model"
    try:
        label = "-".join(f"{value:g}" for value in parse_bits(bits)) + "bpw"
    except ConfigError:
        label = "exl2"
    label += f"-{number}" if number > 1 else ""
    return f"{name}-{label}", f"{name}-exl2-{label}"
