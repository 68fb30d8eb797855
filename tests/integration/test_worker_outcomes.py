"""What comes of a request: exactly one outcome, in the form that the contract gives it."""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import datetime
from typing import NamedTuple

import pytest

from gigaoffice_worker import __version__
from tests.support import wire
from tests.support.scene import MARKER, Sent, ask, check_once
from tests.support.waiting import eventually

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HEADERS: wire.Headers = [
    ("again", b"1"),
    ("traceparent", TRACE),
    ("none", None),
    ("again", b"\xff\x00"),
    ("tracestate", b"a=1"),
    ("empty", b""),
    ("none-too", None),
    ("again", b"1"),
]
ABOUT = {
    "dlq-reason",
    "dlq-error-type",
    "dlq-error-message",
    "dlq-attempts",
    "dlq-timestamp",
    "dlq-consumer-group",
    "dlq-worker-version",
}
SOURCE = {"source-topic", "source-partition", "source-offset", "source-timestamp"}
LONG = f"что-то пошло не так: {MARKER} " * 100


class Case(NamedTuple):
    """A request that ends in the dead letter queue. `answered`: the id of its failed response, None without one."""

    sent: Sent
    reason: str
    error: str | None
    attempts: int
    answered: str | None


def invalid(value: bytes | None, key: bytes | None, answered: str | None, headers: wire.Headers | None = None) -> Case:
    return Case((key, value, headers or []), "invalid-request", None, 0, answered)


DEAD = {
    "null": invalid(None, b"null", "null"),
    "null-all": invalid(None, None, None),
    "null-with-headers": invalid(None, None, None, HEADERS),
    "empty": invalid(b"", b"empty", "empty", HEADERS),
    "not-utf-8": invalid(b'{"id": "\xff"}', b"\xff\xfe", None),
    "truncated": invalid(b'{"id": "truncated", "query": "' + MARKER.encode(), None, None),
    "array": invalid(b'["array"]', b"", None, HEADERS),
    "text": invalid(b'"text"', b"text", "text"),
    "number": invalid(b"12", "ключ".encode(), "ключ"),
    "null-literal": invalid(b"null", b"null-literal", "null-literal"),
    "not-a-number": invalid(b'{"id": "x", "n": NaN}', None, None),
    "too-deep": invalid(b'{"a":' * 100_000, None, None),
    "two-values": invalid(b'{"id": "two"}{"id": "values"}', b"two-values", "two-values"),
    "id-number": invalid(b'{"id": 7}', b"id-number", "id-number"),
    "id-empty": invalid(b'{"id": ""}', b"id-empty", "id-empty"),
    "id-null": invalid(b'{"id": null}', b"id-null", "id-null"),
    "id-boolean": invalid(b'{"id": true}', b"id-boolean", "id-boolean"),
    "id-object": invalid(b'{"id": {"a": 1}}', b"id-object", "id-object"),
    "id-array-without-key": invalid(b'{"id": []}', None, "(place)"),
    "id-number-key-not-utf-8": invalid(b'{"id": 7}', b"\xff", "(place)"),
    "rejected": Case(
        ask("rejected", b"r", HEADERS, do="reject", message=LONG), "rejected", "RejectedError", 1, "rejected"
    ),
    "exhausted": Case(
        ask("exhausted", "e", do="fail", message=MARKER), "attempts-exhausted", "ValueError", 2, "exhausted"
    ),
    "transient": Case(ask("transient", None, do="transient"), "attempts-exhausted", "TransientError", 2, "transient"),
    "exiting": Case(ask("exiting", b"", do="exit"), "attempts-exhausted", "SystemExit", 2, "exiting"),
    "timed-out": Case(ask("timed-out", "t", HEADERS, do="hang", hang_seconds=18), "timed-out", None, 2, "timed-out"),
    "verbose": Case(
        ask("verbose", "v", do="reject", message="ж", times=3_000_000), "rejected", "RejectedError", 1, "verbose"
    ),
    "replayed": Case(
        ask("replayed", "p", [("dlq-reason", b"old"), ("dlq-replays", b"1"), ("source-offset", b"9")], do="reject"),
        "rejected",
        "RejectedError",
        1,
        "replayed",
    ),
    "unserialisable": Case(
        ask("unserialisable", "u", do="unserialisable"), "unusable-result", None, 1, "unserialisable"
    ),
}
ANSWERED = {
    "plain": ask("plain", "plain", HEADERS),
    "unsuccessful": ask("unsuccessful", "unsuccessful", do="unsuccessful"),
    "without-key": ask("without-key", None),
    "key-not-utf-8": ask("key-not-utf-8", b"\x00\xff"),
    "second-attempt": ask("second-attempt", "second", do="fail", until_attempt=2),
    "great": ask(
        "great",
        "great",
        [("correlation_id", b"c-1"), ("other", b"o")],
        query=[2**80, 0.1, "Ω≠😀", {"": None}, [], True],
    ),
    "by-key": ask(None, "by-key"),
    "by-place": ask(None, None),
    "by-place-key-not-utf-8": ask(None, b"\xff"),
    "by-place-key-empty": ask(None, b""),
}
NEIGHBOURS = [ask(f"neighbour-{n}", f"n{n % 5}") for n in range(20)]


