"""Models that are hard to quantize, through the whole job: each completes, or stops with an error that says why."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from jobs import convert, finished, request
from tiny import make_tiny

from exl2_tui.core.checkpoint import write_file
from exl2_tui.core.errors import Exl2Error, QuantizationError
from exl2_tui.core.job_events import Evaluated, JobFinished, QualityWarning
from exl2_tui.core.quant import source as source_module
from exl2_tui.core.quant.source import Comparison
from tests.support.exl2_reader import check, decode, read_directory

Tensors = dict[str, torch.Tensor]
both = pytest.mark.parametrize("recipe", ["classic", "refined"])


def made(
    tmp_path: Path, recipe: str, change: Callable[[Tensors], None] | None, *, kl: float = 0.5, **shape: int | bool
) -> Path:
    """The finished model of a tiny source with `change` done to its tensors; it passes the writer checklist."""
    model = make_tiny(tmp_path / "model", change=change, **shape)  # type: ignore[arg-type]
    events = convert(request(model, tmp_path / "work", recipe=recipe))
    judged = next(event for event in events if isinstance(event, Evaluated))
    assert not judged.broken and judged.kl < kl
    check(finished(events))
    return finished(events)


def refusal(tmp_path: Path, recipe: str, change: Callable[[Tensors], None] | None, **shape: int) -> Exl2Error:
    model = make_tiny(tmp_path / "model", change=change, **shape)
    with pytest.raises(Exl2Error) as caught:
        convert(request(model, tmp_path / "work", recipe=recipe))
    assert caught.value.hint, "an error must say what to do"
    assert not list(tmp_path.glob("work/model-*/config.json"))
    return caught.value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.layers.1.mlp.up_proj.weight", float("nan")),
        ("model.layers.0.self_attn.k_proj.weight", float("inf")),
        ("model.layers.1.input_layernorm.weight", float("nan")),
        ("model.embed_tokens.weight", float("nan")),
        ("model.norm.weight", float("inf")),
    ],
)
def test_nan_and_infinity_in_weights_name_the_tensor(tmp_path: Path, name: str, value: float) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors[name][..., 5] = value

    error = refusal(tmp_path, "refined", spoil)
    assert error.tensor == name and "are not finite" in error.message


@both
def test_activations_that_overflow_name_the_layer(tmp_path: Path, recipe: str) -> None:
    def explode(tensors: Tensors) -> None:
        tensors["model.layers.0.mlp.down_proj.weight"].fill_(6e4)

    error = refusal(tmp_path, recipe, explode)
    assert error.tensor is not None and error.tensor.startswith("model.layers.0.mlp") and "float16" in error.message


@both
def test_an_outlier_of_ten_thousand_survives(tmp_path: Path, recipe: str) -> None:
    def change(tensors: Tensors) -> None:
        tensors["model.layers.0.mlp.gate_proj.weight"][7, 9] = -1e4  # switches one unit off or far up

    model = made(tmp_path, recipe, change, kl=5.0)  # one unit drowns all others: the original talks nonsense too
    weight = decode(read_directory(model), "model.layers.0.mlp.gate_proj")
    assert float(weight[9, 7]) == pytest.approx(-1e4, rel=0.35)


@both
def test_dead_columns_unused_rows_and_repeated_inputs(tmp_path: Path, recipe: str) -> None:
    """Inputs that are always 0, weights that are all 0, and Hessians of a rank far below their size."""

    def change(tensors: Tensors) -> None:
        tensors["model.layers.0.input_layernorm.weight"][:20] = 0  # dead inputs of q, k, v
        tensors["model.layers.0.mlp.up_proj.weight"][3:40] = 0  # dead outputs, and dead inputs of down
        tensors["model.layers.1.mlp.gate_proj.weight"][:, 8:16] = 0  # unused inputs
        tensors["model.layers.1.self_attn.v_proj.weight"][1:] = tensors["model.layers.1.self_attn.v_proj.weight"][:1]
        tensors["model.layers.1.self_attn.o_proj.weight"].zero_()

    model = made(tmp_path, recipe, change)
    tensors = read_directory(model)
    if recipe == "classic":  # the refined recipe makes it cancel drift
        assert not decode(tensors, "model.layers.1.self_attn.o_proj").any()
    assert not decode(tensors, "model.layers.0.mlp.up_proj")[:, 3:40].any()


@both
def test_one_repeated_token_gives_hessians_of_rank_one(tiny: Path, tmp_path: Path, recipe: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a" * 2000)
    events = convert(request(tiny, tmp_path / "work", recipe=recipe, calibration=str(text)))
    check(finished(events))
    told = " ".join(event.message for event in events if isinstance(event, QualityWarning))
    assert "repeats itself" in told and "1 different tokens" in told


@both
def test_shapes_that_no_group_size_divides(tmp_path: Path, recipe: str) -> None:
    model = made(tmp_path, recipe, None, hidden=96, ffn=160, vocab=259, tied=False)  # 96, 160: multiples of 32 only
    tensors = read_directory(model)
    assert tensors["lm_head.q_weight"][1].shape[1] == 288 and not decode(tensors, "lm_head")[:, 259:].any()


def test_input_features_that_the_format_cannot_hold_are_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, "classic", None, ffn=100)
    assert error.tensor == "model.layers.0.mlp.down_proj.weight" and "100 input features" in error.message


@both
def test_tied_embeddings_give_a_head_of_their_own(tmp_path: Path, recipe: str) -> None:
    model = made(tmp_path, recipe, None, tied=True)
    embedding = read_directory(model)["model.embed_tokens.weight"][1].astype("float32")
    head = decode(read_directory(model), "lm_head").astype("float32")[:, :300].T
    # The refined recipe moves the head on purpose, to cancel drift.
    assert abs(head - embedding).mean() < (0.05 if recipe == "classic" else 0.1) * abs(embedding).mean()
    assert json.loads((model / "config.json").read_text())["tie_word_embeddings"] is True


def test_weights_below_what_the_scales_can_hold(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors["model.layers.0.self_attn.q_proj.weight"].mul_(1e-6)

    made(tmp_path, "refined", change)


def test_float32_and_bfloat16_sources(tmp_path: Path) -> None:
    def widen(tensors: Tensors) -> None:
        for number, name in enumerate(tensors):
            tensors[name] = tensors[name].to((torch.float32, torch.bfloat16)[number % 2])

    made(tmp_path, "classic", widen)


def test_values_beyond_float16_are_refused_by_name(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors["model.layers.1.post_attention_layernorm.weight"] = torch.full((64,), 1e5)
        tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].float() * 1e-5

    error = refusal(tmp_path, "classic", change)
    assert error.tensor == "model.layers.1.post_attention_layernorm.weight" and "float16" in error.message


@pytest.mark.parametrize("values", [(float("nan"), 30.0), (9.0, 1e6), (0.1, float("inf"))])
def test_a_broken_result_is_reported_as_failed(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: tuple[float, float]
) -> None:
    kl, perplexity = values

    def compare_states(*_: object) -> Comparison:
        return Comparison(kl, 0.01, perplexity, 25.0, 100)

    monkeypatch.setattr(source_module, "compare_states", compare_states)
    events = convert(request(tiny, tmp_path / "work", recipe="classic"))
    last = events[-1]
    assert isinstance(last, JobFinished) and last.broken == 1
    model = Path(last.paths[0])
    config = json.loads((model / "config.json").read_text())["quantization_config"]
    assert config["evaluation"]["status"] == "broken"
    assert json.loads((model / "report.json").read_text())["evaluation"]["status"] == "broken"
    assert "broken" in (model / "report.md").read_text()
    assert any(isinstance(event, QualityWarning) and "broken" in event.message for event in events)


def test_a_model_whose_weights_were_ruined_is_judged_broken(tiny: Path, tmp_path: Path) -> None:
    """The evaluation itself: a directory that decodes to nonsense is found out."""
    model = finished(convert(request(tiny, tmp_path / "work", recipe="classic")))
    tensors = {name: torch.from_numpy(array.copy()) for name, (_, array) in read_directory(model).items()}
    tensors["model.norm.weight"].mul_(300)
    write_file(model / "output.safetensors", tensors)
    device = torch.device("cpu")
    original, ruined = source_module.SourceModel(tiny, device), source_module.SourceModel(model, device)
    assert result_of(source_module.compare(original, ruined, torch.arange(3, 67).view(2, 32))).broken


def result_of(steps: Generator[int, None, Comparison]) -> Comparison:
    """What a generator returns."""
    try:
        while True:
            next(steps)
    except StopIteration as stop:
        assert isinstance(stop.value, Comparison)
        return stop.value


def test_hidden_states_with_nan_are_no_result(tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="NaN"):
        from exl2_tui.core.quant.halves import to_half

        to_half(torch.full((1, 2, 3), float("nan")), "model.layers.0.mlp")


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_a_linear_whose_error_is_no_number_stops_the_job(error: float) -> None:
    """What follows would be built on it; the progress screen shows the message with the name and the remedy."""
    from exl2_tui.core.quant.gptq import Solution
    from exl2_tui.core.quant.recipe import head_recipe
    from exl2_tui.core.quant.recipes import QuantizedLinear, quantized_event

    solution = SimpleNamespace(codes=torch.zeros(64, 32, dtype=torch.uint8))
    name = "model.layers.3.mlp.down_proj"
    linear = QuantizedLinear(name, head_recipe(4), cast(Solution, solution), None, 1.0, error)
    with pytest.raises(QuantizationError, match="NaN or infinite") as caught:
        quantized_event("job", linear)
    assert caught.value.tensor == name and "verify" in caught.value.hint
