"""What travels over the three topics, as JSON Schema and as AsyncAPI, from the types that the worker itself uses."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType, field

from gigaoffice_worker.core.documents import ResponseDocument
from gigaoffice_worker.core.records import Reason

_DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
_DEFINITIONS: Final = "#/$defs/{name}"
_COMPONENTS: Final = "#/components/schemas/{name}"

Digits = Annotated[str, Meta(pattern="^[0-9]+$")]


class RequestDocument(msgspec.Struct):
    """The value of a request: any JSON object. All fields but `id` belong to the handler."""

    id: (
        Annotated[str, Meta(min_length=1, description="names the request; without it the record's key does")]
        | UnsetType
    ) = UNSET
    user_id: Any = UNSET
    priority: Any = UNSET
    query: Any = UNSET
    input_range: Any = UNSET
    category: Any = UNSET
    input_data: Any = UNSET
    created_at: Any = UNSET
    timestamp: Any = UNSET


class RequestHeaders(msgspec.Struct, rename="kebab"):
    """Headers of a request that the worker reads; each is UTF-8 text."""

    expires_at: Annotated[Digits, Meta(description="milliseconds since the epoch")] | UnsetType = UNSET
    ttl_ms: Annotated[Digits, Meta(description="milliseconds after the record's timestamp")] | UnsetType = UNSET
    traceparent: str | UnsetType = UNSET
    tracestate: str | UnsetType = UNSET


class _Source(msgspec.Struct, rename="kebab", kw_only=True):
    source_topic: str
    source_partition: Digits
    source_offset: Digits
    source_timestamp: Annotated[Digits, Meta(description="milliseconds since the epoch")]


class ResponseHeaders(_Source, rename="kebab", kw_only=True):
    """Headers of a response, each UTF-8 text: which delivery it answers, and what its calls used."""

    usage: Annotated[str, Meta(description="JSON: input_tokens, output_tokens, model, cost")] | UnsetType = UNSET
    request_digest: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")] | UnsetType = UNSET
    duplicate_of: Annotated[str, Meta(description="topic-partition-offset")] | UnsetType = UNSET
    traceparent: str | UnsetType = UNSET
    tracestate: str | UnsetType = UNSET
    correlation_id: str | UnsetType = field(default=UNSET, name="correlation_id")
    kafka_correlation_id: str | UnsetType = field(default=UNSET, name="kafka_correlationId")


class DeadLetterHeaders(_Source, rename="kebab", kw_only=True):
    """Headers of a dead letter, behind those of the request, each UTF-8 text."""

    dlq_reason: Reason
    dlq_error_type: str
    dlq_error_message: Annotated[str, Meta(max_length=1000)]
    dlq_error_at: Annotated[str, Meta(description="innermost frame of the handler's own code")] | UnsetType = UNSET
    dlq_attempts: Digits
    dlq_timestamp: Annotated[str, Meta(description="ISO 8601, UTC")]
    dlq_consumer_group: str
    dlq_worker_version: str
    dlq_replays: Digits | UnsetType = UNSET
    dlq_null_headers: Annotated[str, Meta(description="names, separated by commas")] | UnsetType = UNSET


_TYPES: Final = {
    "request": RequestDocument,
    "response": ResponseDocument,
    "dead-letter": DeadLetterHeaders,
}
NAMES: Final = tuple(_TYPES)


def json_schema(name: str) -> dict[str, Any]:
    """Return the schema of a request's value, of a response's value, or of a dead letter's headers."""
    wanted = _TYPES[name]
    (schema,), definitions = msgspec.json.schema_components([wanted], ref_template=_DEFINITIONS)
    return {"$schema": _DRAFT, **definitions.pop(_name_in(schema)), **({"$defs": definitions} if definitions else {})}


def asyncapi(*, version: str, requests: str, responses: str, dead_letters: str) -> dict[str, Any]:
    """Return the three topics and what the worker does with them as an AsyncAPI 3 document."""
    kinds = [RequestDocument, RequestHeaders, ResponseDocument, ResponseHeaders, DeadLetterHeaders]
    _, schemas = msgspec.json.schema_components(kinds, ref_template=_COMPONENTS)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "gigaoffice-worker",
            "version": version,
            "description": "Requests in, responses out, at least once; what cannot be processed goes to a third topic.",
        },
        "defaultContentType": "application/json",
        "channels": {
            "requests": _channel(requests, "request"),
            "responses": _channel(responses, "response"),
            "deadLetters": _channel(dead_letters, "deadLetter"),
        },
        "operations": {
            "receiveRequest": {
                "action": "receive",
                "channel": {"$ref": "#/channels/requests"},
                "reply": {"channel": {"$ref": "#/channels/responses"}},
            },
            "sendResponse": {"action": "send", "channel": {"$ref": "#/channels/responses"}},
            "sendDeadLetter": {"action": "send", "channel": {"$ref": "#/channels/deadLetters"}},
        },
        "components": {
            "messages": {
                "request": _message("RequestDocument", "RequestHeaders", "any bytes, or none"),
                "response": _message("ResponseDocument", "ResponseHeaders", "the request's key"),
                "deadLetter": _message(None, "DeadLetterHeaders", "the request's key, byte for byte"),
            },
            "schemas": schemas,
        },
    }


def _channel(topic: str, message: str) -> dict[str, Any]:
    messages = {message: {"$ref": f"#/components/messages/{message}"}}
    return {"address": topic, "messages": messages, "bindings": {"kafka": {"topic": topic}}}


def _message(payload: str | None, headers: str, key: str) -> dict[str, Any]:
    said = {"headers": {"$ref": _COMPONENTS.format(name=headers)}}
    if payload is not None:
        said["payload"] = {"$ref": _COMPONENTS.format(name=payload)}
    return {**said, "bindings": {"kafka": {"key": {"description": key}}}}


def _name_in(reference: dict[str, Any]) -> str:
    return str(reference["$ref"]).rpartition("/")[2]
