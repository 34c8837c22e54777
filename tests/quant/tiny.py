"""A tiny random Llama directory for conversion tests, with a tokenizer of single bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders, models, pre_tokenizers

from exl2_tui.core.checkpoint import write_file

LAYERS, HIDDEN, FFN, VOCAB, HEADS, KV_HEADS = 2, 64, 96, 300, 4, 2


def write_tokenizer(target: Path) -> None:
    """Byte-level BPE without merges: ids 0..2 are special, then one per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{letter: 3 + i for i, letter in enumerate(alphabet)}}
    tokenizer = HfTokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(target / "tokenizer.json"))
    side = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (target / "tokenizer_config.json").write_text(json.dumps(side))


def make_tiny(
    target: Path,
    *,
    tied: bool = True,
    hidden: int = HIDDEN,
    ffn: int = FFN,
    vocab: int = VOCAB,
    layers: int = LAYERS,
    change: Callable[[dict[str, torch.Tensor]], None] | None = None,
) -> Path:
    """change: may alter the tensors, named as in the file, before they are written."""
    target.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(7)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) / columns**0.5).half()

    tensors = {"model.embed_tokens.weight": matrix(vocab, hidden) * 4, "model.norm.weight": torch.ones(hidden).half()}
    kv = hidden // HEADS * KV_HEADS
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (ffn, hidden),
            "mlp.up_proj": (ffn, hidden),
            "mlp.down_proj": (hidden, ffn),
        }
        tensors.update({f"{prefix}.{name}.weight": matrix(*shape) for name, shape in shapes.items()})
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = torch.ones(hidden).half()
    if not tied:
        tensors["lm_head.weight"] = matrix(vocab, hidden)
    if change is not None:
        change(tensors)
    write_file(target / "model.safetensors", tensors)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": vocab,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (target / "config.json").write_text(json.dumps(config))
    write_tokenizer(target)
    return target
