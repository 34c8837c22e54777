"""The command line, run as a person or a script runs it: in a process of its own, without a terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def surroundings(home: Path) -> dict[str, str]:
    return {**os.environ, "EXL2_TUI_HOME": str(home), "HF_HUB_CACHE": str(home / "no-hub")}


def run(
    home: Path, *arguments: str | Path, stdin: str = "", status: int = 0, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `exl2-tui` with settings of its own and expects an exit status."""
    environment = {**surroundings(home), **(variables or {})}
    command = [sys.executable, "-m", "exl2_tui", *map(str, arguments)]
    result = subprocess.run(
        command, input=stdin, capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert result.returncode == status, f"{result.stdout}\n{result.stderr}"
    return result


def test_help_names_every_command_and_loads_nothing_heavy(home: Path) -> None:
    script = (
        "import sys, exl2_tui.cli\n"
        "heavy = {'torch', 'transformers', 'numpy', 'sentencepiece', 'tokenizers', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)
    shown = run(home, "--help").stdout
    for command in ("chat", "generate", "models", "modes", "eval", "bench", "doctor", "convert", "jobs"):
        assert f"  {command} " in shown


def test_what_is_wrong_is_told_before_a_model_is_loaded(home: Path, tmp_path: Path) -> None:
    """Loading one can take minutes."""
    assert "no prompt mode 'bogus'" in run(home, "chat", "--mode", "bogus", status=1).stderr
    assert "no such file" in run(home, "eval", "perplexity", tmp_path / "nothing", status=1).stderr
    assert "no job is called" in run(home, "jobs", "resume", "nothing", status=1).stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_streams_that_are_closed_lead_to_nowhere(home: Path, closed: str) -> None:
    command = f'"{sys.executable}" -m exl2_tui modes {closed}'
    result = subprocess.run(["sh", "-c", command], env=surroundings(home), capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert ("chatml" in result.stdout) == (closed != ">&-")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_an_output_that_takes_no_more_is_one_line_on_stderr(home: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "exl2_tui", "modes"]
        result = subprocess.run(command, env=surroundings(home), stdout=full, stderr=subprocess.PIPE, check=False)
    assert result.returncode == 1 and result.stderr == b"exl2-tui: the output: No space left on device\n"


def test_generate_streams_the_text_and_tells_the_speeds(home: Path, nano_chat_exl2: Path) -> None:
    result = run(home, "generate", "-m", nano_chat_exl2, "-p", "Once upon a time,", "-n", "12", "-t", "0")
    assert result.stdout.startswith("Once upon a time,")
    assert len(result.stdout) > len("Once upon a time,") + 10
    assert "12 tokens written" in result.stderr
    assert "tokens/s" in result.stderr


def test_generate_reads_the_prompt_from_a_pipe_and_prints_events_as_json(home: Path, nano_chat_exl2: Path) -> None:
    result = run(
        home, "generate", "-m", nano_chat_exl2, "-n", "5", "-t", "0", "--json", stdin="The capital of France is"
    )
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["event"] for event in events if event["event"] == "PromptReady"]
    finished = events[-1]
    assert finished["event"] == "GenerationFinished"
    assert finished["generated_tokens"] == 5
    text = "".join(event["text"] for event in events if event["event"] == "TokenDelta")
    assert text
    assert result.stderr == ""


def test_equal_seeds_give_equal_text_and_stop_strings_stop(home: Path, nano_chat_exl2: Path) -> None:
    arguments = ("generate", "-m", nano_chat_exl2, "-p", "Once upon a time,", "-n", "40", "--seed", "7")
    first, second = run(home, *arguments).stdout, run(home, *arguments).stdout
    assert first == second
    word = first.removeprefix("Once upon a time,").split()[3]
    stopped = run(home, *arguments, "--stop", word)
    assert stopped.stdout.rstrip("\n") == first[: first.index(word, len("Once upon a time,"))]
    assert "stop string" in stopped.stderr


def test_piped_lines_are_prompts_of_one_chat(home: Path, small_chat: Path) -> None:
    settings = home / "settings.toml"
    home.mkdir()
    settings.write_text("[sampler]\ntemperature = 0.0\nrepetition_penalty = 1.0\n")
    result = run(home, "chat", "-m", small_chat, stdin="What is a volcano?\n\nWhat is the capital of France?\n")
    volcano, capital = result.stdout.strip().splitlines()
    assert volcano == "A volcano is an opening in the earth's surface where melted rock, ash and gas can come out."
    assert "Paris" in capital


def test_the_model_used_last_is_the_default_while_it_is_there(home: Path, nano_chat_exl2: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").symlink_to(nano_chat_exl2)
    run(home, "chat", "-m", tmp_path / "mine", stdin="Hi\n")
    assert run(home, "generate", "-p", "Hi", "-n", "1").stderr.startswith("nano-chat-exl2-4.0:")
    settings = (home / "settings.toml").read_text()
    (home / "settings.toml").write_text(settings.replace("nano-chat-exl2-4.0", "no-longer-there"))
    assert run(home, "generate", "-p", "Hi", "-n", "1").stderr.startswith("small-chat:")


def test_directories_are_added_listed_and_removed(home: Path, shared: Path) -> None:
    models = shared / "models"
    assert "3 models found" in run(home, "models", "add", models).stderr
    listed = json.loads(run(home, "models", "--json").stdout)
    by_name = {model["name"]: model for model in listed}
    assert by_name["nano-chat"]["format"] == "fp16"
    assert by_name["nano-chat-exl2-4.0"]["format"].startswith("EXL2 4.0")
    shown = run(home, "models", "show", "nano-chat-exl2").stdout
    assert "model.layers.0.mlp.down_proj" in shown
    assert "groups of" in shown
    run(home, "models", "remove", models)
    names = {model["name"] for model in json.loads(run(home, "models", "--json").stdout)}
    assert "nano-chat" not in names
    error = run(home, "models", "remove", models, status=1).stderr
    assert "was not added" in error


def test_modes_are_listed_with_auto_first(home: Path) -> None:
    modes = [row["name"] for row in json.loads(run(home, "modes", "--json").stdout)]
    assert modes[0] == "auto"
    assert {"llama", "codellama", "raw", "chatml", "llama3", "mistral", "gemma", "phi3", "tinyllama"} <= set(modes)


def test_eval_gives_the_reference_numbers(home: Path, shared: Path) -> None:
    text, models = shared / "models" / "val.jsonl", shared / "models"
    arguments = (text, "--rows", "6", "--json", "--exact")
    alone = json.loads(run(home, "eval", "perplexity", "-m", models / "nano-chat", *arguments).stdout)
    same = json.loads(
        run(home, "eval", "kl", "-m", models / "nano-chat", "-r", models / "nano-chat", *arguments).stdout
    )
    assert same["kl"] == pytest.approx(0.0, abs=1e-6)
    assert same["top1"] == 1.0
    assert same["perplexity"] == pytest.approx(alone["perplexity"], rel=1e-5)
    quantized = json.loads(
        run(home, "eval", "kl", "-m", models / "nano-chat-exl2-4.0", "-r", models / "nano-chat", *arguments).stdout
    )
    assert 0.03 < quantized["kl"] < 0.15
    assert quantized["perplexity"] > alone["perplexity"]


def test_bench_reports_speeds_and_the_share_of_the_bandwidth(home: Path, nano_chat_exl2: Path) -> None:
    arguments = ("--prompt", "32", "--depth", "0", "--depth", "64", "-n", "8", "--repeats", "1")
    report = json.loads(run(home, "bench", "-m", nano_chat_exl2, *arguments, "--json").stdout)
    assert [step["depth"] for step in report["decode"]] == [0, 64]
    assert all(step["bandwidth_fraction"] > 0 for step in report["decode"])  # no bound above: other programs run, too
    assert report["bandwidth"] > 1e9
    assert report["peak_memory"] > 50e6


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("generate", "-m", "no-such-model", "-p", "x"), "no model directory and no model name"),
        (("chat", "-m", "no-such-model"), "no model directory and no model name"),
        (("generate", "-m", "MODEL", "-p", "x", "--top-p", "1.5"), "top_p is 1.5"),
        (("generate", "-m", "MODEL", "-p", "x", "--cache", "q3"), "unknown cache kind"),
        (("generate", "-m", "MODEL", "-p", "x", "--device", "abacus"), "abacus"),
        (("eval", "perplexity", "-m", "MODEL", "no-such-file.txt"), "there is no such file"),
    ],
)
def test_errors_are_one_sentence_with_a_remedy(
    home: Path, nano_chat_exl2: Path, arguments: tuple[str, ...], expected: str
) -> None:
    named = [str(nano_chat_exl2) if argument == "MODEL" else argument for argument in arguments]
    result = run(home, *named, status=1)
    assert expected in result.stderr
    assert "Traceback" not in result.stderr


