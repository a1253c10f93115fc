"""What turns were shown is stored once, read back with each of them, and gone with the last of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import stored

from deltamem_cli.store import conversations, profiles, reset, turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.records import Conversation
from deltamem_cli.store.turns import Replayed

PROMPT: dict[str, Any] = {"system": "Be terse.", "head": list(range(500)), "opening": [1, 2]}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "memory.db")


@pytest.fixture
def talk(store: Store) -> Conversation:
    return conversations.new(profiles.ensure(store, "work"))


def say(store: Store, talk: Conversation, instead_of: int | None = None, **context: Any) -> dict[str, Any]:
    """Commits a turn that was shown this; returns its context."""
    given = {"window_first": 1, "n_past": 502, **context}
    number = turns.commit(store, talk, stored.exchange(1, context=given), instead_of=instead_of).number
    assert turns.get(store, talk.id, number).context == given
    return given


def kept(store: Store) -> tuple[int, int]:
    """The number of prompts and of runs."""
    prompts, runs = (store.rows(f"SELECT count(*) AS n FROM {table}")[0]["n"] for table in ("prompts", "runs"))
    assert store.check() == []
    return prompts, runs


def test_a_head_is_stored_once_however_many_runs_and_turns_were_shown_it(store: Store, talk: Conversation) -> None:
    given = [say(store, talk, **PROMPT, run=f"r{run}", replayed=[run]) for run in (1, 1, 2, 3, 3)]
    assert kept(store) == (1, 3)
    assert [turn.context for turn in turns.all_of(store, talk.id)] == given
    assert "499" not in str(store.rows("SELECT context FROM turns"))


@pytest.mark.parametrize(
    "context",
    [{}, {"run": "r"}, {"replayed": []}, {"system": ""}, {"opening": [3]}, {"run": "r", "replayed": [1], "head": [2]}],
)
def test_a_context_that_tells_less_reads_back_as_it_was(
    store: Store, talk: Conversation, context: dict[str, Any]
) -> None:
    say(store, talk, **context)
    say(store, talk, **PROMPT, run="r", replayed=[1])
    say(store, talk, **context)


def test_turns_that_were_shown_other_things_share_nothing_of_it(store: Store, talk: Conversation) -> None:
    given = [
        say(store, talk, **{**PROMPT, "run": "r", "replayed": [1], **changed})
        for changed in ({}, {"system": "Be brief."}, {"head": [7]}, {"replayed": []}, {"run": "s"}, {"system": ""})
    ]
    assert [turn.context for turn in turns.all_of(store, talk.id)] == given
    assert kept(store) == (4, 6)


def test_what_only_turns_that_are_gone_were_shown_is_gone(store: Store, talk: Conversation) -> None:
    for run in (1, 1, 2):
        say(store, talk, **PROMPT, run=f"r{run}")
    say(store, talk, system="Only here.", run="r3")
    assert kept(store) == (2, 3)
    say(store, talk, instead_of=4, **PROMPT, run="r2")
    assert kept(store) == (1, 2)
    turns.undo(store, talk.id, 2)
    assert kept(store) == (1, 1)
    turns.replace_after_forgetting(
        store, talk.id, [1], {2: Replayed(stored.snapshot(2), {"run": "r4", "head": [1], "replayed": []})}
    )
    assert turns.get(store, talk.id, 2).context == {"run": "r4", "head": [1], "replayed": []}
    assert kept(store) == (1, 1)
    reset.reset(store, [talk], transcript=True)
    assert kept(store) == (0, 0)


def test_a_deleted_conversation_or_profile_takes_what_its_turns_were_shown_with_it(store: Store) -> None:
    talks = [conversations.new(profiles.ensure(store, name)) for name in ("work", "home")]
    for talk in talks:
        for run in (1, 2):
            say(store, talk, **PROMPT, run=f"r{run}")
    assert kept(store) == (2, 4)
    conversations.delete(store, talks[0].id)
    assert kept(store) == (1, 2)
    profiles.delete(store, "home")
    assert kept(store) == (0, 0)
