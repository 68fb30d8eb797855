"""Bad input, one of each kind, and what is to come of it; and records by chance, the same in every run.

`python -m tests.support.corpus` prints the table of docs/security.md; tests hold that table against this file, and this
file against a running worker.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from gigaoffice_worker.core.messages import InvalidRequestError, decode_request
from gigaoffice_worker.core.records import Record

MARKER = "payload-text-that-no-log-may-hold"
ANSWERED, DEAD = "answered", "dead-lettered"
FUZZED = 300
# What a broker takes by default, less what a batch adds.
LARGEST = 1_048_588 - 512

Headers = list[tuple[str, bytes | None]]


class Case(NamedTuple):
    """A record, and what comes of it. `id` is the id of its response, None where it has none or is named by place."""

    kind: str
    name: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    outcome: str


def cases() -> list[Case]:
    return [
        Case(kind, name, name.encode(), value, [], outcome)
        for kind, outcome, values in _VALUES
        for name, value in values.items()
    ] + list(_others())


def fuzzed() -> list[Case]:
    """Return records by chance: requests with bytes put in, taken out and exchanged, or nothing but noise."""
    dice = random.Random(6)
    return [_by_chance(dice, number) for number in range(FUZZED)]


def table() -> str:
    """Return what was tried as a Markdown table, by kind."""
    rows: dict[str, list[str]] = {}
    for case in [*cases(), *fuzzed()]:
        rows.setdefault(case.kind, []).append(case.outcome)
    lines = ["| bad input | tried | answered | dead-lettered | crashed |", "| --- | --: | --: | --: | --: |"]
    rows["together"] = [outcome for outcomes in rows.values() for outcome in outcomes]
    for kind, outcomes in rows.items():
        lines.append(f"| {kind} | {len(outcomes)} | {outcomes.count(ANSWERED)} | {outcomes.count(DEAD)} | 0 |")
    return "\n".join(lines)


def outcome_of(key: bytes | None, value: bytes | None) -> str:
    try:
        decode_request(Record("t", 0, 0, 0.0, key, value))
    except InvalidRequestError:
        return DEAD
    return ANSWERED


def _request(**fields: object) -> bytes:
    return json.dumps({"note": MARKER, **fields}).encode()


def _raw(inner: str) -> bytes:
    return f'{{"note": "{MARKER}", {inner}}}'.encode()


def _filled(start: bytes, end: bytes) -> bytes:
    return start + b"x" * (LARGEST - len(start) - len(end) - 100) + end


_VALUES: list[tuple[str, str, dict[str, bytes | None]]] = [
    ("no value, or nothing in it", DEAD, {"null": None, "empty": b"", "blanks": b" \r\n\t", "a-zero-byte": b"\0"}),
    (
        "not UTF-8",
        DEAD,
        {
            "latin-1": '{"note": "é"}'.encode("latin-1"),
            "cut-in-a-character": '{"note": "é'.encode()[:-1],
            "overlong": b'{"note": "\xc0\xaf"}',
            "byte-order-mark": b"\xef\xbb\xbf" + _request(),
            "utf-16": _request().decode().encode("utf-16"),
            "utf-16-le": _request().decode().encode("utf-16-le"),
            "utf-32": _request().decode().encode("utf-32"),
            "surrogate-in-utf-8": b'{"note": "\xed\xa0\x80"}',
            "gzip": b"\x1f\x8b\x08\x00" + MARKER.encode(),
        },
    ),
    (
        "not JSON",
        DEAD,
        {
            "truncated": _request()[:-1],
            "truncated-in-a-string": _request()[:-3],
            "truncated-in-an-escape": b'{"note": "\\u00',
            "two-values": _request() + _request(),
            "trailing-comma": b'{"note": 1,}',
            "single-quotes": b"{'note': 1}",
            "comment": b'{"note": 1} // ' + MARKER.encode(),
            "xml": b"<request>" + MARKER.encode() + b"</request>",
            "nan": _raw('"n": NaN'),
            "infinity": _raw('"n": -Infinity'),
            "leading-zero": _raw('"n": 007'),
            "hexadecimal": _raw('"n": 0x10'),
            "lone-surrogate": _raw('"n": "\\ud800"'),
            "lone-surrogate-in-a-name": _raw('"\\udc00": 1'),
            "zero-byte-in-a-string": _raw('"n": "a\0b"'),
            "line-break-in-a-string": _raw('"n": "a\nb"'),
            "1e400": _raw('"n": 1e400'),
        },
    ),
    (
        "JSON, but no object",
        DEAD,
        {
            "array": json.dumps([MARKER]).encode(),
            "string": json.dumps(MARKER).encode(),
            "number": b"1",
            "true": b"true",
            "null-literal": b"null",
            "million-objects": b"[" + b"{}," * 349_000 + b"{}]",
        },
    ),
    (
        "nested too deeply",
        DEAD,
        {
            "arrays": b'{"n":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            "objects": b'{"n":' * 100_000 + b"1" + b"}" * 100_000,
            "never-closed": b'{"n":' * 100_000,
        },
    ),
    (
        "odd, but a request",
        ANSWERED,
        {
            "no-fields": b"{}",
            "depth-100": b'{"n":' * 100 + b"1" + b"}" * 100,
            "zero-escaped": _raw('"n": "a\\u0000b"'),
            "controls-escaped": _raw('"n": "\\u001b[2J\\r\\n\\u009b"'),
            "name-twice": _raw('"n": 1, "n": 2'),
            "id-twice": b'{"id": "first", "id": "last"}',
            "smallest-number": _raw('"n": 1e-400'),
            "80-bits": _raw(f'"n": {2**80}'),
            "quarter-million-objects": b'{"n": [' + b"{}," * 250_000 + b"{}]}",
            "thousand-names": _request(**{f"f{n}": n for n in range(1000)}),
            "name-empty": _raw('"": 1'),
            "names-of-python": _raw('"__class__": "x", "__proto__": {}, "self": 1'),
        },
    ),
    ("a number of 5,000 digits", DEAD, {"integer": _raw(f'"n": {"9" * 5000}')}),
    (
        "known fields of a wrong type",
        ANSWERED,
        {
            f"{field}-{type(wrong).__name__}": _request(**{field: wrong})
            for field in ("user_id", "priority", "query", "input_range", "category", "input_data", "created_at")
            for wrong in (None, -1, [], {})
        },
    ),
    (
        "an id that is no text",
        DEAD,
        {f"id-{type(wrong).__name__}": _request(id=wrong) for wrong in (None, True, 7, 1.5, "", ["a"], {"a": 1})},
    ),
    (
        "an id to mislead",
        ANSWERED,
        {
            name: _request(id=text)
            for name, text in {
                "path": "../../../etc/passwd",
                "html": "<script>alert(1)</script><!--",
                "format": "%s%n{0.__class__}${jndi:ldap://127.0.0.1/a}",
                "line-breaks": 'a\r\n{"level":"error"}\n',
                "terminal": "\x1b]0;x\x07\x9b2J\x7f",
                "right-to-left": "\u202etxt.exe\u2028\ufeff",
                "zero": "\0",
                "long": "i" * 20_000,
                "blank": " ",
            }.items()
        },
    ),
    ("as large as the topic takes", ANSWERED, {"large": _filled(b'{"note": "', b'"}')}),
    ("as large as the topic takes, and broken", DEAD, {"large-broken": _filled(b'{"note": "', b"")}),
]


def _others() -> Iterator[Case]:
    kind = "odd keys"
    for name, key in {
        "none": None,
        "empty": b"",
        "not-utf-8": b"\xff\xfe\x00",
        "zero": b"\0",
        "controls": b"\x1b[31m\r\n",
        "large": b"k" * 100_000,
    }.items():
        yield Case(kind, f"key-{name}", key, _request(), [], ANSWERED)
        yield Case(kind, f"key-{name}-broken", key, b"{", [], DEAD)
    kind = "odd headers"
    for name, headers in _HEADERS.items():
        yield Case(kind, f"header-{name}", name.encode(), _request(), headers, ANSWERED)
        yield Case(kind, f"header-{name}-broken", name.encode(), b"{", headers, DEAD)


_HEADERS: dict[str, Headers] = {
    "without-value": [("a", None), ("b", b""), ("a", b"1")],
    "bytes": [("a", bytes(range(256)))],
    "no-name": [("", b"x"), ("", None)],
    "comma-in-name": [("a,b", None), ("a", b"")],
    "controls-in-name": [("a\r\nb\x1b[2J", MARKER.encode())],
    "long-name": [("n" * 30_000, b"x")],
    "many": [(f"h{n}", b"x") for n in range(2000)],
    "ours": [("dlq-reason", b"x"), ("dlq-replays", b"\xff"), ("source-offset", b"-1"), ("dlq-null-headers", b"a,,b")],
    "false-trace": [("traceparent", b"\xff" * 1000), ("tracestate", None)],
}


def _by_chance(dice: random.Random, number: int) -> Case:
    value: bytes = dice.randbytes(dice.randrange(60)) if dice.random() < 0.2 else _spoilt(dice, _request(n=number))
    key = dice.choice([None, b"", b"k%d" % number, dice.randbytes(6)])
    headers: Headers = [
        (dice.choice(["a", "b", "dlq-x", "ж"]), dice.choice([None, b"", dice.randbytes(9)]))
        for _ in range(dice.randrange(4))
    ]
    return Case("requests spoilt by chance", f"chance-{number}", key, value, headers, outcome_of(key, value))


def _spoilt(dice: random.Random, whole: bytes) -> bytes:
    change: Callable[[bytes, int], bytes] = dice.choice(
        [
            lambda text, at: text[:at] + dice.randbytes(1) + text[at + 1 :],
            lambda text, at: text[:at] + text[at + 1 :],
            lambda text, at: text[:at],
            lambda text, at: text[:at] + text[at:] * 2,
            lambda text, at: text,
        ]
    )
    return change(whole, dice.randrange(len(whole)))


if __name__ == "__main__":
    print(table())
