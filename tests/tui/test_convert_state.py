"""What the Convert screens know, without a screen: drafts, commands, job states, time left."""

from __future__ import annotations

import dataclasses
import math
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from exl2_tui.cli import app as cli
from exl2_tui.convert_draft import ConvertDraft, command, make_request, parse_bits, problems, suggested_names
from exl2_tui.core.errors import ConfigError
from exl2_tui.core.job_events import Checkpointed, Evaluated, JobProgress, LayerQuantized, QualityWarning, StageStarted
from exl2_tui.core.requests import ConvertRequest
from exl2_tui.eta import Eta, Promise, exact, rough
from exl2_tui.job_points import describe_key, median_error, placed, worst
from exl2_tui.job_state import JobState
from exl2_tui.job_words import number, verdict
from exl2_tui.widgets.job_facts import chart_title, report
from exl2_tui.widgets.stage_list import stages
from tests.tui import convert_fakes as fake

JOB = "/jobs/one"


def played(*runs: object, now: float = 100.0) -> JobState:
    """A job that heard of these events, two seconds apart at every checkpoint."""
    job = JobState.opened(fake.opened(JOB), now)
    for events in runs:
        for event in events:  # type: ignore[attr-defined]
            now += 2.0 if isinstance(event, Checkpointed) else 0.0
            job.apply(event, now, 0.0)
    return job


# Drafts


@pytest.mark.parametrize(("text", "bits"), [("4", (4.0,)), (" 3.0, 4.65 ", (3.0, 4.65)), ("2.5;8", (2.5, 8.0))])
def test_bits_are_read(text: str, bits: tuple[float, ...]) -> None:
    assert parse_bits(text) == bits


@pytest.mark.parametrize("text", ["", "four", "1.9", "8.5", "4,4", "nan", "1e9"])
def test_bad_bits_are_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_bits(text)
    notes = problems(ConvertDraft(bits=text, work="w", output="o"))
    assert [(note.field, note.level) for note in notes] == [("bits", "error")]


def test_every_bad_field_is_named() -> None:
    draft = ConvertDraft(bits="x", rows="0", length="many", work=" ", output="")
    assert {note.field for note in problems(draft)} == {"bits", "rows", "length", "work", "output"}


def test_only_the_refined_recipe_chooses_head_bits() -> None:
    draft = ConvertDraft(head_bits="auto", work="w", output="o")
    assert [(note.field, note.level) for note in problems(draft)] == [("head_bits", "info")]
    notes = problems(dataclasses.replace(draft, recipe="classic"))
    assert [(note.field, note.level) for note in notes] == [("head_bits", "error")]


DRAFTS = (
    ConvertDraft("/models/my model", "3.0,4", "8", "classic", "/d/a b.jsonl", "64", "512", "/m.json", "/w", "/out"),
    ConvertDraft("/models/x", work="/w", output="/o"),
    ConvertDraft("/it's/$HOME/-b 9", "2.5", "3", "refined", "", "1,000", "", "", "/w;rm", "~/o"),
    ConvertDraft("/models/x", "3.0", "auto", work="/w", output="/o"),
)


