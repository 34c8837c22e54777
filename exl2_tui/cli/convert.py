"""`exl2-tui convert` makes EXL2 models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from exl2_tui.cli import options as opt
from exl2_tui.cli.conversion import run_job
from exl2_tui.core.errors import ConfigError
from exl2_tui.core.requests import Allocation, ConvertRequest, RecipeName


def convert(
    source: Annotated[
        str, typer.Option("-i", "--in-dir", help="Model, float16, bfloat16 or float32: a directory or a name.")
    ],
    work: Annotated[Path, typer.Option("-o", "--out-dir", help="Work directory; the same command resumes it.")],
    bits: Annotated[str, typer.Option("-b", "--bits", help="Average bits per weight, 2 to 8; several: 3.0,4.0.")] = "4",
    calibration: Annotated[
        Path | None, typer.Option("-c", "--cal-dataset", help="Text, JSONL or parquet; default: a built-in set.")
    ] = None,
    column: Annotated[str | None, typer.Option("--column", help="Column of the calibration file.")] = None,
    measurement: Annotated[
        Path | None, typer.Option("-m", "--measurement", help="measurement.json to reuse instead of measuring.")
    ] = None,
    measure_to: Annotated[
        Path | None, typer.Option("-om", "--output-measurement", help="Stop after measuring and write it here.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-cf", "--compile-full", help="Where the finished model goes; default: in -o.")
    ] = None,
    head_bits: Annotated[
        str, typer.Option("-hb", "--head-bits", help="2, 3, 4, 5, 6, 8, or auto: inside the budget of a 6-bit head.")
    ] = "6",
    rows: Annotated[
        int | None, typer.Option("-r", "--dataset-rows", min=1, help="Calibration rows; default: 100.")
    ] = None,
    length: Annotated[
        int | None,
        typer.Option("-l", "--length", min=32, help="Tokens per row; default: 2048 or the context."),
    ] = None,
    measure_rows: Annotated[
        int | None, typer.Option("-mr", "--measurement-rows", min=1, help="Rows that measure; default: 16.")
    ] = None,
    measure_length: Annotated[
        int | None, typer.Option("-ml", "--measurement-length", min=32, help="Tokens of these; default: as -l.")
    ] = None,
    shard_size: Annotated[int, typer.Option("-ss", "--shard-size", min=0, help="MiB per file; 0: one file.")] = 8192,
    recipe: Annotated[
        str, typer.Option("--recipe", help="refined, or classic: as the reference converter.")
    ] = "refined",
    allocation: Annotated[
        str, typer.Option("--allocation", help="sum, or largest: which of the errors is made small.")
    ] = "sum",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    fresh: Annotated[bool, typer.Option("-nr", "--no-resume", help="Delete the job in -o and start anew.")] = False,
    json: opt.Json = False,
) -> None:
    """Quantize a model to EXL2. Interrupted by Ctrl-C or a crash, the same command goes on where it was."""
    request = ConvertRequest(
        source=str(opt.find_model(source or ".")),
        work=str(work.expanduser().resolve()),
        bits=parse_bits(bits),
        head_bits=parse_head_bits(head_bits),
        recipe=cast("RecipeName", recipe),  # ConvertRequest refuses other names
        allocation=cast("Allocation", allocation),
        output=_absolute(output),
        calibration=_absolute(calibration),
        column=column,
        rows=rows,
        length=length,
        measure_rows=measure_rows,
        measure_length=measure_length,
        measurement=_absolute(measurement),
        measure_to=_absolute(measure_to),
        shard_size=shard_size,
        device=device,
    )
    run_job(request, fresh=fresh, json=json)


def parse_bits(text: str) -> tuple[float, ...]:
    """ "3.0,4" -> (3.0, 4.0). Raises ConfigError."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"bits are {text!r}, but must be numbers separated by commas") from None


def parse_head_bits(text: str) -> int | None:
    """ "6" -> 6, "auto" -> None. Raises ConfigError."""
    if text == "auto":
        return None
    if not text.isdecimal():
        raise ConfigError(f"head bits are {text!r}, but must be one of 2, 3, 4, 5, 6, 8, or auto")
    return int(text)


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.expanduser().resolve())
