"""Whole conversions of a tiny model: what comes out, and what survives interruptions."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import make_tiny

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.checkpoint import Checkpoint, open_file
from exl2_tui.core.checkpoint.checksums import read_sums
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import CancelledError, Exl2Error, JobError, QuantizationError, UnsupportedError
from exl2_tui.core.events import Evaluated, Event, JobFinished, LayerMeasured, LayerQuantized, Tuned
from exl2_tui.core.model.layout import model_linears
from exl2_tui.core.quant import output, workdir
from exl2_tui.core.quant.job import ConvertJob
from exl2_tui.core.quant.measurement import Measurement
from exl2_tui.core.requests import ConvertRequest

TUNED_BITS = 3.0
"""At which the tiny model loses enough for norms and scales to be tuned."""


def request(source: Path, work: Path, **changes: object) -> ConvertRequest:
    base = ConvertRequest(
        source=str(source), work=str(work), bits=(4.0,), rows=4, length=64, measure_rows=2, measure_length=48
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def convert(asked: ConvertRequest) -> list[Event]:
    job = ConvertJob.open(asked)
    try:
        return list(job.run())
    finally:
        job.close()


def finished(events: list[Event]) -> Path:
    last = events[-1]
    assert isinstance(last, JobFinished) and len(last.paths) == 1
    return Path(last.paths[0])


def weights_hash(model: Path) -> str:
    return hashlib.sha256((model / "output.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("recipe", ["classic", "refined"])
def test_a_finished_model_follows_the_writer_checklist(tiny: Path, tmp_path: Path, recipe: str) -> None:
    events = convert(request(tiny, tmp_path, recipe=recipe))
    model = finished(events)
    config = ModelConfig.from_dir(model)
    with Checkpoint.open(model) as checkpoint:
        bits = weights = 0
        for spec in model_linears(config):
            assert checkpoint.linear_kind(spec.prefix) == "exl2"
            linear = checkpoint.linear(spec.prefix, spec.in_features, spec.out_features, False)
            assert linear.kind == "exl2"
            assert all(group.rows % 32 == 0 for group in linear.groups)
            assert (linear.q_scale_max >= 2.0**-16).all()
            if spec.prefix != "lm_head":
                bits, weights = bits + linear.stored_bits, weights + spec.in_features * spec.out_features
        assert 3.6 < bits / weights <= 4.0
        for name in checkpoint.names:
            assert checkpoint.info(name).dtype in ("F16", "I16", "I32")
        assert checkpoint.info("model.embed_tokens.weight").shape == (300, 64)
    assert [file.name for file in model.glob("*.safetensors")] == ["output.safetensors"]
    assert (model / "tokenizer.json").is_file()

    stored = json.loads((model / "config.json").read_text())["quantization_config"]
    assert stored["quant_method"] == "exl2" and stored["bits"] == 4.0 and stored["evaluation"]["status"] == "ok"
    report = json.loads((model / "report.json").read_text())
    assert len(report["layers"]) == 15 and report["size_bytes"] > 0
    assert "| lm_head |" in (model / "report.md").read_text()
    judged = next(event for event in events if isinstance(event, Evaluated))
    assert 0 < judged.kl < 1 and math.isclose(judged.perplexity, judged.original_perplexity, rel_tol=0.5)
    assert sum(isinstance(event, LayerMeasured) for event in events) == (4 if recipe == "classic" else 15)
    assert sum(isinstance(event, LayerQuantized) for event in events) == 15


def test_several_bitrates_share_one_measurement(tiny: Path, tmp_path: Path) -> None:
    asked = request(tiny, tmp_path / "work", bits=(3.5, 6.0), output=str(tmp_path / "out"), shard_size=0)
    events = convert(asked)
    assert isinstance(events[-1], JobFinished)
    low, high = (event.kl for event in events if isinstance(event, Evaluated))
    assert high < low
    with Checkpoint.open(tmp_path / "out" / "6bpw") as checkpoint:
        assert "lm_head.q_weight" in checkpoint

    first = Measurement.read(tmp_path / "work" / "measurement.json")
    reused = convert(request(tiny, tmp_path / "again", measurement=str(tmp_path / "work" / "measurement.json")))
    assert not any(isinstance(event, LayerMeasured) for event in reused)
    assert Measurement.read(tmp_path / "again" / "measurement.json").to_json(2) == first.to_json(2)
    # The same file serves programs that know only options per block.
    assert len(first.halves) == 4 and all(len(options) > 10 for options in first.halves.values())
    first.linears.clear()
    (tmp_path / "plain.json").write_text(json.dumps(first.to_json(2)))
    finished(convert(request(tiny, tmp_path / "third", recipe="classic", measurement=str(tmp_path / "plain.json"))))


def test_shards_hold_everything_once(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = finished(convert(request(tiny, tmp_path / "whole")))
    monkeypatch.setattr(output, "MIB", 20_000)
    output.write_model(tmp_path / "out", [whole / "output.safetensors"], tiny, 1, {})
    names = sorted(file.name for file in (tmp_path / "out").glob("*.safetensors"))
    assert names == [f"output-{n:05d}-of-{len(names):05d}.safetensors" for n in range(1, len(names) + 1)]
    assert len(names) > 2
    stored = [name for shard in names for name in open_file(tmp_path / "out" / shard).tensors]
    assert len(stored) == len(set(stored)) and set(stored) == set(open_file(whole / "output.safetensors").tensors)
    hashes = {name: hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() for name in names}
    assert read_sums(tmp_path / "out") == hashes


def test_measuring_only(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.json"
    events = convert(request(tiny, tmp_path / "work", recipe="classic", measure_to=str(target)))
    assert isinstance(events[-1], JobFinished) and events[-1].paths == ()
    assert len(Measurement.read(target).halves) == 4


def test_untied_head_and_the_early_allocation(tmp_path: Path) -> None:
    source = make_tiny(tmp_path / "model", tied=False)
    model = finished(convert(request(source, tmp_path / "work", recipe="classic", allocation="largest", head_bits=8)))
    assert set(open_file(model / "output.safetensors").tensor("lm_head.q_groups")[::2].tolist()) == {8}


def test_head_bits_inside_the_budget(tiny: Path, tmp_path: Path) -> None:
    """The file is no larger than with a head of 6 bits; a measurement without the head is refused."""
    fixed = finished(convert(request(tiny, tmp_path / "fixed", bits=(3.0,))))
    measured = tmp_path / "fixed" / "measurement.json"
    chosen = finished(convert(request(tiny, tmp_path / "auto", bits=(3.0,), head_bits=None, measurement=str(measured))))
    assert weights_hash(chosen) != weights_hash(fixed)
    sizes = [open_file(model / "output.safetensors").path.stat().st_size for model in (fixed, chosen)]
    assert 0.97 * sizes[0] < sizes[1] <= sizes[0] + 4096  # the header may name other shapes
    found = Measurement.read(measured)
    del found.linears["lm_head"]
    (tmp_path / "old.json").write_text(json.dumps(found.to_json(2)))
    with pytest.raises(QuantizationError, match="output head"):
        old = str(tmp_path / "old.json")
        convert(request(tiny, tmp_path / "old", bits=(3.0,), head_bits=None, measurement=old))


@pytest.mark.parametrize(("recipe", "bits"), [("classic", 4.0), ("refined", TUNED_BITS)])
def test_stopped_after_any_event_the_result_is_the_same(tiny: Path, tmp_path: Path, recipe: str, bits: float) -> None:
    events = convert(request(tiny, tmp_path / "whole", recipe=recipe, bits=(bits,)))
    assert any(isinstance(event, Tuned) and event.kept for event in events) == (recipe == "refined")
    expected = weights_hash(finished(events))
    asked = request(tiny, tmp_path / "cut", recipe=recipe, bits=(bits,))
    generator = random.Random(3)
    for _ in range(60):
        job = ConvertJob.open(asked)
        steps = job.run()
        limit = generator.randrange(1, 25)
        seen = [event for _, event in zip(range(limit), steps, strict=False)]
        steps.close()  # type: ignore[attr-defined]
        job.close()
        if isinstance(seen[-1], JobFinished):
            break
    assert weights_hash(finished(seen)) == expected
    assert finished(convert(asked)) == finished(seen)  # a finished job only tells its result again


def in_child(work: Callable[[], None]) -> int:
    """Runs `work` in a forked process and returns its id."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - nothing may escape into the parent's test run
            os._exit(1)
    return child


