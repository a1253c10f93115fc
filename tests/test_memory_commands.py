"""`dmem memory`, without a model: what people and programs read from it, and what it changes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import stored

from deltamem_cli.memory_view import metrics
from deltamem_cli.session import typed_lines
from deltamem_cli.store import conversations, locks, profiles, states, turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.records import Conversation
from deltamem_cli.store.reset import reset
from deltamem_cli.terminal import heat_map

Dmem = Callable[..., str]


@pytest.fixture
def talk(home: Path) -> Conversation:
    with Store.open(home / "memory.db") as store:
        return stored.conversation(store, 4, word="walrus")


def refusal(text: str) -> str:
    assert text.count("\n") == 1, text
    return text


def test_inspect_json_has_what_the_metrics_say_of_the_stored_state(talk: Conversation, dmem: Dmem) -> None:
    found = json.loads(dmem("memory", "inspect", "-p", "work", "--json"))
    now, before = stored.snapshot(4), stored.snapshot(3)
    assert {key: found[key] for key in found if key != "layers"} == {
        "profile": "work",
        "conversation": talk.id,
        "model": "tiny-model",
        "model_fingerprint": "aa" * 32,
        "adapter": "tiny-adapter",
        "adapter_fingerprint": "bb" * 32,
        "rank": 8,
        "state_heads": 1,
        "turns": 4,
        "tokens_written": 16,
    }
    expected = metrics.per_layer(now.state, now.layers, before.state)
    for layer, values, one in zip(expected, now.state, found["layers"], strict=True):
        assert set(one) == {"layer", "norm", "effective_rank", "change", "state"}
        assert [one["layer"], one["norm"], one["effective_rank"], one["change"]] == pytest.approx(
            [layer.layer, layer.norm, layer.effective_rank, layer.change]
        )
        assert np.array_equal(np.array(one["state"], dtype="f4"), values)


def test_inspect_of_a_cleared_memory_says_that_it_is_empty(talk: Conversation, dmem: Dmem) -> None:
    dmem("memory", "reset", "-p", "work", "-y")
    found = json.loads(dmem("memory", "inspect", "-p", "work", "--json"))
    assert (found["turns"], found["tokens_written"], found["layers"], found["model"]) == (4, 0, [], None)
    assert "memory        empty" in dmem("memory", "inspect", "-p", "work")
    assert "nothing to draw" in refusal(dmem("memory", "inspect", "-p", "work", "--image", "x.svg", code=1))


@pytest.mark.parametrize("n_layers, heads", [(30, 1), (36, 4)])
def test_overview_fits_100_columns_and_names_every_layer(
    home: Path, dmem: Dmem, monkeypatch: pytest.MonkeyPatch, n_layers: int, heads: int
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with Store.open(home / "memory.db") as store:
        made = conversations.new(profiles.ensure(store, "work"))
        snapshot = stored.snapshot(1, list(range(n_layers)), heads)
        turns.commit(store, made, stored.exchange(1, user="a long beginning " * 9, snapshot=snapshot))
    shown = dmem("memory", "inspect", "-p", "work")
    assert max(map(len, shown.splitlines())) <= 100
    assert re.findall(r"L(\d+) ", shown) == [str(n) for n in range(n_layers)]


def test_sign_and_strength_are_readable_without_colour(talk: Conversation, home: Path, dmem: Dmem) -> None:
    values = np.zeros((1, 1, 8, 8), dtype="f4")
    values[0, 0, 0] = [1.0, 0.4, 0.2, 0.1, -0.1, -0.2, -0.4, -1.0]
    with Store.open(home / "memory.db") as store:
        snapshot = stored.snapshot(1, [7])
        turns.commit(store, talk, stored.exchange(5, snapshot=replace(snapshot, state=values)))
    shown = dmem("memory", "inspect", "-p", "work")
    assert "█▓▒░.-=#" in shown and "\x1b" not in shown
    assert "− #=-. ░▒▓█ +" in shown


@pytest.mark.parametrize("no_color", [False, True])
def test_colour_is_for_terminals_that_want_it(
    talk: Conversation, dmem: Dmem, monkeypatch: pytest.MonkeyPatch, no_color: bool
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    shown = dmem("memory", "inspect", "-p", "work")
    assert ("38;5;" in shown) != no_color


@pytest.mark.parametrize("value", [0, 1e-9, 0.0123, 0.5, 3.14159, 9.999, 42.42, 99.97, 123.4, 9999.4, 12345.0, 4e12])
def test_short_numbers_are_short_and_true(value: float) -> None:
    text = heat_map.short(value)
    assert len(text) <= 5 and float(text) == pytest.approx(value, rel=0.2)


def test_layer_shows_its_numbers_and_an_unknown_one_is_a_usage_error(talk: Conversation, dmem: Dmem) -> None:
    shown = dmem("memory", "inspect", "-p", "work", "--layer", "3")
    first = stored.snapshot(4).state[1, 0, 0, 0]
    assert "layer 3" in shown and f"{first:.3g}" in shown
    assert "2 to 5" in refusal(dmem("memory", "inspect", "-p", "work", "--layer", "4", code=2))
    assert [one["layer"] for one in json.loads(dmem("memory", "inspect", "-p", "work", "--layer", "5", "--json"))
            ["layers"]] == [5]  # fmt: skip


@pytest.mark.parametrize("rank", [8, 16, 64])
def test_one_layer_shows_all_its_numbers_in_100_columns(home: Path, dmem: Dmem, rank: int) -> None:
    state = stored.snapshot(1, rank=rank)
    with Store.open(home / "memory.db") as store:
        turns.commit(store, stored.conversation(store, 0), stored.exchange(1, snapshot=state))
    shown = dmem("memory", "inspect", "-p", "work", "--layer", "3")
    assert max(map(len, shown.splitlines())) <= heat_map.MAX_WIDTH
    numbers = Counter(f"{number:.3g}" for number in state.state[1, 0].flat)
    assert numbers <= Counter(re.findall(r"(?<=\s)-?[\d.e+-]+(?=\s)", shown))


@pytest.mark.parametrize("name", ["memory.svg", "memory.png"])
def test_image_is_written_by_its_ending(talk: Conversation, dmem: Dmem, tmp_path: Path, name: str) -> None:
    dmem("memory", "inspect", "-p", "work", "--image", str(tmp_path / name), "--json")
    head = (tmp_path / name).read_bytes()[:8]
    assert head.startswith(b"<svg" if name.endswith("svg") else b"\x89PNG")
    dmem("memory", "diff", "1", "3", "-p", "work", "--image", str(tmp_path / ("diff" + name)))
    assert (tmp_path / ("diff" + name)).stat().st_size > 1000
    assert "neither .svg nor .png" in refusal(
        dmem("memory", "inspect", "-p", "work", "--image", str(tmp_path / "x.jpg"), code=2)
    )


def test_history_tells_tokens_norm_and_change_of_every_turn(talk: Conversation, dmem: Dmem) -> None:
    found = json.loads(dmem("memory", "history", "-p", "work", "--json"))["turns"]
    assert [(one["turn"], one["written_tokens"]) for one in found] == [(n, 4) for n in (1, 2, 3, 4)]
    assert found[2]["norm"] == pytest.approx(np.linalg.norm(stored.snapshot(3).state.ravel()))
    moved = stored.snapshot(3).state - stored.snapshot(2).state
    assert found[2]["change"] == pytest.approx(np.linalg.norm(moved.ravel()))
    lines = dmem("memory", "history", "-p", "work").splitlines()
    assert len(lines) == 5 and "walrus 4" in lines[4] and max(map(len, lines)) <= 100


def test_diff_is_the_difference_of_two_states_and_0_is_the_beginning(talk: Conversation, dmem: Dmem) -> None:
    found = json.loads(dmem("memory", "diff", "1", "4", "-p", "work", "--json"))
    difference = stored.snapshot(4).state - stored.snapshot(1).state
    assert found["change"] == pytest.approx(np.linalg.norm(difference.ravel()))
    for values, one in zip(difference, found["layers"], strict=True):
        assert np.allclose(one["difference"], values, atol=1e-6)
    begun = json.loads(dmem("memory", "diff", "0", "2", "-p", "work", "--json"))
    assert begun["change"] == pytest.approx(np.linalg.norm(stored.snapshot(2).state.ravel()))
    assert "no turn 9" in refusal(dmem("memory", "diff", "1", "9", "-p", "work", code=1))
    assert "turn 4 minus turn 1" in dmem("memory", "diff", "1", "4", "-p", "work")


def test_undo_restores_the_state_and_wipes_the_words(talk: Conversation, home: Path, dmem: Dmem) -> None:
    with Store.open(home / "memory.db") as store:
        turns.commit(store, talk, stored.exchange(5, user="A quagga is a zebra."))
    assert json.loads(dmem("memory", "undo", "3", "-p", "work", "--dry-run", "--json"))["undone"] == [3, 4, 5]
    assert b"walrus 4" in stored.raw_bytes(home / "memory.db")
    dmem("memory", "undo", "3", "-p", "work", "-y")
    raw = stored.raw_bytes(home / "memory.db")
    assert b"walrus 4" not in raw and b"walrus 2" in raw
    assert b"quagga" not in raw, "the words of the search index too"
    with Store.open(home / "memory.db") as store:
        found = states.latest(store, talk.id)
        assert found and found.state.tobytes() == stored.snapshot(2).state.tobytes()
    assert "has 2" in refusal(dmem("memory", "undo", "3", "-p", "work", "-y", code=1))


@pytest.mark.parametrize("command", [("memory", "reset", "-p", "work"), ("memory", "undo", "-p", "work"),
                                     ("profile", "delete", "work")])  # fmt: skip
def test_what_deletes_asks_first_and_without_a_terminal_changes_nothing(
    talk: Conversation, home: Path, dmem: Dmem, command: tuple[str, ...]
) -> None:
    before = stored.raw_bytes(home / "memory.db")
    assert "--yes" in dmem(*command, code=2)
    dmem(*command, "--dry-run")
    assert stored.raw_bytes(home / "memory.db") == before


def test_reset_tells_what_goes_and_then_it_is_gone(talk: Conversation, home: Path, dmem: Dmem) -> None:
    told = json.loads(dmem("memory", "reset", "-p", "work", "--transcript", "--dry-run", "--json"))
    assert (told["states"], told["turns"], told["messages"], told["dry_run"]) == (4, 4, 8, True)
    done = json.loads(dmem("memory", "reset", "-p", "work", "--transcript", "-y", "--json"))
    assert {**done, "dry_run": True} == told
    raw = stored.raw_bytes(home / "memory.db")
    assert b"walrus" not in raw
    assert all(stored.snapshot(seed).state.tobytes()[:16] not in raw for seed in (1, 2, 3, 4))


def test_reset_all_clears_every_conversation_of_one_profile_alone(home: Path, dmem: Dmem) -> None:
    with Store.open(home / "memory.db") as store:
        mine = [stored.conversation(store, 2) for _ in range(2)]
        other = stored.conversation(store, 2, profile="home")
    dmem("memory", "reset", "-p", "work", "--all", "-y")
    with Store.open(home / "memory.db") as store:
        assert [states.latest(store, one.id) for one in mine] == [None, None]
        assert states.latest(store, other.id)
    assert "can't be used together" in refusal(dmem("memory", "reset", "--all", "--cid", other.id, "-y", code=2))


@pytest.mark.parametrize("command", [("memory", "undo", "3"), ("memory", "reset", "--transcript"),
                                     ("memory", "reset", "--all", "--transcript"), ("profile", "delete")])  # fmt: skip
def test_what_is_deleted_from_the_transcript_goes_from_the_typed_lines_too(
    talk: Conversation, home: Path, dmem: Dmem, command: tuple[str, ...]
) -> None:
    from prompt_toolkit.history import FileHistory

    with Store.open(home / "memory.db") as store:
        turns.commit(store, talk, stored.exchange(5, user="Ana", kind="remember"))
        turns.commit(store, talk, stored.exchange(6, user="two\nlines"))
    history = FileHistory(str(home / "history"))
    typed = ["elsewhere", "walrus 4", "/remember Ana", "Ana is not said by this alone", "two\nlines", "über\n+x"]
    for line in typed:
        history.store_string(line)
    before = (home / "history").read_bytes()
    profile = ["work"] if command[0] == "profile" else ["-p", "work"]
    dmem(*command, *profile, "--dry-run")
    assert (home / "history").read_bytes() == before
    dmem(*command, *profile, "-y")
    assert list(history.load_history_strings())[::-1] == ["elsewhere", "Ana is not said by this alone", "über\n+x"]
    assert b"walrus" not in (home / "history").read_bytes()


@pytest.mark.parametrize("command, kept", [
    (("memory", "undo"), ["/system first", "question 3"]),
    (("memory", "undo", "2"), ["/system first"]),
    (("memory", "reset", "--transcript"), []),
    (("memory", "reset"), ["/system first", "question 3", "/read f what?", "/mistyped", "of turn 4", "after it"]),
    (("profile", "delete"), []),
])  # fmt: skip
def test_typed_lines_go_with_the_turn_that_they_led_to(
    talk: Conversation, home: Path, dmem: Dmem, command: tuple[str, ...], kept: list[str]
) -> None:
    lines = ("/system first", 1), ("question 3", 3), ("/read f what?", 4), ("/mistyped", 4), ("of turn 4", 4)
    for text, turn in (*lines, ("after it", 5)):
        typed_lines.add(text, talk.id, turn)
    typed_lines.add("of another", "another", 4)
    before = (home / "history").read_bytes()
    profile = ["work"] if command[0] == "profile" else ["-p", "work"]
    dmem(*command, *profile, "-y")
    assert _typed(home) == [*kept, "of another"]
    left = (home / "history").read_bytes()
    assert all(line in before for line in left.splitlines()), "what stays is left as it is"


def test_the_typed_system_prompt_goes_when_no_turn_has_it_any_more(home: Path, dmem: Dmem) -> None:
    with Store.open(home / "memory.db") as store:
        talk = stored.conversation(store, 0)
        for number in (1, 2):
            turns.commit(store, talk, stored.exchange(number, context={"run": "r", "system": "You know zanzibar."}))
    typed_lines.add("/system You know zanzibar.", "the one before", 3)
    dmem("memory", "undo", "-p", "work", "-y")
    assert _typed(home) == ["/system You know zanzibar."]
    dmem("memory", "undo", "-p", "work", "-y")
    assert _typed(home) == []


@pytest.mark.parametrize("command", [("memory", "undo", "4"), ("memory", "reset", "--transcript"),
                                     ("memory", "reset", "--all", "--transcript"), ("profile", "delete")])  # fmt: skip
@pytest.mark.parametrize("step", ["store.wiping.wipe_typed", "store.database.Store.scrub"])
def test_what_a_killed_deletion_left_goes_with_the_next_command_that_writes(
    talk: Conversation, home: Path, dmem: Dmem, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], step: str
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    typed_lines.add("/system about a walrus", talk.id, 1)
    typed_lines.add("elsewhere", "another", 1)
    profile = ["work"] if command[0] == "profile" else ["-p", "work"]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(f"deltamem_cli.{step}", kill)
        dmem(*command, *profile, "-y")
    assert b"walrus" in stored.raw_bytes(home / "memory.db")
    dmem("profile", "list")  # it reads alone
    assert b"walrus" in stored.raw_bytes(home / "memory.db")
    dmem("profile", "create", "next")
    assert b"walrus" not in stored.raw_bytes(home / "memory.db") and _typed(home) == ["elsewhere"]


def test_a_deletion_that_can_not_be_wiped_is_done_and_says_what_is_left(
    talk: Conversation, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from deltamem_cli import cli
    from deltamem_cli.session import wiping

    monkeypatch.setattr(wiping.wipe, "__kwdefaults__", {"patience": 0.05})
    typed_lines.add("about a walrus", talk.id, 4)
    with Store.open(home / "memory.db") as reader, reader.reading():
        turns.all_of(reader, talk.id)
        assert cli.main(["memory", "undo", "4", "-p", "work", "-y"]) == 0
        told = capsys.readouterr().err
        assert "undid 4 turns" in told and "another program is reading" in told
        assert _typed(home) == [], "only the bytes have to wait"
        assert cli.main(["profile", "create", "next"]) == 0
        assert "another program is reading" in capsys.readouterr().err
    assert cli.main(["profile", "create", "other"]) == 0
    assert "another program" not in capsys.readouterr().err
    assert b"walrus" not in stored.raw_bytes(home / "memory.db")


def test_typed_lines_that_can_not_be_erased_are_told_of_and_tried_again(
    talk: Conversation, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from deltamem_cli import cli

    (home / "history").mkdir()
    assert cli.main(["memory", "undo", "-p", "work", "-y"]) == 0
    assert f"still in {home / 'history'}" in capsys.readouterr().err
    (home / "history").rmdir()
    typed_lines.add("about a walrus", talk.id, 4)
    assert cli.main(["memory", "scrub"]) == 0
    assert _typed(home) == []


def _typed(home: Path) -> list[str]:
    from prompt_toolkit.history import FileHistory

    return list(FileHistory(str(home / "history")).load_history_strings())[::-1]


def test_command_on_a_conversation_in_use_names_the_holder(talk: Conversation, home: Path, dmem: Dmem) -> None:
    with Store.open(home / "memory.db") as store:
        locks.hold(store, talk.id)
        assert f"process {os.getpid()}" in refusal(dmem("memory", "reset", "-p", "work", "-y", code=1))
        assert json.loads(dmem("memory", "inspect", "-p", "work", "--json"))["turns"] == 4


@pytest.mark.parametrize("to, profile", [("NEW", "work"), ("other", "other")])
def test_copy_branches_at_a_turn_and_says_the_new_id(
    talk: Conversation, home: Path, dmem: Dmem, to: str, profile: str
) -> None:
    made = dmem("memory", "copy", "--to", to, "--at", "2", "-p", "work").strip()
    with Store.open(home / "memory.db") as store:
        copy = conversations.get(store, made)
        assert (copy.profile, copy.n_turns, copy.origin, copy.origin_turn) == (profile, 2, talk.id, 2)
        latest = conversations.latest(store, profiles.get(store, profile))
        assert latest and latest.id == made
    dmem("memory", "copy", "--to", "third", "--cid", talk.id, "--dry-run")
    assert "no profile third" in refusal(dmem("profile", "show", "third", code=1))


def test_export_and_import_carry_the_memory_to_another_home(
    talk: Conversation, dmem: Dmem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(tmp_path / "work.dmem")
    dmem("memory", "export", file, "-p", "work")
    assert "--force" in refusal(dmem("memory", "export", file, "-p", "work", code=2))
    dmem("memory", "export", file, "-p", "work", "--transcript", "--force")
    before = json.loads(dmem("memory", "inspect", "-p", "work", "--json"))
    monkeypatch.setenv("DMEM_HOME", str(tmp_path / "elsewhere"))
    assert json.loads(dmem("memory", "import", file, "--dry-run", "--json"))["messages"] == 8
    assert not (tmp_path / "elsewhere").exists()
    made = dmem("memory", "import", file).strip()
    after = json.loads(dmem("memory", "inspect", "--json"))
    assert after == {**before, "profile": "default", "conversation": made}
    Path(file).write_bytes(b"nonsense")
    assert "cannot be imported" in refusal(dmem("memory", "import", file, code=1))


def test_nothing_remembered_yet_is_said_and_makes_no_file(home: Path, dmem: Dmem) -> None:
    for command in ("inspect", "history", "reset", "undo"):
        assert "dmem chat" in refusal(dmem("memory", command, code=1))
    assert json.loads(dmem("profile", "list", "--json")) == json.loads(dmem("log", "list", "--json")) == []
    assert not home.exists()


def test_profile_comes_from_the_environment_when_no_flag_names_one(
    talk: Conversation, dmem: Dmem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DMEM_PROFILE", "work")
    assert json.loads(dmem("memory", "inspect", "--json"))["profile"] == "work"
    assert "no profile other" in refusal(dmem("memory", "inspect", "-p", "other", code=1))


def test_other_database_is_used_where_it_is_named(talk: Conversation, home: Path, dmem: Dmem, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with Store.open(other) as store:
        stored.conversation(store, 1)
    assert json.loads(dmem("memory", "inspect", "-p", "work", "--json", "-d", str(other)))["turns"] == 1


def test_control_characters_in_stored_names_and_texts_do_not_reach_the_terminal(home: Path, dmem: Dmem) -> None:
    with Store.open(home / "memory.db") as store:
        made = conversations.new(profiles.ensure(store, "work"))
        turns.commit(store, made, stored.exchange(1, user="clear \x1b[2J\x07 screen", reply="\x1b]0;title\x07"))
    for command in ("memory inspect", "memory history", "log list", "log show", "log search clear", "log export"):
        shown = dmem(*command.split(), "-p", "work")
        assert "clear" in shown and "\x1b" not in shown and "\x07" not in shown, command


@pytest.mark.parametrize(
    "command, barred",
    [
        ("memory --help", "numpy sqlite_utils rich llama_cpp sqlite3"),
        ("memory inspect --help", "numpy sqlite_utils rich llama_cpp sqlite3"),
        ("profile --help", "numpy sqlite_utils rich llama_cpp sqlite3"),
        ("log --help", "numpy sqlite_utils rich llama_cpp sqlite3"),
        ("memory inspect -p work --json", "rich llama_cpp gguf deltamem_cli.bindings"),
        ("memory inspect -p work", "llama_cpp gguf deltamem_cli.bindings"),
    ],
)
def test_command_loads_no_more_than_it_needs(talk: Conversation, command: str, barred: str) -> None:
    code = "import sys; from deltamem_cli import cli; cli.main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code, *command.split()], capture_output=True, text=True, check=True)
    assert result.stdout and not set(result.stderr.split()) & set(barred.split())


def test_a_conversation_that_holds_nothing_is_neither_copied_nor_exported_and_leaves_no_profile(
    home: Path, dmem: Dmem, tmp_path: Path
) -> None:
    with Store.open(home / "memory.db") as store:
        talk = stored.conversation(store, 1)
        reset(store, [talk], transcript=True)
    file = tmp_path / "x.dmem"
    for command in (["copy", "--to", "other"], ["copy", "--to", "other", "--dry-run"], ["export", str(file)]):
        text = dmem("memory", *command, "-p", "work", code=1)
        assert "nothing to copy" in text and text.count("\n") == 1
    with Store.read(home / "memory.db") as store:
        assert [profile.name for profile in profiles.all_of(store)] == ["work"]
    assert not file.exists()


def test_forget_announces_no_replay_that_it_refuses(talk: Conversation, dmem: Dmem) -> None:
    # the turns behind the second are of a model that is not the one that would replay them
    said = refusal(dmem("memory", "forget", "2", "-p", "work", "-y", code=1))
    assert "will be replayed" not in said
    assert len(json.loads(dmem("memory", "history", "-p", "work", "--json"))["turns"]) == 4


@pytest.mark.parametrize("option", ["--model", "--adapter"])
def test_a_profile_takes_no_folder_for_a_file(home: Path, tmp_path: Path, dmem: Dmem, option: str) -> None:
    assert "is a folder" in refusal(dmem("profile", "create", "own", option, str(tmp_path), code=2))
    dmem("profile", "create", "own", option, str(tmp_path / "later.gguf"))
    assert "is a folder" in refusal(dmem("profile", "set", "own", option, f"{tmp_path}/", code=2))
