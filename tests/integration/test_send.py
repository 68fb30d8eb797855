"""The command send, as somebody types it, against a real Kafka."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import threading
from typing import Self

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, Producer, TopicPartition

from tests.support import batches, wire
from tests.support.batches import RawRecord
from tests.support.waiting import eventually

# For connecting and for the cluster's acknowledgement too, and a busy machine needs seconds for these.
NONE_IN_TIME = "8"


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
    requests = ("fine", '{"id": "silent-one", "query": "", "silent": true}', '{"query": "", "fail": true}', "{broken")
    file.write_bytes("\n".join(requests).encode() + b"\n\xff\nfine too\n")
    done = cli("send", "--timeout", NONE_IN_TIME, "--file", str(file))
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 3
    assert "line 4: " in done.stderr
    assert "line 5: the request is not UTF-8 text" in done.stderr
    assert "4 sent, 2 completed, 1 failed, 1 without an answer, 2 not sent in " in done.stderr
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
