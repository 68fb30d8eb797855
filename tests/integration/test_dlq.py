from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import time
from collections import Counter
from datetime import UTC, datetime

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)
from kafka import KafkaConsumer, KafkaProducer

from gigaoffice_worker.config import load
from gigaoffice_worker.core.dead_letters import Filters
from gigaoffice_worker.core.messages import RecordEncoder
from gigaoffice_worker.core.records import Failure, Reason, Record
from gigaoffice_worker.operations.replay import Replay
from tests.conftest import TopicSet, settings
from tests.support import batches, wire
from tests.support.batches import RawRecord
from tests.support.commands import Cli
from tests.support.forked import PATHS
from tests.support.listeners import AUTHORIZED, scram_user, with_login
from tests.support.releases import OwnKafka
from tests.support.scene import MARKER, Scene, ask
from tests.support.waiting import eventually

BEFORE = time.time()


class Desk:
    """The topics of a test with letters in them, and the command to be tried on them."""

    def __init__(self, bootstrap: str, topics: TopicSet) -> None:
        self.bootstrap = bootstrap
        self.topics = topics
        self._cli = Cli({"PYTHONPATH": PATHS, **settings(bootstrap, topics)}, timeout=60)

    def make(self, *, requests: int = 3, dlq: int = 1, config=None, dlq_config=None) -> Desk:
        wire.create_topics(self.bootstrap, {self.topics.dlq: dlq}, config=dlq_config)
        wire.create_topics(self.bootstrap, {self.topics.requests: requests}, config=config)
        return self

    def put(self, *letters: tuple, partition: int = 0, **producer: int) -> None:
        wire.produce(self.bootstrap, self.topics.dlq, letters, partition=partition, **producer)

    def letter(
        self,
        name: str,
        reason: Reason = Reason.ATTEMPTS_EXHAUSTED,
        error: str = "ModelError",
        headers: wire.Headers = (),
        value: bytes | None = None,
        partition: int = 2,
    ) -> tuple:
        """Return a dead letter as the worker writes it."""
        value = value or json.dumps({"id": name, "query": MARKER}).encode()
        original = Record(self.topics.requests, partition, 5, 0.0, name.encode(), value, headers)
        letter = RecordEncoder("", self.topics.dlq, "g", "1").dead_letter(
            original, reason, Failure(error, "no answer"), 5, time.time()
        )
        return letter.key, letter.value, letter.headers

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self._cli("dlq", *arguments, **environment)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return self._cli.start("dlq", *arguments)

    def requests(self) -> list[wire.Rec]:
        return wire.read_all(self.bootstrap, self.topics.requests)

    def count(self) -> int:
        return sum(wire.end_offsets(self.bootstrap, self.topics.requests).values())

    def wait_for(self, count: int) -> None:
        eventually(lambda: self.count() >= count, f"{count} replayed letters")

    def group(self, filters: Filters = Filters()) -> str:  # noqa: B008  # frozen
        return filters.group(self.topics.group, self.topics.dlq, self.topics.requests)

    def progress(self, filters: Filters = Filters()) -> int | None:  # noqa: B008  # frozen
        found = wire.committed(self.bootstrap, self.group(filters), self.topics.dlq)
        return found[0][0] if 0 in found else None


@pytest.fixture
def desk(kafka_bootstrap, topic_set):
    return Desk(kafka_bootstrap, topic_set)


# list


def test_list_counts_by_reason_and_then_names_the_letters(desk):
    desk.make(dlq=2)
    desk.put(desk.letter("r-1"), desk.letter("r-2"))
    desk.put(desk.letter("r-3", Reason.REJECTED, "RejectedError"), partition=1)
    done = desk("list")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:4] == [f"3 dead letters in {desk.topics.dlq}", "  2  attempts-exhausted", "  1  rejected", ""]
    assert lines[4].split() == ["DEAD", "LETTER", "WRITTEN", "REASON", "ERROR", "TYPE", "REPLAYS", "REQUEST", "MESSAGE"]
    rows = [line.split() for line in lines[5:]]
    assert [[row[0], *row[2:6]] for row in rows] == [
        ["0:0", "attempts-exhausted", "ModelError", "0", "r-1"],
        ["0:1", "attempts-exhausted", "ModelError", "0", "r-2"],
        ["1:0", "rejected", "RejectedError", "0", "r-3"],
    ]
    assert MARKER not in done.stdout


