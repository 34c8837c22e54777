"""What the fixed rows say, as content made from the session. Pure functions."""

from __future__ import annotations

from pathlib import Path

from textual.content import Content

from exl2_tui.core.sizes import size_of
from exl2_tui.keymap import with_keys
from exl2_tui.session import ChatSession
from exl2_tui.state import Writing
from exl2_tui.text import one_line, sentence, speed_text, tokens_text
from exl2_tui.widgets.bars import METER_CELLS, meter

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧"
PLACES = ("Chat", "Models", "Convert", "Settings")
WIDE = 104  # cells from which the status row has room for a longer meter
TITLE_CELLS = 12  # a title that would be cut shorter is not worth its place
WARN_AT = 0.85  # share of the context from which its meter warns


def model_label(session: ChatSession) -> str:
    """The model as a person calls it: the last part of its path."""
    model = session.model
    name = one_line(Path(model.name).name or model.name, 40)
    return {
        "none": "no model loaded",
        "loading": f"loading {name or 'the model'}",
        "failed": "no model loaded",
        "ready": name,
    }[model.status]


def header(session: ChatSession, place: str = "Chat", width: int = 80) -> tuple[Content, Content]:
    """Places and, where `width` leaves room, the chat's title left; model and mode right."""
    names: list[tuple[str, str]] = []
    badges = {"Convert": session.converting, "Models": session.downloading}
    for name in PLACES:
        done = f" {badges[name]}" if badges.get(name) else ""
        names.append((f" {name}{done} ", "bold $primary" if name == place else "$primary" if done else "$secondary"))
    left = Content.assemble(*names)
    right = _model_and_mode(session, with_format=True)
    if left.cell_length + right.cell_length + 2 > width:
        right = _model_and_mode(session, with_format=False)
    room = width - left.cell_length - right.cell_length - 6
    if place == "Chat" and room >= TITLE_CELLS:
        left = left + f"   {one_line(session.chat.title, room)}"
    return left, right


def _model_and_mode(session: ChatSession, *, with_format: bool) -> Content:
    model, info = session.model, session.model.info
    parts: list[str | tuple[str, str]] = [(model_label(session), "" if model.status == "ready" else "$secondary")]
    if info is not None and with_format:
        parts.append((f" {one_line(info.format, 20)}", "$secondary"))
    parts.append((f" · {mode_label(session)} ", "$secondary"))
    return Content.assemble(*parts)


def mode_label(session: ChatSession) -> str:
    """The chosen mode and, for "auto", the one it turned out to be."""
    chosen = session.chat.mode
    answer = session.chat.last("assistant")
    used = answer.mode if answer is not None else ""
    return one_line(f"{chosen} ({used})" if chosen == "auto" and used not in ("", "auto") else chosen, 30)


def status_row(session: ChatSession, ticks: int, width: int, *, cancel: str) -> tuple[Content, Content]:
    """Context meter, speed, memory, as much of the sampler as there is room for; while a model loads, how far it is.

    cancel: which key ends a load on this screen, as `keymap.with_keys` takes it.
    """
    model, meters = session.model, session.meters
    if model.status == "loading":
        share = f"{model.done / model.total:4.0%}" if model.total else "    "
        size = f"  {size_of(model.done)} of {size_of(model.total)}" if model.total else "  starting"
        spin = SPINNER[ticks % len(SPINNER)]
        left = Content.assemble(
            (f"  {spin} loading ", "$primary"), meter(model.done, model.total), f" {share}", (size, "$secondary")
        )
        return left, Content.styled(with_keys(cancel, session.settings.keys), "$secondary")
    if model.status == "failed":
        return Content.styled("  ✗ the model is not loaded", "$error"), Content("")
    if model.status == "none":
        return Content.styled("  no model loaded", "$secondary"), Content("")
    share_used = meters.context_used / meters.context_size if meters.context_size else 0.0
    style = "$warning" if share_used >= WARN_AT else "$primary"
    cells = METER_CELLS if width >= WIDE else METER_CELLS // 2
    parts: list[str | Content | tuple[str, str]] = [
        ("  ctx ", "$secondary"),
        meter(meters.context_used, meters.context_size, cells=cells, style=style),
        f" {meters.context_used:,} / {meters.context_size:,}",
    ]
    if meters.speed:
        parts.append(f"   {speed_text(meters.speed)}")
    if model.info is not None:
        parts.append((f"   mem {size_of(model.info.memory_bytes)}", "$secondary"))
    left = Content.assemble(*parts)
    return left, Content.styled(sampler_label(session, width - left.cell_length - 3) + " ", "$secondary")


