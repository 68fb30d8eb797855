"""The command dev: a Kafka and a worker that live and end with it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import time

import psutil
import pytest

from tests.support import wire
from tests.support.commands import Cli
from tests.support.waiting import eventually


@pytest.fixture
def dev(tmp_path):
    """Start `dev` with a temporary directory of its own; checks at the end that nothing is left in it."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    cli = Cli({"TMPDIR": str(temporary), "HOME": os.environ.get("HOME", ""), **_cache()})
    yield cli
    eventually(lambda: not list(temporary.iterdir()), "nothing is left in the temporary directory")


def _cache() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name == "XDG_CACHE_HOME"}


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def gone(processes: list[psutil.Process]) -> bool:
    return not any(map(runs, processes))


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # between the two questions
        return False


@contextlib.contextmanager
def serving(dev: Cli, *arguments: str, **environment: str):
    """Run `dev` until it has said where everything is and the worker is running; yields it with what it has said."""
    with dev.start("dev", *arguments, **environment) as process:
        try:
            said = []
            for line in process.stdout:
                said.append(line)
                if "Worker running" in line:
                    break
            assert process.poll() is None, "".join(said)
            yield process, "".join(said)
        finally:
            process.kill()


def test_dev_once_answers_its_samples_and_leaves_nothing(dev):
    done = dev("dev", "--send", "3", "--once")
    assert done.returncode == 0, done.stdout + done.stderr
    responses = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"request_id"')]
    assert [each["status"] for each in responses] == ["completed"] * 3
    assert "3 sent, 3 completed, 0 failed" in done.stderr
    assert "Worker stopped  exit_code=0" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_dev_says_where_everything_is_and_a_signal_ends_it_all(dev, number):
    with serving(dev) as (process, said):
        processes = family(process)
        assert len(processes) >= 4  # Kafka, the worker, and a guard for each
        (bootstrap,) = [line.split()[-1] for line in said.splitlines() if line.startswith("Kafka: ")]
        assert "gigaoffice-requests" in wire.topics(bootstrap)
        (printed,) = [line for line in said.splitlines() if line.endswith("'Sum the sales of column B by month'")]
        command = f"cd / && {printed.strip()}"  # from anywhere, with no settings but what is printed
        sent = subprocess.run(
            ["/bin/sh", "-c", command], env=dev.environment, capture_output=True, timeout=60, check=True
        )
        assert json.loads(sent.stdout)["status"] == "completed"
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(30) == 0
    assert "Worker stopped  exit_code=0" in rest
    assert "Traceback" not in said + rest
    assert gone(processes)


def test_dev_in_a_terminal_drains_although_ctrl_c_reaches_all_of_its_group(dev, tmp_path):
    with serving(dev) as (process, _):
        # What a terminal does: SIGINT to the foreground group, in which neither Kafka nor the worker may be.
        group = os.getpgid(process.pid)
        assert all(os.getpgid(each.pid) != group for each in family(process))
        process.send_signal(signal.SIGINT)
        assert "exit_code=0" in process.stdout.read()


