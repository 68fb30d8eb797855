"""What one tenant, or one key, has queued hides nobody, in the whole backlog of a real log."""

from __future__ import annotations

import signal
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from tests.support.scene import Scene, ask, ids
from tests.support.waiting import eventually
from tests.support.workers import WorkerProcess

FULL = pytest.param(100_000, marks=[pytest.mark.long, pytest.mark.timeout(900)])
MEGABYTE = 1024 * 1024


def peak(worker: WorkerProcess) -> int:
    """Return the most bytes that a worker ever had in memory."""
    lines = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def backlog(tenant: str, count: int, keys: int, **payload):
    return [ask(f"{tenant}-{n}", f"{tenant}-{n % keys}", tenant=tenant, **payload) for n in range(count)]


def wait_answered(scene: Scene, wanted: set[str], timeout: float) -> float:
    """Wait until handlers have ended these requests; return how long that took from now on, in seconds."""
    began = time.time()
    ended: dict[str, float] = {}

    def all_ended() -> bool:
        ended.update({call.id: call.at for call in scene.journal() if call.moment == "end" and call.id in wanted})
        return len(ended) == len(wanted)

    eventually(all_ended, f"the end of {len(wanted)} requests", timeout=timeout, interval=0.2)
    return max(ended.values()) - began


