"""Loads EXL2 directories with the loader of the real exllamav2 and compares what it makes of them with what we do.

    pip download --no-deps exllamav2==0.3.2 && unzip exllamav2-*.whl -d PACKAGE
    python tools/check_with_exllamav2.py --package PACKAGE MODEL...

Without a GPU its Python code runs unchanged on the CPU: config, tensor map, reading, permutations, group maps, folding
of down_proj's permutation into gate and up. Only its compiled functions are replaced, by ones that record what they are
given, demand of it what the native code demands, and return a handle. Every matrix handed to the kernels is then
decoded as the format says and must equal the weight that exl2-tui reads, to the bit.

With a CUDA device and exllamav2 installed (no --package) its kernels run too: logits of both programs on the same
tokens are compared, and it writes 32 tokens.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import CheckpointError
from exl2_tui.core.formats import Exl2Weight
from exl2_tui.core.model.causal_lm import CausalLM
from exl2_tui.core.model.layout import model_linears
from exl2_tui.core.tokenizer import Tokenizer

TEXT = (
    "The old lighthouse stood at the end of the pier, and every evening somebody climbed its stairs to light the lamp."
)


@dataclass(frozen=True)
class Matrix:
    """What make_q_matrix was given: words (R, N), perm and inverse (K,) or None, scales (G, N/8), maxima (G,) already
    divided by 256, groups (2G,), group map (2K,), bias (N,) or None."""

    words: Tensor
    perm: Tensor | None
    inverse: Tensor | None
    scales: Tensor
    maxima: Tensor
    groups: Tensor
    group_map: Tensor
    bias: Tensor | None

    def widths(self) -> list[tuple[int, int]]:
        """(bits, logical rows) of every group."""
        flat = [value & 0xFFFF for value in self.groups.tolist()]
        ends = [*flat[3::2], len(self.words)]
        return [(b, (e - s) * 32 // b) for b, s, e in zip(flat[::2], flat[1::2], ends, strict=True)]

    def check(self) -> None:
        """What the native code asserts, or relies on without asserting."""
        assert self.words.dtype == self.scales.dtype == torch.int32 and self.words.is_contiguous()
        assert self.groups.dtype == self.group_map.dtype == torch.int16 and self.maxima.dtype == torch.float16
        rows, columns = len(self.group_map) // 2, self.words.shape[1]
        assert columns == 8 * self.scales.shape[1] and len(self.maxima) == len(self.scales) == len(self.groups) // 2
        assert columns % 32 == 0 and rows % 32 == 0 and rows <= 65536
        assert (self.perm is None) == (self.inverse is None)
        if self.perm is not None and self.inverse is not None:
            assert self.perm.dtype == self.inverse.dtype == torch.int16 and len(self.perm) == len(self.inverse) == rows
            order = self.perm.long() & 0xFFFF
            assert torch.equal(order.sort().values, torch.arange(rows))
            assert torch.equal(self.inverse.long() & 0xFFFF, torch.argsort(order))
        assert self.bias is None or (self.bias.dtype == torch.float16 and len(self.bias) == columns)
        widths = self.widths()
        assert sum(count for _, count in widths) == rows and all(count % 32 == 0 for _, count in widths)
        assert [bits for bits, _ in widths] == sorted((bits for bits, _ in widths), reverse=True)
        assert {bits for bits, _ in widths} <= {2, 3, 4, 5, 6, 8} and bool((self.maxima > 0).all())

    def decode(self) -> Tensor:
        """Values (K, N) float16 in the packed row order, by spec/exl2-format.md sections 4 to 6."""
        parts, start = [], 0
        words = self.words.long() & 0xFFFFFFFF
        for group, (bits, rows) in enumerate(self.widths()):
            end = start + rows * bits // 32
            stream = ((words[start:end, None] >> torch.arange(32)[:, None]) & 1).flatten(0, 1).view(rows, bits, -1)
            codes = (stream << torch.arange(bits)[:, None]).sum(1) - (1 << (bits - 1))
            nibbles = ((self.scales[group].long()[:, None] & 0xFFFFFFFF) >> (4 * torch.arange(8))) & 15
            step = ((nibbles.flatten() + 1).square().double() * self.maxima[group].double()).half()
            parts.append((codes.double() * step.double()).half())
            start = end
        return torch.cat(parts)


class Recorder(ModuleType):
    """Stands in for the compiled extension; matrices in the order of their handles, from 1."""

    def __init__(self) -> None:
        super().__init__("exllamav2_ext")
        self.__spec__ = importlib.machinery.ModuleSpec("exllamav2_ext", None)
        self.matrices: list[Matrix] = []

    def __getattr__(self, name: str) -> Callable[..., int]:
        if name.startswith("make_q_"):  # attention and MLP: they only take the handles of their matrices
            return lambda *_: 1
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_: 0

    def stloader_read(self, file: str, offset: int, size: int, into: Tensor) -> None:
        with Path(file).open("rb") as stream:
            stream.seek(offset)
            content = bytearray(stream.read(size))
        assert len(content) == size
        into.copy_(torch.frombuffer(content, dtype=into.dtype).view(into.shape))

    def make_group_map(self, groups: Tensor, words: int) -> Tensor:
        return sys.modules["exllamav2.ext"].make_group_map_py(groups, words)  # its own slower version

    def tensor_remap(self, words: Tensor, order: Tensor) -> None:
        assert words.dtype == order.dtype == torch.int32 and words.shape[1] == len(order)
        words.copy_(words[:, order.long()])

    def tensor_remap_4bit(self, scales: Tensor, order: Tensor) -> None:
        assert scales.dtype == order.dtype == torch.int32 and 8 * scales.shape[1] == len(order)
        nibbles = (scales.long()[:, :, None] >> (4 * torch.arange(8))) & 15
        moved = nibbles.flatten(1)[:, order.long()].view(nibbles.shape)
        word = (moved << (4 * torch.arange(8))).sum(2)
        scales.copy_(torch.where(word >= 1 << 31, word - (1 << 32), word))

    def make_q_matrix(self, *given: Any) -> int:
        words, perm, inverse, scales, maxima, groups, group_map, zeros, gptq_scales, g_idx, bias = (
            None if tensor.is_meta else tensor for tensor in given[:11]
        )
        assert zeros is None and gptq_scales is None and g_idx is None
        matrix = Matrix(words, perm, inverse, scales, maxima, groups, group_map, bias)
        matrix.check()
        self.matrices.append(matrix)
        return len(self.matrices)


def stand_in_for_pillow() -> None:
    """exllamav2 imports Pillow at once, but only its vision models use it."""
    pillow, image = ModuleType("PIL"), ModuleType("PIL.Image")
    pillow.Image = image  # type: ignore[attr-defined]
    image.Image = object  # type: ignore[attr-defined]
    sys.modules.setdefault("PIL", pillow)
    sys.modules.setdefault("PIL.Image", image)


def record(package: Path, folder: Path) -> dict[str, Matrix]:
    """Loads a directory with exllamav2's own Python code; the matrices by the key of their layer."""
    recorder = sys.modules.get("exllamav2_ext")
    if not isinstance(recorder, Recorder):
        recorder = Recorder()
        sys.modules["exllamav2_ext"] = recorder
        stand_in_for_pillow()
        sys.path.insert(0, str(package))
        torch.cuda.synchronize = lambda *_: None  # type: ignore[assignment]
    from exllamav2 import ExLlamaV2, ExLlamaV2Config, ExLlamaV2Tokenizer, module
    from exllamav2.linear import ExLlamaV2Linear
    from exllamav2.stloader import cleanup_stfiles

    module._torch_device = lambda _: "cpu"
    recorder.matrices.clear()
    config = ExLlamaV2Config(str(folder))
    model = ExLlamaV2(config)
    linears: list[Any] = []
    for part in model.modules:
        part.set_device_idx(0)
        options = {} if not hasattr(part, "submodules") or not part.submodules else {"device_context": False}
        if isinstance(part, ExLlamaV2Linear):
            options = {"device_context": False}
        part.load(**options)
        linears += [sub for sub in (part, *getattr(part, "submodules", [])) if isinstance(sub, ExLlamaV2Linear)]
    cleanup_stfiles()
    tokenizer = ExLlamaV2Tokenizer(config)
    theirs, ours = tokenizer.encode(TEXT)[0].tolist(), Tokenizer.load(folder).encode(TEXT)
    assert theirs == ours, f"tokens differ: {theirs} and {ours}"
    return {linear.key: recorder.matrices[linear.q_handle - 1] for linear in linears if linear.q_handle}