@pytest.mark.parametrize("draft", DRAFTS)
def test_the_command_is_the_same_conversion(draft: ConvertDraft, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the wizard shows, given to a shell's parser and to the command line, asks for what the wizard asks for."""
    started: list[ConvertRequest] = []
    monkeypatch.setattr("exl2_tui.cli.convert.run_job", lambda request, **_: started.append(request))
    monkeypatch.setattr("exl2_tui.cli.options.find_model", Path)  # these folders do not exist
    request = make_request(draft)
    words = shlex.split(command(request).replace("\\\n", " "))
    assert words[0] == "exl2-tui"
    result = CliRunner().invoke(cli, words[1:], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert started == [request]


@given(st.text(max_size=40))
def test_no_source_breaks_the_command(source: str) -> None:
    draft = ConvertDraft(source=source or "x", work="/w", output="/o")
    words = shlex.split(command(make_request(draft)).replace("\\\n", " "))
    assert words[words.index("-i") + 1] == make_request(draft).source
    assert all(names and "/" not in names for names in suggested_names(source, "4.0"))


# States


def test_a_job_follows_its_events() -> None:
    job = played(fake.calibrated(JOB), fake.measured(JOB), fake.quantized(JOB, 5))
    assert (job.status, job.stage, job.bits) == ("running", "quantize", 4.0)
    assert job.reached[4.0] == 3.998
    assert len(job.rows) == 35 and len(job.points) == 10
    assert job.points["model.layers.2.mlp"].label == "layer 2 mlp"
    assert job.points["model.layers.2.mlp"].mean_bpw == pytest.approx(4.12)
    assert 0 < job.share < 1
    slots = placed(job.points, job.layers)
    assert len(slots) == 16 and slots[4] is job.points["model.layers.2.self_attn"] and slots[10] is None


def test_layers_measured_backwards_stand_at_their_places() -> None:
    job = played(fake.calibrated(JOB), fake.measured(JOB, 11))
    assert [slot is not None for slot in placed(job.measured, job.layers)] == [False] * 12 + [True] * 4
    assert job.measured["model.layers.7.mlp"].mean_bpw == 4.0  # the candidate nearest to the target


def test_a_layer_far_worse_than_its_like_is_named_with_a_remedy() -> None:
    job = played(fake.quantized(JOB, 6))
    assert not job.doubts
    job = played(fake.quantized(JOB, 7))
    assert job.points["model.layers.6.mlp"].outlier and not job.points["model.layers.6.self_attn"].outlier
    (doubt,) = job.doubts.values()
    assert "layer 6 mlp" in doubt.text and "more bits" in doubt.remedy
    assert worst(job.points, 1)[0].label == "layer 6 mlp"


def test_rows_say_as_much_as_they_have_room_for() -> None:
    """What is being done, and what the scale is; the name of a thing is never cut."""
    job = played(fake.calibrated(JOB))
    job.stage, job.detail = "calibrate", "reading the text of 12 files"
    assert "● calibrate, reading the text of 12 files  · measure" in stages(job, 118).plain
    narrow = stages(job, 78).plain
    assert "● calibrate, reading" in narrow and "12 files" not in narrow and narrow.endswith("· evaluate  ")
    job = played(fake.calibrated(JOB), fake.measured(JOB), fake.quantized(JOB, 5))
    wide, note = chart_title(job, None, measuring=False, width=118)
    assert "log scale" in wide.plain and note.plain.startswith("worst ")
    name, again = chart_title(job, None, measuring=False, width=50)
    assert (name.plain, again.plain) == ("  Error per layer ", note.plain)


def test_no_number_is_the_worst_error() -> None:
    job = played(fake.quantized(JOB, 2))
    job.apply(LayerQuantized(JOB, "model.layers.2.mlp.up_proj", "r", 4.0, math.nan, 1.0), 0.0, 0.0)
    assert worst(job.points, 1)[0].label == "layer 2 mlp" and worst(job.points, 1)[0].outlier
    assert math.isfinite(median_error(job.points))
    assert "not a number" in next(iter(job.doubts.values())).text


def test_warnings_of_the_core_get_a_remedy() -> None:
    job = played()
    job.apply(QualityWarning(JOB, "only 1024 tokens calibrate this model"), 0.0, 0.0)
    assert "more calibration text" in next(iter(job.doubts.values())).remedy


def test_another_bitrate_starts_a_new_chart() -> None:
    job = played(fake.quantized(JOB))
    job.apply(StageStarted(JOB, "quantize", 5.0), 0.0, 0.0)
    assert not job.points and not job.rows and job.bits == 5.0


def test_the_end_and_its_report() -> None:
    job = played(fake.quantized(JOB), fake.judged(JOB))
    assert job.status == "finished" and job.share == 1.0
    assert job.models == [f"{JOB}/nano-chat-4bpw"]
    assert job.results[4.0].judged is not None
    broken = played(fake.quantized(JOB), fake.judged(JOB, broken=True))
    assert broken.models == []


def test_several_bitrates_are_compared_in_a_table() -> None:
    job = played(fake.quantized(JOB), fake.judged(JOB))
    job.apply(Evaluated(JOB, 3.0, 0.4, 0.71, 20.5, 14.02, 8184, False), 0.0, 0.0)
    shown = report(job, 120, {}).plain
    assert len(shown.splitlines()) == 3 and "Very close" in shown and "A clear loss" in shown and "71.0%" in shown


def test_a_pause_keeps_the_time_and_a_resume_goes_on() -> None:
    job = played(fake.calibrated(JOB), fake.measured(JOB, 4))
    job.apply(fake.ended(JOB), 200.0, 0.0)
    assert job.status == "stopped" and job.elapsed(500.0) == 230.0  # 130 of an earlier run, 100 of this one
    assert job.allows("resume") and not job.allows("pause")
    again = JobState.opened(fake.opened(JOB, stage="measure", done=4), 600.0, job)
    assert again.status == "running" and again.log is job.log


def test_verdicts_rise_with_the_divergence() -> None:
    said = [verdict(Evaluated(JOB, 4.0, kl, 0.9, 10.0, 9.0, 100, False))[1] for kl in (0.001, 0.02, 0.1, 0.5)]
    assert len(set(said)) == 4
    assert verdict(Evaluated(JOB, 4.0, 9.0, 0.1, 1e4, 9.0, 100, True))[0] == "error"


def test_names_of_layers() -> None:
    assert describe_key("model.layers.12.self_attn.q_proj") == (
        "model.layers.12.self_attn",
        "layer 12 attention",
        "attention",
    )
    assert describe_key("lm_head") == ("lm_head", "lm_head", "head")


@pytest.mark.parametrize(
    ("value", "text"), [(0.0121, ".0121"), (1.5, "1.5"), (0.0, ".0000"), (1e-5, "1.0e-05"), (math.nan, "nan")]
)
def test_errors_are_short(value: float, text: str) -> None:
    assert number(value) == text


# Time left


def test_time_left_is_the_median_of_the_same_kind() -> None:
    eta = Eta(layers=4, measure_steps=9)
    assert eta.left() is None
    eta.seen("calibrate", 0, 3.0)
    for step in range(5):
        eta.seen("forward", step, 1.0)
    for step, seconds in ((5, 10.0), (6, 11.0), (7, 90.0)):
        eta.seen("measure", step, seconds)
    assert eta.typical("measure") == 11.0 and not eta.learned
    eta.seen("measure", 8, 11.0)
    for layer, seconds in enumerate((4.0, 5.0)):
        eta.seen("quantize", layer, seconds)
    eta.seen("head", 0, 7.0)
    eta.seen("finish", 0, 2.0)
    assert eta.left() == pytest.approx(2 * 4.5) and eta.learned
    assert eta.left_by_stage() == {"quantize": pytest.approx(2 * 4.5)}
    eta.seen("quantize", 1, 5.0)  # told twice, counted once
    assert eta.left() == pytest.approx(2 * 4.5)


def test_time_left_of_kinds_not_seen_yet_follows_an_earlier_conversion() -> None:
    prior = {"calibrate": 9.0, "forward": 1.0, "measure": 5.0, "quantize": 3.0, "head": 4.0, "finish": 2.0}
    eta = Eta(layers=4, measure_steps=9, expected=62.0, prior=prior)  # type: ignore[arg-type]
    assert eta.left_by_stage() == {
        "calibrate": pytest.approx(62.0 * 9 / 52),
        "measure": pytest.approx(62.0 * 25 / 52),
        "quantize": pytest.approx(62.0 * 16 / 52),
        "finish": pytest.approx(62.0 * 2 / 52),
    }
    assert eta.left() == pytest.approx(62.0)  # the forecast, shared out: 9 + 5 + 20 + 12 + 4 + 2 = 52 units
    eta.seen("calibrate", 0, 1.0)  # says nothing about the rest
    assert eta.left() == pytest.approx(62.0 * 43 / 52)
    eta.seen("forward", 0, 2.0)  # this machine is twice as slow as that one was
    assert eta.left() == pytest.approx(2 * (4 + 20 + 12 + 4 + 2))


def test_what_is_shown_never_grows_without_a_word() -> None:
    promise = Promise()
    assert promise.left(100.0, 0.0) == 100.0
    assert promise.left(80.0, 10.0) == 80.0  # sooner: at once
    assert promise.left(83.0, 20.0) == 70.0 and not promise.longer  # a little later: the announced end stays
    assert promise.left(90.0, 30.0) == 90.0 and promise.longer == 30.0  # much later: it is put off, and said so


def test_a_job_that_slows_down_says_why() -> None:
    job = played(fake.calibrated(JOB), fake.measured(JOB, 12))
    assert job.left(job.step_began) is not None and job.longer(job.step_began) == ""
    now = job.step_began + 60.0
    job.apply(Checkpointed(JOB, "measure", 12), now, 0.0)
    job.apply(Checkpointed(JOB, "measure", 13), now + 60.0, 0.0)
    assert job.left(now + 60.0) is not None
    assert job.longer(now + 61.0) == "a step took 1 m 00 s, not 2.0 s"
    assert job.longer(now + 200.0) == ""  # news only while it is news


def test_time_left_runs_down_between_steps_and_never_up() -> None:
    job = played(fake.calibrated(JOB), fake.measured(JOB, 12))
    now = job.step_began
    shown = [job.left(now + step / 2) for step in range(8)]
    assert all(before is not None and after is not None and after < before for before, after in pairwise(shown))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "1 s"), (38, "40 s"), (187, "3 m 10 s"), (1510, "25 m"), (3900, "1 h 05 m")]
)
def test_times_do_not_pretend(seconds: float, text: str) -> None:
    assert rough(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.44, "0.4 s"), (38, "38 s"), (187, "3 m 07 s"), (4321, "1 h 12 m")])
def test_times_that_passed_are_exact(seconds: float, text: str) -> None:
    assert exact(seconds) == text


def test_progress_without_a_total_is_no_division_by_zero() -> None:
    job = JobState(JOB)
    job.apply(JobProgress(JOB, "measure", 0, 0, ""), 0.0, 0.0)
    assert job.share == 0.0
    assert Path(job.name).name == "one"