def test_killed_at_50_random_moments_the_result_is_the_same(tiny: Path, tmp_path: Path) -> None:
    expected = weights_hash(finished(convert(request(tiny, tmp_path / "whole", bits=(TUNED_BITS,)))))
    asked = request(tiny, tmp_path / "killed", bits=(TUNED_BITS,))
    generator = random.Random(11)
    kills = 0
    while kills < 50:
        child = in_child(lambda: convert(asked) and None)
        time.sleep(generator.uniform(0.0, 0.35))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += 1
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
    assert weights_hash(finished(convert(asked))) == expected
    leftovers = [file.name for file in (tmp_path / "killed").rglob("*.partial")]
    assert len(leftovers) <= 50 and weights_hash(tmp_path / "killed" / f"model-{TUNED_BITS:g}bpw") == expected


def test_cancelling_stops_soon_and_resumes(tiny: Path, tmp_path: Path) -> None:
    token = CancelToken()
    job = ConvertJob.open(request(tiny, tmp_path))
    with pytest.raises(CancelledError):
        for event in job.run(token):
            if isinstance(event, LayerMeasured):
                token.cancel()
    job.close()
    finished(convert(request(tiny, tmp_path)))


def test_a_full_disk_leaves_a_job_that_resumes(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = workdir.write_file
    calls = 0

    def full(path: Path, tensors: dict[str, torch.Tensor]) -> str:
        nonlocal calls
        calls += 1
        if calls > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, tensors)

    monkeypatch.setattr(workdir, "write_file", full)
    with pytest.raises(Exl2Error, match=r"(?i)disk is full|no space"):
        convert(request(tiny, tmp_path))
    monkeypatch.undo()
    finished(convert(request(tiny, tmp_path)))


