"""Models and adapters by name: which there are, where their files lie, how they get here. Prints nothing, loads no weights.

Only `hub` touches the network, and only `pull` uses it for that.
"""

from deltamem_cli.models.entries import STARTER, Entry, catalogue, remembering
from deltamem_cli.models.errors import ModelError
from deltamem_cli.models.resolving import ModelFile, adapter_file, resolve

__all__ = ["STARTER", "Entry", "ModelError", "ModelFile", "adapter_file", "catalogue", "remembering", "resolve"]
