"""A model service for tests and demos that speaks without torch, and a clock that stands still."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Sequence

from exl2_tui.core.events import (
    Event,
    Failed,
    FinishReason,
    GenerationFinished,
    LoadFinished,
    LoadProgress,
    MachineFound,
    ModeChoice,
    ModelInfo,
    ModelsListed,
    ModesListed,
    PrefillProgress,
    PromptPart,
    PromptPreview,
    PromptReady,
    SamplerPreview,
    SamplerStep,
    TokenChance,
    TokenDelta,
    Unloaded,
)
from exl2_tui.core.requests import ChatRequest, LoadOptions, Message, SamplerSettings

MODES = (
    ModeChoice("auto", "the model's own chat template"),
    ModeChoice("llama", "Llama 2 chat"),
    ModeChoice("chatml", "Qwen, Orca and many finetunes"),
    ModeChoice("llama3", "Llama 3 instruct"),
    ModeChoice("raw", "a plain log with names, for base models"),
)


MODELS = (
    ModelInfo("nano-chat", "/models/nano-chat", "built-in", "llama", "EXL2 4.00 bpw", 4.0, 9_300_000, 2048),
    ModelInfo("TinyLlama [1.1B]", "/models/tiny", "hub", "llama", "GPTQ 4-bit", 4.25, 700_000_000, 2048),
    ModelInfo("Qwen2.5-32B-Instruct", "/models/qwen", "directory", "qwen2", "fp16", 16.0, 65_500_000_000, 131_072),
    ModelInfo("broken\x1b[2J", "/models/broken", "directory", "", "", 0.0, 12, 0, problem="config.json is missing"),
)


WORDS = (
    (" the", 3.0),
    ("\n", 2.4),
    (" a", 2.1),
    ("[b]", 1.2),
    (" it\x1b[2J", 0.8),
    (" an", 0.1),
    ("é", -1.0),
    ("<s>", -2.0),
)


def sampler_steps(settings: SamplerSettings) -> tuple[SamplerStep, ...]:
    """What a few filters leave of WORDS: enough to see values move."""
    chances = {number: weight for number, (_, weight) in enumerate(WORDS)}

    def step(name: str, weights: dict[int, float]) -> SamplerStep:
        total = sum(math.exp(weight) for weight in weights.values())
        best = [TokenChance(number, WORDS[number][0], math.exp(weight) / total) for number, weight in weights.items()]
        return SamplerStep(name, len(weights), tuple(best))

    steps = [step("model", chances)]
    if settings.temperature == 0:
        return (*steps, step("greedy", {0: 0.0}))
    if settings.temperature != 1:
        chances = {number: weight / settings.temperature for number, weight in chances.items()}
        steps.append(step("temperature", chances))
    if settings.top_k:
        chances = dict(list(chances.items())[: settings.top_k])
        steps.append(step("top_k", chances))
    if settings.top_p < 1:
        mass = 0.0
        kept: dict[int, float] = {}
        for chance in step("", chances).best:
            if mass < settings.top_p:
                kept[chance.token] = chances[chance.token]
                mass += chance.probability
        chances = kept
        steps.append(step("top_p", chances))
    return tuple(steps)


class FakeClock:
    """Seconds that pass only when told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class FakeService:
    """Every call is recorded; answers are posted by the test (`say`, `finish`, ...), or by themselves with `auto`."""

    def __init__(self, post: Callable[[Event], None], *, auto: bool = False) -> None:
        self.post = post
        self.auto = auto
        self.loads: list[tuple[str, LoadOptions]] = []
        self.requests: list[ChatRequest] = []
        self.cancelled: list[int | None] = []
        self.previews: list[tuple[tuple[Message, ...], str, int]] = []
        self.sampler_previews: list[tuple[SamplerSettings, int]] = []
        self.closed = False
        self.scans = 0
        self._ids = itertools.count(1)
        self.load_id = -1
        self.request_id = -1

    # The face of Service

    def load(self, model: str, options: LoadOptions) -> int:
        self.loads.append((model, options))
        self.load_id = next(self._ids)
        if self.auto:
            self.loaded()
        return self.load_id

    def unload(self) -> None:
        self.post(Unloaded("nano-chat"))

    def generate(self, request: ChatRequest) -> int:
        self.requests.append(request)
        self.request_id = next(self._ids)
        return self.request_id

    def cancel(self, request_id: int | None = None) -> None:
        self.cancelled.append(request_id)

    def preview_prompt(
        self, messages: Sequence[Message], mode: str, token: int, *, user_name: str = "", bot_name: str = ""
    ) -> None:
        self.previews.append((tuple(messages), mode, token))
        parts = [PromptPart("<s>", True, "template")]
        for message in messages:
            parts.append(PromptPart("<|im_start|>", True, "template"))
            parts.append(PromptPart(f"{message.role}\n", False, "template"))
            parts.append(PromptPart(message.content, False, message.role))
            parts.append(PromptPart("<|im_end|>", True, "template"))
        used = "chatml" if mode == "auto" else mode
        self.post(PromptPreview(token, used, tuple(parts), 7 + 11 * len(messages), ("<|im_end|>",)))

    def preview_sampler(self, settings: SamplerSettings, token: int) -> None:
        self.sampler_previews.append((settings, token))
        if not self.requests:
            self.post(SamplerPreview(token, error="No prompt has been run yet. Ask something first"))
            return
        self.post(SamplerPreview(token, sampler_steps(settings)))

    def describe_machine(self) -> None:
        self.post(MachineFound("A Processor [x86]", 2, "AVX-512", 12_300_000_000, 45_600_000_000))

    def list_modes(self) -> None:
        self.post(ModesListed(MODES))

    def list_models(self) -> None:
        self.scans += 1
        self.post(ModelsListed(MODELS))

    def close(self, timeout: float) -> None:
        self.closed = True

    # What a test makes it say

    def progress(self, done: int, total: int = 24_000_000) -> None:
        self.post(LoadProgress("nano-chat", done, total, "model.layers.0"))

    def loaded(self, name: str = "nano-chat", context: int = 2048) -> None:
        self.post(
            LoadFinished(
                model=name,
                architecture="LlamaForCausalLM",
                format="EXL2 4.00 bpw",
                context=context,
                weight_bytes=9_300_000,
                cache_bytes=4_000_000,
                memory_bytes=13_300_000,
                seconds=0.4,
                device="cpu",
                kernels="avx2",
                path=f"/models/{name}",
            )
        )

    def fail_load(self, message: str, hint: str = "") -> None:
        self.post(Failed(message, hint, self.load_id))

    def ready(self, *, dropped: int = 0, note: str = "", tokens: int = 20, mode: str = "chatml") -> None:
        self.post(PromptReady(self.request_id, mode, tokens, 0, dropped, note))
        self.post(PrefillProgress(self.request_id, tokens, tokens))

    def say(self, text: str, tokens: int = 0) -> None:
        count = tokens or max(1, len(text.split()))
        self.post(TokenDelta(self.request_id, text, tuple(range(count))))

    def finish(self, reason: FinishReason = "stop_token", tokens: int = 42) -> None:
        self.post(
            GenerationFinished(
                request_id=self.request_id,
                reason=reason,
                prompt_tokens=20,
                cached_tokens=0,
                generated_tokens=tokens,
                prefill_seconds=0.1,
                decode_seconds=0.7,
                first_token_seconds=0.12,
                context_used=20 + tokens,
                context_size=2048,
                seed=1,
            )
        )

    def fail(self, message: str, hint: str = "") -> None:
        self.post(Failed(message, hint, self.request_id))


