"""Which linears and norms a model consists of: names as stored (Hugging Face, canonical) and shapes, from the config.

No tensors here; `weights.py` reads them. Shape letters: C hidden, F ffn, V vocab; linears K in, N out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from exl2_tui.core.config import ModelConfig

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head"


@dataclass(frozen=True, slots=True)
class Fused:
    """A stored linear of `out_features` outputs that holds this one's from output `start` on."""

    prefix: str
    start: int
    out_features: int


@dataclass(frozen=True, slots=True)
class LinearSpec:
    """One linear y (N) = W x (K) + bias. prefix is its full name without ".weight".

    If nothing is stored under prefix: `fused` says in which larger linear it may lie, `tied_to` which matrix (N, K)
    serves instead.
    """

    prefix: str
    in_features: int
    out_features: int
    bias: bool = False
    fused: Fused | None = None
    tied_to: str | None = None


def layer_prefix(layer: int) -> str:
    return f"model.layers.{layer}"


def attention_linears(config: ModelConfig, layer: int) -> tuple[LinearSpec, LinearSpec, LinearSpec, LinearSpec]:
    """q, k, v and o."""
    attn = f"{layer_prefix(layer)}.self_attn"
    hidden, query, kv = config.hidden_size, config.query_size, config.kv_size

    def projection(name: str, start: int, size: int) -> LinearSpec:
        fused = Fused(f"{attn}.qkv_proj", start, query + 2 * kv) if config.fused else None
        return LinearSpec(f"{attn}.{name}_proj", hidden, size, config.attention_bias, fused)

    return (
        projection("q", 0, query),
        projection("k", query, kv),
        projection("v", query + kv, kv),
        LinearSpec(f"{attn}.o_proj", query, hidden, config.attention_output_bias),
    )


def mlp_linears(config: ModelConfig, layer: int) -> tuple[LinearSpec, LinearSpec, LinearSpec]:
    """gate, up and down."""
    mlp = f"{layer_prefix(layer)}.mlp"
    hidden, ffn = config.hidden_size, config.intermediate_size

    def projection(name: str, start: int) -> LinearSpec:
        fused = Fused(f"{mlp}.gate_up_proj", start, 2 * ffn) if config.fused else None
        return LinearSpec(f"{mlp}.{name}_proj", hidden, ffn, config.mlp_bias, fused)

    return projection("gate", 0), projection("up", ffn), LinearSpec(f"{mlp}.down_proj", ffn, hidden, config.mlp_bias)


def layer_linears(config: ModelConfig, layer: int) -> tuple[LinearSpec, ...]:
    """The seven linears of a layer in the order they run."""
    return attention_linears(config, layer) + mlp_linears(config, layer)


def head_linear(config: ModelConfig) -> LinearSpec:
    """The output head. EXL2 files store it even where it is tied to the embedding."""
    tied_to = EMBEDDING if config.tie_word_embeddings else None
    return LinearSpec(HEAD, config.hidden_size, config.vocab_size, tied_to=tied_to)


def model_linears(config: ModelConfig) -> Iterator[LinearSpec]:
    """Every linear of the model, the head last."""
    for layer in range(config.num_hidden_layers):
        yield from layer_linears(config, layer)
    yield head_linear(config)


def layer_norms(config: ModelConfig, layer: int) -> dict[str, tuple[int, int]]:
    """Full names of a layer's norm weights -> (heads, size): (1, C), or for the norms of q and k (heads, D)."""
    prefix, hidden, dim = layer_prefix(layer), config.hidden_size, config.head_dim
    norms = {f"{prefix}.input_layernorm.weight": (1, hidden)}
    if config.qk_norm:
        norms[f"{prefix}.self_attn.q_norm.weight"] = (config.num_attention_heads, dim)
        norms[f"{prefix}.self_attn.k_norm.weight"] = (config.num_key_value_heads, dim)
    norms[f"{prefix}.post_attention_layernorm.weight"] = (1, hidden)
    return norms


def model_vectors(config: ModelConfig) -> Iterator[str]:
    """Full names of everything that is not a linear: the embedding and all norms."""
    yield EMBEDDING
    for layer in range(config.num_hidden_layers):
        yield from layer_norms(config, layer)
    yield FINAL_NORM
