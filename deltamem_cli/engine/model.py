"""A loaded GGUF model: its vocabulary, its chat template, its metadata. Holds weights, no context."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltamem_cli.bindings import Native, native
from deltamem_cli.engine.deep_stack import run_for
from deltamem_cli.engine.errors import EngineError
from deltamem_cli.engine.options import LARGEST
from deltamem_cli.engine.remote import devices, proportions
from deltamem_cli.engine.slow_words import slow_word
from deltamem_cli.engine.template import ChatTemplate
from deltamem_cli.reading import why_no_file
from deltamem_cli.text import short

if TYPE_CHECKING:
    from typing_extensions import Self

_NO_VOCABULARY = 0  # LLAMA_VOCAB_TYPE_NONE


class Model:
    """One model in memory; several engines may share it. Free it with close() or use it as a context manager.

    Closed while engines use it, it is freed with the last of them.
    """

    def __init__(self, path: Path, *, gpu_layers: int = 0, rpc: str = "", tensor_split: str = "") -> None:
        """Loads `path`. gpu_layers: layers to put on a GPU, -1 for all; rpc: machines that share them, `HOST:PORT,…`;
        tensor_split: how many each device takes in proportion, `3,1`, as llama.cpp shares them by memory otherwise.

        Raises EngineError.
        """
        self.path = Path(path)
        self.native: Native = native()
        llama = self.native.llama
        if why := why_no_file(self.path):
            raise EngineError(f"The model file {self.path} {why}: check the path or choose another with --model.")
        if not -1 <= gpu_layers <= LARGEST:
            raise EngineError(f"The option gpu_layers is {gpu_layers}: it must be -1 (all) to {LARGEST}.")
        params = llama.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        others = devices(self.native, rpc) if rpc else []
        if others:
            listed = (ctypes.c_void_p * (len(others) + 1))(*others, None)  # loading the model ends before it does
            params.devices = ctypes.addressof(listed)
        if tensor_split:
            shares = proportions(tensor_split, int(llama.llama_max_devices()))
            params.tensor_split = (ctypes.c_float * len(shares))(*shares)  # the structure keeps it
        self._gpu_layers = gpu_layers if others or self.native.has_gpu else 0
        self.native.recent_errors()
        self._users = 0
        self._closed = False
        self.handle = llama.llama_model_load_from_file(os.fsencode(self.path), params)
        if not self.handle:
            reason = self.native.recent_errors() or "no reason given"
            raise EngineError(
                f"The model {self.path} can't be loaded ({short(reason, 200)}): "
                "check that it is a complete GGUF file of a kind that this version knows."
            )
        self.vocab = llama.llama_model_get_vocab(self.handle)
        if mute := self._why_mute():
            self.close()
            raise cannot_chat(self.path, mute)

    def _why_mute(self) -> str | None:
        """What keeps the model from writing a reply token by token; llama.cpp would hang or end the process."""
        llama = self.native.llama
        if llama.llama_model_has_encoder(self.handle):
            return f"{self.architecture} models read a whole text before they write another"
        if llama.llama_model_is_diffusion(self.handle):
            return f"{self.architecture} models write a whole text at once"
        if self.metadata(f"{self.architecture}.attention.causal") == "false":
            return "it reads text in both directions, to compare and not to continue it"
        return None

    @property
    def speaks(self) -> bool:
        """Whether the file holds a vocabulary."""
        return bool(self.native.llama.llama_vocab_type(self.vocab) != _NO_VOCABULARY)

    def check_speaks(self) -> None:
        """Raises EngineError for a file without vocabulary: its numbers can be computed, and nothing said with them."""
        if not self.speaks:
            raise cannot_chat(self.path, "its file has no vocabulary")

    def close(self) -> None:
        """Frees the model once no engine uses it; no new engine can."""
        self._closed = True
        self._free_if_unused()

    def acquire(self) -> None:
        """A context is made of it. Raises EngineError when the model is closed."""
        if self._closed:
            raise EngineError(f"The model {self.path.name} is closed: load it again.")
        self._users += 1

    def release(self) -> None:
        """A context of it is gone."""
        self._users -= 1
        self._free_if_unused()

    def _free_if_unused(self) -> None:
        if self._closed and self._users == 0 and self.handle:
            self.native.llama.llama_model_free(self.handle)
            self.handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # vocabulary

    @cached_property
    def n_vocab(self) -> int:
        """The number of tokens in the vocabulary."""
        return int(self.native.llama.llama_vocab_n_tokens(self.vocab))

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of `text`. special: control tokens written out in the text, as templates do, become those tokens.

        Nothing is added at the start; templates write their own first token. Raises EngineError for a word without end,
        or one that this model's tokenizer takes too long for.
        """

        def tokenize() -> list[int]:
            if word := slow_word(text, lambda part: self._tokenize(part, special)):
                raise EngineError(
                    f"The text has {len(word):,} characters in a row without a space or line break, which the tokenizer of "
                    f"{self.path.name} takes too long to read: break them into lines, or leave them out."
                )
            return self._tokenize(text, special)

        return run_for(text, tokenize)

    def _tokenize(self, text: str, special: bool) -> list[int]:
        data = text.encode("utf-8", "replace")  # a lone surrogate is what Python makes of broken input
        size = len(data) + 2
        while True:
            tokens = (ctypes.c_int32 * size)()
            n = self.native.llama.llama_tokenize(self.vocab, data, len(data), tokens, size, False, special)
            if n >= 0:
                return list(tokens[:n])
            size = -n

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Bytes of one token, which may be a part of a character. Control tokens give nothing unless `special`.

        Raises EngineError for a token that this model does not have.
        """
        if not 0 <= token < self.n_vocab:  # llama.cpp would end the process
            raise EngineError(f"The token {token} does not exist: {self.path.name} has 0 to {self.n_vocab - 1}.")
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = self.native.llama.llama_token_to_piece(self.vocab, token, buffer, size, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            size = -n

    def text(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of tokens; bytes that are not UTF-8 become U+FFFD. special: control tokens are spelled out."""
        return b"".join(self.piece(token, special=special) for token in tokens).decode("utf-8", "replace")

    def is_end(self, token: int) -> bool:
        """Whether the model ends its turn with this token."""
        return bool(self.native.llama.llama_vocab_is_eog(self.vocab, token))

    # metadata

    def metadata(self, key: str) -> str | None:
        """Value of one GGUF key as text, or None."""
        size = 256
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = self.native.llama.llama_model_meta_val_str(self.handle, key.encode(), buffer, size)
            if n < 0:
                return None
            if n < size:
                return buffer.raw[:n].decode("utf-8", "replace")
            size = n + 1

    @property
    def architecture(self) -> str:
        """llama.cpp's name for the architecture, such as qwen3."""
        return self.metadata("general.architecture") or "unknown"

    @property
    def name(self) -> str:
        """The name that the file gives itself, else the file's."""
        return self.metadata("general.name") or self.path.stem

    @property
    def n_ctx_train(self) -> int:
        """Tokens that it was made for; 0 when its file does not say, or names more than there can be."""
        return max(0, int(self.native.llama.llama_model_n_ctx_train(self.handle)))

    @property
    def n_bytes(self) -> int:
        """The size of all weights in bytes."""
        return int(self.native.llama.llama_model_size(self.handle))

    @property
    def n_params(self) -> int:
        """The number of weights."""
        return int(self.native.llama.llama_model_n_params(self.handle))

    @property
    def gpu_layers(self) -> int:
        """Layers on GPUs or other machines, as asked for (-1: all); 0 where this build or machine has none."""
        return self._gpu_layers

    def head_width(self, kind: str) -> int:
        """Numbers that one head of the KV cache keeps of a token. kind: k or v."""
        key = f"{self.architecture}.attention.{'key' if kind == 'k' else 'value'}_length"
        llama = self.native.llama
        stated = self.metadata(key) or ""
        if stated.isdecimal():
            return int(stated)
        return int(llama.llama_model_n_embd(self.handle) // max(1, llama.llama_model_n_head(self.handle)))

    # chat template

    @cached_property
    def chat_template(self) -> str | None:
        """The model's own jinja template, or None."""
        text = self.native.llama.llama_model_chat_template(self.handle, None)
        return text.decode("utf-8", "replace") if text else None

    @cached_property
    def template(self) -> ChatTemplate:
        """The same, ready for use. Raises EngineError when the model has none."""
        if not self.chat_template:
            raise EngineError(
                f"The model {self.path.name} has no chat template: give a file that has one with --template."
            )
        return ChatTemplate(self.chat_template, f"the chat template of {self.path.name}")

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        reply: bool = True,
        template: ChatTemplate | None = None,
        think: bool | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """The text that the model sees for `messages` ({role, content} each), by its template or by `template`.

        reply: end with the start of the assistant's turn. think: what to tell a template that can switch thinking.
        tools: what the model may call, as OpenAI's chat completions have them.
        Raises EngineError when there is no template or it refuses.
        """
        said: dict[str, Any] = {} if think is None else {"enable_thinking": think}
        if tools:
            said["tools"] = list(tools)
        return (template or self.template).render(messages, reply=reply, **self._marks, **said)

    @property
    def bos(self) -> int | None:
        """The token that texts begin with, if there is one."""
        token = int(self.native.llama.llama_vocab_bos(self.vocab))
        return token if token >= 0 else None

    @property
    def adds_bos(self) -> bool:
        """Whether it is put before every text, also where a template does not."""
        return bool(self.native.llama.llama_vocab_get_add_bos(self.vocab))

    @cached_property
    def _marks(self) -> dict[str, str]:
        llama = self.native.llama
        found = {"bos_token": llama.llama_vocab_bos(self.vocab), "eos_token": llama.llama_vocab_eos(self.vocab)}
        return {name: self.text([token], special=True) if token >= 0 else "" for name, token in found.items()}


def cannot_chat(path: Path, reason: str) -> EngineError:
    """The error for a model that can be loaded and can't hold a conversation."""
    return EngineError(f"{path.name} can't chat: {reason}. Name another model with --model, see: dmem model list")
