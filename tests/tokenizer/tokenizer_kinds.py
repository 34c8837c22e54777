"""Small tokenizers of every kind in use, trained here."""

from __future__ import annotations

import json
from collections.abc import Callable

from tokenizer_strings import strings
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

LLAMA3_SPLIT = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TRAINING = [text for text in strings(3000, seed=7) if not any(c in text for c in "<[|")]


def _special(*texts: str, **flags: bool) -> list[AddedToken]:
    return [AddedToken(text, normalized=False, special=True, **flags) for text in texts]


def llama3() -> Tokenizer:
    """Byte-level BPE with a regex split; control tokens behind the vocabulary."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TRAINING, trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(
        _special("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    )
    return tokenizer


def qwen() -> Tokenizer:
    """As llama3 with NFC and visible added tokens."""
    tokenizer = llama3()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(_special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in ("<think>", "</think>")])
    return tokenizer


def gpt2() -> Tokenizer:
    """The original byte-level split, with a prefix space and an added token that goes through normalization."""
    tokenizer = llama3()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.add_tokens([AddedToken("fox jumps", normalized=True), AddedToken("dog", single_word=True)])
    return tokenizer


def _fallback_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        limit_alphabet=200,
        special_tokens=["<unk>", "<s>", "</s>", *BYTES],
        show_progress=False,
        max_token_length=12,
    )
    tokenizer.train_from_iterator([word for text in TRAINING for word in text.split(" ")], trainer)
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = data["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def llama_legacy() -> Tokenizer:
    """Llama 2 as first converted: the dummy space stands before every stretch of text."""
    tokenizer = _fallback_bpe()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def llama_first() -> Tokenizer:
    """Llama 2 as converted later: the dummy space stands at the start only."""
    tokenizer = _fallback_bpe()
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    return tokenizer


def gemma() -> Tokenizer:
    """No dummy space; runs of spaces and newlines are added tokens."""
    tokenizer = _fallback_bpe()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(_special("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"))
    runs = ["▁▁", "▁▁▁", "\n\n", "\n\n\n", "\t\t", "<table>"]
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in runs])
    return tokenizer


def phi3() -> Tokenizer:
    """Control tokens that swallow the whitespace after them."""
    tokenizer = llama_legacy()
    tokenizer.add_special_tokens(_special("<|user|>", "<|assistant|>", "<|end|>", "<|system|>", rstrip=True))
    tokenizer.add_special_tokens(_special("<|endoftext|>"))
    return tokenizer


def unigram() -> Tokenizer:
    """Unigram whose ordinary vocabulary contains the control tokens."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=600, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([text for text in TRAINING if text.isascii()], trainer)
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    f.__name__: f for f in (llama3, qwen, gpt2, llama_legacy, llama_first, gemma, phi3, unigram)
}