@pytest.mark.parametrize(
    "filters,found",
    [
        (["--reason", "rejected"], ["r-2"]),
        (["--reason", "rejected", "--reason", "timed-out"], ["r-2", "r-3"]),
        (["--error-type", "ModelError"], ["r-1"]),
        (["--request-id", "r-3"], ["r-3"]),
        (["--partition", "1"], ["r-3"]),
        (["--since", "1h"], ["r-1", "r-2", "r-3"]),
        (["--since", datetime.fromtimestamp(BEFORE, UTC).isoformat()], ["r-1", "r-2", "r-3"]),
        (["--limit", "1"], ["r-3"]),
        (["--until", "2020-01-01"], []),
        (["--until", "1h"], []),
        (["--since", "2100-01-01"], []),
    ],
)
def test_list_shows_what_fits_as_json_lines(desk, filters, found):
    desk.make(dlq=2)
    desk.put(desk.letter("r-1"), desk.letter("r-2", Reason.REJECTED, "RejectedError"))
    desk.put(desk.letter("r-3", Reason.TIMED_OUT, "TimeoutError"), partition=1)
    done = desk("list", "--json", *filters)
    letters = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(letter["request_id"] for letter in letters) == found
    assert done.returncode == (0 if found else 1)
    assert ("fits the filters" in done.stderr) is not bool(found)
    assert MARKER not in done.stdout


def test_list_of_an_empty_topic_says_that_there_is_nothing(desk):
    done = desk.make()("list")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: there are no dead letters in {desk.topics.dlq}\n"


# show


def test_show_tells_all_of_a_letter_but_its_payload(desk):
    desk.make().put(desk.letter("r-1", headers=[("tenant", b"a\x1b[31m"), ("empty", None)]))
    by_place, by_request, whole = desk("show", "0:0"), desk("show", "r-1"), desk("show", "0:0", "--payload")
    assert [done.returncode for done in (by_place, by_request, whole)] == [0, 0, 0]
    assert by_place.stdout == by_request.stdout
    assert f"came from   {desk.topics.requests}-2-5\n" in by_place.stdout
    assert "  tenant: a\\u001b[31m\n  empty: null\n" in by_place.stdout
    assert MARKER not in by_place.stdout
    assert f'    "query": "{MARKER}"\n' in whole.stdout
    document = json.loads(desk("show", "0:0", "--json").stdout)
    assert document["headers"] == [{"name": "tenant", "value": "a\x1b[31m"}, {"name": "empty", "value": None}]
    assert "payload" not in document


@pytest.mark.parametrize(
    "letter,code,told",
    [
        ("0:1", 1, "there is no dead letter 0:1; partition 0 holds 0 to 0"),
        ("7:0", 2, "has the partitions 0 to 0"),
        ("r-2", 1, "there is no dead letter of a request r-2"),
    ],
)
def test_show_of_a_letter_that_is_not_there_says_so(desk, letter, code, told):
    desk.make().put(desk.letter("r-1"))
    done = desk("show", letter)
    assert (done.returncode, done.stdout) == (code, "")
    assert told in done.stderr


# replay


