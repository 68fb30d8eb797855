"""An OpenTelemetry collector on loopback, as much of one as a test needs: OTLP over HTTP, kept in memory."""

from __future__ import annotations

import gzip
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.services import Exchange, Service


class Collector(Service):
    """Takes spans at `/v1/traces`."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = self._take
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def _take(self, exchange: Exchange) -> None:
        asked = self.asked[-1]
        body = gzip.decompress(asked.body) if asked.headers.get("content-encoding") == "gzip" else asked.body
        for found in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append({each.key: each.value.string_value for each in found.resource.attributes})
            self.spans += [span for scope in found.scope_spans for span in scope.spans]
        exchange.reply(200, headers={"Content-Type": "application/x-protobuf"})


def attributes(span: Any) -> dict[str, Any]:
    """Return a span's attributes as plain values."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}
