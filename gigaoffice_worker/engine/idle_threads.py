"""Which idle thread wakes, and when: a leader that waits with a time-out, and followers that wait to be called."""

from __future__ import annotations

import math
import threading

# A call quicker than this is worth no thread of its own: threads that fight for the interpreter cost more than it.
# While one thread takes quick calls in a row, the others leave them to it; once it stays away longer, they take over.
QUICK_CALL = 0.002


class IdleThreads:
    """The handler threads that wait for work. Every method is called with the dispatcher's lock held.

    One idle thread is the *leader*: it waits with a time-out and wakes by itself for what is due. The others are
    *followers* and wait without one, because each time-out costs a wake-up.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self._leader = threading.Condition(lock)
        self._followers = threading.Condition(lock)
        self.has_leader = False
        # When the leader wakes by itself, and whether that is within QUICK_CALL, so that nobody need wake it.
        self._looks_at = math.inf
        self.looks_soon = False
        self.following = 0
        # Followers that were called and have not woken up yet.
        self.called = 0
        self.last_take = 0.0
        self._last_taker = 0
        # How long a call takes, as a moving average in seconds: a single one may have waited for the interpreter.
        self._call_seconds = QUICK_CALL
        self.calls_are_quick = False

    def may_take(self, me: int, now: float, *, returning: bool) -> bool:
        """Say whether thread `me` should take what is ready, or leave it to the one that took work last.

        `returning` says that it comes from a call of its own, and has not waited yet.
        """
        if not self.calls_are_quick or (returning and self._last_taker == me):
            return True
        return now - self.last_take >= QUICK_CALL

    def took(self, me: int, now: float) -> None:
        """Note that thread `me` leaves with work."""
        self.last_take, self._last_taker = now, me

    def ended(self, seconds: float) -> None:
        """Note how long a call took."""
        self._call_seconds += 0.2 * (seconds - self._call_seconds)
        self.calls_are_quick = self._call_seconds < QUICK_CALL

    def wait(self, now: float, nap: float | None) -> None:
        """Wait as the leader, for `nap` seconds at most (None: until woken), or as a follower until called."""
        look_at = math.inf if nap is None else now + nap
        if self.has_leader:
            if look_at + QUICK_CALL < self._looks_at:
                # It fell asleep before something changed, the end of a call that leaves room for another, say.
                self._leader.notify()
            self.following += 1
            self._followers.wait()
            self.following -= 1
            self.called = max(0, self.called - 1)
            return
        self.has_leader = True
        self._looks_at = look_at
        self.looks_soon = nap is not None and nap <= QUICK_CALL
        self._leader.wait(nap)
        self.has_leader = self.looks_soon = False

    def wake(self, wanted: int) -> None:
        """See to it that `wanted` idle threads look at what is ready; a leader that will look soon is left alone.

        Where calls are not quick, all that there is work for are called at once: to let each call the next one would
        have each wait for the interpreter first.
        """
        if self.looks_soon and self.calls_are_quick:
            return
        if self.has_leader:
            wanted -= 1
            if not self.looks_soon:
                self._leader.notify()
        more = min(wanted, self.following) - self.called
        if more > 0:
            self.called += more
            self._followers.notify(more)

    def wake_leader(self) -> None:
        """Let the leader look again at once."""
        self._leader.notify()

    def wake_all(self) -> None:
        self._leader.notify_all()
        self._followers.notify_all()
