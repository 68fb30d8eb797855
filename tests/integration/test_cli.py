from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from typing import Self

import psutil
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from tests.conftest import settings
from tests.support import batches, forked, wire
from tests.support.batches import RawRecord
from tests.support.certificates import Authority
from tests.support.forked import PATHS, ROOT
from tests.support.listeners import AUTHORIZED, scram_user, with_login, with_tls
from tests.support.releases import OwnKafka
from tests.support.waiting import eventually

PASSWORD = "secret-of-the-worker"
# For connecting and for the cluster's acknowledgement too, and a busy machine needs seconds for these.
NONE_IN_TIME = "8"


class Cli:
    """Runs commands in an environment that holds nothing but what it is given."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT), **environment}

    def __call__(self, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        done = forked.run(arguments, {**self.environment, **environment}, stdin=stdin, timeout=120)
        assert "Traceback" not in done.stdout + done.stderr
        return done

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "gigaoffice_worker", *arguments],
            env={**self.environment, **environment},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def cli(kafka_bootstrap, topic_set):
    return Cli({"PYTHONPATH": PATHS, **settings(kafka_bootstrap, topic_set)})


@pytest.fixture
def names(topic_set):
    return {topic_set.requests, topic_set.responses, topic_set.dlq}


# topics


def test_topics_creates_what_is_missing_and_finds_it_the_next_time(cli, kafka_bootstrap, topic_set):
    first, second = cli("topics"), cli("topics")
    assert (first.returncode, second.returncode) == (0, 0)
    expected = {topic_set.requests: 3, topic_set.responses: 3, topic_set.dlq: 1}
    assert expected.items() <= wire.topics(kafka_bootstrap).items()
    for done, verdict in ((first, "created"), (second, "exists")):
        lines = done.stdout.splitlines()
        assert len(lines) == 3
        for line, (name, partitions) in zip(lines, expected.items(), strict=True):
            assert line.startswith(f"{name}: {verdict} (partitions {partitions}, replication 1, ")
        assert done.stderr == ""


def test_topics_as_a_dry_run_changes_nothing(cli, kafka_bootstrap, names):
    done = cli("topics", "--dry-run")
    assert done.returncode == 1
    assert done.stdout.count(": missing, would be created (") == 3
    assert not names & wire.topics(kafka_bootstrap).keys()


def test_topics_creates_nothing_where_it_must_not(cli, kafka_bootstrap, topic_set, names):
    wire.create_topics(kafka_bootstrap, {topic_set.dlq: 1})
    done = cli("topics", KAFKA_TOPIC_AUTO_CREATE="false")
    assert done.returncode == 1
    assert f"{topic_set.requests}: missing (" in done.stdout
    assert f"{topic_set.dlq}: exists (" in done.stdout
    assert "KAFKA_TOPIC_AUTO_CREATE is false" in done.stderr
    assert names & wire.topics(kafka_bootstrap).keys() == {topic_set.dlq}


def test_topics_shows_how_a_topic_differs_from_the_configuration(cli, made_topics):
    done = cli("topics", KAFKA_TOPIC_RESPONSES_PARTITIONS="5", KAFKA_TOPIC_RESPONSES_REPLICATION="2")
    assert done.returncode == 0
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(made_topics.responses)]
    assert "(partitions 3, replication 1, " in line
    assert "configured is partitions 5, configured is replication factor 2)" in line


def test_topics_that_the_cluster_refuses_are_a_wrong_configuration(cli, kafka_bootstrap, names):
    done = cli("topics", KAFKA_TOPIC_REQUESTS_REPLICATION="9")
    assert done.returncode == 78
    assert re.search(r"error: creating topic \S+: replication factor refused", done.stderr)
    assert "hint: Set KAFKA_TOPIC_…_REPLICATION" in done.stderr
    assert not names & wire.topics(kafka_bootstrap).keys()


# check


def test_check_is_content_with_what_topics_makes(cli, topic_set):
    assert cli("topics").returncode == 0
    done = cli("check")
    assert done.returncode == 0, done.stdout
    findings = [line for line in done.stdout.splitlines() if line and line[0] in "✓!✗-"]
    assert all(line.startswith("✓") for line in findings)
    for step in ("reach", "authentication", "brokers", "group"):
        assert sum(line.startswith(f"✓ {step}") for line in findings) == 1
    assert f"✓ topic {topic_set.requests}: partitions 3, replication 1, READ permitted; " in done.stdout
    assert (
        f"✓ topic {topic_set.dlq}: partitions 1, replication 1, WRITE permitted; max.message.bytes 9437184, "
        "retention 7 d, cleanup.policy delete, min.insync.replicas 1"
    ) in findings
    assert "TimeoutStopSec" in done.stdout
    assert "✓ spans: off" in findings


def test_check_finds_missing_topics_and_does_not_create_them(cli, kafka_bootstrap, names):
    done = cli("check")
    assert done.returncode == 1
    assert done.stdout.count("missing; the cluster would create it") == 3
    assert "`gigaoffice-worker topics` creates it" in done.stdout
    assert not names & wire.topics(kafka_bootstrap).keys()


def test_check_tells_that_a_missing_topic_could_not_be_created(cli, topic_set):
    done = cli("check", KAFKA_TOPIC_REQUESTS_REPLICATION="9")
    assert done.returncode == 78
    assert f"✗ topic {topic_set.requests}: missing, and creating it would fail: replication factor" in done.stdout


def test_check_takes_a_difference_for_a_warning(cli, made_topics):
    done = cli("check", KAFKA_TOPIC_DLQ_PARTITIONS="2")
    assert done.returncode == 0
    assert f"! topic {made_topics.dlq}: partitions 1" in done.stdout
    assert "Configured is partitions 2" in done.stdout


def test_check_counts_the_partitions_that_there_are_for_what_the_limits_mean(cli, made_topics):
    done = cli("check", WORKER_GROUP_CONCURRENCY="2", KAFKA_TOPIC_REQUESTS_PARTITIONS="2")
    assert done.returncode == 0
    assert (
        "! limits: at most 2 calls at once in the group; with 3 partitions at most 2 workers are useful" in done.stdout
    )
    assert "2 calls for 3 partitions: they take turns" in done.stdout


def test_check_tells_settings_of_topics_that_will_lose_or_block(cli, kafka_bootstrap, topic_set):
    odd = (
        (topic_set.requests, {"cleanup.policy": "compact"}),
        (topic_set.responses, {"retention.ms": "60000"}),
        (topic_set.dlq, {"max.message.bytes": "1000000"}),
    )
    for name, odd_settings in odd:
        wire.create_topics(kafka_bootstrap, {name: 1}, config=odd_settings)
    done = cli("check", "--json")
    assert done.returncode == 1
    found = {each["step"]: each for each in json.loads(done.stdout)["findings"]}
    requests, responses, dlq = (found[f"topic {name}"] for name in topic_set[:3])
    assert (requests["mark"], responses["mark"], dlq["mark"]) == ("bad", "weak", "bad")
    assert "Set cleanup.policy=delete" in requests["hint"]
    assert "retention 1 min" in responses["found"]
    assert "Set retention.ms to 3600000" in responses["hint"]
    assert "Set max.message.bytes to 1114124 or more" in dlq["hint"]


def test_check_tells_time_limits_that_do_not_fit_and_a_handler_that_cannot_be_loaded(cli, made_topics):
    done = cli("check", WORKER_DRAIN_TIMEOUT="0", WORKER_HANDLER="no_such_module:handle")
    assert done.returncode == 78
    assert "! time limits: attempt 120 s, drain 0 s" in done.stdout
    assert "set WORKER_DRAIN_TIMEOUT above 0" in done.stdout
    assert "✗ handler: WORKER_HANDLER no_such_module:handle: module no_such_module cannot be imported" in done.stdout
    assert "put its directory on PYTHONPATH" in done.stdout
    assert f"✓ topic {made_topics.requests}" in done.stdout


def test_check_of_a_cluster_with_one_dead_bootstrap_server_is_found_wanting(cli, kafka_bootstrap, made_topics):
    done = cli("check", KAFKA_BOOTSTRAP_SERVERS=f"127.0.0.1:1,{kafka_bootstrap}")
    assert done.returncode == 1
    assert "✗ reach 127.0.0.1:1: connection refused" in done.stdout
    assert f"✓ topic {made_topics.requests}: " in done.stdout


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def guarded(authority):
    """A cluster that wants a password, and permits what `allow` allows; its listener TLS is for everybody."""
    with OwnKafka(
        listeners={"CLIENT": "SASL_PLAINTEXT", "TLS": "SSL"},
        properties={
            **AUTHORIZED,
            **with_tls("tls", *authority.issue("localhost")),
            **with_login("client", ["SCRAM-SHA-256"]),
        },
        format_options=scram_user("worker", PASSWORD),
    ) as cluster:
        yield cluster


@pytest.fixture
def guarded_cli(guarded, topic_set):
    wire.create_topics(guarded.bootstrap("BROKER"), {topic_set.requests: 3, topic_set.responses: 3, topic_set.dlq: 1})
    login = {"KAFKA_SASL_MECHANISM": "SCRAM-SHA-256", "KAFKA_SASL_USERNAME": "worker", "KAFKA_SASL_PASSWORD": PASSWORD}
    return Cli({**settings(guarded.bootstrap_servers, topic_set), **login})


def allow(cluster: OwnKafka, kind: ResourceType, name: str, operation: AclOperation) -> None:
    pattern = ResourcePatternType.LITERAL
    binding = AclBinding(kind, name, pattern, "User:worker", "*", operation, AclPermissionType.ALLOW)
    wire.create_acls(cluster.bootstrap("BROKER"), [binding])


def test_check_tells_a_refused_password(guarded_cli):
    done = guarded_cli("check", KAFKA_SASL_PASSWORD="another-secret")
    assert done.returncode == 77
    assert "✗ authentication: " in done.stdout
    assert "Check KAFKA_SASL_MECHANISM" in done.stdout
    assert "another-secret" not in done.stdout + done.stderr


@pytest.fixture
def tls_cli(guarded, authority, topic_set):
    tls = {"KAFKA_USE_SSL": "true", "KAFKA_SSL_CAFILE": authority.file}
    return Cli({**settings(guarded.bootstrap("TLS"), topic_set), **tls})


def test_check_tries_tls_as_a_step_of_its_own(tls_cli, topic_set):
    server = tls_cli.environment["KAFKA_BOOTSTRAP_SERVERS"]
    assert tls_cli("topics", KAFKA_SSL_CHECK_HOSTNAME="false").returncode == 0
    good = tls_cli("check", KAFKA_SSL_CHECK_HOSTNAME="false")
    assert good.returncode == 0, good.stdout
    assert f"✓ reach {server}: accepts connections\n✓ TLS {server}: its certificate is trusted" in good.stdout
    assert f"✓ topic {topic_set.requests}: partitions 3" in good.stdout
    assert "! configuration: KAFKA_SSL_CHECK_HOSTNAME=false" in good.stdout
    wrong = tls_cli("check")
    assert wrong.returncode == 77
    assert f"✓ reach {server}: accepts connections\n✗ TLS {server}: certificate not trusted" in wrong.stdout


def test_check_tells_a_certificate_that_lacks_the_advertised_address_from_a_refused_password(tls_cli):
    by_name = tls_cli.environment["KAFKA_BOOTSTRAP_SERVERS"].replace("127.0.0.1", "localhost")
    done = tls_cli("check", KAFKA_BOOTSTRAP_SERVERS=by_name)
    assert done.returncode == 77
    assert f"✓ TLS {by_name}" in done.stdout
    assert "✗ connection: " in done.stdout
    assert "✗ authentication" not in done.stdout


def test_check_names_the_permission_that_is_missing(guarded, guarded_cli, topic_set):
    allow(guarded, ResourceType.TOPIC, topic_set.requests, AclOperation.READ)
    allow(guarded, ResourceType.TOPIC, topic_set.requests, AclOperation.DESCRIBE_CONFIGS)
    allow(guarded, ResourceType.TOPIC, topic_set.responses, AclOperation.DESCRIBE)
    done = guarded_cli("check")
    assert done.returncode == 77
    assert "✓ authentication: SCRAM-SHA-256 as worker (SASL_PLAINTEXT)" in done.stdout
    assert f"✓ topic {topic_set.requests}: partitions 3, replication 1, READ permitted; " in done.stdout
    assert f"✗ topic {topic_set.responses}: authorization failed: WRITE is not permitted" in done.stdout
    assert f"Grant the user WRITE on the topic {topic_set.responses}." in done.stdout
    assert f"✗ topic {topic_set.dlq}: asking the cluster: authorization failed" in done.stdout
    assert f"✗ group {topic_set.group}: asking the cluster: authorization failed" in done.stdout
    assert PASSWORD not in done.stdout + done.stderr


def test_check_is_content_with_the_permissions_of_a_worker_and_no_more(guarded, guarded_cli, topic_set):
    for name, operation in (
        (topic_set.requests, AclOperation.READ),
        (topic_set.responses, AclOperation.WRITE),
        (topic_set.dlq, AclOperation.WRITE),
    ):
        allow(guarded, ResourceType.TOPIC, name, operation)
    allow(guarded, ResourceType.GROUP, topic_set.group, AclOperation.READ)
    done = guarded_cli("check")
    assert done.returncode == 0, done.stdout
    assert "✗" not in done.stdout
    assert done.stdout.count("Grant the user DESCRIBE_CONFIGS.") == 3  # useful, not necessary


def test_send_names_the_permissions_of_a_requester(guarded, guarded_cli, topic_set):
    for name in (topic_set.requests, topic_set.responses):
        allow(guarded, ResourceType.TOPIC, name, AclOperation.READ)
    done = guarded_cli("send", "hello")
    assert done.returncode == 77
    assert "hint: To send, the user needs WRITE on the request topic" in done.stderr


# send


class Responder:
    """Answers requests as a worker would, in a thread, through a client that shares no code with ours."""

    def __init__(self, bootstrap: str, requests: str, responses: str) -> None:
        self._bootstrap = bootstrap
        self._requests = requests
        self._responses = responses
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="responder")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(20)

    def _run(self) -> None:
        group = {"group.id": "responder-that-never-joins", "fetch.wait.max.ms": 20}
        consumer = Consumer({"bootstrap.servers": self._bootstrap, **group})
        producer = Producer({"bootstrap.servers": self._bootstrap, "linger.ms": 1})
        consumer.assign([TopicPartition(self._requests, partition, OFFSET_BEGINNING) for partition in range(3)])
        while not self._stop.is_set():
            for message in consumer.consume(100, 0.05):
                request = json.loads(message.value())
                if not request.get("silent"):
                    producer.produce(self._responses, b"not a response at all")
                    for _ in range(2):  # at least once
                        producer.produce(
                            self._responses, json.dumps(answer(request)), message.key(), headers=of(message)
                        )
            producer.flush(10)
        consumer.close()


def of(message: Message) -> list[tuple[str, bytes]]:
    place = (message.topic(), message.partition(), message.offset())
    names = ("source-topic", "source-partition", "source-offset")
    return [(name, str(part).encode()) for name, part in zip(names, place, strict=True)]


def answer(request: dict[str, object]) -> dict[str, object]:
    failed = bool(request.get("fail"))
    return {
        "request_id": request["id"],
        "status": "failed" if failed else "completed",
        "result": None if failed else {"echo": request["query"]},
        "error": {"type": "ValueError", "message": request.get("because", "as it was told")} if failed else None,
        "processing_time": 0.001,
        "timestamp": "2026-01-01T00:00:00Z",
    }


@pytest.fixture
def responder(kafka_bootstrap, made_topics):
    with Responder(kafka_bootstrap, made_topics.requests, made_topics.responses) as responder:
        yield responder


def test_send_prints_the_response_to_its_request(cli, kafka_bootstrap, made_topics, responder):
    done = cli("send", "--header", "traceparent=00-1", '{"id": "r-1", "query": "Größe?"}')
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["result"] == {"echo": "Größe?"}
    assert done.stderr == ""
    (sent,) = wire.read_all(kafka_bootstrap, made_topics.requests)
    assert (sent.key, sent.headers) == (b"r-1", [("ttl-ms", b"60000"), ("traceparent", b"00-1")])
    assert json.loads(sent.value) == {"id": "r-1", "query": "Größe?"}


def test_send_takes_its_request_from_a_file_or_from_standard_input(cli, responder, tmp_path):
    file = tmp_path / "request.json"
    file.write_text('{"query": "from a file"}')
    for done in (
        cli("send", f"@{file}"),
        cli("send", "-", stdin='{"query": "from a file"}'),
        cli("send", stdin="from a file\n"),
    ):
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["result"] == {"echo": "from a file"}


def test_send_of_a_request_that_fails_says_why(cli, made_topics, responder):
    done = cli("send", '{"query": "x", "fail": true}')
    assert done.returncode == 1
    assert json.loads(done.stdout)["status"] == "failed"
    assert "ValueError: as it was told" in done.stderr
    assert made_topics.dlq in done.stderr


def test_send_passes_no_control_character_of_a_response_on(cli, responder):
    because = "\x1b]0;taken over\x07\x9b31m\u202e\nhint: pipe this into a shell"
    done = cli("send", json.dumps({"id": "\x9br", "query": because, "fail": True, "because": because}))
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["message"] == because
    told = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    assert all(line.isprintable() for line in told)
    assert [line[:5] for line in done.stderr.splitlines()] == ["error", "hint:"]


def test_send_takes_no_older_response_for_its_own(cli, kafka_bootstrap, made_topics):
    old = json.dumps(answer({"id": "again", "query": "old"})).encode()
    wire.produce(kafka_bootstrap, made_topics.responses, [(b"again", old, [])] * 3)
    done = cli("send", "--timeout", NONE_IN_TIME, '{"id": "again"}')
    assert (done.returncode, done.stdout) == (1, "")


def send_in_vain(cli, request: str) -> subprocess.CompletedProcess[str]:
    """Send what nobody answers; again, where the group could not be described in time, and nothing is said of it."""

    def sent() -> subprocess.CompletedProcess[str] | None:
        done = cli("send", "--timeout", NONE_IN_TIME, request)
        return done if "The group" in done.stderr else None

    return eventually(sent, "a word about the group", timeout=60)


def test_send_without_an_answer_says_what_to_look_at(cli, made_topics):
    done = send_in_vain(cli, '{"id": "alone"}')
    assert (done.returncode, done.stdout) == (1, "")
    assert f"no response to request alone within {NONE_IN_TIME} s (it stands at {made_topics.requests}-" in done.stderr
    assert f"The group {made_topics.group} has no members: no worker is running." in done.stderr


def test_send_names_a_response_that_the_client_cannot_decode(cli, kafka_bootstrap, made_topics):
    unreadable = batches.batch([RawRecord(b"k", b"{}", ((b"\xff", b"v"),))])
    stop = threading.Event()

    def respond() -> None:
        while not stop.wait(0.2):
            batches.produce(kafka_bootstrap, made_topics.responses, unreadable)

    responder = threading.Thread(target=respond)
    responder.start()
    try:
        done = cli("send", "--timeout", NONE_IN_TIME, '{"query": "x"}')
    finally:
        stop.set()
        responder.join()
    assert done.returncode == 1
    assert "cannot be decoded: a header name is not UTF-8" in done.stderr


def test_send_without_waiting_tells_where_the_request_stands(cli, kafka_bootstrap, made_topics):
    done = cli("send", "--no-wait", "--key", "customer", "hello")
    assert done.returncode == 0
    told = json.loads(done.stdout)
    (sent,) = wire.read_all(kafka_bootstrap, made_topics.requests)
    assert told == {
        "id": json.loads(sent.value)["id"],
        "topic": made_topics.requests,
        "partition": sent.partition,
        "offset": sent.offset,
    }
    assert sent.key == b"customer"


def test_send_of_a_request_that_is_too_large_says_so(cli, made_topics):
    done = cli("send", "--no-wait", stdin=secrets.token_hex(1_500_000))
    assert done.returncode == 1
    assert "it is larger than the request topic takes" in done.stderr
    assert "max.message.bytes" in done.stderr


def test_send_creates_no_topics(cli, kafka_bootstrap, names):
    for done in (cli("send", "hello"), cli("send", "--no-wait", "hello")):
        assert done.returncode == 1
        assert "error: there is no topic " in done.stderr
    assert not names & wire.topics(kafka_bootstrap).keys()


def test_send_of_a_file_prints_each_response_and_a_summary(cli, responder, tmp_path):
    file = tmp_path / "requests.jsonl"
    file.write_text("\n".join(f'{{"id": "r-{i}", "query": "{i}"}}' for i in range(1500)))
    done = cli("send", "--file", str(file))
    assert done.returncode == 0, done.stderr
    responses = [json.loads(line) for line in done.stdout.splitlines()]
    assert {each["request_id"]: each["result"]["echo"] for each in responses} == {f"r-{i}": str(i) for i in range(1500)}
    assert len(responses) == 1500  # although each came twice
    assert done.stderr.startswith("1500 sent, 1500 completed, 0 failed in ")


def test_send_of_a_file_counts_what_went_wrong(cli, responder, tmp_path):
    file = tmp_path / "requests.jsonl"
    file.write_text('fine\n{"id": "silent-one", "query": "", "silent": true}\n{"query": "", "fail": true}\n{broken\n')
    done = cli("send", "--timeout", NONE_IN_TIME, "--file", str(file))
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 2
    assert "line 4: " in done.stderr
    assert "3 sent, 1 completed, 1 failed, 1 without an answer, 1 not sent in " in done.stderr
    assert "without an answer: silent-one" in done.stderr


# With a real worker


def test_a_real_worker_answers_and_is_healthy(cli, kafka_bootstrap, topic_set, tmp_path):
    environment = {"METRICS_PORT": "0", "RUNTIME_DIRECTORY": str(tmp_path), "LOG_FORMAT": "json"}
    # A worker that is stopped stays a member for as long as its session.
    with cli.start("run", KAFKA_CONSUMER_SESSION_TIMEOUT_MS="60000", **environment) as worker:
        try:
            ready = lambda: cli("health", **environment).returncode == 0  # noqa: E731
            eventually(ready, "the worker is ready", timeout=40, interval=0.3)
            assert cli("health", **environment).stdout.startswith("ready")
            done = cli("send", '{"id": "r-1", "query": "hello"}')
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["result"]["query"] == "hello"
            worker.send_signal(signal.SIGSTOP)
            silent = send_in_vain(cli, "anybody?")
            assert silent.returncode == 1
            assert f"The group {topic_set.group} has 1 member" in silent.stderr
            assert cli("health", "--timeout", "0.3", **environment).returncode == 1
            worker.send_signal(signal.SIGCONT)
            worker.terminate()
            output = worker.stdout.read()
            assert worker.wait(30) == 0
        finally:
            worker.kill()
    assert "Worker stopped" in output.splitlines()[-1] or "Repeated messages" in output.splitlines()[-1]
    assert all(json.loads(line) for line in output.splitlines())
    assert cli("health", **environment).returncode == 1


# dev


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
