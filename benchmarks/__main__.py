"""One command: a real Kafka, every contestant on every workload in turn, and what came of it."""

from __future__ import annotations

import argparse
import platform
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from confluent_kafka import KafkaException

from benchmarks import pictures, report
from benchmarks.peers import PEERS, Peer
from benchmarks.processes import ROOT
from benchmarks.report import Results
from benchmarks.runs import Hall, Measurement, idle, run
from benchmarks.stage import Stage
from benchmarks.workloads import WORKLOADS, Workload, quick
from gigaoffice_worker.devkafka import KafkaCluster

JAVA_OPTIONS = ["-XX:TieredStopAtLevel=4", "-Xmx1g"]
RESULTS = ROOT / "benchmarks" / "results"
_PACKAGES = ("kafka-python", "confluent-kafka", "aiokafka", "sentry-arroyo", "faststream")
_ROUNDS = {"W1": 5, "W7": 1, "W8": 10, "W9": 1, "growth": 1, "sweep": 1}
_OTHERS_ROUNDS = 3
_SEED = 7

_TEXT = """\
Measured side by side by `make bench`: {machine}; one broker and the load on the same machine, Python {python};
{versions}. Rounds, each with the contestants in another order: {rounds}; medians, with the
least and the greatest in brackets. Everybody
answers with the same JSON and commits only what has been acknowledged (`acks=all`, lz4); nothing else is tuned.
W1: 30,000 requests of 1 KiB, trivial handler, concurrency 16; the ratio is to the kafka-python loop of the same round.
W2: 3,000 requests, 200 keys, 20 ms, and W3: 1 % of 1 s among 5 ms, concurrency 64; efficiency is the time of a greedy
schedule of the whole log on 64 slots, in order per key, over the time it took. W4: 200 requests/s, handler of 5 ms
(0 ms for the plain loops, which could not keep up): the latency up to the reader of the response, less the handler.
W5: 150 MB of 100 kB requests, handler of 100 ms. W7: calls of 1 s to a model of a provider that refuses
what is beyond its limit; concurrency 16, no limit configured; the share is the least time that the limit allows over
the time it took. W8: ten calls of 1 s for each of so many threads, each request with a key of its own. W9: 100,000
requests of one tenant, 5 ms each on 16 threads; when 1,000 are answered, six of each of ten other tenants come: how
long the last of these waits. Growth: 30,000 requests of 256 bytes, trivial handler, 16 threads, 4 partitions, but for
what grows. Keys: 100,000 requests of 128 bytes, or one a key; bytes: fewer of the larger ones, down to 40 of 5 MB;
threads: 10,000 requests, for which the handler sleeps, so that all threads make 1,000 calls a second together.

{tables}

![Throughput over concurrency](../benchmarks/results/throughput.png)
![Latency](../benchmarks/results/latency.png)
![Cost as work grows](../benchmarks/results/growth.png)"""


def main() -> None:
    """Run what the command line asks for."""
    arguments = _arguments()
    rounds = {
        name: arguments.rounds or _ROUNDS.get(name, _OTHERS_ROUNDS) for name in WORKLOADS if name in arguments.only
    }
    results = Results(_machine(), {name: version(name) for name in _PACKAGES}, rounds)
    with KafkaCluster(java_options=JAVA_OPTIONS) as cluster:
        hall = Hall(Stage(cluster.bootstrap_servers))
        for number, workload, peer in _plan(arguments, rounds):
            _measure(results, hall, peer, workload, number)
        if "ours" in arguments.peers and "idle" in arguments.only:
            results.idle_share, results.idle_memory = idle(hall, PEERS["ours"], WORKLOADS["W4"][0])
    output: Path = arguments.output or Path(tempfile.mkdtemp(prefix="benchmarks-"))
    _publish(results, output, into_document=output == RESULTS)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    everything = [*WORKLOADS, "idle"]
    parser.add_argument("--only", type=_names(everything), default=everything, help=f"of {','.join(everything)}")
    parser.add_argument("--peers", type=_names(list(PEERS)), default=list(PEERS), help=f"of {','.join(PEERS)}")
    parser.add_argument("--rounds", type=int, help=f"of each; by default {_OTHERS_ROUNDS}, but for {_told(_ROUNDS)}")
    parser.add_argument("--quick", action="store_true", help="one round of small sizes, to see whether it works")
    parser.add_argument("--output", type=Path, help="a directory; a whole run writes into docs/performance.md as well")
    found = parser.parse_args()
    if found.quick:
        found.rounds = 1
    whole = found.only == everything and found.peers == list(PEERS) and not found.quick
    if whole and found.output is None:
        found.output = RESULTS
    return found