def test_a_directory_that_is_no_model_is_refused_by_name(home: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"\x80\x02}q\x00.")
    (tmp_path / "config.json").write_text("{}")
    result = run(home, "generate", "-m", tmp_path, "-p", "x", status=1)
    assert str(tmp_path) in result.stderr
    assert "safetensors" in result.stderr


def test_interrupt_stops_at_once_and_keeps_what_was_written(home: Path, nano_chat_exl2: Path) -> None:
    command = [sys.executable, "-m", "exl2_tui", "generate", "-m", str(nano_chat_exl2)]
    command += ["-p", "Once upon a time,", "-n", "900", "--seed", "1"]
    # The slow kernels, so that there is something left to interrupt.
    environment = {**os.environ, "EXL2_TUI_HOME": str(home), "EXL2_TUI_KERNELS": "reference"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(len("Once upon a time,") + 20)
        process.send_signal(signal.SIGINT)
        status = process.wait(timeout=300)
        errors = process.stderr.read()
    assert status == 130
    assert "Traceback" not in errors
    assert "cancelled" in errors


def test_control_characters_of_a_prompt_never_reach_the_terminal(home: Path, nano_chat_exl2: Path) -> None:
    result = run(home, "generate", "-m", nano_chat_exl2, "-p", "Red \x1b[31m text \x9b1m \u202e", "-n", "4")
    assert not {"\x1b", "\x9b", "\u202e"} & set(result.stdout)


def test_doctor_passes_on_this_installation(home: Path) -> None:
    report = json.loads(run(home, "doctor", "--json").stdout)
    assert report["CPU kernels"]["ok"]
    assert report["built-in model"]["ok"]


def test_doctor_tells_why_kernels_are_off(home: Path) -> None:
    result = run(home, "doctor", status=1, variables={"EXL2_TUI_KERNELS": "reference"})
    assert "EXL2_TUI_KERNELS=reference" in result.stdout


def test_a_reader_that_goes_away_is_no_error(home: Path, nano_chat_exl2: Path) -> None:
    command = f"{sys.executable} -m exl2_tui generate -m {nano_chat_exl2} -p Once -n 200 | head -c 5"
    environment = {**os.environ, "EXL2_TUI_HOME": str(home)}
    result = subprocess.run(
        command, shell=True, capture_output=True, text=True, env=environment, timeout=300, check=True
    )
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr
