"""The wire, sentence by sentence: what is a request, what a response says, and what a dead letter keeps."""

from __future__ import annotations

import json
import tracemalloc
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gigaoffice_worker.core.documents import read_response
from gigaoffice_worker.core.messages import (
    InvalidRequestError,
    RecordEncoder,
    answerable_id,
    decode_request,
    encode_response,
    last_values,
)
from gigaoffice_worker.core.records import Failure, Headers, Outcome, OutgoingRecord, Reason, Record
from tests.support.making import answered, record

AT = datetime(2026, 3, 4, 5, 6, 7, 89_000, tzinfo=UTC).timestamp()
WIRE = RecordEncoder("responses", "dead-letters", "the-group", "1.2.3")
ANSWER = answered({"text": "да"})
MISSING = Failure("KeyError", "'a'")


def response(outcome: Outcome = ANSWER, seconds: float = 1.5) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(encode_response("r-1", outcome, seconds, AT))
    return found


def dead_letter(source: Record, failure: Failure = MISSING) -> OutgoingRecord:
    return WIRE.dead_letter(source, Reason.ATTEMPTS_EXHAUSTED, failure, 5, AT)


def refused(value: bytes | None, key: bytes | None = None) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        decode_request(record(7, key, value, partition=2))
    return caught.value


# Requests


def test_a_request_is_named_by_its_id_and_keeps_all_of_its_fields() -> None:
    value = '{"id": "r-1", "query": "сумма", "input_data": [[1, 2.5, null, true]]}'.encode()
    request_id, payload = decode_request(record(key=b"k", value=value))
    assert request_id == "r-1"
    assert payload == json.loads(value)


@pytest.mark.parametrize(
    "key, expected",
    [
        (b"from-the-key", "from-the-key"),
        ("ключ".encode(), "ключ"),
        (None, "requests-2-7"),
        (b"", "requests-2-7"),
        (b"\xff\xfe", "requests-2-7"),
    ],
)
def test_without_an_id_the_key_names_the_request_and_without_both_its_place(key: bytes | None, expected: str) -> None:
    assert decode_request(record(7, key, b"{}", partition=2)) == (expected, {})


@pytest.mark.parametrize("given_id", ["null", "1", "1.5", "true", '""', "[]", "{}"])
def test_an_id_of_another_kind_is_no_request_but_can_be_answered(given_id: str) -> None:
    value = f'{{"id": {given_id}}}'.encode()
    assert refused(value, b"key").answerable_id == "key"
    assert refused(value).answerable_id == "requests-2-7"
    assert "the id is" in str(refused(value))


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"text",
        b"[]",
        b'"{}"',
        b"1",
        b"null",
        b"true",
        b"{",
        b"{}{}",
        b"\xff",
        b'{"a": NaN}',
        b"\xef\xbb\xbf{}",
    ],
)
@pytest.mark.parametrize(
    "key, answerable",
    [(b"r-9", "r-9"), (None, None), (b"", None), (b"\xff", None)],
    ids=["text", "none", "empty", "bytes"],
)
def test_what_is_no_json_object_can_be_answered_only_under_its_key(
    value: bytes | None, key: bytes | None, answerable: str | None
) -> None:
    assert refused(value, key).answerable_id == answerable


@pytest.mark.usefixtures("no_collections")
@pytest.mark.parametrize(
    "value", [b"[" * 100_000, b'{"id": "x", "a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", b'{"a":' * 100_000]
)
def test_nesting_without_end_is_no_request(value: bytes) -> None:
    assert refused(value, b"k").answerable_id == "k"


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("id"), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.one_of(st.none(), st.binary(max_size=20), ANY_JSON.map(lambda value: json.dumps(value).encode())),
    st.sampled_from([None, b"", b"key", b"\xff"]),
    st.booleans(),
)
@example(b'{"id":"r-1","s":"\xff"}', b"key", False)
@example(b'{"id":1,"id":"r-1"}', b"key", False)
@example(b'{"\\u0069d":"r-1"} ', None, False)
@example(b'{"id":"r-1",}', None, False)
def test_the_id_for_an_answer_is_the_same_when_nothing_else_is_decoded(value, key, cut):
    asked = record(7, key, value, partition=2)
    most = len(value or b"") - cut
    try:
        expected = decode_request(asked, most)[0]
    except InvalidRequestError as error:
        expected = error.answerable_id or ""
    assert answerable_id(asked, most) == expected


def test_the_id_of_a_large_request_is_found_without_decoding_it():
    value = b'{"id":"r-1","rows":[' + b'{"":0},' * 1_000_000 + b"{}]}"
    tracemalloc.start()
    assert answerable_id(record(7, None, value), len(value)) == "r-1"
    assert tracemalloc.get_traced_memory()[1] < 2 * len(value)
    tracemalloc.stop()


@pytest.mark.parametrize("value", [b'{"secret": tru', b'{"secret": "\xff"}', b'["secret"]', b'{"id": ["secret"]}'])
def test_the_message_about_a_bad_value_quotes_nothing_of_it(value: bytes) -> None:
    error = refused(value)
    assert "secret" not in str(error)
    assert "\\xff" not in str(error)


def test_integers_beyond_64_bits_stay_exact() -> None:
    number = 123456789012345678901234567890
    _, payload = decode_request(record(value=b'{"a": %d}' % number))
    assert payload == {"a": number}
    assert response(answered(payload))["result"] == {"a": number}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
NEARLY_JSON = st.one_of(
    st.binary(max_size=60),
    JSON.map(json.dumps).map(str.encode),
    st.tuples(JSON.map(json.dumps).map(str.encode), st.integers(0, 40), st.binary(max_size=3)).map(
        lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + 1 :]
    ),
    st.text(alphabet='{}[]",:\\u0dDeE+-.19 \n\x00idnultrfas', max_size=30).map(str.encode),
)


