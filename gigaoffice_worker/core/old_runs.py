"""Runs that go on although their partition was lost, where that partition has come back to this process."""

from __future__ import annotations

from collections.abc import Iterable

from gigaoffice_worker.core.work import Lane, Work

_Name = tuple[str, int, bytes | int | None]
"""A lane whatever its assignment; of a request in no lane, its place."""


class OldRuns:
    """Runs of lost assignments, and the lanes that wait for them to end; nearly always there are none.

    A call cannot be taken back. The requests of its key, read anew, must not run beside it, and nor must the request
    itself where it has no key.
    """

    def __init__(self) -> None:
        self.running: dict[_Name, Work] = {}
        self._waiting: dict[_Name, Lane] = {}

    def add(self, works: Iterable[Work]) -> None:
        """Note runs whose assignment is lost."""
        for work in works:
            self.running[_name(work)] = work

    def lane_behind(self, work: Work) -> Lane | None:
        """Return the lane in which a request that was just received waits for an old run; None if it need not."""
        name = _name(work)
        if name not in self.running:
            return None
        lane = self._waiting[name] = work.lane or (work.assignment, work.record.offset)
        return lane

    def ended(self, work: Work) -> Lane | None:
        """Note that a run is over, or given up; return the lane that waits for it."""
        name = _name(work)
        if self.running.get(name) is not work:
            return None
        del self.running[name]
        return self._waiting.pop(name, None)


def _name(work: Work) -> _Name:
    record = work.record
    return (record.topic, record.partition, work.lane[1] if work.lane is not None else record.offset)
