"""How fast a model runs here, and how much of the machine's memory bandwidth that uses.

Decoding a token reads every weight once, so tokens/s cannot exceed bandwidth / bytes per token; the fraction reached
tells how good the kernels are, whatever the machine.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import ContextError
from exl2_tui.core.events import SpeedProgress
from exl2_tui.core.model.estimate import MeasurableSource, footprint
from exl2_tui.core.model.footprint import DENSE, Backend, cache_bytes
from exl2_tui.core.model.layout import EMBEDDING
from exl2_tui.core.model.memory import available_memory
from exl2_tui.core.model.protocol import Cache, LanguageModel
from exl2_tui.core.ops import native

PROMPT_STEP = 512  # tokens per forward call while a prompt is run, as in a long chat
SMALLEST_BUFFER = 64 << 20
LARGEST_BUFFER = {"cpu": 512 << 20, "cuda": 4 << 30}

Progress = Callable[[SpeedProgress], None]


@dataclass(frozen=True, slots=True)
class PromptSpeed:
    """A prompt of `tokens` tokens run into an empty cache; the median of several runs."""

    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class DecodeSpeed:
    """Tokens written one by one behind `depth` cached ones; seconds is the median per token.

    bytes_per_token: weights and cached keys and values that one token reads. bandwidth_fraction: of what was measured.
    """

    depth: int
    seconds: float
    bytes_per_token: int
    bandwidth_fraction: float

    @property
    def tokens_per_second(self) -> float:
        return 1 / self.seconds


@dataclass(frozen=True, slots=True)
class SpeedReport:
    """bandwidth in bytes per second; peak_memory: the most this process ever held, in bytes."""

    prompt: tuple[PromptSpeed, ...]
    decode: tuple[DecodeSpeed, ...]
    bandwidth: float
    peak_memory: int


def read_buffer(device: torch.device | str = "cpu") -> Tensor:
    """Memory for read_bandwidth(), much larger than any cache; on large pages, as weights are."""
    device = torch.device(device)
    free = available_memory() if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    room = SMALLEST_BUFFER if free is None else free // 8
    size = max(SMALLEST_BUFFER, min(LARGEST_BUFFER[device.type], room))
    buffer = torch.empty(size // 4, device=device)
    if device.type == "cpu" and native.capabilities().native:
        native.ops().large_pages(buffer)
    return buffer.fill_(1.0)


def read_bandwidth(
    device: torch.device | str = "cpu", passes: int = 7, *, threads: int | None = None, buffer: Tensor | None = None
) -> float:
    """Bytes per second at which `threads` threads together read memory: the best of several sums over a large buffer.

    threads: None takes as many as models do; CPU only. buffer: of read_buffer(), to measure often without a new one.
    """
    buffer = read_buffer(device) if buffer is None else buffer
    is_native = buffer.device.type == "cpu" and native.capabilities().native
    count = threads or torch.get_num_threads()
    best = 0.0
    for _ in range(passes):
        started = time.perf_counter()
        if is_native:
            native.ops().read_memory(buffer, count, native.isa_code())
        else:
            float(buffer.sum())  # the conversion waits for a GPU
        best = max(best, buffer.nbytes / (time.perf_counter() - started))
    return best


def weight_bytes_per_token(
    source: MeasurableSource, config: ModelConfig, backend: Backend = "native", exact: bool = False
) -> int:
    """Bytes of weights that one token reads: all that are held but the embedding, of which it reads one row."""
    held = footprint(source, config).weights(backend, exact)
    if backend in DENSE:
        return held - (0 if config.tie_word_embeddings else DENSE[backend] * config.vocab_size * config.hidden_size)
    return held if backend == "native" else held - source.info(EMBEDDING).nbytes


def measure(
    model: LanguageModel,
    weight_bytes: int,
    *,
    prompts: Sequence[int] = (128, 512),
    depths: Sequence[int] = (0, 512),
    new_tokens: int = 32,
    repeats: int = 3,
    kind: str = "fp16",
    on_progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> SpeedReport:
    """Times prompts of each length and tokens behind each depth, with a cache of its own.

    weight_bytes: read per token, see weight_bytes_per_token. Raises CancelledError, MemoryLimitError, and ContextError
    if a length is beyond what the model was made for.
    """
    needed = max([*prompts, *(depth + new_tokens + 1 for depth in depths)])
    limit = model.config.max_position_embeddings
    if needed > limit:
        raise ContextError(
            f"the measurement needs {needed} tokens of context, but the model was made for {limit}",
            hint="Choose shorter prompts or smaller depths",
        )
    cancel = cancel or CancelToken()
    cache = model.new_cache(needed, kind)
    steps = len(prompts) + len(depths) + 1
    names = ["memory bandwidth", *(f"prompt of {n} tokens" for n in prompts), *(f"tokens at {d}" for d in depths)]

    def announce(done: int) -> None:
        cancel.check()
        if on_progress is not None:
            on_progress(SpeedProgress(done, steps, names[done] if done < steps else ""))

    announce(0)
    bandwidth = read_bandwidth(model.device)
    _run(model, cache, min(needed, 16), cancel)  # warm up: pages, threads, clocks
    prompt_speeds = []
    for i, length in enumerate(prompts):
        announce(1 + i)
        times = [_run(model, cache, length, cancel) for _ in range(repeats)]
        prompt_speeds.append(PromptSpeed(length, statistics.median(times)))
    decode_speeds = []
    for i, depth in enumerate(depths):
        announce(1 + len(prompts) + i)
        seconds = _decode(model, cache, depth, new_tokens, cancel)
        read = weight_bytes + cache_bytes(model.config, depth + new_tokens // 2, kind)
        decode_speeds.append(DecodeSpeed(depth, seconds, read, read / seconds / bandwidth))
    announce(steps)
    return SpeedReport(tuple(prompt_speeds), tuple(decode_speeds), bandwidth, peak_memory())


def peak_memory() -> int:
    """The most physical memory this process ever held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _run(model: LanguageModel, cache: Cache, length: int, cancel: CancelToken) -> float:
    """Seconds to run `length` tokens into the emptied cache."""
    cache.truncate(0)
    started = time.perf_counter()
    _feed(model, cache, length, cancel)
    return time.perf_counter() - started


def _decode(model: LanguageModel, cache: Cache, depth: int, count: int, cancel: CancelToken) -> float:
    """Median seconds per token, each the most probable one after `depth` others."""
    cache.truncate(0)
    token = 1
    if depth:
        token = int(_feed(model, cache, depth, cancel).argmax())
    times = []
    for _ in range(count + 1):
        started = time.perf_counter()
        token = int(model.forward([token], cache, cancel=cancel).argmax())
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])  # the first one may still warm something up


def _feed(model: LanguageModel, cache: Cache, length: int, cancel: CancelToken) -> Tensor:
    """Runs `length` arbitrary tokens; returns the last logits (V,)."""
    vocab = model.config.vocab_size
    for start in range(0, length, PROMPT_STEP):
        ids = [(7919 * (start + i) + 13) % vocab for i in range(min(PROMPT_STEP, length - start))]
        logits = model.forward(ids, cache, cancel=cancel)
    return logits