@given(NEARLY_JSON, st.none() | st.binary(max_size=8))
def test_no_bytes_crash_the_reader(value: bytes, key: bytes | None) -> None:
    try:
        request_id, payload = decode_request(record(7, key, value))
    except InvalidRequestError:
        return
    assert request_id
    assert isinstance(payload, dict)
    # What can be read can be answered.
    assert json.loads(encode_response(request_id, answered(payload), 0.0, AT))["request_id"] == request_id


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_a_payload_given_back_arrives_as_it_was(payload: dict[str, Any]) -> None:
    payload.pop("id", None)
    _, read = decode_request(record(value=json.dumps(payload).encode()))
    assert response(answered(read))["result"] == payload


# Responses


def test_a_response_always_has_the_six_fields() -> None:
    assert response() == {
        "request_id": "r-1",
        "status": "completed",
        "result": {"text": "да"},
        "error": None,
        "processing_time": 1.5,
        "timestamp": "2026-03-04T05:06:07.089Z",
    }


@pytest.mark.parametrize("result", [None, 0, "", [], {}, False])
def test_a_result_is_given_back_even_when_it_is_nothing(result: object) -> None:
    found = response(answered(result))
    assert (found["status"], found["result"], found["error"]) == ("completed", result, None)


def test_an_answer_that_says_it_failed_keeps_its_result() -> None:
    found = response(answered({"success": False, "error": "no data"}, Failure("HandlerFailure", "no data")))
    assert found["status"] == "failed"
    assert found["result"] == {"success": False, "error": "no data"}
    assert found["error"] == {"type": "HandlerFailure", "message": "no data"}


@pytest.mark.parametrize("reason", list(Reason))
def test_a_dead_lettered_request_is_answered_without_a_result(reason: Reason) -> None:
    found = response(answered("never shown", Failure("ValueError", "bad"), reason))
    assert (found["status"], found["result"]) == ("failed", None)
    assert found["error"] == {"type": "ValueError", "message": "bad"}


@pytest.mark.parametrize("milliseconds", [0, 7, 89, 123, 999])
def test_the_time_of_a_response_is_utc_to_the_millisecond(milliseconds: int) -> None:
    at = datetime(2026, 3, 4, 5, 6, 7, milliseconds * 1000, tzinfo=UTC)
    found = json.loads(encode_response("r", ANSWER, 0.0, at.timestamp()))
    assert found["timestamp"] == f"2026-03-04T05:06:07.{milliseconds:03}Z"


def test_an_error_text_that_utf_8_cannot_hold_is_written_all_the_same() -> None:
    failure = Failure("OSError", "cannot open \udcff\ud800")
    assert response(Outcome(failure=failure, reason=Reason.REJECTED))["error"]["message"] == "cannot open ??"
    assert last_values(dead_letter(record(), failure).headers)["dlq-error-message"] == b"cannot open ??"


def test_a_response_has_the_requests_key_and_says_where_the_request_stood() -> None:
    source = record(7, b"\x00key", partition=2, headers=[("own", b"1")])
    letter = WIRE.response(source, b"value", 2)
    assert letter == OutgoingRecord(
        "responses",
        b"\x00key",
        b"value",
        [
            ("source-topic", b"requests"),
            ("source-partition", b"2"),
            ("source-offset", b"7"),
            ("source-timestamp", b"1700000000000"),
        ],
        2,
    )
    assert WIRE.response(record(), b"").key is None


