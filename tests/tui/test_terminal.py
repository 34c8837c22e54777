"""The app on a real pseudo-terminal: what hostile text makes it write, and how it leaves."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pty
import re
import select
import sqlite3
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exl2_tui.store.db import ChatDatabase
from tests.library.fake_hub import FakeHub, FakeRepo
from tests.support.models import write_random_model
from tests.tui.test_text import FAMILIES

ROOT = Path(__file__).resolve().parents[2]

CHILD = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.tui.fakes import TypingService
from tests.tui.test_text import FAMILIES
from exl2_tui.app import run

text = "HOSTILE-BEGIN " + " ".join(FAMILIES.values()) + " " + "word " * 4
text += "\\n\\n```\\x1b]0;owned\\x07py\\n\\x1b[2Jx\\n```\\n\\n"
text += "| \\x1b[5m | b |\\n|---|---|\\n| \\u202ex | &#27;[5m |\\n\\nHOSTILE-END"

class Hostile(TypingService):
    def loaded(self, name="x", context=2048):
        super().loaded("evil\\x1b]0;owned\\x07\\u202e", context)
run("evil\\x1b]0;owned\\x07", system="\\x1b[5msys", service_factory=lambda post: Hostile(post, [text], speed=400.0))
"""

# What Textual itself may write: styles, cursor moves, private modes, queries, pointer and title.
KNOWN = re.compile(
    rb"\x1b\[[\d;:]*[mHABCDJKrsuXP]|\x1b\[[?>=<][\d;]*(?:\$p|[hlucnq])|\x1b\[\d* ?q|\x1b\[[\d;]*[cntu]"
    rb"|\x1b\]22;[a-z]*\x07"  # the shape of the pointer
    rb"|\x1b\][012];[^\x07\x1b]*(?:\x07|\x1b\\)|\x1b\]11;\?\x1b\\|\x1bP[^\x1b]*\x1b\\|\x1b_G[^\x1b]*\x1b\\"
    rb"|\x1b[78=>]|\x1b\(B"
)


LIMIT = 120.0  # seconds; reached only by what never comes


class Terminal:
    def __init__(self, home: Path, code: str) -> None:
        import fcntl
        import termios

        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        (home / "settings.toml").write_text('[appearance]\ntheme = "dark"\n')
        environment = {**os.environ, "EXL2_TUI_HOME": str(home), "TERM": "xterm-256color"}
        environment.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self.written = b""

    def read(self, seconds: float) -> None:
        if select.select([self.master], [], [], seconds)[0]:
            try:
                self.written += os.read(self.master, 65536)
            except OSError:
                time.sleep(0.01)

    def wait_for(self, text: bytes, start: int = 0) -> None:
        """Reads until a text is written, from a place on."""
        end = time.monotonic() + LIMIT
        while text not in self.written[start:]:
            assert time.monotonic() < end, f"{text!r} never appeared in {self.written[-2000:]!r}"
            self.read(0.05)

    def read_to_end(self, seconds: float = LIMIT) -> None:
        """Everything until the program has ended and its last bytes are read: no sequence is cut in half."""
        end = time.monotonic() + seconds
        while True:
            ended = self.process.poll() is not None
            before = len(self.written)
            self.read(0.05)
            if ended and len(self.written) == before:
                return
            assert time.monotonic() < end, "the program never ended"

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


