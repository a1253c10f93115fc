"""Which conversation a request means, from its headers, its body and the model's name in it. Opens nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deltamem_cli.server.conversations.history import Mode
from deltamem_cli.server.problems import Problem, invalid

_LONGEST = 512  # characters of a name that a client gives a conversation

# In the order in which they count. Clients that know of dmem may send what is new alone; the others send all of a chat.
_HEADERS: tuple[tuple[str, Mode], ...] = (
    ("x-dmem-conversation", "goes_on"),
    ("x-openwebui-chat-id", "mirror"),
    ("x-session-id", "mirror"),
    ("x-session-affinity", "mirror"),
    ("session_id", "mirror"),
)


@dataclass(frozen=True)
class Address:
    """conversation: what the client calls it, or None for the profile's last one. profile: None: the server's."""

    conversation: str | None
    profile: str | None
    mode: Mode

    def derived_ids(self, profile: str) -> Iterator[str]:
        """What the id of a conversation may be that nobody but the client has a name for.

        It is the first that no conversation of another profile has: a profile that is renamed takes its own along.
        """
        name = f"last of {profile}\0" if self.conversation is None else f"{profile}\0{self.conversation}"
        while True:
            yield hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:26]
            name += "\0"


def model_and_profile(name: str) -> tuple[str, str | None]:
    """`starter@work` is the model starter and the profile work; Ollama's clients put `:latest` behind it."""
    model, at, profile = name.removesuffix(":latest").partition("@")
    return model, profile if at and profile else None


def find(headers: Mapping[str, str], body: Mapping[str, Any], profile: str | None) -> Address | None:
    """The first that is there; None: no memory is meant. profile: the one that the model's name tells.

    Raises Problem for a name that can't be one.
    """
    wanted = headers.get("x-dmem-profile") or profile
    for header, mode in _HEADERS:
        if header == "x-openwebui-chat-id" and headers.get("x-dmem-profile"):
            return Address(None, wanted, "goes_on")
        if name := headers.get(header):
            return Address(_checked(name, header), wanted, mode)
    metadata = body.get("metadata")
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, Mapping):
        raise invalid("metadata must be an object.", "metadata")
    conversation = body.get("conversation")
    if isinstance(conversation, Mapping):  # as the Responses interface has it
        conversation = conversation.get("id")
    if conversation:
        return Address(_checked(conversation, "conversation"), wanted, "goes_on")
    if metadata.get("conversation"):
        return Address(_checked(metadata["conversation"], "metadata.conversation"), wanted, "goes_on")
    if metadata.get("profile"):
        return Address(None, _checked(metadata["profile"], "metadata.profile"), "goes_on")
    for name, mode in (("prompt_cache_key", "mirror"), ("user", "goes_on")):
        if body.get(name):
            return Address(_checked(body[name], name), wanted, mode)
    return Address(None, wanted, "goes_on") if wanted else None


def _checked(name: object, where: str) -> str:
    if not isinstance(name, str):
        raise invalid(f"{where} must be a text.", where)
    if len(name) > _LONGEST:
        raise Problem(400, f"{where} is longer than {_LONGEST} characters.", param=where)
    return name
