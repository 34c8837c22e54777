"""Model directories: which files count, what a missing tensor is blamed on, and every rule for a linear layer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.gptq_writer import write_gptq_model
from torch import Tensor

from exl2_tui.core.checkpoint import Checkpoint, write_file
from exl2_tui.core.errors import CheckpointError, ConfigError, NotFoundError, ShapeError, UnsupportedError
from exl2_tui.core.formats import DenseWeight, Exl2Weight, GptqWeight

Tensors = dict[str, Tensor]
K, N = 64, 40


def directory(path: Path, *shards: Tensors, config: object = None, names: list[str] | None = None) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({} if config is None else config))
    for index, tensors in enumerate(shards):
        name = names[index] if names else f"model-{index}.safetensors"
        write_file(path / name, tensors, durable=False)
    return path


def exl2_tensors(bias: Tensor | None = None) -> Tensors:
    generator = torch.Generator().manual_seed(3)
    return Exl2Weight.from_codes(
        torch.randint(0, 16, (K, N), generator=generator).to(torch.uint8),
        torch.randint(0, 16, (2, N), generator=generator).to(torch.uint8),
        torch.tensor([0.02, 0.01]).half(),
        [(6, 32), (4, 32)],
        torch.randperm(K, generator=generator),
        bias,
    ).stored_tensors("p")


def gptq_tensors(outputs: int = 64) -> Tensors:
    generator = torch.Generator().manual_seed(4)
    return {
        "p.qweight": torch.randint(-(2**31), 2**31 - 1, (K // 8, outputs), dtype=torch.int32, generator=generator),
        "p.qzeros": torch.full((2, outputs // 8), 0x77777777, dtype=torch.int32),
        "p.scales": torch.rand(2, outputs, generator=generator).half(),
        "p.g_idx": (torch.arange(K) // 32).int(),
        "p.bias": torch.zeros(outputs).half(),
    }


def test_many_files_and_a_stale_index(tmp_path: Path) -> None:
    a, b = {"a": torch.ones(2)}, {"b": torch.zeros(3).half()}
    directory(tmp_path, a, b, names=["output-00001-of-00002.safetensors", "x.safetensors"])
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "._x.safetensors").write_bytes(b"left by another file system")
    with Checkpoint.open(tmp_path) as checkpoint:
        assert set(checkpoint.names) == {"a", "b"}
        assert [file.name for file in checkpoint.files] == ["output-00001-of-00002.safetensors", "x.safetensors"]
        assert checkpoint.weight_bytes == 14
        assert "a" in checkpoint
        assert "c" not in checkpoint
        assert checkpoint.info("b").shape == (3,)
        assert checkpoint.tensor("a", (2,)).tolist() == [1, 1]
        with pytest.raises(CheckpointError, match=r"expected shape \[3\], found \[2\]"):
            checkpoint.tensor("a", (3,))
        with pytest.raises(CheckpointError, match=r"not here: model-00001.*model-00002.*finish the download"):
            checkpoint.tensor("c")


def test_links_into_a_cache(tmp_path: Path) -> None:
    blobs = directory(tmp_path / "blobs", {"a": torch.ones(2)}, names=["0a1b2c"])
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "model.safetensors").symlink_to(Path("..") / "blobs" / "0a1b2c")
    (snapshot / "config.json").symlink_to(blobs / "config.json")
    assert Checkpoint.open(snapshot).tensor("a").tolist() == [1, 1]
    (blobs / "0a1b2c").unlink()
    with pytest.raises(CheckpointError, match="link points to nothing"):
        Checkpoint.open(snapshot)


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    directory(tmp_path, {"a": torch.ones(2)}, {"b": torch.ones(1), "a": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"found it also in model-0\.safetensors") as caught:
        Checkpoint.open(tmp_path)
    assert (Path(caught.value.file or "").name, caught.value.tensor) == ("model-1.safetensors", "a")


@pytest.mark.parametrize("name", ("pytorch_model.bin", "model.pt", "consolidated.00.pth"))
def test_pickles_are_refused_with_a_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(UnsupportedError, match=r"runs code.*save_pretrained"):
        Checkpoint.open(tmp_path)


def test_directories_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such model directory"):
        Checkpoint.open(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="cannot read the directory"):
        Checkpoint.open("x" * 5000)
    with pytest.raises(CheckpointError, match=r"expected \*\.safetensors files, found none"):
        Checkpoint.open(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedError, match="GGUF"):
        Checkpoint.open(tmp_path)
    write_file(tmp_path / "model.safetensors", {"a": torch.ones(2)})
    with pytest.raises(UnsupportedError, match="found a file"):
        Checkpoint.open(tmp_path / "model.safetensors")
    with pytest.raises(ConfigError):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    "text", ("", "[]", "{", "[" * 100_000, '{"a":' * 50_000, '{"a":' + "9" * 10_000 + "}", "\ud800")
)
def test_bad_config(tmp_path: Path, text: str) -> None:
    directory(tmp_path, {"a": torch.ones(2)})
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError):
        Checkpoint.open(tmp_path)


def test_kinds_are_seen_from_the_tensors(tmp_path: Path) -> None:
    float_layer, nothing = {"p.weight": torch.ones(2, 2)}, {"p.bias": torch.ones(2)}
    both = exl2_tensors() | gptq_tensors() | {"p.weight": torch.ones(2, 2)}
    for index, (tensors, kind) in enumerate(
        [(float_layer, "float"), (gptq_tensors() | float_layer, "gptq"), (both, "exl2"), (nothing, None)]
    ):
        checkpoint = Checkpoint.open(directory(tmp_path / str(index), tensors))
        assert checkpoint.linear_kind("p") == kind
    with pytest.raises(CheckpointError, match=r"expected weight, q_weight \(EXL2\) or qweight \(GPTQ\)"):
        checkpoint.linear("p", 2, 2)
    with pytest.raises(ShapeError):
        checkpoint.linear("p", 0, 2)


def test_other_quantizers_are_named(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "exl3"}}
    checkpoint = Checkpoint.open(directory(tmp_path, {"p.trellis": torch.ones(2)}, config=config))
    with pytest.raises(UnsupportedError, match=r"quantized with 'exl3'"):
        checkpoint.linear("p", 2, 2)


# EXL2


def test_exl2_layer_trims_padding(tmp_path: Path) -> None:
    bias = torch.randn(N).half()
    shards = list(exl2_tensors(bias).items())
    checkpoint = Checkpoint.open(directory(tmp_path, dict(shards[:3]), dict(shards[3:])))
    weight = checkpoint.linear("p", K, N, True)
    assert isinstance(weight, Exl2Weight)
    assert (weight.in_features, weight.out_features, weight.padded_out) == (K, N, 64)
    assert weight.bias is not None
    assert torch.equal(weight.bias, bias)
    assert weight.dequantize().shape == (K, N)
    with pytest.raises(CheckpointError, match="expected no bias"):
        checkpoint.linear("p", K, N, False)


EXL2_FAULTS = {
    "no scales": ({"q_scale": None}, "p.q_scale", "found none"),
    "no permutation": ({"q_invperm": None}, "p.q_invperm", "found none"),
    "inputs": ({"q_invperm": torch.arange(96).int()}, "p.q_invperm", "expected shape [64], found [96]"),
    "outputs": ({"q_weight": torch.zeros(10, 32).int()}, "p.q_weight", "expected shape [words, 64] for 40 outputs"),
    "bias length": ({"bias": torch.ones(40).half()}, "p.bias", "expected shape [64], found [40]"),
    "bias dtype": ({"bias": torch.ones(64).int()}, "p.bias", "expected dtype F16 or BF16 or F32, found I32"),
    "dtype": ({"q_groups": torch.zeros(4).int()}, "p.q_groups", "expected dtype torch.int16"),
    "permutation": ({"q_invperm": torch.zeros(64).int()}, "p.q_invperm", "every number from 0 to 63 once"),
    "scale": ({"q_scale_max": torch.full((2,), torch.inf).half()}, "p.q_scale_max", "finite"),
}


@pytest.mark.parametrize("fault", EXL2_FAULTS)
def test_exl2_faults_name_file_and_tensor(tmp_path: Path, fault: str) -> None:
    change, tensor, message = EXL2_FAULTS[fault]
    tensors = exl2_tensors() | {f"p.{name}": value for name, value in change.items()}
    parts = [(name, value) for name, value in tensors.items() if value is not None]
    changed = {name: value for name, value in parts if name.removeprefix("p.") in change}
    rest = {name: value for name, value in parts if name not in changed}
    checkpoint = Checkpoint.open(directory(tmp_path, rest, changed) if changed else directory(tmp_path, rest))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.linear("p", K, N)
    assert message in str(caught.value)
    assert caught.value.tensor == tensor
    expected_file = tmp_path / "model-1.safetensors" if changed else tmp_path
    assert caught.value.file == str(expected_file)


def test_bias_expected_but_absent(tmp_path: Path) -> None:
    for index, tensors in enumerate((exl2_tensors(), {"p.weight": torch.ones(N, K)})):
        checkpoint = Checkpoint.open(directory(tmp_path / str(index), tensors))
        with pytest.raises(CheckpointError, match=r"expected a bias of (64|40) numbers, found none") as caught:
            checkpoint.linear("p", K, N, True)
        assert caught.value.tensor == "p.bias"


def test_scales_of_zero_bias_is_left_out(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(directory(tmp_path, exl2_tensors(torch.zeros(N).half())))
    assert checkpoint.linear("p", K, N, False).bias is None
    assert checkpoint.linear("p", K, N, True).bias is not None


# Float


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32))
def test_float_layer(tmp_path: Path, dtype: torch.dtype) -> None:
    source = torch.randn(N, K).to(dtype)
    checkpoint = Checkpoint.open(directory(tmp_path, {"p.weight": source, "p.bias": torch.ones(N).to(dtype)}))
    weight = checkpoint.linear("p", K, N)
    assert isinstance(weight, DenseWeight)
    assert torch.equal(weight.dequantize(), source.t())
    assert (weight.in_features, weight.out_features, weight.kind) == (K, N, "float")
    assert weight.bits_per_weight == 8 * dtype.itemsize
    assert weight.nbytes == (K * N + N) * dtype.itemsize
    with pytest.raises(CheckpointError, match=r"expected shape \[64, 40\], found \[40, 64\]"):
        checkpoint.linear("p", N, K)


def test_weights_of_whole_numbers_are_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(directory(tmp_path, {"p.weight": torch.ones(N, K).int()}))
    with pytest.raises(UnsupportedError, match="found I32"):
        checkpoint.linear("p", K, N)


# GPTQ


@pytest.mark.parametrize(
    ("settings", "v2", "gptqmodel"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, False, False),
        ({"quantization_config": {"quant_method": "gptq", "checkpoint_format": "gptq_v2"}}, True, False),
        ({"quantization_config": {"format": "gptq_v2", "meta": {"quantizer": ["gptqmodel:4.0.0"]}}}, True, True),
        ({"quantization_config": {"checkpoint_format": "gptq", "meta": {"quantizer": "gptqmodel:1"}}}, False, True),
        ({}, False, False),
    ],
)
def test_gptq_settings(tmp_path: Path, settings: dict[str, object], v2: bool, gptqmodel: bool) -> None:
    checkpoint = Checkpoint.open(directory(tmp_path, gptq_tensors(), config=settings))
    weight = checkpoint.linear("p", K, 64, False)
    assert isinstance(weight, GptqWeight)
    assert (weight.v2, weight.gptqmodel, weight.bits, weight.group_size) == (v2, gptqmodel, 4, 32)
    assert weight.g_idx is None  # in order: not needed
    assert weight.bias is None  # all zero: not there
    assert set(weight.zeros.flatten().tolist()) == {7 if v2 else 8}


@pytest.mark.parametrize("name", ("quantize_config.json", "quant_config.json"))
def test_gptq_settings_in_a_file_of_their_own(tmp_path: Path, name: str) -> None:
    directory(tmp_path, gptq_tensors())
    (tmp_path / name).write_text(json.dumps({"bits": 4, "checkpoint_format": "gptq_v2"}))
    weight = Checkpoint.open(tmp_path).linear("p", K, 64)
    assert isinstance(weight, GptqWeight)
    assert weight.v2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"quant_method": "awq"}, "awq"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "marlin"),
        ({"quant_method": "gptq", "is_marlin_format": True}, "marlin"),
        ({"quant_method": "gptq", "checkpoint_format": "bitblas"}, "bitblas"),
        ({"quant_method": "gptq", "pack_dtype": "int16"}, "int16"),
        ({"quant_method": 3}, "3"),
        ({"checkpoint_format": ["gptq"]}, "gptq"),
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, settings: dict[str, object], named: str) -> None:
    checkpoint = Checkpoint.open(directory(tmp_path, gptq_tensors(), config={"quantization_config": settings}))
    with pytest.raises(UnsupportedError, match=named) as caught:
        checkpoint.linear("p", K, 64)
    assert "EXL2" in (caught.value.hint or "")


def test_awq_without_a_config_is_recognised(tmp_path: Path) -> None:
    tensors = gptq_tensors() | {"p.qweight": torch.zeros(K, 8, dtype=torch.int32)}
    with pytest.raises(UnsupportedError, match="AWQ"):
        Checkpoint.open(directory(tmp_path, tensors)).linear("p", K, 64)


GPTQ_FAULTS = {
    "no zeros": ({"qzeros": None}, "p.qzeros", "found none"),
    "no scales": ({"scales": None}, "p.scales", "found none"),
    "five bits": ({"qweight": torch.zeros(10, 64).int()}, "p.qweight", "bits / 32, 64]"),
    "outputs": ({"qweight": torch.zeros(8, 32).int()}, "p.qweight", "bits / 32, 64]"),
    "no rows": ({"qweight": torch.zeros(0, 64).int()}, "p.qweight", "not empty"),
    "scales": ({"scales": torch.ones(2, 32).half()}, "p.scales", "expected shape [groups, 64]"),
    "scale dtype": ({"scales": torch.ones(2, 64).int()}, "p.scales", "F16 or BF16 or F32"),
    "large scales": ({"scales": torch.full((2, 64), 1e30)}, "p.scales", "finite numbers in float16"),
    "zeros": ({"qzeros": torch.zeros(2, 4).int()}, "p.qzeros", "expected shape (2, 8)"),
    "g_idx length": ({"g_idx": torch.zeros(32).int()}, "p.g_idx", "expected shape [64]"),
    "g_idx dtype": ({"g_idx": torch.zeros(64)}, "p.g_idx", "expected dtype I32"),
    "g_idx beyond": ({"g_idx": torch.full((64,), 2).int()}, "p.g_idx", "from 0 to 1"),
    "bias": ({"bias": torch.ones(64).half()}, "p.bias", "expected no bias"),
    "three groups": (
        {"scales": torch.ones(5, 64).half(), "qzeros": torch.zeros(5, 8).int(), "g_idx": None},
        "p.scales",
        "4 groups of 16 rows",
    ),
}


@pytest.mark.parametrize("fault", GPTQ_FAULTS)
def test_gptq_faults_name_the_tensor(tmp_path: Path, fault: str) -> None:
    change, tensor, message = GPTQ_FAULTS[fault]
    tensors = gptq_tensors() | {f"p.{name}": value for name, value in change.items()}
    present = {name: value for name, value in tensors.items() if value is not None}
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory(tmp_path, present)).linear("p", K, 64, False)
    assert message in str(caught.value)
    assert caught.value.tensor == tensor


def test_gptq_bias_that_counts(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(directory(tmp_path, gptq_tensors() | {"p.bias": torch.ones(64)}))
    bias = checkpoint.linear("p", K, 64, True).bias
    assert bias is not None
    assert bias.dtype == torch.float16


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_gptq_scales_become_fp16(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = gptq_tensors()
    plain = Checkpoint.open(directory(tmp_path / "a", tensors)).linear("p", K, 64)
    wide = tensors | {"p.scales": tensors["p.scales"].to(dtype)}
    other = Checkpoint.open(directory(tmp_path / "b", wide)).linear("p", K, 64)
    assert isinstance(other, GptqWeight)
    assert other.scales.dtype == torch.float16
    assert torch.allclose(other.dequantize(), plain.dequantize(), rtol=0.01)


VARIANTS = [
    {"bits": 4, "group_size": 128},
    {"bits": 4, "group_size": 32, "sym": False, "desc_act": True},
    {"bits": 4, "group_size": -1, "sym": False, "v2": True},
    {"bits": 4, "group_size": 64, "sym": False, "quantizer": "gptqmodel:4.0.0", "settings_in": "quantize_config.json"},
    {"bits": 2, "group_size": 32, "sym": False, "v2": True, "desc_act": True},
    {"bits": 3, "group_size": 128, "sym": False, "desc_act": True},
    {"bits": 3, "group_size": 64, "sym": False, "quantizer": "gptqmodel:4.0.0"},
    {"bits": 8, "group_size": 128, "sym": True, "desc_act": True},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_gptq_model_of_another_writer(nano_chat: Path, tmp_path: Path, variant: dict[str, object]) -> None:
    """Every layer decodes to exactly the weights its writer meant."""
    meant = write_gptq_model(nano_chat, tmp_path, **variant)  # type: ignore[arg-type]
    with Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.linear_kind("lm_head") is None
        for prefix, expected in meant.items():
            assert checkpoint.linear_kind(prefix) == "gptq"
            weight = checkpoint.linear(prefix, *expected.shape, False)
            assert isinstance(weight, GptqWeight)
            assert weight.bits == variant["bits"]
            assert torch.equal(weight.dequantize(), torch.from_numpy(expected)), prefix
            scattered = bool(variant.get("desc_act")) and variant["group_size"] != -1
            assert (weight.perm is not None) == scattered


# A real file


def test_real_exl2_file_decodes_to_its_source(nano_chat: Path, nano_chat_exl2: Path) -> None:
    """The error of each layer follows from its bits: 0.12 at 4, half of that for each bit more."""
    with Checkpoint.open(nano_chat) as source, Checkpoint.open(nano_chat_exl2) as quantized:
        prefixes = [name.removesuffix(".q_weight") for name in quantized.names if name.endswith(".q_weight")]
        assert len(prefixes) == 8 * 7 + 1
        squared_error = squared = 0.0
        for prefix in prefixes:
            original = "model.embed_tokens.weight" if prefix == "lm_head" else f"{prefix}.weight"
            expected = source.tensor(original).float().t()
            weight = quantized.linear(prefix, *expected.shape, False)
            assert isinstance(weight, Exl2Weight)
            decoded = weight.dequantize().float()
            error = float((decoded - expected).norm() / expected.norm())
            usual = sum(group.rows * (0.12 * 2.0 ** (4 - group.bits)) ** 2 for group in weight.groups)
            usual = (usual / weight.in_features) ** 0.5
            assert 0.5 * usual < error < 1.5 * usual, f"{prefix}: {error:.3f}, {usual:.3f} is usual for its bits"
            squared_error += float((decoded - expected).square().sum())
            squared += float(expected.square().sum())
        assert (squared_error / squared) ** 0.5 < 0.2  # the allocation gave some layers 2 and 3 bits
        assert torch.equal(quantized.tensor("model.norm.weight"), source.tensor("model.norm.weight"))


def test_real_exl2_file_survives_a_stale_index(nano_chat: Path, nano_chat_exl2: Path, tmp_path: Path) -> None:
    for path in nano_chat_exl2.iterdir():
        (tmp_path / path.name).symlink_to(path)
    shutil.copyfile(nano_chat / "model.safetensors.index.json", tmp_path / "model.safetensors.index.json")
    checkpoint = Checkpoint.open(tmp_path)
    assert isinstance(checkpoint.linear("lm_head", 384, 8192, False), Exl2Weight)
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002\.safetensors.*finish the download"):
        checkpoint.linear("model.layers.8.mlp.up_proj", 384, 640)


def test_real_layers_encode_to_the_same_bytes(nano_chat_exl2: Path) -> None:
    """decode to codes, encode again: what the reference program wrote."""
    checkpoint = Checkpoint.open(nano_chat_exl2)
    for prefix, K_, N_ in (("model.layers.0.mlp.down_proj", 640, 384), ("lm_head", 384, 8192)):
        weight = checkpoint.linear(prefix, K_, N_)
        assert isinstance(weight, Exl2Weight)
        again = Exl2Weight.from_codes(
            torch.cat([weight.codes(group) for group in weight.groups]),
            (weight.q_scale[:, :, None] >> torch.arange(0, 32, 4) & 15).flatten(1).to(torch.uint8),
            weight.q_scale_max,
            [(group.bits, group.rows) for group in weight.groups],
            weight.perm,
        )
        for name, tensor in again.stored_tensors(prefix).items():
            assert torch.equal(tensor, checkpoint.tensor(name)), name
