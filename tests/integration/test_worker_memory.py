"""What unpacks or decodes to much more than it weighs: it takes its turn, and neither memory nor heartbeats suffer."""

from __future__ import annotations

import gzip
import threading
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from tests.support import batches, wire
from tests.support.batches import RawRecord, batch
from tests.support.scene import Scene, ask, ids
from tests.support.workers import WorkerProcess

MOST_MEMORY = 512 * 1024 * 1024
MEGABYTE = 1024 * 1024


def peak(worker: WorkerProcess) -> int:
    """Return the most bytes that a worker ever had in memory."""
    lines = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


class Pauses:
    """Asks a worker again and again whether it lives: while the interpreter decodes, nobody else has a turn.

    What counts is how long the worker itself has computed until it answered: the machine may have other things to do.
    """

    def __init__(self, worker: WorkerProcess) -> None:
        self._worker = worker
        self._process = psutil.Process(worker.pid)
        self._ended = threading.Event()
        self.longest = 0.0
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        while not self._ended.wait(0.02):
            began = self._computed()
            self._worker.ask("/livez")
            self.longest = max(self.longest, self._computed() - began)

    def _computed(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system

    def end(self) -> float:
        self._ended.set()
        self._thread.join()
        return self.longest


def dense(size: int, item: str = '{"":0},', **fields: float) -> bytes:
    """Return a request of so many bytes, made of nothing but small objects."""
    head = "".join(f'"{name}":{value},' for name, value in fields.items())
    return f'{{{head}"a":[{item * (size // len(item))}0]}}'.encode()


def decoding(item: str) -> float:
    """Return the seconds that it takes here and now to decode the largest value of its kind that is taken."""
    value = dense(8 * MEGABYTE - 100, item)
    began = time.thread_time()
    msgspec.json.decode(value)
    return time.thread_time() - began


def send_unpacking(scene: Scene, value: bytes, *, partition: int, times: int = 1) -> None:
    """Write requests whose batches, one each, weigh next to nothing."""
    for _ in range(times):
        content = batch([RawRecord(b"large", value)], codec=batches.GZIP, pack=gzip.compress)
        batches.produce(scene.bootstrap, scene.topics.requests, content, partition=partition)


CASES = {
    # (size of a value, times in each of three partitions, seconds of a call, what it is made of, calls at once, how
    # many times as long as decoding one value nobody else may have a turn)
    "unpacked": (54 * MEGABYTE, 1, 0.0, '{"":0},', 16, 10),
    "unpacked-thrice": (54 * MEGABYTE, 3, 0.0, '{"":0},', 16, 10),
    "kept": (MEGABYTE, 16, 0.5, '{"":0},', 40, 10),
    "largest": (8 * MEGABYTE - 100, 1, 0.2, "[[[[[[]]]]]],", 16, 2.5),
}


@pytest.mark.parametrize("case", CASES)
def test_values_that_decode_to_much_are_taken_in_turn(scene, case):
    """Seen before: 1.6 GiB for 80 KB on the wire, and the interpreter blocked for 3 to 14 s."""
    size, times, seconds, item, calls, pause = CASES[case]
    wire.create_topics(scene.bootstrap, {scene.topics.requests: 3, scene.topics.responses: 1})
    value = dense(size, item, seconds=seconds)
    for partition in range(3):
        send_unpacking(scene, value, partition=partition, times=times)
    neighbours = [f"neighbour-{number}" for number in range(30)]
    scene.send(*(ask(name, name) for name in neighbours))
    once = decoding(item)  # before anybody is asked: it would keep who asks waiting, too
    worker = scene.ready(WORKER_CONCURRENCY=str(calls))
    pauses = Pauses(worker)
    scene.wait_committed(90)
    longest, memory = pauses.end(), peak(worker)
    print(f"\n{case}: {memory / MEGABYTE:.0f} MiB at most, longest pause {longest:.2f} s, one value {once:.2f} s")
    assert memory < MOST_MEMORY
    assert longest < pause * once
    assert set(neighbours) <= set(ids(scene.responses()))
    refused = scene.count(scene.topics.dlq)
    assert refused == (3 * times if size > 8 * MEGABYTE else 0)
    assert worker.stop() == 0