def test_replay_puts_back_what_was_sent_and_counts_it(desk):
    desk.make()
    headers = [("traceparent", b"00-1"), ("x", b"1"), ("x", b"2"), ("source-topic", b"its own")]
    desk.put(desk.letter("r-1", headers=headers, value=b"\x00no json\xff", partition=1))
    desk.put((None, None, [("dlq-replays", b"1")]))
    done = desk("replay")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == f"2 dead letters replayed to {desk.topics.requests}"
    named, bare = sorted(desk.requests(), key=lambda rec: rec.key is None)
    assert (named.partition, named.key, named.value) == (1, b"r-1", b"\x00no json\xff")
    assert named.headers == [*headers, ("dlq-replays", b"1")]
    assert (bare.key, bare.value, bare.headers) == (None, None, [("dlq-replays", b"2")])
    assert len(wire.read_all(desk.bootstrap, desk.topics.dlq)) == 2


def test_replay_says_which_null_headers_could_not_come_back(desk):
    desk.make().put(desk.letter("r-1", headers=[("gone", None)]), desk.letter("r-2"))
    done = desk("replay")
    assert done.returncode == 0
    assert done.stderr == "0:0 (request r-1): its headers without a value were written with an empty one\n"
    assert {rec.key: rec.headers[0] for rec in desk.requests()}[b"r-1"] == ("gone", b"")


def test_replay_takes_only_what_fits_and_remembers_it_for_these_filters(desk):
    desk.make().put(desk.letter("r-1"), desk.letter("r-2", Reason.REJECTED), desk.letter("r-3"))
    exhausted = ("replay", "--reason", "attempts-exhausted")
    assert desk(*exhausted).returncode == 0
    assert [rec.key for rec in desk.requests()] == [b"r-1", b"r-3"]
    nothing = desk(*exhausted)
    assert nothing.returncode == 1
    assert "nothing is left to replay" in nothing.stderr
    desk.put(desk.letter("r-4"))
    assert desk(*exhausted).returncode == 0
    assert desk("replay", "--reason", "rejected").returncode == 0
    assert [rec.key for rec in desk.requests()] == [b"r-1", b"r-3", b"r-4", b"r-2"]
    assert desk(*exhausted, "--restart").returncode == 0
    assert Counter(rec.key for rec in desk.requests()) == {b"r-1": 2, b"r-3": 2, b"r-4": 2, b"r-2": 1}


def test_replay_before_a_time_that_moves_leaves_later_letters_for_later(desk):
    desk.make().put(desk.letter("r-1"))
    assert desk("replay", "--until", "1h").returncode == 1
    eventually(lambda: desk("replay", "--until", "0.1s").returncode == 0, "the letter to be older than that")
    first = desk.count()
    desk("replay", "--until", "0.1s")
    assert (first, desk.count()) == (1, 1)


def test_a_dry_run_changes_nothing(desk):
    desk.make().put(desk.letter("r-1"), desk.letter("r-2"))
    done = desk("replay", "--dry-run")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == f"2 dead letters would be replayed to {desk.topics.requests}"
    assert (desk.count(), desk.progress()) == (0, None)


def test_replay_skips_and_names_what_has_been_replayed_too_often(desk):
    desk.make().put(desk.letter("r-1", headers=[("dlq-replays", b"3")]), desk.letter("r-2"))
    done = desk("replay")
    assert done.returncode == 1
    assert "skipped 0:0 (request r-1): replayed 3 times already" in done.stderr
    assert [rec.key for rec in desk.requests()] == [b"r-2"]
    assert desk("replay", "--restart", "--max-replays", "4").returncode == 0
    assert {rec.key: rec.header("dlq-replays") for rec in desk.requests()} == {b"r-1": b"4", b"r-2": b"1"}


def test_a_letter_that_is_too_large_takes_no_other_with_it(desk):
    desk.make(requests=1, config={"max.message.bytes": "5000"})
    desk.put(desk.letter("r-1", partition=0), desk.letter("large", value=os.urandom(6000), partition=0))
    desk.put(desk.letter("r-3", partition=0))
    done = desk("replay")
    assert done.returncode == 1
    assert f"not replayed 0:1 (request large): it is larger than {desk.topics.requests} takes" in done.stderr
    assert "2 dead letters replayed" in done.stdout
    assert sorted(rec.key for rec in desk.requests()) == [b"r-1", b"r-3"]
    assert desk.progress() == 3


