"""The files of finished models, read by a reader that shares nothing with ours (tests/support/exl2_reader.py)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import convert, finished, request
from tiny import make_tiny

from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.formats import Exl2Weight
from exl2_tui.core.quant import output
from exl2_tui.core.quant.gptq import factorize, solve
from exl2_tui.core.quant.recipe import QParams, head_recipe, mix
from exl2_tui.core.quant.recipes import ClassicRecipe
from exl2_tui.core.quant.refine import refine
from exl2_tui.core.quant.refined import CANDIDATES
from tests.support.exl2_reader import check, decode, read_directory

TRIED = list(
    dict.fromkeys(
        [
            *(mix(size, bits) for bits in (2, 3, 4, 5, 6, 8) for size in (32, 64, 128)),
            *(head_recipe(bits) for bits in (2, 3, 4, 5, 6, 8)),
            *CANDIDATES,
            mix(32, 8, 6, 5, 4, 3, 2, high=(0.1, 0.2, 0.2, 0.2, 0.1)),
        ]
    )
)


def stored(params: QParams, rows: int = 160, columns: int = 64) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """One linear of 160 rows (no multiple of 64 or 128) as the writer stores it, and the weight it should hold."""
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    inputs = torch.randn(300, rows, generator=generator) * torch.linspace(0.2, 2, rows)
    factor = factorize(inputs.T @ inputs / 3)
    solution = refine(weight, factor, params, passes=1) if params in CANDIDATES else solve(weight, factor, params)
    packed = Exl2Weight.from_codes(
        solution.codes, solution.scale_codes, solution.scale_max, solution.groups, solution.perm, None
    )
    return packed.stored_tensors("layer"), solution.weight


@pytest.mark.parametrize("params", TRIED, ids=QParams.describe)
def test_every_width_and_mix_means_the_same_to_an_independent_reader(params: QParams) -> None:
    tensors, weight = stored(params)
    names = {torch.int32: "I32", torch.int16: "I16", torch.float16: "F16"}
    plain = {name: (names[tensor.dtype], tensor.numpy()) for name, tensor in tensors.items()}
    assert np.array_equal(decode(plain, "layer").astype(np.float32), weight.numpy())


@pytest.mark.parametrize("bits", [2.6, 4.0, 6.5])
def test_finished_models_pass_the_checklist_and_decode_alike(tmp_path: Path, bits: float) -> None:
    source = make_tiny(tmp_path / "model", hidden=128, ffn=224)
    model = finished(convert(request(source, tmp_path / "work", bits=(bits,), head_bits=3)))
    used = check(model)
    assert len(used) == 15 and used["lm_head"] == {4, 3}
    tensors = read_directory(model)
    with Checkpoint.open(model) as checkpoint:
        for prefix in used:
            rows, columns = len(tensors[f"{prefix}.q_invperm"][1]), tensors[f"{prefix}.q_weight"][1].shape[1]
            ours = checkpoint.linear(prefix, rows, 300 if prefix == "lm_head" else columns)
            assert isinstance(ours, Exl2Weight)
            theirs = decode(tensors, prefix)
            assert np.array_equal(ours.dequantize().numpy(), theirs[:, : ours.dequantize().shape[1]])
    padding = decode(tensors, "lm_head")[:, 300:]
    assert padding.shape == (128, 20) and not padding.any()


def test_shards_and_biases_pass_the_checklist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.models import write_random_model

    monkeypatch.setattr(output, "MIB", 200_000)
    source = write_random_model(tmp_path / "qwen", "Qwen2ForCausalLM", tokenizer=True, max_position_embeddings=128)
    model = finished(convert(request(source, tmp_path / "work", shard_size=1, recipe="classic")))
    names = sorted(file.name for file in model.glob("*.safetensors"))
    assert len(names) > 2 and names[0] == f"output-00001-of-{len(names):05d}.safetensors"
    check(model)
    tensors = read_directory(model)
    assert "model.layers.0.self_attn.q_proj.bias" in tensors
    order = [name for file in names for name in json.loads(header(model / file))]
    assert order[0] == "model.embed_tokens.weight" and order[-1].startswith("lm_head")


def header(file: Path) -> bytes:
    content = file.read_bytes()
    return content[8 : 8 + int.from_bytes(content[:8], "little")]


def test_fused_and_normed_architectures_are_written_as_the_reference_names_them(tmp_path: Path) -> None:
    from tests.support.models import write_random_model

    small = {"tokenizer": True, "max_position_embeddings": 128}
    phi = write_random_model(tmp_path / "phi", "Phi3ForCausalLM", **small)
    used = check(finished(convert(request(phi, tmp_path / "a", recipe="classic"))))
    assert "model.layers.0.self_attn.q_proj" in used and "model.layers.0.mlp.gate_proj" in used
    qwen = write_random_model(tmp_path / "qwen", "Qwen3ForCausalLM", **small)
    model = finished(convert(request(qwen, tmp_path / "b", recipe="classic")))
    check(model)
    assert read_directory(model)["model.layers.0.self_attn.q_norm.weight"][1].shape == (4, 16)


def test_our_measurement_has_the_reference_schema(tiny: Path, tmp_path: Path, nano_chat_exl2: Path) -> None:
    """Field by field: what the reference converter reads, with the types it has."""
    theirs = json.loads((nano_chat_exl2 / "measurement-reference.json").read_bytes())
    for recipe in ("classic", "refined"):
        convert(request(tiny, tmp_path / recipe, recipe=recipe, measure_to=str(tmp_path / f"{recipe}.json")))
        ours = json.loads((tmp_path / f"{recipe}.json").read_bytes())
        assert set(theirs) <= set(ours) and isinstance(ours["last_module_idx"], int)
        keys = [f"model.layers.{layer}.{half}" for layer in range(2) for half in ("self_attn", "mlp")]
        assert list(ours["measurement"]) == [*keys, "model.norm.norm", "lm_head.linear"]
        assert ours["measurement"]["lm_head.linear"] is theirs["measurement"]["lm_head.linear"] is None
        for key in keys:
            example = theirs["measurement"][key][0]
            for option in ours["measurement"][key]:
                assert set(example) <= set(option)
                assert isinstance(option["accuracy"], float) and 0 < option["accuracy"] <= 1
                assert isinstance(option["total_bits"], int)
                for linear in set(example) - {"accuracy", "total_bits"}:
                    params = option[linear]
                    assert set(params) == set(example[linear]) == {"group_size", "bits", "bits_prop", "scale_bits"}
                    assert set(params["group_size"]) == set(map(str, params["bits"])) and params["scale_bits"] == 4
                    assert sum(params["bits_prop"]) == pytest.approx(1) and all(
                        type(value) is int for value in (*params["bits"], *params["group_size"].values())
                    )


def test_the_reference_measurement_is_read_and_used(nano_chat: Path, nano_chat_exl2: Path) -> None:
    from exl2_tui.core.quant.measurement import Measurement
    from exl2_tui.core.quant.source import SourceModel

    model = SourceModel(nano_chat, torch.device("cpu"))
    found = Measurement.read(nano_chat_exl2 / "measurement-reference.json")
    strategy = ClassicRecipe(model, "job", "sum").allocate(found, 4.0)
    assert 3.97 < strategy.reached_bpw <= 4.0 and len(strategy.recipes) == 56
