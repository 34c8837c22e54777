"""Whole conversions of a tiny model: what comes out."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
from jobs import convert, finished, request, weights_hash
from tiny import make_tiny

from exl2_tui.core.checkpoint import Checkpoint, open_file
from exl2_tui.core.checkpoint.checksums import read_sums
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import QuantizationError
from exl2_tui.core.job_events import Evaluated, JobFinished, LayerMeasured, LayerQuantized
from exl2_tui.core.model.layout import model_linears
from exl2_tui.core.quant import output
from exl2_tui.core.quant.measurement import Measurement


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


def test_measuring_only_and_going_on_from_there(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    events = convert(request(tiny, tmp_path / "work", recipe="classic", measure_to=str(tmp_path / "to")))
    assert isinstance(events[-1], JobFinished) and events[-1].paths == ()
    assert len(Measurement.read(tmp_path / "to" / "measurement.json").halves) == 4
    again = convert(request(tiny, tmp_path / "work", recipe="classic", measure_to=str(tmp_path / "new" / "m.json")))
    assert len(again) == 1 and (tmp_path / "new" / "m.json").is_file()
    model = convert(request(tiny, tmp_path / "work", recipe="classic"))
    assert not any(isinstance(event, LayerMeasured) for event in model)
    finished(model)


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
    facts = [json.loads((model / "report.json").read_text()) for model in (fixed, chosen)]
    head = next(row for row in facts[1]["layers"] if row["key"] == "lm_head")
    assert facts[0]["chosen_head_bpw"] == 0 and facts[1]["chosen_head_bpw"] == pytest.approx(head["bpw"])
    assert f"{head['bpw']:.2f} in the head" in (chosen / "report.md").read_text()
    found = Measurement.read(measured)
    del found.linears["lm_head"]
    (tmp_path / "old.json").write_text(json.dumps(found.to_json(2)))
    with pytest.raises(QuantizationError, match="output head"):
        old = str(tmp_path / "old.json")
        convert(request(tiny, tmp_path / "old", bits=(3.0,), head_bits=None, measurement=old))
