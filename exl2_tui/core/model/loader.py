"""From an open checkpoint to a model that runs: which implementation, whether it fits, and progress on the way.

plan = plan_load(checkpoint, config, options)      # headers only; refuses what cannot fit
model = load_model(checkpoint, config, options, on_progress=..., cancel=..., plan=plan)
cache = model.new_cache(plan.estimate.context, options.cache)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import CheckpointError, ConfigError, MemoryLimitError, UnsupportedError
from exl2_tui.core.model.causal_lm import CausalLM
from exl2_tui.core.model.cuda import library
from exl2_tui.core.model.estimate import MeasurableSource, estimate, model_sizes, require_fit
from exl2_tui.core.model.footprint import CACHE_KINDS, COMFORTABLE, CONTEXT_STEP, Backend, MemoryEstimate
from exl2_tui.core.model.native import NativeModel
from exl2_tui.core.model.protocol import LanguageModel
from exl2_tui.core.model.split import split_layers
from exl2_tui.core.model.watched import Progress, WatchedSource
from exl2_tui.core.model.weights import Inventory, take_inventory, whole_names
from exl2_tui.core.ops.cache import MAX_HEAD_DIM
from exl2_tui.core.ops.native import capabilities
from exl2_tui.core.requests import CacheKind, LoadOptions


class ModelDirectory(MeasurableSource, Protocol):
    """What is used of a Checkpoint here."""

    @property
    def path(self) -> Path: ...


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What load_model will do. devices: where each layer goes. inventory.unused: tensors the model has no use for.

    reason: why it is the reference, or why this machine's GPU is left alone.
    """

    backend: Backend
    devices: tuple[torch.device, ...]
    estimate: MemoryEstimate
    inventory: Inventory
    reason: str = ""


def plan_load(checkpoint: ModelDirectory, config: ModelConfig, options: LoadOptions) -> LoadPlan:
    """Decides from headers alone.

    Raises CheckpointError if tensors are missing, MemoryLimitError if the model cannot fit, UnsupportedError or
    ExtensionError for a device or cache kind that cannot be had.
    """
    inventory = take_inventory(checkpoint, config)
    inventory.check(checkpoint.path, _why_missing(checkpoint, inventory))
    if options.gpu_split:
        return _plan_split(checkpoint, config, options, inventory)
    if options.device not in ("auto", "cpu"):
        return _plan_cuda(checkpoint, config, options, library.named_device(options.device), inventory)
    if options.device == "cpu" or library.no_device() is not None:
        return _plan_cpu(checkpoint, config, options, inventory)
    device = torch.device("cuda", torch.cuda.current_device())
    unused = _no_cuda(config, device)
    if not unused:
        plan = _plan_cuda(checkpoint, config, options, device, inventory)
        if plan.estimate.fits != "no":
            return plan
        unused = "the model does not fit into its free memory"
    plan = _plan_cpu(checkpoint, config, options, inventory, unused)
    return replace(plan, reason="; ".join(filter(None, (plan.reason, f"the GPU is not used: {unused}"))))


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
    require_fit(plan.estimate, options.cache, checkpoint.path.name)
    used: Iterable[str] = plan.inventory.used
    if plan.backend == "native":
        used = whole_names(checkpoint, config, used)
    source = WatchedSource(checkpoint, used, on_progress, cancel)
    if plan.backend == "cuda":
        from exl2_tui.core.model.cuda.model import CudaModel

        return CudaModel.load(source, config, plan.devices)
    if plan.backend == "native":
        native = NativeModel.load(source, config, options)
        if plan.reason:
            native.kernels += f" ({plan.reason})"
        return native
    if options.threads:
        torch.set_num_threads(options.threads)
    on_gpu = plan.devices[0].type == "cuda"
    model = CausalLM.load(source, config, plan.devices, torch.float16 if on_gpu else torch.float32)
    model.kernels = f"reference (torch): {plan.reason}"
    return model


def _plan_cpu(
    checkpoint: ModelDirectory, config: ModelConfig, options: LoadOptions, inventory: Inventory, no_gpu: str = ""
) -> LoadPlan:
    """no_gpu: why this machine's GPU is left alone."""
    reason = _no_native(config)
    backend: Backend = "native" if reason is None else "reference"
    _check_cache(options.cache, backend, reason or no_gpu)
    found = estimate(checkpoint, config, options.context, options.cache, backend, exact=options.exact)
    require_fit(found, options.cache, checkpoint.path.name)
    return LoadPlan(backend, (torch.device("cpu"),) * config.num_hidden_layers, found, inventory, reason or "")


