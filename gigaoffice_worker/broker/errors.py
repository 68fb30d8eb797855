"""The errors that this room raises besides WorkerErrors: what the engine has to act on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_LONGEST_REASON: Final = 300
_BYTES_IN_TEXT: Final = re.compile(r"""(?:bytearray\()?\bb(['"]).*?\1""", re.DOTALL)


class CommitLostError(Exception):
    """The commit came from a membership that is over; somebody else may own the partitions."""


class CommitRetriableError(Exception):
    """The commit may succeed later: no answer in time, or no coordinator."""


class CommitMapTooLargeError(Exception):
    """The broker takes less metadata with a commit than was sent."""


class CommitRefusedError(Exception):
    """The broker refused the commit for a reason that may be the fault of one partition or of our rights."""


class FencedError(Exception):
    """Another member uses our group instance id."""


class OutOfRangeError(Exception):
    """Positions outside of the log: `positions` by partition."""

    def __init__(self, positions: Mapping[int, int]) -> None:
        super().__init__(f"positions outside of the log: {dict(positions)}")
        self.positions = dict(positions)


class UndecodableError(Exception):
    """The client cannot decode what stands at `offset` of `partition`; nothing behind it can be read either.

    `behind` is where the next batch begins, None where that is not known. `reason` quotes nothing of the record.
    """

    def __init__(self, partition: int, offset: int, cause: Exception, behind: int | None = None) -> None:
        self.partition = partition
        self.offset = offset
        self.cause = cause
        self.behind = behind
        self.reason = _reason(cause)
        super().__init__(f"record {partition}-{offset} cannot be decoded: {self.reason}")


class HeldBackError(Exception):
    """An older record of the partition failed, so this one was not sent: it would overtake that one."""


class TopicUnavailableError(Exception):
    """The topic has no partition that could be written to, as far as the client knows."""


def _reason(cause: Exception) -> str:
    error: BaseException | None = cause
    while error is not None:
        if isinstance(error, UnicodeDecodeError):  # text that the client decodes by itself: nothing else is
            return "a header name is not UTF-8"
        error = error.__cause__ or error.__context__
    text = _BYTES_IN_TEXT.sub("…", str(cause))[:_LONGEST_REASON]
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__
