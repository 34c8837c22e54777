"""Engine: one model at a time, loaded, talked to, unloaded. For one thread at a time, except for `preview`."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import MemoryLimitError, NotFoundError, PromptError
from exl2_tui.core.events import Event, LoadFinished, LoadProgress, PromptReady, SamplerStep, TokenChance
from exl2_tui.core.generation.generator import Generator
from exl2_tui.core.generation.overflow import fit
from exl2_tui.core.generation.sampler import Sampler
from exl2_tui.core.library.describe import describe
from exl2_tui.core.model.loader import load_model, plan_load
from exl2_tui.core.model.protocol import LanguageModel
from exl2_tui.core.prompts import EncodedPrompt, encode_chat
from exl2_tui.core.requests import ChatRequest, CompletionRequest, LoadOptions, Message, SamplerSettings
from exl2_tui.core.speed import weight_bytes_per_token
from exl2_tui.core.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Everything that belongs to a model that is ready.

    memory_bytes: the estimate of all it takes. read_bytes: of weights, for one token.
    """

    path: Path
    config: ModelConfig
    tokenizer: Tokenizer
    model: LanguageModel
    generator: Generator
    format: str
    cache_bytes: int
    memory_bytes: int
    read_bytes: int


# (directory, options, progress, cancel, make room) -> model. `make room` frees the model loaded so far; it is called
# once the new one is known to be complete and readable, before memory is taken for it.
Opener = Callable[
    [Path, LoadOptions, Callable[[LoadProgress], None], CancelToken | None, Callable[[], None]], LoadedModel
]


def open_model(
    path: Path,
    options: LoadOptions,
    on_progress: Callable[[LoadProgress], None],
    cancel: CancelToken | None,
    make_room: Callable[[], None],
) -> LoadedModel:
    """A model from its directory. Raises an Exl2Error that says what is wrong with it, or CancelledError."""
    with Checkpoint.open(path) as checkpoint:
        config = ModelConfig.from_dir(path)
        tokenizer = Tokenizer.load(path)
        with contextlib.suppress(MemoryLimitError):  # it may fit once the other model is gone
            plan_load(checkpoint, config, options)
        make_room()
        plan = plan_load(checkpoint, config, options)

        def report(done: int, total: int, tensor: str) -> None:
            on_progress(LoadProgress(model_name(path), done, total, tensor))

        model = load_model(checkpoint, config, options, report, cancel, plan)
        read_bytes = weight_bytes_per_token(checkpoint, config, plan.backend, options.exact)
    cache = model.new_cache(plan.estimate.context, options.cache)
    generator = Generator(model, tokenizer, cache)
    return LoadedModel(
        path=path,
        config=config,
        tokenizer=tokenizer,
        model=model,
        generator=generator,
        format=describe(path).format,
        cache_bytes=cache.nbytes,
        memory_bytes=plan.estimate.total,
        read_bytes=read_bytes,
    )


