"""From an open checkpoint to a model that runs: which implementation, whether it fits, and progress on the way.

plan = plan_load(checkpoint, config, options)      # headers only; refuses what cannot fit
model = load_model(checkpoint, config, options, on_progress=..., cancel=..., plan=plan)
cache = model.new_cache(plan.estimate.context, options.cache)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import CheckpointError, UnsupportedError
from exl2_tui.core.formats import LinearWeight
from exl2_tui.core.model.causal_lm import CausalLM
from exl2_tui.core.model.estimate import MeasurableSource, MemoryEstimate, TensorSize, estimate, require_fit
from exl2_tui.core.model.protocol import LanguageModel
from exl2_tui.core.model.weights import Inventory, take_inventory
from exl2_tui.core.requests import LoadOptions

Progress = Callable[[int, int, str], None]  # bytes done, bytes in total, tensor just finished


class ModelDirectory(MeasurableSource, Protocol):
    """What is used of a Checkpoint here."""

    @property
    def path(self) -> Path: ...


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What load_model will do. inventory.unused lists tensors the model has no use for."""

    backend: Literal["native", "reference"]
    estimate: MemoryEstimate
    inventory: Inventory


def plan_load(checkpoint: ModelDirectory, config: ModelConfig, options: LoadOptions) -> LoadPlan:
    """Decides from headers alone.

    Raises CheckpointError if tensors are missing, MemoryLimitError if the model cannot fit, UnsupportedError for a
    device or cache kind that cannot be had.
    """
    if options.device not in ("auto", "cpu"):
        raise UnsupportedError(f'the device "{options.device}" cannot be used', hint='Use "cpu" or "auto".')
    inventory = take_inventory(checkpoint, config)
    inventory.check(checkpoint.path, _why_missing(checkpoint, inventory))
    backend: Literal["native", "reference"] = "native" if _native_reason() is None else "reference"
    dense = backend == "reference"
    if dense and options.cache != "fp16":
        raise UnsupportedError(
            f'the cache kind "{options.cache}" needs the compiled kernels, which are not there ({_native_reason()})',
            hint="Use the cache kind fp16, or see `exl2-tui doctor`.",
        )
    found = estimate(checkpoint, config, options.context, options.cache, dense=dense)
    require_fit(found, options.cache, checkpoint.path.name)
    return LoadPlan(backend, found, inventory)


def load_model(
    checkpoint: ModelDirectory,
    config: ModelConfig,
    options: LoadOptions | None = None,
    on_progress: Progress | None = None,
    cancel: CancelToken | None = None,
    plan: LoadPlan | None = None,
) -> LanguageModel:
    """The weights in memory, ready to run. Raises what plan_load does, CheckpointError and CancelledError."""
    options = options or LoadOptions()
    plan = plan or plan_load(checkpoint, config, options)
    if options.threads:
        torch.set_num_threads(options.threads)
    model = CausalLM.load(WatchedSource(checkpoint, plan.inventory.used, on_progress, cancel), config)
    model.kernels = f"reference (torch): {_native_reason()}"
    return model


class WatchedSource:
    """A checkpoint that reports each tensor as it is released and stops when cancelled."""

    def __init__(
        self,
        source: MeasurableSource,
        used: Iterable[str],
        on_progress: Progress | None,
        cancel: CancelToken | None,
    ) -> None:
        self.source = source
        self.pending = {name: source.info(name).nbytes for name in used}
        self.total = sum(self.pending.values())
        self.done = 0
        self.on_progress = on_progress
        self.cancel = cancel

    @property
    def names(self) -> Iterable[str]:
        return self.source.names

    def __contains__(self, name: object) -> bool:
        return name in self.source

    def info(self, name: str) -> TensorSize:
        return self.source.info(name)

    def linear_kind(self, prefix: str) -> str | None:
        return self.source.linear_kind(prefix)

    def tensor(self, name: str) -> Tensor:
        self._check()
        return self.source.tensor(name)

    def linear(self, prefix: str, in_features: int, out_features: int, bias: bool | None) -> LinearWeight:
        self._check()
        return self.source.linear(prefix, in_features, out_features, bias)

    def release(self, name: str) -> None:
        """The tensor has been copied. One that is read twice (a tied embedding) counts once."""
        self.source.release(name)
        self.done += self.pending.pop(name, 0)
        if self.on_progress is not None:
            self.on_progress(self.done, self.total, name)
        self._check()

    def _check(self) -> None:
        if self.cancel is not None:
            self.cancel.check()


def _why_missing(checkpoint: ModelDirectory, inventory: Inventory) -> str | None:
    """The checkpoint knows the usual reasons, such as a shard that is not there; another program's format it raises."""
    if not inventory.missing:
        return None
    try:
        checkpoint.info(inventory.missing[0])
    except CheckpointError as reason:
        return reason.hint
    return None


def _native_reason() -> str | None:
    """Why the native kernels cannot be used, or None if they can."""
    return "not built yet"
