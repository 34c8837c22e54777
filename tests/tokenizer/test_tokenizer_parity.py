"""The same ids as transformers on many strings, for every kind of tokenizer file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizer_kinds import KINDS
from tokenizer_strings import strings

from exl2_tui.core.tokenizer import Tokenizer

STRINGS = strings(10_000)


def assert_same(texts: Sequence[str], ours: list[list[int]], theirs: list[list[int]]) -> None:
    wrong = [(text, a, b) for text, a, b in zip(texts, ours, theirs, strict=True) if a != b]
    assert not wrong, f"{len(wrong)} of {len(texts)} differ, first: {wrong[0]}"


def assert_parity(tokenizer: Tokenizer, reference: Any, texts: Sequence[str], *, plain: bool = True) -> None:
    special = reference(list(texts), add_special_tokens=False)["input_ids"]
    assert_same(texts, [tokenizer.encode(text, special=True) for text in texts], special)
    if plain:
        split = reference(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert_same(texts, [tokenizer.encode(text) for text in texts], split)


@pytest.mark.parametrize("model", ["nano-chat", "small-chat", "nano-chat-exl2-4.0"])
def test_shared_tokenizer_json(shared: Path, model: str) -> None:
    from transformers import PreTrainedTokenizerFast

    path = shared / "models" / model
    count = len(STRINGS) if model == "nano-chat" else 500  # the files are equal
    assert_parity(Tokenizer.load(path), PreTrainedTokenizerFast.from_pretrained(path), STRINGS[:count])


def test_shared_tokenizer_model(nano_files: Path) -> None:
    from transformers import LlamaTokenizer

    (nano_files / "tokenizer.json").unlink()
    assert_parity(Tokenizer.load(nano_files), LlamaTokenizer.from_pretrained(nano_files), STRINGS)


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizer_json_kinds(tokenizer_dir: Callable[[str], Path], kind: str) -> None:
    from transformers import PreTrainedTokenizerFast

    path = tokenizer_dir(kind)
    reference = PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
    # Plain text of the unigram kind differs on purpose: the library finds </s> in the ordinary vocabulary.
    assert_parity(Tokenizer.load(path), reference, STRINGS[:3000], plain=kind != "unigram")


@pytest.mark.parametrize("prefix", [False, True])
def test_sentencepiece_kinds(spm_dir: Callable[..., Path], prefix: bool) -> None:
    from transformers import LlamaTokenizer

    path = spm_dir(prefix=prefix)
    # transformers puts no dummy space before a text that begins with a space or an added token; SentencePiece, the
    # original, does.
    texts = [text for text in STRINGS[:3000] if not (prefix and text.startswith((" ", "▁", "fox")))]
    tokenizer = Tokenizer.load(path)
    special = LlamaTokenizer.from_pretrained(path)(texts, add_special_tokens=False)["input_ids"]
    assert_same(texts, [tokenizer.encode(text, special=True) for text in texts], special)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("prefix", [False, True])
def test_sentencepiece_equals_the_library(spm_dir: Callable[..., Path], prefix: bool, kind: str) -> None:
    from sentencepiece import SentencePieceProcessor

    path = spm_dir(prefix=prefix, kind=kind)
    library = SentencePieceProcessor(model_file=str(path / "tokenizer.model"))
    texts = [text for text in STRINGS[:4000] if "<|im_" not in text]
    tokenizer = Tokenizer.load(path)
    assert_same(texts, [tokenizer.encode(text) for text in texts], library.encode(texts))
    ids = library.encode(texts)
    assert [tokenizer.decode(row) for row in ids] == [text.replace("▁", " ") for text in texts]


def test_legacy_prefix_stands_before_every_text(spm_dir: Callable[..., Path]) -> None:
    first = Tokenizer.load(spm_dir(prefix=True))
    every = Tokenizer.load(spm_dir(prefix=True, legacy=True))
    end = first.token_id("</s>")
    assert end is not None
    pieces = [first.piece(i) for i in first.encode("The</s>The", special=True)]
    assert pieces.count("▁The") == 1
    pieces = [every.piece(i) for i in every.encode("The</s>The", special=True)]
    assert pieces.count("▁The") == 2