class Engine:
    """Loads a model and streams what it says.

    open_model: how a directory becomes a model; tests give their own.
    """

    def __init__(self, open_model: Opener = open_model) -> None:
        self._open_model = open_model
        self._current: LoadedModel | None = None
        self._info: LoadFinished | None = None

    @property
    def loaded(self) -> LoadFinished | None:
        """What is loaded, None if nothing is."""
        return self._info

    @property
    def current(self) -> LoadedModel:
        """The model itself, for evaluation and measurements. Raises NotFoundError if there is none."""
        current = self._current
        if current is None:
            raise NotFoundError("no model is loaded", hint="Load one first")
        return current

    def load(
        self,
        path: Path | str,
        options: LoadOptions | None = None,
        on_event: Callable[[Event], None] | None = None,
        cancel: CancelToken | None = None,
    ) -> LoadFinished:
        """Loads a model directory in place of the model there was.

        A directory that cannot be loaded leaves the old model in place, as far as that shows before its weights are
        read. Reports LoadProgress. Raises what `open_model` raises.
        """
        path = Path(path)
        options = options or LoadOptions()
        started = time.perf_counter()
        new = self._open_model(path, options, on_event or _ignore, cancel, self.unload)
        self._current = new
        self._info = LoadFinished(
            model=model_name(path),
            architecture=new.config.architecture,
            format=new.format,
            context=new.generator.context_size,
            weight_bytes=new.model.weight_bytes,
            cache_bytes=new.cache_bytes,
            memory_bytes=new.memory_bytes,
            seconds=time.perf_counter() - started,
            device=str(new.model.device),
            kernels=new.model.kernels,
            path=str(path),
        )
        return self._info

    def unload(self) -> None:
        """Gives the model's memory back to the system; does nothing if none is loaded."""
        current, self._current, self._info = self._current, None, None
        if current is None:
            return
        current.model.close()
        del current
        gc.collect()
        _return_memory()

    def chat(self, request: ChatRequest, request_id: int = 0, cancel: CancelToken | None = None) -> Iterator[Event]:
        """Answers the last user message: PromptReady, PrefillProgress, TokenDelta..., GenerationFinished.

        If the messages end with one of the assistant, that answer is continued; the deltas hold only what is new.
        Keep the token_ids of the deltas in the assistant's Message: then the next request finds the whole conversation
        in the cache. Raises PromptError, ContextError, GenerationError.
        """
        current = self.current
        messages, begun = _split_begun(request.messages)
        if not messages or messages[-1].role != "user":
            raise PromptError("there is no question to answer", hint="End the messages with one of the user")
        begun_ids = _ids_of(begun, current.tokenizer) if begun is not None else ()

        def encode(messages: Sequence[Message]) -> EncodedPrompt:
            prompt = self.preview(messages, request.mode, user_name=request.user_name, bot_name=request.bot_name)
            return dataclasses.replace(prompt, ids=prompt.ids + begun_ids)

        prompt, dropped = fit(messages, encode, current.generator.context_size, request.max_new_tokens)
        yield PromptReady(
            request_id,
            prompt.mode,
            prompt_tokens=len(prompt.ids),
            cached_tokens=current.generator.cached_tokens(prompt.ids),
            dropped=dropped,
            note=prompt.note,
        )
        yield from current.generator.stream(
            prompt.ids,
            request.sampler,
            stop_strings=(*prompt.stop_strings, *request.stop),
            stop_ids=prompt.stop_ids.union(current.config.eos_token_ids),
            max_new_tokens=request.max_new_tokens,
            request_id=request_id,
            cancel=cancel,
            strip=begun is None,
        )

    def complete(
        self, request: CompletionRequest, request_id: int = 0, cancel: CancelToken | None = None
    ) -> Iterator[Event]:
        """Continues a text as it is; events as of `chat`. BOS stands in front if the model was trained with it."""
        current = self.current
        tokenizer = current.tokenizer
        ids = tokenizer.encode(request.prompt, special=request.special, bos=tokenizer.adds_bos)
        cached = current.generator.cached_tokens(ids)
        events = current.generator.stream(
            ids,
            request.sampler,
            stop_strings=request.stop,
            stop_ids=tokenizer.stop_ids.union(current.config.eos_token_ids),
            max_new_tokens=request.max_new_tokens,
            request_id=request_id,
            cancel=cancel,
        )
        yield PromptReady(request_id, "completion", len(ids), cached, dropped=0, note="")
        yield from events

    def preview(
        self, messages: Sequence[Message], mode: str, *, user_name: str = "User", bot_name: str = "Chatbort"
    ) -> EncodedPrompt:
        """The prompt these messages become, in full. Safe from any thread, also while text is generated."""
        current = self.current
        return encode_chat(
            messages, mode, current.tokenizer, current.config, current.path, user_name=user_name, bot_name=bot_name
        )

    def explain_sampling(self, settings: SamplerSettings, show: int = 32) -> tuple[SamplerStep, ...]:
        """What each step of a sampler with these settings would leave over after the last prompt, `show` tokens of it.

        Safe from any thread, also while text is generated. Raises NotFoundError if no prompt has been run yet.
        """
        current = self.current
        end = current.generator.prompt_end
        if end is None:
            raise NotFoundError("no prompt has been run yet", hint="Ask something first")
        sampler = Sampler(settings, current.tokenizer.vocab_size)
        return tuple(
            SamplerStep(
                step.name,
                step.survivors,
                tuple(TokenChance(token, _token_text(token, current.tokenizer), chance) for token, chance in step.best),
            )
            for step in sampler.explain(end.logits, sampler.history(end.ids), show)
        )


def _split_begun(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], Message | None]:
    """The messages, and the answer at their end that is to be continued, if there is one."""
    if messages and messages[-1].role == "assistant" and messages[-1].content:
        return messages[:-1], messages[-1]
    return messages, None


def _ids_of(begun: Message, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens of an answer that was begun: its own, if they spell its text (the first space is not shown)."""
    ids = begun.token_ids
    if ids and tokenizer.decode(ids, continuation=True).lstrip() == begun.content.lstrip():
        return ids
    return tuple(tokenizer.encode(begun.content))


def _token_text(token: int, tokenizer: Tokenizer) -> str:
    """A token as people read it: its text, or the vocabulary's spelling of a control token."""
    if token in tokenizer.special_ids:
        return tokenizer.piece(token)
    return tokenizer.text_bytes(token).decode("utf-8", "replace")


def model_name(path: Path) -> str:
    """What people call a model: its directory's name, or owner/name for one in the Hugging Face cache."""
    path = path.absolute()
    if path.parent.name == "snapshots":
        return path.parents[1].name.removeprefix("models--").replace("--", "/")
    return path.name


def _ignore(event: Event) -> None:
    """Nobody asked to hear of progress."""


def _return_memory() -> None:
    """glibc keeps freed memory for itself; people who unload a model want to see it back."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