def compare(folder: Path, matrices: dict[str, Matrix]) -> None:
    """Every matrix that the kernels would get must be the weight that exl2-tui reads. Raises AssertionError."""
    config = ModelConfig.from_dir(folder)
    with Checkpoint.open(folder) as checkpoint:
        specs = {spec.prefix: spec for spec in model_linears(config)}
        assert set(specs) == set(matrices), set(specs) ^ set(matrices)
        for prefix, spec in specs.items():
            linear = checkpoint.linear(prefix, spec.in_features, spec.out_features, None)
            assert isinstance(linear, Exl2Weight), prefix
            matrix, weight = matrices[prefix], linear.dequantize()
            found = matrix.decode()
            parent, _, short = prefix.rpartition(".")
            down = f"{parent}.down_proj"
            if short in ("gate_proj", "up_proj"):
                order = torch.argsort(checkpoint.tensor(f"{down}.q_invperm").long())
                weight = weight[:, order]  # folded, so that down needs no permutation
            if short == "down_proj":
                assert matrix.inverse is None
                weight = weight[torch.argsort(checkpoint.tensor(f"{down}.q_invperm").long())]
            else:
                assert matrix.inverse is not None
                found = found[matrix.inverse.long() & 0xFFFF]
            assert torch.equal(found[:, : weight.shape[1]], weight), f"{prefix} decodes to other values"
            assert not found[:, weight.shape[1] :].any(), f"{prefix}: pad columns are not 0"


