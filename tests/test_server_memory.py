"""The memory as an interface: the words of the commands with the same answers, and the running model agrees with them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stored

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("httpx", reason="Starlette's test client needs httpx")

from starlette.routing import Route
from starlette.testclient import TestClient

from deltamem_cli.pictures.svg import svg
from deltamem_cli.server.app import build
from deltamem_cli.server.conversations.places import Places
from deltamem_cli.server.guard import Guard, Rules
from deltamem_cli.server.memory.routes import OPERATIONS
from deltamem_cli.server.requests.service import Service
from deltamem_cli.session import looking, typed_lines
from deltamem_cli.session import wiping as session_wiping
from deltamem_cli.session.loading import load
from deltamem_cli.session.request import Request
from deltamem_cli.store import conversations, locks, states, wiping
from deltamem_cli.store.database import Store

Dmem = Callable[..., str]
OPTIONS = {"max_tokens": 8, "temperature": 0}


class Client:
    """Asks a real application, with a tiny model, through Starlette's client."""

    def __init__(self, http: TestClient, database: Path, places: Places) -> None:
        self.http, self.database, self.places = http, database, places

    def get(self, word: str, code: int = 200, key: str = "", **fields: Any) -> Any:
        done = self.http.get(f"/v1/memory/{word}", params=fields, headers=_key(key))
        assert done.status_code == code, done.text
        return done.json()

    def post(self, word: str, code: int = 200, key: str = "", **fields: Any) -> Any:
        done = self.http.post(f"/v1/memory/{word}", json=fields, headers=_key(key))
        assert done.status_code == code, done.text
        return done.json()

    def say(self, conversation: str, *texts: str, code: int = 200, **headers: str) -> Any:
        """The last of `texts` is the question; the others are question and answer in turn. Returns the document."""
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        done = self.http.post(
            "/v1/chat/completions",
            json={"messages": messages},
            headers={"X-Dmem-Conversation": conversation, **headers},
        )
        assert done.status_code == code, done.text
        return done.json()

    def chat(self, conversation: str, n_turns: int) -> tuple[str, list[str]]:
        """A conversation of so many turns: its id, and its texts as a client sends them."""
        said: list[str] = []
        for i in range(1, n_turns + 1):
            done = self.say(conversation, *said, f"walrus {i}")
            said += [f"walrus {i}", done["choices"][0]["message"]["content"]]
        return done["metadata"]["conversation"], said

    def state(self, id_: str) -> bytes:
        with Store.open(self.database) as store:
            found = states.latest(store, id_)
            return found.state.tobytes() if found else b""


