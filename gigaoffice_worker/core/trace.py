"""W3C trace context in record headers: only what is valid is passed on."""

from __future__ import annotations

import re
from collections.abc import Mapping

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

# Version 00: version, trace id, parent id and flags in lower case; ids of zeros alone are invalid.
_PARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_KEY = rb"[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13}|[a-z][a-z0-9_\-*/]{0,255}"
_MEMBER = re.compile(rb"(%b)=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]" % _KEY)
_MOST_MEMBERS = 32
_LONGEST_STATE = 512


def trace_context(headers: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the valid trace headers: both, `traceparent` alone, or none.

    A `tracestate` says nothing without its parent, so it is dropped with it; a bad one is dropped alone.
    """
    parent, state = headers.get(TRACEPARENT), headers.get(TRACESTATE)
    if parent is None or not _PARENT.fullmatch(parent):
        return {}
    if state is None or not _is_state(state):
        return {TRACEPARENT: parent}
    return {TRACEPARENT: parent, TRACESTATE: state}


def trace_fields(headers: Mapping[str, bytes]) -> dict[str, str]:
    """Return `trace_id` and `span_id` of a valid trace context, as log lines carry them; else nothing."""
    parent = headers.get(TRACEPARENT)
    if parent is None or not _PARENT.fullmatch(parent):
        return {}
    _version, trace, span, _flags = parent.decode("ascii").split("-")
    return {"trace_id": trace, "span_id": span}


def _is_state(value: bytes) -> bool:
    if len(value) > _LONGEST_STATE:
        return False
    members = [member for part in value.split(b",") if (member := part.strip(b" \t"))]
    matches = [_MEMBER.fullmatch(member) for member in members]
    keys = {match[1] for match in matches if match}
    return 0 < len(members) <= _MOST_MEMBERS and len(keys) == len(members)
