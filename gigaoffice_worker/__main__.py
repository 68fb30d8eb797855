"""`python -m gigaoffice_worker` is `gigaoffice-worker`."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # `-m` puts the working directory first, where any file of it could take the place of an installed package. For a
    # handler of one's own it is searched last.
    try:
        first = {"", os.getcwd()}  # noqa: PTH109  # a text of sys.path
    except FileNotFoundError:  # it was deleted, which the command tells
        first = {""}
    if sys.path[:1] and sys.path[0] in first and not sys.flags.safe_path:
        del sys.path[0]
    from gigaoffice_worker.cli import main

    sys.exit(main())
