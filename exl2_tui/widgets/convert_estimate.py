"""What a conversion will cost and be called, as content made from a draft and its check. Pure functions."""

from __future__ import annotations

from textual.content import Content

from exl2_tui.convert_draft import AUTO, ConvertDraft, parse_bits
from exl2_tui.core.errors import ConfigError
from exl2_tui.core.job_events import ConvertChecked
from exl2_tui.core.sizes import size_of
from exl2_tui.eta import rough
from exl2_tui.text import clean, one_line
from exl2_tui.widgets.bars import meter

STEP_NAMES = ("Source", "Target", "Check")
BAR_CELLS = 16
STAGES = {"calibrate": "reading", "measure": "measuring", "quantize": "quantizing", "finish": "comparing"}


def steps_row(step: int) -> Content:
    """Where one is in the wizard."""
    parts: list[tuple[str, str]] = []
    for index, name in enumerate(STEP_NAMES):
        style = "bold underline $primary" if index == step else "$secondary"
        parts += [(f"{index + 1} {name}", style), ("  ›  " if index < 2 else "  ", "$secondary")]
    return Content.assemble(*parts)


def estimate(found: ConvertChecked | None, draft: ConvertDraft) -> Content:
    """Two rows: sizes and time, memory and disk."""
    if found is None:
        return Content.styled("Checking\n", "$secondary")
    if not found.facts:
        return Content.styled("The estimate needs a model\n", "$secondary")
    first = [("Size ", size_of(found.source_size) + " → " + _sizes(found, draft))]
    second = []
    if found.loads is not None:
        context, needed = found.loads
        first.append(("Loads in ", f"{size_of(needed)} with {context:,} tokens"))
    known = found.estimate
    if known is not None:
        if known.seconds:
            second.append(("About ", rough(known.seconds)))
        second.append(("Memory ", _of(known.peak_memory, known.available_memory)))
        second.append(("Disk ", _of(known.disk, known.free_disk)))
    return Content("\n").join([_facts(first), _facts(second)])


def stage_times(found: ConvertChecked | None) -> list[tuple[str, str]]:
    """What is done and about how long it takes, if more than one thing is."""
    known = found.estimate if found is not None else None
    times = [(STAGES[name], rough(seconds)) for name, seconds in known.stages] if known is not None else []
    return times if len(times) > 1 else []


def _of(needed: int, free: int) -> str:
    return f"{size_of(needed)}, {size_of(free)} free" if free else size_of(needed)


def _facts(facts: list[tuple[str, str]]) -> Content:
    parts: list[tuple[str, str]] = []
    for label, text in facts:
        parts += [(label, "$secondary"), (text, ""), ("   ", "")]
    return Content.assemble(*parts)


def _asked(draft: ConvertDraft) -> tuple[float, ...]:
    try:
        return parse_bits(draft.bits)
    except ConfigError:
        return ()


def _sizes(found: ConvertChecked, draft: ConvertDraft) -> str:
    sizes = dict(found.sizes)
    return ", ".join(size_of(sizes[bits]) for bits in _asked(draft) if bits in sizes) or "?"


def size_bars(found: ConvertChecked | None, draft: ConvertDraft) -> Content:
    """The finished size for every bitrate there is to choose."""
    if found is None or not found.sizes:
        return Content("")
    asked = _asked(draft)
    largest = max(found.source_size, *(size for _, size in found.sizes))
    lines = [Content.styled("Size by bits per weight", "bold"), Content("")]
    for bits, size in found.sizes:
        chosen = bits in asked
        lines.append(
            Content.assemble(
                ("› " if chosen else "  ", "$primary"),
                (f"{bits:<5g}", "bold" if chosen else ""),
                meter(size, largest, cells=BAR_CELLS, style="$primary" if chosen else "$secondary"),
                f"{size_of(size):>9}",
            )
        )
    lines.append(
        Content.assemble("  ", (f"{'now':<5}", "$secondary"), meter(1, 1, cells=BAR_CELLS, style="$secondary"))
        + f"{size_of(found.source_size):>9}"
    )
    if times := stage_times(found):
        lines += [Content(""), Content.styled("Time by stage, about", "bold"), Content("")]
        lines += [Content.assemble((f"  {name:<14}", "$secondary"), text) for name, text in times]
    return Content("\n").join(lines)


def summary(draft: ConvertDraft, found: ConvertChecked | None, command: str) -> Content:
    """The last look: everything as sentences, then the command that does the same."""
    name = one_line(draft.source.rstrip("/").rpartition("/")[2], 60)
    bits = " and ".join(f"{value:g}" for value in _asked(draft))
    head = "head included" if draft.head_bits == AUTO else f"head {draft.head_bits} bits"
    lines = [Content.assemble(("Convert ", ""), (name, "bold"), f" to {bits} bits per weight, {head}.")]
    if found is not None and found.facts:
        lines.append(Content.styled(one_line(found.facts), "$secondary"))
    data = one_line(draft.calibration) or "the built-in mix of prose, code, dialogue and other languages"
    rows = f"{draft.rows or '100'} rows of {draft.length or '2048'} tokens at most"
    lines += [Content(""), Content(f"It is fitted to {data}: {rows}.")]
    if draft.measurement.strip():
        lines.append(Content(f"Measuring is skipped: {one_line(draft.measurement)} is used."))
    if draft.recipe == "classic":
        lines.append(Content("The classic recipe is used, as the reference converter does it."))
    lines += [
        Content(f"Every layer is saved to {one_line(draft.work)}, so it can stop and go on any time."),
        Content(
            f"The model is written to {one_line(draft.output)}, compared with the original, and can be chatted with."
        ),
    ]
    if found is not None:
        lines += [Content(""), estimate(found, draft)]
        if times := stage_times(found):
            lines.append(Content.styled(", ".join(f"{name} {text}" for name, text in times), "$secondary"))
        lines += [
            Content.styled(f"! {one_line(note.text)}", "$warning") for note in found.notes if note.level == "warning"
        ]
    lines += [Content.styled("Same as", "bold"), Content.styled(clean(command), "$secondary")]
    return Content("\n").join(lines)
