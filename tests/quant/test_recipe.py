from __future__ import annotations

import json
from pathlib import Path

import pytest

from exl2_tui.core.errors import QuantizationError
from exl2_tui.core.quant.recipe import (
    QParams,
    classic_attention_options,
    classic_mlp_options,
    head_recipe,
    mix,
)

SHAPES = {  # nano-chat: (in_features, out_features)
    "q_proj": (384, 384),
    "k_proj": (384, 128),
    "v_proj": (384, 128),
    "o_proj": (384, 384),
    "gate_proj": (384, 640),
    "up_proj": (384, 640),
    "down_proj": (640, 384),
}


@pytest.mark.parametrize(
    ("block", "options"), [("self_attn", classic_attention_options()), ("mlp", classic_mlp_options())]
)
def test_candidates_are_those_of_the_reference_measurement(
    nano_chat_exl2: Path, block: str, options: tuple[dict[str, QParams], ...]
) -> None:
    reference = json.loads((nano_chat_exl2 / "measurement-reference.json").read_text())["measurement"]
    for layer in range(8):
        listed = reference[f"model.layers.{layer}.{block}"]
        assert len(listed) == len(options)
        for ours, theirs in zip(options, listed, strict=True):
            assert {name: recipe.to_json() for name, recipe in ours.items()} == {name: theirs[name] for name in ours}
            assert sum(recipe.total_bits(*SHAPES[name]) for name, recipe in ours.items()) == theirs["total_bits"]


def test_llama_7b_sizes_match_the_table_of_the_spec() -> None:
    attention = [
        sum(recipe.total_bits(4096, 4096) for recipe in option.values()) / (4 * 4096 * 4096)
        for option in classic_attention_options()
    ]
    assert [round(value, 2) for value in attention] == [
        2.13, 2.22, 2.43, 2.67, 3.16, 3.17, 4.04, 4.05, 4.09, 4.13, 4.17, 4.19, 4.40, 4.46, 5.38, 5.46, 6.04, 6.63, 8.04
    ]  # fmt: skip


@pytest.mark.parametrize(("bits", "bpw"), [(2, 2.74), (3, 3.28), (4, 4.44), (5, 5.19), (6, 6.34), (8, 8.03)])
def test_head_recipes_cost_what_the_spec_says(bits: int, bpw: float) -> None:
    assert head_recipe(bits).bpw(4096, 32000) == pytest.approx(bpw, abs=0.006)


@pytest.mark.parametrize("rows", [32, 64, 96, 160, 384, 640, 1376, 4096])
def test_groups_cover_all_rows_in_multiples_of_32(rows: int) -> None:
    for option in (*classic_attention_options(), *classic_mlp_options()):
        for recipe in option.values():
            groups = recipe.groups(rows)
            assert sum(count for _, count in groups) == rows
            assert all(count > 0 and count % 32 == 0 for _, count in groups)
            widths = [bits for bits, _ in groups]
            assert widths == sorted(widths, reverse=True)


def test_json_round_trip_and_refusals() -> None:
    recipe = mix((32, 128), 8, 4, high=(0.05,))
    assert QParams.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    bad: list[object] = [
        None,
        {},
        {"bits": [4], "bits_prop": [1], "group_size": {"3": 32}},
        {"bits": [3, 4], "bits_prop": [0.5, 0.5], "group_size": {"3": 32, "4": 32}},
        {"bits": [4], "bits_prop": [1], "group_size": {"4": 48}},
        {"bits": [7], "bits_prop": [1], "group_size": {"7": 32}},
        {"bits": [4], "bits_prop": [0.5], "group_size": {"4": 32}},
        {"bits": ["x"], "bits_prop": [1], "group_size": {"x": 32}},
    ]
    for value in bad:
        with pytest.raises(QuantizationError):
            QParams.from_json(value)
    with pytest.raises(QuantizationError, match="multiples of 32"):
        recipe.groups(100)
