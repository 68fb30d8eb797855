"""What a handler's calls used, as it reports it: tokens in and out, by model, and what they cost."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from gigaoffice_worker.core.visible import visible

Number = TypeVar("Number", int, float)

MOST: Final = 10**15
"""What a report or a sum tells at most, of tokens and of cost: exact in the floats of metrics, and JSON for anybody."""
_LONGEST_NAME: Final = 64


@dataclass(frozen=True, slots=True)
class Usage:
    """One report, or the sum of several: what was not reported is None."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    model: str | None = None
    cost: float | None = None

    @property
    def tokens(self) -> int:
        """Tokens in both directions."""
        return (self.input_tokens or 0) + (self.output_tokens or 0)

    @classmethod
    def reported(
        cls, input_tokens: int | None, output_tokens: int | None, model: str | None, cost: float | None
    ) -> Usage:
        """Make plain values of what a handler reports, and of the model's name one line that is text everywhere.

        Raises TypeError or ValueError, which name what is wrong with it.
        """
        if model is not None and not isinstance(model, str):
            raise TypeError(f"model must be a text, not {type(model).__name__}")
        price = _checked("cost", cost, (int, float), "a number")
        return cls(
            _checked("input_tokens", input_tokens, (int,), "a whole number"),
            _checked("output_tokens", output_tokens, (int,), "a whole number"),
            _shortened(visible(_shortened(model))) if model else None,
            float(price) if price is not None else None,
        )

    def encode(self) -> bytes:
        """Return the JSON of the response's header `usage`: the fields that were reported."""
        fields = {name: getattr(self, name) for name in ("input_tokens", "output_tokens", "model", "cost")}
        told = {name: value for name, value in fields.items() if value is not None}
        return json.dumps(told, separators=(",", ":")).encode()


def summed(reports: Iterable[Usage]) -> Usage | None:
    """Return the sum of reports, with the model of the newest one that names it; None where there is none."""
    total: Usage | None = None
    for report in reports:
        if total is None:
            total = report
        else:
            total = Usage(
                _added(total.input_tokens, report.input_tokens),
                _added(total.output_tokens, report.output_tokens),
                report.model or total.model,
                _added(total.cost, report.cost),
            )
    return total


def _added(total: Number | None, more: Number | None) -> Number | None:
    return total if more is None else more if total is None else min(total + more, type(more)(MOST))


def _checked(name: str, value: Any, kinds: tuple[type, ...], wanted: str) -> Any:
    if value is None:
        return None
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise TypeError(f"{name} must be {wanted}, not {type(value).__name__}")
    # By the plain type's own method: a subclass may do anything.
    plain = int.__int__(value) if isinstance(value, int) else float.__float__(value)  # type: ignore[arg-type]
    if not 0 <= plain <= MOST:  # the message leaves the value out: it may have more digits than Python prints
        raise ValueError(f"{name} must be between 0 and {MOST:,}")
    return plain


def _shortened(name: str) -> str:
    return str.__getitem__(name, slice(_LONGEST_NAME))
