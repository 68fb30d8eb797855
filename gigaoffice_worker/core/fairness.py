"""Who is next: tenants share the calls by the time that these take, and priorities order what is each tenant's own.

Start-time fair queueing (Goyal, Vin and Cheng 1997): every tenant carries a *tag*, the seconds of calls that it had.
The tenant with the least tag is next, and of equal tags the one whose first request stands first. Who had nothing to do
begins at the tag of whoever was served last, so that idleness saves nothing up. A call costs what it took; until that
is known, what this tenant's calls take on average.

Who has nothing to do and had more than that is remembered, or it would gain by going. When more are remembered than
have something to do, those who had least of them are forgotten, and from then on everybody begins at what these had: so
nobody gains, and tenants who come once cannot keep off for ever who comes back.

Priority protects nobody from a flood of requests, so tenants share first. Within a tenant the request with the least
*rank* is next: the time at which it arrived, put back by `aging` seconds for each step of its priority. So waiting
raises a request against newer ones, and the order of two requests never changes while they wait.

Not thread-safe: the dispatcher's lock guards it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_Place = tuple[float, float, int]
"""A tenant's tag, and the rank and number of its first request."""

_SMOOTHING: Final = 0.2
_FIRST_GUESS: Final = 1.0
"""Seconds that a tenant's first call is taken to last."""
_LEAST_IDLE: Final = 64
"""How many tenants with nothing to do are remembered, however few have something to do."""


def rank(arrived: float, priority: float, aging: float) -> float:
    """Return where a request stands among its tenant's, in seconds: less is earlier."""
    return arrived - priority * aging


@dataclass(slots=True)
class Tenant(Generic[T]):
    """One tenant: what it has to do, and what it had."""

    name: str
    tag: float
    call_seconds: float = _FIRST_GUESS
    running: int = 0
    ready: list[tuple[float, int, T]] = field(default_factory=list)
    # Where the tenant was entered last among the waiting ones; all its other entries are void.
    entered: _Place | None = None


class FairQueue(Generic[T]):
    """What is ready, by tenant. Items are taken in fair order and charged for when their calls end."""

    def __init__(self) -> None:
        # The tenants that have something ready or running; and those that have not, but had more than who comes new.
        self._tenants: dict[str, Tenant[T]] = {}
        self._idle: dict[str, Tenant[T]] = {}
        # The tenants that have something ready, by their places.
        self._waiting: list[tuple[_Place, str]] = []
        # The tag at which new tenants begin.
        self._served = 0.0
        self._length = 0

    def __len__(self) -> int:
        """Return how many items are ready."""
        return self._length

    def __iter__(self) -> Iterator[T]:
        """Walk over what is ready, in no order."""
        return (item for tenant in self._tenants.values() for _, _, item in tenant.ready)

    def add(self, tenant: str, rank: float, number: int, item: T) -> None:
        """Make an item ready; `number` orders items of one rank, and must be unique."""
        known = self._tenants.get(tenant)
        if known is None:
            known = self._idle.pop(tenant) if tenant in self._idle else Tenant(tenant, self._served)
            known.tag = max(known.tag, self._served)
            self._tenants[tenant] = known
        heapq.heappush(known.ready, (rank, number, item))
        self._length += 1
        if known.ready[0][1] == number:
            self._enter(known)

    def first(self) -> T | None:
        """Return what is next, and leave it there."""
        tenant = self._next()
        return tenant.ready[0][2] if tenant is not None else None

    def pop(self) -> T | None:
        """Take what is next, and charge its tenant with what its calls take on average."""
        tenant = self._next()
        if tenant is None:
            return None
        _, _, item = heapq.heappop(tenant.ready)
        self._taken(tenant)
        return item

    def remove(self, tenant: str, rank: float, number: int, item: T) -> bool:
        """Take this item, wherever it stands; False when it is not ready. Takes time with what the tenant has ready."""
        known = self._tenants.get(tenant)
        entry = (rank, number, item)
        if known is None or entry not in known.ready:
            return False
        known.ready.remove(entry)
        heapq.heapify(known.ready)
        self._taken(known)
        return True

    def ended(self, tenant: str, seconds: float | None) -> None:
        """Charge a tenant with what a call really took; None where no call was made."""
        known = self._tenants[tenant]
        known.running -= 1
        guess = known.call_seconds
        if seconds is None:
            known.tag -= guess
        else:
            known.tag += seconds - guess
            known.call_seconds += _SMOOTHING * (seconds - guess)
        if known.ready:
            self._enter(known)
        elif not known.running:
            self._rest(known)

    def keep(self, wanted: Callable[[T], bool]) -> None:
        """Drop all else that is ready; what each tenant had stays known."""
        self._waiting.clear()
        for tenant in list(self._tenants.values()):
            tenant.ready = [entry for entry in tenant.ready if wanted(entry[2])]
            heapq.heapify(tenant.ready)
            tenant.entered = None
            if tenant.ready:
                self._enter(tenant)
            elif not tenant.running:
                self._rest(tenant)
        self._length = sum(len(tenant.ready) for tenant in self._tenants.values())

    def _taken(self, tenant: Tenant[T]) -> None:
        self._length -= 1
        self._served = max(self._served, tenant.tag)
        tenant.running += 1
        tenant.tag += tenant.call_seconds
        if tenant.ready:
            self._enter(tenant)
        else:
            tenant.entered = None

    def _enter(self, tenant: Tenant[T]) -> None:
        rank, number, _ = tenant.ready[0]
        place = (tenant.tag, rank, number)
        if tenant.entered != place:
            tenant.entered = place
            heapq.heappush(self._waiting, (place, tenant.name))

    def _next(self) -> Tenant[T] | None:
        while self._waiting:
            place, name = self._waiting[0]
            tenant = self._tenants.get(name)
            if tenant is not None and tenant.entered == place:
                return tenant
            heapq.heappop(self._waiting)
        return None

    def _rest(self, tenant: Tenant[T]) -> None:
        """Note that a tenant has nothing to do any more."""
        del self._tenants[tenant.name]
        if tenant.tag > self._served:
            self._idle[tenant.name] = tenant
        if not self._tenants:
            # Nobody waits because of what another one had, so all begin anew together.
            self._forget(list(self._idle.values()))
        elif len(self._idle) > max(_LEAST_IDLE, len(self._tenants)):
            by_tag = sorted(self._idle.values(), key=lambda each: each.tag)
            self._forget(by_tag[: len(by_tag) // 2])

    def _forget(self, tenants: list[Tenant[T]]) -> None:
        """Let new tenants begin where these were served up to, so that nobody gains by being forgotten."""
        for tenant in tenants:
            self._served = max(self._served, tenant.tag)
            del self._idle[tenant.name]
