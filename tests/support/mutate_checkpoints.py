"""Opens thousands of damaged model directories in one process with little memory; run by test_hostile_files.py.

    python mutate_checkpoints.py DIRECTORY COUNT SEED

Prints a JSON object: how often each error came, how many loaded, and what escaped that is no Exl2Error.
"""

from __future__ import annotations

import json
import random
import re
import resource
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from exl2_tui.core.checkpoint import Checkpoint, write_file
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import Exl2Error
from exl2_tui.core.formats import Exl2Weight

ALLOWED_BYTES = 256 << 20
NUMBERS = (b"-1", b"0", b"1", b"31", b"65536", b"4294967296", b"9223372036854775807", b"1e99", b"NaN", b"1.5", b"true")
WORDS = (b'"F64"', b'"I32"', b'"BF16"', b'"F8_E4M3"', b'""', b"null", b"[]", b"{}", b"[[[[", b'"__metadata__"', b'"a"')
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 40,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq"},
}
LAYERS = (("e", 64, 40), ("g", 64, 32), ("f", 32, 40))


def seed_directory(directory: Path) -> None:
    """A model with one EXL2, one GPTQ and one float layer and a norm."""
    generator = torch.Generator().manual_seed(0)
    exl2 = Exl2Weight.from_codes(
        torch.randint(0, 8, (64, 40), generator=generator).to(torch.uint8),
        torch.randint(0, 16, (2, 40), generator=generator).to(torch.uint8),
        torch.full((2,), 0.01).half(),
        [(5, 32), (3, 32)],
        torch.randperm(64, generator=generator),
        torch.ones(40),
    )
    write_file(
        directory / "model.safetensors",
        {
            **exl2.stored_tensors("e"),
            "g.qweight": torch.ones(8, 32, dtype=torch.int32),
            "g.qzeros": torch.ones(2, 4, dtype=torch.int32),
            "g.scales": torch.ones(2, 32).half(),
            "g.g_idx": (torch.arange(64) % 2).int(),
            "g.bias": torch.zeros(32).half(),
            "f.weight": torch.ones(40, 32).bfloat16(),
            "norm.weight": torch.ones(32),
        },
        durable=False,
    )
    (directory / "config.json").write_text(json.dumps(CONFIG))


def flip(data: bytearray, rng: random.Random, end: int) -> None:
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(end)] ^= 1 << rng.randrange(8)


def truncate(data: bytearray, rng: random.Random, end: int) -> None:
    del data[rng.randrange(len(data)) :]


def insert(data: bytearray, rng: random.Random, end: int) -> None:
    place = rng.randrange(end)
    data[place:place] = rng.choice((*NUMBERS, *WORDS, bytes(rng.randrange(256) for _ in range(rng.randint(1, 9)))))


def remove(data: bytearray, rng: random.Random, end: int) -> None:
    place = rng.randrange(end)
    del data[place : place + rng.randint(1, 30)]


def edit_number(data: bytearray, rng: random.Random, end: int) -> None:
    found = rng.choice(list(re.finditer(rb"\d+", data[8:end])))
    near = str(int(found.group()) + rng.choice((-1, 1, 2, 4, 8, 32))).encode()
    data[8 + found.start() : 8 + found.end()] = rng.choice((*NUMBERS, near, near, near))


def edit_value(data: bytearray, rng: random.Random, end: int) -> None:
    found = rng.choice(list(re.finditer(rb'"[^"]*"|\[[^\]]*\]', data[8:end])))
    data[8 + found.start() : 8 + found.end()] = rng.choice((*WORDS, *NUMBERS))


def copy_piece(data: bytearray, rng: random.Random, end: int) -> None:
    source, target, length = rng.randrange(end), rng.randrange(end), rng.randint(1, 120)
    data[target:target] = data[source : source + length]


def edit_length(data: bytearray, rng: random.Random, end: int) -> None:
    length = rng.choice((end - 8 + rng.randint(-9, 9), rng.randrange(2**64), 1 << rng.randrange(64), 100_000_000))
    data[:8] = (length % 2**64).to_bytes(8, "little")


MUTATIONS: tuple[Callable[[bytearray, random.Random, int], None], ...] = (
    *(flip, truncate, insert, remove, edit_number, edit_number, edit_number, edit_value, copy_piece, edit_length),
)


def mutate_model(whole: bytes, rng: random.Random) -> bytes:
    """A damaged copy. Where only the text changed, the length mostly is repaired, so that more than it is tested."""
    data = bytearray(whole)
    header_end = 8 + int.from_bytes(whole[:8], "little")
    if rng.random() < 0.15:  # damage the numbers, not the header
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(header_end, len(data))] = rng.randrange(256)
        return bytes(data)
    mutation = rng.choice(MUTATIONS)
    mutation(data, rng, header_end)
    if mutation not in (truncate, edit_length) and rng.random() < 0.9:
        data[:8] = (header_end - 8 + len(data) - len(whole)).to_bytes(8, "little", signed=True)
    return bytes(data)


def mutate_config(whole: bytes, rng: random.Random) -> bytes:
    data = bytearray(b" " * 8 + whole)
    rng.choice((flip, truncate, insert, remove, edit_number, edit_number, edit_value, edit_value, copy_piece))(
        data, rng, len(data)
    )
    return bytes(data)


def load(directory: Path) -> None:
    """Everything a loader reads of a directory."""
    with Checkpoint.open(directory) as checkpoint:
        ModelConfig.from_dict(checkpoint.config)
        for prefix, in_features, out_features in LAYERS:
            checkpoint.linear(prefix, in_features, out_features).dequantize()
        checkpoint.tensor("norm.weight", (32,)).sum()


def main() -> None:
    directory, count, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    seed_directory(directory)
    load(directory)
    model_file, config_file = directory / "model.safetensors", directory / "config.json"
    model, config = model_file.read_bytes(), config_file.read_bytes()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ALLOWED_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    outcomes: Counter[str] = Counter()
    escaped: list[str] = []
    for index in range(count):
        rng = random.Random(f"{seed}/{index}")
        file, damaged = (config_file, mutate_config) if index % 4 == 0 else (model_file, mutate_model)
        original = config if file is config_file else model
        file.write_bytes(damaged(original, rng))
        try:
            load(directory)
            outcomes["loaded"] += 1
        except Exl2Error as error:
            outcomes[type(error).__name__] += 1
            if len(str(error)) > 1000:
                escaped.append(f"{index}: message of {len(str(error))} characters")
        except BaseException as error:  # noqa: BLE001 - exactly what is looked for
            escaped.append(f"{index}: {type(error).__name__}: {error}")
        file.write_bytes(original)
    print(json.dumps({"outcomes": outcomes, "escaped": escaped[:20]}))


if __name__ == "__main__":
    main()
