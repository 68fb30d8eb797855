"""Spans: what each attempt and each letter becomes, and that nothing is drawn unless it is asked for."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
import structlog

from gigaoffice_worker.core.errors import RejectedError
from gigaoffice_worker.core.records import Deadline, OutgoingRecord, Request
from gigaoffice_worker.core.trace import trace_fields
from gigaoffice_worker.observe.tracing import spans as spans_of
from gigaoffice_worker.observe.tracing import switch
from tests.support.making import record

pytest.importorskip("opentelemetry.sdk.trace")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gigaoffice_worker.observe.spans import Spans

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CREATED = f"00-{TRACE}-{PARENT}-01".encode()


class Stage:
    """Spans that are kept in memory."""

    def __init__(self, processor=SimpleSpanProcessor):
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(processor(self.exporter))
        self.spans = Spans(provider, group="group", client_id="client", version="1")

    def found(self):
        return self.exporter.get_finished_spans()


def request(headers=None, attempt=1, seconds=30.0, request_id="r-1"):
    deadline = Deadline(time.monotonic() + seconds)
    return Request({"query": "secret"}, request_id, b"k", headers or {}, attempt, deadline, "requests", 2, 7, 0.0)


def hexed(context):
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def test_an_attempt_is_a_child_of_the_requests_context_and_linked_to_it():
    stage = Stage()
    assert stage.spans.around(lambda asked: asked.attempt)(request({"traceparent": CREATED}, attempt=3)) == 3
    (span,) = stage.found()
    assert (span.name, span.kind) == ("process requests", SpanKind.CONSUMER)
    assert hexed(span.parent) == (TRACE, PARENT)
    assert [hexed(link.context) for link in span.links] == [(TRACE, PARENT)]
    assert dict(span.attributes) == {
        "messaging.system": "kafka",
        "messaging.client.id": "client",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "requests",
        "messaging.destination.partition.id": "2",
        "messaging.kafka.offset": 7,
        "messaging.consumer.group.name": "group",
        "messaging.message.conversation_id": "r-1",
        "gigaoffice.attempt": 3,
    }
    assert span.status.status_code is StatusCode.UNSET


def test_a_span_holds_no_more_of_an_id_than_256_characters():
    stage, asked = Stage(), request(request_id="я" * 100_000)
    assert len(stage.spans.around(lambda asked: asked.id)(asked)) == 100_000
    (span,) = stage.found()
    assert span.attributes["messaging.message.conversation_id"] == "я" * 256


def test_the_handler_is_given_a_traceparent_and_a_log_context_that_name_the_span():
    stage, seen = Stage(), []

    def handler(asked):
        seen.append((dict(asked.headers), structlog.contextvars.get_contextvars()))

    stage.spans.around(handler)(request({"traceparent": CREATED, "tracestate": b"a=1", "other": b"x"}))
    ((headers, facts),) = seen
    (span,) = stage.found()
    trace_id, span_id = hexed(span.context)
    assert trace_id == TRACE
    assert headers == {"traceparent": f"00-{trace_id}-{span_id}-01".encode(), "tracestate": b"a=1", "other": b"x"}
    assert facts == {"trace_id": trace_id, "span_id": span_id} == trace_fields(headers)
    assert structlog.contextvars.get_contextvars() == {}


@pytest.mark.parametrize("headers", [{}, {"traceparent": b"nonsense"}])
def test_a_request_without_a_valid_context_begins_a_trace(headers):
    stage = Stage()
    stage.spans.around(lambda asked: None)(request(headers))
    (span,) = stage.found()
    assert span.parent is None
    assert not span.links


def test_a_failure_shows_its_type_and_never_its_text():
    stage = Stage()

    def handler(asked):
        raise RejectedError(f"cannot read {asked.payload}")

    with pytest.raises(RejectedError):
        stage.spans.around(handler)(request())
    stage.spans.around(lambda asked: {"success": False, "error": "secret"})(request())
    assert [span.attributes["error.type"] for span in stage.found()] == ["RejectedError", "HandlerFailure"]
    assert all(span.status.status_code is StatusCode.ERROR for span in stage.found())
    assert not any("secret" in span.to_json() for span in stage.found())


def test_an_attempt_past_its_deadline_is_ended_once():
    stage = Stage()

    def handler(asked):
        stage.spans.end_overdue()
        stage.spans.end_overdue()

    stage.spans.around(handler)(request(seconds=-1.0))
    stage.spans.around(handler)(request())
    late, punctual = stage.found()
    assert late.attributes["error.type"] == "AttemptTimeout"
    assert "error.type" not in punctual.attributes


def test_a_letter_is_a_child_of_the_last_attempt_and_linked_to_the_requests_context():
    stage = Stage()
    stage.spans.around(lambda asked: None)(request({"traceparent": CREATED}))
    source = record(7, b"k", b"{}", [("traceparent", CREATED)], partition=2)
    stage.spans.acknowledged(OutgoingRecord("responses", b"k", b"12345", []), source, 0.25)
    process, send = stage.found()
    assert (send.name, send.kind) == ("send responses", SpanKind.PRODUCER)
    assert hexed(send.parent) == hexed(process.context)
    assert [hexed(link.context) for link in send.links] == [(TRACE, PARENT)]
    assert send.attributes["messaging.operation.type"] == "send"
    assert send.attributes["messaging.destination.name"] == "responses"
    assert send.attributes["messaging.message.body.size"] == 5
    assert send.end_time - send.start_time == 250_000_000


def test_a_letter_about_what_was_never_tried_is_a_child_of_the_requests_context():
    stage = Stage()
    source = record(7, b"k", b"no request", [("traceparent", CREATED)], partition=2)
    stage.spans.acknowledged(OutgoingRecord("dlq", b"k", None, []), source, 0.0)
    (span,) = stage.found()
    assert hexed(span.parent) == (TRACE, PARENT)


def test_closing_sends_what_is_waiting():
    stage = Stage(BatchSpanProcessor)
    stage.spans.around(lambda asked: None)(request())
    assert stage.spans.close(5.0)
    assert len(stage.found()) == 1


def test_closing_ends_the_spans_of_calls_that_still_run():
    stage = Stage(BatchSpanProcessor)
    stage.spans.around(lambda asked: stage.spans.close(5.0))(request())
    assert [span.attributes["error.type"] for span in stage.found()] == ["Abandoned"]


def test_closing_does_not_wait_for_a_collector_that_hangs():
    answers = threading.Event()

    class Hanging(SpanExporter):
        def export(self, spans):
            answers.wait(60)

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Hanging()))
    spans = Spans(provider, group="group", client_id="client", version="1")
    spans.around(lambda asked: None)(request())
    began = time.monotonic()
    assert not spans.close(0.2)
    assert time.monotonic() - began < 10.0
    answers.set()
    assert spans.close(20.0)  # for the sake of the threads


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_SERVICE_NAME": "x", "OTEL_EXPORTER_OTLP_ENDPOINT": ""},
    ],
)
def test_spans_are_off_unless_they_are_asked_for(environ):
    assert not switch(environ).on
    assert spans_of(environ, group="g", client_id="c", version="1") is None


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_TRACES_EXPORTER": "otlp"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
    ],
)
def test_an_exporter_or_an_endpoint_switches_spans_on(environ):
    assert switch(environ) == (True, "", "")


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)
def test_what_is_not_supported_leaves_spans_off_and_says_so(environ):
    with structlog.testing.capture_logs() as logs:
        assert spans_of(environ, group="g", client_id="c", version="1") is None
    (line,) = logs
    assert (line["event"], line["log_level"]) == ("Spans are not sent", "warning")
    assert line["hint"]


def test_nothing_of_opentelemetry_is_imported_while_spans_are_off():
    code = "import sys, gigaoffice_worker.worker; sys.exit(any('opentelemetry' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
