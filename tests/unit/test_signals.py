"""Signals at odd moments: whatever the main thread does and whatever a handler's module did, the worker ends with 0."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from gigaoffice_worker.config import load
from gigaoffice_worker.worker import Worker
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]


@contextmanager
def process(*arguments: str, path: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    environment = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": f"{ROOT}{os.pathsep}{path}", **environment}
    with subprocess.Popen(
        [sys.executable, *arguments], env=environment, cwd=path, stdout=subprocess.PIPE, text=True
    ) as found:
        try:
            yield found
        finally:
            found.kill()


@pytest.fixture
def run(tmp_path):
    """Run a worker with a handler's module, of which this is the text, on a broker that never says anything."""

    @contextmanager
    def start(module: str):
        (tmp_path / "odd_handler.py").write_text(textwrap.dedent(module))
        with socket.create_server(("127.0.0.1", 0)) as server:
            settings = {
                "WORKER_HANDLER": "odd_handler:handle",
                "METRICS_PORT": "0",
                "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{server.getsockname()[1]}",
                "KAFKA_TOPIC_CREATION_TIMEOUT": "2",
            }
            with process("-m", "gigaoffice_worker", "run", path=tmp_path, **settings) as worker:
                yield worker

    return start


def test_a_handler_that_is_still_being_loaded_holds_up_no_stop(run, tmp_path):
    with run("""
        import time
        open("loading", "w").close()
        time.sleep(600)
    """) as worker:
        eventually((tmp_path / "loading").exists, "the handler to be loaded", timeout=20)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0


@pytest.mark.parametrize(
    "done_to_it",
    [
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "signal.signal(signal.SIGTERM, signal.SIG_DFL)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})",
    ],
)
def test_what_a_handlers_module_does_to_the_signal_is_undone(run, done_to_it):
    with run(f"""
        import signal
        {done_to_it}
        handle = lambda request: request.payload
    """) as worker:
        assert any("Topic listing" in line for line in worker.stdout)
        worker.send_signal(signal.SIGTERM)
        worker.stdout.read()
        assert worker.wait(20) == 0


def test_a_signal_within_a_call_that_holds_a_lock_stops_the_worker(tmp_path):
    program = """
        import os, signal, threading
        from gigaoffice_worker.config import load
        from gigaoffice_worker.worker import Worker

        worker = Worker(load({}))
        worker.start = worker._listen_to_signals
        wait = threading.Condition.wait

        def interrupted(condition, timeout=None):
            # The main thread's: it looks after the worker, and holds the lock that `set` needs.
            if condition is worker._stop._cond:
                os.kill(os.getpid(), signal.SIGTERM)
            return wait(condition, timeout)

        threading.Condition.wait = interrupted
        os._exit(worker.run())
    """
    with process("-c", textwrap.dedent(program), path=tmp_path) as worker:
        assert worker.wait(20) == 0


def test_a_second_signal_counts_although_it_comes_while_the_drain_begins():
    worker, asked = Worker(load({})), []

    def drain(deadline):
        worker.stop()  # by the thread of signals, before the consumer knows the deadline
        asked.append("drain")

    counts = SimpleNamespace(running=0, delivering=0, queued=0, waiting_retry=0)
    worker._engine = SimpleNamespace(
        drain=drain,
        hurry=lambda: asked.append("hurry"),
        dispatcher=SimpleNamespace(counts=lambda: counts),
        consumer=SimpleNamespace(join=lambda _: True, clean=True),
        pool=SimpleNamespace(tell_running=lambda _: None),
    )
    worker.stop()
    asked.clear()
    assert worker._drain() == 0
    assert asked[-1] == "hurry"