def run_on_gpu(folder: Path) -> None:
    """Logits of exllamav2's kernels against our float32 reference on the same tokens, and a greedy text.

    Token by token: given several at once, 0.3.2 without flash-attn (torch 2.11) lets tokens see those after them, as
    the first token's logits show, also those of files that exllamav2 itself made.
    """
    from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config, ExLlamaV2Tokenizer

    config = ExLlamaV2Config(str(folder))
    model = ExLlamaV2(config)
    model.load()
    tokenizer = ExLlamaV2Tokenizer(config)
    cache = ExLlamaV2Cache(model, max_seq_len=512)
    ids = tokenizer.encode(TEXT)
    theirs = torch.cat([model.forward(ids[:, i : i + 1], cache)[0].float().cpu() for i in range(ids.shape[1])])
    with Checkpoint.open(folder) as checkpoint:
        reference = CausalLM.load(checkpoint, ModelConfig.from_dir(folder), "cpu")
    ours = reference.forward(ids[0], reference.new_cache(512), all_logits=True)
    p, q = (logits[:, : ours.shape[1]].log_softmax(-1) for logits in (ours, theirs))
    kl, same = float((p.exp() * (p - q)).sum(-1).mean()), float((p.argmax(-1) == q.argmax(-1)).float().mean())
    written = [int(theirs[-1, : ours.shape[1]].argmax())]
    while len(written) < 32:
        step = model.forward(torch.tensor([written[-1:]]), cache)[0, -1].float().cpu()
        written.append(int(step[: ours.shape[1]].argmax()))
    print(f"  on the GPU: KL {kl:.2g} to our reference, {100 * same:.1f} % equal top tokens; it writes:")
    print(f"  {TEXT}{tokenizer.decode(torch.tensor([written]))[0]!r}")
    assert kl < 0.01 and same > 0.9, "exllamav2 computes something else from this file"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--package", type=Path, help="directory with an unpacked wheel; without it: the installed one")
    given = parser.parse_args()
    failed = 0
    for folder in given.models:
        print(folder)
        try:
            if given.package is None:
                run_on_gpu(folder)
                continue
            matrices = record(given.package, folder.resolve())
            compare(folder, matrices)
        except (AssertionError, CheckpointError) as error:
            failed += 1
            print(f"  FAILED: {error}")
            continue
        widths = sorted({bits for matrix in matrices.values() for bits, _ in matrix.widths()})
        print(f"  {len(matrices)} matrices of {', '.join(map(str, widths))} bits, tokens and tensors: all equal")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
