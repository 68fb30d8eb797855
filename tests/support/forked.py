"""Commands that need not import the project again: forked from a process that has, once for each process of the tests.

Importing is half of the CPU that a worker's start takes, and most of another command's; the tests start hundreds. What
is forked goes on as `python -m gigaoffice_worker` would: its own environment, files, signals and the interpreter's end.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).resolve().parents[2]
_START_WITHIN = 30.0
_MOST = 1024 * 1024  # bytes of one request: the arguments and the environment


PATHS = f"{ROOT}:{ROOT / 'tests' / 'support' / 'absent'}"
"""PYTHONPATH of workers and commands: the project, and in front of what the tests have installed for themselves.

structlog imports rich, and the Kafka client botocore, where they are: a third of the time that a worker's start takes.
"""


def start(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    stdout: IO[bytes],
    stderr: IO[bytes],
    stdin: IO[bytes] | None = None,
) -> ForkedProcess | subprocess.Popen[bytes]:
    """Start `python -m gigaoffice_worker` with these arguments; without `stdin` there is nothing to read.

    It is forked unless its environment asks Python itself for something that is settled when the interpreter starts.
    """
    with Path(os.devnull).open("rb") as nothing:
        given = stdin or nothing
        path = environment["PYTHONPATH"]
        if [name for name in environment if name.startswith("PYTHON")] == ["PYTHONPATH"] and path.startswith(PATHS):
            return ForkedProcess(arguments, environment, (given, stdout, stderr))
        command = [sys.executable, "-m", "gigaoffice_worker", *arguments]
        return subprocess.Popen(command, env=environment, cwd=ROOT, stdin=given, stdout=stdout, stderr=stderr)


def run(
    arguments: Sequence[str], environment: Mapping[str, str], *, stdin: str = "", timeout: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. Raises subprocess.TimeoutExpired, behind the command's end."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        given.write(stdin.encode())
        given.seek(0)
        process = start(arguments, environment, output, errors, given)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, code, _text(output), _text(errors))


def _text(written: IO[bytes]) -> str:
    written.seek(0)
    return written.read().decode()


class ForkedProcess:
    """A process that was forked; of subprocess.Popen what the tests use."""

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], files: tuple[IO[bytes], IO[bytes], IO[bytes]]
    ) -> None:
        self.args = list(arguments)
        self.returncode: int | None = None
        self._told = _parent().fork()
        self._told.settimeout(_START_WITHIN)
        asked = json.dumps({"arguments": self.args, "environment": dict(environment)}).encode()
        socket.send_fds(self._told, [asked], [file.fileno() for file in files])
        self.pid = int(self._told.recv(64))

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code, or minus the signal that ended it. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self.returncode = int(self._told.recv(64))
            self._told.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Parent:
    """The process that forks: started by who asks first, it ends when our side of the connection is closed."""

    def __init__(self) -> None:
        self._asking, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with asked:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                env={"PATH": os.environ.get("PATH", ""), "PYTHONPATH": PATHS},
                cwd=ROOT,
                stdin=asked,
                stdout=subprocess.DEVNULL,
            )
        atexit.register(self._end)

    def fork(self) -> socket.socket:
        """Return a connection to what will be a process."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            socket.send_fds(self._asking, [b"fork"], [its.fileno()])
        return ours

    def _end(self) -> None:
        self._asking.close()
        self._process.wait(_START_WITHIN)


_parent = cache(_Parent)


def _serve(asked: socket.socket) -> int:
    """Fork for each connection, until nobody can ask any more; return the exit code of what was forked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who types it at the tests means them
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    while True:
        told, descriptors, _, _ = socket.recv_fds(asked, 64, 1)
        if not told:
            return 0
        with socket.socket(fileno=descriptors[0]) as connection:
            if os.fork() == 0:
                asked.close()
                return _keep(connection)


def _keep(connection: socket.socket) -> int:
    """Fork once more: the parent tells the process's number and how it ended, the child is the process."""
    asked, files, _, _ = socket.recv_fds(connection, _MOST, 3)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if child := os.fork():
        connection.send(str(child).encode())
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(BrokenPipeError):
            connection.send(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    connection.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return _become(**json.loads(asked), files=files)


def _become(arguments: list[str], environment: dict[str, str], files: list[int]) -> int:
    """Be what `python -m gigaoffice_worker` is when it has imported itself."""
    for number, descriptor in enumerate(files):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = environment["PYTHONPATH"].removeprefix(PATHS).split(":")[1:]
    sys.argv = [str(ROOT / "gigaoffice_worker" / "__main__.py"), *arguments]
    from gigaoffice_worker.cli import main

    return main()


def _listen() -> NoReturn:
    import_module("gigaoffice_worker.worker")  # before anybody asks
    for command in pkgutil.iter_modules(import_module("gigaoffice_worker.cli").__path__, "gigaoffice_worker.cli."):
        import_module(command.name)
    gc.collect()
    gc.freeze()  # or each process's collector would write to, and so copy, all the memory that they share
    sys.path.remove(str(ROOT))  # `-m` puts the working directory first
    sys.exit(_serve(socket.socket(fileno=os.dup(0))))


if __name__ == "__main__":
    _listen()
