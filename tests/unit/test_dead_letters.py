from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gigaoffice_worker.cli import dlq_text
from gigaoffice_worker.cli.dlq import filters_of
from gigaoffice_worker.cli.terminal import UsageError
from gigaoffice_worker.core.dead_letters import (
    Facts,
    Filters,
    Span,
    facts,
    names_all_nulls,
    progressed,
    read_moment,
    replay_headers,
    request_headers,
)
from gigaoffice_worker.core.messages import RecordEncoder
from gigaoffice_worker.core.records import Failure, Headers, Reason, Record, Source
from tests.support.making import record

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()
WIRE = RecordEncoder("responses", "dlq", "group", "1.0")


def dead(
    original: Record, reason: Reason = Reason.REJECTED, error: str = "ValueError", message: str = "no", at: str = ""
) -> Record:
    """Return the dead letter of a request, as it is read again."""
    letter = WIRE.dead_letter(original, reason, Failure(error, message, at), 5, NOW)
    return Record("dlq", 0, 7, NOW, letter.key, letter.value, letter.headers)


def again(letter: Record) -> Record:
    """Return the dead letter that a replayed one becomes when its request fails again."""
    return dead(record(1, letter.key, letter.value, replay_headers(letter)))


# What goes back

names = st.text(st.characters(exclude_characters=",", codec="utf-8"), min_size=1).filter(
    lambda name: not name.startswith("dlq-")
)
values = st.none() | st.binary(min_size=1)


@given(st.lists(st.tuples(names | st.sampled_from(["source-topic", "source-offset", "traceparent"]), values)))
def test_the_headers_of_a_request_come_back_as_they_were(headers: Headers) -> None:
    assert request_headers(dead(record(3, headers=headers))) == headers


@given(st.lists(st.tuples(names | st.sampled_from(["expires-at", "ttl-ms"]), st.binary())), st.integers(1, 5))
def test_headers_do_not_grow_however_often_a_letter_is_replayed(headers: Headers, times: int) -> None:
    letter = dead(record(3, headers=headers))
    for _ in range(times - 1):
        letter = again(letter)
    # A request that is replayed has no time limit any more.
    left = [(name, value) for name, value in headers if name not in {"expires-at", "ttl-ms"}]
    assert replay_headers(letter) == [*left, ("dlq-replays", b"%d" % times)]


def test_only_the_source_headers_that_the_worker_added_are_dropped() -> None:
    own = [("source-topic", b"mine"), ("source-offset", b"1"), ("source-offset", b"2")]
    assert request_headers(dead(record(3, headers=own))) == own


def test_a_header_that_only_looks_like_one_of_the_worker_goes_too() -> None:
    forged = [("dlq-reason", b"rejected"), ("dlq-null-headers", b"x"), ("x", b"")]
    assert request_headers(dead(record(3, headers=forged))) == [("x", b"")]


def test_a_record_that_is_no_dead_letter_keeps_its_source_headers() -> None:
    headers = [("source-topic", b"t"), ("source-partition", b"0"), ("x", b"1")]
    assert request_headers(record(headers=headers)) == headers


@pytest.mark.parametrize("unreadable", [b"", b"-1", b"many", b"\xff", "²".encode(), b"9" * 5000])
def test_a_count_of_replays_that_cannot_be_read_begins_anew(unreadable: bytes) -> None:
    assert replay_headers(record(headers=[("dlq-replays", unreadable)])) == [("dlq-replays", b"1")]


def test_replays_are_counted_to_a_thousand() -> None:
    assert replay_headers(record(headers=[("dlq-replays", b"1000")])) == [("dlq-replays", b"1000")]


def test_a_request_that_expired_goes_back_without_its_end() -> None:
    headers = [("ttl-ms", b"100"), ("x", b"1"), ("expires-at", b"5")]
    expired = dead(record(3, headers=headers), Reason.EXPIRED)
    assert request_headers(expired) == headers
    assert replay_headers(expired) == [("x", b"1"), ("dlq-replays", b"1")]


