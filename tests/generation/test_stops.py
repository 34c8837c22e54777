"""Stop strings over arbitrary token boundaries, and which tokens stand for the text shown."""

from __future__ import annotations

import random

import pytest
from support.fake_model import FakeTokenizer

from exl2_tui.core.generation.stops import StopStrings
from exl2_tui.core.generation.text import TextStream


def run(strings: list[str], pieces: list[str]) -> tuple[str, bool]:
    stops = StopStrings(strings)
    shown = ""
    for piece in pieces:
        text, stopped = stops.push(piece)
        shown += text
        if stopped:
            return shown, True
    return shown + stops.flush(), False


def cut(text: str, rng: random.Random) -> list[str]:
    pieces = []
    while text:
        size = rng.randint(1, 4)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def test_any_split_gives_the_text_before_the_first_stop() -> None:
    rng = random.Random(0)
    for _ in range(3000):
        text = "".join(rng.choices("ab#\n", k=rng.randint(0, 14)))
        strings = ["".join(rng.choices("ab#\n", k=rng.randint(1, 3))) for _ in range(rng.randint(0, 3))]
        pieces = cut(text, rng)
        shown, stopped = run(strings, pieces)
        assert stopped == any(stop in text for stop in strings)
        assert text.startswith(shown)
        assert not any(stop in shown for stop in strings)
        if not stopped:
            assert shown == text
        else:
            # The stop that is complete first ends the text: later characters may not have been looked at.
            seen = min(k for k in range(len(text) + 1) if any(s in text[:k] for s in strings))
            assert len(shown) <= min(text[:seen].find(s) for s in strings if s in text[:seen])


def test_text_is_held_only_while_it_can_become_a_stop() -> None:
    stops = StopStrings(["User:"])
    assert stops.push("Hello U") == ("Hello ", False)
    assert stops.push("ni") == ("Uni", False)
    assert stops.push(" Us") == (" ", False)
    assert stops.push("er") == ("", False)
    assert stops.flush() == "User"


def test_empty_stop_strings_do_not_count() -> None:
    assert run(["", "x"], ["ab"]) == ("ab", False)


def feed(stream: TextStream, ids: list[int]) -> tuple[str, list[int]]:
    text, tokens = "", []
    for token in ids:
        shown, done = stream.push(token)
        text += shown
        tokens += done
        if stream.stopped:
            break
    shown, done = stream.finish(cut=True)
    return text + shown, tokens + list(done)


@pytest.mark.parametrize("stop", ["User:", "\nUser:", "ello", "w", "\n\n", "é", "é!", "never"])
def test_tokens_always_spell_the_text(stop: str) -> None:
    tokenizer = FakeTokenizer()
    ids = tokenizer.encode("hello world é! yes.\nUser: no\n\nend")
    text, tokens = feed(TextStream(tokenizer, [stop]), ids)
    whole = tokenizer.decode(ids)
    assert text == whole.split(stop)[0]
    assert tokenizer.decode(tokens) == text


def test_a_stop_inside_a_token_that_was_partly_shown_before() -> None:
    tokenizer = FakeTokenizer()
    stream = TextStream(tokenizer, ["d!"])
    ids = tokenizer.encode(" world!")
    assert stream.push(ids[0]) == (" worl", ())
    assert stream.push(ids[1]) == ("", tuple(tokenizer.encode(" worl")))
    assert stream.stopped
    assert stream.finish(cut=True) == ("", ())


def test_half_a_character_is_held_and_dropped_when_cut() -> None:
    tokenizer = FakeTokenizer()
    first, second = tokenizer.encode("é")
    stream = TextStream(tokenizer, [])
    assert stream.push(first) == ("", ())
    assert stream.push(second) == ("é", (first, second))
    assert stream.push(first) == ("", ())
    assert stream.finish(cut=True) == ("", ())

    stream = TextStream(tokenizer, [])
    stream.push(first)
    assert stream.finish(cut=False) == ("�", (first,))


def test_strip_hides_leading_whitespace_but_keeps_its_tokens() -> None:
    tokenizer = FakeTokenizer()
    ids = tokenizer.encode(" \n  hello you ")
    text, tokens = feed(TextStream(tokenizer, [], strip=True), ids)
    assert text == "hello you "
    assert tokens == ids


def test_control_tokens_are_not_shown() -> None:
    tokenizer = FakeTokenizer()
    stream = TextStream(tokenizer, [])
    ids = [*tokenizer.encode("a"), 3, *tokenizer.encode("b")]
    text, tokens = feed(stream, ids)
    assert (text, tokens) == ("ab", ids)
