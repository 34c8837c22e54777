"""GGUF files for the comparison with llama.cpp: of random weights, of a model directory; and what they hold.

Writing and reading needs the package gguf; quantizing is llama.cpp's own, in the Python that has llama-cpp-python.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from exl2_tui.core.config import ModelConfig
from exl2_tui.core.model.layout import EMBEDDING, FINAL_NORM

QUANTIZE = """
import sys, llama_cpp
source, target, kind, threads = sys.argv[1:]
parameters = llama_cpp.llama_model_quantize_default_params()
parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
parameters.nthread = int(threads)
sys.exit(llama_cpp.llama_model_quantize(source.encode(), target.encode(), parameters))
"""
LAYER_MATRICES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
LAYER_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}

# A tensor by its name in a Hugging Face directory, of this shape.
TensorOf = Callable[[str, tuple[int, ...]], NDArray[np.generic]]


def random_tensors(seed: int = 0) -> TensorOf:
    numbers = np.random.default_rng(seed)

    def tensor(_: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
        if len(shape) == 1:
            return np.ones(shape, dtype=np.float32)
        return (numbers.standard_normal(shape, dtype=np.float32) * 0.02).astype(np.float16)

    return tensor


def write_gguf(path: Path, config: ModelConfig, tensor_of: TensorOf, context: int) -> Path:
    """A float16 file of a Llama model, one tensor in memory at a time."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_file_type(1)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([b"<unk>", b"<s>", b"</s>", *(f"t{i}".encode() for i in range(3, config.vocab_size))])
    writer.add_token_scores([0.0] * config.vocab_size)
    writer.add_token_types([2, 3, 3, *[1] * (config.vocab_size - 3)])
    shapes = tensor_shapes(config)
    for name, (_, shape) in shapes.items():
        dtype = np.dtype("float32" if len(shape) == 1 else "float16")
        writer.add_tensor_info(f"{name}.weight", shape, dtype, int(np.prod(shape)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, (ours, shape) in shapes.items():
        values = tensor_of(f"{ours}.weight", shape).astype("float32" if len(shape) == 1 else "float16", copy=False)
        count = heads.get(name.rsplit(".", 1)[-1])
        writer.write_tensor_data(values if count is None else interleaved(values, count))
    writer.close()
    return path


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """GGUF name -> (Hugging Face name, shape), in the order they are written; all without ".weight"."""
    hidden, ffn = config.hidden_size, config.intermediate_size
    sizes = {"attn_q": (config.query_size, hidden), "attn_output": (hidden, config.query_size)}
    sizes |= dict.fromkeys(("attn_k", "attn_v"), (config.kv_size, hidden))
    sizes |= dict.fromkeys(("ffn_gate", "ffn_up"), (ffn, hidden)) | {"ffn_down": (hidden, ffn)}
    found: dict[str, tuple[str, tuple[int, ...]]] = {
        "token_embd": (EMBEDDING.removesuffix(".weight"), (config.vocab_size, hidden)),
        "output_norm": (FINAL_NORM.removesuffix(".weight"), (hidden,)),
    }
    if not config.tie_word_embeddings:
        found["output"] = ("lm_head", (config.vocab_size, hidden))
    for layer in range(config.num_hidden_layers):
        for ours, theirs in LAYER_NORMS.items():
            found[f"blk.{layer}.{theirs}"] = (f"model.layers.{layer}.{ours}", (hidden,))
        for ours, theirs in LAYER_MATRICES.items():
            found[f"blk.{layer}.{theirs}"] = (f"model.layers.{layer}.{ours}", sizes[theirs])
    return found


def interleaved(weight: NDArray[np.generic], heads: int) -> NDArray[np.generic]:
    """Rows of q or k as llama.cpp's rope wants them: dimensions i and i + D/2 of a head side by side."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def quantize(python: str, source: Path, target: Path, kind: str, threads: int) -> Path:
    """kind as "Q4_K_M". A file that is there has been finished."""
    part = target.with_suffix(".part")
    done = subprocess.run(
        [python, "-c", QUANTIZE, str(source), str(part), kind, str(threads)], stderr=subprocess.PIPE, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"llama.cpp could not quantize {source} to {kind}:\n{done.stderr.decode()[-2000:]}")
    return part.rename(target)


def read_bytes(path: Path) -> tuple[int, int]:
    """Stored bytes of the decoder's matrices and of the head, all of which one token reads."""
    layers, heads = 0, {}
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2:
            layers += int(tensor.n_bytes)
        elif tensor.name in ("output.weight", "token_embd.weight"):
            heads[tensor.name] = int(tensor.n_bytes)
    return layers, heads.get("output.weight", heads["token_embd.weight"])
