"""Random models and adapters for tests and benchmarks; nothing here computes with them."""

from deltamem_cli.synthetic.adapter import random_adapter
from deltamem_cli.synthetic.architectures import ARCHITECTURES, SHAPES, Shape
from deltamem_cli.synthetic.model import cached_model, write_model

__all__ = ["ARCHITECTURES", "SHAPES", "Shape", "cached_model", "random_adapter", "write_model"]
