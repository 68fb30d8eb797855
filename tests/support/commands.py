"""Commands of the command line, as somebody types them."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support import forked
from tests.support.forked import ROOT


class Cli:
    """Runs commands, for `timeout` seconds each, in an environment that holds nothing but what it is given."""

    def __init__(self, environment: dict[str, str], *, timeout: float = 120.0) -> None:
        self._timeout = timeout
        self.environment = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT), **environment}

    def __call__(self, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        done = forked.run(arguments, {**self.environment, **environment}, stdin=stdin, timeout=self._timeout)
        assert "Traceback" not in done.stdout + done.stderr
        return done

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "gigaoffice_worker", *arguments],
            env={**self.environment, **environment},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
