"""Trace context: in the log, through the handler, in responses; and spans at a real collector."""

from __future__ import annotations

import json

import pytest

from tests.support.scene import ask
from tests.support.services import Service

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CREATED = f"00-{TRACE}-{PARENT}-01".encode()


def test_lines_of_a_traced_request_carry_its_ids_and_those_of_others_do_not(scene):
    scene.make()
    worker = scene.ready(WORKER_MAX_ATTEMPTS="1")
    scene.send(
        ask("traced", "a", [("traceparent", CREATED)], do="fail"),
        ask("wrong", "b", [("traceparent", b"00-zz")], do="fail"),
        ask("plain", "c", do="fail"),
    )
    scene.wait_responses(3)
    assert worker.stop() == 0
    lines = {line["request_id"]: line for line in worker.logs() if line["event"].startswith("Request goes")}
    assert (lines["traced"]["trace_id"], lines["traced"]["span_id"]) == (TRACE, PARENT)
    assert not {"trace_id", "span_id"} & {*lines["wrong"], *lines["plain"]}


def test_spans_reach_a_collector_and_the_service_behind_the_handler(scene):
    pytest.importorskip("opentelemetry.sdk.trace")
    from tests.support.collector import Collector, attributes

    scene.make()
    with Collector() as collector, Service() as model:
        worker = scene.ready(
            WORKER_HANDLER="http",
            HTTP_HANDLER_URL=model.url,
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            OTEL_BSP_SCHEDULE_DELAY="60000",  # so only the end of the worker sends them
        )
        scene.send(ask("r1", "k", [("traceparent", CREATED), ("tracestate", b"a=1")]))
        (response,) = scene.wait_responses(1)
        assert worker.stop(20) == 0
    assert ("traceparent", CREATED) in response.rec.headers
    process, send = sorted(collector.spans, key=lambda span: span.name)
    assert (process.name, send.name) == (f"process {scene.topics.requests}", f"send {scene.topics.responses}")
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert process.parent_span_id.hex() == PARENT
    assert send.parent_span_id == process.span_id
    assert attributes(process)["messaging.kafka.offset"] == response.source.offset
    assert attributes(send)["messaging.destination.name"] == scene.topics.responses
    assert collector.resources[0]["service.name"] == "gigaoffice-worker"
    (asked,) = model.asked
    assert asked.headers["traceparent"] == f"00-{TRACE}-{process.span_id.hex()}-01"
    assert asked.headers["tracestate"] == "a=1"
    assert "payload-text" not in json.dumps([str(span) for span in collector.spans])


def test_a_collector_that_is_gone_delays_neither_answers_nor_the_end(scene):
    pytest.importorskip("opentelemetry.sdk.trace")
    scene.make()
    worker = scene.ready(
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
        OTEL_EXPORTER_OTLP_HEADERS="a header that is none but a secret",
        WORKER_DRAIN_TIMEOUT="3",
    )
    scene.send(*[ask(f"r{n}", "k") for n in range(3)])
    scene.wait_responses(3)
    assert worker.stop(20) == 0
    log = worker.log_file.read_text()
    assert "Tracing message" in log
    assert "secret" not in log
