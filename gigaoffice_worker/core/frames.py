"""Where an exception comes from: the innermost frame of the handler's own code, not of the libraries below it."""

from __future__ import annotations

import os
import traceback
from pathlib import Path, PurePath
from types import FrameType, TracebackType
from typing import Final, NamedTuple

_WORKER: Final = Path(__file__).parent.parent
_BUILT_IN: Final = _WORKER / "handlers"
_LIBRARY: Final = Path(os.__file__).parent
_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})


class Frame(NamedTuple):
    """A place in the handler's own code: `file` as Python knows it, `name` as its import path would have it."""

    file: str
    line: int
    function: str
    name: str

    def __str__(self) -> str:
        """Return `answers.py:7 handle`."""
        return f"{self.name}:{self.line} {self.function}"


def own_frame(raised: TracebackType | None, module: str = "") -> Frame | None:
    """Return the innermost frame of the code that the worker called or imported; None where there is none.

    That code is whatever shares a package, or a directory of modules, with the first frame that is not the worker's.
    What is installed or of the standard library is somebody else's, unless the handler is installed itself. With the
    name of a `module` that was imported, its package is the first: whatever imports it may be anybody's.
    """
    frames = list(traceback.walk_tb(raised))
    package = module.partition(".")[0]
    while package and frames and _module(frames[0][0]).partition(".")[0] != package:
        del frames[0]
    theirs = [each for each in frames if not _file(each[0]).is_relative_to(_WORKER)]
    if not theirs:
        built_in = [each for each in frames if _file(each[0]).is_relative_to(_BUILT_IN)]
        return _described(*built_in[-1], _BUILT_IN) if built_in else None
    root = _root(theirs[0][0])
    everything = _is_installed(root)
    own = [
        (frame, line)
        for frame, line in theirs
        if _file(frame).is_relative_to(root) and (everything or not _is_installed(_file(frame)))
    ]
    return _described(*own[-1], root)


def _described(frame: FrameType, line: int, root: PurePath) -> Frame:
    file = _file(frame)
    name = file.name if file == root or _is_installed(root) else str(file.relative_to(root))
    return Frame(str(file), line, frame.f_code.co_qualname, name)


def _file(frame: FrameType) -> PurePath:
    return PurePath(frame.f_code.co_filename)


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _is_installed(path: PurePath) -> bool:
    return path.is_relative_to(_LIBRARY) or not _INSTALLED.isdisjoint(path.parts)


def _root(frame: FrameType) -> PurePath:
    """Return the directory from which the frame's module is imported; its own package where that is installed."""
    file = _file(frame)
    levels = _module(frame).count(".") + (file.name == "__init__.py")
    if _is_installed(file):
        return [file, *file.parents][levels]
    # Code out of a text has no directory; `.` would be an ancestor of nothing that has one.
    return file if file.name.startswith("<") else [*file.parents, PurePath()][min(levels, len(file.parents))]