def test_a_letter_goes_back_although_its_request_came_packed_better_than_we_pack(desk):
    desk.make(requests=1, config={"max.message.bytes": "5000"})
    value = b'{"text":"%s"}' % (b"yes " * 5_000)
    desk.put(desk.letter("large", value=value, partition=0))
    assert desk("replay", KAFKA_PRODUCER_COMPRESSION_TYPE="none").returncode == 0
    assert [rec.value for rec in desk.requests()] == [value]


@pytest.mark.parametrize("seconds", ["8", "80000"])  # the limit of one request is 10
def test_a_replay_takes_any_time_limit(desk, seconds):
    desk.make().put(desk.letter("r-1"))
    assert desk("replay", "--timeout", seconds).returncode == 0
    assert desk.count() == 1


def test_the_end_of_a_replay_is_fixed_when_it_begins(desk):
    desk.make().put(*(desk.letter(f"r-{number}") for number in range(4)))
    with desk.start("replay", "--rate", "2") as run:
        desk.wait_for(1)
        desk.put(desk.letter("late"))
        assert run.wait(30) == 0
        assert "4 dead letters replayed" in run.stdout.read()
    assert b"late" not in {rec.key for rec in desk.requests()}
    assert desk.progress() == 4


def test_a_rate_is_not_exceeded(desk):
    desk.make().put(*(desk.letter(f"r-{number}") for number in range(11)))
    assert desk("replay", "--rate", "10").returncode == 0
    times = sorted(rec.timestamp for rec in desk.requests())
    assert times[-1] - times[0] >= 900  # ten pauses of 100 ms


def test_a_killed_replay_repeats_no_more_than_what_was_not_committed(desk):
    desk.make().put(*(desk.letter(f"r-{number}") for number in range(200)))
    with desk.start("replay", "--rate", "10") as run:
        desk.wait_for(15)
        run.kill()
        run.wait(10)
    assert 0 < desk.count() < 200
    committed = desk.progress()
    assert committed > 0
    assert desk("replay").returncode == 0
    found = Counter(int(rec.key[2:]) for rec in desk.requests())
    # What the cluster has taken but was not told of as committed: one second's worth, and what was under way. Its last
    # words may still have been on their way when it was killed, so only the end tells how far it had come.
    again = sorted(number for number, times in found.items() if times == 2)
    assert again == list(range(min(again, default=0), max(again, default=-1) + 1))
    assert min(again, default=committed) >= committed
    assert len(again) <= 12
    assert found == {number: 2 if number in again else 1 for number in range(200)}


def test_an_interrupted_replay_repeats_nothing(desk):
    desk.make().put(*(desk.letter(f"r-{number}") for number in range(200)))
    with desk.start("replay", "--rate", "5") as run:
        desk.wait_for(5)
        run.send_signal(signal.SIGINT)
        assert run.wait(20) == 130
        assert "dead letters replayed" in run.stdout.read()
    assert 5 <= desk.count() < 200
    assert desk("replay").returncode == 0
    assert sorted(int(rec.key[2:]) for rec in desk.requests()) == list(range(200))


@pytest.mark.parametrize("ended", [False, True], ids=["begins", "ends"])
@pytest.mark.parametrize(
    "call", [(KafkaConsumer, "committed", 3), (KafkaConsumer, "commit", 2), (KafkaProducer, "partitions_for", 8)]
)
def test_an_interrupt_where_a_call_of_the_client_begins_or_ends_repeats_nothing(desk, monkeypatch, call, ended):
    desk.make().put(*(desk.letter(f"r-{number}") for number in range(12)))
    kind, name, number = call
    real, calls = getattr(kind, name), itertools.count(1)

    def interrupted(*arguments, **options):
        due = next(calls) == number
        found = real(*arguments, **options) if ended or not due else None
        if due:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(kind, name, interrupted)
    config = load(settings(desk.bootstrap, desk.topics))
    with pytest.raises(KeyboardInterrupt), Replay(config, Filters(), timeout=20, max_replays=3, rate=5) as replay:
        list(replay.run())
    assert 0 < desk.count() < 12
    assert desk.progress() == desk.count()


