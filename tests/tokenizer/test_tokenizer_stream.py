"""Streaming gives the same text as decoding at once, in whole characters, at a cost that does not grow."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import KINDS
from tokenizer_strings import strings

from exl2_tui.core.tokenizer import StreamDecoder, Tokenizer

REPLACEMENT = "\ufffd"
PRINTABLE = [text for text in strings(1500) if REPLACEMENT not in text and "▁" not in text]


@pytest.fixture(params=[*KINDS, "sentencepiece"])
def tokenizer(
    request: pytest.FixtureRequest, tokenizer_dir: Callable[[str], Path], spm_dir: Callable[..., Path]
) -> Tokenizer:
    kind = request.param
    return Tokenizer.load(spm_dir(prefix=True) if kind == "sentencepiece" else tokenizer_dir(kind))


def pushed(tokenizer: Tokenizer, ids: list[int], *, skip_special: bool = True, continuation: bool = False) -> list[str]:
    stream = tokenizer.stream(skip_special, continuation=continuation)
    return [stream.push(token_id) for token_id in ids] + [stream.flush()]


def test_texts_come_back_and_no_half_character_is_shown(tokenizer: Tokenizer) -> None:
    unknown = tokenizer.token_id("<unk>")
    checked = 0
    for text in PRINTABLE:
        ids = tokenizer.encode(text)
        if unknown in ids:
            continue
        checked += 1
        shown = pushed(tokenizer, ids)
        assert REPLACEMENT not in "".join(shown)
        assert "".join(shown) == tokenizer.decode(ids)
    assert checked > 100


@pytest.mark.parametrize("kind", ["llama3", "gemma"])
def test_round_trip_is_exact_without_a_dummy_space(tokenizer_dir: Callable[[str], Path], kind: str) -> None:
    tokenizer = Tokenizer.load(tokenizer_dir(kind))
    for text in PRINTABLE:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_random_ids_stream_as_they_decode(tokenizer: Tokenizer) -> None:
    rng = random.Random(5)
    for _ in range(300):
        ids = [rng.randrange(-2, tokenizer.vocab_size + 3) for _ in range(rng.randrange(40))]
        for skip in (True, False):
            assert "".join(pushed(tokenizer, ids, skip_special=skip)) == tokenizer.decode(ids, skip_special=skip)
        data = b"".join(tokenizer.text_bytes(i) for i in ids if i not in tokenizer.special_ids)
        whole = tokenizer.decode(ids, continuation=True)
        assert whole == data.decode("utf-8", "replace")


def test_decode_equals_transformers(tokenizer_dir: Callable[[str], Path]) -> None:
    from transformers import PreTrainedTokenizerFast

    for kind in ("llama3", "qwen", "llama_legacy", "llama_first", "gemma", "phi3"):
        path = tokenizer_dir(kind)
        reference = PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
        tokenizer = Tokenizer.load(path)
        for text in PRINTABLE[:400]:
            ids = tokenizer.encode(text)
            assert tokenizer.decode(ids) == reference.decode(ids, clean_up_tokenization_spaces=False), (kind, text)


@given(st.lists(st.binary(min_size=0, max_size=5), max_size=30), st.integers(0, 2))
@settings(max_examples=300, deadline=None)
def test_any_bytes_in_any_cuts(chunks: list[bytes], leading: int) -> None:
    """Whatever bytes tokens stand for, the stream equals decoding them joined, and only broken bytes are replaced."""
    stream = StreamDecoder(lambda i: chunks[i], frozenset(), leading)
    text = "".join([stream.push(i) for i in range(len(chunks))]) + stream.flush()
    data = b"".join(chunks)
    spaces = min(leading, len(data) - len(data.lstrip(b" ")))
    assert text == data[spaces:].decode("utf-8", "replace")


def test_a_character_appears_with_its_last_byte() -> None:
    data = "a👩‍👩‍👧é한".encode()
    stream = StreamDecoder(lambda i: data[i : i + 1], frozenset(), 0)
    shown = [stream.push(i) for i in range(len(data))]
    assert [part for part in shown if part] == list("a👩‍👩‍👧é한")
    assert stream.flush() == ""


def test_broken_bytes_are_replaced_at_the_end_only() -> None:
    data = "🙂".encode()[:3]
    stream = StreamDecoder(lambda i: data[i : i + 1], frozenset(), 0)
    assert [stream.push(i) for i in range(3)] == ["", "", ""]
    assert stream.flush() == REPLACEMENT


def test_space_before_the_first_word(spm_dir: Callable[..., Path]) -> None:
    tokenizer = Tokenizer.load(spm_dir(prefix=True))
    ids = tokenizer.encode("The fox")
    assert tokenizer.piece(ids[0]).startswith("▁")
    assert tokenizer.decode(ids) == "The fox"
    assert tokenizer.decode(ids, continuation=True) == " The fox"
    assert "".join(pushed(tokenizer, ids, continuation=True)) == " The fox"


def test_special_tokens_are_skipped_or_spelled(tokenizer_dir: Callable[[str], Path]) -> None:
    tokenizer = Tokenizer.load(tokenizer_dir("qwen"))
    ids = tokenizer.encode("<|im_start|>user\nHi <think>é<|im_end|>", special=True)
    assert tokenizer.decode(ids) == "user\nHi <think>é"
    assert tokenizer.decode(ids, skip_special=False) == "<|im_start|>user\nHi <think>é<|im_end|>"


def test_cost_is_linear(tokenizer_dir: Callable[[str], Path]) -> None:
    tokenizer = Tokenizer.load(tokenizer_dir("llama3"))
    ids = tokenizer.encode("🙂 Größe and some words " * 4000)

    def seconds(count: int) -> float:
        stream = tokenizer.stream()
        start = time.thread_time()
        for token_id in ids[:count]:
            stream.push(token_id)
        return time.thread_time() - start

    seconds(2000)
    short, long = min(seconds(4000) for _ in range(3)), min(seconds(40000) for _ in range(3))
    assert len(ids) >= 40000
    assert long < 40 * short  # ten times the tokens; quadratic cost would be a hundredfold
