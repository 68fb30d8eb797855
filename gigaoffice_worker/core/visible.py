"""The one wall between foreign text and a terminal: no control character passes, and no text can begin a line.

Ids, topics, headers and error messages are written by anybody. Printed as they are, they could move the cursor, set
the window's title, run text backwards, or forge a line that looks like one of ours.
"""

from __future__ import annotations

import json
from typing import Any


def visible(text: str) -> str:
    r"""Return `text` on one line: what is not printable, and any space but the plain one, is escaped, as `\u001b`.

    That holds for C0 and C1 controls, line ends, direction overrides, zero-width characters and lone surrogates.
    """
    return text if text.isprintable() else "".join(each if each.isprintable() else _escape(each) for each in text)


def visible_lines(text: str) -> str:
    """Return `text` with the line ends of our own and nothing else that a terminal obeys.

    Every line but the first is indented, so that none can be taken for a line of ours, as `hint: …`.
    """
    first, *others = text.split("\n")
    return "\n".join([visible(first), *(f"  {visible(each.strip())}" for each in others)])


def visible_json(value: Any, *, indent: int | None = None, default: Any = None) -> str:
    """Return `value` as JSON that reads back the same and holds no character that a terminal obeys.

    Half a surrogate pair is the exception: it is no character, and strict readers refuse its escape, so it comes as the
    six characters of that escape. `default` is the one of `json.dumps`. Raises what `json.dumps` raises.
    """
    written = json.dumps(value, ensure_ascii=False, indent=indent, default=default)
    # Within JSON's texts a line end is escaped already: what is left stands between them.
    return "\n".join(map(escape_json, written.split("\n"))) if indent is not None else escape_json(written)


def escape_json(line: str) -> str:
    """Return a line of JSON with an escape for each character in it that is not printable."""
    if line.isprintable():
        return line
    return "".join(each if each.isprintable() else _json_escape(each) for each in line)


def _json_escape(character: str) -> str:
    return f"\\{_escape(character)}" if "\ud800" <= character <= "\udfff" else _escape(character)


def _escape(character: str) -> str:
    # JSON's own escapes, short ones included; what JSON need not escape (DEL) comes in its long form.
    escaped = json.dumps(character)[1:-1]
    return escaped if escaped.isprintable() else f"\\u{ord(character):04x}"
