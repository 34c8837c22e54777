"""The child process of sandbox.py: renders one template after another. Run as a script, never imported.

One JSON object per line on standard input, one per line on standard output: {"source", "variables", "max_output"} gives
{"text"} or {"error"}. Ends with its input.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any, NoReturn

sys.path += sys.argv[1:]

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES = 512 << 20
CPU_SECONDS = 2


class Generation(Extension):
    """{% generation %} ... {% endgeneration %} marks replies for training; here it is only its body."""

    tags: set[str] = {"generation"}  # noqa: RUF012 - the type that Extension declares

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def raise_exception(message: object) -> NoReturn:
    raise TemplateError(str(message))


def strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without HTML escapes, as chat templates expect it."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def make_environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


def limit_process() -> None:
    """Limits that hold for the whole life of the process."""
    try:
        import resource
    except ImportError:  # not a POSIX system: the parent's clock is the limit
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def allow_time() -> None:
    """CPU_SECONDS more of processor time, after which the system ends the process."""
    try:
        import resource
    except ImportError:
        return
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (used + CPU_SECONDS, hard))


def render(template: Template, variables: dict[str, Any], max_output: int) -> str:
    chunks: list[str] = []
    size = 0
    for chunk in template.generate(**variables):
        size += len(chunk)
        if size > max_output:
            raise TemplateError(f"it writes more than {max_output} characters")
        chunks.append(chunk)
    return "".join(chunks)


def answer_with(answer: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    limit_process()
    environment = make_environment()
    source, template = "", environment.from_string("")
    answer_with({})
    for line in sys.stdin.buffer:
        allow_time()
        try:
            request = json.loads(line)
            if request["source"] != source:
                template = environment.from_string(request["source"])
                source = request["source"]
            answer = {"text": render(template, request["variables"], request["max_output"])}
        except MemoryError:
            answer = {"error": "it needs too much memory"}
        except RecursionError:
            answer = {"error": "it is nested too deeply"}
        except Exception as error:  # noqa: BLE001 - whatever a hostile template raises is its author's fault
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        answer_with(answer)


if __name__ == "__main__":
    main()