@given(st.integers(-1, 253_402_300_799_999))
def test_the_timestamp_of_the_request_is_told_to_the_millisecond(milliseconds: int) -> None:
    source = record()._replace(timestamp=milliseconds / 1000)
    for written in (WIRE.response(source, b""), dead_letter(source)):
        assert last_values(written.headers)["source-timestamp"] == b"%d" % milliseconds


TRACED: Headers = [("traceparent", b"00-aa-bb-01"), ("Traceparent", b"no"), ("tracestate", b"x=y"), ("other", b"o")]


def test_both_records_carry_the_trace_of_the_request_once() -> None:
    source = record(headers=TRACED)
    for letter in (WIRE.response(source, b""), dead_letter(source)):
        names = [name for name, _ in letter.headers]
        assert names.count("traceparent") == names.count("tracestate") == 1
        assert last_values(letter.headers)["traceparent"] == b"00-aa-bb-01"
    assert "other" not in last_values(WIRE.response(source, b"").headers)


def test_a_trace_header_without_a_value_is_left_out_of_the_response() -> None:
    assert "traceparent" not in last_values(WIRE.response(record(headers=[("traceparent", None)]), b"").headers)


def test_a_response_carries_the_headers_that_its_requester_asks_for_and_its_own_count() -> None:
    encoder = RecordEncoder("responses", "dlq", "g", "1", echoed=frozenset({"correlation_id", "source-offset"}))
    sent: Headers = [("correlation_id", b"1"), ("x", b"2"), ("correlation_id", b"\xff"), ("source-offset", b"99")]
    headers = encoder.response(record(7, headers=sent), b"").headers
    assert [value for name, value in headers if name == "correlation_id"] == [b"1", b"\xff"]
    assert "x" not in last_values(headers)
    assert last_values(headers)["source-offset"] == b"7"
    assert "correlation_id" not in last_values(WIRE.response(record(headers=sent), b"").headers)


def test_a_response_tells_the_digest_of_its_request_only_when_asked_to() -> None:
    encoder = RecordEncoder("responses", "dlq", "g", "1", digests=True)
    told = last_values(encoder.response(record(value=b"{}"), b"").headers)
    assert told["request-digest"] == b"44136fa355b3678a1146ad16f7e8649e"
    assert "request-digest" not in last_values(WIRE.response(record(), b"").headers)


def test_a_response_tells_what_its_calls_used() -> None:
    outcome = answered({})._replace(usage=b'{"input_tokens":7}')
    [written] = WIRE.outgoing(record(), "r", outcome, seconds=0, attempts=1, at=AT)
    assert last_values(written.headers)["usage"] == b'{"input_tokens":7}'


# Dead letters


def test_a_dead_letter_says_why_it_is_one() -> None:
    letter = dead_letter(record(7, b"k", b"v", partition=2))
    assert (letter.topic, letter.partition) == ("dead-letters", None)
    assert letter.headers == [
        ("dlq-reason", b"attempts-exhausted"),
        ("dlq-error-type", b"KeyError"),
        ("dlq-error-message", b"'a'"),
        ("dlq-attempts", b"5"),
        ("dlq-timestamp", b"2026-03-04T05:06:07.089Z"),
        ("dlq-consumer-group", b"the-group"),
        ("dlq-worker-version", b"1.2.3"),
        ("source-topic", b"requests"),
        ("source-partition", b"2"),
        ("source-offset", b"7"),
        ("source-timestamp", b"1700000000000"),
    ]


def test_a_dead_letter_says_where_its_error_was_raised() -> None:
    told = dead_letter(record(), MISSING._replace(at="answers.py:7 handle"))
    assert last_values(told.headers)["dlq-error-at"] == b"answers.py:7 handle"


HEADERS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "dlq-replays", "source-offset", "traceparent", ""]), st.none() | st.binary()),
    max_size=8,
)


@given(st.none() | st.binary(), st.none() | st.binary(), HEADERS)
def test_a_dead_letter_keeps_the_record_byte_for_byte_and_in_order(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]]
) -> None:
    letter = dead_letter(record(3, key, value, headers))
    assert (letter.key, letter.value) == (key, value)
    assert letter.headers[: len(headers)] == [(name, value or b"") for name, value in headers]
    # The worker's own stand behind, so that they count where a name repeats.
    added = letter.headers[len(headers) :]
    assert last_values(letter.headers)["source-offset"] == b"3"
    nulls = [name for name, value in headers if value is None]
    assert last_values(added).get("dlq-null-headers") == (",".join(nulls).encode() if nulls else None)


