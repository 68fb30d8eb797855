"""Spans by OpenTelemetry's conventions for messaging: one for each attempt, one for each record that is written.

The engine knows nothing of them: the handler is wrapped, and delivery tells of what was acknowledged. No span holds a
payload, a key or the text of an error.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog
from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from gigaoffice_worker.core.messages import last_values
from gigaoffice_worker.core.records import OutgoingRecord, Record, Request, Source
from gigaoffice_worker.core.trace import TRACEPARENT, TRACESTATE, trace_context

Handler = Callable[[Request], Any]

_SERVICE: Final = "gigaoffice-worker"
# The engine holds fewer requests than that at once.
_REMEMBERED: Final = 10_000
# An id may be as long as a request, and the queue holds 2048 spans.
_LONGEST_ID: Final = 256


def exporting(environ: Mapping[str, str], version: str) -> TracerProvider:
    """Return a provider that sends spans over OTLP/HTTP: queue, delays, time limit, sampler as OTEL_ variables say.

    It becomes the process's provider, so that spans of a handler's own libraries go the same way.
    """
    attributes = {"service.version": version}
    named = environ.get("OTEL_SERVICE_NAME") or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not named:
        attributes["service.name"] = _SERVICE
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider


class Spans:
    """Draws the spans of one worker; called by its handler threads, the producer's thread and the main thread."""

    def __init__(self, provider: TracerProvider, *, group: str, client_id: str, version: str) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("gigaoffice_worker", version)
        self._common = {"messaging.system": "kafka", "messaging.client.id": client_id}
        self._group = group
        self._lock = threading.Lock()
        self._open: dict[Span, Request] = {}
        # The span of each request's last attempt, which is the parent of what is written about it.
        self._attempts: OrderedDict[Source, SpanContext] = OrderedDict()

    def around(self, handler: Handler) -> Handler:
        """Return the handler with a span around each call; the request's `traceparent` names that span."""

        @functools.wraps(handler, updated=())
        def traced(request: Request) -> Any:
            span = self._begin(request)
            token = context.attach(trace.set_span_in_context(span))
            ids = _ids(span.get_span_context())
            try:
                with structlog.contextvars.bound_contextvars(**ids):
                    result = handler(request)
            except BaseException as error:
                self._end(span, type(error).__name__)
                raise
            finally:
                context.detach(token)
            failed = type(result) is dict and result.get("success") is False
            self._end(span, "HandlerFailure" if failed else None)
            return result

        return traced

    def acknowledged(self, sent: OutgoingRecord, record: Record, seconds: float) -> None:
        """Draw the span of a response or dead letter that has been acknowledged after `seconds`."""
        now = time.time_ns()
        created = _span_context(last_values(record.headers))
        with self._lock:
            parent = self._attempts.get(record.source, created)
        span = self._tracer.start_span(
            f"send {sent.topic}",
            _under(parent),
            SpanKind.PRODUCER,
            {
                **self._common,
                "messaging.operation.name": "send",
                "messaging.operation.type": "send",
                "messaging.destination.name": sent.topic,
                "messaging.message.body.size": len(sent.value or b""),
            },
            _links(created),
            start_time=now - int(seconds * 1e9),
        )
        span.end(now)

    def end_overdue(self) -> None:
        """End the spans of attempts that are past their deadline: their calls may never return."""
        with self._lock:
            overdue = [span for span, request in self._open.items() if request.deadline.remaining() <= 0]
        for span in overdue:
            self._end(span, "AttemptTimeout")

    def close(self, timeout: float) -> bool:
        """Send what is waiting, for at most `timeout` seconds; False when that was not enough.

        Calls that are still running have been given up: their requests are redelivered.
        """
        with self._lock:
            running = list(self._open)
        for span in running:
            self._end(span, "Abandoned")
        # The SDK's own limit is fixed at half a minute.
        closing = threading.Thread(target=self._provider.shutdown, name="spans-close", daemon=True)
        closing.start()
        closing.join(timeout)
        return not closing.is_alive()

    def _begin(self, request: Request) -> Span:
        created = _span_context(request.headers)
        span = self._tracer.start_span(
            f"process {request.topic}",
            _under(created),
            SpanKind.CONSUMER,
            {
                **self._common,
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.destination.name": request.topic,
                "messaging.destination.partition.id": str(request.partition),
                "messaging.kafka.offset": request.offset,
                "messaging.consumer.group.name": self._group,
                "messaging.message.conversation_id": request.id[:_LONGEST_ID],
                "gigaoffice.attempt": request.attempt,
            },
            _links(created),
        )
        at = span.get_span_context()
        request.headers = {**request.headers, **_headers(at)}
        with self._lock:
            self._open[span] = request
            self._remember(Source(request.topic, request.partition, request.offset), at)
        return span

    def _remember(self, source: Source, at: SpanContext) -> None:
        self._attempts[source] = at
        self._attempts.move_to_end(source)
        if len(self._attempts) > _REMEMBERED:
            self._attempts.popitem(last=False)

    def _end(self, span: Span, error_type: str | None) -> None:
        """End a span, unless that has been done already."""
        with self._lock:
            if self._open.pop(span, None) is None:
                return
        if error_type is not None:
            span.set_attribute("error.type", error_type)
            span.set_status(Status(StatusCode.ERROR))
        span.end()


def _span_context(headers: Mapping[str, bytes]) -> SpanContext | None:
    """Return the context in which a record was created, if it carries a valid one."""
    found = trace_context(headers)
    if TRACEPARENT not in found:
        return None
    _version, trace_id, span_id, flags = found[TRACEPARENT].decode("ascii").split("-")
    state = TraceState.from_header([found.get(TRACESTATE, b"").decode("ascii")])
    return SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)), state)


def _under(parent: SpanContext | None) -> context.Context:
    """Return the context of a child; never the thread's, which is nothing that a request has to do with."""
    empty = context.Context()
    return trace.set_span_in_context(trace.NonRecordingSpan(parent), empty) if parent is not None else empty


def _links(created: SpanContext | None) -> list[Link]:
    return [Link(created)] if created is not None else []


def _ids(at: SpanContext) -> dict[str, str]:
    return {"trace_id": f"{at.trace_id:032x}", "span_id": f"{at.span_id:016x}"}


def _headers(at: SpanContext) -> dict[str, bytes]:
    headers = {TRACEPARENT: f"00-{at.trace_id:032x}-{at.span_id:016x}-{at.trace_flags:02x}".encode()}
    state = at.trace_state.to_header()
    return {**headers, TRACESTATE: state.encode()} if state else headers