class Shown(NamedTuple):
    """Everything that came of the requests above, by their names."""

    scene: object
    worker: object
    places: dict
    responses: dict
    letters: dict


@pytest.fixture(scope="module")
def shown(shared_scene):
    """All of the requests above, sent among neighbours to one worker, and settled."""
    scene = shared_scene.make(requests=3, responses=3)
    worker = scene.ready(
        WORKER_MAX_ATTEMPTS="2",
        WORKER_RETRY_DELAY="0.05",
        WORKER_ATTEMPT_TIMEOUT="6",  # time enough for the calls that are to end, on a busy machine too
        WORKER_STORM_GUARD="off",
        WORKER_CONCURRENCY="4",
        LOG_LEVEL="DEBUG",  # so that its log lines are looked at too
    )
    named = {**{name: case.sent for name, case in DEAD.items()}, **ANSWERED}
    places = dict(zip(named, scene.send(*named.values()), strict=True))
    scene.send(*NEIGHBOURS)
    scene.wait_committed(60)
    responses: dict = {}
    for response in scene.responses():
        responses.setdefault(response.source, []).append(response)
    letters: dict = {}
    for letter in scene.dead_letters():
        place = (int(letter.header("source-partition")), int(letter.header("source-offset")))
        letters.setdefault(place, []).append(letter)
    return Shown(scene, worker, places, responses, letters)


@pytest.mark.parametrize("name", DEAD)
def test_dead_letter_is_the_record_byte_for_byte_with_the_reason_behind_it(shown, name):
    case = DEAD[name]
    key, value, headers = case.sent
    [letter] = shown.letters[shown.places[name]]
    assert (letter.key, letter.value) == (key, value)
    assert letter.headers[: len(headers)] == [(header, text if text is not None else b"") for header, text in headers]
    added = dict(letter.headers[len(headers) :])
    nulls = [header for header, text in headers if text is None]
    sometimes = {
        "dlq-null-headers": bool(nulls),
        "dlq-replays": "dlq-replays" in dict(headers),
        "dlq-error-at": case.reason in {"rejected", "attempts-exhausted", "timed-out"},  # the handler's own line
    }
    expected = ABOUT | SOURCE | {header for header, due in sometimes.items() if due}
    assert added.keys() - {"traceparent", "tracestate"} == expected
    assert [each for each in added.get("dlq-null-headers", b"").decode().split(",") if each] == nulls
    assert added["dlq-reason"].decode() == case.reason
    assert case.error in {None, added["dlq-error-type"].decode()}
    assert re.fullmatch(r"|tests/support/handlers\.py:\d+ \w+", added.get("dlq-error-at", b"").decode())
    assert re.fullmatch(r"[A-Za-z]+", added["dlq-error-type"].decode())
    assert 0 < len(added["dlq-error-message"].decode()) <= 1000
    assert added["dlq-attempts"] == str(case.attempts).encode()
    assert datetime.fromisoformat(added["dlq-timestamp"].decode()).utcoffset().total_seconds() == 0
    assert added["dlq-consumer-group"].decode() == shown.scene.topics.group
    assert added["dlq-worker-version"].decode() == __version__
    assert added["source-topic"].decode() == shown.scene.topics.requests
    assert dict(letter.headers).get("traceparent") == dict(headers).get("traceparent")