@pytest.mark.parametrize("count", [15_000, FULL])
def test_small_tenants_do_not_wait_behind_a_large_one(scene, count):
    """First in, first out they would wait for 12 minutes behind 15,000 requests of half a second, ten at once.

    As one of four tenants each they need four seconds.
    """
    scene.make(requests=3)
    scene.send(*backlog("A", count, 997, seconds=0.5))
    worker = scene.ready(WORKER_CONCURRENCY="10", WORKER_TENANT_FIELD="tenant")
    worker.wait_until(lambda: worker.metric("parked_records") > count // 3, 30, "parking")
    small = [request for tenant in "BCD" for request in backlog(tenant, 20, 20, seconds=0.5)]
    scene.send(*small)
    took = wait_answered(scene, {f"{tenant}-{n}" for tenant in "BCD" for n in range(20)}, 30)
    status = worker.status()
    print(f"\n{count} in front: B, C and D after {took:.1f} s, {peak(worker) / MEGABYTE:.0f} MiB at most")
    assert took < 20.0
    assert peak(worker) < 256 * MEGABYTE
    assert status["tenants"][0]["tenant"] == "A"
    assert status["tenants"][0]["waiting"] > count // 2

    # A crash repeats what was running, and no more: what B, C and D have is not paid for again.
    time.sleep(1.5)
    worker.signal(signal.SIGKILL)
    worker.wait(10)
    before = scene.starts()
    running = len(before) - sum(1 for call in scene.journal() if call.moment == "end")
    again = scene.ready("again", WORKER_CONCURRENCY="10", WORKER_TENANT_FIELD="tenant")
    again.wait_until(lambda: sum(scene.starts().values()) > sum(before.values()) + 60, 30, "calls")
    repeated = [name for name, times in scene.starts().items() if times > 1]
    assert len(repeated) <= running + 10, (running, repeated)
    again.end()


@pytest.mark.parametrize("count", [15_000, FULL])
@pytest.mark.parametrize("fields", [{"WORKER_TENANT_FIELD": "tenant"}, {}], ids=["tenants", "keys"])
def test_whole_backlog_is_drained_in_order_and_once(scene, count, fields):
    scene.make(requests=3)
    keys = 5
    scene.send(*backlog("A", count, keys * 3, seconds=0.005))
    began = time.monotonic()
    worker = scene.ready(WORKER_CONCURRENCY="10", **fields)
    highest = 0.0

    def done() -> bool:
        nonlocal highest
        highest = max(highest, worker.metric("parked_records"))
        return scene.count(scene.topics.responses) >= count

    worker.wait_until(done, 60 + count * 0.003, "all responses")
    took = time.monotonic() - began
    scene.wait_committed()
    print(f"\n{count} calls of 5 ms in {took:.1f} s, {count * 0.005 / 10:.1f} s of pure calls, {highest:.0f} parked")
    assert highest > 0
    starts = [call for call in scene.journal() if call.moment == "start"]
    assert Counter(call.id for call in starts) == Counter(f"A-{n}" for n in range(count))
    by_key = defaultdict(list)
    for call in starts:
        by_key[call.key].append(call.offset)
    assert all(offsets == sorted(offsets) for offsets in by_key.values())
    assert worker.metric("parked_records") == 0
    assert worker.metric("lost_by_retention_total") == 0
    assert worker.stop() == 0


@pytest.mark.parametrize("count", [10_000])
def test_one_key_with_thousands_of_requests_hides_no_other(scene, count):
    """Seen before: the first other key after 45.8 s and 4,285 calls of 10 ms."""
    scene.make(requests=1)
    hot = [ask(f"hot-{n}", "hot", seconds=0.01) for n in range(count)]
    others = [ask(f"other-{n}", f"other-{n}", seconds=0.01) for n in range(200)]
    scene.send(*hot, *others)
    worker = scene.ready(WORKER_CONCURRENCY="4")
    took = wait_answered(scene, {f"other-{n}" for n in range(200)}, 30)
    print(
        f"\nothers behind {count} requests of one key after {took:.1f} s, {worker.metric('parked_records'):.0f} parked"
    )
    assert took < 20.0
    assert max(scene.starts()[f"hot-{n}"] for n in range(count)) == 1
    worker.end()


def test_urgent_requests_go_first(scene):
    """First in, first out the last of them would wait for more than a minute."""
    scene.make(requests=3)
    low = [ask(f"low-{n}", f"low-{n}", seconds=0.5) for n in range(1500)]
    scene.send(*low)
    worker = scene.ready(WORKER_CONCURRENCY="10", WORKER_PRIORITY_FIELD="header:priority")
    eventually(lambda: len(scene.starts()) >= 20, "some low ones", interval=0.02)
    waits = []
    for n in range(20):
        scene.send(ask(f"high-{n}", f"high-{n}", [("priority", b"5")], seconds=0.1))
        sent = time.time()
        wanted = f"high-{n}"
        eventually(lambda wanted=wanted: wanted in scene.starts(), "a call", interval=0.02)
        waits.append(next(c.at for c in scene.journal() if c.id == wanted and c.moment == "start") - sent)
    p95 = sorted(waits)[18]
    print(f"\nwait of urgent requests at p95: {p95:.2f} s")
    assert p95 <= 3.0
    assert len(ids(scene.responses())) < 1500
    worker.end()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_nobody_starves_while_nine_of_ten_are_urgent(scene):
    """Five minutes of more than can be done: waiting counts as a step every ten seconds."""
    aging, slack = 10.0, 5.0
    scene.make(requests=3)
    scene.ready(WORKER_CONCURRENCY="10", WORKER_PRIORITY_FIELD="header:priority", WORKER_PRIORITY_AGING=f"{aging:g}")
    sent: dict[str, float] = {}
    end = time.monotonic() + 300
    while time.monotonic() < end:
        names = [f"{'low' if n % 10 == 0 else 'high'}-{len(sent) + n}" for n in range(30)]
        scene.send(*(ask(name, name, [("priority", b"1" if name[0] == "h" else b"0")], seconds=0.5) for name in names))
        sent |= dict.fromkeys(names, time.time())
        time.sleep(1.0)
    called = {call.id: call.at for call in scene.journal() if call.moment == "start"}
    low = [name for name in called if name[0] == "l"]
    longest = max(called[name] - sent[name] for name in low)
    urgent = max(called[name] - sent[name] for name in called if name[0] == "h")
    print(f"\nlongest wait of {len(low)} low ones {longest:.1f} s, of the urgent ones {urgent:.1f} s")
    assert len(called) < len(sent) - 300  # there was more than could be done
    assert len(low) > 300
    # Whoever has waited for a step longer than an urgent one goes before it.
    for name in low:
        later = [each for each, at in sent.items() if each[0] == "h" and at > sent[name] + aging + slack]
        assert all(called[each] >= called[name] for each in later if each in called), name