def _plan_cuda(
    checkpoint: ModelDirectory,
    config: ModelConfig,
    options: LoadOptions,
    device: torch.device,
    inventory: Inventory,
) -> LoadPlan:
    """Raises ExtensionError or UnsupportedError where no GPU can be used; whether it fits is left to the caller.

    Without our kernels it is the reference in float16, and the plan says why.
    """
    library.require_device()
    reason = _no_cuda(config, device)
    backend: Backend = "cuda" if reason is None else "gpu-reference"
    _check_cache(options.cache, backend, reason)
    found = estimate(checkpoint, config, options.context, options.cache, backend, available=free_memory(device))
    return LoadPlan(backend, (device,) * config.num_hidden_layers, found, inventory, reason or "")


def _plan_split(
    checkpoint: ModelDirectory, config: ModelConfig, options: LoadOptions, inventory: Inventory
) -> LoadPlan:
    """Layers on several GPUs. A context that was not asked for becomes as short as it must."""
    library.require_device()
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    rooms = [int(COMFORTABLE * free_memory(device)) for device in devices]
    limits = options.split_bytes()
    if limits:
        if len(limits) > len(devices):
            raise ConfigError(
                f'gpu_split is "{options.gpu_split}", but this machine has {len(devices)} GPU(s)',
                hint="Name one number of GB for each, or auto",
            )
        rooms = [min(limit, room) for limit, room in zip(limits, rooms, strict=False)]
    reasons = (_no_cuda(config, device) for device, room in zip(devices, rooms, strict=False) if room)
    reason = next(filter(None, reasons), "")
    backend: Backend = "gpu-reference" if reason else "cuda"
    _check_cache(options.cache, backend, reason)
    found = estimate(checkpoint, config, options.context, options.cache, backend, available=sum(rooms))
    while True:
        sizes = model_sizes(checkpoint, config, found.context, options.cache, backend)
        try:
            ranges = split_layers(sizes, rooms, [str(device) for device in devices])
        except MemoryLimitError:
            if options.context is not None or found.context <= CONTEXT_STEP:
                raise
            found = estimate(checkpoint, config, found.context // 2, options.cache, backend, available=sum(rooms))
            continue
        places = tuple(devices[part.device] for part in ranges for _ in range(part.first, part.last))
        return LoadPlan(backend, places, found, inventory, reason)


def _check_cache(kind: CacheKind, backend: Backend, reason: str | None) -> None:
    """Raises UnsupportedError for a cache kind that is not to be had. reason: why it is not a better backend."""
    kinds = CACHE_KINDS[backend]
    if kind in kinds:
        return
    needed = "the compiled kernels" if kind in CACHE_KINDS["native"] else "a GPU and its kernels"
    raise UnsupportedError(
        f'the cache kind "{kind}" needs {needed}' + (f", which cannot be used: {reason}" if reason else ""),
        hint=f"Use the cache kind {' or '.join(kinds)}, or see `exl2-tui doctor`.",
    )


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU."""
    return torch.cuda.mem_get_info(device)[0]


def _no_cuda(config: ModelConfig, device: torch.device | None = None) -> str | None:
    """Why our kernels cannot run the model on a GPU, None if they can."""
    from exl2_tui.core.model.cuda.model import HEAD_DIMS

    reason = library.unavailable(device)
    if reason is None and config.head_dim not in HEAD_DIMS:
        return f"its kernels take no heads of {config.head_dim} dimensions"
    return reason


def _no_native(config: ModelConfig) -> str | None:
    """Why the compiled CPU kernels cannot be used, None if they can."""
    found = capabilities()
    if not found.native:
        return found.reason
    return f"heads of {config.head_dim} dimensions" if config.head_dim > MAX_HEAD_DIM else None


def _why_missing(checkpoint: ModelDirectory, inventory: Inventory) -> str | None:
    """The checkpoint knows the usual reasons, such as a shard that is not there; another program's format it raises."""
    if not inventory.missing:
        return None
    try:
        checkpoint.info(inventory.missing[0])
    except CheckpointError as reason:
        return reason.hint
    return None
