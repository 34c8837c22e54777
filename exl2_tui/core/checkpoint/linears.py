"""The tensors of one linear layer, taken from a checkpoint and checked against what the model expects.

Shapes are compared from the headers before data is touched; then each format checks its own values.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from exl2_tui.core.checkpoint.gptq_settings import GptqSettings
from exl2_tui.core.checkpoint.header import TensorInfo
from exl2_tui.core.errors import CheckpointError, UnsupportedError
from exl2_tui.core.formats import DenseWeight, Exl2Weight, GptqWeight, LinearWeight
from exl2_tui.core.formats.exl2 import padded_columns
from exl2_tui.core.formats.gptq import GPTQ_BITS

EXL2_TENSORS = ("q_weight", "q_scale", "q_scale_max", "q_groups", "q_invperm")
GPTQ_TENSORS = ("qweight", "qzeros", "scales", "g_idx")
LINEAR_TENSORS = (*EXL2_TENSORS, *GPTQ_TENSORS, "weight", "bias")
FLOATS = ("F16", "BF16", "F32")


class TensorReader(Protocol):
    """What reading a layer needs of a checkpoint."""

    def info(self, name: str) -> TensorInfo: ...
    def tensor(self, name: str) -> Tensor: ...
    def __contains__(self, name: object) -> bool: ...
    @property
    def gptq_settings(self) -> GptqSettings: ...


def read_linear(
    reader: TensorReader,
    kind: Literal["exl2", "gptq", "float"],
    prefix: str,
    in_features: int,
    out_features: int,
    bias: bool | None,
) -> LinearWeight:
    """The layer of the given kind. Raises CheckpointError or UnsupportedError naming file, tensor, expected, found."""
    if kind == "exl2":
        return _read_exl2(reader, prefix, in_features, out_features, bias)
    if kind == "gptq":
        return _read_gptq(reader, prefix, in_features, out_features, bias)
    return _read_float(reader, prefix, in_features, out_features, bias)


def _read_exl2(reader: TensorReader, prefix: str, in_features: int, out_features: int, bias: bool | None) -> Exl2Weight:
    for suffix in EXL2_TENSORS:
        reader.info(f"{prefix}.{suffix}")
    padded = padded_columns(out_features)
    _expect_shape(reader, f"{prefix}.q_invperm", (in_features,))
    info = reader.info(f"{prefix}.q_weight")
    if len(info.shape) != 2 or info.shape[1] != padded:
        raise _wrong(info, f"shape [words, {padded}] for {out_features} outputs", list(info.shape))
    loaded_bias = _read_bias(reader, prefix, padded, bias)
    weight = Exl2Weight(
        q_weight=reader.tensor(f"{prefix}.q_weight"),
        q_scale=reader.tensor(f"{prefix}.q_scale"),
        q_scale_max=reader.tensor(f"{prefix}.q_scale_max"),
        q_groups=reader.tensor(f"{prefix}.q_groups"),
        q_invperm=reader.tensor(f"{prefix}.q_invperm"),
        bias=None if loaded_bias is None else loaded_bias[:out_features].half(),
        out_features=out_features,
    )
    _validate(reader, weight, prefix)
    return weight


def _read_gptq(reader: TensorReader, prefix: str, in_features: int, out_features: int, bias: bool | None) -> GptqWeight:
    settings = reader.gptq_settings
    info = reader.info(f"{prefix}.qweight")
    scales_info = reader.info(f"{prefix}.scales")
    reader.info(f"{prefix}.qzeros")
    bits = _gptq_bits(info, in_features, out_features)
    if len(scales_info.shape) != 2 or scales_info.shape[1] != out_features or not scales_info.shape[0]:
        raise _wrong(scales_info, f"shape [groups, {out_features}]", list(scales_info.shape))
    _expect_dtype(scales_info, FLOATS)
    groups = scales_info.shape[0]
    if groups > in_features:
        raise _wrong(scales_info, f"at most {in_features} groups", groups)
    group_size = _derived_group_size(in_features, groups, settings.group_size)
    if f"{prefix}.g_idx" in reader:
        _expect_shape(reader, f"{prefix}.g_idx", (in_features,), ("I32",))
        g_idx, group_size = _simplified(reader.tensor(f"{prefix}.g_idx"), group_size, groups)
    else:
        g_idx = None
    if g_idx is None and -(-in_features // group_size) != groups:
        expected = f"{-(-in_features // group_size)} groups of {group_size} rows"
        raise _wrong(scales_info, expected, f"{groups} groups and no g_idx to tell their rows")
    loaded_bias = _read_bias(reader, prefix, out_features, bias, drop_zeros=True)
    weight = GptqWeight(
        qweight=reader.tensor(f"{prefix}.qweight"),
        qzeros=reader.tensor(f"{prefix}.qzeros"),
        scales=reader.tensor(f"{prefix}.scales").half(),
        g_idx=g_idx,
        bias=None if loaded_bias is None else loaded_bias.half(),
        bits=bits,
        group_size=group_size,
        v2=settings.v2,
        gptqmodel=settings.gptqmodel,
    )
    _validate(reader, weight, prefix)
    return weight


def _gptq_bits(info: TensorInfo, in_features: int, out_features: int) -> int:
    """The width that follows from the shape of qweight; recognises AWQ, which packs along the columns instead."""
    if len(info.shape) != 2 or not all(info.shape):
        raise _wrong(info, "a matrix that is not empty", list(info.shape))
    rows, columns = info.shape
    if rows == in_features and columns < out_features:
        raise UnsupportedError(
            f"expected GPTQ codes packed down {in_features} input rows, found shape {list(info.shape)} as AWQ packs it",
            file=info.file,
            tensor=info.name,
            hint="Use a copy in EXL2 or GPTQ",
        )
    bits, rest = divmod(32 * rows, in_features)
    if rest or bits not in GPTQ_BITS or columns != out_features:
        expected = f"shape [{in_features} * bits / 32, {out_features}] with bits in {GPTQ_BITS}"
        raise _wrong(info, expected, list(info.shape))
    return bits


def _derived_group_size(in_features: int, groups: int, configured: int | None) -> int:
    """Rows per group: as configured if that fits the number of groups, else the smallest power of two that does."""
    if groups == 1:
        return in_features
    if configured is not None and -(-in_features // configured) == groups:
        return configured
    return 1 << (-(-in_features // groups) - 1).bit_length()


def _simplified(g_idx: Tensor, group_size: int, groups: int) -> tuple[Tensor | None, int]:
    """g_idx and group size; g_idx is None where the groups simply lie one after another.

    All zeros mean that too, whatever the number of groups: writers without act-order leave it so.
    """
    if not bool(g_idx.any()):
        return None, group_size
    if int(g_idx.min()) < 0 or int(g_idx.max()) >= groups:
        return g_idx, group_size  # validate() names it
    first = int((g_idx == 0).sum())
    size = first if first > 0 and -(-g_idx.numel() // first) == groups else group_size
    in_order = torch.equal(g_idx, (torch.arange(g_idx.numel()) // size).int())
    return None if in_order else g_idx, size


def _read_bias(
    reader: TensorReader, prefix: str, length: int, expected: bool | None, *, drop_zeros: bool = False
) -> Tensor | None:
    """The bias where the model has one. One of zeros that it does not have is left out, other ones are an error."""
    name = f"{prefix}.bias"
    if name not in reader:
        if expected:
            raise CheckpointError(
                f"expected a bias of {length} numbers, found none",
                file=reader.info(_weight_name(reader, prefix)).file,
                tensor=name,
            )
        return None
    info = _expect_shape(reader, name, (length,), FLOATS)
    bias = reader.tensor(name)
    if expected or (expected is None and not drop_zeros):
        return bias
    if not bool(bias.any()):
        return None
    if expected is None:
        return bias
    raise _wrong(info, "no bias, as config.json says", "one that is not zero")


def _weight_name(reader: TensorReader, prefix: str) -> str:
    return next(name for suffix in LINEAR_TENSORS if (name := f"{prefix}.{suffix}") in reader)


def _read_float(
    reader: TensorReader, prefix: str, in_features: int, out_features: int, bias: bool | None
) -> DenseWeight:
    info = _expect_shape(reader, f"{prefix}.weight", (out_features, in_features))
    if info.dtype not in FLOATS:
        raise UnsupportedError(
            f"expected a dtype of {', '.join(FLOATS)}, found {info.dtype}",
            file=info.file,
            tensor=info.name,
            hint="Use a copy in EXL2, GPTQ or 16-bit floats",
        )
    return DenseWeight(reader.tensor(info.name), _read_bias(reader, prefix, out_features, bias))


def _validate(reader: TensorReader, weight: Exl2Weight | GptqWeight, prefix: str) -> None:
    """The format's own checks; the error names the file of its tensor, which may be another than the layer's first."""
    try:
        weight.validate(prefix=prefix)
    except CheckpointError as error:
        file = reader.info(error.tensor).file if error.tensor else None
        raise CheckpointError(error.message, file=file, tensor=error.tensor) from error


def _expect_shape(reader: TensorReader, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...] = ()) -> TensorInfo:
    """The tensor's info. Raises CheckpointError for another shape or, if any are given, a dtype not among `dtypes`."""
    info = reader.info(name)
    if info.shape != shape:
        raise _wrong(info, f"shape {list(shape)}", list(info.shape))
    if dtypes:
        _expect_dtype(info, dtypes)
    return info


def _expect_dtype(info: TensorInfo, dtypes: tuple[str, ...]) -> None:
    if info.dtype not in dtypes:
        raise _wrong(info, f"dtype {' or '.join(dtypes)}", info.dtype)


def _wrong(info: TensorInfo, expected: str, found: object) -> CheckpointError:
    return CheckpointError(f"expected {expected}, found {found}", file=info.file, tensor=info.name)
