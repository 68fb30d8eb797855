"""`gigaoffice-worker dev`: a local Kafka and a worker on it, ended with the command."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from gigaoffice_worker.cli import health, send, terminal
from gigaoffice_worker.cli.dev_output import SETTINGS, Output
from gigaoffice_worker.cli.dev_reload import Watch
from gigaoffice_worker.cli.samples import sample_requests
from gigaoffice_worker.core.errors import ConfigurationError, WorkerError
from gigaoffice_worker.core.visible import visible

if TYPE_CHECKING:
    from gigaoffice_worker.config import Config
    from gigaoffice_worker.devkafka import KafkaCluster

_PROGRAM = "gigaoffice-worker"
_KAFKA_PORT = 9092
_SIDE_PORT = 9464
_ANY_PORT = 0
_LOOPBACK = "127.0.0.1"
_BOOTSTRAP = "KAFKA_BOOTSTRAP_SERVERS"
_LOOK = 0.1
_READY_LIMIT = 90.0
_ANSWER_LIMIT = 60.0
_EXIT_MARGIN = 5.0
_NODE = 1
_CONFIGURATION = ConfigurationError.exit_code

# What the local Kafka is: one broker, no TLS, no passwords. Settings made for another cluster would only fail.
_OTHER_CLUSTER = re.compile(r"KAFKA_USE_SSL|KAFKA_(SSL|SASL)_.+|KAFKA_TOPIC_(REQUESTS|RESPONSES|DLQ)_REPLICATION")

_DESCRIPTION = """\
Start a real single-node Apache Kafka on this machine, and a worker on it, until Ctrl-C or SIGTERM: then the worker
drains, Kafka ends, and nothing is left behind. The first time Kafka is fetched (45 MB); that needs the package extra
gigaoffice-worker[dev]. The worker takes its settings from the environment, those of another cluster excepted.
Of its log you see a line for each request, what the handler prints and logs, and what goes wrong, with tracebacks;
with LOG_FORMAT, LOG_LEVEL or LOG_TRACEBACKS set, all of it.
"""


def add(commands: terminal.Commands) -> None:
    """Declare the command."""
    parser = commands.add("dev", act, "a local Kafka with a worker on it, for development", _DESCRIPTION)
    parser.add_argument("--port", type=int, metavar="PORT", help=f"Kafka's port (default: {_KAFKA_PORT} if it is free)")
    parser.add_argument("--handler", metavar="NAME", help="what answers requests, as WORKER_HANDLER says")
    parser.add_argument("--reload", action="store_true", help="load the handler again when its files change")
    parser.add_argument("--data", type=Path, metavar="DIR", help="keep Kafka's data there (default: nothing is kept)")
    parser.add_argument("--send", type=_count, default=0, metavar="N", help="send N sample requests, show the answers")
    parser.add_argument("--once", action="store_true", help="end when the sample requests are answered")


def act(asked: argparse.Namespace) -> int:
    """Run Kafka and the worker; 0 when asked to end, the worker's exit code when it ends by itself."""
    if asked.once and not asked.send:
        raise terminal.UsageError("--once: there is nothing to do once without --send N")
    with _signals() as hurry:
        try:
            return _serve(asked, hurry)
        except KeyboardInterrupt:
            return 0


def _serve(asked: argparse.Namespace, hurry: Callable[[], bool]) -> int:
    from gigaoffice_worker.config import load
    from gigaoffice_worker.devkafka import KafkaCluster

    environment = _environment(asked.handler)
    load({**environment, _BOOTSTRAP: f"{_LOOPBACK}:{_KAFKA_PORT}"})  # what is wrong shall be said before Kafka starts
    watch = Watch() if asked.reload else None
    cluster = KafkaCluster(data_dir=asked.data, port=asked.port or _free(_KAFKA_PORT) or None)
    try:
        cluster.start(progress=_tell)
        environment[_BOOTSTRAP] = cluster.bootstrap_servers
        config = load(environment)
        _tell(_places(config, asked.env_file))
        send_once = asked.send
        while True:
            with _worker(config, environment, hurry) as worker:
                if send_once:
                    code = _samples_answered(config, worker, send_once)
                    if asked.once and worker.poll() is None:
                        return code
                    send_once = 0
                ended = _watched(worker, cluster, watch)
            if ended is not None:
                return ended
            _tell("Loading the handler again")
    finally:
        cluster.stop()


def _watched(worker: subprocess.Popen[bytes], cluster: KafkaCluster, watch: Watch | None) -> int | None:
    """Wait until the worker ends and return the exit code; None when it is to be started again.

    A worker that ends because its handler cannot be loaded is waited out where its files are watched: they are being
    written. Raises FoundWantingError when Kafka ends.
    """
    waiting = False
    while True:
        code = worker.poll()
        if code is not None and (watch is None or code != _CONFIGURATION):
            return code if code >= 0 else 128 - code  # as a shell tells of a process that a signal ended
        if code is not None and not waiting:
            waiting = True
            _tell("Waiting for a change of the handler's files")
        if not cluster.running(_NODE):
            log = cluster.log(_NODE)
            raise terminal.FoundWantingError("Kafka has ended by itself", hint=_last_words(log))
        if watch is not None and (changed := watch.changed()):
            _tell(f"Changed: {', '.join(_shown(path) for path in changed[:3])}{' …' if len(changed) > 3 else ''}")
            return None
        time.sleep(_LOOK)


