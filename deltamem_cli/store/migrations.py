"""The database's layout, as numbered steps from empty to today; the step reached stands in `user_version`.

A step that was released is never edited: what is wrong with it is put right by the next one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

APPLICATION_ID = 0x646D656D  # "dmem": tells our files from other programs' SQLite files

# Letters of scripts whose words are not parted by spaces, and symbols such as emoji, as stands between the brackets of a
# regular expression and of GLOB. Two ranges, because GLOB takes its time for each; rarer scripts lie in them too.
UNSPACED = "\u05d0-\u1cff\u2190-\U0010ffff"


def m001_profiles_and_conversations(db: Database) -> None:
    """Profiles own conversations; deleting a profile deletes them."""
    db.executescript(
        """
        CREATE TABLE profiles (
            id INTEGER PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            model TEXT,
            adapter TEXT,
            system TEXT,
            options TEXT NOT NULL DEFAULT '{}',
            created TEXT NOT NULL
        );
        CREATE TABLE conversations (
            id TEXT PRIMARY KEY,
            profile_id INTEGER NOT NULL REFERENCES profiles (id) ON DELETE CASCADE,
            title TEXT,
            created TEXT NOT NULL,
            updated TEXT NOT NULL,
            origin TEXT,
            origin_turn INTEGER
        );
        CREATE INDEX conversations_by_profile ON conversations (profile_id, updated);
        """
    )


def m002_turns_and_messages(db: Database) -> None:
    """Turns are numbered from 1 in their conversation and hold messages with their tokens."""
    db.executescript(
        """
        CREATE TABLE turns (
            id INTEGER PRIMARY KEY,
            conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
            number INTEGER NOT NULL CHECK (number > 0),
            kind TEXT NOT NULL,
            created TEXT NOT NULL,
            model_name TEXT NOT NULL,
            model_fingerprint TEXT NOT NULL,
            adapter_name TEXT,
            adapter_fingerprint TEXT,
            settings TEXT NOT NULL DEFAULT '{}',
            context TEXT NOT NULL DEFAULT '{}',
            interrupted INTEGER NOT NULL DEFAULT 0,
            prompt_tokens INTEGER NOT NULL DEFAULT 0,
            reply_tokens INTEGER NOT NULL DEFAULT 0,
            written_tokens INTEGER NOT NULL DEFAULT 0,
            timings TEXT NOT NULL DEFAULT '{}',
            UNIQUE (conversation_id, number)
        );
        CREATE TABLE messages (
            id INTEGER PRIMARY KEY,
            turn_id INTEGER NOT NULL REFERENCES turns (id) ON DELETE CASCADE,
            position INTEGER NOT NULL,
            role TEXT NOT NULL,
            text TEXT NOT NULL,
            tokens BLOB NOT NULL DEFAULT x'',
            spans BLOB,
            UNIQUE (turn_id, position)
        );
        """
    )


def m003_states(db: Database) -> None:
    """One state per turn, and one without a turn for memories that were copied without turns."""
    # One table for the states after turns and for the state that a conversation begins with (turn_id NULL).
    db.executescript(
        """
        CREATE TABLE states (
            id INTEGER PRIMARY KEY,
            conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
            turn_id INTEGER UNIQUE REFERENCES turns (id) ON DELETE CASCADE,
            model_name TEXT NOT NULL,
            model_fingerprint TEXT NOT NULL,
            adapter_name TEXT NOT NULL,
            adapter_fingerprint TEXT NOT NULL,
            layers TEXT NOT NULL,
            n_layers INTEGER NOT NULL,
            heads INTEGER NOT NULL,
            rank INTEGER NOT NULL,
            state BLOB NOT NULL CHECK (length(state) = 4 * n_layers * heads * rank * rank)
        );
        CREATE INDEX states_by_conversation ON states (conversation_id);
        CREATE UNIQUE INDEX states_initial ON states (conversation_id) WHERE turn_id IS NULL;
        """
    )


def m004_full_text_search(db: Database) -> None:
    """An index over message texts that triggers keep up to date."""
    db.table("messages").enable_fts(["text"], create_triggers=True, tokenize="unicode61 remove_diacritics 2")


def m005_templates_of_profiles(db: Database) -> None:
    """A profile may have a chat template."""
    db.execute("ALTER TABLE profiles ADD COLUMN template TEXT")


def m006_writes_of_profiles(db: Database) -> None:
    """A profile may say what of a turn is remembered."""
    db.execute("ALTER TABLE profiles ADD COLUMN write TEXT")


def m007_wipes(db: Database) -> None:
    """Deletions whose bytes are still to be wiped."""
    # One row per deletion whose bytes are still to be wiped; typed: which typed lines go with it, NULL when none is left.
    db.execute("CREATE TABLE wipes (id INTEGER PRIMARY KEY, typed TEXT)")


def m008_search_without_spaces(db: Database) -> None:
    """An index of any three characters, for scripts that part no words."""
    # The index of words takes a whole sentence of such a script for one word. Other texts have no need of this index,
    # which is several times as large as they are, so it is one of those in a view. First there, what is quickly told.
    db.executescript(
        f"""
        CREATE VIEW messages_unspaced AS SELECT id, text FROM messages
            WHERE length(CAST(text AS BLOB)) <> length(text) AND text GLOB '*[{UNSPACED}]*';
        CREATE VIRTUAL TABLE messages_trigram USING fts5 (
            text, tokenize='trigram', content='messages_unspaced', content_rowid='id'
        );
        CREATE TRIGGER messages_trigram_insert AFTER INSERT ON messages BEGIN
            INSERT INTO messages_trigram (rowid, text) SELECT id, text FROM messages_unspaced WHERE id = new.id;
        END;
        CREATE TRIGGER messages_trigram_delete BEFORE DELETE ON messages BEGIN
            INSERT INTO messages_trigram (messages_trigram, rowid, text)
            SELECT 'delete', id, text FROM messages_unspaced WHERE id = old.id;
        END;
        CREATE TRIGGER messages_trigram_before_update BEFORE UPDATE ON messages BEGIN
            INSERT INTO messages_trigram (messages_trigram, rowid, text)
            SELECT 'delete', id, text FROM messages_unspaced WHERE id = old.id;
        END;
        CREATE TRIGGER messages_trigram_update AFTER UPDATE ON messages BEGIN
            INSERT INTO messages_trigram (rowid, text) SELECT id, text FROM messages_unspaced WHERE id = new.id;
        END;
        INSERT INTO messages_trigram (messages_trigram) VALUES ('rebuild');
        """
    )


def m009_sequence_of_conversations(db: Database) -> None:
    """An order of conversations that no clock can change."""
    # Which one is the last is no matter of the clock, which may be set back, or have stood ahead for a while.
    db.executescript(
        """
        ALTER TABLE conversations ADD COLUMN sequence INTEGER NOT NULL DEFAULT 0;
        UPDATE conversations SET sequence = ordered.number
            FROM (SELECT id, row_number() OVER (ORDER BY updated, id) AS number FROM conversations) AS ordered
            WHERE ordered.id = conversations.id;
        DROP INDEX conversations_by_profile;
        CREATE INDEX conversations_by_profile ON conversations (profile_id, sequence);
        CREATE INDEX conversations_by_sequence ON conversations (sequence);
        """
    )


def m010_runs(db: Database) -> None:
    """What turns were shown is stored once: a prompt's head, and what a run of turns began with."""
    # Before, every turn had all of it in its own context, of which the head alone is thousands of characters.
    db.executescript(
        """
        CREATE TABLE prompts (
            id INTEGER PRIMARY KEY,
            conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
            system TEXT,
            head TEXT,
            opening TEXT
        );
        CREATE TABLE runs (
            id INTEGER PRIMARY KEY,
            conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
            prompt_id INTEGER REFERENCES prompts (id),
            name TEXT,
            replayed TEXT
        );
        ALTER TABLE turns ADD COLUMN run_id INTEGER REFERENCES runs (id);
        CREATE INDEX prompts_by_conversation ON prompts (conversation_id);
        CREATE INDEX runs_by_conversation ON runs (conversation_id, name);
        CREATE INDEX runs_by_prompt ON runs (prompt_id);
        CREATE INDEX turns_by_run ON turns (run_id);
        """
    )
    kept: dict[tuple[object, ...], int] = {}

    def keep(table: str, *row: object) -> int:
        key = (table, *row)
        if key not in kept:
            marks = ", ".join("?" * len(row))
            kept[key] = db.execute(f"INSERT INTO {table} VALUES (NULL, {marks})", row).lastrowid or 0
        return kept[key]

    # One by one: all contexts together need not fit into memory.
    for (turn,) in db.execute("SELECT id FROM turns ORDER BY id").fetchall():
        conversation, text = db.execute("SELECT conversation_id, context FROM turns WHERE id = ?", [turn]).fetchone()
        try:
            context = json.loads(text)
            system, name = (context.pop(key, None) for key in ("system", "run"))
            lists = (context.pop(key, None) for key in ("head", "opening", "replayed"))
            head, opening, replayed = (None if one is None else json.dumps(one) for one in lists)
            for word in (system, name):
                if word is not None:
                    word.encode()
        except (AttributeError, TypeError, ValueError, RecursionError):
            continue  # a damaged row stays as it is, and reading it says so
        prompt = None if system is head is opening is None else keep("prompts", conversation, system, head, opening)
        run = None if prompt is name is replayed is None else keep("runs", conversation, prompt, name, replayed)
        db.execute("UPDATE turns SET run_id = ?, context = ? WHERE id = ?", [run, json.dumps(context), turn])
    # What no turn refers to any longer goes with the last that did.
    db.executescript(
        """
        CREATE TRIGGER turns_delete_run AFTER DELETE ON turns WHEN old.run_id IS NOT NULL BEGIN
            DELETE FROM runs WHERE id = old.run_id AND NOT EXISTS (SELECT 1 FROM turns WHERE run_id = old.run_id);
        END;
        CREATE TRIGGER turns_change_run AFTER UPDATE OF run_id ON turns WHEN old.run_id IS NOT new.run_id BEGIN
            DELETE FROM runs WHERE id = old.run_id AND NOT EXISTS (SELECT 1 FROM turns WHERE run_id = old.run_id);
        END;
        CREATE TRIGGER runs_delete_prompt AFTER DELETE ON runs WHEN old.prompt_id IS NOT NULL BEGIN
            DELETE FROM prompts
            WHERE id = old.prompt_id AND NOT EXISTS (SELECT 1 FROM runs WHERE prompt_id = old.prompt_id);
        END;
        """
    )


MIGRATIONS: tuple[Callable[[Database], None], ...] = (
    m001_profiles_and_conversations,
    m002_turns_and_messages,
    m003_states,
    m004_full_text_search,
    m005_templates_of_profiles,
    m006_writes_of_profiles,
    m007_wipes,
    m008_search_without_spaces,
    m009_sequence_of_conversations,
    m010_runs,
)
LATEST = len(MIGRATIONS)


def apply(db: Database, version: int, target: int = LATEST) -> None:
    """Bring an open transaction's database from step `version` to step `target`."""
    for number in range(version + 1, target + 1):
        MIGRATIONS[number - 1](db)
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {target}")