def test_refusals(tiny: Path, tmp_path: Path, nano_chat_exl2: Path) -> None:
    work = tmp_path / "work"
    job = ConvertJob.open(request(tiny, work))
    with pytest.raises(JobError, match="another process"):
        ConvertJob.open(request(tiny, work))
    stages = job.run()
    while not (work / "job.json").exists():
        next(stages)
    job.close()
    with pytest.raises(JobError, match=r"head_bits 6, not 8"):
        ConvertJob.open(request(tiny, work, head_bits=8))
    (work / "calibration.safetensors").write_bytes(b"damaged")
    with pytest.raises(JobError, match="damaged"):
        convert(request(tiny, work))
    ConvertJob.open(request(tiny, work, head_bits=8), fresh=True).close()
    (work / "job.json").write_text("{")
    with pytest.raises(JobError, match="damaged"):
        ConvertJob.open(request(tiny, work))

    with pytest.raises(UnsupportedError, match="already quantized"):
        ConvertJob.open(request(nano_chat_exl2, tmp_path / "a"))
    with pytest.raises(QuantizationError, match="fewer than this model can have"):
        convert(request(tiny, tmp_path / "b", bits=(2.0,), recipe="classic"))
    with pytest.raises(QuantizationError, match="another model"):
        reference = nano_chat_exl2 / "measurement-reference.json"
        convert(request(tiny, tmp_path / "c", measurement=str(reference)))
    headless = make_tiny(tmp_path / "head", tied=False, spoil="lm_head.weight")
    with pytest.raises(QuantizationError, match=r"lm_head\.weight"):
        convert(request(headless, tmp_path / "h"))
    spoiled = make_tiny(tmp_path / "nan", spoil="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(QuantizationError, match=r"model\.layers\.1\.mlp"):
        convert(request(spoiled, tmp_path / "d"))
    with pytest.raises(QuantizationError, match=r"model\.layers\.1\.mlp"):
        convert(request(spoiled, tmp_path / "e", recipe="classic"))


def test_the_reference_measurement_is_read_and_used(nano_chat: Path, nano_chat_exl2: Path) -> None:
    from exl2_tui.core.quant.recipes import ClassicRecipe
    from exl2_tui.core.quant.source import SourceModel

    model = SourceModel(nano_chat, torch.device("cpu"))
    found = Measurement.read(nano_chat_exl2 / "measurement-reference.json")
    strategy = ClassicRecipe(model, "job", "sum").allocate(found, 4.0)
    assert 3.97 < strategy.reached_bpw <= 4.0 and len(strategy.recipes) == 56
