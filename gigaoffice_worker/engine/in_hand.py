"""What is in hand: the attempts that run and the outcomes on their way, and who waits for them to end.

The dispatcher changes it under its lock; the questions take that lock themselves.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from gigaoffice_worker.core.journal import Floor
from gigaoffice_worker.core.work import Assignment, Work

_HIGHEST = Floor(1 << 62, {})


class InHand:
    """The attempts that run, by request with the number of their run, and the requests of ours that delivery has.

    `heir_of` returns the request that waits for the run of a lost partition, to take its result; None where none does.
    """

    def __init__(
        self, lock: threading.Lock, clock: Callable[[], float], heir_of: Callable[[Work], Work | None]
    ) -> None:
        self.running: dict[Work, int] = {}
        self.delivering: set[Work] = set()
        self._lock = lock
        self._clock = clock
        self._heir_of = heir_of
        self._changed = threading.Condition(lock)
        # Whether anybody waits for a change, which is seldom: to notify nobody takes longer than to look.
        self.observed = False

    def changed(self) -> None:
        """Tell whoever waits that something has ended. Call it with the lock held."""
        if self.observed:
            self._changed.notify_all()

    def attempts(self, *, longer_than: float = -math.inf) -> list[tuple[Work, int]]:
        """Return the attempts that have run for more than `longer_than` seconds, as (request, number of its run)."""
        with self._lock:
            now = self._clock()
            return [(work, number) for work, number in self.running.items() if now - work.started_at > longer_than]

    def oldest_floors(self) -> dict[Assignment, Floor]:
        """Return the lowest floor among the outcomes on their way, for each partition that has some."""
        oldest: dict[Assignment, Floor] = {}
        with self._lock:
            for work in self.delivering:
                floor = work.floor
                # One without a floor is not sent yet: it will get one that is no lower than the newest.
                if floor is not None and floor.number < oldest.get(work.assignment, _HIGHEST).number:
                    oldest[work.assignment] = floor
        return oldest

    def wait_quiet(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for a change; True when no attempt runs and no outcome is undelivered.

        What is of a lost partition counts no more, but for a run whose result somebody waits for.
        """
        with self._lock:
            if not self._quiet():
                self.observed = True
                self._changed.wait(timeout)
                self.observed = False
            return self._quiet()

    def _quiet(self) -> bool:
        return not self.delivering and all(
            work.assignment.lost and self._heir_of(work) is None for work in self.running
        )
