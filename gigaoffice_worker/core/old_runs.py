"""Runs that go on although their partition was lost, where that partition has come back to this process."""

from __future__ import annotations

from collections.abc import Iterable

from gigaoffice_worker.core.journal import Identity
from gigaoffice_worker.core.work import Lane, Stage, Work

_Name = tuple[str, int, bytes | int | None]
"""A lane whatever its assignment; of a request in no lane, its place."""


class OldRuns:
    """Runs of lost assignments, and the lanes that wait for them to end; nearly always there are none.

    A call cannot be taken back. The requests of its key, read anew, must not run beside it, and nor must the request
    itself where it has no key.
    """

    def __init__(self) -> None:
        self.running: dict[_Name, Work] = {}
        # The lane that waits for each of them, and the request that was received first in it.
        self._waiting: dict[_Name, tuple[Lane, Work]] = {}

    def add(self, works: Iterable[Work]) -> None:
        """Note runs whose assignment is lost."""
        for work in works:
            self.running[_name(work)] = work

    def lane_behind(self, work: Work) -> Lane | None:
        """Return the lane in which a request that was just received waits for an old run; None if it need not."""
        name = _name(work)
        if name not in self.running:
            return None
        lane = work.lane or (work.assignment, work.record.offset)
        self._waiting[name] = lane, work
        return lane

    def heir(self, work: Work) -> Work | None:
        """Return the same request, received anew, where it waits for an old run and needs the answer to that.

        One that owes its response only has its outcome already.
        """
        if (waiting := self._waiting.get(_name(work))) is None:
            return None
        first = waiting[1]
        waits = first.stage is Stage.QUEUED and not first.assignment.lost and first.owed is None
        return first if waits and Identity.of(first.record) == Identity.of(work.record) else None

    def ended(self, work: Work) -> Lane | None:
        """Note that a run is over, or given up; return the lane that waits for it."""
        name = _name(work)
        if self.running.get(name) is not work:
            return None
        del self.running[name]
        lane, _ = self._waiting.pop(name, (None, None))
        return lane


def _name(work: Work) -> _Name:
    record = work.record
    return (record.topic, record.partition, work.lane[1] if work.lane is not None else record.offset)
