"""Templates of models: where they are found, what they may use, and that hostile ones do no harm."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from exl2_tui.core.errors import PromptError
from exl2_tui.core.prompts import encode_chat
from exl2_tui.core.prompts.sandbox import SANDBOX, Sandbox
from exl2_tui.core.prompts.template import MAX_SOURCE_BYTES, find_template
from exl2_tui.core.requests import Message
from exl2_tui.core.tokenizer import Tokenizer

HELLO = [Message("user", "Hello")]
LLAMA = SimpleNamespace(architecture="LlamaForCausalLM")


@pytest.fixture
def model(nano_chat: Path, tmp_path: Path) -> Path:
    """A copy of nano-chat's tokenizer without its template."""
    (tmp_path / "tokenizer.json").write_bytes((nano_chat / "tokenizer.json").read_bytes())
    return tmp_path


def render(source: str, **variables: object) -> str:
    return SANDBOX.render(source, variables, 100_000)


def test_functions_that_templates_use() -> None:
    assert render("{{ [1, 'ä<'] | tojson }}") == '[1, "ä<"]'
    assert render("{{ {'b': 1, 'a': 2} | tojson(indent=2, sort_keys=True) }}") == '{\n  "a": 2,\n  "b": 1\n}'
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10
    assert render("{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}"
                  "{{ i }}{% endfor %}") == "013"  # fmt: skip
    assert (
        render("{% if true %}\n  {% set ns = namespace(x=1) %}\n{% set ns.x = 2 %}\nx{{ ns.x }}\n{% endif %}") == "x2\n"
    )
    assert render("{% macro m(a) %}[{{ a }}]{% endmacro %}{{ m('b') }}") == "[b]"
    assert render("{% generation %}{{ 'a' }}{% endgeneration %}!") == "a!"
    assert render("{{ missing }}{{ x.y }}", x={}) == ""
    with pytest.raises(PromptError, match="no system"):
        render("{{ raise_exception('no system') }}")


HOSTILE = {
    "big range": "{% for i in range(10**9) %}{% endfor %}",
    "big string": "{{ 'a' * 10**10 }}",
    "big power": "{{ 10 ** (10 ** 9) }}",
    "big list": "{{ ([0] * 10**10) | length }}",
    "big format": "{{ '%1000000000000d' % 1 }}",
    "big format method": "{{ '{:1000000000000}'.format(1) }}",
    "big centre": "{{ 'a' | center(10**11) }}",
    "doubling": "{% set n = namespace(s='aaaaaaaaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "replacing": "{% set n = namespace(s='aaaaaaaaaa') %}{% for i in range(9) %}{% set n.s = n.s.replace('a', n.s) %}"
    "{% endfor %}",
    "much output": "{% for a in range(99999) %}{{ 'aaaaaaaaaaaaaaaa' }}{% endfor %}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "deep source": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "deep blocks": "{% if 1 %}" * 5000,
    "many digits": "{{ (10 ** 100000) | string }}{% for i in range(99999) %}{{ 10 ** 20000 // 3 ** 9999 }}{% endfor %}",
    "internals": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['sys'].exit() }}",
    "format internals": "{{ '{0.__class__.__mro__}'.format(messages) + 1 }}",
    "changing data": "{{ messages.append(1) }}",
    "importing": "{% import 'os' as os %}",
    "including": "{% include '/etc/passwd' %}",
    "syntax": "{% for %}",
    "wrong operation": "{{ 1 + 'a' }}",
    "division": "{{ 1 // 0 }}",
    "surrogate": "{{ '\\ud800' + 1 }}",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_soon(name: str) -> None:
    with pytest.raises(PromptError) as caught:
        render(HOSTILE[name], messages=[{"role": "user", "content": "x"}])
    assert caught.value.message
    assert render("{{ 1 }}") == "1"  # the next template renders as if nothing had been


def test_a_killed_template_is_not_tried_again() -> None:
    sandbox = Sandbox()
    source = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(PromptError, match="too much time"):
        sandbox.render(source, {}, 1000)
    assert sandbox._process is None
    with pytest.raises(PromptError, match="too much time"):
        sandbox.render(source, {}, 1000)
    assert sandbox._process is None  # none was started for it


def test_the_child_is_isolated_and_ends() -> None:
    sandbox = Sandbox()
    assert sandbox.render("{{ a }}", {"a": "ä\ud800"}, 100) == "ä\ud800"
    process = sandbox._process
    assert process is not None and process.poll() is None
    if Path("/proc").is_dir():
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert b"HOME=" not in environment and b"PATH=" not in environment.replace(b"_PATH=", b"")
        assert os.getsid(process.pid) != os.getsid(0)
    sandbox.close()
    assert process.poll() is not None
    assert sandbox.render("again", {}, 100) == "again"
    assert sandbox._process is not None
    sandbox._process.kill()  # as the system does when memory is short
    sandbox._process.wait()
    assert sandbox.render("and again", {}, 100) == "and again"
    sandbox.close()


