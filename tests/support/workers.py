"""Real worker processes for tests: start, look at from outside, signal, and never leave behind."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from tests.support import forked
from tests.support.forked import PATHS, ForkedProcess

Process = ForkedProcess | subprocess.Popen[bytes]

SHORTEST_SECRET = 8
"""Shorter ones would be found by chance."""
ANSWER_LIMIT = 20.0
"""Seconds for an answer of the side port: many tests ask once, and the machine may have other things to do."""

HANDLER = "tests.support.handlers:handle"


class Call(NamedTuple):
    """One line of the handlers' journal."""

    moment: str
    id: str
    key: str | None
    partition: int
    offset: int
    attempt: int
    pid: int
    at: float


class WorkerProcess:
    """`gigaoffice-worker run` with an environment of its own, and nothing of the caller's but the path."""

    def __init__(self, directory: Path, environment: Mapping[str, str], *, name: str = "worker") -> None:
        self.log_file = directory / f"{name}.log"
        self.error_file = directory / f"{name}.err"
        self.journal = directory / "journal.jsonl"
        self._runtime = directory / f"{name}-run"
        self._runtime.mkdir(exist_ok=True)
        self._environment = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": PATHS,
            "WORKER_HANDLER": HANDLER,
            "TEST_JOURNAL": str(self.journal),
            "METRICS_PORT": "0",
            "RUNTIME_DIRECTORY": str(self._runtime),
            "LOG_FORMAT": "json",
            **environment,
        }
        self._process: Process | None = None
        self._secrets: set[str] = set()
        self._answers: dict[str, str] = {}

    def start(self) -> Self:
        """Start it, or start it again: the log is appended to."""
        (self._runtime / "port").unlink(missing_ok=True)
        self._note_secrets()
        with self.log_file.open("ab") as output, self.error_file.open("ab") as errors:
            self._process = forked.start(["run"], self._environment, output, errors)
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.end()
        if error is None:
            self.check_secrets()

    def end(self) -> None:
        """End it at once, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait(10)

    def check_secrets(self) -> None:
        """Fail if one of the secrets that it was given stands in anything that it wrote or answered."""
        self._note_secrets()
        said = {"standard output": self.log_file, "standard error": self.error_file}
        for secret in self._secrets:
            for where, file in said.items():
                assert not file.exists() or secret.encode() not in file.read_bytes(), f"a secret on {where}"
            told = [path for path, body in self._answers.items() if secret in body]
            assert not told, f"a secret in the answers to {told}"

    def _note_secrets(self) -> None:
        """Take down what the secrets are now: a file may hold another one later."""
        for name, value in self._environment.items():
            if any(word in name for word in ("PASSWORD", "TOKEN", "SECRET", "CREDENTIALS")):
                file = Path(value)
                text = file.read_text().strip() if name.endswith("_FILE") and file.is_file() else value
                if len(text) >= SHORTEST_SECRET and not name.endswith(("_URL", "_SCOPE")):
                    self._secrets |= {text, base64.b64encode(text.encode()).decode().rstrip("=")}

    @property
    def process(self) -> Process:
        if self._process is None:
            message = "the worker was not started"
            raise RuntimeError(message)
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float) -> int:
        """Return the exit code."""
        return self.process.wait(timeout)

    def stop(self, timeout: float = 40.0) -> int:
        """Drain it and return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    @property
    def control_socket(self) -> Path:
        return self._runtime / "control.sock"

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Say something to it as an operator does."""
        return run_command(self._environment, "ctl", *arguments)

    # What it says

    def port(self) -> int:
        """Return the side port that it has picked; OSError before that."""
        return int((self._runtime / "port").read_text())

    def ask(self, path: str) -> tuple[int, str]:
        """Return (status, body) of a page of the side port; status 0 while nobody answers."""
        code, body = self._ask(path)
        # The newest only, and any earlier one in which a secret stands.
        if not any(secret in self._answers.get(path, "") for secret in self._secrets):
            self._answers[path] = body
        return code, body

    def _ask(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port()}{path}", timeout=ANSWER_LIMIT) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except (OSError, ValueError):
            return 0, ""

    def status(self) -> dict[str, Any]:
        code, body = self.ask("/status")
        return dict(json.loads(body)) if code == 200 else {}

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of a metric, named without prefix, that carry these labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        found = 0.0
        for line in self.ask("/metrics")[1].splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.partition("{")[0] == f"gigaoffice_worker_{name}" and all(label in sample for label in wanted):
                found += float(value)
        return found

    def logs(self) -> list[dict[str, Any]]:
        """Return the log lines; a line that is no JSON object comes as {"raw": line}."""
        lines = self.log_file.read_text(errors="replace").splitlines() if self.log_file.exists() else []
        return [_parsed(line) for line in lines if line.strip()]

    def errors(self) -> str:
        """Return what it has written to standard error."""
        return self.error_file.read_text(errors="replace") if self.error_file.exists() else ""

    def calls(self, moment: str = "start") -> list[Call]:
        """Return the handler calls of every worker that shares the directory."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [call for line in lines if (call := Call(**json.loads(line))).moment == moment]

    # Waiting

    def wait_ready(self, timeout: float = 40.0) -> Self:
        self.wait_until(lambda: self.ask("/readyz")[0] == 200, timeout, "the worker to become ready")
        return self

    def wait_until(self, condition: Callable[[], object], timeout: float, what: str) -> None:
        """Wait for a condition; fail with the end of the log when it takes too long or the worker has ended."""
        deadline = time.monotonic() + timeout
        while not condition():
            ended = self.process.poll()
            if ended is not None or time.monotonic() > deadline:
                own = [line for line in self.logs() if line.get("event") != "Kafka client message"]
                tail = "\n".join(json.dumps(line)[:1000] for line in own[-25:])
                state = f"ended with {ended}" if ended is not None else self.ask("/readyz")[1]
                message = f"waited {timeout:g} s for {what}; worker: {state}\n{tail}\n{self.errors()[-2000:]}"
                raise AssertionError(message)
            time.sleep(0.05)


def run_command(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, in an environment that holds nothing but PATH and what it is given."""
    return forked.run(arguments, {"PATH": os.environ["PATH"], "PYTHONPATH": PATHS, **environment})


def _parsed(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {"raw": line}
    return found if isinstance(found, dict) else {"raw": line}
