"""Runs a GGUF model with a δ-mem adapter; knows nothing of conversations, profiles or databases."""

from deltamem_cli.engine.batch import Cancelled, decode
from deltamem_cli.engine.engine import Engine
from deltamem_cli.engine.errors import EngineError
from deltamem_cli.engine.fingerprint import fingerprint
from deltamem_cli.engine.model import Model
from deltamem_cli.engine.options import EngineOptions
from deltamem_cli.engine.sampling import LazyGrammar, Sampling
from deltamem_cli.engine.seat import Seat
from deltamem_cli.engine.template import ChatTemplate
from deltamem_cli.engine.trying import try_out

__all__ = [
    "Cancelled",
    "ChatTemplate",
    "Engine",
    "EngineError",
    "EngineOptions",
    "LazyGrammar",
    "Model",
    "Sampling",
    "Seat",
    "decode",
    "fingerprint",
    "try_out",
]
