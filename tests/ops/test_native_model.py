"""The whole native step against the reference model: every architecture, chunking, threads, caches, cancelling."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.gptq_writer import write_gptq_model
from support.models import write_random_exl2_model, write_random_model

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.checkpoint.safetensors import write_file
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import CancelledError, ContextError, ExtensionError, ShapeError
from exl2_tui.core.model.causal_lm import CausalLM
from exl2_tui.core.model.native import NativeModel
from exl2_tui.core.ops import Isa
from exl2_tui.core.requests import LoadOptions

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "llama-mqa-tied": ("LlamaForCausalLM", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama-biases": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
    "llama-odd-sizes": (
        "LlamaForCausalLM",
        {"hidden_size": 60, "intermediate_size": 77, "head_dim": 6, "vocab_size": 131},
    ),
    "llama3": ("LlamaForCausalLM", {"rope_scaling": LLAMA3, "rope_theta": 500000.0}),
    "llama-yarn": ("LlamaForCausalLM", {"rope_scaling": YARN}),
    "mistral-window": ("MistralForCausalLM", {"sliding_window": 16}),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen2-window": (
        "Qwen2ForCausalLM",
        {"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 32}),
    "phi3": ("Phi3ForCausalLM", {"sliding_window": 16}),
}


def load(folder: Path, **options: Any) -> NativeModel:
    """The native model; keyword arguments of LoadOptions and of NativeModel.load, one thread unless told."""
    own = {key: options.pop(key) for key in ("isa", "chunk") if key in options}
    with Checkpoint.open(folder) as checkpoint:
        return NativeModel.load(
            checkpoint, ModelConfig.from_dir(folder), LoadOptions(**{"threads": 1, **options}), **own
        )


def reference(folder: Path) -> CausalLM:
    with Checkpoint.open(folder) as checkpoint:
        return CausalLM.load(checkpoint, ModelConfig.from_dir(folder))


def tokens(count: int, vocab: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, vocab, (count,), generator=torch.Generator().manual_seed(seed))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert torch.isfinite(found).all()
    return float((found - expected).norm() / expected.norm())


def greedy(model: NativeModel | CausalLM, prompt: torch.Tensor, count: int) -> list[int]:
    cache = model.new_cache(len(prompt) + count)
    chosen = [int(model.forward(prompt, cache).argmax())]
    while len(chosen) < count:
        chosen.append(int(model.forward(chosen[-1:], cache).argmax()))
    return chosen


@pytest.mark.parametrize("name", MODELS)
def test_float_models_equal_the_reference(isa: Isa, name: str, tmp_path: Path) -> None:
    architecture, overrides = MODELS[name]
    folder = write_random_model(tmp_path, architecture, dtype="float32", **overrides)
    oracle, model = reference(folder), load(folder, isa=isa, exact=True, chunk=13)
    ids = tokens(70, oracle.config.vocab_size)
    cache, oracle_cache = model.new_cache(80), oracle.new_cache(80, "fp16")
    expected = oracle.forward(ids[:67], oracle_cache, all_logits=True)
    assert relative(model.forward(ids[:67], cache, all_logits=True), expected) < 5e-4
    for t in (67, 68, 69):
        expected = oracle.forward(ids[t : t + 1], oracle_cache)
        assert relative(model.forward(ids[t : t + 1], cache), expected) < 5e-4
    assert greedy(model, ids[:20], 20) == greedy(oracle, ids[:20], 20)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_stored_half_precision(isa: Isa, dtype: str, tmp_path: Path) -> None:
    folder = write_random_model(tmp_path, dtype=dtype)
    ids = tokens(40, 256)
    oracle, model = reference(folder), load(folder, isa=isa)
    found = model.forward(ids, model.new_cache(64), all_logits=True)
    assert relative(found, oracle.forward(ids, oracle.new_cache(64), all_logits=True)) < 2e-3


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen3ForCausalLM"])
@pytest.mark.parametrize("exact", [True, False])
def test_exl2_models(isa: Isa, architecture: str, exact: bool, tmp_path: Path) -> None:
    folder = write_random_exl2_model(tmp_path, architecture, vocab_size=250)
    ids = tokens(40, 250)
    oracle, model = reference(folder), load(folder, isa=isa, exact=exact)
    found = model.forward(ids, model.new_cache(64), all_logits=True)
    error = relative(found, oracle.forward(ids, oracle.new_cache(64), all_logits=True))
    assert error < (2e-3 if exact else 3e-2)


@pytest.mark.parametrize(("bits", "desc_act"), [(4, False), (4, True), (3, True), (8, False)])
def test_gptq_models(isa: Isa, bits: int, desc_act: bool, tmp_path: Path) -> None:
    source = write_random_model(tmp_path / "float")
    folder = tmp_path / "gptq"
    write_gptq_model(source, folder, bits=bits, group_size=32, desc_act=desc_act, sym=False)
    ids = tokens(40, 256)
    oracle, model = reference(folder), load(folder, isa=isa, exact=True)
    found = model.forward(ids, model.new_cache(64), all_logits=True)
    assert relative(found, oracle.forward(ids, oracle.new_cache(64), all_logits=True)) < 2e-3


def test_gptq_layers_of_different_bits(isa: Isa, tmp_path: Path) -> None:
    """Linears that read the same input do not share its integers where these depend on the width of the codes."""
    source = write_random_model(tmp_path / "float")
    for bits in (2, 3):
        write_gptq_model(source, tmp_path / str(bits), bits=bits, group_size=32, sym=False)
    folder = tmp_path / "2"
    stored = next(folder.glob("*.safetensors"))
    with Checkpoint.open(folder) as two, Checkpoint.open(tmp_path / "3") as three:
        write_file(stored, {name: (three if "k_proj" in name else two).tensor(name) for name in two.names})
    ids = tokens(40, 256)
    oracle, model = reference(folder), load(folder, isa=isa)
    found = model.forward(ids, model.new_cache(64), all_logits=True)
    assert relative(found, oracle.forward(ids, oracle.new_cache(64), all_logits=True)) < 3e-2


@pytest.mark.parametrize("name", ["nano_chat", "nano_chat_exl2"])
def test_trained_models(isa: Isa, name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    oracle, model = reference(folder), load(folder, isa=isa, exact=True)
    ids = tokens(90, oracle.config.vocab_size)
    expected = oracle.forward(ids, oracle.new_cache(200), all_logits=True)
    found = model.forward(ids, model.new_cache(200), all_logits=True)
    assert relative(found, expected) < 2e-3
    assert greedy(model, ids[:10], 40) == greedy(oracle, ids[:10], 40)


def test_logits_do_not_depend_on_chunks_or_threads(isa: Isa, tmp_path: Path) -> None:
    folder = write_random_exl2_model(tmp_path, num_key_value_heads=1, head_dim=40)
    ids = tokens(150, 256)
    results = []
    for chunk, threads in ((128, 1), (1, 1), (7, 2), (128, 2), (64, 3)):
        model = load(folder, isa=isa, chunk=chunk, threads=threads, exact=True)
        cache = model.new_cache(160)
        last = model.forward(ids[:101], cache)
        rows = model.forward(ids[101:], cache, all_logits=True)
        assert cache.length == 150
        results.append(torch.cat((last[None], rows)))
    for other in results[1:]:
        assert relative(other, results[0]) < 1e-3


def test_q8_cache_costs_little(isa: Isa, nano_chat: Path) -> None:
    model = load(nano_chat, isa=isa)
    ids = tokens(200, 8192, seed=2)
    full, small = model.new_cache(256), model.new_cache(256, "q8")
    assert small.nbytes < 0.6 * full.nbytes
    expected = model.forward(ids, full, all_logits=True)
    assert relative(model.forward(ids, small, all_logits=True), expected) < 2e-2


def test_truncated_cache_gives_the_same_again(isa: Isa, tmp_path: Path) -> None:
    model = load(write_random_model(tmp_path), isa=isa)
    ids = tokens(50, 256)
    for kind in ("fp16", "q8"):
        cache = model.new_cache(64, kind)
        first = model.forward(ids, cache)
        cache.truncate(20)
        model.forward(tokens(30, 256, seed=9), cache)
        cache.truncate(20)
        assert relative(model.forward(ids[20:], cache), first) < 1e-4


def test_cancel_in_the_middle_of_a_prompt(nano_chat: Path) -> None:
    model = load(nano_chat, threads=2)
    cache = model.new_cache(16384)
    model.forward(tokens(5, 8192), cache)
    token, spent = CancelToken(), [0.0]

    def cancel() -> None:
        spent[0] = time.process_time()
        token.cancel()

    threading.Timer(0.3, cancel).start()
    with pytest.raises(CancelledError):
        while True:  # a fast machine may need more than one prompt
            model.forward(tokens(12000, 8192), cache, cancel=token)
            cache.truncate(5)
    assert time.process_time() - spent[0] < 2, "a chunk of 128 tokens through one layer takes milliseconds"
    assert cache.length == 5
    assert torch.isfinite(model.forward([1], cache)).all()


def test_cancelled_before_it_starts(tmp_path: Path) -> None:
    model = load(write_random_model(tmp_path), threads=2)
    token = CancelToken()
    token.cancel()
    with pytest.raises(CancelledError):
        model.forward(tokens(30, 256), model.new_cache(64), cancel=token)


def test_two_python_threads_may_step_at_once(tmp_path: Path) -> None:
    models = [load(write_random_model(tmp_path / str(i), seed=i), threads=2) for i in range(2)]
    ids = tokens(30, 256)
    expected = [model.forward(ids, model.new_cache(64)) for model in models]
    wrong: list[int] = []

    def work(index: int) -> None:
        found = [models[index].forward(ids, models[index].new_cache(64)) for _ in range(20)]
        wrong.extend(index for logits in found if not torch.equal(logits, expected[index]))

    workers = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert not wrong


def test_wrong_arguments_are_our_errors(tmp_path: Path) -> None:
    model = load(write_random_model(tmp_path))
    cache = model.new_cache(10)
    with pytest.raises(ShapeError, match="vocabulary"):
        model.forward([256], cache)
    with pytest.raises(ShapeError):
        model.forward([], cache)
    with pytest.raises(ContextError):
        model.forward([1] * 11, cache)
    with pytest.raises(ShapeError, match="another model"):
        model.forward([1], reference(tmp_path).new_cache(10))
    assert cache.length == 0
    model.close()
    with pytest.raises(ExtensionError, match="closed"):
        model.forward([1], cache)
