"""A contestant's process: started like a user would, looked at from outside through /proc."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.figures import at

ROOT = Path(__file__).resolve().parent.parent
_TICKS = os.sysconf("SC_CLK_TCK")
_SAMPLE_EVERY = 0.02


class Contestant:
    """One process or several of the same kind, with samples of the CPU that they have used together."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, *, count: int = 1) -> None:
        self._command = list(command)
        self._environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": os.environ.get("HOME", ""),
            "PYTHONPATH": str(ROOT),
            **environment,
        }
        self._log = log
        self._count = count
        self._processes: list[subprocess.Popen[bytes]] = []
        self._moments: list[float] = []
        self._seconds: list[float] = []
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, name="sampler", daemon=True)

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            for _ in range(self._count):
                self._processes.append(
                    subprocess.Popen(
                        self._command,
                        env=self._environment,
                        cwd=ROOT,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        self._sampler.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._done.set()
        self._sampler.join()
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def stop(self, within: float) -> None:
        """Ask all processes to end, and wait until they have; those that don't within so many seconds are killed."""
        self._done.set()
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + within
        for process in self._processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()

    def check(self) -> None:
        """Raise RuntimeError, with the end of the log, when a process has ended by itself."""
        for process in self._processes:
            if process.poll() is not None:
                tail = self._log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{' '.join(self._command)} ended with {process.returncode}:\n{tail}")

    def cpu_between(self, start: float, end: float) -> float:
        """Return the CPU seconds that the processes used between two moments (seconds of the epoch)."""
        moments, seconds = list(self._moments), list(self._seconds)
        return at(end, moments, seconds) - at(start, moments, seconds)

    def peak_memory(self) -> int:
        """Return the greatest resident set that any of the processes has had, in bytes."""
        return max(_status_kib(process.pid, "VmHWM") for process in self._processes) * 1024

    def memory(self) -> int:
        """Return the greatest resident set that any of the processes has now, in bytes."""
        return max(_status_kib(process.pid, "VmRSS") for process in self._processes) * 1024

    def _sample(self) -> None:
        while not self._done.wait(_SAMPLE_EVERY):
            try:
                used = sum(_cpu_seconds(process.pid) for process in self._processes)
            except (OSError, IndexError):
                return  # A process is gone.
            self._seconds.append(used)
            self._moments.append(time.time())


def _cpu_seconds(pid: int) -> float:
    """Return user and system time; the command's name in the second field may hold blanks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _status_kib(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise LookupError(f"/proc/{pid}/status does not tell {name}")
