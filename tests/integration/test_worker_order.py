"""What waits for what: nothing but the records of one key, and those in their order."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

from tests.support.scene import ask, check_once, ids, overlapping
from tests.support.waiting import eventually

QUICK_RETRIES = {
    "WORKER_RETRY_DELAY": "0.02",
    "WORKER_RETRY_MAX_DELAY": "0.05",
    "WORKER_CONCURRENCY": "4",
    "WORKER_MAX_ATTEMPTS": "100",  # whoever is slow must not find the last attempt made
}


@pytest.fixture(scope="module")
def by_key(shared_scene):
    """One request partition and one response partition, so that the order of responses is that of their offsets."""
    shared_scene.make()
    shared_scene.ready(**QUICK_RETRIES)
    return shared_scene


def answers_of(scene, prefix, count):
    """Wait for the responses to requests whose id begins so, and return their ids in the order of the log."""

    def found():
        names = [name for name in ids(scene.responses()) if name.startswith(prefix)]
        return names if len(names) >= count else None

    return eventually(found, f"{count} answers to {prefix}", interval=0.1)


def test_slow_key_delays_nobody_else(by_key):
    gate = by_key.file("slow")
    slow = [ask("slow-1", "slow", do="hang", file=str(gate)), ask("slow-2", "slow")]
    others = [ask(f"slow-other-{n}", f"other-{n % 7}") for n in range(60)]
    by_key.send(*slow, *others)
    found = answers_of(by_key, "slow-other", 60)
    assert len(found) == 60
    assert by_key.starts()["slow-2"] == 0
    gate.unlink()
    assert answers_of(by_key, "slow-", 62)[-2:] == ["slow-1", "slow-2"]


def test_retrying_key_delays_nobody_else(by_key):
    failing = by_key.file("retrying")
    first = [
        ask(f"retry-{n}", "retry", do="while_file", then="transient", retry_after=0.3, file=str(failing))
        for n in (1, 2)
    ]
    others = [ask(f"retry-other-{n}", f"other-{n % 7}") for n in range(60)]
    by_key.send(*first, *others)
    answers_of(by_key, "retry-other", 60)
    eventually(lambda: by_key.starts()["retry-1"] >= 2, "a retry")
    failing.unlink()
    found = answers_of(by_key, "retry-", 62)
    assert found[-2:] == ["retry-1", "retry-2"]


def test_calls_of_one_key_never_overlap_and_follow_the_offsets_across_retries(by_key):
    chance = random.Random(7)
    sent = [
        ask(
            f"order-{n}",
            f"order-{n % 6}",
            seconds=chance.choice([0, 0.01, 0.03]),
            do="fail",
            until_attempt=chance.randint(1, 4),
        )
        for n in range(90)
    ]
    places = by_key.send(*sent)
    answers_of(by_key, "order", 90)
    responses = [answer for answer in by_key.responses() if answer.id.startswith("order")]
    check_once(responses, [f"order-{n}" for n in range(90)])
    journal = [call for call in by_key.journal() if call.id.startswith("order")]
    assert overlapping(journal, lambda call: call.key) == []
    begun, answered = defaultdict(list), defaultdict(list)
    for call in journal:
        if call.moment == "start":
            begun[call.key].append((call.offset, call.attempt))
    for answer in responses:
        answered[answer.rec.key].append(answer.source.offset)
    assert all(calls == sorted(calls) for calls in begun.values())
    assert all(offsets == sorted(offsets) for offsets in answered.values())
    assert sum(map(len, begun.values())) > len(places)


def test_requests_without_key_run_beside_each_other(by_key):
    gate = by_key.file("keyless")
    names = [f"keyless-{n}" for n in range(4)]
    by_key.send(*[ask(name, None, do="hang", file=str(gate)) for name in names])
    by_key.wait_started(*names)
    gate.unlink()
    answers_of(by_key, "keyless", 4)


def test_empty_key_is_a_key(by_key):
    gate = by_key.file("empty")
    by_key.send(*[ask(f"empty-{n}", b"", do="hang", file=str(gate)) for n in range(3)], ask("emptier", b"e"))
    by_key.wait_started("empty-0")
    answers_of(by_key, "emptier", 1)
    assert by_key.starts().keys() & {"empty-1", "empty-2"} == set()
    gate.unlink()
    assert answers_of(by_key, "empty-", 3) == ["empty-0", "empty-1", "empty-2"]


def test_keys_are_told_apart_by_all_of_their_bytes(by_key):
    gate = by_key.file("bytes")
    keys = [b"\x00", b"\x00\x00", b"\xff", b"\xff\xfe"]
    by_key.send(*[ask(f"bytes-{n}", key, do="hang", file=str(gate)) for n, key in enumerate(keys)])
    by_key.wait_started(*[f"bytes-{n}" for n in range(4)])
    gate.unlink()
    answers_of(by_key, "bytes", 4)


def test_partition_ordering_runs_each_partition_alone_and_in_order(scene):
    scene.make(requests=2)
    scene.ready(WORKER_ORDERING="partition", **QUICK_RETRIES)
    gate = scene.file("gate")
    for partition in (0, 1):
        first = ask(f"{partition}-first", "a", do="hang", file=str(gate))
        rest = [
            ask(f"{partition}-{n}", None if n % 3 else f"k{n}", do="fail", until_attempt=1 + n % 3) for n in range(20)
        ]
        scene.send(first, *rest, partition=partition)
    scene.wait_started("0-first", "1-first")
    gate.unlink()
    scene.wait_responses(42)
    journal = scene.journal()
    assert overlapping(journal, lambda call: call.partition) == []
    for partition in (0, 1):
        calls = [
            (call.offset, call.attempt) for call in journal if call.partition == partition and call.moment == "start"
        ]
        assert calls == sorted(calls)
        answers = [answer.source.offset for answer in scene.responses() if answer.source.partition == partition]
        assert answers == list(range(21))


def test_ordering_none_runs_one_key_beside_itself(scene):
    scene.make()
    scene.ready(WORKER_ORDERING="none", **QUICK_RETRIES)
    gate = scene.file("gate")
    names = [f"same-{n}" for n in range(4)]
    scene.send(*[ask(name, "same", do="hang", file=str(gate)) for name in names])
    scene.wait_started(*names)
    gate.unlink()
    check_once(scene.wait_responses(4), names)
