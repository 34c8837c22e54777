"""tokenizer.json, checked before library `tokenizers` sees it.

The library trusts its files: some broken ones make its native code abort the whole process instead of raising. So the
vocabulary and the merges are checked here, and everything that no language model uses is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from exl2_tui.core.errors import TokenizerError
from exl2_tui.core.tokenizer.backend import MAX_VOCAB
from exl2_tui.core.tokenizer.files import MAX_ADDED, MAX_TOKENIZER_BYTES, read_bytes

MAX_MERGES = 4 * MAX_VOCAB


def read_tokenizer_json(path: Path) -> str:
    """The file's text; raises TokenizerError if it is not a BPE or Unigram tokenizer in good order."""
    data = read_bytes(path, MAX_TOKENIZER_BYTES)
    try:
        text = data.decode()
        content = json.loads(text)
        _check(content)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(
            f"not a usable tokenizer: {str(error)[:200]}",
            file=path,
            hint="Fetch the file again, or remove it to use tokenizer.model if there is one",
        ) from error
    return text


def _check(content: Any) -> None:
    """Raises ValueError that says what is wrong."""
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError("it has no model section")
    model = content["model"]
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind == "BPE":
        _check_bpe(model)
    elif kind == "Unigram":
        _check_unigram(model)
    else:
        raise ValueError(f"its algorithm is {str(kind)[:50]!r}, expected BPE or Unigram")
    added = content.get("added_tokens", [])
    if not isinstance(added, list) or len(added) > MAX_ADDED:
        raise ValueError(f"expected at most {MAX_ADDED} added tokens")
    for token in added:
        if not isinstance(token, dict) or not _is_id(token.get("id")) or not isinstance(token.get("content"), str):
            raise ValueError("an added token has no id or no content")


def _check_bpe(model: dict[str, Any]) -> None:
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise ValueError(f"it uses {name}, which no language model does")
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, dict) or not isinstance(merges, list) or len(merges) > MAX_MERGES:
        raise ValueError("its vocabulary or its merges are missing")
    if not all(map(_is_id, vocabulary.values())):
        raise ValueError(f"its ids are not numbers from 0 to {MAX_VOCAB - 1}")
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise ValueError("a merge is not a pair")
        if pair[0] not in vocabulary or pair[1] not in vocabulary or pair[0] + pair[1] not in vocabulary:
            raise ValueError(f"the merge {str(pair)[:60]} is not in the vocabulary")


def _check_unigram(model: dict[str, Any]) -> None:
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, list) or not 0 < len(vocabulary) <= MAX_VOCAB:
        raise ValueError("its vocabulary is missing")
    for entry in vocabulary:
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
            raise ValueError("an entry of its vocabulary is not a piece with a score")
        if not isinstance(entry[1], float | int) or not -1e30 < entry[1] < 1e30:
            raise ValueError("a score in its vocabulary is not a number")


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < MAX_VOCAB
