"""`python -m gigaoffice_worker` is `gigaoffice-worker`."""

from __future__ import annotations

import sys

from gigaoffice_worker.cli import main

if __name__ == "__main__":
    sys.exit(main())
