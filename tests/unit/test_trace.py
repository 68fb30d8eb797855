"""Trace context: what is passed on, and what is not."""

from __future__ import annotations

import pytest

from gigaoffice_worker.core.trace import trace_context

PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_valid_pair_is_passed_on_and_nothing_else():
    headers = {"traceparent": PARENT, "tracestate": b"rojo=00f067aa0ba902b7", "other": b"x"}
    assert trace_context(headers) == {"traceparent": PARENT, "tracestate": b"rojo=00f067aa0ba902b7"}


def test_a_parent_needs_no_state():
    assert trace_context({"traceparent": PARENT}) == {"traceparent": PARENT}


def test_a_state_without_a_parent_is_dropped():
    assert trace_context({"tracestate": b"a=1"}) == {}


@pytest.mark.parametrize(
    "parent",
    [
        b"",
        b"00",
        PARENT + b"-extra",
        PARENT + b"\n",
        b" " + PARENT,
        PARENT.upper(),
        b"01" + PARENT[2:],
        b"ff" + PARENT[2:],
        b"00-" + b"0" * 32 + PARENT[35:],
        PARENT[:36] + b"0" * 16 + b"-01",
        PARENT.replace(b"-", b"_"),
        PARENT[:-1] + b"g",
        PARENT[:-1],
        PARENT[:-1] + b"\xd9\xa1",
    ],
)
def test_anything_but_version_00_in_55_characters_is_dropped_with_its_state(parent):
    assert trace_context({"traceparent": parent, "tracestate": b"a=1"}) == {}


@pytest.mark.parametrize("zeros", ["0af7651916cd43dd0000000000000000", "00000000000000008448eb211c80319c"])
def test_an_id_with_some_zeros_is_an_id(zeros):
    parent = f"00-{zeros}-00000000000000ff-00".encode()
    assert trace_context({"traceparent": parent}) == {"traceparent": parent}


@pytest.mark.parametrize(
    "state",
    [
        b"a=1",
        b"a=1,b=2",
        b" a=1 ,\tb=2,",
        b"tenant@vendor=x y",
        b"1tenant@vendor=x",
        b"k-_*/9=!~",
        b"a=" + b"x" * 256,
        b",".join(b"k%d=v" % n for n in range(32)),
    ],
)
def test_a_valid_state_is_passed_on_byte_for_byte(state):
    assert trace_context({"traceparent": PARENT, "tracestate": state})["tracestate"] == state


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b",",
        b"a",
        b"a=",
        b"=1",
        b"A=1",
        b"9=1",
        b"a=1,a=2",
        b"a=x=y",
        b"a=\xd1\x8f",
        b"a=1\r\nX-Evil: 1",
        b"a@9x=1",
        b"a=" + b"x" * 257,
        b",".join(b"k%d=v" % n for n in range(33)),
        b"a=" + b"x" * 250 + b",b=" + b"x" * 250 + b",c=12345",
    ],
)
def test_a_bad_state_is_dropped_alone(state):
    assert trace_context({"traceparent": PARENT, "tracestate": state}) == {"traceparent": PARENT}
