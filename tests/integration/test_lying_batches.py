"""Batches that a broker takes although they lie: their partition waits, and nothing is skipped or repeated."""

from __future__ import annotations

import json
import random
import struct
import time

import pytest

from tests.conftest import RUN, TopicSet
from tests.support import batches, wire
from tests.support.batches import RawRecord, batch
from tests.support.scene import MARKER, Scene, check_once, ids
from tests.support.waiting import eventually


def request(name: str, **lie) -> RawRecord:
    return RawRecord(name.encode(), json.dumps({"id": name, "query": MARKER}).encode(), **lie)


LIES = {
    "repeated": (request("a", delta=0), request("b", delta=0), request("c", delta=0)),
    "falling": (request("a", delta=2), request("b", delta=1), request("c", delta=0)),
    "far beyond": (request("a", delta=0), request("b", delta=1_000_000)),
    "before": (request("a", delta=-3), request("b", delta=1)),
    "attributes": (request("a", attributes=0xFF), request("b", attributes=0xFF)),
}


def test_batches_with_lying_offsets_are_quarantined_and_nothing_is_committed_beyond_them(scene):
    """Seen before: exit 1 at every start, and 1,000,021 committed in a log of 22 records."""
    scene.make(requests=len(LIES) + 1)
    partitions = dict(enumerate(LIES))
    sound = len(LIES)
    for partition, name in partitions.items():
        for content in ([request(f"{name}-first")], LIES[name], [request(f"{name}-last")]):
            batches.produce(scene.bootstrap, scene.topics.requests, batch(content), partition=partition)
    # The last batch of its log as well.
    far = [partition for partition, name in partitions.items() if name == "far beyond"]
    worker = scene.worker().start()
    worker.wait_until(lambda: worker.metric("partitions_quarantined") == len(LIES), 60, "the quarantine")
    batches.produce(scene.bootstrap, scene.topics.requests, batch([request("sound")]), partition=sound)
    firsts = [f"{name}-first" for name in LIES]
    eventually(lambda: set(ids(scene.responses())) == {*firsts, "sound"}, "all that can be read", interval=0.2)
    assert {row["quarantined"]["offset"] for row in worker.status()["partitions"] if row["quarantined"]} == {1}
    assert worker.stop() == 0
    assert scene.committed() == {**dict.fromkeys(partitions, 1), sound: 1}

    # The way over it is that of every record that cannot be decoded.
    behind = {partition: 1 + len(LIES[name]) for partition, name in partitions.items()}
    wire.set_offsets(scene.bootstrap, scene.topics.group, scene.topics.requests, behind)
    for partition in far:
        batches.produce(scene.bootstrap, scene.topics.requests, batch(LIES["far beyond"]), partition=partition)
    worker = scene.worker("again").start()
    check_once(
        scene.wait_responses(2 * len(LIES) + 1, timeout=60), [*firsts, "sound", *(f"{name}-last" for name in LIES)]
    )
    worker.wait_until(lambda: worker.metric("partitions_quarantined") == len(far), 30, "the last batch")
    assert worker.stop() == 0
    ends = wire.end_offsets(scene.bootstrap, scene.topics.requests)
    for partition, position in scene.committed().items():
        assert position == ends[partition] - (2 if partition in far else 0)


PARTITIONS = 60
_HEADER = struct.Struct(">hiqqqhii")
_HEADER_AT, _RECORDS_AT = 21, 61