@pytest.mark.parametrize("name", DEAD)
def test_requester_of_a_dead_letter_gets_one_failed_response_if_it_can_be_named(shown, name):
    case, place = DEAD[name], shown.places[name]
    expected = (
        f"{shown.scene.topics.requests}-{place.partition}-{place.offset}"
        if case.answered == "(place)"
        else case.answered
    )
    answers = shown.responses.get(place, [])
    assert [answer.id for answer in answers] == ([expected] if expected else [])
    for answer in answers:
        assert (answer.status, answer.result) == ("failed", None)
        assert answer.error["type"] == shown.letters[place][0].header("dlq-error-type").decode()
        assert answer.rec.key == case.sent[0]
        assert answer.rec.header("source-topic").decode() == shown.scene.topics.requests


@pytest.mark.parametrize("name", ANSWERED)
def test_answered_request_has_one_response_and_no_dead_letter(shown, name):
    place = shown.places[name]
    [answer] = shown.responses[place]
    assert place not in shown.letters
    assert answer.rec.key == ANSWERED[name][0]
    sent = json.loads(ANSWERED[name][1])
    by_place = f"{shown.scene.topics.requests}-{place.partition}-{place.offset}"
    assert answer.id == sent.get("id", by_place if name.startswith("by-place") else "by-key")
    if name == "unsuccessful":
        assert (answer.status, answer.error["type"]) == ("failed", "HandlerFailure")
        assert answer.result == {"success": False, "error": "the handler said no"}
    else:
        assert (answer.status, answer.error) == ("completed", None)
        assert answer.result["answer"] == sent["query"]
        assert answer.result["attempt"] == (2 if name == "second-attempt" else 1)


def test_trace_of_a_request_is_passed_on_to_its_response(shown):
    for name in ("plain", "empty", "rejected", "timed-out"):
        [answer] = shown.responses[shown.places[name]]
        assert (answer.rec.header("traceparent"), answer.rec.header("tracestate")) == (TRACE, b"a=1")
    [answer] = shown.responses[shown.places["great"]]
    assert {name for name, _ in answer.rec.headers} == SOURCE | {"correlation_id"}
    assert answer.rec.header("correlation_id") == b"c-1"


def test_both_records_tell_the_timestamp_of_their_request(shown):
    written = [answer.rec for found in shown.responses.values() for answer in found]
    written += [letter for found in shown.letters.values() for letter in found]
    requests = {
        (rec.partition, rec.offset): rec.timestamp
        for rec in wire.read_all(shown.scene.bootstrap, shown.scene.topics.requests)
    }
    told = {
        (int(rec.header("source-partition")), int(rec.header("source-offset"))): int(rec.header("source-timestamp"))
        for rec in written
    }
    assert told == {place: requests[place] for place in told}
    assert len(told) >= len(DEAD) + len(ANSWERED)


def test_neighbours_of_what_fails_are_answered(shown):
    answers = [answer for found in shown.responses.values() for answer in found]
    check_once(
        [answer for answer in answers if answer.id.startswith("neighbour")],
        [json.loads(sent[1])["id"] for sent in NEIGHBOURS],
    )