@pytest.mark.parametrize(
    "headers, expected",
    [
        ([], None),
        ([("dlq-replays", b"1")], b"1"),
        ([("dlq-replays", b"1"), ("dlq-replays", b"2")], b"2"),
        ([("dlq-replays", b"2"), ("dlq-replays", None)], b"0"),
        ([("dlq-replays", b"1000")], b"1000"),
        ([("dlq-replays", b"1001")], b"0"),
        ([("dlq-replays", b"-1")], b"0"),
        ([("dlq-replays", "²".encode())], b"0"),
        ([("dlq-replays", b"9" * 520_000)], b"0"),
    ],
)
def test_replays_are_told_from_the_second_time_on(
    headers: list[tuple[str, bytes | None]], expected: bytes | None
) -> None:
    added = dead_letter(record(headers=headers)).headers[len(headers) :]
    assert last_values(added).get("dlq-replays") == expected


@pytest.mark.parametrize(
    "names, told",
    [
        (["a", "b"], "a,b"),
        (["n" * 4094, "b"], "n" * 4094 + ",+1 of 2"),
        ([f"{number:02}" * 15_000 for number in range(17)], "+17 of 17"),
        ([f"h{number:03}" for number in range(1000)], None),
    ],
    ids=["few", "one-fits", "none-fits", "many"],
)
def test_the_names_of_null_headers_take_at_most_four_kibibytes(names: list[str], told: str | None) -> None:
    letter = dead_letter(record(headers=[(name, None) for name in names]))
    found = last_values(letter.headers)["dlq-null-headers"].decode()
    if told is None:
        told = ",".join(names[:819]) + ",+181 of 1000"
    assert found == told


@pytest.mark.parametrize("what", ["type", "message", "at"])
def test_what_is_said_of_an_error_has_a_bound(what: str) -> None:
    plain, large = dead_letter(record()), dead_letter(record(), MISSING._replace(**{what: "ж" * 1_000_000}))
    assert large.size - plain.size < 4 * 1024


def test_an_error_message_takes_at_most_a_thousand_characters() -> None:
    letter = dead_letter(record(), Failure("ValueError", "ж" * 3000))
    assert last_values(letter.headers)["dlq-error-message"].decode() == "ж" * 1000


@given(st.text(st.characters(), max_size=1200))
def test_any_error_text_can_be_written(text: str) -> None:
    failure = Failure("ValueError", text)
    assert len(last_values(dead_letter(record(), failure).headers)["dlq-error-message"].decode()) <= 1000
    assert response(Outcome(failure=failure, reason=Reason.REJECTED))["error"]["type"] == "ValueError"


def test_size_counts_key_value_and_headers() -> None:
    assert record(0, b"kk", b"vvv", [("n", b"12"), ("m", None)]).size == 2 + 3 + 3 + 1
    assert record(0, None, None).size == 0
    assert OutgoingRecord("t", b"kk", None, [("n", b"12")]).size == 5


# An outcome, whole


def test_an_outcome_is_written_as_its_dead_letter_and_then_its_response() -> None:
    source = record(7, b"k", b"v", partition=2)
    outcome = Outcome(failure=MISSING, reason=Reason.TIMED_OUT)
    dead, answer = WIRE.outgoing(source, "r-1", outcome, seconds=1.5, attempts=5, at=AT, partition=2)
    assert dead == WIRE.dead_letter(source, Reason.TIMED_OUT, MISSING, 5, AT)
    assert answer == WIRE.response(source, encode_response("r-1", outcome, 1.5, AT), 2)


def test_an_answer_has_no_dead_letter_and_what_has_no_name_no_response() -> None:
    assert [each.topic for each in WIRE.outgoing(record(), "r", ANSWER, seconds=0, attempts=1, at=AT)] == ["responses"]
    nameless = Outcome(failure=MISSING, reason=Reason.INVALID_REQUEST)
    assert [each.topic for each in WIRE.outgoing(record(), "", nameless, seconds=0, attempts=0, at=AT)] == [
        "dead-letters"
    ]


def test_a_response_is_read_as_it_was_written() -> None:
    dead, answer = WIRE.outgoing(
        record(7, b"k", partition=2),
        "r-1",
        Outcome(failure=MISSING, reason=Reason.REJECTED),
        seconds=1.5,
        attempts=1,
        at=AT,
    )
    found = read_response(answer.value, answer.headers)
    assert found is not None
    assert (found.request_id, found.status, found.completed, found.result) == ("r-1", "failed", False, None)
    assert found.error == {"type": "KeyError", "message": "'a'"}
    assert (found.processing_time, found.timestamp) == (1.5, "2026-03-04T05:06:07.089Z")
    assert found.headers["source-offset"] == b"7"
    assert read_response(dead.value, dead.headers) is None


@given(NEARLY_JSON)
def test_what_is_no_response_is_none_to_its_reader(value: bytes) -> None:
    assert read_response(value, []) is None
