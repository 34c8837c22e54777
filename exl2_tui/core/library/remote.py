"""What a repository on the Hub holds, judged before anything of it is here: kind, files a model needs, memory."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from exl2_tui.core.config import ARCHITECTURES, ModelConfig
from exl2_tui.core.errors import UnsupportedError
from exl2_tui.core.json_keys import MAX_CONFIG_BYTES
from exl2_tui.core.model.footprint import Footprint
from exl2_tui.core.model.layout import layer_linears
from exl2_tui.core.model_events import HubModel, RemoteFile

BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1}
SIDE_FILES = {
    "config.json",
    "generation_config.json",
    "quantize_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
}
PAPERS = re.compile(r"(?i)(readme|licen[cs]e|notice|use_policy)[\w.-]*")
MAX_SIDE_BYTES = 100 << 20
INDEX = ".safetensors.index.json"
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_BITS = re.compile(r"(?i)(?:^|[^\d.])(\d{1,2}(?:[._]\d{1,2})?)[ _-]?(?:bpw|bits?|b(?=[-_]|$))")
_ONLY_BITS = re.compile(r"\d{1,2}[._]\d{1,2}")
QUANTIZED = {"exl2": "EXL2", "gptq": "GPTQ"}
_OTHER_KINDS = ("gguf", "awq", "exl3", "mlx", "bitsandbytes", "onnx", "openvino", "fp8", "compressed-tensors")


def model_of(item: Any) -> HubModel | None:
    """A search result as a row; None if this program could not load it."""
    tags = {tag.lower() for tag in item.tags or () if isinstance(tag, str)}
    config = item.config if isinstance(item.config, Mapping) else {}
    kind = _kind(item.id.lower(), tags, config)
    architecture = _first_text(config.get("architectures"))
    if kind is None or (architecture and architecture not in ARCHITECTURES):
        return None
    updated = item.last_modified
    return HubModel(
        repo=item.id,
        kind=kind,
        family=architecture.removesuffix("ForCausalLM"),
        size=_tensor_bytes(getattr(item.safetensors, "parameters", None)),
        downloads=_count(item.downloads),
        likes=_count(item.likes),
        updated=updated.strftime("%Y-%m-%d") if hasattr(updated, "strftime") else "",
        gated=bool(item.gated),
    )


def _kind(name: str, tags: set[str], config: Mapping[str, Any]) -> str | None:
    quantization = config.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    if isinstance(method, str):
        return QUANTIZED.get(method.lower())
    if "exl2" in tags or "exl2" in name:
        return "EXL2"
    if tags & set(_OTHER_KINDS) or any(kind in name for kind in _OTHER_KINDS):
        return None
    if "gptq" in tags or "gptq" in name:
        return "GPTQ"
    return "float" if "safetensors" in tags else None


def needed_files(files: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
    """What a model needs: tensors, config, tokenizer, licence. Pickles and second copies of the weights are left."""
    tensors = [file for file in files if file.name.endswith(".safetensors") and not file.name.startswith("adapter_")]
    if any(not file.name.startswith("consolidated") for file in tensors):
        tensors = [file for file in tensors if not file.name.startswith("consolidated")]
    side = [
        file
        for file in files
        if file.size <= MAX_SIDE_BYTES
        and (file.name in SIDE_FILES or file.name.endswith(INDEX) or PAPERS.fullmatch(file.name))
    ]
    return tuple(sorted((*side, *tensors), key=lambda file: (file.name.endswith(".safetensors"), file.name)))


def what_is_missing(files: Sequence[RemoteFile]) -> str:
    """Why these files make no model, "" if they may."""
    names = {file.name for file in files}
    shards = [match for name in names if (match := _SHARD.fullmatch(name))]
    if "config.json" not in names:
        return "this revision has no config.json"
    if not any(name.endswith(".safetensors") for name in names):
        return "this revision has no *.safetensors; pickled or GGUF weights are not downloaded"
    for match in shards:
        expected = {f"{match[1]}-{number:05d}-of-{match[3]}.safetensors" for number in range(1, int(match[3]) + 1)}
        if int(match[3]) > len(names) or not expected <= names:
            return f"shards of {match[1]} are missing: {match[3]} are announced"
    lowered = [name.lower() for name in names]
    if len(set(lowered)) < len(lowered):
        return "two files differ only in upper and lower case"
    return ""


def read_config(data: bytes) -> tuple[ModelConfig, str]:
    """config.json of a repository and its format for people. Raises an Exl2Error if it cannot be loaded here."""
    if len(data) > MAX_CONFIG_BYTES:
        raise UnsupportedError(f"config.json is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        raise UnsupportedError("config.json is not valid JSON") from None
    if not isinstance(raw, dict):
        raise UnsupportedError("config.json is no JSON object")
    quantization = raw.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if method is not None and (not isinstance(method, str) or method.lower() not in QUANTIZED):
        raise UnsupportedError(f"the model is quantized with {ascii(method)[:40]}, which cannot be loaded")
    config = ModelConfig.from_dict(raw)
    if isinstance(method, str) and isinstance(quantization, dict):
        bits = quantization.get("bits")
        text = f" {bits:g} bpw" if isinstance(bits, int | float) and 1 <= bits <= 16 else ""
        return config, QUANTIZED[method.lower()] + text
    dtype = raw.get("torch_dtype", raw.get("dtype"))
    return config, {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}.get(str(dtype), "float")


def remote_footprint(config: ModelConfig, tensor_bytes: int, stored: str) -> Footprint:
    """Memory from the config and the sizes of the files: a tied head of floats is packed once more than stored.

    stored: the format that read_config() tells.
    """
    head = config.vocab_size * config.hidden_size
    is_float = config.quantization is None
    is_tied = is_float and config.tie_word_embeddings
    layer = sum(spec.in_features * spec.out_features for spec in layer_linears(config, 0))
    elements = layer * config.num_hidden_layers + head + (0 if is_tied else head)
    embedding = head * (4 if is_float and tensor_bytes > 3 * elements else 2)
    saved = {"fp16": 2, "bf16": 4}.get(stored, 0)  # bits of each weight (estimate.NARROW_BITS)
    return Footprint.of(
        config,
        packed=tensor_bytes + (embedding if is_tied else 0),
        embedding=embedding,
        narrowed=saved * (layer * config.num_hidden_layers + head) // 8,
        elements=elements,
    )


def bits_in_name(name: str) -> float:
    """Bits per weight that a revision's name promises ("4.0bpw", "6_5", "gptq-4bit-32g"), 0 if none."""
    match = _BITS.search(name)
    text = match[1] if match is not None else name if _ONLY_BITS.fullmatch(name) else ""
    bits = float(text.replace("_", ".")) if text else 0.0
    return bits if 1.0 <= bits <= 16.0 else 0.0


def _tensor_bytes(parameters: object) -> int:
    if not isinstance(parameters, Mapping):
        return 0
    return sum(BYTES.get(str(dtype), 2) * _count(count) for dtype, count in parameters.items())


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value < 1 << 60 else 0


def _first_text(value: object) -> str:
    first = value[0] if isinstance(value, list) and value else ""
    return first if isinstance(first, str) and first.isascii() and first.isidentifier() else ""
