"""A clock for the client library that no time server and no administrator can turn.

kafka-python 2.3.3 measures heartbeats, time-outs and backoffs with the wall clock. Set back by an hour, it would send
no heartbeat for an hour and be thrown out of its group again and again, and a poll under way would wait as long.
Only the timestamps of records are left to the wall clock.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Final

# Far from zero, which the client takes for "never".
_BEGINNING: Final = 1_000_000_000.0
_BY_THE_WALL: Final = "kafka.record."


class SteadyTime:
    """Stands in for the module `time`."""

    def time(self) -> float:
        """Return seconds of the monotonic clock."""
        return _BEGINNING + time.monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


STEADY: Final = SteadyTime()


def steady_the_client() -> None:
    """Give every module of the client that is loaded the steady clock. To be called before a client is made."""
    for name, module in list(sys.modules.items()):
        clock = getattr(module, "time", None) if name.startswith("kafka.") else None
        if clock is time and not name.startswith(_BY_THE_WALL):
            setattr(module, "time", STEADY)  # noqa: B010  # the type checker knows no such attribute
