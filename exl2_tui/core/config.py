"""What a model directory's config.json says, checked before anything else trusts it. Standard library only.

`ARCHITECTURES` is the list of what this program can run: one row per architecture, saying only how it differs from
Llama. Every number is checked against a range far above real models and far below what could exhaust memory, since
config.json comes from strangers. Knows nothing of tensors: shapes follow in `core/model/layout.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from exl2_tui.core.config_rope import RopeConfig, read_rope
from exl2_tui.core.errors import UnsupportedError
from exl2_tui.core.json_keys import JsonKeys, read_json_object, shown

LayerType = Literal["full_attention", "sliding_attention"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one architecture differs from Llama. A bias given as a string is the config key that decides it.

    window: which layers look back only `sliding_window` tokens: none, all, or those config.json names ("listed").
    fused: q, k, v and gate, up may be stored as one tensor each (qkv_proj, gate_up_proj).
    defaults: what the reference implementation assumes for keys that config.json leaves out.
    """

    name: str
    qkv_bias: bool | str = "attention_bias"
    output_bias: bool | str = "attention_bias"
    mlp_bias: bool | str = "mlp_bias"
    qk_norm: bool = False
    window: Literal["none", "all", "listed"] = "none"
    fused: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


_ROWS = (
    Architecture("LlamaForCausalLM"),
    Architecture(
        "MistralForCausalLM",
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        window="all",
        defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    ),
    Architecture(
        "Qwen2ForCausalLM",
        qkv_bias=True,
        output_bias=False,
        mlp_bias=False,
        window="listed",
        defaults={"num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096},
    ),
    Architecture(
        "Qwen3ForCausalLM",
        mlp_bias=False,
        qk_norm=True,
        window="listed",
        defaults={
            "num_key_value_heads": 32,
            "head_dim": 128,
            "max_position_embeddings": 32768,
            "sliding_window": 4096,
        },
    ),
    Architecture(
        "Phi3ForCausalLM",
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        window="all",
        fused=True,
        defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
    ),
    Architecture(
        "SeedOssForCausalLM",
        output_bias="attention_out_bias",
        defaults={
            "attention_bias": True,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 524288,
        },
    ),
)
ARCHITECTURES: Mapping[str, Architecture] = {row.name: row for row in _ROWS}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder-only transformer, every field validated. Sizes are counts of elements, lengths are tokens."""

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeConfig
    tie_word_embeddings: bool
    attention_bias: bool  # q, k and v
    attention_output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    fused: bool
    hidden_act: Literal["silu"]
    sliding_window: int | None
    layer_types: tuple[LayerType, ...]
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    quantization: Mapping[str, Any] | None

    @property
    def rope_dim(self) -> int:
        """How many leading elements of each head are rotated (even)."""
        return int(self.head_dim * self.rope.partial_rotary_factor)

    @property
    def query_size(self) -> int:
        """H * D, the width of q and of the input of o."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """G * D, the width of k and of v."""
        return self.num_key_value_heads * self.head_dim

    def window(self, layer: int) -> int | None:
        """How many tokens, itself included, a token of this layer can look at; None: all."""
        return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None

    @classmethod
    def from_dir(cls, path: Path | str) -> ModelConfig:
        """Reads config.json, and the additional end tokens of generation_config.json if there is one."""
        folder = Path(path)
        config = cls.from_dict(read_json_object(folder / "config.json"), file=folder / "config.json")
        extra_file = folder / "generation_config.json"
        if not extra_file.is_file():
            return config
        extra = JsonKeys(read_json_object(extra_file), extra_file).token_ids("eos_token_id", config.vocab_size)
        return replace(config, eos_token_ids=tuple(dict.fromkeys(config.eos_token_ids + extra)))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], *, file: Path | str | None = None) -> ModelConfig:
        """Validates a parsed config.json, spelled as transformers 4 or 5 does.

        Raises ConfigError for a missing key or a value of the wrong type or range, UnsupportedError for an
        architecture or variant that is not in the tables.
        """
        row = _architecture(raw, file)
        keys = JsonKeys({**row.defaults, **raw}, file)
        hidden = keys.integer("hidden_size", 1, 1 << 17)
        heads = keys.integer("num_attention_heads", 1, 4096)
        kv_heads = keys.integer("num_key_value_heads", 1, 4096, default=heads)
        if heads % kv_heads:
            keys.fail("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
        if keys.get("head_dim") is None and hidden % heads:
            keys.fail("num_attention_heads", f"a divisor of hidden_size ({hidden}), since head_dim is not given")
        head_dim = keys.integer("head_dim", 2, 2048, default=hidden // heads)
        if heads * head_dim > 1 << 20:
            keys.fail("head_dim", f"small enough that {heads} heads are at most {1 << 20} wide")
        layers = keys.integer("num_hidden_layers", 1, 2048)
        vocab = keys.integer("vocab_size", 1, 1 << 23)
        context = keys.integer("max_position_embeddings", 1, 1 << 28, default=2048)
        act = keys.text("hidden_act", default="silu")
        if act not in ("silu", "swish"):
            raise UnsupportedError(f'hidden_act is "{act}", but only "silu" can be run', file=file)
        window = _sliding_window(keys, row)
        return cls(
            architecture=row.name,
            hidden_size=hidden,
            intermediate_size=keys.integer("intermediate_size", 1, 1 << 20),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=vocab,
            rms_norm_eps=keys.number("rms_norm_eps", 0.0, 1.0, default=1e-6),
            max_position_embeddings=context,
            rope=read_rope(keys, head_dim, context, early_phi3=row.name == "Phi3ForCausalLM"),
            tie_word_embeddings=keys.flag("tie_word_embeddings"),
            attention_bias=keys.decide(row.qkv_bias),
            attention_output_bias=keys.decide(row.output_bias),
            mlp_bias=keys.decide(row.mlp_bias),
            qk_norm=row.qk_norm,
            fused=row.fused,
            hidden_act="silu",
            sliding_window=window,
            layer_types=_layer_types(keys, row, layers, window),
            bos_token_id=next(iter(keys.token_ids("bos_token_id", vocab)), None),
            eos_token_ids=keys.token_ids("eos_token_id", vocab),
            quantization=keys.table("quantization_config"),
        )


def _architecture(raw: Mapping[str, Any], file: Path | str | None) -> Architecture:
    names = raw.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        JsonKeys(raw, file).fail("architectures", 'a list with one name, such as ["LlamaForCausalLM"]')
    row = ARCHITECTURES.get(names[0])
    if row is None:
        raise UnsupportedError(
            f"the architecture {shown(names[0])} cannot be run",
            file=file,
            hint=f"Supported are {', '.join(ARCHITECTURES)}.",
        )
    return row


def _sliding_window(keys: JsonKeys, row: Architecture) -> int | None:
    """Qwen models carry a window size but use it only where use_sliding_window says so."""
    off = row.window == "none" or (row.window == "listed" and not keys.flag("use_sliding_window"))
    return None if off or keys.get("sliding_window") is None else keys.integer("sliding_window", 1, 1 << 30)


def _layer_types(keys: JsonKeys, row: Architecture, layers: int, window: int | None) -> tuple[LayerType, ...]:
    full: LayerType = "full_attention"
    sliding: LayerType = "sliding_attention"
    if window is None:
        return (full,) * layers
    if row.window == "all":
        return (sliding,) * layers
    listed = keys.get("layer_types")
    if listed is None:
        first = keys.integer("max_window_layers", 0, 1 << 30, default=28)
        return tuple(sliding if layer >= first else full for layer in range(layers))
    if not isinstance(listed, list) or len(listed) != layers or any(item not in (full, sliding) for item in listed):
        keys.fail("layer_types", f"a list of {layers} entries, each full_attention or sliding_attention")
    return tuple(listed)
