"""Stands before the package of this name, which is no dependency of the worker: see `tests/support/workers.py`."""

raise ImportError(__doc__)
