"""Generator: prompt ids in, events out, over one model and one KV cache."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from collections.abc import Generator as PythonGenerator
from dataclasses import dataclass

import torch
from torch import Tensor

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import CancelledError, ContextError, PromptError
from exl2_tui.core.events import Event, FinishReason, GenerationFinished, PrefillProgress, TokenDelta
from exl2_tui.core.generation.history import TokenHistory
from exl2_tui.core.generation.sampler import Sampler
from exl2_tui.core.generation.text import TextStream, TextTokenizer
from exl2_tui.core.model.passage import WritesPassages
from exl2_tui.core.model.protocol import Cache, LanguageModel
from exl2_tui.core.requests import SamplerSettings

# A prompt is run in chunks, so that a person sees progress several times a second on the slowest machine.
CHUNK_SECONDS = 0.25
FIRST_CHUNK = 64
SMALLEST_CHUNK = 8
LARGEST_CHUNK = 2048
# The last tokens of a prompt are run together, even if all but one of them are in the cache: kernels round differently
# for one token and for several, and asking the same thing twice with the same seed must give the same text.
TAIL = 8
# A model that chooses tokens itself gives them out this often, so text never waits longer than a screen would notice.
PASSAGE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class PromptEnd:
    """What the model expected after a prompt: the prompt's ids and the logits (V,) float32 of the token behind it."""

    ids: tuple[int, ...]
    logits: Tensor