def _names(known: Sequence[str]):  # noqa: ANN202  # what argparse calls
    def names(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        return [name for name in known if name in chosen]

    return names


def _told(rounds: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in rounds.items())


def _plan(arguments: argparse.Namespace, rounds: Mapping[str, int]) -> Iterator[tuple[int, Workload, Peer]]:
    """Return the runs in order. The contestants of a workload follow each other, in another order each round.

    The broker is still busy with the one before, with topics to delete and a group to give up: nobody is always next.
    """
    dice = random.Random(_SEED)
    for number in range(max(rounds.values(), default=0)):
        for name in [name for name, count in rounds.items() if number < count]:
            for workload in WORKLOADS[name]:
                chosen = [PEERS[peer] for peer in arguments.peers if name in PEERS[peer].workloads]
                for peer in dice.sample(chosen, len(chosen)):
                    yield number, quick(workload) if arguments.quick else workload, peer


def _measure(results: Results, hall: Hall, peer: Peer, workload: Workload, number: int) -> None:
    """Run once and keep what came of it; a contestant that fails is told and left out."""
    try:
        made = run(hall, peer, workload, number)
    except (KafkaException, RuntimeError, TimeoutError, ValueError) as error:
        print(f"{workload.name:9} {peer.name:15} FAILED: {error}", file=sys.stderr, flush=True)
        return
    results.measurements.append(made)
    print(_line(made), flush=True)


def _line(made: Measurement) -> str:
    parts = [f"{made.workload:9} {made.peer:15} {made.answered:6} answered{'' if made.complete else ' (time was up)'}"]
    if made.rate is not None:
        parts.append(f"{made.rate:,.0f}/s")
    if made.cpu_per_record is not None:
        parts.append(f"{made.cpu_per_record * 1e6:.1f} us CPU")
    if made.efficiency is not None:
        parts.append(f"efficiency {made.efficiency:.3f}")
    if made.refusals is not None:
        parts.append(f"{made.refusals:.0f} refusals per 100 calls")
    if made.late_wait is not None:
        parts.append(f"who came late waited {made.late_wait:.1f} s")
    if made.peak_memory is not None:
        parts.append(f"{made.peak_memory / report.MIB:.0f} MiB")
    if made.latency:
        parts.append(f"own part p50 {made.latency['50'] * 1000:.2f} ms, p99 {made.latency['99'] * 1000:.2f} ms")
    if not made.in_order:
        parts.append("keys out of order")
    return ", ".join(parts)


def _publish(results: Results, output: Path, *, into_document: bool) -> None:
    output.mkdir(parents=True, exist_ok=True)
    results.write(output / "results.json")
    tables = report.tables(results)
    (output / "tables.md").write_text(tables + "\n")
    pictures.throughput(results, output / "throughput.png")
    pictures.latency(results, output / "latency.png")
    pictures.growth(results, output / "growth.png")
    if into_document:
        versions = ", ".join(f"{name} {number}" for name, number in results.versions.items())
        text = _TEXT.format(
            machine=results.machine,
            python=platform.python_version(),
            versions=versions,
            rounds=_told(results.rounds),
            tables=tables,
        )
        report.into_document(ROOT / "docs" / "performance.md", text)
    print(f"\n{tables}\n\nwritten to {output}")


def _machine() -> str:
    """Return the number of cores and their name, as far as the system tells."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}" if names else platform.machine()


if __name__ == "__main__":
    main()
