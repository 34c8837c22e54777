"""What config.json says about rotary position embeddings. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from exl2_tui.core.errors import ConfigError, UnsupportedError
from exl2_tui.core.json_keys import REQUIRED, JsonKeys, shown

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]


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


_ROPE_KINDS: Mapping[str, RopeKind] = {
    "default": "default",
    "linear": "linear",
    "dynamic": "dynamic",
    "llama3": "llama3",
    "yarn": "yarn",
    "longrope": "longrope",
    "su": "longrope",
}


def read_rope(top: JsonKeys, head_dim: int, context: int, *, early_phi3: bool) -> RopeConfig:
    """Checks and reads it. transformers 5 keeps all of it in rope_parameters; 4 has rope_theta beside rope_scaling.

    top: the keys of config.json; context: max_position_embeddings; early_phi3: "yarn" means longrope, as the first
    Phi-3 files call it. Raises ConfigError, or UnsupportedError for a kind that is not in the table.
    """
    where = "rope_scaling" if top.get("rope_scaling") else "rope_parameters"
    inner = JsonKeys(top.table(where) or {}, top.file, prefix=where + ".")
    name = inner.text("rope_type", default=inner.text("type", default="default"))
    kind = _ROPE_KINDS.get(name)
    if early_phi3 and kind == "yarn":
        kind = "longrope"
    if kind is None:
        raise UnsupportedError(
            f"{where} has the type {shown(name)}", file=top.file, hint=f"Supported are {', '.join(_ROPE_KINDS)}."
        )

    def either(key: str) -> JsonKeys:
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
    ratio = context / original if kind in ("yarn", "longrope") else REQUIRED
    if inner.get("factor") is None and ratio is not REQUIRED:
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