def assert_harmless(written: bytes) -> None:
    """Nothing but what Textual itself writes, and text that a terminal only shows."""
    assert b"Traceback" not in written
    rest = KNOWN.sub(b"", written).decode("utf-8", "strict")
    allowed = "\r\n\t"
    assert not [char for char in rest if (ord(char) < 32 and char not in allowed) or 0x7F <= ord(char) < 0xA0]
    assert not set(rest) & set("\u202e\u202d\u2066\u2067\u200e\u200f\u2028\ufeff\U000e0041")
    titles = re.findall(rb"\x1b\][012];([^\x07\x1b]*)", written)
    assert not any(b"owned" in title for title in titles)
    assert b"\x1b[5m" not in written and b"\x1b]52" not in written


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_hostile_file_names_and_hub_metadata_on_a_pseudo_terminal(
    home: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of models in folders, and all that a Hub may say about a model, its revisions and its files."""
    evil = [text.replace("/", "|").replace("\0", "") for text in FAMILIES.values() if text.isprintable() is False]
    evil = [text for text in evil if not any("\ud800" <= char <= "\udfff" for char in text)]
    model = write_random_model(tmp_path_factory.mktemp("model"))
    files = {file.name: file.read_bytes() for file in model.iterdir()}
    for text in evil:
        for kind in ("found", "broken"):
            folder = home / "models" / f"{kind} {text}"
            folder.mkdir(parents=True)
            for file in model.iterdir():
                os.link(file, folder / file.name)
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps({"architectures": [text]}))
    hub = FakeHub()
    repo = hub.add(FakeRepo("o/hostile-exl2", {"4.0bpw": files, **dict.fromkeys(evil, files)}, ["exl2", *evil]))
    repo.config = {"architectures": evil[:1], "model_type": evil[0], "quantization_config": {"quant_method": "exl2"}}
    repo.siblings = repo.described("4.0bpw") + [{"rfilename": f"{text}.json", "size": 5} for text in evil]
    hub.repos["evil"] = FakeRepo(f"o/{evil[0]}-exl2", {"main": files}, ["exl2"])
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    terminal = Terminal(home, KILLED)
    try:
        terminal.wait_for(b"ctx")
        for keys, shown in (
            (b"\x1bOR", b"found [31mred"),
            (b"\x1b[F", b"broken ab"),  # the cursor is on a broken one
            (b"h", b"ords of a name"),
            (b"hostile\r", b"o/hostile-exl2"),
            (b"\r", b"4.0bpw"),
            (b"\r", b"config.json"),
        ):
            os.write(terminal.master, keys)
            terminal.wait_for(shown)
        drawn = len(terminal.written)
        os.write(terminal.master, b"\x1b")
        terminal.wait_for(b"shows its files", drawn)  # before that, the next key would be one with alt
        os.write(terminal.master, b"\x11")
        terminal.read_to_end()
        assert_harmless(terminal.written)
    finally:
        terminal.close()
        hub.close()


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_hostile_text_on_a_pseudo_terminal(home: Path) -> None:
    terminal = Terminal(home, CHILD)
    try:
        terminal.wait_for(b"ctx")  # the model is loaded
        start = len(terminal.written)
        os.write(terminal.master, b"go\r")
        terminal.wait_for(b"HOSTILE-END")
        terminal.wait_for(b"tok/s")
        asked = len(terminal.written)
        os.write(terminal.master, b"more\r")
        terminal.wait_for(b"Stop", asked)
        leaving = len(terminal.written)
        os.write(terminal.master, b"\x11")  # ctrl+q, in the middle of an answer
        terminal.read_to_end()
        assert terminal.process.returncode == 0
        assert b"\x1b[?1049l" in terminal.written
        assert_harmless(terminal.written)
        drawn = terminal.written[start:leaving]
        assert b"\x1b[2J" not in drawn and b"\x1bc" not in drawn and b"\x1b[?1000h" not in drawn
    finally:
        terminal.close()


KILLED = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.tui.fakes import TypingService
from exl2_tui.app import run

run(service_factory=lambda post: TypingService(post, ["word " * 100_000], speed=400.0))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_quitting_waits_for_nothing_but_what_must_be_saved(home: Path) -> None:
    """Whatever takes its time when an interpreter is taken apart, as torch does."""
    terminal = Terminal(home, "import atexit, time; atexit.register(time.sleep, 600)\n" + KILLED)
    try:
        terminal.wait_for(b"ctx")
        os.write(terminal.master, b"tell me\r")
        terminal.wait_for(b"word")
        os.write(terminal.master, b"\x11")
        terminal.read_to_end()
        assert terminal.process.returncode == 0
    finally:
        terminal.process.kill()
        terminal.close()
    store = ChatDatabase(home / "chats.db", lambda token: None, lambda problem: pytest.fail(problem))
    chat = store.load_chat(store.list_chats().result(60)[0].id).result(60)
    store.close(60)
    assert chat is not None and chat.path()[-1].text.startswith("word")


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_copying_asks_the_terminal_itself(home: Path) -> None:
    """Over ssh there is no other way: OSC 52, with the text as it is."""
    answer = "Because [b]é[/b]."
    terminal = Terminal(home, KILLED.replace('["word " * 100_000]', repr([answer])))
    try:
        terminal.wait_for(b"ctx")
        os.write(terminal.master, b"why?\r")
        terminal.wait_for(b"first token")
        os.write(terminal.master, b"\x1b[1;3A")  # alt+up marks the answer
        terminal.wait_for(b"retry \xc2\xb7")
        os.write(terminal.master, b"y")
        terminal.wait_for(b"\x1b]52;c;" + base64.b64encode(answer.encode()))
    finally:
        terminal.process.kill()
        terminal.close()


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_a_terminal_that_goes_without_a_signal_ends_the_app(home: Path) -> None:
    """It is not the controlling terminal of the app, so the system sends none; what was asked is kept."""
    terminal = Terminal(home, KILLED)
    try:
        terminal.wait_for(b"ctx")
        os.write(terminal.master, b"tell me\r")
        terminal.wait_for(b"word")
        os.close(terminal.master)
        assert terminal.process.wait(LIMIT) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
    store = ChatDatabase(home / "chats.db", lambda token: None, lambda problem: pytest.fail(problem))
    assert [row.title for row in store.list_chats().result(60)] == ["tell me"]
    store.close(60)


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_killed_in_the_middle_of_an_answer_what_was_written_is_there(home: Path) -> None:
    terminal = Terminal(home, KILLED)
    database = home / "chats.db"
    try:
        terminal.wait_for(b"ctx")
        os.write(terminal.master, b"tell me\r")
        end = time.monotonic() + LIMIT
        words = 0
        while words < 100:  # saved at intervals, not only at the first token
            terminal.read(0.05)
            assert time.monotonic() < end, "the answer was never saved"
            with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
                row = connection.execute("SELECT text FROM turn WHERE role = 'assistant'").fetchone()
            words = len(row[0].split()) if row else 0
        terminal.process.kill()
        terminal.process.wait()
    finally:
        terminal.close()
    store = ChatDatabase(database, lambda token: None, lambda problem: pytest.fail(problem))
    rows = store.list_chats().result(60)
    chat = store.load_chat(rows[0].id).result(60)
    store.close(60)
    assert chat is not None
    question, answer = chat.path()
    assert question.text == "tell me"
    assert answer.state == "stopped" and len(answer.text.split()) >= words
