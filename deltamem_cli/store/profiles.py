"""Profiles: a name with its own memory, model, adapter, system prompt and sampling options.

Knows the profiles table; what the settings mean is the callers' business.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from deltamem_cli.store import checked, wiping
from deltamem_cli.store.database import Store
from deltamem_cli.store.errors import InvalidName, NotFound, StoreError
from deltamem_cli.store.ids import now
from deltamem_cli.store.locks import holding
from deltamem_cli.store.records import Profile
from deltamem_cli.text import STEERING, short

DEFAULT = "default"
SETTINGS = ("model", "adapter", "system", "template", "write")  # texts; the sampling options stand beside them
NEW = "NEW"  # in `memory copy --to NEW`: a new conversation, so no profile may be called that
_NAME = re.compile(r"[^\W_][\w.@+-]{0,63}")
_JOINERS = "\u00ad\u200c\u200d"  # within words, as Persian and Hindi have them; the first is a soft hyphen


def check_name(name: str) -> str:
    """The name, if it can be one: what may be typed without quotes and stands on one line."""
    name = _composed(name)
    bare = "".join(c for c in name if c not in _JOINERS and not unicodedata.category(c).startswith("M"))
    if not _NAME.fullmatch(bare) or not name[0].isalnum() or len(name) > 64 or name.upper() == NEW:
        raise InvalidName(
            f"{short(name)!r} can't be a profile's name; use up to 64 letters, digits and . _ @ + -, "
            f"starting with a letter or digit, and not {NEW}"
        )
    return name


def _composed(name: str) -> str:
    """One form for what looks the same: keyboards and file systems write é as one character or as two."""
    return unicodedata.normalize("NFC", name)


def all_of(store: Store) -> list[Profile]:
    """Every profile, by name."""
    return _profiles(store, store.rows("SELECT * FROM profiles ORDER BY name"))


def find(store: Store, name: str) -> Profile | None:
    """The profile of that name, if there is one."""
    found = _profiles(store, store.rows("SELECT * FROM profiles WHERE name = ?", [_composed(name)]))
    return found[0] if found else None


def by_id(store: Store, number: int) -> Profile | None:
    """The profile of that row, if it is still there."""
    row = store.row("SELECT * FROM profiles WHERE id = ?", [number])
    return _profile(row) if row else None


def get(store: Store, name: str) -> Profile:
    """The profile of that name. Raises StoreError, with the nearest name, when there is none."""
    found = find(store, name)
    if found:
        return found
    names = [profile.name for profile in all_of(store)]
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}? See" if near else "see"
    raise NotFound(f"There is no profile {short(name)}; {hint}: dmem profile list")


def create(
    store: Store,
    name: str,
    *,
    model: str | None = None,
    adapter: str | None = None,
    system: str | None = None,
    template: str | None = None,
    write: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Profile:
    """A new profile; what is not given stays unset. Raises StoreError for a name that is taken or can't be one."""
    name = check_name(name)
    with store.transaction():
        if find(store, name):
            raise StoreError(f"There is already a profile {name}; to change it: dmem profile set {name}")
        store.insert(
            "profiles",
            name=name,
            model=model,
            adapter=adapter,
            system=system,
            template=template,
            write=write,
            options=json.dumps(dict(options or {})),
            created=now(),
        )
    return get(store, name)


def ensure(store: Store, name: str) -> Profile:
    """The profile, made with nothing set when it is not there yet."""
    found = find(store, name)
    if found:
        return found
    name = check_name(name)
    with store.transaction():  # OR IGNORE: two first chats may begin at once
        store.execute("INSERT OR IGNORE INTO profiles (name, created) VALUES (?, ?)", [name, now()])
    return get(store, name)


def change(store: Store, name: str, **changes: Any) -> Profile:
    """Set any of SETTINGS (text or None) and options (the whole mapping)."""
    if unknown := set(changes) - {*SETTINGS, "options"}:
        raise TypeError(f"not a setting of a profile: {', '.join(sorted(unknown))}")
    if "options" in changes:
        changes["options"] = json.dumps(dict(changes["options"]))
    with store.transaction():
        profile = get(store, name)
        for column, value in changes.items():
            store.execute(f"UPDATE profiles SET {column} = ? WHERE id = ?", [value, profile.id])
    return get(store, name)


def rename(store: Store, name: str, to: str) -> Profile:
    """The profile under its new name. Raises StoreError when that is taken, or can't be one."""
    to = check_name(to)
    with store.transaction():
        profile = get(store, name)
        if find(store, to):
            raise StoreError(f"There is already a profile {to}; choose another name, or delete it with: "
                             f"dmem profile delete {to}")  # fmt: skip
        store.execute("UPDATE profiles SET name = ? WHERE id = ?", [to, profile.id])
    return get(store, to)


def delete(store: Store, name: str) -> None:
    """Delete the profile with all its conversations; their bytes are marked, see wiping.py."""
    profile = get(store, name)
    ids = [r["id"] for r in store.rows("SELECT id FROM conversations WHERE profile_id = ?", [profile.id])]
    with holding(store, *ids), store.transaction():
        wiping.mark_bytes(store)
        for conversation in ids:
            wiping.mark(store, conversation)
            store.execute("DELETE FROM conversations WHERE id = ?", [conversation])
        store.execute("DELETE FROM profiles WHERE id = ?", [profile.id])


def name_in(row: Mapping[str, Any], key: str) -> str:
    """A stored name of a profile. Raises Malformed."""
    name = checked.text(row, key)
    if not name or STEERING.search(name):
        raise checked.Malformed(f"{key} is not the name of a profile")
    return name


def _profiles(store: Store, rows: Sequence[Mapping[str, Any]]) -> list[Profile]:
    with checked.rows_of(store.name, "profiles"):
        return [_profile(row) for row in rows]


def _profile(row: Mapping[str, Any]) -> Profile:
    return Profile(
        id=row["id"],
        name=name_in(row, "name"),
        options=checked.settings(checked.json_(row, "options"), "options"),
        created=checked.text(row, "created"),
        **{setting: checked.text_or_none(row, setting) for setting in SETTINGS},
    )
