"""The schemas say what is written: each is held to what the worker's own encoder writes and its decoder takes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gigaoffice_worker import RejectedError
from gigaoffice_worker.core.messages import InvalidRequestError, RecordEncoder, decode_request
from gigaoffice_worker.core.records import Failure, Headers, Outcome, Reason
from gigaoffice_worker.core.schemas import NAMES, asyncapi, json_schema
from gigaoffice_worker.testing import DeadLetter, run
from tests.support.making import answered, record
from tests.unit.test_messages import JSON

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")

ENCODER = RecordEncoder("responses", "dead-letters", "group", "1.0", frozenset({"correlation_id"}), digests=True)
FAILURE = Failure("ValueError", "bad", "answers.py:7 handle")
HEADERS: Headers = [("a", b"1"), ("none", None), ("dlq-replays", b"2"), ("correlation_id", b"c"), ("traceparent", b"t")]


def valid(schema: dict[str, Any], found: object) -> bool:
    return bool(jsonschema.Draft202012Validator(schema).is_valid(found))


def texts(headers: Headers) -> dict[str, str]:
    return {name: (value or b"").decode() for name, value in headers}


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema(name))


@given(st.dictionaries(st.sampled_from(["id", "query", "other"]), JSON, max_size=3) | JSON)
def test_what_the_worker_takes_for_a_request_is_valid_and_nothing_else(payload: Any) -> None:
    try:
        decode_request(record(value=json.dumps(payload).encode()))
        taken = True
    except InvalidRequestError:
        taken = False
    assert valid(json_schema("request"), payload) is taken


@pytest.mark.parametrize("reason", [None, *Reason])
def test_each_outcome_is_written_as_the_schemas_say(reason: Reason | None) -> None:
    outcome = answered({"a": [1, None]}) if reason is None else Outcome(failure=FAILURE, reason=reason)
    written = ENCODER.outgoing(record(headers=HEADERS), "r-1", outcome, seconds=1.5, attempts=2, at=1.7e9)
    assert valid(json_schema("response"), json.loads(written[-1].value or b""))
    if reason is not None:
        assert valid(json_schema("dead-letter"), texts(written[0].headers))


@pytest.mark.parametrize(
    "change", [{"status": "done"}, {"error": "text"}, {"processing_time": None}, {"request_id": 5}, {"timestamp": 1}]
)
def test_what_is_not_written_is_not_valid(change: dict[str, Any]) -> None:
    response = {
        "request_id": "r",
        "status": "completed",
        "result": None,
        "error": None,
        "processing_time": 0.1,
        "timestamp": "2026-01-01T00:00:00.000Z",
    }
    assert valid(json_schema("response"), response)
    assert not valid(json_schema("response"), {**response, **change})
    for field in response:
        assert not valid(json_schema("response"), {name: value for name, value in response.items() if name != field})


def test_every_header_that_is_added_has_its_place_in_the_schemas() -> None:
    """Neither fewer nor more than the encoder writes when it has a reason to write all of them."""
    document = asyncapi(version="1", requests="a", responses="b", dead_letters="c")["components"]["schemas"]
    source = record(headers=HEADERS)
    outcome = Outcome(failure=FAILURE, reason=Reason.REJECTED, usage=b"{}")
    dead, response = ENCODER.outgoing(source, "r", outcome, seconds=1, attempts=1, at=0)
    added = texts(dead.headers[len(HEADERS) :])
    assert set(added) == set(document["DeadLetterHeaders"]["properties"])
    others = {"tracestate", "kafka_correlationId", "duplicate-of"}
    assert set(texts(response.headers)) == set(document["ResponseHeaders"]["properties"]) - others


def test_a_handlers_run_is_valid_too() -> None:
    def reject(_request: object) -> None:
        raise RejectedError("no")

    found = run(reject, {"id": "r"})
    assert isinstance(found, DeadLetter)
    assert valid(json_schema("dead-letter"), texts(list(found.headers.items())))


def references(found: Any) -> list[str]:
    if isinstance(found, dict):
        own = [found["$ref"]] if isinstance(found.get("$ref"), str) else []
        return own + [each for value in found.values() for each in references(value)]
    return [each for value in found for each in references(value)] if isinstance(found, list) else []


def test_the_document_names_the_topics_and_every_reference_leads_somewhere() -> None:
    document = asyncapi(version="1.2", requests="in", responses="out", dead_letters="dead")
    assert document["asyncapi"] == "3.0.0"
    assert {name: channel["address"] for name, channel in document["channels"].items()} == {
        "requests": "in",
        "responses": "out",
        "deadLetters": "dead",
    }
    assert references(document)
    for reference in references(document):
        at: Any = document
        for part in reference.removeprefix("#/").split("/"):
            at = at[part]
        assert at
