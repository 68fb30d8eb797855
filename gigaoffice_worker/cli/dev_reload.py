"""Which files a handler's code may come from, and whether one of them has changed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_LOOK_EVERY: Final = 0.5
_MOST_FILES: Final = 5000
_SKIPPED: Final = frozenset({"__pycache__", "node_modules", "site-packages", "venv"})


class Watch:
    """Looks at the Python files below the working directory and the directories of PYTHONPATH."""

    def __init__(self) -> None:
        self._roots = [Path.cwd(), *(Path(each) for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each)]
        self._seen = self._now()
        self._next_look = time.monotonic() + _LOOK_EVERY

    def changed(self) -> list[Path]:
        """Return the files that have changed, come or gone since the last look."""
        if time.monotonic() < self._next_look:
            return []
        now = self._now()
        found = [path for path in {**self._seen, **now} if self._seen.get(path) != now.get(path)]
        self._seen = now
        self._next_look = time.monotonic() + _LOOK_EVERY
        return sorted(found)

    def _now(self) -> dict[Path, tuple[int, int]]:
        found: dict[Path, tuple[int, int]] = {}
        for root in self._roots:
            for path in _python_files(root):
                try:
                    state = path.stat()
                except OSError:  # gone in this very moment
                    continue
                found[path] = (state.st_mtime_ns, state.st_size)
                if len(found) >= _MOST_FILES:
                    return found
        return found


def _python_files(root: Path) -> Iterator[Path]:
    for directory, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in _SKIPPED and not name.startswith(".")]
        yield from (Path(directory) / name for name in names if name.endswith(".py"))