def test_of_two_replays_with_the_same_filters_one_ends(desk):
    desk.make().put(*(desk.letter(f"r-{number}") for number in range(120)))
    with desk.start("replay", "--rate", "4") as first:
        desk.wait_for(4)
        with desk.start("replay", "--rate", "4") as second:
            codes = sorted([first.wait(120), second.wait(120)])
            told = first.stdout.read() + second.stdout.read()
    assert codes == [0, 1]
    assert told.count("another replay with the same filters is running") == 1
    assert {int(rec.key[2:]) for rec in desk.requests()} == set(range(120))


# From the failing model to the answers


def test_dead_letters_of_a_failing_model_are_answered_when_it_is_mended(scene: Scene):
    scene.make()
    broken = scene.file("broken")
    scene.ready(WORKER_MAX_ATTEMPTS="1")
    desk = Desk(scene.bootstrap, scene.topics)
    scene.send(*(ask(f"r-{number}", do="while_file", file=str(broken)) for number in range(3)))
    assert {response.status for response in scene.wait_responses(3)} == {"failed"}
    assert desk("replay").returncode == 0
    assert {response.status for response in scene.wait_responses(6)} == {"failed"}
    assert [rec.header("dlq-replays") for rec in scene.dead_letters()[3:]] == [b"1"] * 3
    broken.unlink()
    assert desk("replay").returncode == 0
    answered = scene.wait_responses(9)[6:]
    assert {(response.id, response.status) for response in answered} == {(f"r-{n}", "completed") for n in range(3)}
    assert [rec.header("dlq-replays") for rec in desk.requests()[6:]] == [b"2"] * 3
    assert scene.count(scene.topics.dlq) == 6


# What goes wrong


@pytest.mark.parametrize("command", [["list"], ["show", "0:0"], ["replay"]])
def test_a_cluster_that_is_not_there_is_69_and_a_topic_that_is_not_there_is_named(desk, command):
    unreachable = desk(*command, KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1")
    assert unreachable.returncode == 69
    assert "connection refused" in unreachable.stderr
    missing = desk(*command)
    assert missing.returncode == 1
    assert f"there is no topic {desk.topics.dlq}" in missing.stderr
    wrong = desk(*command, KAFKA_BOOTSTRAP_SERVERS="nowhere")
    assert wrong.returncode == 78
    assert "KAFKA_BOOTSTRAP_SERVERS" in wrong.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["list", "--since", "yesterday"],
        ["list", "--since", "1h", "--until", "2h"],
        ["list", "--reason", "bad-luck"],
        ["list", "--limit", "0"],
        ["list", "--partition", "9"],
        ["show"],
        ["replay", "--rate", "0"],
        ["replay", "--max-replays", "none"],
    ],
)
def test_wrong_usage_is_2(desk, arguments):
    assert desk.make()(*arguments).returncode == 2
    assert desk.count() == 0


def test_no_payload_is_logged_at_any_level(desk):
    large = {"max.message.bytes": "5000000"}
    desk.make(config=large, dlq_config=large)
    desk.put(
        desk.letter("r-1"), desk.letter("r-2", value=b" " * 2_000_000 + MARKER.encode()), message_max_bytes=5_000_000
    )
    for command in (["list"], ["show", "0:0"], ["replay"]):
        done = desk(*command, LOG_LEVEL="DEBUG")
        assert '"event":' in done.stderr
        assert MARKER not in done.stdout + done.stderr


