"""What a directory says about its GPTQ tensors: the few settings that the tensors themselves do not show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from exl2_tui.core.errors import UnsupportedError
from exl2_tui.core.json_keys import read_json_object

SETTINGS_FILES = ("quantize_config.json", "quant_config.json")
_ZERO_FORMATS = {"gptq": False, "gptq_v2": True}
_HINT = "Use a copy in EXL2 or in GPTQ with checkpoint_format gptq or gptq_v2"


@dataclass(frozen=True)
class GptqSettings:
    """group_size: rows per group, None if unknown or all. v2, gptqmodel: see formats.gptq.GptqWeight."""

    group_size: int | None
    v2: bool
    gptqmodel: bool

    @classmethod
    def read(cls, directory: Path, config: Mapping[str, object]) -> GptqSettings:
        """From quantization_config in config.json or, where that is missing, from a file of its own.

        Raises UnsupportedError for the layouts of other programs that share GPTQ's tensor names.
        """
        file = directory / "config.json"
        settings = config.get("quantization_config")
        if not isinstance(settings, dict):
            settings = {}
            for name in SETTINGS_FILES:
                if (directory / name).is_file():
                    file = directory / name
                    settings = read_json_object(file)
                    break
        return cls._from_settings(settings, file)

    @classmethod
    def _from_settings(cls, settings: Mapping[str, object], file: Path) -> GptqSettings:
        method = settings.get("quant_method", "gptq")
        if method not in ("gptq", "exl2"):
            raise UnsupportedError(f"the weights are in the layout {method!r}, not GPTQ's", file=file, hint=_HINT)
        layout = settings.get("checkpoint_format", settings.get("format", "gptq"))
        if settings.get("is_marlin_format") is True:
            layout = "marlin"
        if not isinstance(layout, str) or layout not in _ZERO_FORMATS:
            raise UnsupportedError(f"the GPTQ weights are in the layout {layout!r}", file=file, hint=_HINT)
        words = settings.get("pack_dtype", "int32")
        if words != "int32":
            raise UnsupportedError(f"the GPTQ codes are packed into {words!r} words, not int32", file=file, hint=_HINT)
        size = settings.get("group_size", settings.get("q_group_size"))
        meta = settings.get("meta")
        quantizer = meta.get("quantizer") if isinstance(meta, dict) else None
        return cls(
            group_size=size if type(size) is int and size > 0 else None,
            v2=_ZERO_FORMATS[layout],
            gptqmodel="gptqmodel" in str(quantizer).lower(),
        )
