"""Measurements as JSON and as the tables of docs/performance.md."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import figures
from benchmarks.peers import BASE, PEERS
from benchmarks.runs import Measurement
from benchmarks.workloads import GROWTH, PROCESSES, W7, W8, W9, Workload

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
MIB = 1024 * 1024
NOT_MEASURED = "-"


@dataclass(slots=True)
class Results:
    """All that one call has measured, and on what."""

    machine: str
    versions: dict[str, str]
    rounds: dict[str, int]  # by the name of the workloads
    measurements: list[Measurement] = field(default_factory=list)
    idle_share: float | None = None
    idle_memory: int | None = None

    def of(self, workload: str, peer: str) -> list[Measurement]:
        return [made for made in self.measurements if (made.workload, made.peer) == (workload, peer)]

    def values(self, workload: str, peer: str, figure: str) -> dict[int, float]:
        """Return a figure by round."""
        found = {made.round: getattr(made, figure) for made in self.of(workload, peer)}
        return {number: value for number, value in found.items() if value is not None}

    def latency(self, peer: str, percent: str) -> list[float]:
        return [made.latency[percent] for made in self.of("W4", peer) if made.latency]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def tables(results: Results) -> str:
    """Return the tables as Markdown: everybody side by side, then what concerns this worker alone."""
    apart = {workload.name for workload in itertools.chain(W7, W8, [W9], *GROWTH.values())}
    seen = {made.peer for made in results.measurements if made.workload not in apart}
    parts = [_table(_HEAD, [_row(results, name) for name in PEERS if name in seen])] if seen else []
    if processes := [_process_row(results, count) for count in PROCESSES if results.of(f"W6x{count}", "ours")]:
        parts.append(_table(["W6: processes", "records/s", "CPU µs a record"], processes))
    if many := [_many_row(results, workload, peer) for workload in W8 for peer in _who_ran(results, workload)]:
        parts.append(_table(["W8: calls of 1 s, ten each on", "", "efficiency", "peak MiB"], many))
    if limited := [_limited_row(results, workload, peer) for workload in W7 for peer in _who_ran(results, workload)]:
        parts.append(_table(["W7: a provider that allows", "", "share of the limit", "refusals per 100"], limited))
    if fair := [_late_row(results, peer) for peer in _who_ran(results, W9)]:
        parts.append(_table(["W9: 100,000 of one tenant first", "the last of the others waits, s", "peak MiB"], fair))
    if grown := [_growth_row(results, what) for what in GROWTH if any(growth(results, what))]:
        parts.append(_table(["Cost as one thing grows", "", "CPU µs a record", "peak MiB"], grown))
    if results.idle_share is not None and results.idle_memory is not None:
        parts.append(f"Idle: {results.idle_share:.1%} of a core, {results.idle_memory / MIB:.0f} MiB.")
    return "\n\n".join(parts)


_HEAD = [
    "",
    "W1 records/s",
    "W1 ratio",
    "W1 CPU µs a record",
    "W2 efficiency",
    "W3 efficiency",
    "W4 p50 / p99 ms",
    "W5 peak MiB",
    "order per key",
]


def _row(results: Results, peer: str) -> list[str]:
    def told(workload: str, figure: str, form: str, scale: float = 1.0) -> str:
        return _told([value * scale for value in results.values(workload, peer, figure).values()], form)

    rates = results.values("W1", peer, "rate")
    ratios = figures.ratios(rates, results.values("W1", BASE, "rate"))
    return [
        PEERS[peer].title,
        told("W1", "rate", ",.0f"),
        _told(ratios, ".2f"),
        told("W1", "cpu_per_record", ".0f", 1e6),
        told("W2", "efficiency", ".2f"),
        told("W3", "efficiency", ".2f"),
        _latency(results, peer),
        told("W5", "peak_memory", ".0f", 1 / MIB),
        _order(results, peer),
    ]


def _process_row(results: Results, count: int) -> list[str]:
    name = f"W6x{count}"
    rates = results.values(name, "ours", "rate").values()
    costs = [value * 1e6 for value in results.values(name, "ours", "cpu_per_record").values()]
    return [str(count), _told(rates, ",.0f"), _told(costs, ".0f")]


def _who_ran(results: Results, workload: Workload) -> list[str]:
    return [name for name in PEERS if results.of(workload.name, name)]


def _many_row(results: Results, workload: Workload, peer: str) -> list[str]:
    shares = results.values(workload.name, peer, "efficiency").values()
    return [workload.title, PEERS[peer].title, _told(shares, ".2f"), _peak(results, workload, peer)]


def _limited_row(results: Results, workload: Workload, peer: str) -> list[str]:
    shares = results.values(workload.name, peer, "efficiency").values()
    refusals = results.values(workload.name, peer, "refusals").values()
    return [workload.title, PEERS[peer].title, _told(shares, ".2f"), _told(refusals, ".0f")]


def _late_row(results: Results, peer: str) -> list[str]:
    waits = results.values(W9.name, peer, "late_wait").values()
    told = _told(waits, ".1f") if len(waits) == len(results.of(W9.name, peer)) else f"more than {W9.limit:.0f}"
    return [PEERS[peer].title, told, _peak(results, W9, peer)]


def _peak(results: Results, workload: Workload, peer: str) -> str:
    return _told([value / MIB for value in results.values(workload.name, peer, "peak_memory").values()], ".0f")


def growth(results: Results, what: str) -> list[tuple[str, Measurement]]:
    """Return what was measured while one thing grew: how much of it there was, and the run."""
    points = [(workload.title, results.of(workload.name, "ours")) for workload in GROWTH[what]]
    return [(title, made[0]) for title, made in points if made]


def _growth_row(results: Results, what: str) -> list[str]:
    points = growth(results, what)
    costs = [f"{(made.cpu_per_record or 0.0) * 1e6:.0f}" for _, made in points]
    memory = [f"{(made.peak_memory or 0) / MIB:.0f}" for _, made in points]
    return [what, *(" · ".join(figures) for figures in ([title for title, _ in points], costs, memory))]


def _told(values: Iterable[float], form: str) -> str:
    """Return the median with its spread; NOT_MEASURED where there is none."""
    measured = list(values)
    if not measured:
        return NOT_MEASURED
    median, least, greatest = (format(value, form) for value in figures.spread(measured))
    return median if least == greatest else f"{median} ({least}-{greatest})"


def _latency(results: Results, peer: str) -> str:
    if not results.latency(peer, "50"):
        return NOT_MEASURED
    p50, p99 = (figures.spread(results.latency(peer, percent)).median * 1000 for percent in ("50", "99"))
    return f"{p50:.1f} / {p99:.1f}"


def _order(results: Results, peer: str) -> str:
    """Say what was seen where keys repeat; one run out of order is enough for a no."""
    runs = [made for made in results.measurements if made.peer == peer and made.workload in {"W2", "W3"}]
    if PEERS[peer].sequential:
        return "yes, sequential"
    return NOT_MEASURED if not runs else "yes" if all(made.in_order for made in runs) else "no"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def into_document(document: Path, text: str) -> None:
    """Replace what stands between the document's markers. Raises ValueError where it has none."""
    content = document.read_text()
    before, found, rest = content.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"{document} has no {BEGIN} … {END}")
    document.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
