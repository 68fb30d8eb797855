"""Who is next: tenants share the calls by the time that these take, and priorities order what is each tenant's own.

Start-time fair queueing (Goyal, Vin and Cheng 1997): every tenant carries a *tag*, the seconds of calls that it had.
The tenant with the least tag is next. Who had nothing to do begins at the tag of whoever was served last, so that
idleness saves nothing up. A call costs what it took; until that is known, what this tenant's calls take on average.

Priority protects nobody from a flood of requests, so tenants share first. Within a tenant the request with the least
*rank* is next: the time at which it arrived, put back by `aging` seconds for each step of its priority. So waiting
raises a request against newer ones, and the order of two requests never changes while they wait.

Not thread-safe: the dispatcher's lock guards it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_SMOOTHING: Final = 0.2
_FIRST_GUESS: Final = 1.0
"""Seconds that a tenant's first call is taken to last."""


def rank(arrived: float, priority: float, aging: float) -> float:
    """Return where a request stands among its tenant's, in seconds: less is earlier."""
    return arrived - priority * aging


@dataclass(slots=True)
class Tenant(Generic[T]):
    """One tenant with something ready, running or lately done."""

    name: str
    tag: float
    call_seconds: float = _FIRST_GUESS
    running: int = 0
    ready: list[tuple[float, int, T]] = field(default_factory=list)
    # What the tag was when the tenant was entered among the waiting ones: older entries are void.
    entered: float | None = None


class FairQueue(Generic[T]):
    """What is ready, by tenant. Items are taken in fair order and charged for when their calls end."""

    def __init__(self) -> None:
        self._tenants: dict[str, Tenant[T]] = {}
        # The tenants that have something ready, by tag.
        self._waiting: list[tuple[float, str]] = []
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
            known = self._tenants[tenant] = Tenant(tenant, self._served)
        elif not known.ready and not known.running:
            known.tag = max(known.tag, self._served)
        heapq.heappush(known.ready, (rank, number, item))
        self._length += 1
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
        elif not known.running and known.tag <= self._served:
            del self._tenants[tenant]  # who comes back begins at the same tag

    def keep(self, kept: list[tuple[str, float, int, T]]) -> None:
        """Replace all that is ready; what each tenant had stays known."""
        for tenant in self._tenants.values():
            tenant.ready.clear()
            tenant.entered = None
        self._waiting.clear()
        self._length = 0
        for tenant_name, item_rank, number, item in kept:
            self.add(tenant_name, item_rank, number, item)

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
        if tenant.entered != tenant.tag:
            tenant.entered = tenant.tag
            heapq.heappush(self._waiting, (tenant.tag, tenant.name))

    def _next(self) -> Tenant[T] | None:
        while self._waiting:
            tag, name = self._waiting[0]
            tenant = self._tenants.get(name)
            if tenant is not None and tenant.ready and tenant.entered == tag:
                return tenant
            heapq.heappop(self._waiting)
        return None
