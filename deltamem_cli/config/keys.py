"""The table of settings: what each is called, which values it takes, what it is for. Reads nothing.

Lower than the engine, so what the engine accepts and presets stands here a second time; tests hold the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deltamem_cli.cache_types import CACHE_TYPES
from deltamem_cli.config.kinds import Kind, name, number, one_of, path, switch, text, whole

WRITES = ("all", "user")


@dataclass(frozen=True)
class Key:
    """One setting. `otherwise` says what happens while it has no value at all."""

    name: str
    kind: Kind
    default: Any
    help: str
    otherwise: str = ""

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return "DMEM_NOHISTORY" if self.name == "history" else "DMEM_" + self.name.replace(".", "_").upper()


KEYS: dict[str, Key] = {
    key.name: key
    for key in (
        Key(
            "model",
            name("the name of a model or the path of a GGUF file"),
            None,
            "Model to use: a name in dmem model list, or a GGUF file.",
            otherwise="the packaged starter",
        ),
        Key(
            "adapter",
            name("the name of an adapter or the path of a GGUF file"),
            None,
            "The model's δ-mem adapter.",
            otherwise="the one that goes with the model",
        ),
        Key("profile", name("the name of a profile"), "default", "Profile to use when none is given."),
        Key("system", text(), None, "System prompt.", otherwise="none"),
        Key(
            "template",
            path(),
            None,
            "File with a chat template (jinja) to use instead of the model's own.",
            otherwise="the model's own",
        ),
        Key(
            "database", path(), None, "Database of memories and transcripts.", otherwise="memory.db in the data folder"
        ),
        Key(
            "ctx_size",
            whole(0),
            None,
            "Context size in tokens; 0: the model's maximum.",
            otherwise="4096, or less when the model has less",
        ),
        Key("gpu_layers", whole(-1), 0, "Layers on the GPU; -1: all."),
        Key(
            "tensor_split",
            text(),
            None,
            "Share of the layers for each device, servers first, such as 3,1.",
            otherwise="by memory",
        ),
        Key(
            "rpc", text(), None, "Other machines that compute layers: HOST:PORT,… of dmem rpc-server.", otherwise="none"
        ),
        Key("threads", whole(1, 512), None, "CPU threads.", otherwise="one per idle core"),
        Key(
            "replay",
            whole(0),
            None,
            "Tokens of the last messages to show the model when a chat continues; 0: memory only.",
            otherwise="a quarter of the context",
        ),
        Key(
            "write",
            one_of(*WRITES),
            None,
            "What to remember of a chat: everything, or only what you say.",
            otherwise="as the adapter was trained",
        ),
        Key("cache_type_k", one_of(*CACHE_TYPES), "f16", "Data type of keys in the KV cache."),
        Key("cache_type_v", one_of(*CACHE_TYPES), "f16", "Data type of values in the KV cache."),
        Key("flash_attention", one_of("auto", "on", "off"), "auto", "Flash attention."),
        Key("show_thinking", switch(), True, "Show the model's thinking, dimmed."),
        Key("remember_thinking", switch(), False, "Write the model's thinking into the memory too."),
        Key("markdown", switch(), True, "Render replies as Markdown in a terminal."),
        Key("history", switch(), True, "Save what you type at the prompt, for the arrow keys."),
        Key("options.temperature", number(", 0 or more", lambda x: x >= 0), 0.8, "0: always the likeliest token."),
        Key("options.top_k", whole(0), 40, "Choose among this many of the likeliest tokens; 0: all."),
        Key(
            "options.top_p",
            number(" above 0, at most 1", lambda x: 0 < x <= 1),
            0.95,
            "Choose among the likeliest tokens that together have this probability.",
        ),
        Key(
            "options.min_p",
            number(", 0 to 1", lambda x: 0 <= x <= 1),
            0.05,
            "Drop tokens less likely than this fraction of the likeliest.",
        ),
        Key("options.repeat_penalty", number(" above 0", lambda x: x > 0), 1.0, "Penalty for repeating; 1: none."),
        Key("options.repeat_last_n", whole(0), 64, "How many tokens back the penalties look."),
        Key(
            "options.frequency_penalty",
            number(", -2 to 2", lambda x: -2 <= x <= 2),
            0.0,
            "Penalty for each time that a token was used; 0: none.",
        ),
        Key(
            "options.presence_penalty",
            number(", -2 to 2", lambda x: -2 <= x <= 2),
            0.0,
            "Penalty for a token that was used; 0: none.",
        ),
        Key(
            "options.seed",
            whole(0, 2**32 - 1),
            None,
            "Random seed; the same seed gives the same reply.",
            otherwise="a new one each time",
        ),
        Key(
            "options.max_tokens",
            whole(1),
            None,
            "Maximum length of a reply, in tokens.",
            otherwise="until the model stops",
        ),
        Key(
            "options.loop_guard",
            whole(0),
            3,
            "Cut off a reply that repeats its last words this many times; 0: never.",
        ),
    )
}

# Tables whose entries the user names: [models.NAME], [adapters.NAME]
TABLES = ("models", "adapters")
