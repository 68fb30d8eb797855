"""The process that ends the brokers when their owner dies, however it dies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Standard input ends when its other end is closed, which the kernel does for an owner that was killed. The fork steps
# out of the group before it kills it, so that somebody is left to remove the data; the guard itself waits to be killed,
# so that the group cannot be gone, and its number somebody else's, by then.
_PROGRAM = """
import os, shutil, signal, sys, time
sys.stdin.buffer.read()
if os.fork():
    signal.pause()
else:
    group = os.getpgrp()
    os.setpgid(0, 0)
    os.killpg(group, signal.SIGKILL)
    for path in sys.argv[1:]:
        for _ in range(100):
            shutil.rmtree(path, ignore_errors=True)
            if not os.path.exists(path):
                break
            time.sleep(0.1)
"""


class Guard:
    """Leads a process group; when this process is gone, all of the group is killed and `litter` is removed.

    Not PR_SET_PDEATHSIG: that fires when the *thread* that started the broker ends, needs code between fork and exec
    (unsafe beside other threads) and leaves the data behind. Joining a group is done by `subprocess` itself, and
    since brokers are in it before they run, there is no moment in which one could be orphaned.
    A group of their own also keeps Ctrl-C in a terminal from reaching the brokers before their owner.
    """

    def __init__(self, litter: list[Path]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, *map(str, litter)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )

    @property
    def group(self) -> int:
        """Return the process group that brokers are started in."""
        return self._process.pid

    def close(self) -> None:
        """End the guard alone. What it guarded must have ended before."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