def _key(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


@contextmanager
def serving(home: Path, model: Path, adapter: Path | None, keys: dict[str, str | None]) -> Iterator[Client]:
    from chat_support import as_if_tried

    home.mkdir(exist_ok=True)
    as_if_tried(model)
    request = Request(model=model, adapter=adapter, threads=1, ctx_size=256, options=OPTIONS)
    with ExitStack() as stack:
        places = Places(load(stack, request, seats=2), request, home / "memory.db")
        service = Service(places, "tiny", "default", 0)
        http = stack.enter_context(TestClient(Guard(build(service), Rules({"testserver"}, keys=keys))))
        yield Client(http, home / "memory.db", places)
        http.portal.call(places.close)


@pytest.fixture
def client(home: Path, tiny_model: Any, tiny_adapter: Any) -> Iterator[Client]:
    model = tiny_model("qwen3")
    with serving(home, model, tiny_adapter(model), {}) as made:
        yield made


@pytest.fixture
def keyed(home: Path, tiny_model: Any, tiny_adapter: Any) -> Iterator[Client]:
    """Ana's key is bound to the profile ana; the key all is bound to none."""
    model = tiny_model("qwen3")
    with serving(home, model, tiny_adapter(model), {"ana": "ana", "all": None}) as made:
        yield made


@pytest.mark.parametrize(
    "command, word, fields",
    [
        ("memory inspect", "inspect", {}),
        ("memory inspect --layer 1", "inspect", {"layer": 1}),
        ("memory history", "history", {}),
        ("memory diff 1 3", "diff", {"before": 1, "after": 3}),
        ("memory undo 2 --dry-run", "undo", {"turns": 2, "dry_run": True}),
        ("memory forget 2 --dry-run --threads 1 --ctx-size 256", "forget", {"turns": [2], "dry_run": True}),
        ("memory forget 3 --dry-run", "forget", {"turns": [3], "dry_run": True}),
        ("memory reset --transcript --dry-run", "reset", {"transcript": True, "dry_run": True}),
        ("memory copy --to work --at 2 --dry-run", "copy", {"to": "work", "at": 2, "dry_run": True}),
        ("memory copy --to NEW --state-only --dry-run", "copy", {"to": "NEW", "state_only": True, "dry_run": True}),
        ("log show", "show", {}),
        ("log show --turn 2", "show", {"turn": 2}),
    ],
)
def test_a_word_answers_what_the_command_prints_as_json(
    client: Client, dmem: Dmem, tiny_model: Any, tiny_adapter: Any, command: str, word: str, fields: dict[str, Any]
) -> None:
    id_, _ = client.chat("talk", 3)
    model = ["-m", str(tiny_model("qwen3")), "--adapter", str(tiny_adapter(tiny_model("qwen3")))]
    arguments = [*command.split(), "--cid", id_, "--json", *(model if "--threads" in command else [])]
    before = client.state(id_)
    ask = client.post if "dry_run" in fields else client.get
    found, told = ask(word, conversation=id_, **fields), json.loads(dmem(*arguments))
    for norm in ("norm_before", "norm_after"):
        assert found.pop(norm, 0) == pytest.approx(told.pop(norm, 0), rel=1e-4)
    assert found == told
    assert client.state(id_) == before, "a look, or a dry run, changes nothing"


def test_list_has_what_log_list_has_and_the_profiles(client: Client, dmem: Dmem) -> None:
    client.chat("one", 1)
    client.say("two", "Hello.", **{"X-Dmem-Profile": "work"})
    found = client.get("list")
    assert found["conversations"] == json.loads(dmem("log", "list", "--all", "--json"))
    assert found["profiles"] == ["default", "work"]
    assert [one["profile"] for one in client.get("list", profile="work")["conversations"]] == ["work"]
    assert client.get("list", limit=1)["more"] == 1


def test_a_conversation_is_named_by_its_id_a_part_of_it_the_clients_name_or_its_profile(client: Client) -> None:
    id_, _ = client.chat("my own name", 1)
    for fields in ({"conversation": id_}, {"conversation": id_[-8:]}, {"conversation": "my own name"}, {}):
        assert client.get("history", **fields)["conversation"] == id_
    assert "no conversation nowhere" in client.get("history", 404, conversation="nowhere")["error"]["message"]
    assert client.get("history", 404, profile="work")["error"]["code"] == "not_found"


def test_a_picture_comes_by_its_name_or_by_accept_and_is_the_commands(client: Client) -> None:
    id_, _ = client.chat("talk", 2)
    with Store.open(client.database) as store:
        expected = svg(looking.inspect(store, conversations.get(store, id_), course=True).picture())
    by_name = client.http.get("/v1/memory/inspect.svg")
    by_accept = client.http.get("/v1/memory/inspect", headers={"Accept": "image/svg+xml"})
    assert by_name.content == by_accept.content == expected
    assert by_name.headers["content-type"] == "image/svg+xml"
    assert client.http.get("/v1/memory/inspect").headers["content-type"] == "application/json"
    wide = client.http.get("/v1/memory/diff.svg", params={"before": 0, "after": 1, "columns": 2**31 - 1})
    assert int(re.findall(rb'width="(\d+)"', wide.content)[0]) < 1000
    client.post("reset")
    assert "nothing to draw" in client.http.get("/v1/memory/inspect.svg").json()["error"]["message"]


def test_undo_leaves_what_was_before_and_the_model_goes_on_from_there(client: Client) -> None:
    id_, said = client.chat("talk", 1)
    before = client.state(id_)
    client.say("talk", *said, "walrus 2")
    assert client.post("undo") == {"conversation": id_, "undone": [2], "dry_run": False}
    assert client.state(id_) == before
    assert client.say("talk", *said, "another")["metadata"]["turn"] == "2"
    other, _ = client.chat("other", 1)
    client.say("other", *said, "another")
    assert client.state(id_) == client.state(other), "as if turn 2 had never been"
    assert "Can't undo 3 turns" in client.post("undo", 400, turns=3, conversation=id_)["error"]["message"]


def test_forgetting_takes_a_turn_out_of_text_and_memory_and_the_model_goes_on_without_it(client: Client) -> None:
    id_, said = client.chat("talk", 3)
    done = client.post("forget", turns=[2])
    assert (done["forgotten"], done["replayed"]) == ([2], [3])
    assert [turn["turn"] for turn in client.get("show")["turns"]] == [1, 3]
    assert b"walrus 2" not in stored.raw_bytes(client.database)
    kept = said[:2] + said[4:]
    assert client.say("talk", *kept, "And now?")["metadata"] == {"conversation": id_, "turn": "4"}
    assert client.post("forget", 404, turns=[2])["error"]["code"] == "not_found"


def test_forgetting_the_last_turn_replays_what_was_said_while_it_waited(client: Client) -> None:
    _, said = client.chat("talk", 2)
    with ThreadPoolExecutor() as pool:
        speaking = pool.submit(client.say, "talk", *said, "walrus " * 1000)
        while not any(place.busy for place in client.places.warm):
            time.sleep(0.001)
        assert client.post("forget", turns=[2])["replayed"] == [3]
        speaking.result(120)
    assert [turn["turn"] for turn in client.get("show")["turns"]] == [1, 3]


def test_turns_that_are_others_than_expected_are_neither_undone_nor_forgotten(client: Client) -> None:
    id_, said = client.chat("talk", 3)
    seen = [turn["created"] for turn in client.get("history")["turns"]]
    client.post("undo")
    client.say("talk", *said[:4], "another")
    before = client.state(id_)
    for dry_run in (True, False):
        for word, fields in (
            ("undo", {"expect": seen[2:]}),
            ("undo", {"turns": 2, "expect": seen[1:]}),
            ("undo", {"expect": seen[1:2]}),
            ("undo", {"turns": 2, "expect": seen[1:2]}),
            ("forget", {"turns": [3], "expect": seen[2:]}),
            ("forget", {"turns": [1, 3], "expect": seen[::2]}),
            ("forget", {"turns": [2], "expect": seen}),
            ("forget", {"turns": [9], "expect": ["x"]}),
        ):
            error = client.post(word, 409, dry_run=dry_run, **fields)["error"]
            assert (error["code"], error["param"]) == ("turns_changed", "expect"), (word, fields)
    assert (client.state(id_), len(client.get("show")["turns"])) == (before, 3)
    assert client.post("forget", turns=[2, 1], expect=seen[1::-1])["forgotten"] == [1, 2]
    now = [turn["created"] for turn in client.get("history")["turns"]]
    assert client.post("undo", expect=now)["undone"] == [3]


@pytest.mark.parametrize(
    "n_turns, word, fields, code",
    [
        (2, "undo", {}, 409),
        (2, "forget", {"turns": [2]}, 409),
        (3, "forget", {"turns": [2]}, 409),
        (3, "forget", {"turns": [1]}, 200),
    ],
)
def test_a_change_that_waited_does_not_hit_a_newer_turn_of_that_number(
    client: Client, n_turns: int, word: str, fields: dict[str, Any], code: int
) -> None:
    id_, said = client.chat("talk", n_turns)
    seen = [turn["created"] for turn in client.get("history")["turns"]]
    expect = [seen[number - 1] for number in fields.get("turns", [2])]
    with ThreadPoolExecutor() as pool:  # the second message is edited, so that another turn takes its number
        speaking = pool.submit(client.say, "talk", *said[:2], "edited " * 1000)
        while not any(place.busy for place in client.places.warm):
            time.sleep(0.001)
        client.post(word, code, conversation=id_, expect=expect, **fields)
        speaking.result(120)
    questions = [turn["messages"][0]["text"][:6] for turn in client.get("show")["turns"]]
    assert questions == (["edited"] if code == 200 else ["walrus", "edited"])


def test_reset_clears_the_memory_and_keeps_the_transcript_unless_told(client: Client) -> None:
    id_, said = client.chat("talk", 2)
    assert client.post("reset", conversation=id_)["states"] == 2
    assert client.state(id_) == b""
    assert len(client.get("show")["turns"]) == 2
    client.say("talk", *said, "walrus 3")
    assert client.state(id_) != b""
    client.post("reset", transcript=True, all=True)
    assert client.get("show")["turns"] == []
    assert b"walrus" not in stored.raw_bytes(client.database)


def test_a_deleted_conversation_is_gone_and_its_name_begins_a_new_one(client: Client) -> None:
    id_, _ = client.chat("talk", 2)
    assert client.post("delete", conversation=id_, dry_run=True)["turns"] == 2
    assert client.post("delete", conversation=id_)["turns"] == 2
    client.get("show", 404, conversation=id_)
    assert b"walrus" not in stored.raw_bytes(client.database)
    assert client.say("talk", "Hello.")["metadata"]["turn"] == "1"
    assert "conversation is missing" in client.post("delete", 400)["error"]["message"]


def test_a_new_title_is_the_heading_until_it_is_taken_away(client: Client) -> None:
    client.chat("talk", 1)
    assert client.post("rename", title=" Two\n words ")["title"] == "Two words"
    assert client.get("list")["conversations"][0]["title"] == "Two words"
    assert client.post("rename", title="")["title"] == "walrus 1"


def test_a_probe_answers_and_keeps_nothing(client: Client) -> None:
    id_, said = client.chat("talk", 1)
    before = client.state(id_)
    found = client.post("probe", question="What?", options={"max_tokens": 3})
    assert found["conversation"] == id_ and found["reply"] and not found["interrupted"]
    assert (client.state(id_), len(client.get("show")["turns"])) == (before, 1)
    assert client.say("talk", *said, "And now?")["metadata"]["turn"] == "2"
    client.post("reset", conversation=id_)
    assert client.post("probe", 409, question="What?")["error"]["code"] == "memory_empty"
    assert client.post("probe", 400, question="What?", options={"n": 2})["error"]["param"] == "n"


def test_what_is_remembered_is_what_the_command_would_write(
    client: Client, dmem: Dmem, tiny_model: Any, tiny_adapter: Any
) -> None:
    client.chat("talk", 2)
    done = client.post("remember", text="My sister is called Ana.", new=True)
    assert (done["turn"], done["tokens_written"] > 0) == (1, True)
    model = tiny_model("qwen3")
    hardware = ["-m", str(model), "--adapter", str(tiny_adapter(model)), "--threads", "1", "--ctx-size", "256"]
    told = json.loads(dmem("memory", "remember", "My sister is called Ana.", "--new", "--json", *hardware))
    ours, theirs = (np.frombuffer(client.state(one["conversation"]), "<f4") for one in (done, told))
    assert np.allclose(ours, theirs, atol=1e-6)
    assert client.post("remember", text="Secret.", log=False, conversation=done["conversation"])["turn"] == 2
    assert client.get("show", turn=2, conversation=done["conversation"])["turns"][0]["messages"] == []
    assert client.post("remember", text="One.", conversation="begun here")["turn"] == 1
    assert client.get("show", conversation="begun here")["turns"][0]["kind"] == "remember"
    assert "is empty" in client.post("remember", 400, text="  ")["error"]["message"]


def test_an_exported_memory_is_the_same_when_it_is_imported(client: Client, dmem: Dmem, tmp_path: Path) -> None:
    id_, _ = client.chat("talk", 2)
    exported = client.http.get("/v1/memory/export", params={"transcript": "true"})
    assert exported.headers["content-disposition"] == f'attachment; filename="{id_}.dmem"'
    (tmp_path / "memory.dmem").write_bytes(exported.content)
    assert dmem("memory", "import", str(tmp_path / "memory.dmem"), "--dry-run") == ""

    def import_(data: bytes, code: int, **fields: Any) -> Any:
        done = client.http.post("/v1/memory/import", content=data, params=fields)
        assert done.status_code == code, done.text
        return done.json()

    assert import_(exported.content, 200, profile="work", dry_run=True)["conversation"] is None
    made = import_(exported.content, 200, profile="work")
    assert (made["turns"], made["profile"]) == (2, "work")
    assert client.state(made["conversation"]) == client.state(id_)
    refused = import_(exported.content[:-9], 400)["error"]["message"]
    assert refused.startswith("The file cannot be imported because")


def test_a_conversation_that_another_program_holds_is_not_changed(client: Client) -> None:
    id_, _ = client.chat("talk", 2)
    before = client.state(id_)
    with Store.open(client.database) as other:
        locks.hold(other, id_)
        for word, fields in (
            ("undo", {}),
            ("forget", {"turns": [1]}),
            ("forget", {"turns": [2]}),
            ("reset", {}),
            ("remember", {"text": "x"}),
            ("rename", {"title": "x"}),
            ("delete", {"conversation": id_}),
        ):
            assert client.post(word, 409, **fields)["error"]["code"] == "conversation_busy", word
        assert len(client.get("history")["turns"]) == 2
    assert client.state(id_) == before
    client.post("undo")


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.word)
def test_a_key_sees_and_changes_its_own_profile_alone(keyed: Client, operation: Any) -> None:
    for name, profile in (("hers", "ana"), ("his", "bob")):
        done = keyed.http.post(
            "/v1/chat/completions",
            json={"messages": [{"role": "user", "content": f"walrus of {name}"}]},
            headers={**_key("all"), "X-Dmem-Conversation": name, "X-Dmem-Profile": profile},
        )
        his = done.json()["metadata"]["conversation"]
    before = stored.raw_bytes(keyed.database)
    wanted = {"before": 0, "after": 1, "turns": [1], "question": "x", "text": "x", "title": "x", "to": "NEW"}
    fields = {field.name: wanted[field.name] for field in operation.fields if field.required and field.name in wanted}
    for which in ({"conversation": his}, {"conversation": his[:9]}, {"profile": "bob"}):
        if not set(which) <= {field.name for field in operation.fields}:
            continue
        if operation.word == "remember" and "conversation" in which:
            continue  # begins one of her own, see below
        if operation.word == "delete":
            which = {"conversation": his, **which}
        told = {**fields, **which}
        done = keyed.http.request(
            operation.method,
            operation.path,
            headers=_key("ana"),
            **({"params": told} if operation.in_query else {"json": told}),
        )
        assert done.status_code == 404, done.text
        assert "walrus" not in done.text
    assert stored.raw_bytes(keyed.database) == before
    assert [one["profile"] for one in keyed.get("list", key="ana")["conversations"]] == ["ana"]
    assert keyed.get("list", key="ana")["profiles"] == ["ana"]
    keyed.get("list", 401)


