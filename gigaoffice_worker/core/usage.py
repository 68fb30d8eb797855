"""What a handler's calls used, as it reports it: tokens in and out, by model, and what they cost."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

Number = TypeVar("Number", int, float)

_LONGEST_NAME: Final = 64


@dataclass(slots=True)
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
        """Check what a handler reports. Raises TypeError or ValueError, which name what is wrong with it."""
        for name, tokens in (("input_tokens", input_tokens), ("output_tokens", output_tokens)):
            _check(name, tokens, (int,), "a whole number")
        _check("cost", cost, (int, float), "a number")
        if model is not None and not isinstance(model, str):
            raise TypeError(f"model must be a text, not {type(model).__name__}")
        named = model[:_LONGEST_NAME] if model is not None else None
        return cls(input_tokens, output_tokens, named, float(cost) if cost is not None else None)

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
            total = Usage()
        total.input_tokens = _added(total.input_tokens, report.input_tokens)
        total.output_tokens = _added(total.output_tokens, report.output_tokens)
        total.cost = _added(total.cost, report.cost)
        total.model = report.model or total.model
    return total


def _added(total: Number | None, more: Number | None) -> Number | None:
    return total if more is None else more if total is None else total + more


def _check(name: str, value: object, kinds: tuple[type, ...], wanted: str) -> None:
    if value is None:
        return
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise TypeError(f"{name} must be {wanted}, not {type(value).__name__}")
    if not 0 <= value < math.inf:  # type: ignore[operator]  # it is a number
        raise ValueError(f"{name} must be at least 0, not {value}")
