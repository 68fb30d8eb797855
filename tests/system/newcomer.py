"""What an operator meets who sees the worker for the first time: installs, runs, breaks, understands and mends it.

`python -m tests.system.newcomer` does each step for real, by commands alone, on a Kafka and a service of its own, and
fills the table of docs/operations.md. It ends with an error where a step does not show what it should.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gigaoffice_worker.devkafka import KafkaCluster
from tests.support import tables, wire
from tests.support.services import Service, answers
from tests.system import stage

TABLE = "newcomer"
DOCUMENT = stage.ROOT / "docs/operations.md"
SEND = 'send \'{"id": "%s", "query": "sum"}\''
WRONG_PORT = 9093
LIMIT = 60.0
LONGEST = 300


class Desk:
    """A directory with a worker installed in it, and the rows of what was typed there."""

    def __init__(self, directory: Path, kafka: KafkaCluster, service: Service) -> None:
        self.rows: list[dict[str, str]] = []
        self._directory = directory
        self._side_port = stage.free_port()
        self._ports = {kafka.port(1): "9092", service.port: "8080", self._side_port: "9464"}
        self._service = service.port
        self._log = directory / "worker.log"
        self._worker: subprocess.Popen[bytes] | None = None

    def step(self, what: str, typed: str, wanted: str, act: Callable[[], str]) -> None:
        """Do a step; note up to two lines of its words that have `wanted` in them, with hints, and its seconds."""
        began = time.monotonic()
        said = act()
        seconds = time.monotonic() - began
        seen: list[str] = []
        for line in filter(None, map(str.strip, said.splitlines())):
            if re.search(wanted, line) or (seen and line.startswith("hint:")):
                seen.append(f"`{self._plain(line)}`")
        assert seen, f"{what}: {wanted!r} was not to be seen:\n{said}"
        self.rows.append({"what": what, "typed": typed, "seen": " ".join(seen[:2]), "seconds": f"{seconds:.1f}"})
        print(self.rows[-1], flush=True)

    def command(self, *words: str) -> str:
        """Run a command of the worker in the directory; return what it said, and its exit code where it is not 0."""
        done = subprocess.run(
            self._words(*words),
            cwd=self._directory,
            env=_bare(),
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        return f"{done.stdout}\n{done.stderr}" + (f"\nexit {done.returncode}" if done.returncode else "")

    def install(self) -> str:
        stage.run(sys.executable, "-m", "venv", str(self._directory / "worker"))
        [wheel] = (stage.ROOT / "dist").glob("*.whl")
        pip = str(self._directory / "worker/bin/pip")
        stage.run(pip, "install", "--quiet", "--disable-pip-version-check", f"{wheel}[http]", limit=600)
        return stage.run(str(self._directory / "worker/bin/gigaoffice-worker"), "--version")

    def settings(self, port: int) -> None:
        """Write worker.env, with Kafka at that port."""
        (self._directory / "worker.env").write_text(
            f"KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:{port}\nWORKER_HANDLER=http\n"
            f"HTTP_HANDLER_URL=http://127.0.0.1:{self._service}/\nMETRICS_PORT={self._side_port}\n"
            "WORKER_MAX_ATTEMPTS=2\n"
        )

    def run(self) -> str:
        """Start the worker in a terminal of its own; return its log once it runs."""
        with self._log.open("wb") as file:
            self._worker = subprocess.Popen(
                self._words("run"), cwd=self._directory, env=_bare(), stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        return _until(self._log.read_text, "Worker running")

    def health(self, wanted: str) -> str:
        """Ask for the health until it says what is wanted."""
        return _until(lambda: self.command("health"), wanted)

    def stop(self) -> str:
        assert self._worker is not None
        self._worker.send_signal(signal.SIGINT)
        code = self._worker.wait(LIMIT)
        return f"{self._log.read_text()}\nexit {code}"

    def close(self) -> None:
        if self._worker is not None and self._worker.poll() is None:
            self._worker.kill()
            self._worker.wait()

    def _words(self, *words: str) -> list[str | Path]:
        return [self._directory / "worker/bin/gigaoffice-worker", "--env-file", "worker.env", *words]

    def _plain(self, line: str) -> str:
        for port, name in self._ports.items():
            line = line.replace(f":{port}", f":{name}")
        line = line.replace("`", "'")
        line = re.sub(r'"timestamp": "[^"]*"', '"timestamp": "…"', line)
        return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def _bare() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "LOG_FORMAT": "console", "NO_COLOR": "1"}


def _until(ask: Callable[[], str], wanted: str) -> str:
    deadline = time.monotonic() + LIMIT
    while not re.search(wanted, said := ask()):
        assert time.monotonic() < deadline, f"{wanted!r} was not to be seen:\n{said}"
        time.sleep(0.3)
    return said


def begin(desk: Desk, kafka: KafkaCluster) -> None:
    """Take the steps from nothing to a first answer."""
    install = "`python3 -m venv worker`, `worker/bin/pip install 'gigaoffice_worker-….whl[http]'`"
    check = lambda: desk.command("check")  # noqa: E731
    desk.step("install the wheel", install, r"\d\.", desk.install)
    desk.settings(WRONG_PORT)
    desk.step("try the configuration; its port of Kafka is wrong", "`check`", "✗ reach|^exit", check)
    desk.settings(kafka.port(1))
    desk.step("the port is mended; try again", "`check`", "✗ topic gigaoffice-requests|^exit", check)
    desk.step("create the topics", "`topics`", "gigaoffice-", lambda: desk.command("topics"))
    desk.step("try again", "`check`", "✓ (topic|group)", check)
    desk.step("run it", "`run`", "Worker running", desk.run)
    desk.step("ask whether it is ready, in another terminal", "`health`", "^ready", lambda: desk.health("(?m)^ready"))
    desk.step("ask it something", f"`{SEND % 'r-1'}`", "completed", lambda: send(desk, "r-1"))


def break_the_service(desk: Desk, service: Service) -> None:
    """Take the steps from a request that fails to its answer."""
    service.answer = answers(503, {})
    desk.step("break: the service answers 503", f"`{SEND % 'r-2'}`", "^error", lambda: send(desk, "r-2"))
    desk.step("understand: what failed", "`dlq list`", "r-2", lambda: desk.command("dlq", "list"))
    why = lambda: desk.command("dlq", "show", "r-2")  # noqa: E731
    desk.step("understand: why", "`dlq show r-2`", "^(reason|message)", why)
    service.answer = answers(200, {"answer": "yes"})
    replay = lambda: desk.command("dlq", "replay", "--request-id", "r-2")  # noqa: E731
    desk.step("mend: the service is back; the request again", "`dlq replay --request-id r-2`", "replayed", replay)


def break_the_cluster(desk: Desk, kafka: KafkaCluster) -> None:
    """Take the steps through a lost cluster, and a topic that somebody deletes."""
    ready = lambda: desk.health("(?m)^ready")  # noqa: E731
    kafka.kill(1)
    told = lambda: desk.health("cluster-unreachable")  # noqa: E731
    desk.step("break: Kafka is killed; understand", "`health`, until it tells", "cluster-unreachable", told)
    kafka.restart(1)
    desk.step("mend: Kafka is back", "`health`, until it is ready", "^ready", ready)
    wire.delete_topics(kafka.bootstrap_servers, ["gigaoffice-responses"])
    desk.command("send", "--no-wait", '{"id": "r-3", "query": "sum"}')
    told = lambda: desk.health("delivery-blocked")  # noqa: E731
    what = "break: somebody deletes the response topic, and a request comes; understand"
    desk.step(what, "`health`, until it tells", "delivery-blocked", told)
    desk.step("mend: create the topic", "`topics`", "gigaoffice-responses", lambda: desk.command("topics"))
    desk.step("the worker goes on by itself", "`health`, until it is ready", "^ready", ready)
    desk.step("stop it", "Ctrl-C", "Worker stopped|^exit", desk.stop)


def send(desk: Desk, name: str) -> str:
    return desk.command("send", f'{{"id": "{name}", "query": "sum"}}')


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, KafkaCluster() as kafka, Service() as service:
        desk = Desk(Path(scratch), kafka, service)
        try:
            begin(desk, kafka)
            break_the_service(desk, service)
            break_the_cluster(desk, kafka)
        finally:
            desk.close()
    DOCUMENT.write_text(tables.filled(DOCUMENT.read_text("utf-8"), TABLE, desk.rows), "utf-8")


if __name__ == "__main__":
    main()
