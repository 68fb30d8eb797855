"""Three pictures: throughput over concurrency, the percentiles of latency, and what a record costs as work grows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import report
from benchmarks.peers import PEERS
from benchmarks.report import Results
from benchmarks.workloads import GROWTH, SWEEP, SWEEP_CONCURRENCY

_COLOURS = {
    "ours": "tab:red",
    "kafka-python": "tab:blue",
    "confluent": "tab:green",
    "arroyo": "tab:purple",
    "faststream": "tab:orange",
}
_PERCENTS = ("1", "5", "10", "25", "50", "75", "90", "95", "99", "99.9")


def throughput(results: Results, path: Path) -> bool:
    """Draw responses a second over concurrency with a handler that waits; False when nothing was measured."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    drawn = [name for name in _COLOURS if _curve(axes, results, name)]
    most = SWEEP_CONCURRENCY[-1]
    axes.plot([1, most], [1 / SWEEP.seconds, most / SWEEP.seconds], ":", color="grey", label="ideal")
    axes.set(xscale="log", yscale="log", xlabel="WORKER_CONCURRENCY", ylabel="responses a second")
    axes.set_xticks(SWEEP_CONCURRENCY, [str(count) for count in SWEEP_CONCURRENCY])
    axes.set_title(f"Throughput, handler of {SWEEP.seconds * 1000:.0f} ms")
    return _finish(figure, axes, path, drawn)


def _curve(axes: Axes, results: Results, peer: str) -> bool:
    points = {
        count: statistics.median(rates)
        for count in SWEEP_CONCURRENCY
        if (rates := list(results.values(f"sweep{count}", peer, "rate").values()))
    }
    if points:
        axes.plot(list(points), list(points.values()), "o-", color=_COLOURS[peer], label=_label(peer))
    return bool(points)


def latency(results: Results, path: Path) -> bool:
    """Draw the percentiles of the contestants' own part of the latency; False when nothing was measured."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    drawn = []
    for peer, colour in _COLOURS.items():
        if results.latency(peer, "50"):
            own = [statistics.median(results.latency(peer, percent)) * 1000 for percent in _PERCENTS]
            axes.plot(range(len(own)), own, "o-", color=colour, label=_label(peer))
            drawn.append(peer)
    axes.set_xticks(range(len(_PERCENTS)), [f"p{percent}" for percent in _PERCENTS])
    axes.set(yscale="log", ylabel="ms", title="Latency at 200 requests/s: end to end less the handler")
    return _finish(figure, axes, path, drawn)


def growth(results: Results, path: Path) -> bool:
    """Draw a record's CPU and the greatest memory over each thing that grew; False when nothing was measured."""
    figure, axes = plt.subplots(2, len(GROWTH), figsize=(14, 5), layout="constrained", sharey="row")
    drawn = [what for what, column in zip(GROWTH, axes.T, strict=True) if _grown(column, results, what)]
    axes[0][0].set(ylabel="CPU µs a record", yscale="log")
    axes[1][0].set(ylabel="peak MiB", ylim=(0, None))
    figure.suptitle("What a record costs as one thing grows")
    if drawn:
        figure.savefig(path, dpi=110)
    plt.close(figure)
    return bool(drawn)


def _grown(column: Sequence[Axes], results: Results, what: str) -> bool:
    points = report.growth(results, what)
    amounts = [float(title.replace(",", "")) for title, _ in points]
    costs = [(made.cpu_per_record or 0.0) * 1e6 for _, made in points]
    memory = [(made.peak_memory or 0) / report.MIB for _, made in points]
    for axes, values in zip(column, (costs, memory), strict=True):
        axes.plot(amounts, values, "o-", color=_COLOURS["ours"])
        axes.set_xscale("log")
        axes.grid(visible=True, which="major", alpha=0.3)
    column[-1].set_xlabel(what)
    return bool(points)


def _label(peer: str) -> str:
    return PEERS[peer].title.replace("*", "").replace("`", "")


def _finish(figure: Figure, axes: Axes, path: Path, drawn: list[str]) -> bool:
    if drawn:
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.legend()
        figure.savefig(path, dpi=110)
    plt.close(figure)
    return bool(drawn)
