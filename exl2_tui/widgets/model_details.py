"""What the details of a model say, as content. Pure functions."""

from __future__ import annotations

from pathlib import Path

from textual.content import Content

from exl2_tui.core.events import ModelInfo
from exl2_tui.core.model_events import LibraryListed, ModelDetailed
from exl2_tui.core.sizes import size_of
from exl2_tui.keymap import with_keys
from exl2_tui.text import one_line
from exl2_tui.widgets.bits_chart import average_per_kind, bits_chart
from exl2_tui.widgets.model_list import FIT_STYLES, context_text

LABEL = 13
MARKS = {"tight": "~", "cpu": "*", "no": "!"}  # of a total that is not simply all right
SOURCES = {
    "built-in": "comes with the program",
    "own": "the app's own folder",
    "directory": "a folder you added",
    "hub": "Hugging Face cache",
}


def short_facts(
    model: ModelInfo, detail: ModelDetailed | None, listed: LibraryListed | None, now: float, keys: dict[str, str]
) -> Content:
    """Four lines below a narrow list."""
    head = Content.assemble((one_line(model.name, 48), "bold"), (f"   {_home(model.path)}", "$secondary"))
    if model.problem:
        more = with_keys("{models.info} shows all of it, {models.remove} deletes it", keys)
        wrong = Content.styled(f"✗ {one_line(model.problem)}", "$error")
        return Content("\n").join([head, wrong, Content.styled(more, "$secondary")])
    facts = [one_line(model.family), one_line(model.format), f"context {model.context:,}"]
    if detail is not None and not detail.problem:
        facts = [
            one_line(model.family),
            f"{detail.layers} layers",
            f"{detail.heads} heads, {detail.kv_heads} kv",
            f"vocab {detail.vocab_size:,}",
            _mode(detail),
        ]
    lines = [head, Content.styled(" · ".join(facts), "$secondary")]
    lines.append(fit_sentence(model, listed))
    lines.append(Content.styled(used_text(model.used, now) + f" · {SOURCES[model.source]}", "$secondary"))
    return Content("\n").join(lines)


def full_facts(
    model: ModelInfo,
    detail: ModelDetailed | None,
    listed: LibraryListed | None,
    width: int,
    now: float,
    keys: dict[str, str],
) -> Content:
    """The whole pane. keys: the person's own."""
    lines = [
        Content.styled(one_line(model.name, width), "bold"),
        Content.styled(one_line(_home(model.path), width), "$secondary"),
        Content(""),
    ]
    if model.problem:
        lines += [Content.styled(f"✗ {one_line(model.problem)}", "$error"), Content("")]
        deletes = with_keys("{models.remove} deletes it", keys)
        lines.append(Content.styled(f"{SOURCES[model.source]} · {size_of(model.size_bytes)} · {deletes}", "$secondary"))
        return Content("\n").join(lines)
    if detail is None:
        lines.append(Content.styled("Reading the headers", "$secondary"))
        return Content("\n").join(lines)
    if detail.problem:
        lines.append(Content.styled(f"✗ {one_line(detail.problem)}", "$error"))
        return Content("\n").join(lines)
    lines += [_fact(label, value, width) for label, value in _facts(model, detail, now)]
    lines += [Content(""), Content.styled("Memory by context", "bold"), *memory_table(detail, listed)]
    lines.append(fit_sentence(model, listed))
    mixed = len({round(linear.bits, 1) for linear in detail.linears}) > 1  # a chart of equal columns says nothing
    chart = bits_chart(detail.linears, width) if mixed else []
    if chart:
        lines += [Content(""), Content.styled("Bits per weight by layer", "bold"), *chart]
        lines += _kinds(detail, width)
    return Content("\n").join(lines)


def fit_sentence(model: ModelInfo, listed: LibraryListed | None) -> Content:
    """Why it fits or not, and what would help."""
    if listed is None or not model.memory or listed.available is None:
        return Content("")
    if model.fits == "cpu":
        free, needs = size_of(listed.available), size_of(model.memory)
        text = f"The GPU has {free} free, too little: it would run on the processor, in {needs}."
        return Content.assemble((text, FIT_STYLES["cpu"]), (f" {_remedy(model, listed)}", "$secondary"))
    at = f" at {context_text(listed.context)}" if listed.context is not None else ""
    text = f"Needs {size_of(model.memory)} of {size_of(listed.available)}{at}, {listed.cache} cache."
    if model.fits == "yes":
        return Content.styled(text, "$secondary")
    remedy = "Close to the limit." if model.fits == "tight" else _remedy(model, listed)
    return Content.assemble((text, FIT_STYLES[model.fits]), (f" {remedy}", "$secondary"))


