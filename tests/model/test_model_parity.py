"""The reference model against transformers: logits, greedy text, windows, biases, every kind of rope."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.models import write_random_model

from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.model.causal_lm import CausalLM
from exl2_tui.core.model.loader import load_model
from exl2_tui.core.model.rope import rope_frequencies, rope_table
from exl2_tui.core.ops.native import capabilities
from exl2_tui.core.requests import LoadOptions

LLAMA, MISTRAL, QWEN2, QWEN3, PHI3, SEED_OSS = (
    f"{name}ForCausalLM" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "SeedOss")
)
LONG = {"short_factor": [1.0, 1.1, 1.2, 1.5, 2, 2, 2, 3], "long_factor": [1.0, 1.5, 2, 4, 8, 16, 20, 30]}
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 3.0}, "max_position_embeddings": 64},
    "llama3": {
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    },
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    "yarn-all": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 512,
            "beta_fast": 16,
            "beta_slow": 2,
            "mscale": 1.0,
            "mscale_all_dim": 0.7,
            "truncate": False,
        }
    },
    "longrope": {
        "rope_scaling": {"rope_type": "longrope", **LONG},
        "original_max_position_embeddings": 60,
        "max_position_embeddings": 240,
    },
    "partial": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": (LLAMA, {}),
    "llama-mha": (LLAMA, {"num_key_value_heads": 4}),
    "llama-mqa-tied": (LLAMA, {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama-biases": (LLAMA, {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": (LLAMA, {"head_dim": 40}),
    "llama-odd-sizes": (LLAMA, {"hidden_size": 60, "intermediate_size": 77, "head_dim": 6, "vocab_size": 131}),
    "mistral": (MISTRAL, {"sliding_window": None}),
    "mistral-window": (MISTRAL, {"sliding_window": 16}),
    "qwen2": (QWEN2, {"tie_word_embeddings": True}),
    "qwen2-window": (QWEN2, {"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": (QWEN3, {"head_dim": 32}),
    "qwen3-biases-window": (
        QWEN3,
        {
            "attention_bias": True,
            "sliding_window": 7,
            "use_sliding_window": True,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "phi3": (PHI3, {"sliding_window": 16}),
    "phi3-longrope": (PHI3, ROPES["longrope"]),
    "seed-oss": (SEED_OSS, {"model_type": "seed_oss"}),
    "seed-oss-biases": (SEED_OSS, {"model_type": "seed_oss", "attention_out_bias": True, "mlp_bias": True}),
    **{f"llama-{kind}": (LLAMA, overrides) for kind, overrides in ROPES.items() if kind != "partial"},
    "phi3-partial": (PHI3, {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, **ROPES["partial"]}),
}
PROMPT, NEW = 70, 40  # the prompt passes every trained length above, the answer goes on from there


def load_pair(folder: Path) -> tuple[CausalLM, Any]:
    with Checkpoint.open(folder) as checkpoint:
        ours = CausalLM.load(checkpoint, ModelConfig.from_dir(folder))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return ours, theirs.eval()


def random_ids(vocab_size: int, count: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, vocab_size, (count,), generator=torch.Generator().manual_seed(seed))


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    error = (found - expected).norm() / expected.norm()
    assert error < 1e-4, f"relative error {error:.2e}"


@torch.no_grad()
def greedy(model: CausalLM, theirs: Any, ids: torch.Tensor) -> tuple[list[int], list[int]]:
    cache, past = model.new_cache(PROMPT + NEW, "fp32"), transformers.DynamicCache()
    ours_next, theirs_next = ids, ids
    ours_text, theirs_text = [], []
    for _ in range(NEW):
        ours_text.append(int(model.forward(ours_next, cache).argmax()))
        logits = theirs(theirs_next[None], past_key_values=past, use_cache=True).logits
        theirs_text.append(int(logits[0, -1].argmax()))
        ours_next, theirs_next = torch.tensor(ours_text[-1:]), torch.tensor(theirs_text[-1:])
    return ours_text, theirs_text


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_greedy_text(name: str, tmp_path: Path) -> None:
    architecture, overrides = MODELS[name]
    folder = write_random_model(tmp_path, architecture, dtype="float32", seed=3, **overrides)
    model, theirs = load_pair(folder)
    ids = random_ids(model.config.vocab_size, PROMPT)
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
    assert_close(model.forward(ids, model.new_cache(PROMPT, "fp32"), all_logits=True), expected)

    if name == "llama-dynamic":
        return  # transformers stretches more with every token; here the cache's size decides once
    ours_text, theirs_text = greedy(model, theirs, ids)
    assert ours_text == theirs_text

    whole_cache, cut_cache = model.new_cache(128, "fp32"), model.new_cache(128, "fp32")
    whole = model.forward(ids, whole_cache, all_logits=True)
    pieces = [model.forward(piece, cut_cache, all_logits=True) for piece in ids.split([1, 3, 17, 2, 31, 16])]
    assert_close(torch.cat(pieces), whole)


@pytest.mark.skipif(not capabilities().native, reason="the kernels are not built")
@pytest.mark.parametrize("name", MODELS)
def test_compiled_kernels_agree(name: str, tmp_path: Path) -> None:
    """As a person gets it, by the loader: with activations in float32 the order of summation is all that differs."""
    architecture, overrides = MODELS[name]
    folder = write_random_model(tmp_path, architecture, dtype="float32", seed=3, **overrides)
    config = ModelConfig.from_dir(folder)
    with Checkpoint.open(folder) as checkpoint:
        reference = CausalLM.load(checkpoint, config)
        model = load_model(checkpoint, config, LoadOptions(exact=True, device="cpu"))
    assert not isinstance(model, CausalLM)
    ids = random_ids(config.vocab_size, PROMPT)
    expected = reference.forward(ids, reference.new_cache(PROMPT), all_logits=True)
    cache = model.new_cache(PROMPT)
    found = torch.cat([model.forward(piece, cache, all_logits=True) for piece in ids.split([1, 40, 2, 27])])
    assert_close(found, expected)


def test_short_sequences_of_longrope(tmp_path: Path) -> None:
    model, theirs = load_pair(write_random_model(tmp_path, PHI3, dtype="float32", **ROPES["longrope"]))
    ids = random_ids(256, 50)
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
    assert_close(model.forward(ids, model.new_cache(60, "fp32"), all_logits=True), expected)


@pytest.mark.parametrize("kind", [kind for kind in ROPES if kind != "dynamic"])
def test_rope_tables_at_long_positions(kind: str, tmp_path: Path) -> None:
    architecture = PHI3 if kind in ("partial", "longrope") else LLAMA
    overrides = {"max_position_embeddings": 1 << 18, **ROPES[kind]}
    folder = write_random_model(tmp_path, architecture, **overrides)
    model, theirs = load_pair(folder)
    starts = (4000, 131_000, 250_000) if kind == "longrope" else (0, 4000, 131_000, 250_000)
    for start in starts:  # longrope: their module chooses by the positions it is shown
        positions = torch.arange(start, start + 300)
        cos, sin = theirs.model.rotary_emb(torch.zeros(1), positions[None])
        table = rope_table(model.config, 1 << 18, start, 300)
        half = table.cos.shape[-1]
        torch.testing.assert_close(table.cos, cos[0, :, :half], rtol=0, atol=1e-6)
        torch.testing.assert_close(table.sin, sin[0, :, :half], rtol=0, atol=1e-6)


def test_every_kind_of_rope_is_another_one(tmp_path: Path) -> None:
    seen = []
    for kind, overrides in ROPES.items():
        config = ModelConfig.from_dir(write_random_model(tmp_path / kind, LLAMA, **overrides))
        frequencies, scale = rope_frequencies(config, 1000)
        seen.append((scale, *frequencies.tolist()))
    assert len(set(seen)) == len(ROPES)


def test_windows_matter(tmp_path: Path) -> None:
    logits = []
    for window in (None, 16, 17):
        folder = write_random_model(tmp_path / str(window), MISTRAL, dtype="float32", sliding_window=window)
        with Checkpoint.open(folder) as checkpoint:
            model = CausalLM.load(checkpoint, ModelConfig.from_dir(folder))
        logits.append(model.forward(random_ids(256, 40), model.new_cache(40, "fp32"), all_logits=True))
    assert torch.allclose(logits[0][:16], logits[1][:16], atol=1e-5)
    assert not torch.allclose(logits[0][16], logits[1][16], atol=1e-3)
    assert torch.allclose(logits[1][16 - 1], logits[2][16 - 1], atol=1e-5)
    assert not torch.allclose(logits[1][16], logits[2][16], atol=1e-3)


@pytest.mark.parametrize("name", ["llama-llama3", "phi3-longrope", "qwen2-window", "mistral-window", "llama-yarn-all"])
def test_configs_written_by_transformers(name: str, tmp_path: Path) -> None:
    """transformers 5 spells rope differently from what it read; both must mean the same."""
    architecture, overrides = MODELS[name]
    folder = write_random_model(tmp_path / "old", architecture, **overrides)
    written = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    written.architectures = [architecture]
    written.save_pretrained(tmp_path / "new")
    assert "rope_parameters" in (tmp_path / "new" / "config.json").read_text()
    assert ModelConfig.from_dir(tmp_path / "new") == ModelConfig.from_dir(folder)
