"""Chats on disk: versions survive, search finds, damage and newer formats cost no message."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from exl2_tui.core.events import GenerationFinished
from exl2_tui.settings import Settings
from exl2_tui.store import schema
from exl2_tui.store.db import ChatDatabase
from exl2_tui.store.export import export, to_json, to_markdown
from exl2_tui.store.schema import VERSIONS
from exl2_tui.store.tree import Chat, Turn
from exl2_tui.widgets.turn_view import record
from tests.tui.conftest import MakeApp
from tests.tui.driver import ChatDriver, until
from tests.tui.fakes import FakeClock

STATS = GenerationFinished(3, "stop_token", 20, 5, 42, 0.1, 0.7, 0.12, 62, 2048, 7)


class Store(ChatDatabase):
    """A database that remembers what it said."""

    def __init__(self, path: Path) -> None:
        self.tokens: list[int] = []
        self.problems: list[str] = []
        super().__init__(path, self.tokens.append, self.problems.append)


def branching_chat() -> Chat:
    chat = Chat(mode="chatml", system="Be kind \ud800", created=1_700_000_000.0)
    question = chat.add(Turn("user", "Why is the sky blue?", None, created=1.0))
    chat.add(Turn("assistant", "Rayleigh scattering", question.id, token_ids=(1, 2, 4_000_000_000), stats=STATS))
    second = chat.add(Turn("assistant", "Because 'of' \"light\"\x00\n", question.id, state="stopped", mode="chatml"))
    chat.add(Turn("user", "And red?", second.id))
    chat.add(Turn("assistant", "", chat.head, state="error", note="boom", hint="retry", dropped=2))
    return chat


def save(store: ChatDatabase, chat: Chat) -> None:
    store.save_chat(chat)
    for turn in chat.turns.values():
        store.save_turn(chat, turn)


def reopened(path: Path) -> Store:
    return Store(path)


def test_a_tree_survives(tmp_path: Path) -> None:
    chat = branching_chat()
    chat.show(chat.turns[next(iter(chat.turns))])
    store = Store(tmp_path / "chats.db")
    save(store, chat)
    store.close(60)
    loaded = reopened(tmp_path / "chats.db").load_chat(chat.id).result(60)
    assert loaded is not None
    assert loaded.turns == chat.turns and list(loaded.turns) == list(chat.turns)
    assert loaded.head == chat.head and loaded.title == "Why is the sky blue?"
    assert loaded.system == "Be kind ?" and loaded.mode == "chatml"
    assert store.problems == []


def test_saving_again_updates(tmp_path: Path) -> None:
    chat = branching_chat()
    store = Store(tmp_path / "chats.db")
    save(store, chat)
    answer = chat.path()[1]
    answer.text = "Something else entirely"
    chat.title = "Sky"
    save(store, chat)
    loaded = store.load_chat(chat.id).result(60)
    assert loaded is not None and loaded.turns[answer.id].text == "Something else entirely" and loaded.title == "Sky"
    assert [row.id for row in store.list_chats("entirely").result(60)] == [chat.id]
    assert store.list_chats("light").result(60) == []


def test_a_new_file_is_made_without_copies_of_nothing(tmp_path: Path) -> None:
    assert Store(tmp_path / "chats.db").list_chats().result(60) == []
    assert {file.name.partition("-")[0] for file in tmp_path.iterdir()} == {"chats.db"}


def test_search_in_all_messages(tmp_path: Path) -> None:
    store = Store(tmp_path / "chats.db")
    chats = []
    for number, text in enumerate(["Rope scaling notes", "Sonnet about GPUs", "SQL window functions"]):
        chat = Chat(created=float(number))
        chat.updated = float(number)
        question = chat.add(Turn("user", text, None))
        chat.add(Turn("assistant", f"Answer {number} about über_quantization 50%", question.id))
        save(store, chat)
        chats.append(chat)
    rows = store.list_chats().result(60)
    assert [row.title for row in rows] == ["SQL window functions", "Sonnet about GPUs", "Rope scaling notes"]
    assert [row.turns for row in rows] == [2, 2, 2]
    assert [row.title for row in store.list_chats("uber answer 1").result(60)] == ["Sonnet about GPUs"]
    assert "quantization" in store.list_chats("quant").result(60)[0].snippet
    assert [row.title for row in store.list_chats("sonn").result(60)] == ["Sonnet about GPUs"]
    for hostile in ('"', "'; DROP TABLE chat", "a AND OR NOT *", "NEAR(", "%", "_", "-", "\\", "x" * 5000, "\ud800"):
        store.list_chats(hostile).result(60)
    assert store.problems == [] and len(store.list_chats().result(60)) == 3


def test_rename_and_delete(tmp_path: Path) -> None:
    store = Store(tmp_path / "chats.db")
    chat = branching_chat()
    save(store, chat)
    store.rename(chat.id, "New name").result(60)
    assert store.list_chats().result(60)[0].title == "New name"
    store.delete(chat.id).result(60)
    store.save_turn(chat, chat.path()[0], token=9)  # an answer that ended after its chat was deleted
    assert store.list_chats().result(60) == [] and store.load_chat(chat.id).result(60) is None
    assert store.tokens == [9] and store.problems == []
    store.close(60)
    with sqlite3.connect(tmp_path / "chats.db") as connection:
        assert connection.execute("SELECT count(*) FROM turn").fetchone() == (0,)


def test_a_chat_that_another_window_deleted_is_whole_again_when_it_goes_on(tmp_path: Path) -> None:
    chat = Chat()
    one, other = Store(tmp_path / "chats.db"), Store(tmp_path / "chats.db")
    for number, text in enumerate(("first", "1st", "second")):
        chat.add(Turn("assistant" if number % 2 else "user", text, chat.head))
    save(one, chat)
    assert one.list_chats().result(60)[0].turns == 3
    other.delete(chat.id).result(60)
    answer = chat.add(Turn("assistant", "2nd", chat.head))
    one.save_turn(chat, answer)  # deleted on purpose while this was being written
    assert one.list_chats().result(60) == []
    last = chat.add(Turn("user", "third", chat.head))
    one.save_chat(chat)
    one.save_turn(chat, last)
    loaded = one.load_chat(chat.id).result(60)
    assert loaded is not None
    assert [turn.text for turn in loaded.path()] == ["first", "1st", "second", "2nd", "third"]
    for store in (one, other):
        store.close(60)


def test_an_answer_cut_off_by_a_crash_counts_as_stopped(tmp_path: Path) -> None:
    """The process is killed right after the save was confirmed: nothing confirmed is lost."""
    script = f"""
