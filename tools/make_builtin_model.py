"""Makes the built-in model: converts a float16 directory to EXL2 and puts it, with a model card, into the package.

    python tools/make_builtin_model.py MODEL SOURCES.md WORKDIR [--name small-chat] [--bits 4.5]

SOURCES.md is the provenance file of the training text; its attribution paragraph goes into the card.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import textwrap
from pathlib import Path

from exl2_tui.core.job_events import JobFinished, JobProgress, QualityWarning
from exl2_tui.core.quant.job import ConvertJob
from exl2_tui.core.requests import ConvertRequest

PACKAGE = Path(__file__).resolve().parents[1] / "exl2_tui"
KEPT = ("output.safetensors", "config.json", "generation_config.json", "special_tokens_map.json")
KEPT_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
LARGEST = 30_000_000


def attribution(sources: Path) -> str:
    """The paragraph of SOURCES.md that starts with "Attribution for a model card", as one line."""
    found = re.search(r"^Attribution for a model card.*?: *(.*?)(?:\n\n|\Z)", sources.read_text(), re.S | re.M)
    if found is None:
        sys.exit(f"{sources} holds no attribution paragraph")
    return " ".join(found.group(1).split())


def card(name: str, report: dict[str, object], credit: str) -> str:
    """The model card."""
    judged, calibration = report["evaluation"], report["calibration"]
    assert isinstance(judged, dict) and isinstance(calibration, dict)
    size = report["size_bytes"]
    assert isinstance(size, int)
    head = report["chosen_head_bpw"] or report["head_bits"]
    facts = (
        f"Quantized with `exl2-tui convert` ({report['recipe']} recipe): {report['reached_bpw']:.2f} bits per weight, "
        f"output head {head:.3g} bits, {size / 1e6:.1f} MB. Calibrated on {calibration['rows']} rows of "
        f"{calibration['length']} tokens of the converter's built-in set. Against the float16 original on "
        f"{judged['tokens']} held-out tokens of that set: KL divergence {judged['kl_divergence']:.4f}, same most "
        f"probable token {100 * judged['top1_agreement']:.1f} %, perplexity {judged['perplexity']:.2f} (original "
        f"{judged['original_perplexity']:.2f})."
    )
    return f"""# {name}

A small English chat model, trained from scratch for this project so that the program can talk right after it is
installed. Llama architecture, vocabulary of 8,192, context of 1,024 tokens. It understands the prompt modes `chatml`,
`llama` and `raw`. Good at small talk, short stories, definitions, capitals and simple sums; elsewhere it makes things
up with confidence. Do not rely on what it says.

{textwrap.fill(facts, 120)}

## Training text and licences

{textwrap.fill(credit, 120)}

The remaining sources are in the public domain, under MIT or Apache-2.0, or were written for this project. The weights
are the project's own.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("sources", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--name", default="small-chat")
    parser.add_argument("--bits", type=float, default=4.5)
    parser.add_argument("--head-bits", default="auto", help="a number, or auto: inside the budget of a 6-bit head")
    parser.add_argument("--recipe", default="refined", choices=("refined", "classic"))
    parser.add_argument("--rows", type=int, help="calibration rows")
    parser.add_argument("--length", type=int, help="tokens per row")
    parser.add_argument("--measurement", help="measurement.json to reuse")
    options = parser.parse_args()
    credit = attribution(options.sources)

    request = ConvertRequest(
        source=str(options.model),
        work=str(options.work),
        bits=(options.bits,),
        head_bits=None if options.head_bits == "auto" else int(options.head_bits),
        recipe=options.recipe,
        rows=options.rows,
        length=options.length,
        measurement=options.measurement,
    )
    job = ConvertJob.open(request)
    made = Path()
    for event in job.run():
        if isinstance(event, JobProgress):
            print(f"{event.stage} {event.detail}: {event.done} of {event.total}", flush=True)
        elif isinstance(event, QualityWarning):
            print(f"warning: {event.message}")
        elif isinstance(event, JobFinished):
            if event.broken:
                sys.exit("the model is broken")
            made = Path(event.paths[0])
    job.close()

    target = PACKAGE / "builtin" / options.name
    target.mkdir(parents=True, exist_ok=True)
    for file in (*KEPT, *KEPT_TOKENIZER):
        shutil.copyfile(made / file, target / file)
    report = json.loads((made / "report.json").read_text())
    (target / "README.md").write_text(card(options.name, report, credit))
    size = sum(file.stat().st_size for file in target.iterdir())
    print(f"{target.relative_to(PACKAGE.parent)}: {size / 1e6:.1f} MB")
    if size > LARGEST:
        sys.exit(f"that is more than {LARGEST / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
