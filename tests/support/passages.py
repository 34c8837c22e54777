"""What a generator writes with a model that writes passages itself, and token by token with the same model."""

from __future__ import annotations

from support.fake_model import FakeTokenizer

from exl2_tui.core.events import Event, GenerationFinished, TokenDelta
from exl2_tui.core.generation.generator import Generator
from exl2_tui.core.model.passage import WritesPassages
from exl2_tui.core.model.protocol import LanguageModel
from exl2_tui.core.requests import SamplerSettings

PROMPT = range(5, 60)
WHOLE = 100.0  # seconds: passages are as long as they can be


class Reader:
    """A model that has to be asked for every token."""

    def __init__(self, model: LanguageModel) -> None:
        self.config, self.device, self.weight_bytes, self.kernels = model.config, model.device, 0, ""
        self.new_cache, self.forward, self.close = model.new_cache, model.forward, model.close


def generator_of(model: LanguageModel, context: int = 200) -> Generator:
    return Generator(model, FakeTokenizer(), model.new_cache(context))


def what_counts(events: list[Event]) -> tuple[str, list[int], tuple[str, int, int]]:
    """Text, ids, and the end but for its times."""
    deltas = [event for event in events if isinstance(event, TokenDelta)]
    end = events[-1]
    assert isinstance(end, GenerationFinished)
    ids = [token for event in deltas for token in event.token_ids]
    return "".join(event.text for event in deltas), ids, (end.reason, end.generated_tokens, end.context_used)


def both(
    model: LanguageModel, settings: SamplerSettings, context: int = 200, **options: object
) -> tuple[str, list[int], tuple[str, int, int]]:
    """What is written, which has to be the same token by token; and that the cache is right afterwards."""
    assert isinstance(model, WritesPassages) and not isinstance(Reader(model), WritesPassages)
    found = []
    for kind in (model, Reader(model)):
        generator = generator_of(kind, context)
        first = what_counts([*generator.stream(PROMPT, settings, **{"max_new_tokens": 60, **options})])  # type: ignore[arg-type]
        again = what_counts([*generator.stream([*PROMPT, *first[1][:15], 7], settings, max_new_tokens=8)])
        found.append((first, again))
    assert found[0] == found[1]
    return found[0][0]


def check_where_they_end(model: LanguageModel, settings: SamplerSettings) -> None:
    """Passages have to be WHOLE."""
    text, ids, end = both(model, settings)
    assert end == ("length", 60, len(PROMPT) + 59)
    for count in (0, 1, 2, 17):
        assert both(model, settings, max_new_tokens=count)[2] == ("length", count, len(PROMPT) + max(0, count - 1))
    stop = next(token for token in reversed(ids[:40]) if token not in ids[:20])
    place = ids.index(stop)
    assert both(model, settings, stop_ids={stop, 299})[2] == ("stop_token", place + 1, len(PROMPT) + place)
    middle = FakeTokenizer().decode(ids[:30])
    assert text.startswith(middle[:-1])
    stopped = both(model, settings, stop_strings=[text[len(middle) - 8 : len(middle) - 3]])
    assert stopped[2][0] == "stop_string"
    full = both(model, settings, context=80)
    assert full[2] == ("context", 80 - len(PROMPT) + 1, 80)
    assert full[1] == ids[: len(full[1])]
