"""An EXL2 file read by the letter of spec/exl2-format.md, in numpy, sharing no code with the package.

Slow and literal on purpose: it says what the files of the quantizer mean to somebody else. `check` is the writer
checklist of section 13.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_DTYPES = {"I32": "<i4", "I16": "<i2", "F16": "<f2"}
WIDTHS = (8, 6, 5, 4, 3, 2)


def read_directory(folder: Path) -> dict[str, tuple[str, NDArray[np.generic]]]:
    """(dtype name, array) of every tensor in every *.safetensors; a name in two files fails."""
    found: dict[str, tuple[str, NDArray[np.generic]]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        content = file.read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        assert "__metadata__" not in header
        end = 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            first, last = entry["data_offsets"]
            assert first == end and name not in found
            end = last
            data = np.frombuffer(content[8 + size + first : 8 + size + last], _DTYPES[entry["dtype"]])
            found[name] = entry["dtype"], data.reshape(entry["shape"])
        assert 8 + size + end == len(content)
    return found


def groups_of(tensors: dict[str, tuple[str, NDArray[np.generic]]], prefix: str) -> list[tuple[int, int, int, int]]:
    """(bits, first word row, end word row, logical rows) of every group, section 3."""
    flat = tensors[f"{prefix}.q_groups"][1].view(np.uint16).astype(int)
    bits, starts = flat[0::2].tolist(), flat[1::2].tolist()
    ends = [*starts[1:], tensors[f"{prefix}.q_weight"][1].shape[0]]
    return [(b, s, e, (e - s) * 32 // b) for b, s, e in zip(bits, starts, ends, strict=True)]


def decode(tensors: dict[str, tuple[str, NDArray[np.generic]]], prefix: str) -> NDArray[np.float16]:
    """The weight (K, N) of a linear in float16, original row order, pad columns included. Sections 4 to 7."""
    words = tensors[f"{prefix}.q_weight"][1].view(np.uint32)
    scales = tensors[f"{prefix}.q_scale"][1].view(np.uint32)
    maxima = tensors[f"{prefix}.q_scale_max"][1]
    inverse = tensors[f"{prefix}.q_invperm"][1]
    columns = words.shape[1]
    packed = []
    for index, (bits, start, end, rows) in enumerate(groups_of(tensors, prefix)):
        # Section 4: code i occupies stream bits i*b to i*b+b-1; stream bit p is bit p%32 of word row p//32.
        stream = (words[start:end, None, :] >> np.arange(32, dtype=np.uint32)[None, :, None]) & np.uint32(1)
        stream = stream.reshape(-1, columns)
        codes = np.zeros((rows, columns), np.int64)
        for bit in range(bits):
            codes += stream[bit::bits][:rows].astype(np.int64) << bit
        nibbles = np.array([(scales[index, n // 8] >> np.uint32(4 * (n % 8))) & np.uint32(15) for n in range(columns)])
        unit = np.float16(np.float64(maxima[index]) / 256)
        step = ((nibbles.astype(np.float64) + 1) ** 2 * np.float64(unit)).astype(np.float16)
        packed.append(((codes - (1 << (bits - 1))) * step.astype(np.float64)).astype(np.float16))
    return np.concatenate(packed)[inverse]


def check(folder: Path) -> dict[str, set[int]]:
    """Asserts the writer checklist for every linear of a directory; the widths each linear uses, by its prefix."""
    tensors = read_directory(folder)
    config = json.loads((folder / "config.json").read_bytes())
    assert len(config["architectures"]) == 1 and (folder / "tokenizer.json").is_file()
    assert config["quantization_config"]["quant_method"] == "exl2"
    used: dict[str, set[int]] = {}
    for prefix in sorted(name.removesuffix(".q_weight") for name in tensors if name.endswith(".q_weight")):
        expected = {"q_weight": "I32", "q_scale": "I32", "q_scale_max": "F16", "q_groups": "I16", "q_invperm": "I32"}
        for kind, dtype in expected.items():
            assert tensors[f"{prefix}.{kind}"][0] == dtype, (prefix, kind)
        columns = tensors[f"{prefix}.q_weight"][1].shape[1]
        inverse = tensors[f"{prefix}.q_invperm"][1]
        rows = len(inverse)
        groups = groups_of(tensors, prefix)
        assert rows % 32 == 0 and rows <= 65536 and columns % 32 == 0
        assert all(count % 32 == 0 and count > 0 for *_, count in groups)
        assert sum(count for *_, count in groups) == rows
        bits = [width for width, *_ in groups]
        assert bits == sorted(bits, reverse=True) and set(bits) <= set(WIDTHS)
        assert groups[0][1] == 0 and all(end > start for _, start, end, _ in groups)
        assert tensors[f"{prefix}.q_scale"][1].shape == (len(groups), columns // 8)
        maxima = tensors[f"{prefix}.q_scale_max"][1].astype(np.float64)
        assert maxima.shape == (len(groups),) and np.isfinite(maxima).all() and (maxima >= 2.0**-16).all()
        assert sorted(inverse.tolist()) == list(range(rows))
        if f"{prefix}.bias" in tensors:
            assert tensors[f"{prefix}.bias"][0] == "F16" and tensors[f"{prefix}.bias"][1].shape == (columns,)
        used[prefix] = set(bits)
    for name, (dtype, array) in tensors.items():
        if not any(part in name for part in (".q_", ".bias")):
            assert dtype == "F16" and np.isfinite(array.astype(np.float32)).all(), name
    halves: dict[str, set[bool]] = {}
    for name in tensors:
        if name.endswith(("_proj.q_weight", "_proj.weight")):
            halves.setdefault(name.rsplit(".", 2)[0], set()).add(name.endswith(".q_weight"))
    assert halves and all(kinds == {True} for kinds in halves.values())
    assert "lm_head" in used and "model.embed_tokens.weight" in tensors
    return used
