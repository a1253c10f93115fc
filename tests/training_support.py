"""Whether the extra "train" is here: its tests are skipped without it, unless they are demanded."""

import importlib.util
import os

import pytest


def need(*packages: str) -> None:
    """Skips the calling test module when a package is missing; with DMEM_TESTS_TRAIN=1 fails instead.

    The set-up of the README and of CI leaves the extra out, since PyTorch is many times the size of all else.
    """
    missing = [p for p in packages if importlib.util.find_spec(p) is None]
    if missing and os.environ.get("DMEM_TESTS_TRAIN") == "1":
        pytest.fail(
            f"{', '.join(missing)} missing: install the extra with pip install -e '.[dev,train]'", pytrace=False
        )
    if missing:
        pytest.skip(f"needs the extra train ({', '.join(missing)} missing)", allow_module_level=True)