def test_a_second_interrupt_ends_the_wait_for_the_worker(dev, tmp_path):
    journal = tmp_path / "journal"
    handler = "tests.support.handlers:handle"
    with serving(dev, "--handler", handler, TEST_JOURNAL=str(journal)) as (process, said):
        (bootstrap,) = [line.split()[-1] for line in said.splitlines() if line.startswith("Kafka: ")]
        dev("send", "--no-wait", '{"seconds": 60}', KAFKA_BOOTSTRAP_SERVERS=bootstrap)
        eventually(journal.exists, "the call to begin")
        processes = family(process)
        process.send_signal(signal.SIGINT)
        assert any("Worker draining" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(10) == 0  # and not after the drain's 25 seconds
    assert gone(processes)


def kafka_of(process: subprocess.Popen[str]) -> psutil.Process:
    (kafka,) = [each for each in family(process) if "kafka.Kafka" in each.cmdline()]
    return kafka


def test_dev_ends_when_its_kafka_dies(dev):
    with serving(dev) as (process, _):
        kafka_of(process).kill()
        rest = process.stdout.read()
        assert process.wait(60) == 1
    assert "error: Kafka has ended by itself" in rest
    assert "Worker draining" in rest


HANDLER = """
import logging


def handle(request):
    print("printed by the handler")
    logging.getLogger("shop").info("logged by the handler")
    {deed}
    return {{"answer": 1}}
"""


def test_dev_is_quiet_and_tells_each_request_in_a_line(dev, tmp_path):
    (tmp_path / "answers.py").write_text(HANDLER.format(deed="assert request.payload['query'] != 'bad', 'as asked'"))
    found = {"PYTHONPATH": str(tmp_path), "WORKER_MAX_ATTEMPTS": "1"}
    with serving(dev, "--handler", "answers:handle", **found) as (process, said):
        assert len(said.splitlines()) <= 12
        (bootstrap,) = [line.split()[-1] for line in said.splitlines() if line.startswith("Kafka: ")]
        assert dev("send", '{"id": "r-1", "query": "good"}', KAFKA_BOOTSTRAP_SERVERS=bootstrap).returncode == 0
        assert dev("send", '{"id": "r-2", "query": "bad"}', KAFKA_BOOTSTRAP_SERVERS=bootstrap).returncode == 1
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(30) == 0
    of_good, _, of_bad = rest.partition("Request answered")
    # On a busy machine the worker says in between that it is not ready yet.
    printed, logged = [line for line in of_good.splitlines() if "Worker " not in line][:2]
    assert "info     printed by the handler  " in printed
    assert "info     logged by the handler  " in logged
    assert "request_id=r-1" in of_bad.splitlines()[0]
    (dead,) = [line for line in of_bad.splitlines() if "dead letter" in line]
    assert "AssertionError" in dead
    assert "request_id=r-2" in dead
    assert "AssertionError: as asked" in of_bad  # the traceback
    assert "answers.py" in of_bad


def test_dev_loads_a_handler_again_when_its_file_changes(dev, tmp_path):
    def write(text: str) -> None:
        """At one blow: half a file would be a change of its own."""
        (tmp_path / "new").write_text(text)
        (tmp_path / "new").replace(tmp_path / "answers.py")

    write("def handle(request): return 1\n")
    found = {"PYTHONPATH": str(tmp_path)}
    with serving(dev, "--handler", "answers:handle", "--reload", **found) as (process, said):
        (bootstrap,) = [line.split()[-1] for line in said.splitlines() if line.startswith("Kafka: ")]

        def answer() -> object:
            done = dev("send", "{}", KAFKA_BOOTSTRAP_SERVERS=bootstrap)
            return json.loads(done.stdout)["result"]

        def until(text: str) -> str:
            read = list(itertools.takewhile(lambda line: text not in line, process.stdout))
            assert process.poll() is None, "".join(read)
            return "".join(read)

        assert answer() == 1
        write("def handle(request): return \n\n(\n")
        refused = until("Waiting for a change")
        write("def handle(request): return 22\n")
        until("Worker running")
        assert answer() == 22
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(30) == 0
    assert refused.count("SyntaxError: '(' was never closed, in ") == 1
    assert "Traceback" not in refused + rest


def test_dev_ends_with_the_code_of_its_worker(dev):
    done = dev("dev", "--handler", "no.such:thing")
    assert done.returncode == 78
    assert "no.such" in done.stderr


def test_dev_ends_when_its_worker_is_killed(dev):
    with serving(dev) as (process, _):
        (worker,) = [each for each in family(process) if each.cmdline()[-1] == "run"]
        worker.kill()
        process.stdout.read()
        assert process.wait(30) == 128 + signal.SIGKILL


def test_nothing_outlives_a_dev_that_is_killed(dev):
    with serving(dev) as (process, _):
        processes = family(process)
        process.kill()
        eventually(lambda: gone(processes), "Kafka, the worker and the guards end", timeout=30)


def test_dev_keeps_data_where_it_is_told(dev, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    first = dev("dev", "--data", str(data), "--send", "2", "--once")
    assert first.returncode == 0, first.stderr
    started = time.monotonic()
    with serving(dev, "--data", str(data)) as (process, said):
        (bootstrap,) = [line.split()[-1] for line in said.splitlines() if line.startswith("Kafka: ")]
        assert len(wire.read_all(bootstrap, "gigaoffice-responses")) == 2
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(30) == 0
    assert time.monotonic() - started < 150


def test_dev_ignores_what_belongs_to_another_cluster(dev):
    done = dev(
        "dev",
        "--send",
        "1",
        "--once",
        KAFKA_USE_SSL="true",
        KAFKA_TOPIC_REQUESTS_REPLICATION="3",
        KAFKA_BOOTSTRAP_SERVERS="kafka.example:9092",
    )
    assert done.returncode == 0, done.stdout + done.stderr