def sampler_label(session: ChatSession, room: int) -> str:
    """The sampler in a few words, the most important first, as many as have room."""
    sampler = session.settings.sampler
    if sampler.temperature == 0:
        return "greedy"
    parts = [f"temp {sampler.temperature:g}"]
    if sampler.top_p < 1:
        parts.append(f"top-p {sampler.top_p:g}")
    if sampler.top_k:
        parts.append(f"top-k {sampler.top_k}")
    if sampler.min_p:
        parts.append(f"min-p {sampler.min_p:g}")
    while len(parts) > 1 and len("  ".join(parts)) > room:
        parts.pop()
    return "  ".join(parts)


def progress_row(writing: Writing, now: float, ticks: int, keys: dict[str, str]) -> tuple[Content, Content]:
    """The moving row below an answer. keys: the person's own."""
    spin = SPINNER[ticks % len(SPINNER)]
    seconds = f"{max(0.0, now - writing.started):.1f} s"
    stop = Content.styled(with_keys("{chat.stop} stop", keys), "$secondary")
    if writing.phase == "stopping":
        return Content.styled("■ stopping", "$warning"), Content("")
    if writing.phase in ("saving", "reading"):
        left = Content.styled(f"{spin} reading  ", "$primary")
        if writing.prompt_tokens:
            bar = meter(writing.prefilled, writing.prompt_tokens, cells=12)
            left = left + bar + f" {writing.prefilled:,} of {writing.prompt_tokens:,} tokens · {seconds}"
        return left, stop
    speed = writing.speed(now)
    parts = [speed_text(speed)] if speed else []
    parts += [tokens_text(writing.tokens), seconds]
    left = Content.assemble((f"{spin} writing  ", "$primary"), " · ".join(parts))
    return left, stop


def welcome(session: ChatSession) -> Content:
    """What an empty chat shows: what is loaded, or why nothing is, and the first keys."""
    model = session.model
    lines: list[Content] = []
    if model.status == "failed":
        lines += [
            Content.styled(
                f"✗ {one_line(Path(model.name).name or model.name or 'The model')} could not be loaded", "bold $error"
            ),
            Content(""),
            Content(sentence(model.error)),
        ]
        if model.hint:
            lines.append(Content(one_line(model.hint)))
        waits = "What you write is kept and waits for a model; {app.models} shows what there is."
        waits = with_keys(waits, session.settings.keys)
        lines += [Content(""), Content.styled(waits, "$secondary")]
        return Content("\n").join(lines)
    if model.info is not None:
        info = model.info
        lines += [
            Content.styled(model_label(session), "bold"),
            Content.styled(
                f"{one_line(info.format)} · {size_of(info.weight_bytes)} · context {info.context:,} · "
                f"{one_line(info.device)}, {one_line(info.kernels)} · loaded in {info.seconds:.1f} s",
                "$secondary",
            ),
        ]
    else:
        lines += [Content.styled("Welcome to exl2-tui", "bold")]
        if model.status == "loading":
            lines.append(Content.styled("The model is being loaded. You can already write.", "$secondary"))
    if session.chat.system.strip():
        lines += [Content(""), Content.assemble(("system  ", "$primary"), one_line(session.chat.system, 200))]
    lines.append(Content(""))
    for key, text in (
        ("{composer.send}", "sends, {composer.newline} adds a line"),
        ("{chat.mode}", "prompt mode, with the exact prompt the model will see"),
        ("{chat.system}", "system prompt"),
        ("{app.models}", "models; {app.convert} converts one, {app.settings} settings, {app.chat} back to the chat"),
        ("{app.help}", "all keys"),
    ):
        key, text = (with_keys(part, session.settings.keys) for part in (key, text))
        lines.append(Content.assemble((f"{key:<7}", "$primary"), (text, "$secondary")))
    return Content("\n").join(lines)
