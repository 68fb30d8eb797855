"""Passwords and tokens, which must not reach a log, a repr or a listing."""

from __future__ import annotations

MASK = "********"


class Secret:
    """A text that shows itself only when asked to: printed, formatted or in a repr it is a mask."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself, for the one place that has to send it."""
        return self._text

    def __repr__(self) -> str:
        return MASK

    def __format__(self, _spec: str) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)
