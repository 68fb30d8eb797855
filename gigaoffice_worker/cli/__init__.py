"""The command line: one file a command."""

from __future__ import annotations

from gigaoffice_worker.cli.entry import main

__all__ = ["main"]
