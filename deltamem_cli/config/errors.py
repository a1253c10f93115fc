"""What can be wrong with the configuration."""

from __future__ import annotations

from deltamem_cli.errors import DeltamemError, UsageError


class ConfigError(DeltamemError):
    """The configuration file or an environment variable says what cannot be."""


class UnknownKey(UsageError):
    """A name on the command line is no setting."""


class WrongValue(UsageError):
    """A value on the command line does not fit its setting."""
