"""What the Kafka client itself cannot decode: its partition waits, by name; nothing is skipped, nobody else held up."""

from __future__ import annotations

import json
import re
import time

import psutil
import pytest
import zstandard

from tests.conftest import TopicSet
from tests.support import batches, wire
from tests.support.batches import RawRecord, batch
from tests.support.releases import OwnKafka
from tests.support.scene import MARKER, Scene, ask, ids
from tests.support.waiting import eventually

# By partition: what is done to the second of its three batches while the broker is stopped.
DAMAGE = {
    2: batches.flip_a_bit,
    3: batches.set_codec(5),
    4: batches.set_codec(batches.GZIP),
    5: batches.set_codec(batches.ZSTD),
    6: batches.set_content(b"\x7f"),
}
HEADER, BOMB, SOUND = 0, 1, 7
REASONS = {
    HEADER: "header name is not UTF-8",
    BOMB: "unpacks to more than",
    2: "failed crc check",
    3: "Unrecognized compression type",
    4: "BadGzipFile",
    5: "ZstdError",
    6: "CorruptRecordError",
}
BAD = 1


def good(name: str) -> bytes:
    return batch([RawRecord(name.encode(), json.dumps({"id": name, "query": MARKER}).encode())])


def not_utf_8() -> bytes:
    return batch([RawRecord(b"k", b"{}", ((b"\xff" + MARKER.encode(), MARKER.encode()),))])


def bomb() -> bytes:
    """A request of 200 MB, in a batch of a few thousand bytes that the broker is content with."""
    return batch([RawRecord(b"k", b" " * 200_000_000)], codec=batches.ZSTD, pack=zstandard.ZstdCompressor().compress)


@pytest.fixture
def damaged(tmp_path):
    """A Kafka with a topic of eight partitions: in all but one, the middle one of three batches is bad."""
    names = TopicSet("requests", "responses", "dlq", "workers")
    with OwnKafka(data_dir=tmp_path / "kafka") as cluster:
        bootstrap = cluster.bootstrap_servers
        wire.create_topics(bootstrap, {names.requests: 8, names.responses: 1, names.dlq: 1})
        for partition in range(8):
            middle = {HEADER: not_utf_8, BOMB: bomb}.get(partition, lambda p=partition: good(f"{p}-middle"))()
            for content in (good(f"{partition}-first"), middle, good(f"{partition}-last")):
                batches.produce(bootstrap, names.requests, content, partition=partition)
        cluster.stop_node(timeout=120)
        for partition, change in DAMAGE.items():
            data = tmp_path / "kafka" / "node-1" / "data"
            batches.tamper(data, names.requests, change, offset=BAD, partition=partition)
        cluster.restart()
        with Scene(bootstrap, names, tmp_path) as scene:
            yield scene


def test_partition_with_an_undecodable_record_waits_and_can_be_led_past_it(damaged):
    scene = damaged
    worker = scene.worker(LOG_LEVEL="DEBUG").start()
    worker.wait_until(lambda: worker.metric("partitions_quarantined") == len(REASONS), 60, "the quarantine")
    firsts = {f"{partition}-first" for partition in REASONS}
    sound = {f"{SOUND}-{which}" for which in ("first", "middle", "last")}
    eventually(lambda: set(ids(scene.responses())) == firsts | sound, "all that can be read", interval=0.2)

    # Named, with its offset, wherever somebody may look.
    code, body = worker.ask("/readyz")
    assert code == 503
    partitions = {row["partition"]: row for row in worker.status()["partitions"]}
    for partition, reason in REASONS.items():
        assert f"record {partition}-{BAD} cannot be decoded" in body
        assert partitions[partition]["quarantined"]["offset"] == BAD
        assert reason in partitions[partition]["quarantined"]["error"]
        assert worker.metric("quarantined_offset", partition=str(partition)) == BAD
    assert partitions[SOUND]["quarantined"] is None
    assert worker.metric("not_ready", reason="undecodable-record") == 1
    assert worker.ask("/livez")[0] == 200
    assert MARKER not in body + worker.ask("/status")[1] + worker.ask("/metrics")[1]

    # The others go on, and what waits costs nothing, although it is looked at again and again.
    process = psutil.Process(worker.pid)
    before, began = sum(process.cpu_times()[:2]), time.monotonic()
    for number in range(4):
        scene.send(ask(f"later-{number}"), partition=SOUND)
        wanted = f"later-{number}"
        eventually(lambda wanted=wanted: wanted in ids(scene.responses()), "an answer of the sound one", timeout=30)
        time.sleep(0.5)
    spent = (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - began)
    print(f"\nCPU with {len(REASONS)} partitions in quarantine: {spent:.1%}")
    assert spent < 0.7  # a loop without a pause takes all of a core
    assert process.memory_info().rss < 400 * 1024 * 1024
    errors = [line for line in worker.logs() if line["level"] == "error"]
    assert sorted((line["partition"], line["offset"]) for line in errors) == [(p, BAD) for p in sorted(REASONS)]
    assert worker.stop() == 0
    assert {p: at for p, at in scene.committed().items() if p != SOUND} == dict.fromkeys(REASONS, BAD)

    # As the log and docs/operations.md say.
    for line in errors:
        step_over(scene, line["hint"])
    worker = scene.ready("again")
    lasts = {f"{partition}-last" for partition in REASONS}
    eventually(lambda: lasts <= set(ids(scene.responses())), "what stands behind", interval=0.2)
    scene.wait_committed()
    assert worker.metric("partitions_quarantined") == 0
    assert worker.stop() == 0
    found = ids(scene.responses())
    assert len(found) == len(set(found))
    assert scene.count(scene.topics.dlq) == 0


def step_over(scene: Scene, hint: str) -> None:
    """Do what the command of a log line does; the tool itself is no part of the embedded Kafka."""
    form = r"kafka-consumer-groups --group … --topic (\S+):(\d+) --reset-offsets --to-offset (\d+) --execute"
    topic, partition, position = re.search(form, hint).groups()
    wire.set_offsets(scene.bootstrap, scene.topics.group, topic, {int(partition): int(position)})