def _last_words(log: Path) -> str:
    """Return the end of Kafka's log, which is deleted with its temporary data."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return "Its log cannot be read."
    return "Its log ends with: " + " | ".join(visible(line.strip()) for line in lines[-3:])


def _shown(path: Path) -> str:
    here = Path.cwd()
    return visible(str(path.relative_to(here) if path.is_relative_to(here) else path))


# The worker


@contextlib.contextmanager
def _worker(
    config: Config, environment: Mapping[str, str], hurry: Callable[[], bool]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the worker as a process; at the end it drains, unless somebody is in a `hurry`."""
    from gigaoffice_worker.devkafka.reaper import Guard

    guard = Guard(litter=[])
    worker = output = None
    # Whoever sets the form or the level of the log wants all of it, as it is.
    chosen = {name for name in SETTINGS if os.environ.get(name)}
    try:
        worker = subprocess.Popen(
            [sys.executable, "-m", "gigaoffice_worker", "run"],
            env={**environment, **(SETTINGS if not chosen else {"LOG_FORMAT": "console", **_given(chosen)})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if not chosen else None,
            # Not in our group: Ctrl-C is for us, and a worker that gets it and SIGTERM too would not drain.
            process_group=guard.group,
        )
        output = Output(worker.stdout) if worker.stdout is not None else None
        yield worker
    finally:
        if worker is not None:
            _drain(worker, config.worker.drain_timeout + _EXIT_MARGIN, hurry)
        if output is not None:
            output.join(_EXIT_MARGIN)
        guard.close()


def _given(names: Iterable[str]) -> dict[str, str]:
    return {name: os.environ[name] for name in names}


def _drain(worker: subprocess.Popen[bytes], limit: float, hurry: Callable[[], bool]) -> None:
    """End the worker in order, and kill it if that takes too long."""
    until = time.monotonic() + limit
    worker.terminate()
    while worker.poll() is None and time.monotonic() < until and not hurry():
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(_LOOK)
    worker.kill()
    worker.wait()


def _environment(handler: str | None) -> dict[str, str]:
    """Return the worker's environment; what is empty counts as unset."""
    environment = without_another_cluster(os.environ)
    if environment.get("METRICS_PORT", "") in {"", "0"}:
        environment["METRICS_PORT"] = str(_free(_SIDE_PORT) or _picked_port())
    if handler is not None:
        environment["WORKER_HANDLER"] = handler
    return environment


def without_another_cluster(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what was set for a cluster that is not the local one."""
    return {name: text for name, text in environ.items() if not _OTHER_CLUSTER.fullmatch(name)}


def _free(port: int) -> int:
    """Return `port` if nothing listens there on the loopback interface, else 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_LOOPBACK, port))
        except OSError:
            return _ANY_PORT
        return port


def _picked_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, _ANY_PORT))
        return int(probe.getsockname()[1])


# Signals


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Let the first SIGINT or SIGTERM raise KeyboardInterrupt; yield the question whether there were more."""
    received = 0

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal received
        received += 1
        if received == 1:
            raise KeyboardInterrupt

    former = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received > 1
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


# What is said


def _tell(text: str) -> None:
    print(text, flush=True)


def _places(config: Config, env_file: str | None) -> str:
    servers = ",".join(config.kafka.bootstrap_servers)
    side_port = f"http://{health.reachable_host(config.side_port.host)}:{config.side_port.port}"
    lines = [
        f"Kafka:     {servers}",
        f"Topics:    {', '.join(f'{spec.name} ({spec.role})' for spec in config.topics)}",
        f"Worker:    handler {config.worker.handler}, group {config.consumer.group}",
        f"Side port: {side_port} with /readyz, /livez, /health, /health/topics, /status and /metrics",
        "Send a request from another terminal:",
        f"  {_command_line(servers, env_file)} send 'Sum the sales of column B by month'",
        "Ctrl-C ends it all.",
    ]
    return "\n".join(lines)


def _command_line(servers: str, env_file: str | None) -> str:
    """Return how this program is called from a shell in this directory that knows nothing of us."""
    called = Path(sys.argv[0])
    if called.name != _PROGRAM or not called.exists():
        words = [sys.executable, "-m", "gigaoffice_worker"]
    elif (found := shutil.which(_PROGRAM)) is not None and Path(found).samefile(called):
        words = [_PROGRAM]
    else:
        words = [str(called)]
    if env_file:
        words += ["--env-file", env_file]
    needed = "" if servers == f"{_LOOPBACK}:{_KAFKA_PORT}" else f"{_BOOTSTRAP}={servers} "
    return needed + shlex.join(words)


# Sample requests


def _samples_answered(config: Config, worker: subprocess.Popen[bytes], count: int) -> int:
    """Send sample requests once the worker is ready; 0 if all were completed. It reports what goes wrong."""
    options = send.Options(key=None, headers={}, timeout=_ANSWER_LIMIT, wait=True)
    try:
        _wait_until_ready(config, worker)
        with terminal.command_logs(config):
            return send.send_many(config, sample_requests(count), options, until=lambda: worker.poll() is not None)
    except WorkerError as error:
        terminal.report(error)
        return error.exit_code


def _wait_until_ready(config: Config, worker: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _READY_LIMIT
    while worker.poll() is None:
        with contextlib.suppress(terminal.FoundWantingError):
            if health.ask(config.side_port, health.READY, 1.0).good:
                return
        if time.monotonic() > until:
            raise terminal.FoundWantingError(
                f"the worker was not ready within {_READY_LIMIT:g} s", hint="Its log says what it waits for."
            )
        time.sleep(_LOOK)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 100000")
    return int(text)