@pytest.fixture(scope="module")
def guarded():
    """A cluster that knows who asks, and permits that user nothing."""
    with OwnKafka(
        listeners={"CLIENT": "SASL_PLAINTEXT"},
        properties={**AUTHORIZED, **with_login("client", ["SCRAM-SHA-256"])},
        format_options=scram_user("worker", "secret"),
    ) as cluster:
        yield cluster


LOGIN = {"KAFKA_SASL_USERNAME": "worker", "KAFKA_SASL_MECHANISM": "SCRAM-SHA-256", "KAFKA_SASL_PASSWORD": "secret"}


@pytest.fixture
def guarded_desk(guarded, topic_set):
    wire.create_topics(guarded.bootstrap("BROKER"), {topic_set.dlq: 1, topic_set.requests: 1})
    letter = Desk("", topic_set).letter("r-1")
    wire.produce(guarded.bootstrap("BROKER"), topic_set.dlq, [letter])
    return Desk(guarded.bootstrap_servers, topic_set)


def allow(cluster: OwnKafka, kind: ResourceType, name: str, operation: AclOperation) -> None:
    pattern = ResourcePatternType.PREFIXED if kind is ResourceType.GROUP else ResourcePatternType.LITERAL
    binding = AclBinding(kind, name, pattern, "User:worker", "*", operation, AclPermissionType.ALLOW)
    wire.create_acls(cluster.bootstrap("BROKER"), [binding])


def test_a_refused_password_is_77(guarded_desk):
    done = guarded_desk("list", **{**LOGIN, "KAFKA_SASL_PASSWORD": "wrong"})
    assert done.returncode == 77
    assert "authentication failed" in done.stderr


def test_each_right_that_is_missing_is_named_with_77_until_all_are_there(guarded, guarded_desk, topic_set):
    for kind, name, operation in (
        (ResourceType.TOPIC, topic_set.dlq, AclOperation.READ),
        (ResourceType.GROUP, f"{topic_set.group}-dlq-replay-", AclOperation.READ),
        (ResourceType.TOPIC, topic_set.requests, AclOperation.WRITE),
    ):
        done = guarded_desk("replay", **LOGIN)
        assert done.returncode == 77, done.stderr
        assert f"{operation.name} on the {kind.name.lower()} {name}" in done.stderr
        allow(guarded, kind, name, operation)
    assert guarded_desk("replay", **LOGIN).returncode == 0


def test_a_cluster_that_goes_away_ends_the_replay_which_goes_on_later(topic_set):
    with OwnKafka() as cluster:
        desk = Desk(cluster.bootstrap_servers, topic_set).make()
        # Twenty seconds of work, so that the cluster goes away in the middle of it.
        desk.put(*(desk.letter(f"r-{number}") for number in range(200)))
        assert desk("replay", "--dry-run").returncode == 0  # a new cluster makes the topic of groups when first asked
        with desk.start("replay", "--rate", "10", "--timeout", "8") as run:
            desk.wait_for(15)
            cluster.freeze()
            assert run.wait(60) == 69
            told = run.stdout.read()
        cluster.thaw()
        assert told.count("error: ") == 1
        assert "dead letters replayed" in told
        assert desk("replay").returncode == 0
        found = Counter(int(rec.key[2:]) for rec in desk.requests())
        assert set(found) == set(range(200))
        assert found.total() < 200 + 15


def test_a_letter_that_the_client_cannot_decode_is_named_and_ends_the_command(desk):
    desk.make().put(desk.letter("r-0"))
    at = batches.produce(desk.bootstrap, desk.topics.dlq, batches.batch([RawRecord(b"k", b"{}", ((b"\xff", b"v"),))]))
    for command in ("list", "replay"):
        done = desk(command)
        assert done.returncode == 1
        assert f"record 0-{at} cannot be decoded: a header name is not UTF-8" in done.stderr
