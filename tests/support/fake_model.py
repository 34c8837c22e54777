"""A model and a tokenizer of a few lines each, for everything that is about the flow of tokens and not about weights.

FakeModel's next token depends on every token in its cache, so a cache that holds the wrong prefix shows at once.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.engine import Engine, LoadedModel
from exl2_tui.core.errors import MemoryLimitError, ShapeError, TokenizerError
from exl2_tui.core.generation.generator import Generator
from exl2_tui.core.tokenizer.stream import StreamDecoder

SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
WORDS = (" the", "User:", "Chatbort:", "\n\n", "hello", " world", "stop now", ".\nUser")


class FakeTokenizer:
    """Five control tokens, all bytes, and a few words of several bytes."""

    bos_id, eos_id, unk_id = 1, 2, 0
    special_ids = frozenset(range(5))
    stop_ids = frozenset({2})
    adds_bos = True

    def __init__(self) -> None:
        self._bytes = [piece.encode() for piece in SPECIAL] + [bytes([b]) for b in range(256)]
        self._bytes += [word.encode() for word in WORDS]
        self._longest_first = sorted(range(5, len(self._bytes)), key=lambda i: -len(self._bytes[i]))
        self.vocab_size = len(self._bytes)

    def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        data = text.encode()
        candidates = [*range(5), *self._longest_first] if special else self._longest_first
        ids = [self.bos_id] if bos else []
        while data:
            best = next(i for i in candidates if data.startswith(self._bytes[i]))
            ids.append(best)
            data = data[len(self._bytes[best]) :]
        return ids

    def encode_parts(self, parts: Sequence[str | int | tuple[int, ...]]) -> list[list[int]]:
        return [
            self.encode(part) if isinstance(part, str) else [part] if isinstance(part, int) else list(part)
            for part in parts
        ]

    def split(self, text: str) -> list[str | int]:
        pieces = re.split("(" + "|".join(map(re.escape, SPECIAL)) + ")", text)
        return [SPECIAL.index(piece) if piece in SPECIAL else piece for piece in pieces if piece]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True, continuation: bool = False) -> str:
        decoder = self.stream(skip_special)
        return "".join(map(decoder.push, ids)) + decoder.flush()

    def stream(self, skip_special: bool = True, *, continuation: bool = False) -> StreamDecoder:
        return StreamDecoder(self.text_bytes, self.special_ids if skip_special else frozenset(), 0)

    def piece(self, token_id: int) -> str:
        return self._bytes[token_id].decode(errors="replace")

    def text_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < self.vocab_size:
            raise TokenizerError(f"no token {token_id}")
        return self._bytes[token_id]

    def token_id(self, piece: str) -> int | None:
        data = piece.encode()
        return self._bytes.index(data) if data in self._bytes else None

    def control_id(self, piece: str) -> int | None:
        return SPECIAL.index(piece) if piece in SPECIAL else None


class FakeCache:
    """Remembers the ids themselves."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.ids: list[int] = []

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        return self.capacity * 8

    def truncate(self, length: int) -> None:
        if not 0 <= length <= len(self.ids):
            raise ShapeError(f"cannot cut {len(self.ids)} tokens to {length}")
        del self.ids[length:]


def hashed_token(ids: Sequence[int]) -> int:
    """A byte token that depends on all ids."""
    return 5 + hashlib.sha256(repr(list(ids)).encode()).digest()[0] % 95 + 32


class FakeTime:
    """In place of the module `time`: it passes when somebody sleeps, and a little whenever somebody looks."""

    def __init__(self, slept: Callable[[float], object] = lambda now: None) -> None:
        """slept: is told the time after every sleep."""
        self.now = 0.0
        self._slept = slept

    def perf_counter(self) -> float:
        self.now += 1e-7
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self._slept(self.now)


class FakeModel:
    """next_token says which token follows a cache's ids; its logit is 10, those of the others lie in [0, 3).

    seconds_per_token is slept in small steps that look at the cancel token, as a real model does between layers. clock:
    where it is slept.
    """

    device = torch.device("cpu")
    weight_bytes = 1000
    kernels = "fake"

    def __init__(
        self,
        next_token: Callable[[Sequence[int]], int] = hashed_token,
        *,
        vocab_size: int = 300,
        context: int = 512,
        seconds_per_token: float = 0.0,
        clock: FakeTime | None = None,
    ) -> None:
        self.config = ModelConfig.from_dict(
            {
                "architectures": ["LlamaForCausalLM"],
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "vocab_size": vocab_size,
                "max_position_embeddings": context,
                "rms_norm_eps": 1e-6,
                "hidden_act": "silu",
            }
        )
        self.next_token = next_token
        self.seconds_per_token = seconds_per_token
        self._clock = clock or time
        self.calls: list[int] = []  # tokens per forward call
        self.closed = False

    def new_cache(self, context: int, kind: str = "fp16") -> FakeCache:
        return FakeCache(context)

    def forward(
        self,
        ids: Tensor | Sequence[int],
        cache: FakeCache,
        *,
        all_logits: bool = False,
        cancel: CancelToken | None = None,
    ) -> Tensor:
        new = [int(i) for i in ids]
        if cache.length + len(new) > cache.capacity:
            raise MemoryLimitError(f"{cache.length} + {len(new)} tokens, room for {cache.capacity}")
        if not new or not all(0 <= i < self.config.vocab_size for i in new):
            raise ShapeError(f"bad ids {new}")
        end = self._clock.perf_counter() + self.seconds_per_token * len(new)
        while cancel is not None:
            cancel.check()
            left = end - self._clock.perf_counter()
            if left <= 0:
                break
            self._clock.sleep(min(left, 0.01))
        old = list(cache.ids)
        rows = [self._logits(old + new[: i + 1]) for i in range(0 if all_logits else len(new) - 1, len(new))]
        cache.ids.extend(new)
        self.calls.append(len(new))
        return torch.stack(rows) if all_logits else rows[0]

    def _logits(self, ids: list[int]) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(repr(ids).encode()).digest()[:4], "little")
        logits = torch.rand(self.config.vocab_size, generator=torch.Generator().manual_seed(seed)) * 3
        logits[self.next_token(ids)] = 10.0
        return logits

    def close(self) -> None:
        self.closed = True


def loaded_model(path: Path, model: FakeModel, context: int = 512) -> LoadedModel:
    """What an engine holds, around a fake model."""
    tokenizer = FakeTokenizer()
    cache = model.new_cache(context)
    generator = Generator(model, tokenizer, cache)  # type: ignore[arg-type]
    return LoadedModel(path, model.config, tokenizer, model, generator, "fake", cache.nbytes, cache.nbytes, 1000)  # type: ignore[arg-type]


def fake_engine(model: FakeModel, context: int = 512, path: Path = Path("fake-model")) -> Engine:
    """An engine in which the model is already loaded."""
    engine = Engine(lambda _path, _options, _progress, _cancel, _room: loaded_model(path, model, context))
    engine.load(path)
    return engine
