"""What the progress screen says about a conversion, as content made from its state. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from exl2_tui.core.sizes import size_of
from exl2_tui.eta import exact, rough
from exl2_tui.job_points import Point, median_error, worst
from exl2_tui.job_state import Doubt, JobState, Result
from exl2_tui.job_words import number, verdict
from exl2_tui.keymap import with_keys
from exl2_tui.text import one_line
from exl2_tui.widgets.bars import meter
from exl2_tui.widgets.job_list import MARKS

SHOWN_DOUBTS = 2
WIDE = 100  # cells of the screen from which there is a pane on the right


def title(job: JobState, now: float) -> tuple[Content, Content]:
    """Name and bits left; state and time worked right."""
    mark, style, word = MARKS[job.status]
    bits = f"{job.bits:g} bpw" if job.bits else ", ".join(f"{value:g}" for value in job.info.bits) + " bpw"
    reached = f", {job.reached[job.bits]:.2f} reached" if job.bits in job.reached else ""
    left = Content.assemble("  ", (one_line(job.name, 40), "bold"), f"  {bits}", (reached, "$secondary"))
    right = Content.assemble((f"{mark} {word}", style), (f" · {exact(job.elapsed(now))}  ", "$secondary"))
    return left, right


def bar(job: JobState, now: float, width: int) -> Content:
    """How far and how long still, over the whole width."""
    text = f"  {int(100 * job.share):>3}%  {time_left(job, now) + _stage_left(job, now, width):<16}  "
    return Content.assemble("  ", meter(job.share, 1.0, cells=max(10, width - len(text) - 2)), text)


def time_left(job: JobState, now: float) -> str:
    """How long it still takes, as sure as that is known, and why it takes longer if it does."""
    left = job.left(now)
    if left is None or not (job.working or job.status in ("stopped", "interrupted")):
        return ""
    about = "" if job.eta.learned else "about "
    why = job.longer(now)
    return f"{about}{rough(left)} left" + (f": {why}" if why else "")


def _stage_left(job: JobState, now: float, width: int) -> str:
    """Where there is no pane for it: how long the running stage still takes, if others follow."""
    stages = job.left_by_stage(now) if job.working and width < WIDE else {}
    stage, seconds = next(iter(stages.items()), ("", 0.0))
    return f", {stage} {rough(seconds)}" if len(stages) > 1 and not job.longer(now) else ""


def notices(job: JobState, rows: int, keys: dict[str, str]) -> Content:
    """What went wrong, and doubts about the quality, with remedies as far as `rows` reach. keys: the person's own."""
    lines: list[Content] = []
    if job.status in ("failed", "damaged") and job.error:
        lines.append(Content.styled(f"  ✗ {one_line(job.error)}", "$error"))
        failed = job.status == "failed"
        again = with_keys(
            "{job.resume} tries again from where it stopped." if failed else "{job.cancel} deletes it.", keys
        )
        lines.append(Content.styled(f"    {one_line(f'{job.hint} {again}')}", "$secondary"))
    doubts = list(job.doubts.values())
    shown = max(1, min(SHOWN_DOUBTS, rows // 2))
    for doubt in doubts[:shown]:
        lines += _doubt(doubt)
    if len(doubts) > shown and rows > 1:
        lines[-1] = lines[-1] + Content.styled(
            f" ({len(doubts) - shown} more: {with_keys('{job.log}', keys)})", "$secondary"
        )
    return Content("\n").join(lines if rows > 1 else lines[:1])


def _doubt(doubt: Doubt) -> list[Content]:
    return [
        Content.styled(f"  ! {one_line(doubt.text)}", "$warning"),
        Content.styled(f"    {one_line(doubt.remedy)}", "$secondary"),
    ]


def report(job: JobState, width: int, keys: dict[str, str]) -> Content:
    """The finished models against the original. keys: the person's own."""
    judged = [result for result in job.results.values() if result.judged is not None]
    if len(judged) > 1:
        return _comparison(judged, width)
    return Content("\n").join(_report(judged[0], width, keys)) if judged else Content("")


def _report(result: Result, width: int, keys: dict[str, str]) -> list[Content]:
    judged = result.judged
    assert judged is not None
    level, text = verdict(judged)
    mark, style = {"error": ("✗", "$error"), "warning": ("!", "$warning")}.get(level, ("✓", "$success"))
    lines = [
        Content.assemble(
            ("  " + mark + " " + text, style), (f"   on {judged.tokens:,} tokens it never saw", "$secondary")
        ),
        Content.assemble(
            ("    KL divergence ", "$secondary"),
            number(judged.kl),
            ("   same top token ", "$secondary"),
            f"{judged.top1:.1%}",
            ("   perplexity ", "$secondary"),
            f"{judged.perplexity:.2f}",
            (f", was {judged.original_perplexity:.2f}", "$secondary"),
        ),
    ]
    if result.path:
        lines.append(
            Content.assemble(
                f"    {size_of(result.size)}",
                ("   in ", "$secondary"),
                one_line(result.path, max(20, width - 40)),
                (with_keys("   {job.chat}", keys), "$primary"),
                (" chats with it", "$secondary"),
            )
        )
    return lines


def _comparison(results: Sequence[Result], width: int) -> Content:
    """One row per bitrate."""
    lines = [
        Content.styled(
            f"  {'BPW':>6}{'SIZE':>10}{'KL':>9}{'SAME TOP':>10}{'PERPLEXITY':>12}{'ORIGINAL':>10}", "$secondary"
        )
    ]
    for result in results:
        judged = result.judged
        if judged is None:
            continue
        level, text = verdict(judged)
        style = {"error": "$error", "warning": "$warning"}.get(level, "$success")
        numbers = (
            f"  {result.bits:>6g}{size_of(result.size):>10}{number(judged.kl):>9}{judged.top1:>10.1%}"
            f"{judged.perplexity:>12.2f}{judged.original_perplexity:>10.2f}   "
        )
        lines.append(Content.assemble(numbers, (one_line(text, max(10, width - 64)), style)))
    return Content("\n").join(lines)


def chart_title(job: JobState, chosen: Point | None, *, measuring: bool, width: int) -> tuple[Content, Content]:
    """What the chart shows, with its scale where `width` cells have room for it; right what `_chart_note` says."""
    if measuring:
        bits = f"{job.info.bits[0]:g}" if job.info.bits else "4"
        name, scale = "  Predicted loss ", f"near {bits} bpw, log scale"
    else:
        name, scale = "  Error per layer ", "log scale, dots: 5 × median"
    note = _chart_note(job, chosen, measuring=measuring)
    fits = len(name) + len(scale) + note.cell_length + 2 <= width
    return Content.assemble((name, "bold"), (scale if fits else "", "$secondary")), note


def _chart_note(job: JobState, chosen: Point | None, *, measuring: bool) -> Content:
    """The layer under the cursor, else how far the original has run, else the worst layer."""
    if chosen is not None:
        text = f"{chosen.label}  {number(chosen.error)}  {chosen.mean_bpw:.2f} bpw  {exact(chosen.seconds)}  "
        return Content.styled(one_line(text) + "  ", "$primary")
    if measuring and job.step_kind == "forward":
        done, count = len(job.eta.done["forward"]), job.eta.planned("forward")
        return Content.styled(f"first the original runs: {done} of {count}  ", "$secondary")
    first = worst(job.points, 1)
    if measuring or not first:
        return Content("")
    return Content.styled(f"worst {number(first[0].error)} in {first[0].label}  ", "$secondary")


def side(job: JobState, now: float, jobs: Sequence[JobState]) -> Content:
    """The pane on the right: times, quality so far, the worst layers, other conversions."""
    lines: list[Content] = [Content.styled("This job", "bold"), Content("")]
    facts = [("Elapsed", exact(job.elapsed(now)))]
    if job.working:
        facts.append(("Left", time_left(job, now).partition(" left")[0] or "known soon"))
        facts += [(f"  {stage}", rough(seconds)) for stage, seconds in job.left_by_stage(now).items()]
        taken = job.eta.taken(job.step_kind) if job.step_kind in ("forward", "measure", "quantize") else []
        if taken:
            facts.append(("Per layer", exact(taken[-1])))
        if job.saved:
            facts.append(("Saved", _ago(now - job.saved)))
    facts.append(("Recipe", one_line(job.info.recipe, 20)))
    lines += _facts(facts)
    if job.points:
        lines += [Content(""), Content.styled("Quality so far" if job.working else "Quality", "bold"), Content("")]
        lines += _facts([("Median error", number(median_error(job.points)))])
        lines += [Content(""), Content.styled("Worst layers", "bold"), Content("")]
        for point in worst(job.points, 5):
            mark = "!" if point.outlier else " "
            style = "$warning" if point.outlier else ""
            lines.append(Content.styled(f"{one_line(point.label, 20):<20}{number(point.error):>8} {mark}", style))
    others = [other for other in jobs if other.job != job.job and other.status != "finished"]
    if others:
        lines += [Content(""), Content.styled("Others", "bold"), Content("")]
        for other in others[:4]:
            mark, style, word = MARKS[other.status]
            lines.append(
                Content.assemble((f"{mark} ", style), f"{one_line(other.name, 18):<18}", (f"{word:>11}", "$secondary"))
            )
    return Content("\n").join(lines)


def _facts(facts: Sequence[tuple[str, str]]) -> list[Content]:
    return [Content.assemble((f"{label:<14}", "$secondary"), text) for label, text in facts]


def _ago(seconds: float) -> str:
    return f"{exact(seconds)} ago" if seconds >= 2 else "just now"