def test_processing_time_is_the_handlers_over_all_attempts(shown):
    [answer] = shown.responses[shown.places["timed-out"]]
    assert json.loads(answer.rec.value)["processing_time"] == pytest.approx(12, abs=5.4)


def test_statistics_tell_every_outcome_by_its_reason(shown):
    worker, reasons = shown.worker, Counter(case.reason for case in DEAD.values())
    for reason, count in reasons.items():
        assert worker.metric("messages_failed_total", reason=reason) == count
    assert worker.metric("requests_total", outcome="dead_lettered") == len(DEAD)
    assert worker.metric("requests_total", outcome="failed") == 1
    assert worker.metric("requests_total", outcome="completed") == len(ANSWERED) - 1 + len(NEIGHBOURS)
    responses, letters = shown.scene.count(shown.scene.topics.responses), shown.scene.count(shown.scene.topics.dlq)
    assert letters == len(DEAD)
    assert worker.metric("messages_sent_total", topic=shown.scene.topics.responses) == responses
    assert worker.metric("messages_sent_total", topic=shown.scene.topics.dlq) == letters
    statistics = json.loads(worker.ask("/health")[1])["statistics"]
    assert statistics["messages_received"] == len(DEAD) + len(ANSWERED) + len(NEIGHBOURS)
    assert statistics["messages_sent"] == responses + letters
    assert statistics["messages_failed"] == len(DEAD)
    calls = sum(shown.scene.starts().values())
    assert worker.metric("handler_attempts_total") == worker.metric("handler_duration_seconds_count") == calls


def test_handler_is_called_with_all_that_the_record_says(shown):
    scene = shown.scene
    sent = ask("described", b"k\xff", HEADERS, do="describe", extra={"nested": [1, None]})
    [place] = scene.send(sent)
    found = eventually(
        lambda: [answer for answer in scene.responses() if answer.id == "described"], "the description", interval=0.1
    )[0].result
    assert found.pop("age") == pytest.approx(0, abs=30)
    assert 0 < found.pop("remaining") <= 6
    assert found == {
        "id": "described",
        "payload": json.loads(sent[1]),
        "key": "k\xff",
        "headers": {
            "again": "1",
            "traceparent": TRACE.decode(),
            "none": "",
            "tracestate": "a=1",
            "empty": "",
            "none-too": "",
        },
        "attempt": 1,
        "source": [scene.topics.requests, *place],
    }


def test_handler_that_hung_on_is_told_as_a_late_result(shown):
    worker = shown.worker
    eventually(lambda: worker.metric("late_results_dropped_total") == 2, "two late results", timeout=40)
    eventually(lambda: worker.metric("handler_abandoned_threads") == 0, "the abandoned threads to end", timeout=40)
    assert worker.metric("handler_attempts_total", result="timed-out") == 2


def test_thousand_requests_have_a_thousand_responses_and_the_numbers_agree(scene):
    worker = scene.ready()
    sent = [ask(f"r{n}", f"k{n % 50}") for n in range(1000)]
    scene.send(*sent)
    scene.wait_committed()
    # The cluster knows of a commit before the worker does.
    eventually(lambda: worker.metric("committed_offset") == 1000, "the commit to be shown")
    statistics = json.loads(worker.ask("/health")[1])["statistics"]
    assert statistics == {
        "messages_sent": 1000,
        "messages_received": 1000,
        "messages_failed": 0,
        "topics_created": 3,
        "topic_creation_errors": 0,
    }
    for metric in ("messages_sent_total", "messages_received_total", "requests_total", "handler_attempts_total"):
        assert worker.metric(metric) == 1000, metric
    for metric in ("messages_failed_total", "requests_in_flight", "unsettled_outcomes", "consumer_lag_records"):
        assert worker.metric(metric) == 0, metric
    assert worker.stop() == 0
    check_once(scene.responses(), [f"r{n}" for n in range(1000)])
    assert scene.committed() == wire.end_offsets(scene.bootstrap, scene.topics.requests)
    assert scene.count(scene.topics.dlq) == 0
