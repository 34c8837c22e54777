"""Makes GPTQ model directories for tests, independently of the package.

Written from spec/gptq-format.md alone, with numpy and a bit array, and shares no code with core/formats: what both
agree on, they agree on for the right reason. Quantizes by rounding to nearest: its quality is not the point.
"""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import numpy as np

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def pack_stream(codes: np.ndarray, bits: int) -> np.ndarray:
    """codes (n, streams) -> uint32 words (n*bits/32, streams), each column one little-endian bit stream."""
    count, streams = codes.shape
    bit_array = (codes.astype(np.uint32)[:, None, :] >> np.arange(bits, dtype=np.uint32)[None, :, None]) & 1
    columns = bit_array.reshape(count * bits, streams).T.astype(np.uint8)
    packed = np.packbits(columns, axis=1, bitorder="little")
    return np.ascontiguousarray(packed).view("<u4").T.copy()


def subtract_one(zeros: np.ndarray, bits: int, quantizer: str) -> np.ndarray:
    """Version-1 qzeros words (G, N*bits/32) uint32 of true zero points (G, N), with each writer's own treatment."""
    words = pack_stream(zeros.T, bits).T
    if quantizer.startswith("gptqmodel"):
        if bits == 3:
            ones = np.array([0x24924924, 0x92492492, 0x49249249], dtype=np.uint32)
            return words - np.tile(ones, words.shape[1] // 3)
        return words - np.uint32(sum(1 << i for i in range(0, 32, bits)))
    if bits == 3:
        return pack_stream((zeros.T - 1) & 7, bits).T
    # AutoGPTQ ors the fields into a word, so that a zero point of 0 (field -1) sets every higher bit of its word.
    per_word = 32 // bits
    fields = (zeros.astype(np.int64) - 1).reshape(zeros.shape[0], -1, per_word)
    shifted = fields << (bits * np.arange(per_word))
    return np.bitwise_or.reduce(shifted, axis=2).astype(np.uint64).astype(np.uint32)


def quantize(
    weight: np.ndarray, group: np.ndarray, bits: int, sym: bool, lowest_zero: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """weight (K, N), group (K,) -> codes (K, N), zeros (G, N) >= lowest_zero, scales (G, N) float16."""
    groups, top = int(group.max()) + 1, (1 << bits) - 1
    codes = np.zeros(weight.shape, dtype=np.uint32)
    zeros = np.zeros((groups, weight.shape[1]), dtype=np.int64)
    scales = np.zeros((groups, weight.shape[1]), dtype=np.float16)
    for g in range(groups):
        rows = np.nonzero(group == g)[0]
        block = weight[rows].astype(np.float64)
        low, high = np.minimum(block.min(0), 0), np.maximum(block.max(0), 0)
        if sym:
            high = np.maximum(np.abs(low), high)
            low = -high
        empty = high == low
        low, high = np.where(empty, -1.0, low), np.where(empty, 1.0, high)
        step = ((high - low) / top).astype(np.float16)
        zero = np.full(step.shape, (top + 1) // 2) if sym else np.round(-low / step.astype(np.float64))
        zeros[g], scales[g] = np.clip(zero, lowest_zero, top), step
        codes[rows] = np.clip(np.round(block / step.astype(np.float64)) + zeros[g], 0, top).astype(np.uint32)
    return codes, zeros, scales


def quantize_linear(
    weight: np.ndarray,
    *,
    bits: int,
    group_size: int,
    desc_act: bool,
    sym: bool,
    v2: bool,
    quantizer: str = "autogptq:0.7.1",
    seed: int = 0,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """weight (N, K) -> the stored tensors by suffix, and the (K, N) float16 weights they stand for."""
    features = weight.shape[1]
    size = features if group_size == -1 else group_size
    group = np.arange(features) // size
    if desc_act:
        order = np.random.default_rng(seed).permutation(features)  # as if sorted by the Hessian's diagonal
        scattered = np.empty(features, dtype=np.int64)
        scattered[order] = group
        group = scattered
    # AutoGPTQ's version 1 loses zero points of 0 for good; such a file means nothing certain, so none is made.
    lowest_zero = 0 if v2 or quantizer.startswith("gptqmodel") else 1
    codes, zeros, scales = quantize(np.ascontiguousarray(weight.T), group, bits, sym, lowest_zero)
    qzeros = pack_stream(zeros.T, bits).T if v2 else subtract_one(zeros, bits, quantizer)
    meant = (codes.astype(np.int64) - zeros[group]).astype(np.float32) * scales[group].astype(np.float32)
    tensors = {
        "qweight": pack_stream(codes, bits).view(np.int32),
        "qzeros": np.ascontiguousarray(qzeros).view(np.int32),
        "scales": scales,
        "g_idx": group.astype(np.int32),
        "bias": np.zeros(weight.shape[0], dtype=np.float16),
    }
    return tensors, meant.astype(np.float16)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """float16 tensors of a trusted file."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            raw = data[8 + length + begin : 8 + length + end]
            tensors[name] = np.frombuffer(raw, dtype={"F16": "<f2", "F32": "<f4"}[entry["dtype"]]).reshape(
                entry["shape"]
            )
    return tensors


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    names = {"float16": "F16", "float32": "F32", "int32": "I32"}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))
    for name, array in ordered:
        end = offset + array.nbytes
        header[name] = {"dtype": names[array.dtype.name], "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for _, array in ordered:
            stream.write(np.ascontiguousarray(array).tobytes())


def write_gptq_model(
    src_dir: Path,
    dst_dir: Path,
    bits: int = 4,
    group_size: int = 128,
    desc_act: bool = False,
    sym: bool = True,
    v2: bool = False,
    quantizer: str = "autogptq:0.7.1",
    settings_in: str = "config.json",
) -> dict[str, np.ndarray]:
    """A GPTQ copy of a float Llama-style model; embeddings, norms and head stay float.

    Returns the (K, N) float16 weights that each quantized layer stands for, by its prefix. settings_in names the file
    that carries the quantization settings (AutoGPTQ: quantize_config.json, transformers: config.json).
    """
    dst_dir.mkdir(parents=True, exist_ok=True)
    for path in src_dir.iterdir():
        if path.suffix != ".safetensors" and not path.name.endswith(".index.json"):
            shutil.copyfile(path, dst_dir / path.name)
    source: dict[str, np.ndarray] = {}
    for path in sorted(src_dir.glob("*.safetensors")):
        source.update(read_safetensors(path))
    stored: dict[str, np.ndarray] = {}
    meant: dict[str, np.ndarray] = {}
    for index, (name, array) in enumerate(source.items()):
        prefix = name.removesuffix(".weight")
        if prefix.rsplit(".", 1)[-1] not in LINEARS:
            stored[name] = array
            continue
        tensors, meant[prefix] = quantize_linear(
            array, bits=bits, group_size=group_size, desc_act=desc_act, sym=sym, v2=v2, quantizer=quantizer, seed=index
        )
        stored.update({f"{prefix}.{suffix}": tensor for suffix, tensor in tensors.items()})
    write_safetensors(dst_dir / f"gptq_model-{bits}bit-{group_size}g.safetensors", stored)
    settings = {
        "bits": bits,
        "group_size": group_size,
        "desc_act": desc_act,
        "sym": sym,
        "quant_method": "gptq",
        "checkpoint_format": "gptq_v2" if v2 else "gptq",
        "meta": {"quantizer": quantizer},
    }
    config = json.loads((dst_dir / "config.json").read_text())
    if settings_in == "config.json":
        config["quantization_config"] = settings
    else:
        (dst_dir / settings_in).write_text(json.dumps(settings, indent=2))
    (dst_dir / "config.json").write_text(json.dumps(config, indent=2))
    return meant
