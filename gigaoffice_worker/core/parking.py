"""Seeing past one tenant's backlog: what of a partition is held in memory, and what is parked.

A *parked* record is known by its offset only; it is read again, by a *sweep*, when its turn comes. Parking begins where
the window of a partition is full and stays full because somebody holds more than a small part of it. From then on the
frontier goes on through the log: what is within somebody's share is held, the rest is parked, and sweeps fetch what is
due of each lot, lowest offsets first.

Tenants share the window, or keys where neither tenant nor priority is configured. A *lot* is what is taken in its
order: a tenant's requests of one priority, or a key. A tenant's lots divide what it may hold: its share where it has
one, about twice that where it has many. A key's requests stay in one lot as long as any of them are here, whoever else
they are for, so that they are taken in their order.

Not thread-safe: the dispatcher's lock guards it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final

from gigaoffice_worker.core.arrival import ArrivalClock

UNIT: Final = 4096
"""Bytes that count as one request; a larger one counts as several."""
LEAST: Final = 16
"""What everybody may hold, in units, where the window has so much for it."""
_FEW: Final = 4
_STARVED_EVERY: Final = 1.0
_OLDEST_EVERY: Final = 4
"""One in so many sweeps for who starves is for the oldest, or endless urgent ones would keep off the rest for good."""
_FIRST_PATIENCE: Final = 0.25
_LONGEST_PATIENCE: Final = 1.0
_MOST_LANES: Final = 100_000
_PURGE_AFTER: Final = 1_000


def units(size: int) -> int:
    """Return how much of a window a request of so many bytes takes."""
    return 1 + size // UNIT


@dataclass(eq=False, slots=True)
class Sharer:
    """A tenant or key with something here: units held in all its lots, and how many these are."""

    name: Hashable
    held: int = 0
    lots: int = 0


@dataclass(eq=False, slots=True)
class Lot:
    """What is taken in its order: units held in memory, and offsets that are parked, rising."""

    name: Hashable
    sharer: Sharer
    held: int = 0
    parked: deque[int] = field(default_factory=deque)
    # When it may be the reason for a sweep again (monotonic seconds), and how long it waited for that.
    not_before: float = 0.0
    patience: float = 0.0

    def part(self, share: int) -> int:
        """Return what it may hold of a share: all of it where its tenant has no other lot."""
        return 2 * share // (self.sharer.lots + 1)

    def short(self, share: int) -> bool:
        """Say whether it holds next to nothing, so that it gets more although its tenant has much.

        An urgent request need not wait for the many others of its tenant, unless the tenant has too many priorities.
        """
        return self.held < _FEW and (self.sharer.lots * _FEW <= 2 * share or self.sharer.held < 2 * share)


@dataclass(eq=False, slots=True)
class _Lane:
    """The lot that a key belongs to; `last` is the highest of its offsets that was parked."""

    lot: Lot
    held: int = 0
    last: int = -1

    @property
    def waits(self) -> bool:
        """Whether requests of it are parked: lots are taken from their lowest offset on."""
        return bool(self.lot.parked) and self.last >= self.lot.parked[0]


class Parking:
    """What of one partition is held and what is parked. `window` is what may be held, in units."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.held = 0
        self._sharers: dict[Hashable, Sharer] = {}
        self._lots: dict[Hashable, Lot] = {}
        self._waiting: set[Lot] = set()
        self._lanes: dict[bytes, _Lane] = {}
        self._last_for_starved = -_STARVED_EVERY
        self._sweeps_for_starved = 1
        # How many requests were settled since keys were last forgotten.
        self._settled = 0

    # What is in hand

    @property
    def least(self) -> int:
        return max(1, min(LEAST, self.window // 8))

    @property
    def share(self) -> int:
        """What one tenant, or key, may hold in one lot; in all its lots about twice as much."""
        return max(self.least, min(self.window // 4, 2 * self.window // (len(self._sharers) + 1)))

    def resize(self, window: int) -> None:
        """Take over what may be held now; where more is held already, beside that there is room for others."""
        self.window = max(window, min(self.window, self.held * 8 // 7))

    @property
    def crowded(self) -> bool:
        """Whether somebody holds more than everybody may."""
        return any(sharer.name is not None and sharer.held >= self.least for sharer in self._sharers.values())

    @property
    def done(self) -> bool:
        """Whether nothing is parked, and the window is no longer full."""
        return not self._waiting and self.held < self.window * 3 // 4

    def full(self, *, paused: bool) -> bool:
        """Say whether the frontier must wait: nobody else has room, or too many keys would have to be remembered."""
        if self.held >= (self.window * 15 // 16 if paused else self.window):
            return True
        if len(self._lanes) <= _MOST_LANES:
            return False
        return self._settled < _PURGE_AFTER or self._purge() > _MOST_LANES

    def waiting(self) -> dict[Hashable, int]:
        """Return how many requests each tenant, or key, has parked."""
        waiting = Counter[Hashable]()
        for lot in self._waiting:
            waiting[lot.sharer.name] += len(lot.parked)
        return waiting

    def holds(self, name: Hashable, lane: bytes | None, size: int) -> bool:
        """Say whether the next request at the frontier is to be held; otherwise it is to be parked."""
        place = self._place(lane)
        lot = place.lot if place is not None else self._lots.get(name)
        sharer = lot.sharer if lot is not None else self._sharers.get(_whose(name))
        if lot is not None and lot.parked:
            return False
        # Who has next to nothing is never parked: once the window is full the frontier waits instead.
        if sharer is None or sharer.name is None or sharer.held < self.least:
            return True
        return self.has_room(lot if lot is not None else Lot(name, sharer), size)

    def has_room(self, lot: Lot, size: int) -> bool:
        """Say whether one more request of a lot, of so many bytes, may be held."""
        if lot.sharer.held < self.least:
            return self.held < self.window
        # The last sixteenth of the window is for those who have next to nothing in it.
        if self.held > self.window * 15 // 16:
            return False
        share = self.share
        fits = lot.held + units(size) <= max(self.least, lot.part(share)) and lot.sharer.held < 2 * share
        return fits or lot.short(share)

    def hold(self, name: Hashable, lane: bytes | None, size: int) -> Lot:
        """Note that a request is held; return its lot."""
        lot = self.lot_of(name, lane)
        taken = units(size)
        lot.held += taken
        lot.sharer.held += taken
        self.held += taken
        if lane is not None:
            self._lanes.setdefault(lane, _Lane(lot)).held += 1
        return lot

    def park(self, name: Hashable, lane: bytes | None, offset: int) -> None:
        """Note that the request at `offset`, which is higher than any before, is parked."""
        lot = self.lot_of(name, lane)
        lot.parked.append(offset)
        self._waiting.add(lot)
        if lane is not None:
            self._lanes.setdefault(lane, _Lane(lot)).last = offset

    def settled(self, lot: Lot, lane: bytes | None, size: int) -> None:
        """Note that a request that was held is settled."""
        self._settled += 1
        taken = units(size)
        lot.held -= taken
        lot.sharer.held -= taken
        self.held -= taken
        if lane is not None and (place := self._lanes.get(lane)) is not None:
            place.held -= 1
            if not place.held and not place.waits:
                del self._lanes[lane]
        self.drop_empty(lot)

    def lot_of(self, name: Hashable, lane: bytes | None) -> Lot:
        """Return the lot that a request belongs to: its key's, as long as anything of that is here."""
        place = self._place(lane)
        if place is not None:
            return place.lot
        lot = self._lots.get(name)
        if lot is None:
            whose = _whose(name)
            sharer = self._sharers.setdefault(whose, Sharer(whose))
            sharer.lots += 1
            lot = self._lots[name] = Lot(name, sharer)
        return lot

    def _place(self, lane: bytes | None) -> _Lane | None:
        """Return the lane of a key of which anything is here. Another one may belong to a lot that is gone."""
        place = self._lanes.get(lane) if lane is not None else None
        if place is None or place.held or place.waits:
            return place
        del self._lanes[lane]  # type: ignore[arg-type]  # it is a key, since it was found
        return None

    def drop_empty(self, lot: Lot) -> None:
        """Forget a lot of which nothing is left."""
        if not lot.parked:
            self._waiting.discard(lot)
            if lot.held <= 0 and self._lots.get(lot.name) is lot:
                del self._lots[lot.name]
                lot.sharer.lots -= 1
                if not lot.sharer.lots:
                    del self._sharers[lot.sharer.name]

    def _purge(self) -> int:
        """Forget the keys of which nothing is here, and return how many are left."""
        self._settled = 0
        self._lanes = {lane: place for lane, place in self._lanes.items() if place.held or place.waits}
        return len(self._lanes)

    # Sweeps

    def next_sweep(self, now: float, end: int) -> Sweep | None:
        """Return the sweep that is due, up to the frontier at `end`; None while there is none."""
        if not self._waiting or self.held >= self.window:
            return None
        roomy, nearly_empty, share = self.held <= self.window // 2, self.held < self.window // 16, self.share
        starving = now - self._last_for_starved >= _STARVED_EVERY
        due = set[Lot]()
        # Of each tenant one: its lots are taken up to offsets far apart, and a sweep for all of them reads all between.
        choice = _most_urgent if self._sweeps_for_starved % _OLDEST_EVERY else _oldest
        starved: dict[Sharer, Lot] = {}
        for lot in self._waiting:
            if now < lot.not_before and not nearly_empty:
                continue
            if roomy and lot.sharer.held * 8 < share:
                due.add(lot)
            elif starving and lot.short(share):
                starved[lot.sharer] = choice(lot, starved.get(lot.sharer, lot))
        if starved:
            due.update(starved.values())
            self._last_for_starved = now
            self._sweeps_for_starved += 1
        if not due:
            return None
        # Who will be due soon is served along, or the same part of the log would be read again for each.
        due |= {
            lot
            for lot in self._waiting
            if lot.sharer.held * 2 < share and lot.held * 2 < lot.part(share) and now >= lot.not_before
        }
        return Sweep(self, min(lot.parked[0] for lot in due), end, frozenset(due), due)

    def removed_below(self, position: int) -> list[int]:
        """Drop what is parked below the log's start, and return those offsets."""
        gone: list[int] = []
        for lot in list(self._waiting):
            self.pop_below(lot, position, gone)
        return gone

    def pop_below(self, lot: Lot, position: int, gone: list[int]) -> None:
        """Drop what a lot has parked below a position, and add those offsets to `gone`."""
        while lot.parked and lot.parked[0] < position:
            gone.append(lot.parked.popleft())
        self.drop_empty(lot)


@dataclass(eq=False, slots=True)
class Sweep:
    """One reading of what is parked between two positions."""

    parking: Parking
    start: int
    end: int
    # The lots that it is made for, and those of them that want more of it.
    made_for: frozenset[Lot]
    due: set[Lot]
    # Lots of which something was passed by: nothing behind it may be taken, or it would be taken for missing.
    closed: set[Lot] = field(default_factory=set)
    gained: dict[Lot, int] = field(default_factory=dict)
    # When what it finds had arrived.
    arrivals: ArrivalClock = field(default_factory=ArrivalClock)

    def stop(self) -> None:
        """Want nothing more of what is not met yet."""
        self.closed |= self.due
        self.due.clear()

    def takes(self, name: Hashable, lane: bytes | None, size: int) -> bool:
        """Say whether a parked request that it has found is to be held now."""
        lot = self.parking.lot_of(name, lane)
        if lot in self.closed or not lot.parked or lot.parked[0] < self.start:
            return False
        if not self.parking.has_room(lot, size):
            self.closed.add(lot)
            self.due.discard(lot)
            return False
        return True

    def passed(self, below: int) -> list[int]:
        """Note that everything below a position is read; return the parked offsets that don't exist any more.

        Of a lot that is not closed everything that was met has been taken, so what it has left there was not met.
        """
        gone: list[int] = []
        for lot in list(self.due):
            self.parking.pop_below(lot, below, gone)
        return gone

    def take(self, name: Hashable, lane: bytes | None, offset: int) -> list[int]:
        """Note that a request that it has found is no longer parked; return those before it that are gone."""
        lot, gone = self.parking.lot_of(name, lane), list[int]()
        self.parking.pop_below(lot, offset, gone)
        if lot.parked and lot.parked[0] == offset:
            lot.parked.popleft()
        self.gained[lot] = self.gained.get(lot, 0) + 1
        if not lot.parked:
            self.due.discard(lot)
            self.parking.drop_empty(lot)
        return gone

    def ended(self, now: float) -> None:
        """Note that it is over: of the lots that it was made for, those that gained next to nothing wait."""
        for lot in self.made_for:
            if self.gained.get(lot, 0) >= _FEW or not lot.parked:
                lot.patience = 0.0
            else:
                lot.patience = min(_LONGEST_PATIENCE, max(_FIRST_PATIENCE, 2 * lot.patience))
                lot.not_before = now + lot.patience


def _whose(lot: Hashable) -> Hashable:
    """Return whose a lot is: the tenant of (tenant, priority); a key is its own."""
    return lot[0] if isinstance(lot, tuple) else lot


def _most_urgent(*lots: Lot) -> Lot:
    return max(lots, key=lambda lot: lot.name[1] if isinstance(lot.name, tuple) else 0)


def _oldest(*lots: Lot) -> Lot:
    return min(lots, key=lambda lot: lot.parked[0])
