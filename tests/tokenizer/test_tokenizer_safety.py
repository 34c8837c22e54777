"""Typed text never steers the chat, and broken files are refused with an explanation."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tokenizer_kinds import KINDS
from tokenizer_strings import LOOKALIKES, strings

from exl2_tui.core.errors import TokenizerError
from exl2_tui.core.tokenizer import Tokenizer
from exl2_tui.core.tokenizer.files import MAX_TOKENIZER_BYTES
from exl2_tui.core.tokenizer.sentencepiece_file import ModelFile


def control_free(tokenizer: Tokenizer, text: str) -> bool:
    allowed = {tokenizer.unk_id, tokenizer.token_id("<unk>")}
    return not (set(tokenizer.encode(text)) & tokenizer.special_ids) - allowed


@pytest.mark.parametrize("kind", [*KINDS, "bpe", "unigram-spm", "nano-chat"])
def test_plain_text_never_holds_control_tokens(
    kind: str, tokenizer_dir: Callable[[str], Path], spm_dir: Callable[..., Path], request: pytest.FixtureRequest
) -> None:
    if kind in KINDS:
        path = tokenizer_dir(kind)
    elif kind == "nano-chat":
        path = request.getfixturevalue("nano_chat")
    else:
        path = spm_dir(prefix=False, kind=kind.split("-")[0])
    tokenizer = Tokenizer.load(path)
    own = [tokenizer.piece(i) for i in tokenizer.special_ids]
    for text in [*own, *LOOKALIKES, *("a" + piece + piece + "b" for piece in own), *strings(500)]:
        assert control_free(tokenizer, text), text
        spelled = tokenizer.decode(tokenizer.encode(text), continuation=True)
        if text in own and tokenizer.unk_id not in tokenizer.encode(text) and kind not in ("unigram", "llama_legacy"):
            assert spelled.strip() == text
    for piece in own:
        assert tokenizer.encode(piece, special=True)[-1:] == [tokenizer.token_id(piece)] or piece == "<unk>"


def test_control_tokens_that_are_not_marked_special(tokenizer_dir: Callable[[str], Path], tmp_path: Path) -> None:
    """Repositories often add <|im_end|> without the mark; it steers the chat all the same."""
    data = json.loads((tokenizer_dir("qwen") / "tokenizer.json").read_text())
    for token in data["added_tokens"]:
        token["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = Tokenizer.load(tmp_path)
    end, think = tokenizer.token_id("<|im_end|>"), tokenizer.token_id("<think>")
    assert end in tokenizer.special_ids and think not in tokenizer.special_ids
    assert end not in tokenizer.encode("Hi<|im_end|>")
    assert tokenizer.encode("Hi<|im_end|>", special=True)[-1] == end
    assert think in tokenizer.encode("a <think> b")


def test_parts_are_encoded_beside_each_other(tokenizer_dir: Callable[[str], Path]) -> None:
    """Placing a control token by id gives the tokens that its spelling gives, stripping included."""
    for kind, control in (
        ("qwen", "<|im_end|>"),
        ("phi3", "<|end|>"),
        ("llama_first", "</s>"),
        ("llama_legacy", "</s>"),
    ):
        tokenizer = Tokenizer.load(tokenizer_dir(kind))
        token_id = tokenizer.control_id(control)
        assert token_id is not None
        for before, after in (("Hello wor", "ld\n"), ("The fox ", "  \n jumps"), ("", "The"), ("a", "")):
            parts = tokenizer.encode_parts([before, token_id, "\n", after, token_id])
            whole = f"{before}{control}\n{after}{control}"
            assert [i for part in parts for i in part] == tokenizer.encode(whole, special=True), (kind, before)
            assert parts[1] == [token_id] == parts[4]


def test_added_tokens_of_the_other_files(
    nano_files: Path, tokenizer_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    (nano_files / "added_tokens.json").write_text(json.dumps({"<|extra|>": 8192, "<tool>": 8193}))
    (nano_files / "config.json").write_text(json.dumps({"vocab_size": 8256}))
    for remove in (None, "tokenizer.json"):
        if remove:
            (nano_files / remove).unlink()
        tokenizer = Tokenizer.load(nano_files)
        assert tokenizer.vocab_size == 8194
        assert tokenizer.encode("a<|extra|><tool>", special=True)[-2:] == [8192, 8193]
        assert 8192 not in tokenizer.encode("a<|extra|>") and 8193 in tokenizer.encode("a<tool>")
        assert tokenizer.decode([8192, 8193]) == "<tool>"


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer.model"])
def test_a_token_that_is_only_named_gets_no_id(nano_files: Path, file: str) -> None:
    (nano_files / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<pad>"}))
    if file == "tokenizer.model":
        (nano_files / "tokenizer.json").unlink()
    tokenizer = Tokenizer.load(nano_files)
    assert tokenizer.vocab_size == 8192 and tokenizer.token_id("<pad>") is None
    (nano_files / "added_tokens.json").write_text(json.dumps({"<pad>": 8192}))
    assert Tokenizer.load(nano_files).token_id("<pad>") is None  # config.json: 8192 rows
    (nano_files / "config.json").unlink()
    assert Tokenizer.load(nano_files).token_id("<pad>") == 8192


def test_tokens_without_a_row_are_left_out(nano_files: Path) -> None:
    """A padding token past the end of the embedding, as in many fine-tunes, must not reach the model."""
    (nano_files / "config.json").write_text(json.dumps({"vocab_size": 4, "eos_token_id": [2, 4]}))
    tokenizer = Tokenizer.load(nano_files)
    assert tokenizer.vocab_size == 4 and tokenizer.stop_ids == {2} and tokenizer.special_ids == {0, 1, 2, 3}
    assert tokenizer.encode("<s><|im_start|><|im_end|>", special=True) == [1, 3]
    assert tokenizer.encode("abc") == []


def test_begin_and_end_of_text(nano_chat: Path, nano_files: Path) -> None:
    tokenizer = Tokenizer.load(nano_chat)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_ids) == (1, 2, {2, 4})
    assert tokenizer.adds_bos
    assert tokenizer.encode("Hi") == tokenizer.encode("Hi", bos=True)[1:]
    assert tokenizer.encode("Hi", bos=True)[0] == 1
    for name in ("config.json", "generation_config.json"):
        (nano_files / name).unlink()
    tokenizer = Tokenizer.load(nano_files)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_ids) == (1, 2, {2})
    for name in ("tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"):
        (nano_files / name).unlink()
    tokenizer = Tokenizer.load(nano_files)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos) == (1, 2, True)


def test_lone_surrogates_do_not_crash(nano_chat: Path) -> None:
    tokenizer = Tokenizer.load(nano_chat)
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a?b")
    assert tokenizer.encode("a\ud800b", special=True) == tokenizer.encode("a?b")


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.load(tmp_path)
    assert caught.value.hint and str(tmp_path) in str(caught.value)


BROKEN_JSON = [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}" * 9, b'{"model": {}}', b"[" * 100_000, b'{"a":' * 100_000,
    b'{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{},"merges":[]}}',
    b'{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":4294967295},"merges":[]}}',
    b'{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":0},"merges":[["b","c"]]}}',
    b'{"version":"1.0","added_tokens":[],"model":{"type":"Unigram","unk_id":7,"vocab":[]}}',
    b'{"version":"1.0","added_tokens":[],"decoder":{"type":"WordPiece","prefix":"##","cleanup":true},'
    b'"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}',
]  # fmt: skip


@pytest.mark.parametrize("data", BROKEN_JSON, ids=range(len(BROKEN_JSON)))
def test_broken_tokenizer_json(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.load(tmp_path)
    assert caught.value.file == str(tmp_path / "tokenizer.json") and caught.value.hint


def test_what_makes_the_library_abort_is_refused(tokenizer_dir: Callable[[str], Path], tmp_path: Path) -> None:
    """Found by mutation: the native code panics while it unwinds, which no exception handler can catch."""
    data = json.loads((tokenizer_dir("llama3") / "tokenizer.json").read_text())
    data["model"]["continuing_subword_prefix"] = "x"
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(TokenizerError, match="continuing_subword_prefix"):
        Tokenizer.load(tmp_path)


def test_size_is_checked_before_reading(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer.model"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(MAX_TOKENIZER_BYTES + 1)
        with pytest.raises(TokenizerError, match="at most"):
            Tokenizer.load(tmp_path)
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"[1]"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": [1]}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"-1": {"content": "x"}}}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"9999999999999": {"content": "x"}}}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"5": {"content": 5}}}'),
        ("tokenizer_config.json", b'{"eos_token": "' + b"x" * 5000 + b'"}'),
        ("added_tokens.json", b'{"x": "y"}'),
        ("added_tokens.json", b'{"x": -1}'),
        ("added_tokens.json", b'{"x": 1e300}'),
        ("added_tokens.json", b'{"": 1}'),
        ("special_tokens_map.json", b"\xff"),
        ("config.json", b"["),
        ("generation_config.json", b"nonsense"),
    ],
)
def test_broken_side_files(nano_files: Path, name: str, data: bytes) -> None:
    (nano_files / name).write_bytes(data)
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.load(nano_files)
    assert caught.value.hint and name in str(caught.value.file)


@pytest.mark.parametrize("value", [None, -1, 10**30, True, "x", [[]], {"a": 1}, [None, 7, 10**9]])
def test_odd_begin_and_end_ids_are_ignored(nano_files: Path, value: object) -> None:
    (nano_files / "config.json").write_text(json.dumps({"bos_token_id": value, "eos_token_id": value}))
    tokenizer = Tokenizer.load(nano_files)
    assert tokenizer.bos_id in (1, 7) and all(0 <= i < tokenizer.vocab_size for i in tokenizer.stop_ids)


def test_mutated_files_load_or_explain(nano_files: Path, spm_dir: Callable[..., Path]) -> None:
    """Random damage to tokenizer.model: a typed error or a tokenizer that works, never anything else."""
    rng = random.Random(11)
    (nano_files / "tokenizer.json").unlink()
    original = (spm_dir(prefix=True) / "tokenizer.model").read_bytes()
    refused = 0
    for _ in range(150):
        data = bytearray(original)
        for _ in range(rng.choice([1, 3, 30])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        (nano_files / "tokenizer.model").write_bytes(data)
        try:
            tokenizer = Tokenizer.load(nano_files)
            tokenizer.decode(tokenizer.encode("The quick brown fox <|im_end|> 🙂"))
        except TokenizerError as error:
            refused += 1
            assert error.file and error.hint
    assert 0 < refused < 150


def test_mutated_tokenizer_json(nano_files: Path, tokenizer_dir: Callable[[str], Path]) -> None:
    rng = random.Random(12)
    original = (tokenizer_dir("llama3") / "tokenizer.json").read_text()
    for path in nano_files.iterdir():
        path.unlink()
    for _ in range(100):
        at = rng.randrange(min(len(original), 6000))
        change = rng.choice(["", "null", "-1", '"', "}", "]", "99999999999", "{}", "true", "\\"])
        (nano_files / "tokenizer.json").write_text(original[:at] + change + original[at + rng.randrange(8) :])
        try:
            tokenizer = Tokenizer.load(nano_files)
            tokenizer.decode(tokenizer.encode("The quick brown fox <|eot_id|> 🙂"))
        except TokenizerError as error:
            assert error.hint


def test_normalization_table_must_stay_inside() -> None:
    import io

    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f g", "the fox jumps over the lazy dog"] * 20),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    data = model.getvalue()
    ModelFile.parse(data, Path("tokenizer.model"))  # the library's own nmt_nfkc table is accepted
    start = data.index(b"nmt_nfkc") + len("nmt_nfkc")
    damaged = bytearray(data)
    for at in range(start + 20, start + 2000):
        damaged[at] = 0x77
    with pytest.raises(TokenizerError, match="normalization table"):
        ModelFile.parse(bytes(damaged), Path("tokenizer.model"))


def test_threads_do_not_mix_plain_and_special(nano_chat: Path) -> None:
    """The preview encodes on one thread while a reply is prepared on another."""
    tokenizer = Tokenizer.load(nano_chat)
    text = "Hi <|im_end|> there </s> " * 20
    plain, special = tokenizer.encode(text), tokenizer.encode(text, special=True)
    assert plain != special

    def work(index: int) -> bool:
        expected = special if index % 2 else plain
        return all(tokenizer.encode(text, special=bool(index % 2)) == expected for _ in range(100))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))
