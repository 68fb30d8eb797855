"""The control socket and the command that speaks to it, each end through the real other one."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from gigaoffice_worker.cli import main
from gigaoffice_worker.observe.control import ControlSocket


class Orders:
    """What was asked for; `slow` commands refuse."""

    def __init__(self) -> None:
        self.given: list[tuple[str, str]] = []

    def pause(self, argument: str) -> str:
        self.given.append(("pause", argument))
        return "paused \x1b[31m"

    def concurrency(self, argument: str) -> str:
        if not argument.isdecimal():
            raise ValueError("concurrency must be a whole number")
        self.given.append(("concurrency", argument))
        return f"{argument} handler calls at once"

    def broken(self, _argument: str) -> str:
        raise RuntimeError("a fault of ours")


@contextlib.contextmanager
def opened(directory: Path, orders: Orders) -> Iterator[Path]:
    commands = {"pause": orders.pause, "concurrency": orders.concurrency, "resume": orders.broken}
    control = ControlSocket(str(directory), commands)
    control.start()
    try:
        yield directory / "control.sock"
    finally:
        control.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "control"]


@pytest.fixture(autouse=True)
def told() -> Iterator[list[dict[str, object]]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture
def orders() -> Orders:
    return Orders()


def ctl(path: Path, *arguments: str) -> int:
    return main(["ctl", "--socket", str(path), *arguments])


def test_an_order_reaches_the_worker_and_its_answer_comes_back(tmp_path, orders, capsys) -> None:
    with opened(tmp_path, orders) as path:
        assert ctl(path, "concurrency", "4") == 0
    assert orders.given == [("concurrency", "4")]
    assert capsys.readouterr().out == "4 handler calls at once\n"


def test_the_socket_is_found_in_the_runtime_directory(tmp_path, orders, monkeypatch, capsys) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path}:/elsewhere")
    with opened(tmp_path, orders):
        assert main(["ctl", "pause"]) == 0
    assert orders.given == [("pause", "")]
    assert capsys.readouterr().out == "paused \\u001b[31m\n"


def test_nobody_but_the_owner_may_connect_and_nothing_is_left_behind(tmp_path, orders) -> None:
    former = os.umask(0)
    try:
        with opened(tmp_path, orders) as path:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(former)
    assert list(tmp_path.iterdir()) == []


def test_what_the_worker_refuses_is_told_with_1(tmp_path, orders, capsys) -> None:
    with opened(tmp_path, orders) as path:
        assert ctl(path, "concurrency", "many") == 1
        assert "error: the worker refused: concurrency must be a whole number" in capsys.readouterr().err
        assert ctl(path, "resume") == 1
        assert "RuntimeError; its log says why" in capsys.readouterr().err
        assert ctl(path, "pause") == 0


def test_without_a_worker_there_is_one_message(tmp_path, capsys) -> None:
    assert ctl(tmp_path / "control.sock", "pause") == 1
    assert "no worker answers at" in capsys.readouterr().err


def test_without_a_runtime_directory_the_configuration_is_wrong(monkeypatch, capsys) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    assert main(["ctl", "pause"]) == 78
    assert "RUNTIME_DIRECTORY" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["stop"], ["pause", "now"], ["concurrency"], ["log-level", "LOUD"]])
def test_an_order_that_makes_no_sense_is_wrong_usage(arguments, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ctl", *arguments])
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_the_socket_of_a_killed_worker_is_replaced_and_that_of_a_living_one_is_not(tmp_path, orders) -> None:
    left_over = socket.socket(socket.AF_UNIX)
    left_over.bind(str(tmp_path / "control.sock"))
    left_over.close()
    with opened(tmp_path, orders) as path:
        other = ControlSocket(str(tmp_path), {})
        other.start()
        other.close()
        assert ctl(path, "pause") == 0


def test_a_file_that_is_no_socket_is_left_alone(tmp_path, orders) -> None:
    (tmp_path / "control.sock").write_text("precious")
    with opened(tmp_path, orders):
        pass
    assert (tmp_path / "control.sock").read_text() == "precious"


@pytest.mark.parametrize("directory", ["/no/such/directory", "/" + "x" * 200, None, ""])
def test_a_worker_starts_without_a_socket_where_there_can_be_none(directory) -> None:
    control = ControlSocket(directory, {})
    control.start()
    control.close()


@pytest.mark.usefixtures("no_collections")
@pytest.mark.parametrize(
    "said", [b"\n", b"[]\n", b"pause\n", b'{"command": "stop"}\n', b"[" * 4000 + b"\n", b"x" * 10_000, b""]
)
def test_nonsense_is_answered_and_does_no_harm(tmp_path, orders, said) -> None:
    with opened(tmp_path, orders) as path:
        with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(ConnectionError):
            connection.connect(str(path))
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
            assert json.loads(connection.recv(4096))["done"] is False
        assert ctl(path, "pause") == 0
    assert orders.given == [("pause", "")]


def test_who_connects_and_says_nothing_keeps_the_others_waiting_for_a_moment_only(tmp_path, orders) -> None:
    with opened(tmp_path, orders) as path, socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(path))
        started = time.monotonic()
        assert ctl(path, "pause") == 0
        assert time.monotonic() - started < 15.0
