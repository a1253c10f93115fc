"""Tokenizes with the base model's own vocabulary and chat template; knows nothing of tensors."""

from __future__ import annotations

import ctypes
import json
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol


class Tokenizer(Protocol):
    """What training needs of a tokenizer, whichever library it comes from."""

    template: str

    def encode(self, text: str) -> list[int]: ...

    def piece(self, token: int) -> bytes: ...

    def ends_reply(self, token: int) -> bool: ...


class GGUFTokenizer:
    """The vocabulary of a GGUF through llama.cpp, as inference uses it."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        self._lib: Any = llama_cpp
        log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
        self._log = log  # the library keeps only a pointer
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        template = llama_cpp.llama_model_chat_template(self._model, None)
        self.template = template.decode() if template else ""

    def encode(self, text: str) -> list[int]:
        raw = text.encode()
        room = (self._lib.llama_token * (len(raw) + 8))()
        n = self._lib.llama_tokenize(self._vocab, raw, len(raw), room, len(room), False, True)
        return list(room[:n])

    def piece(self, token: int) -> bytes:
        room = ctypes.create_string_buffer(256)
        n = self._lib.llama_token_to_piece(self._vocab, token, room, len(room), 0, True)
        return room.raw[:n]

    def ends_reply(self, token: int) -> bool:
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))


class ChatTemplate:
    """Renders messages as inference does: with the model's Jinja template."""

    def __init__(self, source: str) -> None:
        self._source = source

    @cached_property
    def _template(self) -> Any:
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(text: str) -> None:
            raise ValueError(text)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = refuse
        environment.filters["tojson"] = lambda x, **_: json.dumps(x, ensure_ascii=False)
        return environment.from_string(self._source)

    def render(self, messages: list[dict[str, str]], reply: bool) -> str:
        """reply: end with the head of an assistant's turn"""
        text: str = self._template.render(messages=messages, add_generation_prompt=reply, bos_token="", eos_token="")
        return text
