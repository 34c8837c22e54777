"""config.json: what is read from it, in every spelling, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from support.models import random_config

from exl2_tui.core.config import ARCHITECTURES, ModelConfig
from exl2_tui.core.errors import ConfigError, UnsupportedError


def parse(architecture: str = "LlamaForCausalLM", **overrides: Any) -> ModelConfig:
    return ModelConfig.from_dict(random_config(architecture, **overrides), file="config.json")


def test_shared_model(nano_chat: Path) -> None:
    config = ModelConfig.from_dir(nano_chat)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (6, 2, 64)
    assert config.tie_word_embeddings and config.rope.kind == "default" and config.sliding_window is None
    assert config.bos_token_id == 1
    assert config.eos_token_ids == (2, 4)  # the second one is in generation_config.json only


def test_unknown_architecture_lists_the_known_ones() -> None:
    with pytest.raises(UnsupportedError) as caught:
        parse("MambaForCausalLM")
    assert "MambaForCausalLM" in str(caught.value)
    for name in ARCHITECTURES:
        assert name in str(caught.value)


@pytest.mark.parametrize("architectures", [None, [], ["LlamaForCausalLM", "Other"], "LlamaForCausalLM", [3], {}])
def test_architectures_must_be_one_name(architectures: Any) -> None:
    with pytest.raises(ConfigError, match=r"architectures is .*must be"):
        ModelConfig.from_dict({**random_config(), "architectures": architectures}, file="config.json")


def test_biases_follow_the_architecture() -> None:
    def biases(name: str, **overrides: Any) -> tuple[bool, bool, bool]:
        config = parse(name, **overrides)
        return config.attention_bias, config.attention_output_bias, config.mlp_bias

    everything = {"attention_bias": True, "mlp_bias": True}
    assert biases("LlamaForCausalLM") == (False, False, False)
    assert biases("LlamaForCausalLM", **everything) == (True, True, True)
    assert biases("MistralForCausalLM", **everything) == (False, False, False)
    assert biases("Qwen2ForCausalLM") == (True, False, False)
    assert biases("Qwen3ForCausalLM", **everything) == (True, True, False)


def test_defaults_of_keys_left_out() -> None:
    raw = random_config()
    for key in ("num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "max_position_embeddings"):
        del raw[key]
    config = ModelConfig.from_dict(raw)
    assert (config.num_key_value_heads, config.head_dim, config.max_position_embeddings) == (4, 16, 2048)
    assert (config.rms_norm_eps, config.rope.theta) == (1e-6, 10000.0)
    assert ModelConfig.from_dict({**raw, "architectures": ["Phi3ForCausalLM"]}).rms_norm_eps == 1e-5
    raw["num_attention_heads"] = 16
    mistral = ModelConfig.from_dict({**raw, "architectures": ["MistralForCausalLM"]})
    assert (mistral.num_key_value_heads, mistral.sliding_window) == (8, 4096)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"rope_theta": 5e5}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}},
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                    "rope_theta": 10000.0,
                }
            },
        ),
        (
            {"partial_rotary_factor": 0.5},
            {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
        ),
    ],
)
def test_both_spellings_of_rope(old: dict[str, Any], new: dict[str, Any]) -> None:
    raw = random_config(**old)
    modern = {**random_config(), **new}
    del modern["rope_theta"]
    assert ModelConfig.from_dict(raw) == ModelConfig.from_dict(modern)


def test_windows() -> None:
    assert parse("LlamaForCausalLM", sliding_window=8).sliding_window is None
    assert parse("MistralForCausalLM", sliding_window=8).window(1) == 8
    assert parse("MistralForCausalLM", sliding_window=None).window(1) is None
    qwen = {"sliding_window": 8, "max_window_layers": 1}
    assert parse("Qwen2ForCausalLM", **qwen).window(1) is None
    used = parse("Qwen2ForCausalLM", use_sliding_window=True, **qwen)
    assert (used.window(0), used.window(1)) == (None, 8)
    listed = ["sliding_attention", "full_attention"]
    modern = parse("Qwen3ForCausalLM", use_sliding_window=True, layer_types=listed, **qwen)
    assert (modern.window(0), modern.window(1)) == (8, None)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": None}, "hidden_size"),
    ({"hidden_size": "64"}, "hidden_size"),
    ({"hidden_size": True}, "hidden_size"),
    ({"hidden_size": 64.0}, "hidden_size"),
    ({"hidden_size": -64}, "hidden_size"),
    ({"num_hidden_layers": 10**12}, "num_hidden_layers"),
    ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ({"num_key_value_heads": 3}, "num_key_value_heads"),
    ({"num_key_value_heads": 8}, "num_key_value_heads"),
    ({"head_dim": 15}, "head_dim"),
    ({"head_dim": 10**6}, "head_dim"),
    ({"head_dim": None, "hidden_size": 66}, "num_attention_heads"),
    ({"vocab_size": 10**10}, "vocab_size"),
    ({"vocab_size": []}, "vocab_size"),
    ({"intermediate_size": None}, "intermediate_size"),
    ({"max_position_embeddings": 10**15}, "max_position_embeddings"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ({"rms_norm_eps": float("inf")}, "rms_norm_eps"),
    ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
    ({"rms_norm_eps": -1e-5}, "rms_norm_eps"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ({"attention_bias": 1}, "attention_bias"),
    ({"hidden_act": 7}, "hidden_act"),
    ({"eos_token_id": "</s>"}, "eos_token_id"),
    ({"eos_token_id": [1] * 2000}, "eos_token_id"),
    ({"quantization_config": "exl2"}, "quantization_config"),
    ({"rope_theta": 0}, "rope_theta"),
    ({"rope_scaling": [1]}, "rope_scaling"),
    ({"rope_scaling": {"type": 3}}, "rope_scaling.type"),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
    ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor"),
    ({"rope_scaling": {"type": "linear", "factor": float("nan")}}, "rope_scaling.factor"),
    ({"rope_scaling": {"type": "dynamic", "factor": None}}, "rope_scaling.factor"),
    ({"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4}}, "rope_scaling.high_freq_factor"),
    ({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 8}}, "short_factor"),
    ({"rope_scaling": {"type": "longrope", "short_factor": [0.0] * 8, "long_factor": [1.0] * 8}}, "short_factor"),
    ({"rope_scaling": {"type": "yarn", "factor": 2, "original_max_position_embeddings": 0}}, "original_max"),
    ({"partial_rotary_factor": 0.01}, "partial_rotary_factor"),
]


@pytest.mark.parametrize(("overrides", "key"), BAD)
def test_bad_values_name_key_found_and_expected(overrides: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(**overrides)
    assert key in caught.value.message
    assert caught.value.file == "config.json"
    assert "must be" in caught.value.message


@pytest.mark.parametrize(
    "overrides",
    [{"hidden_act": "gelu"}, {"rope_scaling": {"rope_type": "proportional", "factor": 2}}],
)
def test_variants_that_cannot_be_run(overrides: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError):
        parse(**overrides)


BAD_FILES = {
    "empty": b"",
    "list": b"[]",
    "cut-off": b"{",
    "not-utf-8": b"\xff\xfe",
    "deep-objects": b'{"a": ' * 100_000,
    "deep-lists": b"[" * 1_000_000,
    "long-number": b'{"a": ' + b"9" * 10_000 + b"}",
    "too-large": b" " * (5 << 20),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_bytes(BAD_FILES[name])
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dir(tmp_path)
    assert caught.value.file == str(tmp_path / "config.json")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        ModelConfig.from_dir(tmp_path)


def test_mutated_configs_give_a_typed_error_or_a_sane_config() -> None:
    rng = random.Random(7)
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 1.0}
    strange: list[Any] = [None, True, -1, 0, 1, 3, 10**18, 1e308, float("nan"), "", "x" * 1000, [], [1], [[]], {}]
    refused = 0
    for _ in range(4000):
        raw = random_config(rng.choice(list(ARCHITECTURES)), rope_scaling=dict(scaling), sliding_window=8)
        for _ in range(rng.randint(1, 3)):
            target = raw["rope_scaling"] if rng.random() < 0.3 and isinstance(raw.get("rope_scaling"), dict) else raw
            key = rng.choice(list(target) or ["a"])
            if rng.random() < 0.2:
                target.pop(key, None)
            else:
                target[key] = rng.choice(strange)
        raw = json.loads(json.dumps(raw))
        try:
            config = ModelConfig.from_dict(raw)
        except (ConfigError, UnsupportedError):
            refused += 1
            continue
        assert config.num_attention_heads % config.num_key_value_heads == 0
        assert len(config.layer_types) == config.num_hidden_layers <= 2048
        assert 2 <= config.rope_dim <= config.head_dim and config.rope_dim % 2 == 0
    assert 1000 < refused < 4000
