"""What a model directory's config.json says, checked before anything else trusts it. Standard library only.

`ARCHITECTURES` is the list of what this program can run: one row per architecture, saying only how it differs from
Llama. Every number is checked against a range far above real models and far below what could exhaust memory, since
config.json comes from strangers. Knows nothing of tensors: shapes follow in `core/model/layout.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from exl2_tui.core.errors import ConfigError, UnsupportedError

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]
LayerType = Literal["full_attention", "sliding_attention"]

MAX_CONFIG_BYTES = 4 << 20


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
class RopeConfig:
    """Rotary position embedding: the base frequency and how it is stretched beyond the trained context.

    Only the first partial_rotary_factor of each head is rotated. original_context is the length before stretching,
    in tokens. The other fields belong to the kinds named; attention_factor None means: derived from factor.
    """

    theta: float = 10000.0
    kind: RopeKind = "default"
    partial_rotary_factor: float = 1.0
    original_context: int = 0  # llama3, yarn, longrope; for dynamic the model's own context
    factor: float = 1.0  # all but default
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    mscale: float = 0.0  # yarn
    mscale_all_dim: float = 0.0  # yarn
    truncate: bool = True  # yarn
    attention_factor: float | None = None  # yarn, longrope
    short_factor: tuple[float, ...] = ()  # longrope: one per rotated pair
    long_factor: tuple[float, ...] = ()  # longrope


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
        extra = _Keys(read_json_object(extra_file), extra_file).token_ids("eos_token_id", config.vocab_size)
        return replace(config, eos_token_ids=tuple(dict.fromkeys(config.eos_token_ids + extra)))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], *, file: Path | str | None = None) -> ModelConfig:
        """Validates a parsed config.json, spelled as transformers 4 or 5 does.

        Raises ConfigError for a missing key or a value of the wrong type or range, UnsupportedError for an
        architecture or variant that is not in the tables.
        """
        row = _architecture(raw, file)
        keys = _Keys({**row.defaults, **raw}, file)
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
            rope=_rope(keys, row, head_dim, context),
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


def read_json_object(file: Path) -> dict[str, Any]:
    """The JSON object in a small file. Raises ConfigError if it is missing, too large, malformed or no object."""
    try:
        size = file.stat().st_size
        if size > MAX_CONFIG_BYTES:
            raise ConfigError(f"the file has {size} bytes, but at most {MAX_CONFIG_BYTES} are expected", file=file)
        parsed = json.loads(file.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            "the file does not exist", file=file, hint="A model directory needs config.json and *.safetensors."
        ) from None
    except OSError as error:
        raise ConfigError(f"the file cannot be read ({error.strerror})", file=file) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the file is not valid JSON ({error})", file=file) from None
    if not isinstance(parsed, dict):
        raise ConfigError(f"expected a JSON object, found {_shown(parsed)}", file=file)
    return parsed


def _shown(value: object) -> str:
    """A value as JSON, short enough for an error message."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."