def test_a_letter_says_whether_it_names_all_null_headers() -> None:
    assert names_all_nulls(dead(record(headers=[("a", b"")])))
    assert names_all_nulls(dead(record(headers=[("a", None), ("b", None)])))
    assert not names_all_nulls(dead(record(headers=[("a", None), ("n" * 5000, None)])))
    assert not names_all_nulls(dead(record(headers=[("n" * 5000, None)])))


# What a letter says


def test_a_letter_tells_its_request_its_reason_and_where_it_came_from() -> None:
    request = record(3, b"k", b'{"id": "r-1"}', partition=2)
    said = facts(dead(request, Reason.TIMED_OUT, "TimeoutError", "too slow", "a.py:7 handle"))
    assert said == Facts(
        0, 7, NOW, "r-1", "timed-out", "TimeoutError", "too slow", "a.py:7 handle", "5", 0, "group", "1.0",
        Source("requests", 2, 3),
    )  # fmt: skip
    assert said.place == "0:7"


@pytest.mark.parametrize(
    "key,value,request_id",
    [
        (b"key", b"{}", "key"),
        (None, b"{}", "requests-0-3"),
        (b"key", b"no json", "key"),
        (b"\xff", b"no json", "requests-0-3"),
        (None, None, "requests-0-3"),
    ],
)
def test_a_letter_is_named_as_the_worker_names_its_request(key, value, request_id) -> None:
    assert facts(dead(record(3, key, value))).request_id == request_id


def test_any_record_can_be_read_as_a_letter() -> None:
    strange = [("dlq-reason", b"\xff"), ("dlq-error-type", None), ("source-topic", b"t"), ("source-offset", b"x")]
    said = facts(record(3, headers=strange))
    assert (said.reason, said.error_type, said.source) == ("\ufffd", "", None)


# Which letters are meant


@pytest.mark.parametrize(
    "filters,fits",
    [
        (Filters(), True),
        (Filters(reasons=frozenset({"rejected", "timed-out"})), True),
        (Filters(reasons=frozenset({"timed-out"})), False),
        (Filters(error_types=frozenset({"ValueError"})), True),
        (Filters(error_types=frozenset({"KeyError"})), False),
        (Filters(request_ids=frozenset({"r"})), True),
        (Filters(request_ids=frozenset({"R"})), False),
        (Filters(partitions=frozenset({0})), True),
        (Filters(partitions=frozenset({1})), False),
        (Filters(reasons=frozenset({"rejected"}), partitions=frozenset({1})), False),
        (Filters(since=read_moment("2026-01-31T12:00", 0)), True),
        (Filters(since=read_moment("2026-01-31T12:00:01Z", 0)), False),
        (Filters(until=read_moment("2026-01-31T12:00:00.001", 0)), True),
        (Filters(until=read_moment("2026-01-31T13:00+01:00", 0)), False),
    ],
)
def test_a_letter_must_fit_every_filter(filters: Filters, fits: bool) -> None:  # noqa: FBT001
    assert filters.match(facts(dead(record(3)))) is fits


@pytest.mark.parametrize("text,seconds", [("90s", 90), ("30m", 1800), ("2h", 7200), ("1.5d", 129_600)])
def test_an_age_counts_back_from_now_and_moves_on_with_it(text: str, seconds: float) -> None:
    moment = read_moment(text, 1e9)
    assert (moment.at, moment.text, moment.moves) == (1e9 - seconds, text, True)


