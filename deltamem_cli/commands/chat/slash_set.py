"""/set: how a chat draws its replies, and what becomes of a model's thinking."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from deltamem_cli.errors import UsageError
from deltamem_cli.terminal.output import note
from deltamem_cli.terminal.reply_view import progress_bar
from deltamem_cli.text import short

if TYPE_CHECKING:
    from deltamem_cli.commands.chat.open_chat import Talk

_SWITCHES = {"on": True, "off": False, "true": True, "false": False, "yes": True, "no": False}
# name: the values that Tab offers; all other names are sampling options
THINKING = {"think": ("on", "off", "auto"), "show_thinking": ("on", "off"), "remember_thinking": ("on", "off")}
WRITE = ("all", "user")


def set_option(talk: Talk, argument: str) -> None:
    """/set [KEY VALUE]: changes an option of this chat, then prints all of them."""
    if argument:
        name, _, value = argument.replace("=", " ", 1).partition(" ")
        name, value = name.replace("-", "_"), value.strip()
        if not value:
            raise UsageError("/set takes an option and a value, such as: /set temperature 0.7")
        if name in THINKING:
            with progress_bar("reading") as progress:
                talk.set_thinking(name, _switch(name, value), progress)
        elif name == "write":
            if value not in WRITE:
                raise UsageError(f"The option write is {short(value)}: it must be {' or '.join(WRITE)}.")
            talk.set_write(value)
        else:
            talk.set_option(name, value)
    for label, current in _values(talk).items():
        note(f"{label:<18}{current}")


def names() -> list[str]:
    """Every option that /set takes."""
    from dataclasses import fields

    from deltamem_cli.engine import Sampling

    return [*(field.name for field in fields(Sampling)), "max_tokens", "loop_guard", *THINKING, "write"]


def _switch(name: str, value: str) -> bool | None:
    if name == "think" and value.lower() == "auto":
        return None
    if value.lower() not in _SWITCHES:
        raise UsageError(f"The option {name} is {short(value)}: it must be {' or '.join(THINKING[name])}.")
    return _SWITCHES[value.lower()]


def _values(talk: Talk) -> dict[str, object]:
    from deltamem_cli.engine.sampling import RANDOM_SEED

    settings = talk.session.settings
    values = {**asdict(settings.sampling), "max_tokens": settings.max_tokens or "as many as fit in the context"}
    values["loop_guard"] = settings.loop_guard or "off"
    if values["seed"] == RANDOM_SEED:
        values["seed"] = "random"
    return {**values, **thinking(talk), "write": settings.write}


def thinking(talk: Talk) -> dict[str, str]:
    """What becomes of it, in words."""
    from deltamem_cli import config

    shown = talk.request.show_thinking
    say = {True: "on", False: "off", None: "auto"}
    return {
        "think": say[talk.session.prompt.think],
        "show_thinking": say[config.value("show_thinking") if shown is None else shown],
        "remember_thinking": say[talk.session.settings.remember_thinking],
    }
