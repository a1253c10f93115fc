"""Tokenizes with the base model's own vocabulary and chat template; knows nothing of tensors."""

from __future__ import annotations

import ctypes
import importlib
import os
from pathlib import Path
from typing import Any, Protocol

from deltamem_cli.engine.template import ChatTemplate
from deltamem_cli.errors import DeltamemError
from deltamem_cli.training.model_files import settings_of


class Tokenizer(Protocol):
    """What training needs of a tokenizer, whichever library it comes from."""

    template: ChatTemplate

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; control tokens spelled out in it become one token each."""

    def piece(self, token: int) -> bytes:
        """The bytes of a token."""

    def ends_reply(self, token: int) -> bool:
        """Whether a model ends its reply with this token."""


class GGUFTokenizer:
    """The vocabulary of a GGUF through llama.cpp, as inference uses it."""

    def __init__(self, path: Path) -> None:
        from deltamem_cli.bindings import native

        lib = self._lib = native().llama
        params = lib.llama_model_default_params()
        params.vocab_only = True
        self._model = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise DeltamemError(f"{path} has no readable vocabulary; train from the GGUF that you chat with")
        self._vocab = lib.llama_model_get_vocab(self._model)
        template = lib.llama_model_chat_template(self._model, None)
        if not template:
            raise DeltamemError(f"{path} has no chat template, and training needs one; choose an instruct model")
        self.template = ChatTemplate(template.decode("utf-8", "replace"), f"the chat template of {path.name}")

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; control tokens spelled out in it become one token each."""
        raw = text.encode()
        room = (self._lib.llama_token * (len(raw) + 8))()
        n = self._lib.llama_tokenize(self._vocab, raw, len(raw), room, len(room), False, True)
        return list(room[:n])

    def piece(self, token: int) -> bytes:
        """The bytes of a token."""
        room = ctypes.create_string_buffer(256)
        n = self._lib.llama_token_to_piece(self._vocab, token, room, len(room), 0, True)
        return room.raw[:n]

    def ends_reply(self, token: int) -> bool:
        """Whether it is one of the vocabulary's ends of generation."""
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))


class DirectoryTokenizer:
    """tokenizer.json of a Hugging Face directory."""

    def __init__(self, directory: Path) -> None:
        try:
            fast = importlib.import_module("tokenizers")
        except ImportError:
            raise DeltamemError(
                f"{directory} needs the package tokenizers, which is not installed; install it or train from a GGUF"
            ) from None
        settings = settings_of(directory / "tokenizer_config.json")
        self._fast: Any = fast.Tokenizer.from_file(str(directory / "tokenizer.json"))
        template = directory / "chat_template.jinja"
        source = settings.get("chat_template")
        if template.exists():
            source = ChatTemplate.from_file(template).source
        if not isinstance(source, str) or not source:
            raise DeltamemError(f"{directory} has no chat template, and training needs one; choose an instruct model")
        self.template = ChatTemplate(source, f"the chat template of {directory.name}")
        end = settings.get("eos_token")
        self._end = self._fast.token_to_id(end["content"] if isinstance(end, dict) else end)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; control tokens spelled out in it become one token each."""
        ids: list[int] = self._fast.encode(text, add_special_tokens=False).ids
        return ids

    def piece(self, token: int) -> bytes:
        """The bytes of a token."""
        text: str = self._fast.decode([token], skip_special_tokens=False)
        return text.encode()

    def ends_reply(self, token: int) -> bool:
        """Whether it is the tokenizer's end token."""
        return bool(token == self._end)


def tokenizer_of(source: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face directory or of a GGUF file. Raises DeltamemError when it has none."""
    return DirectoryTokenizer(source) if source.is_dir() else GGUFTokenizer(source)