class TypingService(FakeService):
    """Answers by itself from a thread, at `speed` tokens per second. For the demo and the benchmarks.

    begun: what every answer begins with, all at once.
    """

    def __init__(
        self,
        post: Callable[[Event], None],
        answers: Sequence[str],
        *,
        speed: float = 60.0,
        join: float = 0.03,
        begun: str = "",
    ) -> None:
        super().__init__(post)
        self._begun = begun
        self._answers = itertools.cycle(answers)
        self._speed = speed
        self._join = join
        self._stop = threading.Event()

    def load(self, model: str, options: LoadOptions) -> int:
        number = super().load(model, options)
        self._stop.clear()
        threading.Thread(target=self._load, args=(model,), daemon=True).start()
        return number

    def generate(self, request: ChatRequest) -> int:
        number = super().generate(request)
        self._stop.clear()
        threading.Thread(target=self._answer, args=(number,), daemon=True).start()
        return number

    def cancel(self, request_id: int | None = None) -> None:
        super().cancel(request_id)
        self._stop.set()

    def _load(self, model: str) -> None:
        for step in range(1, 21):
            if self._stop.wait(0.05):
                self.post(Failed("Loading was cancelled", "", self.load_id))
                return
            self.progress(step * 1_200_000)
        self.loaded(model or "nano-chat-exl2-4.0", context=8192)

    def _answer(self, number: int) -> None:
        text = next(self._answers)
        words = [text[start : start + 4] for start in range(0, len(text), 4)]
        self.post(PromptReady(number, "chatml", 300, 100, 0, ""))
        for done in (100, 200, 300):
            self.post(PrefillProgress(number, done, 300))
            if self._stop.wait(0.1):
                break
        if self._begun:
            self.post(TokenDelta(number, self._begun, (0,)))
        size = max(1, round(self._speed * self._join))
        for start in range(0, len(words), size):
            if self._stop.wait(size / self._speed):
                self.finish("cancelled", start)
                return
            part = words[start : start + size]
            self.post(TokenDelta(number, "".join(part), tuple(range(len(part)))))
        self.finish("stop_token", len(words))
