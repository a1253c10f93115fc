"""The one error of files that cannot be used, and how their texts are quoted in it."""

from deltamem_cli.errors import DeltamemError
from deltamem_cli.text import harmless


class AdapterError(DeltamemError):
    """An adapter, or the model it is made for, cannot be used; the text is one sentence for the user."""


def shown(text: object) -> str:
    """Text from an untrusted file as it may stand inside a one-line message."""
    line = harmless(str(text), "?")
    return line if len(line) <= 80 else line[:77] + "..."