def _is_number(value: object) -> bool:
    """bool counts as int in Python, and JSON as Python reads it has NaN, Infinity and integers beyond any float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300 if isinstance(value, int) else math.isfinite(value)


_REQUIRED: Any = object()


class _Keys:
    """Typed, checked access to the keys of one JSON object. null counts as absent."""

    def __init__(self, raw: Mapping[str, Any], file: Path | str | None, prefix: str = "") -> None:
        self.raw = raw
        self.file = file
        self.prefix = prefix

    def get(self, key: str) -> Any:
        return self.raw.get(key)

    def fail(self, key: str, expected: str) -> NoReturn:
        found = _shown(self.raw[key]) if key in self.raw else "missing"
        raise ConfigError(f"{self.prefix}{key} is {found}, but must be {expected}", file=self.file)

    def integer(self, key: str, low: int, high: int, *, default: int = _REQUIRED) -> int:
        value = self.get(key)
        if value is None and default is not _REQUIRED:
            value = default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.fail(key, f"an integer from {low} to {high}")
        return int(value)

    def number(self, key: str, low: float, high: float, *, default: float = _REQUIRED) -> float:
        value = self.get(key)
        if value is None and default is not _REQUIRED:
            value = default
        if not _is_number(value) or not low <= value <= high:
            self.fail(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def numbers(self, key: str, count: int, low: float, high: float) -> tuple[float, ...]:
        value = self.get(key)
        if not isinstance(value, list) or len(value) != count:
            self.fail(key, f"a list of {count} numbers")
        if not all(_is_number(item) and low <= item <= high for item in value):
            self.fail(key, f"a list of numbers from {low:g} to {high:g}")
        return tuple(float(item) for item in value)

    def flag(self, key: str, *, default: bool = False) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fail(key, "true or false")
        return value

    def text(self, key: str, *, default: str) -> str:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            self.fail(key, "a string")
        return value

    def table(self, key: str) -> dict[str, Any] | None:
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            self.fail(key, "an object")
        return value

    def decide(self, rule: bool | str) -> bool:
        """A fixed answer of the architecture, or the flag it names."""
        return self.flag(rule) if isinstance(rule, str) else rule

    def token_ids(self, key: str, vocab_size: int) -> tuple[int, ...]:
        """An id or a list of ids. Ids outside the vocabulary can never be produced: they are left out."""
        value = self.get(key)
        items = value if isinstance(value, list) else [] if value is None else [value]
        if len(items) > 1000 or any(isinstance(item, bool) or not isinstance(item, int) for item in items):
            self.fail(key, "a token id or a list of token ids")
        return tuple(dict.fromkeys(item for item in items if 0 <= item < vocab_size))


def _architecture(raw: Mapping[str, Any], file: Path | str | None) -> Architecture:
    names = raw.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        _Keys(raw, file).fail("architectures", 'a list with one name, such as ["LlamaForCausalLM"]')
    row = ARCHITECTURES.get(names[0])
    if row is None:
        raise UnsupportedError(
            f"the architecture {_shown(names[0])} cannot be run",
            file=file,
            hint=f"Supported are {', '.join(ARCHITECTURES)}.",
        )
    return row


def _sliding_window(keys: _Keys, row: Architecture) -> int | None:
    """Qwen models carry a window size but use it only where use_sliding_window says so."""
    off = row.window == "none" or (row.window == "listed" and not keys.flag("use_sliding_window"))
    return None if off or keys.get("sliding_window") is None else keys.integer("sliding_window", 1, 1 << 30)


def _layer_types(keys: _Keys, row: Architecture, layers: int, window: int | None) -> tuple[LayerType, ...]:
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


_ROPE_KINDS: Mapping[str, RopeKind] = {
    "default": "default",
    "linear": "linear",
    "dynamic": "dynamic",
    "llama3": "llama3",
    "yarn": "yarn",
    "longrope": "longrope",
    "su": "longrope",
}


def _rope(top: _Keys, row: Architecture, head_dim: int, context: int) -> RopeConfig:
    """transformers 5 keeps all of it in rope_parameters; 4 has rope_theta beside rope_scaling."""
    where = "rope_scaling" if top.get("rope_scaling") else "rope_parameters"
    inner = _Keys(top.table(where) or {}, top.file, prefix=where + ".")
    name = inner.text("rope_type", default=inner.text("type", default="default"))
    kind = _ROPE_KINDS.get(name)
    if row.name == "Phi3ForCausalLM" and kind == "yarn":
        kind = "longrope"  # early Phi-3 files call it so
    if kind is None:
        raise UnsupportedError(
            f"{where} has the type {_shown(name)}", file=top.file, hint=f"Supported are {', '.join(_ROPE_KINDS)}."
        )

    def either(key: str) -> _Keys:
        return inner if inner.get(key) is not None else top

    theta = either("rope_theta").number("rope_theta", 1.0, 1e18, default=10000.0)
    partial = either("partial_rotary_factor").number("partial_rotary_factor", 0.0, 1.0, default=1.0)
    rotated = int(head_dim * partial)
    if rotated < 2 or rotated % 2:
        raise ConfigError(
            f"head_dim {head_dim} x partial_rotary_factor {partial:g} rotates {rotated} elements of a head, "
            "but the number must be even and at least 2",
            file=top.file,
        )
    if kind == "default":
        return RopeConfig(theta=theta, partial_rotary_factor=partial)

    length = "original_max_position_embeddings"
    original = context
    if kind != "dynamic":  # a value at the top level wins, as in transformers
        original = (top if top.get(length) is not None else inner).integer(length, 2, 1 << 28, default=context)
    ratio = context / original if kind in ("yarn", "longrope") else _REQUIRED
    if inner.get("factor") is None and ratio is not _REQUIRED:
        factor = ratio
    else:
        factor = inner.number("factor", 1e-3, 1e6)
    low, high = (
        inner.number(f"{end}_freq_factor", 1e-3, 1e6, default=given) for end, given in (("low", 1), ("high", 4))
    )
    if kind == "llama3" and high <= low:
        inner.fail("high_freq_factor", f"greater than low_freq_factor ({low:g})")
    if kind == "dynamic" and rotated < 4:
        top.fail("head_dim", "at least 4 for dynamic rope")
    if kind == "yarn" and theta <= 1:
        either("rope_theta").fail("rope_theta", "greater than 1 for yarn")
    attention_factor = None
    if inner.get("attention_factor") is not None:
        attention_factor = inner.number("attention_factor", 0.0, 1e6)
    is_long = kind == "longrope"
    return RopeConfig(
        theta=theta,
        kind=kind,
        partial_rotary_factor=partial,
        original_context=original,
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        beta_fast=inner.number("beta_fast", 0.0, 1e6, default=32) or 32.0,
        beta_slow=inner.number("beta_slow", 0.0, 1e6, default=1) or 1.0,
        mscale=inner.number("mscale", 0.0, 1e6, default=0),
        mscale_all_dim=inner.number("mscale_all_dim", 0.0, 1e6, default=0),
        truncate=inner.flag("truncate", default=True),
        attention_factor=attention_factor,
        short_factor=inner.numbers("short_factor", rotated // 2, 1e-6, 1e9) if is_long else (),
        long_factor=inner.numbers("long_factor", rotated // 2, 1e-6, 1e9) if is_long else (),
    )
