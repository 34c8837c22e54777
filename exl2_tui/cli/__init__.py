"""The command line: one module per command, each importing the core inside its body so that --help answers at once."""

from __future__ import annotations

import os
import sys

import typer

from exl2_tui.cli import bench, chat, convert, doctor, evaluate, generate, jobs, models, modes
from exl2_tui.cli.output import complain
from exl2_tui.core.errors import CancelledError, Exl2Error

app = typer.Typer(
    name="exl2-tui",
    help="Run and make quantized language models in the terminal. Without a command: the full-screen chat.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.callback(invoke_without_command=True)(chat.default)
app.command("chat")(chat.chat)
app.command("generate")(generate.generate)
app.add_typer(models.app, name="models")
app.command("modes")(modes.modes)
app.add_typer(evaluate.app, name="eval")
app.command("convert")(convert.convert)
app.add_typer(jobs.app, name="jobs")
app.command("bench")(bench.bench)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Run the command line; expected errors become one readable line and exit status 1."""
    try:
        app()
    except (KeyboardInterrupt, CancelledError):
        # Everything has been closed by now; taking torch apart would keep a person waiting.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130)
    except BrokenPipeError:
        # The reader (head, less) has gone; keep the interpreter from complaining about it while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exl2Error as error:
        complain(error)
        sys.exit(1)
    except OSError as error:
        complain(Exl2Error(error.strerror or str(error), file=error.filename or "the output"))
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what could not be written stays unwritten
        sys.exit(1)