class Generator:
    """Runs prompts one after another and keeps in the cache what the next one can use again.

    The cache holds exactly the tokens in `_run` between any two events, so a request may be stopped, dropped or fail
    anywhere and the next one still starts from a valid prefix.
    """

    def __init__(self, model: LanguageModel, tokenizer: TextTokenizer, cache: Cache) -> None:
        self._model = model
        self._writer = model if isinstance(model, WritesPassages) else None
        self._tokenizer = tokenizer
        self._cache = cache
        self._run: list[int] = []
        self._chunk = FIRST_CHUNK
        self._prompt_end: PromptEnd | None = None

    @property
    def prompt_end(self) -> PromptEnd | None:
        """Of the last prompt that was run, for people who want to see what a sampler would do there. Never changed."""
        return self._prompt_end

    @property
    def context_used(self) -> int:
        """Tokens in the cache."""
        return len(self._run)

    @property
    def context_size(self) -> int:
        return self._cache.capacity

    def cached_tokens(self, ids: Sequence[int]) -> int:
        """How many of these prompt tokens need not be run again; the last TAIL always are."""
        limit = max(0, min(len(self._run), len(ids) - TAIL))
        differs = (i for i, (old, new) in enumerate(zip(self._run, ids, strict=False)) if old != new)
        return min(limit, next(differs, limit))

    def stream(
        self,
        ids: Sequence[int],
        settings: SamplerSettings,
        *,
        stop_strings: Iterable[str] = (),
        stop_ids: Collection[int] = frozenset(),
        max_new_tokens: int,
        request_id: int = 0,
        cancel: CancelToken | None = None,
        strip: bool = False,
    ) -> Iterator[Event]:
        """PrefillProgress per chunk, TokenDelta as text is certain, GenerationFinished as the last event.

        ids: the whole prompt, at least one token and at most the context. strip: leading whitespace is not shown.
        Cancelling ends it with reason "cancelled" within one token, or one layer of a prompt chunk. Raises PromptError
        or ContextError before anything ran; errors of the model pass through.
        """
        if not ids:
            raise PromptError("the prompt is empty", hint="Type at least one character")
        if len(ids) > self._cache.capacity:
            raise ContextError(
                f"the prompt has {len(ids):,} tokens, but the context holds {self._cache.capacity:,}",
                hint="Shorten the prompt, or load the model with a longer context",
            )
        cancel = cancel or CancelToken()
        sampler = Sampler(settings, self._tokenizer.vocab_size)
        text = TextStream(self._tokenizer, stop_strings, strip=strip)
        cached = self.cached_tokens(ids)
        started = prefilled = first = last = time.perf_counter()
        generated = 0
        reason: FinishReason = "length"
        try:
            after_prompt = yield from self._prefill(ids, cached, request_id, cancel)
            prefilled = first = last = time.perf_counter()
            self._prompt_end = PromptEnd(tuple(ids), after_prompt.detach().to("cpu", torch.float32, copy=True))
            history = sampler.history(ids)
            for token in self._tokens(after_prompt, sampler, history, max_new_tokens, stop_ids, cancel):
                generated += 1
                last = time.perf_counter()
                if generated == 1:
                    first = last
                if token in stop_ids:
                    reason = "stop_token"
                    break
                shown, tokens = text.push(token)
                if shown or tokens:
                    yield TokenDelta(request_id, shown, tokens)
                if text.stopped:
                    reason = "stop_string"
                    break
            else:
                reason = "length" if generated == max_new_tokens else "context"
        except CancelledError:
            reason = "cancelled"
            if not generated:
                prefilled = first = last = time.perf_counter()
        # What the model wrote beyond the end; the last token is only run before somebody stops what would follow.
        self._forget(len(ids) + max(0, generated - (reason != "cancelled")))
        shown, tokens = text.finish(cut=reason != "stop_token")
        if shown or tokens:
            yield TokenDelta(request_id, shown, tokens)
        yield GenerationFinished(
            request_id,
            reason,
            prompt_tokens=len(ids),
            cached_tokens=cached,
            generated_tokens=generated,
            prefill_seconds=prefilled - started,
            decode_seconds=last - first,
            first_token_seconds=first - started,
            context_used=self.context_used,
            context_size=self.context_size,
            seed=sampler.seed,
        )

    def _prefill(
        self, ids: Sequence[int], cached: int, request_id: int, cancel: CancelToken
    ) -> PythonGenerator[Event, None, Tensor]:
        """Runs the prompt from token `cached` on; returns the logits (V,) after its last token."""
        self._cache.truncate(cached)
        del self._run[cached:]
        yield PrefillProgress(request_id, cached, len(ids))
        while True:
            cancel.check()
            done = len(self._run)
            last = len(ids) - done < self._chunk + TAIL
            part = ids[done:] if last else ids[done : done + self._chunk]
            started = time.perf_counter()
            logits = self._forward(part, cancel)
            self._adapt(len(part), time.perf_counter() - started)
            yield PrefillProgress(request_id, len(self._run), len(ids))
            if last:
                return logits

    def _adapt(self, tokens: int, seconds: float) -> None:
        """Doubles or halves the chunk so that it stays below CHUNK_SECONDS; steps of two keep runs comparable."""
        if seconds > CHUNK_SECONDS:
            self._chunk = max(SMALLEST_CHUNK, self._chunk // 2)
        elif tokens == self._chunk and seconds < 0.4 * CHUNK_SECONDS:
            self._chunk = min(LARGEST_CHUNK, self._chunk * 2)

    def _tokens(
        self,
        after_prompt: Tensor,
        sampler: Sampler,
        history: TokenHistory,
        count: int,
        stop_ids: Collection[int],
        cancel: CancelToken,
    ) -> Iterator[int]:
        """The tokens behind a prompt, `count` of them or as many as the context holds; nobody asks behind a stop id."""
        chosen: Sequence[int] = ()
        logits: Tensor | None = after_prompt
        while count:
            for token in chosen:
                cancel.check()
                yield token
                history.append(token)
            count -= len(chosen)
            if logits is not None and count:
                cancel.check()
                token = sampler.sample(logits, history)
                yield token
                history.append(token)
                count -= 1
            if not count or self._cache.length == self._cache.capacity:
                return
            chosen, logits = self._next(token, sampler, history, count, stop_ids, cancel)

    def _next(
        self,
        token: int,
        sampler: Sampler,
        history: TokenHistory,
        count: int,
        stop_ids: Collection[int],
        cancel: CancelToken,
    ) -> tuple[Sequence[int], Tensor | None]:
        """Runs the token that was chosen last: up to `count` tokens behind it if the model chooses itself, and logits
        of the one behind them unless that is yet to be run."""
        if self._writer is not None and (choice := sampler.ahead(history, count)) is not None:
            passage = self._writer.write(
                token, self._cache, choice, stop_ids=stop_ids, seconds=PASSAGE_SECONDS, cancel=cancel
            )
            sampler.spend(len(passage.tokens))
            run = (token, *passage.tokens)
            self._run.extend(run if passage.logits is not None else run[:-1])
            return passage.tokens, passage.logits
        return (), self._forward([token], cancel)

    def _forget(self, length: int) -> None:
        """Takes everything behind the first `length` tokens out of the cache."""
        if length < len(self._run):
            self._cache.truncate(length)
            del self._run[length:]

    def _forward(self, ids: Sequence[int], cancel: CancelToken) -> Tensor:
        logits = self._model.forward(ids, self._cache, cancel=cancel)
        self._run.extend(ids)
        return logits