def _remedy(model: ModelInfo, listed: LibraryListed) -> str:
    if listed.available is not None and model.size_bytes >= listed.available:
        return "The weights alone are too large: take fewer bits per weight."
    return "Try - for a smaller context" + (", or t for the q8 cache." if listed.cache == "fp16" else ".")


def memory_table(detail: ModelDetailed, listed: LibraryListed | None) -> list[Content]:
    """A row per context: weights are the same everywhere, then cache and total for each kind of cache."""
    if not detail.memory:
        return []
    kinds = list(dict.fromkeys(row.cache_kind for row in detail.memory))
    first = detail.memory[0]
    lines = [
        Content.styled(f"weights {size_of(first.weights)}, working space {size_of(first.scratch)}", "$secondary"),
        Content.styled(f"{'':>6}" + "".join(f"{kind:>9}{'total':>9}" for kind in kinds), "$secondary"),
    ]
    for context in dict.fromkeys(row.context for row in detail.memory):
        chosen = listed is not None and listed.context == context
        parts: list[Content | tuple[str, str]] = [
            (f"{'›' if chosen else ' '}{context_text(context):>5}", "$primary" if chosen else "$secondary")
        ]
        for kind in kinds:
            row = next(row for row in detail.memory if row.context == context and row.cache_kind == kind)
            style = "" if row.fits in ("yes", "unknown") else FIT_STYLES[row.fits]
            parts += [(f"{size_of(row.cache):>9}", "$secondary"), (f"{size_of(row.total):>9}", style)]
            if row.fits in MARKS:
                parts[-1] = (f"{size_of(row.total) + MARKS[row.fits]:>9}", style)
        lines.append(Content.assemble(*parts))
    if any(row.fits in MARKS for row in detail.memory):
        on_cpu = "   * on the processor" if any(row.fits == "cpu" for row in detail.memory) else ""
        lines.append(Content.styled(f"{'':>6}~ tight   ! does not fit{on_cpu}", "$secondary"))
    return lines


def used_text(used: float, now: float) -> str:
    """ "used 3 days ago"."""
    if not used:
        return "never used"
    seconds = max(0.0, now - used)
    for size, word in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"used {count} {word}{'s' if count > 1 else ''} ago"
    return "used just now"


def _facts(model: ModelInfo, detail: ModelDetailed, now: float) -> list[tuple[str, str]]:
    head = next((linear.bits for linear in detail.linears if linear.name == "lm_head"), 0.0)
    tied = "tied head" if detail.tied_head else "head"
    words = f"{detail.vocab_size:,}" + (f" · {tied}" if head or detail.tied_head else "")
    return [
        ("Architecture", f"{one_line(model.family)}, {detail.layers} layers"),
        ("Heads", f"{detail.heads}, {detail.kv_heads} key/value, of {detail.head_dim}"),
        ("Hidden", f"{detail.hidden_size:,} · feed-forward {detail.ffn_size:,}"),
        ("Vocabulary", words + (f" {head:.1f} bpw" if head else "")),
        ("Context", f"{detail.context:,} · rope {one_line(detail.rope)}"),
        ("Weights", f"{one_line(model.format)}, {size_of(model.size_bytes)}"),
        ("Prompt mode", _mode(detail).removeprefix("mode ")),
        ("From", SOURCES[model.source]),
        ("Last used", used_text(model.used, now).removeprefix("used ").removesuffix(" used")),
    ]


def _mode(detail: ModelDetailed) -> str:
    if detail.mode == "auto":
        return "its own chat template"
    return f"mode {one_line(detail.mode)}" if detail.mode != "?" else f"none: {one_line(detail.mode_note)}"


def _kinds(detail: ModelDetailed, width: int) -> list[Content]:
    """Averages of q, k, v ... in rows that fit."""
    lines: list[Content] = []
    text = ""
    for kind, bits in average_per_kind(detail.linears):
        part = f"{kind} {bits:.2f}  "
        if len(text) + len(part) > width and text:
            lines.append(Content.styled(text.rstrip(), "$secondary"))
            text = ""
        text += part
    return [*lines, Content.styled(text.rstrip(), "$secondary")]


def _fact(label: str, value: str, width: int) -> Content:
    return Content.assemble((f"{label:<{LABEL}}", "$secondary"), one_line(value, max(10, width - LABEL)))


def _home(path: str) -> str:
    """A path with ~ for the home directory."""
    home = str(Path.home())
    return one_line("~" + path[len(home) :] if path.startswith(home + "/") else path)
