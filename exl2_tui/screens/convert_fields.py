"""The fields of a conversion: what each is called, takes and means; WizardScreen puts them on the screen."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widget import Widget

from exl2_tui.convert_draft import HEAD_BITS, OFFERED_BITS, RECIPES
from exl2_tui.widgets.field import Choice, Field
from exl2_tui.widgets.path_field import PathInput, StepInput

OTHER = "other…"  # bits that are typed

FIELD_HELP = {
    "source": "a folder with config.json, tokenizer files and *.safetensors of a float16, bfloat16 or float32 model.",
    "bits": "what a weight of the finished model takes on average. 4 to 5 is hard to tell from the original; below 3 "
    "quality falls. Several values, as 3.0, 4.0, share one measurement and make one model each.",
    "head_bits": "bits of the last layer, which names the tokens; it is sensitive and small. auto lets the "
    "measurement decide, at the same size of the file.",
    "recipe": "refined looks for better scales, needs more time and is nearer to the original at the same size; "
    "classic is the recipe of early EXL2 files.",
    "calibration": "text like that the model will be used for: .txt, .jsonl or .parquet. Nothing takes the built-in "
    "mix of prose, code, dialogue and other languages.",
    "rows": "pieces of text the model is fitted to. More are slower and slightly better.",
    "length": "tokens in each of them.",
    "measurement": "a measurement.json of an earlier conversion of the same model: measuring is skipped.",
    "work": "where every finished layer is saved, so that a conversion can stop and go on.",
    "output": "where the finished model is written; Models finds it there.",
}


def labelled(name: str, label: str, control: Widget) -> Field:
    """A control with its label, room for notes about it, and its help."""
    return Field(name, label, control, help_text=FIELD_HELP[name])


def target_fields() -> ComposeResult:
    """All but the source. The id of a control is the name of its field; bits that are typed are in #bits-other."""
    offered = [*(f"{bits:.1f}" if bits != 4.65 else "4.65" for bits in OFFERED_BITS), OTHER]
    other = StepInput(placeholder="4.0 or 3.0, 4.0", compact=True, id="bits-other")
    text, measured = (
        PathInput(placeholder=placeholder, folders=False, id=name)
        for name, placeholder in (("calibration", "built-in mix"), ("measurement", "measure now"))
    )
    length = StepInput(placeholder="2048, or what the model takes", compact=True, id="length")
    yield labelled("bits", "Bits per weight", Vertical(Choice(offered, "4.0", id="bits"), other))
    yield labelled("head_bits", "Head bits", Choice(HEAD_BITS, "6", id="head_bits"))
    yield labelled("recipe", "Recipe", Choice(RECIPES, "refined", id="recipe"))
    yield labelled("calibration", "Calibration", text)
    yield labelled("rows", "Rows", StepInput(placeholder="100", compact=True, id="rows"))
    yield labelled("length", "Tokens per row", length)
    yield labelled("measurement", "Measurement", measured)
    yield labelled("work", "Working folder", PathInput(id="work"))
    yield labelled("output", "Output folder", PathInput(id="output"))