def test_a_key_remembers_nothing_in_a_conversation_of_another_profile(keyed: Client) -> None:
    his = keyed.post("remember", key="all", profile="bob", text="walrus")["conversation"]
    hers = keyed.post("remember", key="ana", conversation=his, text="hers")
    assert (hers["profile"], hers["conversation"] != his) == ("ana", True)


def test_a_copy_goes_its_own_way_in_the_profile_that_is_named(client: Client) -> None:
    id_, said = client.chat("talk", 3)
    with Store.open(client.database) as store:
        branched = states.before(store, id_, 3)
    assert branched
    done = client.post("copy", conversation=id_, to="work", at=2)
    copied = done.pop("conversation")
    assert done == {"from": id_, "turns": 2, "profile": "work", "dry_run": False}
    assert client.state(copied) == branched.state.tobytes()
    client.say(copied, *said[:4], "another", **{"X-Dmem-Profile": "work"})
    assert [len(client.get("show", conversation=one)["turns"]) for one in (id_, copied)] == [3, 3]
    assert client.get("show", conversation=id_)["turns"][-1]["messages"][0]["text"] == "walrus 3"
    assert client.post("copy", conversation=id_, to="NEW")["profile"] == "default"
    alone = client.post("copy", conversation=id_, to="new.one", state_only=True)
    assert (alone["turns"], client.state(alone["conversation"])) == (0, client.state(id_))