import os, sys, threading
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from exl2_tui.store.db import ChatDatabase
from exl2_tui.store.tree import Chat, Turn
store = ChatDatabase(Path({str(tmp_path / "chats.db")!r}), lambda token: os._exit(9), print)
chat = Chat(chat_id="c")
question = chat.add(Turn("user", "question", None))
answer = chat.add(Turn("assistant", "half an ans", question.id, state="writing"))
store.save_chat(chat)
store.save_turn(chat, question)
store.save_turn(chat, answer, token=1)
threading.Event().wait(240)
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=300, check=False, capture_output=True)
    assert done.returncode == 9, done.stderr
    loaded = Store(tmp_path / "chats.db").load_chat("c").result(60)
    assert loaded is not None
    assert [(turn.text, turn.state) for turn in loaded.path()] == [("question", "done"), ("half an ans", "stopped")]
    assert record(loaded.path()[-1]) == "cut off when the program ended"


def test_a_damaged_file_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "chats.db").write_bytes(b"not a database at all" * 500)
    store = Store(tmp_path / "chats.db")
    save(store, branching_chat())
    assert len(store.list_chats().result(60)) == 1
    assert len(store.problems) == 1 and "damaged" in store.problems[0]
    assert any(path.name.startswith("chats.db.bad-") for path in tmp_path.iterdir())


def test_a_newer_format_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    Store(path).close(60)
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(VERSIONS) + 1}")
    before = path.read_bytes()
    store = Store(path)
    store.save_chat(branching_chat())
    store.save_turn(branching_chat(), Turn("user", "x", None), token=4)
    assert store.list_chats().result(60) == []
    assert store.tokens == [4] and "newer version" in store.problems[0]
    assert path.read_bytes() == before


