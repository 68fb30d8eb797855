"""The first import of the client, without what it would import for nothing."""

from __future__ import annotations

import sys
from importlib import import_module

# For a login that `broker.msk` makes itself: a seventh of a start. With None in its place an import of it fails.
_UNUSED = "botocore"

sys.modules.setdefault(_UNUSED, None)  # type: ignore[arg-type]
try:
    import_module("kafka.sasl.msk")
finally:
    if sys.modules[_UNUSED] is None:
        del sys.modules[_UNUSED]