def test_where_templates_are_found(model: Path) -> None:
    tokenizer = Tokenizer.load(model)

    def found() -> str | None:
        template = find_template(model, tokenizer)
        return None if template is None else template.source

    assert found() is None
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert found() == "D"
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": named[:1]}))
    assert found() == "T"
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": "C"}))
    assert found() == "C"
    (model / "chat_template.json").write_text(json.dumps({"chat_template": "J"}))
    assert found() == "J"
    (model / "chat_template.jinja").write_text("F")
    assert found() == "F"


def test_templates_know_the_special_tokens(model: Path) -> None:
    (model / "tokenizer_config.json").write_text(
        json.dumps(
            {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": "{{ bos_token }}x{{ eos_token }}"}
        )
    )
    prompt = encode_chat(HELLO, "auto", Tokenizer.load(model), None, model)
    assert prompt.ids[0] == 1 and prompt.ids[-1] == 2


def test_a_doubled_bos_is_single(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ bos_token }}{{ bos_token }}<s>{{ messages[0].content }}")
    (model / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    prompt = encode_chat(HELLO, "auto", Tokenizer.load(model), None, model)
    assert prompt.ids.count(1) == 1 and prompt.ids[0] == 1


def test_system_prompt_for_templates_that_refuse_it(family_dir: Callable[[str], Path]) -> None:
    path = family_dir("gemma")
    tokenizer = Tokenizer.load(path)
    messages = [Message("system", "Be brief."), *HELLO]
    prompt = encode_chat(messages, "auto", tokenizer, None, path)
    assert prompt.mode == "auto" and "no system prompt" in prompt.note
    assert prompt.ids == encode_chat(messages, "gemma", tokenizer, None, path).ids


def test_templates_that_look_into_contents(family_dir: Callable[[str], Path]) -> None:
    path = family_dir("qwen")
    tokenizer = Tokenizer.load(path)
    reply = Message("assistant", "<think>\nhm <|im_end|>\n</think>\n\nFine <|im_end|>.")
    prompt = encode_chat([*HELLO, reply, *HELLO], "auto", tokenizer, None, path)
    shown = tokenizer.decode(prompt.ids, skip_special=False)
    assert "hm" not in shown and "Fine <|im_end|>.<|im_end|>" in shown
    assert prompt.ids.count(tokenizer.token_id("<|im_end|>") or -1) == 3


@pytest.mark.parametrize("source", ["{{ 1 / 0 }}", "{% for %}", "{% for a in range(10**9) %}{% endfor %}"])
def test_broken_templates_fall_back(nano_chat: Path, model: Path, source: str) -> None:
    (model / "chat_template.jinja").write_text(source)
    tokenizer = Tokenizer.load(model)
    prompt = encode_chat(HELLO, "auto", tokenizer, LLAMA, model)
    assert prompt.mode == "chatml"
    assert "cannot be used" in prompt.note and "<|im_start|>" in prompt.note
    assert prompt.ids == encode_chat(HELLO, "chatml", tokenizer, LLAMA, model).ids


@pytest.mark.parametrize("data", [b"x" * (MAX_SOURCE_BYTES + 1), b"\xff\xfe"])
def test_unusable_template_files(model: Path, data: bytes) -> None:
    (model / "chat_template.jinja").write_bytes(data)
    prompt = encode_chat(HELLO, "auto", Tokenizer.load(model), LLAMA, model)
    assert prompt.mode == "chatml" and "cannot be used" in prompt.note


@pytest.mark.parametrize("value", [5, {"a": 1}, [1], [], [{"name": 1}], "", None])
def test_odd_template_values(model: Path, value: object) -> None:
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    assert encode_chat(HELLO, "auto", Tokenizer.load(model), LLAMA, model).mode == "chatml"


@pytest.mark.parametrize(
    ("family", "mode"), [("llama3", "llama3"), ("gemma", "gemma"), ("phi3", "phi3"), ("mistral-v3", "mistral"),
                         ("qwen", "chatml"), ("openchat", "openchat"), ("llama2", "raw")],
)  # fmt: skip
def test_auto_without_a_template(family_dir: Callable[[str], Path], tmp_path: Path, family: str, mode: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes((family_dir(family) / "tokenizer.json").read_bytes())
    tokenizer = Tokenizer.load(tmp_path)
    prompt = encode_chat(HELLO, "auto", tokenizer, LLAMA, tmp_path)
    assert prompt.mode == mode and f"mode {mode} was taken" in prompt.note
    assert encode_chat(HELLO, "auto", tokenizer, None, None).mode == mode


@pytest.mark.parametrize(
    ("name", "mode"),
    [("Llama-2-7b-Chat-exl2", "llama"), ("CodeLlama-13B-Instruct", "codellama"),
     ("Mistral-7B-Instruct-v0.1", "mistral"), ("vicuna-7b-v1.5", "vicuna"),
     ("TinyLlama-1.1B-Chat-v1.0", "tinyllama"), ("Llama-2-7b", "raw")],
)  # fmt: skip
def test_auto_by_name(family_dir: Callable[[str], Path], tmp_path: Path, name: str, mode: str) -> None:
    path = tmp_path / name
    path.mkdir()
    (path / "tokenizer.json").write_bytes((family_dir("llama2") / "tokenizer.json").read_bytes())
    assert encode_chat(HELLO, "auto", Tokenizer.load(path), LLAMA, path).mode == mode
