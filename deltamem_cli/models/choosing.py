"""Which of a repository's files is meant. Works on names only."""

from __future__ import annotations

import re
from collections.abc import Iterable

from deltamem_cli.models.errors import ModelError
from deltamem_cli.models.facts import stem

PREFERRED = "Q4_K_M"  # as ollama and llama.cpp do
_NO_MODELS = re.compile("mmproj|imatrix")  # GGUF files that lie beside models
_SPEC = re.compile(
    r"(?:(?:https?://)?(?:hf\.co|huggingface\.co)/)?"
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<file>.+))?"
)
_LISTED = 12


def parse(spec: str) -> tuple[str, str | None] | None:
    """(owner/repo, file or quantisation) of `owner/repo[:file]`; None when it is nothing of the kind."""
    match = _SPEC.fullmatch(spec)
    return (match["repo"], match["file"]) if match else None


def groups(names: Iterable[str]) -> dict[str, list[str]]:
    """The models among a repository's files, by folder and stem; a split one has several files, in their order."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        base = name.rpartition("/")[2].lower()
        if base.endswith(".gguf") and not _NO_MODELS.search(base):
            found.setdefault(name[: len(name) - len(base)] + stem(name), []).append(name)
    return found


def matches(name: str, wanted: str) -> bool:
    """Whether `name`, a model's file or its stem, is the file or the quantisation that is asked for."""
    asked, given = wanted.lower(), name.lower()
    if asked in (given, given.rpartition("/")[2]):
        return True
    pattern = re.compile(rf"(?:^|[-._]){re.escape(asked)}$")
    return stem(asked) == stem(given) or any(pattern.search(stem(part)) for part in given.split("/"))


def choose(repo: str, names: Iterable[str], wanted: str | None) -> tuple[list[str], str | None]:
    """The files of the model that is meant, and why it is this one when the user left it open. Raises ModelError."""
    found = groups(names)
    if not found:
        raise ModelError(f"{repo} has no GGUF model: look for a repository of GGUF files, often called {repo}-GGUF.")
    if wanted is None and len(found) == 1:
        return next(iter(found.values())), None
    fitting = {key: files for key, files in found.items() if any(matches(file, wanted or PREFERRED) for file in files)}
    if len(fitting) > 1:  # a quantisation in a plain and in a mixed edition
        plain = {key: files for key, files in fitting.items() if "-ud-" not in key.lower()}
        fitting = plain or fitting
    if len(fitting) == 1:
        why = None if wanted else f"{PREFERRED} of {len(found)} models in {repo}; another: {repo}:FILE"
        return next(iter(fitting.values())), why
    listed = sorted(fitting or found)
    if fitting:
        what = f"{len(fitting)} models that are {wanted or PREFERRED}"
    else:
        what = f"no {wanted}" if wanted else f"{len(found)} models, none of them {PREFERRED}"
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    raise ModelError(
        f"{repo} has {what}: choose one of {', '.join(listed[:_LISTED])}{more}, such as: "
        f"dmem model pull {repo}:{listed[0]}"
    )
