"""The first import of the client, without what it would import for nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

# For a login that `broker.msk` makes itself: a fifth of a start.
_UNUSED = "botocore"


@contextmanager
def _missing(package: str) -> Iterator[None]:
    """Let an import of this package fail meanwhile, unless it has been imported."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # what the import system takes for "there is none"
    try:
        yield
    finally:
        del sys.modules[package]


with _missing(_UNUSED):
    import_module("kafka.sasl.msk")
