"""The least rights of each command: with exactly these it works, and without any one it says which is missing."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from tests.conftest import settings
from tests.support import tables, wire
from tests.support.forked import ROOT
from tests.support.listeners import AUTHORIZED, with_login
from tests.support.releases import OwnKafka
from tests.support.waiting import eventually
from tests.support.workers import WorkerProcess, run_command

PASSWORD = "secret-of-the-account"


class Right(NamedTuple):
    """An operation on one of the topics or on the group; `what` names it as docs/security.md does."""

    operation: AclOperation
    what: str

    def __str__(self) -> str:
        return f"{self.operation.name} on {self.what}"


READ, WRITE, DESCRIBE, CREATE = (AclOperation[name] for name in ("READ", "WRITE", "DESCRIBE", "CREATE"))
SERVING = (
    Right(READ, "the request topic"),
    Right(WRITE, "the response topic"),
    Right(WRITE, "the dead letter topic"),
    Right(READ, "the group"),
)
TOPICS = ("the request topic", "the response topic", "the dead letter topic")


class Command(NamedTuple):
    arguments: tuple[str, ...]
    rights: tuple[Right, ...]


COMMANDS = {
    "run": Command(("run",), SERVING),
    "check": Command(("check",), SERVING),
    "topics": Command(("topics",), tuple(Right(each, topic) for topic in TOPICS for each in (DESCRIBE, CREATE))),
    "dlq list": Command(("dlq", "list"), (Right(READ, "the dead letter topic"),)),
    "dlq show": Command(("dlq", "show", "r-1"), (Right(READ, "the dead letter topic"),)),
    "dlq replay": Command(
        ("dlq", "replay"),
        (
            Right(READ, "the dead letter topic"),
            Right(WRITE, "the request topic"),
            Right(READ, "the group of replays"),
        ),
    ),
    "send": Command(("send", "hello"), (Right(WRITE, "the request topic"), Right(READ, "the response topic"))),
    "send --no-wait": Command(("send", "--no-wait", "hello"), (Right(WRITE, "the request topic"),)),
}
PAIRS = [(name, right) for name, command in COMMANDS.items() for right in command.rights]


@pytest.fixture(scope="module")
def cluster():
    """A cluster on which the user `worker` may do nothing."""
    properties = {**AUTHORIZED, **with_login("client", ["PLAIN"], worker=PASSWORD)}
    with OwnKafka(listeners={"CLIENT": "SASL_PLAINTEXT"}, properties=properties) as running:
        yield running


class Account:
    """The rights of the user on the topics of one test."""

    def __init__(self, cluster, topic_set):
        self._door = cluster.bootstrap("BROKER")
        self._places = {
            "the request topic": (ResourceType.TOPIC, topic_set.requests, ResourcePatternType.LITERAL),
            "the response topic": (ResourceType.TOPIC, topic_set.responses, ResourcePatternType.LITERAL),
            "the dead letter topic": (ResourceType.TOPIC, topic_set.dlq, ResourcePatternType.LITERAL),
            "the group": (ResourceType.GROUP, topic_set.group, ResourcePatternType.LITERAL),
            "the group of replays": (
                ResourceType.GROUP,
                f"{topic_set.group}-dlq-replay-",
                ResourcePatternType.PREFIXED,
            ),
        }

    def give(self, *rights):
        wire.create_acls(self._door, map(self._acl, rights))

    def take(self, right):
        wire.delete_acls(self._door, [self._acl(right)])

    def _acl(self, right):
        resource, name, pattern = self._places[right.what]
        return AclBinding(resource, name, pattern, "User:worker", "*", right.operation, AclPermissionType.ALLOW)


@pytest.fixture
def account(cluster, topic_set):
    return Account(cluster, topic_set)


@pytest.fixture
def environment(cluster, topic_set):
    return {
        **settings(cluster.bootstrap_servers, topic_set),
        "KAFKA_SASL_MECHANISM": "PLAIN",
        "KAFKA_SASL_USERNAME": "worker",
        "KAFKA_SASL_PASSWORD": PASSWORD,
        "METRICS_PORT": "0",
    }


@pytest.fixture
def present(cluster, topic_set):
    """Topics that exist, with a dead letter; for `topics` nothing exists."""
    door = cluster.bootstrap("BROKER")
    wire.create_topics(door, {topic_set.requests: 3, topic_set.responses: 3, topic_set.dlq: 1})
    headers = [("dlq-reason", b"rejected"), ("source-topic", topic_set.requests.encode())]
    headers += [("source-partition", b"0"), ("source-offset", b"0"), ("dlq-timestamp", b"2026-01-01T00:00:00Z")]
    wire.produce(door, topic_set.dlq, [(b"r-1", b'{"id": "r-1"}', headers)])


@pytest.mark.parametrize("name", [each for each in COMMANDS if each not in {"run", "send"}])
def test_a_command_works_with_exactly_its_rights(account, environment, request, name):
    if name != "topics":
        request.getfixturevalue("present")
    account.give(*COMMANDS[name].rights)
    done = run_command(environment, *COMMANDS[name].arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_worker_and_requester_work_with_exactly_their_rights_although_creation_is_denied(
    account, environment, present, tmp_path
):
    account.give(*SERVING, *COMMANDS["send"].rights)
    with WorkerProcess(tmp_path, {**environment, "WORKER_HANDLER": "echo"}) as worker:
        worker.wait_ready()
        done = run_command(environment, "send", "hello")
        assert done.returncode == 0, done.stdout + done.stderr
        eventually(lambda: worker.metric("commits_total", result="ok"), "a commit")
        assert worker.stop() == 0


def test_responses_of_a_key_keep_their_order_while_the_right_to_write_is_taken_and_given_back(
    cluster, topic_set, account, environment, present, tmp_path
):
    account.give(*SERVING)
    door, write = cluster.bootstrap("BROKER"), Right(WRITE, "the response topic")
    with WorkerProcess(tmp_path, {**environment, "WORKER_HANDLER": "echo", "WORKER_CONCURRENCY": "64"}) as worker:
        worker.wait_ready()
        for turn in range(15):
            numbers = range(turn * 600, turn * 600 + 600)
            wire.produce(door, topic_set.requests, [(b"k%d" % (n % 30), b'{"id": "r%d"}' % n, []) for n in numbers])
            # While they are answered, so that some batches are refused and newer ones would not be.
            account.take(write)
            account.give(write)
        assert worker.metric("messages_failed_total", reason="publish") > 0
        wanted = {f"r{n}" for n in range(9000)}
        eventually(lambda: sum(wire.end_offsets(door, topic_set.responses).values()) >= 9000, "answers", timeout=60)
        responses = wire.read_all(door, topic_set.responses)
        assert sorted(json.loads(each.value)["request_id"] for each in responses) == sorted(wanted)
        newest = {}
        for each in responses:
            place = each.key, each.header("source-partition")
            assert int(each.header("source-offset")) > newest.get(place, -1)
            newest[place] = int(each.header("source-offset"))
        assert worker.metric("producer_rebuilds_total") == 0
        assert worker.stop() == 0


def test_topics_that_exist_need_no_right_to_create(account, environment, present):
    account.give(*(Right(DESCRIBE, topic) for topic in TOPICS))
    assert run_command(environment, "topics").returncode == 0


@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
def test_without_any_one_of_its_rights_a_command_says_which_is_missing(
    account, environment, request, topic_set, cluster, name
):
    if name != "topics":
        request.getfixturevalue("present")
    rights = COMMANDS[name].rights
    account.give(*rights)
    for missing in rights:
        account.take(missing)
        done = run_command(environment, *COMMANDS[name].arguments)
        said = done.stdout + done.stderr
        assert done.returncode == 77, f"without {missing}: {said}"
        assert "Traceback" not in said
        assert PASSWORD not in said
        error, mend = told(name, done)
        assert "authorization failed" in error, f"without {missing}: {error}"
        assert missing.operation.name in mend, f"without {missing}: {mend}"
        if name == "run":
            logged = [line for line in lines(said) if line.get("level") == "error"]
            assert any(missing.operation.name in line.get("hint", "") for line in logged), (missing, logged)
        tables.write(
            "acls",
            without=f"`{name}` without {missing}",
            says=general(error, topic_set),
            mend=general(mend, topic_set),
            exit="77",
        )
        account.give(missing)


def test_the_table_has_every_right_of_every_command():
    document = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    assert tables.first_cells(document, "acls") == [f"`{name}` without {right}" for name, right in PAIRS]


def test_the_table_of_rights_has_a_line_for_every_right():
    document = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    section = document.partition("## Rights")[2].partition("\n## ")[0]
    for name, right in PAIRS:
        row = next(row for row in section.splitlines() if row.startswith("|") and f"`{name}`" in row)
        assert f"{right.operation.name} on" in row, f"{name}: {right}"
        assert right.what.removeprefix("the ") in row, f"{name}: {right}"


def told(name, done):
    """Return the error and the mend that a command ended with; `check` has them in its list."""
    if name == "check":
        found = re.search(r"✗ ([^\n]*)\n\s*([^\n]*)", done.stdout)
        return found[1], found[2]
    error, _, hint = done.stderr.rpartition("error: ")[2].partition("hint: ")
    return " ".join(error.split()), " ".join(hint.split())


def lines(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def general(text, names):
    """Put what the topics and the group are for the names that this test gave them."""
    for name, role in ((names.requests, "REQUESTS"), (names.responses, "RESPONSES"), (names.dlq, "DLQ")):
        text = text.replace(name, role)
    return re.sub(r"-dlq-replay-\w+", "-dlq-replay-…", text.replace(names.group, "GROUP"))