def test_an_older_format_is_brought_up_to_date_and_kept_beside(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(f"{VERSIONS[0]} PRAGMA user_version = 1")
        connection.execute("INSERT INTO chat VALUES ('old', 'Of old', NULL, 'auto', '', 1.0, 1.0)")
    connection.close()
    store = Store(path)
    store.save_draft("old", "not sent")
    assert [(row.title, row.draft) for row in store.list_chats().result(60)] == [("Of old", True)]
    assert store.problems == []
    assert not (tmp_path / "chats.db.v2").exists()  # one copy, of what there was
    with sqlite3.connect(tmp_path / "chats.db.v1") as copy:
        assert copy.execute("PRAGMA user_version").fetchone() == (1,)
    copy.close()


def test_drafts_are_kept_by_chat_and_go_with_it(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    store, chat = Store(path), branching_chat()
    save(store, chat)
    store.save_draft(chat.id, "half a \ud800thought")
    store.save_draft("", "of a new chat")
    store.close(60)
    store = Store(path)
    loaded = store.load_chat(chat.id).result(60)
    assert loaded is not None and loaded.draft == "half a ?thought"
    assert store.load_draft("").result(60) == "of a new chat"
    assert store.list_chats("sky").result(60)[0].draft
    store.save_draft("", "")
    store.delete(chat.id).result(60)
    assert store.load_draft(chat.id).result(60) == store.load_draft("").result(60) == ""
    assert store.problems == []


def test_without_a_place_to_write_chats_go_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "chats.db")
    store.save_turn(branching_chat(), Turn("user", "x", None), token=1)
    assert store.load_chat("x").result(60) is None
    assert store.tokens == [1] and "not saved" in store.problems[0]


def test_saves_are_copies(tmp_path: Path) -> None:
    """A turn that grows after the call is saved as it was; the thread is kept busy to make sure."""
    store = Store(tmp_path / "chats.db")
    gate = threading.Event()
    store._work.put(lambda connection: gate.wait(60))  # type: ignore[arg-type]
    chat = branching_chat()
    save(store, chat)
    turn = chat.path()[0]
    turn.text = "changed later"
    gate.set()
    loaded = store.load_chat(chat.id).result(60)
    assert loaded is not None and loaded.turns[turn.id].text == "Why is the sky blue?"


def test_export(tmp_path: Path) -> None:
    chat = branching_chat()
    text = to_markdown(chat)
    assert text.startswith("# Why is the sky blue?\n\n**System**") and "And red?" in text
    assert "Rayleigh" not in text  # not on the branch in view
    document = json.loads(to_json(chat))
    assert len(document["turns"]) == 5 and document["head"] == chat.head
    chat.title = "../../etc/passwd: a\x1b[31m/b"
    first, _ = export(chat, tmp_path)
    second, second_json = export(chat, tmp_path)
    assert first.parent == second.parent == tmp_path and first != second
    assert first.name == "2023-11-14-etc-passwd-a-31m-b.md"
    assert json.loads(second_json.read_text())["title"] == chat.title


@pytest.fixture
def database_app(make_app: MakeApp, tmp_path: Path) -> MakeApp:
    def make(**options: object) -> object:
        return make_app(
            Settings(),
            store_factory=lambda saved, report: ChatDatabase(tmp_path / "chats.db", saved, report),
            **options,
        )

    return make  # type: ignore[return-value]


async def test_the_question_is_on_disk_before_the_engine_hears_of_it(database_app: MakeApp, tmp_path: Path) -> None:
    async with database_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        service = await chat.start()
        found: list[list[tuple[str, str]]] = []
        generate = service.generate

        def checked(request: object) -> int:
            with sqlite3.connect(tmp_path / "chats.db") as connection:
                found.append(connection.execute("SELECT role, text FROM turn ORDER BY number").fetchall())
            return generate(request)  # type: ignore[arg-type]

        service.generate = checked  # type: ignore[method-assign,assignment]
        await chat.ask("is it safe?")
        assert found == [[("user", "is it safe?"), ("assistant", "")]]


async def test_chats_are_listed_opened_renamed_and_deleted(database_app: MakeApp, home: Path) -> None:
    clock = FakeClock(1_700_000_000.0)
    async with database_app(wall_clock=clock).run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        for question, answer in (("about apples", "red"), ("about [pears]", "green")):
            await chat.ask(question)
            await chat.answer(answer)
            await pilot.press("ctrl+n")
        await pilot.press("ctrl+g")
        await until(lambda: "2 chats" in str(pilot.app.screen.query_one(".dialog").border_subtitle))
        await pilot.press(*"red")
        await until(lambda: "1 chat" in str(pilot.app.screen.query_one(".dialog").border_subtitle))
        await pilot.press("enter")
        await until(lambda: chat.app.session.chat.title == "about apples")
        await chat.settle()
        assert "red" in chat.everything
        clock.now += 60
        await chat.ask("more")
        assert [message.content for message in chat.service.requests[-1].messages] == ["about apples", "red", "more"]
        await chat.answer("ok")
        await pilot.press("f9")
        await until(lambda: len(list((home / "exports").glob("*.md"))) == 1)
        await pilot.press("ctrl+g")
        await until(lambda: "2 chats" in str(pilot.app.screen.query_one(".dialog").border_subtitle))
        await pilot.press("f9")  # the same key as in the chat
        await until(lambda: len(list((home / "exports").glob("*.md"))) == 2)
        await pilot.press("ctrl+g")
        await until(lambda: "2 chats" in str(pilot.app.screen.query_one(".dialog").border_subtitle))
        await pilot.press("f2", "end", *"!", "enter")
        await until(lambda: chat.app.session.chat.title == "about apples!")
        await pilot.press("f8", "down", "enter")
        await until(lambda: not chat.app.session.chat.turns)
        await until(lambda: "1 chat" in str(pilot.app.screen.query_one(".dialog").border_subtitle))
        await pilot.press("escape")


async def test_quitting_keeps_what_was_written(database_app: MakeApp, tmp_path: Path) -> None:
    app = database_app()
    async with app.run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        service = await chat.start()
        await chat.ask("story")
        service.ready()
        service.say("Once upon")
        await chat.settle()
        service.say(" a time")
        await chat.settle()
        await pilot.press("ctrl+q")
    app.close(60)
    store = Store(tmp_path / "chats.db")
    loaded = store.load_chat(app.session.chat.id).result(60)
    assert loaded is not None
    assert [(turn.text, turn.state) for turn in loaded.path()] == [("story", "done"), ("Once upon a time", "stopped")]


async def test_an_answer_goes_on_while_another_chat_is_in_view(database_app: MakeApp) -> None:
    async with database_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        service = await chat.start()
        await chat.ask("long story")
        first = chat.app.session.chat
        service.ready()
        service.say("Once ")
        await chat.settle()
        await pilot.press("ctrl+n")
        service.say("upon ")
        await chat.settle()
        assert "upon" not in chat.everything
        await chat.app.chats.load(first.id)
        await chat.settle()
        assert chat.app.session.chat is first and "Once upon" in chat.everything
        service.say("a time")
        service.finish()
        await until(lambda: chat.app.session.writing is None)
        await chat.settle()
        assert "Once upon a time" in chat.everything


async def test_a_chat_of_500_turns_opens_fast_and_moves_its_window(database_app: MakeApp) -> None:
    async with database_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        long = Chat(chat_id="long")
        for number in range(250):
            long.add(Turn("user", f"question {number}", long.head))
            long.add(Turn("assistant", f"answer {number}\n\n```py\nx = {number}\n```\n\n- a\n- b", long.head))
        save(chat.app._store, long)  # type: ignore[arg-type]
        await chat.app.chats.load("long")
        await chat.settle()
        assert len(chat.turns) == 10 and "answer 249" in chat.everything
        assert len(list(chat.chat_screen.walk_children())) <= 600
        await pilot.press("ctrl+home")
        await chat.settle()
        assert "question 0" in chat.everything and len(chat.turns) == 10
        for _ in range(40):
            await pilot.press("pagedown")
            await pilot.pause()
            if "question 15" in chat.everything:
                break
        assert "question 15" in chat.everything
        assert len(chat.turns) <= 10
        await pilot.press("ctrl+end")
        await chat.settle()
        assert "answer 249" in chat.everything and chat.transcript.following
        for _ in range(40):
            await pilot.press("pageup")
            await pilot.pause()
            assert len(chat.turns) <= 10
            if "question 230" in chat.everything:
                break
        assert "question 230" in chat.everything


def test_two_programs_that_make_the_tables_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both find an empty file; the one that comes second uses what the first one made."""
    both, real, first_time = threading.Barrier(2), schema._version, threading.local()

    def version(connection: sqlite3.Connection) -> int:
        found = real(connection)
        if not hasattr(first_time, "over"):
            first_time.over = True
            both.wait(60)
        return found

    monkeypatch.setattr(schema, "_version", version)
    with ThreadPoolExecutor(2) as pool:
        connections = list(pool.map(schema.open_database, [tmp_path / "chats.db"] * 2))
    for number, connection in enumerate(connections):
        connection.execute("INSERT INTO chat VALUES (?, '', '', '', '', 0, 0)", (str(number),))
        assert connection.execute("SELECT count(*) FROM chat").fetchone() == (number + 1,)
    for connection in connections:
        connection.close()


def test_a_question_that_nobody_waits_for_does_not_end_the_saving(tmp_path: Path) -> None:
    """A list that is asked for anew cancels the one before; the thread that saves must live on."""
    database = ChatDatabase(tmp_path / "chats.db", lambda token: None, lambda problem: None)
    held = threading.Event()
    database._work.put(lambda connection: held.wait(60))
    assert database.list_chats().cancel()
    held.set()
    assert database.list_chats().result(60) == []
    database.close(60)