def test_what_can_not_be_copied_is_refused_and_makes_no_profile(client: Client) -> None:
    id_, _ = client.chat("talk", 1)
    assert client.post("copy", 404, to="work", at=2)["error"]["code"] == "not_found"
    assert client.post("copy", 404, to="work", profile="nobody")["error"]["param"] == "profile"
    for to in ("a/b", "", "new"):
        error = client.post("copy", 400, to=to)["error"]
        assert (error["code"], error["param"]) == ("invalid_name", "to")
    client.post("reset", conversation=id_, transcript=True)
    assert "nothing to copy" in client.post("copy", 400, conversation=id_, to="work")["error"]["message"]
    assert client.get("list")["profiles"] == ["default"]


def test_a_key_copies_into_its_own_profile_alone(keyed: Client) -> None:
    keyed.post("remember", key="ana", text="hers")
    refused = keyed.post("copy", 404, key="ana", to="bob")["error"]
    assert (refused["param"], refused["message"]) == ("to", "There is no profile bob here.")
    for to in ("ana", "NEW"):
        assert keyed.post("copy", key="ana", to=to)["profile"] == "ana"
    assert keyed.get("list", key="all")["profiles"] == ["ana"]


def test_scrub_wipes_what_could_not_be_wiped_and_says_so_where_it_can_not(
    client: Client, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_, _ = client.chat("talk", 1)
    monkeypatch.setattr(wiping.wipe, "__kwdefaults__", {"patience": 0.05})
    monkeypatch.setattr(session_wiping.wipe, "__kwdefaults__", {"patience": 0.05})
    (home / "history").mkdir()  # typed lines can't be erased
    with Store.open(client.database) as reader, reader.reading():
        conversations.get(reader, id_)
        assert "another program is reading" in client.post("reset", transcript=True)["warning"]
        refused = client.post("scrub", 409)["error"]
        assert refused["code"] == "not_wiped" and "another program is reading" in refused["message"]
        assert b"walrus" in stored.raw_bytes(client.database)
    (home / "history").rmdir()
    typed_lines.add("a walrus", id_, 1)
    assert client.post("scrub") == {"wiped": True}
    assert b"walrus" not in stored.raw_bytes(client.database)
    assert "walrus" not in (home / "history").read_text()
    assert client.post("scrub", 400, all=True)["error"]["message"] == "There is no field all here: leave it out."


def test_without_an_adapter_what_needs_a_memory_says_so(home: Path, tiny_model: Any) -> None:
    with serving(home, tiny_model("qwen3"), None, {}) as client:
        client.chat("talk", 2)
        assert client.post("remember", 409, text="x")["error"]["code"] == "no_memory"
        assert client.post("forget", turns=[1])["replayed"] == []
        assert client.get("inspect")["layers"] == []


@pytest.mark.parametrize(
    "word, fields, sentence",
    [
        ("undo", {"dryrun": True}, "There is no field dryrun here"),
        ("undo", {"turns": "two"}, "turns must be a whole number"),
        ("undo", {"turns": True}, "turns must be a whole number"),
        ("undo", {"turns": 0}, "turns: 0 is not a whole number from 1 on"),
        ("undo", {"dry_run": "no"}, "dry_run must be true or false"),
        ("forget", {"turns": []}, "turns is an empty list"),
        ("forget", {"turns": ["1"]}, "turns: 1 is not a whole number"),
        ("forget", {}, "turns is missing"),
        ("reset", {"all": True, "conversation": "x"}, "all and conversation can't be used together"),
        ("undo", {"expect": []}, "expect is an empty list"),
        ("undo", {"expect": [1]}, "expect must be a list of texts"),
        ("undo", {"expect": "2026"}, "expect must be a list of texts"),
        ("undo", {"profile": "no/such"}, "can't be a profile's name"),
        ("probe", {"question": " "}, "The question is empty"),
    ],
)
def test_a_field_that_makes_no_sense_is_refused_by_name(
    client: Client, word: str, fields: dict[str, Any], sentence: str
) -> None:
    client.chat("talk", 1)
    message = client.post(word, 400, **fields)["error"]["message"]
    assert sentence in message and "\n" not in message
    assert len(client.get("show")["turns"]) == 1


def test_a_name_that_no_profile_can_have_is_the_clients_mistake(client: Client) -> None:
    asked = client.get("list", 400, profile="a/b"), client.say("x", "Hello.", code=400, **{"X-Dmem-Profile": "a/b"})
    assert [done["error"]["code"] for done in asked] == ["invalid_name"] * 2


def test_fields_of_a_query_are_of_their_kind(client: Client) -> None:
    client.chat("talk", 1)
    assert "turn must be" in client.get("show", 400, turn="one")["error"]["message"]
    assert "not a whole number" in client.get("show", 400, turn="9" * 5000)["error"]["message"]
    assert "after is missing" in client.get("diff", 400, before=0)["error"]["message"]
    assert "no layer 77" in client.get("inspect", 400, layer=77)["error"]["message"]
    assert "must stand in the body" in client.http.post("/v1/memory/undo?turns=1", json={}).json()["error"]["message"]


def test_a_question_that_is_not_kept_may_follow_others_that_were_not(client: Client) -> None:
    id_, said = client.chat("talk", 1)
    only_read = {"X-Dmem-Read-Only": "1"}
    before = client.state(id_)
    answer = client.say("talk", *said, "Unkept.", **only_read)["choices"][0]["message"]["content"]
    client.say("talk", *said, "Unkept.", answer, "And that?", **only_read)
    assert (client.state(id_), len(client.get("show")["turns"])) == (before, 1)


def test_openapi_describes_every_route(client: Client) -> None:
    described = client.http.get("/openapi.json").json()
    app = client.http.app._app  # type: ignore[attr-defined]  # behind the guard
    routes = {
        (re.sub(r":\w+", "", route.path), method.lower())
        for route in app.routes
        if isinstance(route, Route) and not route.path.startswith("/v1/dmem/")
        for method in route.methods - {"HEAD", "OPTIONS"}
    }
    assert routes == {(path, method) for path, of in described["paths"].items() for method in of}
    for path, of in described["paths"].items():
        for told in of.values():
            assert re.fullmatch(r"(?!GET|POST)[A-Z][^\n]{3,}", told["summary"]), path
    undo = described["paths"]["/v1/memory/undo"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert undo["properties"]["turns"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 2**31 - 1,
        "default": 1,
        "description": "How many.",
    }
    assert described["paths"]["/v1/memory/forget"]["post"]["requestBody"]["required"]
    ids = [told["operationId"] for of in described["paths"].values() for told in of.values()]
    assert len(ids) == len(set(ids))
