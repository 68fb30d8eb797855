"""The control socket: what `gigaoffice-worker ctl` says to a running worker, and what it answers.

A UNIX socket with mode 0600 instead of a page of the side port: who may speak is decided by the file's owner, and no
network reaches it. One JSON object a connection, one back: `{"command": "pause"}`, `{"done": true, "text": "…"}`.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Thread

import structlog

NAME = "control.sock"
LONGEST = 4096  # bytes of a question or an answer

_MODE = 0o600
_PATIENCE = 2.0  # seconds for one connection, all in all
_BACKLOG = 8

log = structlog.get_logger(__name__)

Command = Callable[[str], str]
"""Carries a command out, given its argument ("" for none), and says what is so now. Raises ValueError to refuse."""


class ControlSocket:
    """Answer `commands` on the socket `control.sock` in `directory`; without a directory there is none."""

    def __init__(self, directory: str | None, commands: Mapping[str, Command]) -> None:
        self._path = Path(directory, NAME) if directory else None
        self._commands = dict(commands)
        self._socket: socket.socket | None = None
        self._thread: Thread | None = None

    def start(self) -> None:
        """Listen. What prevents it is a WARNING: a worker works without being controlled."""
        if self._path is None:
            return
        try:
            self._socket = _listen(self._path)
        except OSError as error:
            log.warning("Control socket cannot be opened", path=self._path, error=error)
            return
        self._thread = Thread(target=self._serve, args=(self._socket,), name="control", daemon=True)
        self._thread.start()
        log.info("Control socket open", path=self._path)

    def close(self) -> None:
        """Answer nobody any more and remove the socket."""
        listening, self._socket = self._socket, None
        if listening is None or self._path is None or self._thread is None:
            return
        with suppress(OSError):
            self._path.unlink()
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)  # wakes the thread; closing alone does not
        self._thread.join(_PATIENCE + 1.0)
        listening.close()

    def _serve(self, listening: socket.socket) -> None:
        while self._socket is listening:
            try:
                connection, _ = listening.accept()
            except OSError as error:  # closed, or no file descriptor left
                if self._socket is listening:
                    log.warning("Control socket cannot accept a connection", error=error)
                    time.sleep(1.0)
                continue
            with connection, suppress(OSError):  # whoever asked is gone
                connection.sendall(self._answer(connection))

    def _answer(self, connection: socket.socket) -> bytes:
        try:
            asked = _read(connection)
            name, argument = str(asked.get("command")), str(asked.get("argument") or "")
            text, done = self._command(name)(argument), True
            log.warning("Command of an operator", command=name, argument=argument, result=text)
        except (ValueError, TimeoutError) as error:
            text, done = str(error), False
        except Exception as error:
            log.exception("Command of an operator failed")
            text, done = f"the worker could not do it: {type(error).__name__}; its log says why", False
        return json.dumps({"done": done, "text": text[: LONGEST // 8]}).encode() + b"\n"

    def _command(self, name: str) -> Command:
        if name not in self._commands:
            raise ValueError(f"there is no command {name!r}; there are {', '.join(self._commands)}")
        return self._commands[name]


def _listen(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_left_over(path)
        os.fchmod(listening.fileno(), _MODE)  # before it has a name: there is no moment at which others may connect
        listening.bind(str(path))
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _remove_left_over(path: Path) -> None:
    """Remove the socket of a worker that was killed. Raises OSError if one answers there, or if it is another file."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PATIENCE)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError("another worker listens there; give each a RUNTIME_DIRECTORY of its own")


def _read(connection: socket.socket) -> dict[str, object]:
    deadline = time.monotonic() + _PATIENCE
    received = b""
    while not received.endswith(b"\n"):
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        part = connection.recv(LONGEST)
        received += part
        if not part or len(received) > LONGEST:
            break
    try:
        asked = json.loads(received)
    except (ValueError, RecursionError):
        asked = None
    if isinstance(asked, dict):
        return asked
    raise ValueError("that is not a JSON object on one line")