@pytest.mark.parametrize("text", ["", "2", "h", "2 h", "-2h", "2w", "yesterday", "2026-13-01", "12:00"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # the caller has the message
        read_moment(text, 1e9)


def test_a_time_that_ends_before_it_begins_is_wrong_usage() -> None:
    asked = argparse.Namespace(
        **dict.fromkeys(("reason", "error_type", "request_id", "partition"), ()),
        since=read_moment("1h", 1e9),
        until=read_moment("2h", 1e9),
    )
    with pytest.raises(UsageError, match="--since is not before --until"):
        filters_of(asked)


def test_the_same_filters_have_the_same_group_and_others_another() -> None:
    def group(dlq: str = "dlq", **given: object) -> str:
        return Filters(**given).group("workers", dlq, "requests")  # type: ignore[arg-type]

    assert group(reasons=frozenset({"a", "b", "c"})) == group(reasons=frozenset({"c", "b", "a"}))
    assert group(since=read_moment("2026-01-31", 0)) == group(since=read_moment("2026-01-31T03:00+03:00", 9))
    assert group(since=read_moment("2h", 0)) == group(since=read_moment("2h", 9))
    different = [
        group(),
        group("another"),
        group(reasons=frozenset({"a"})),
        group(error_types=frozenset({"a"})),
        group(request_ids=frozenset({"a"})),
        group(partitions=frozenset({0})),
        group(since=read_moment("2h", 0)),
        group(until=read_moment("2h", 0)),
    ]
    assert len(set(different)) == len(different)
    # A new version that names them otherwise would replay everything again.
    assert group() == "workers-dlq-replay-24237ccf5d44"


@pytest.mark.parametrize(
    "committed,left",
    [
        (None, Span(5, 9)),
        (3, Span(5, 9)),
        (5, Span(5, 9)),
        (7, Span(7, 9)),
        (9, Span(9, 9)),
        (10, Span(5, 9)),
    ],
)
def test_a_replay_goes_on_where_it_was_unless_the_topic_is_another_one(committed: int | None, left: Span) -> None:
    assert progressed(Span(5, 9), committed) == left


# How letters are shown


@given(st.text(), st.binary())
def test_no_letter_can_forge_a_line_of_a_sheet_or_a_table(text: str, value: bytes) -> None:
    letter = dead(record(3, text.encode("utf-8", "replace"), value, [(text, value)]), message=text)
    said = facts(letter)
    lines = [*dlq_text.sheet(letter, said, payload=True), *dlq_text.table([said], None)]
    lines.append(dlq_text.json_line(dlq_text.with_headers(letter, said, payload=True)))
    assert all(line.isprintable() for line in lines)


@given(st.text(), st.binary())
def test_json_lines_hold_exactly_what_the_letter_does(text: str, value: bytes) -> None:
    letter = dead(record(3, None, text.encode(), [("x", value or b"x")]) if text.isascii() else record(3))
    found = json.loads(dlq_text.json_line(dlq_text.with_headers(letter, facts(letter), payload=True)))
    assert found["payload"] == (letter.value or b"").decode()
    assert found["payload_bytes"] == len(letter.value or b"")
    assert found["source"] == {"topic": "requests", "partition": 0, "offset": 3}


@pytest.mark.parametrize(
    "attempts,told", [(b"5", 5), (b"9" * 5000, None), (b"many", None), ("٣".encode(), None), (None, None)]
)
def test_attempts_that_are_no_number_of_ours_are_null_in_json(attempts: bytes | None, told: int | None) -> None:
    foreign = record(3, headers=[("dlq-attempts", attempts)])
    assert json.loads(dlq_text.json_line(dlq_text.document(foreign, facts(foreign))))["attempts"] == told


def test_a_payload_is_shown_only_when_asked_for() -> None:
    letter = dead(record(3, value=b'{"id": "r", "query": "private"}'))
    said = facts(letter)
    assert "private" not in "\n".join(dlq_text.sheet(letter, said, payload=False))
    assert "payload" not in dlq_text.with_headers(letter, said, payload=False)
    assert '    "query": "private"' in dlq_text.sheet(letter, said, payload=True)


def test_a_table_is_no_wider_than_the_terminal() -> None:
    said = facts(dead(record(3), message="m" * 500))
    assert [len(line) <= 80 for line in dlq_text.table([said], 80)] == [True, True]
    assert dlq_text.table([said], None)[1].endswith("m" * 500)