def fuzzed(rng: random.Random) -> bytes:
    """Return a batch in which some number or byte is another than it should be, with the right checksum."""
    records = [
        RawRecord(
            rng.choice([None, b"", b"key"]),
            rng.choice([b"{}", b"", None, b'{"id": "x"}']),
            rng.choice([(), ((b"name", b"value"),)]),
            rng.choice([None, None, 0, 1, 2, 7, -1, 2**31 - 1, -(2**31), 2**40]),
            rng.choice([0, 0, 0, 1, 0x7F, 0x80, 0xFF]),
        )
        for _ in range(rng.choice([1, 1, 2, 3, 20]))
    ]
    content = bytearray(batch(records))
    numbers = list(_HEADER.unpack_from(content, _HEADER_AT))
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        place = rng.randrange(len(numbers))
        numbers[place] = rng.choice([0, 1, 2, len(records), len(records) + 1, -1, 8, 0x10, 100, 30_000])
    _HEADER.pack_into(content, _HEADER_AT, *numbers)
    for _ in range(rng.choice([0, 0, 1, 3])):
        place = rng.randrange(_RECORDS_AT, len(content))
        content[place] = rng.randrange(256)
    if rng.random() < 0.2:
        cut = rng.randrange(_RECORDS_AT, len(content) + 1)
        content = content[:cut] + bytes(rng.randrange(4))
        content[8:12] = struct.pack(">i", len(content) - 12)
    batches.sign(content)
    return bytes(content)


def write_fuzzed(scene: Scene, rng: random.Random) -> dict[int, int]:
    """Put a batch that the broker takes between two good ones in each partition; return where the second one is."""
    topic, lasts = scene.topics.requests, {}
    for partition in range(PARTITIONS):
        batches.produce(scene.bootstrap, topic, batch([request(f"{partition}-first")]), partition=partition)
        taken = False
        while not taken:
            try:
                batches.produce(scene.bootstrap, topic, fuzzed(rng), partition=partition)
                taken = True
            except (RuntimeError, ConnectionError):
                continue
        last = batch([request(f"{partition}-last")])
        lasts[partition] = batches.produce(scene.bootstrap, topic, last, partition=partition)
    return lasts


def hold_against_fuzz(scene: Scene, seed: int) -> int:
    """Let a worker meet fuzzed batches; return how many of them it could not decode."""
    print(f"\nseed of the fuzzed batches: {seed}")
    scene.make(requests=PARTITIONS)
    lasts = write_fuzzed(scene, random.Random(seed))
    ends = wire.end_offsets(scene.bootstrap, scene.topics.requests)
    worker = scene.worker("fuzzed").start()

    def read() -> bool:
        rows = worker.status().get("partitions", [])
        waits = {row["partition"] for row in rows if row["quarantined"]}
        done = {row["partition"] for row in rows if row["committed"] == ends[row["partition"]]}
        return len(waits | done) == PARTITIONS

    worker.wait_until(read, 60, "every partition to be read to its end or to a bad batch")
    quarantined = {row["partition"]: row["quarantined"] for row in worker.status()["partitions"] if row["quarantined"]}
    for partition, found in quarantined.items():
        assert 1 <= found["offset"] < lasts[partition], (seed, partition, found)
    assert worker.stop() == 0
    for partition, position in scene.committed().items():
        assert position == (quarantined[partition]["offset"] if partition in quarantined else ends[partition]), seed

    wire.set_offsets(scene.bootstrap, scene.topics.group, scene.topics.requests, {p: lasts[p] for p in quarantined})
    worker = scene.ready("behind")
    scene.wait_committed(60)
    assert worker.stop() == 0
    answered = ids(scene.responses())
    for partition in range(PARTITIONS):
        assert answered.count(f"{partition}-first") == answered.count(f"{partition}-last") == 1, (seed, partition)
    return len(quarantined)


def test_whatever_batch_a_broker_takes_ends_no_worker_and_hurts_no_neighbour(scene):
    assert hold_against_fuzz(scene, random.randrange(2**32)) > 0


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_ten_minutes_of_such_batches(kafka_bootstrap, tmp_path):
    until, rounds, found = time.monotonic() + 600, 0, 0
    while time.monotonic() < until:
        rounds += 1
        names = TopicSet(*(f"{RUN}-fuzz-{rounds}-{each}" for each in ("requests", "responses", "dlq", "group")))
        directory = tmp_path / str(rounds)
        directory.mkdir()
        with Scene(kafka_bootstrap, names, directory) as scene:
            found += hold_against_fuzz(scene, random.randrange(2**32))
        wire.delete_topics(kafka_bootstrap, names[:3])
    print(f"\n{rounds * PARTITIONS} batches that the broker took in {rounds} rounds, {found} of them undecodable")
    assert found > 0
