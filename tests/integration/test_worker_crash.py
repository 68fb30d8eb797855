"""What a crash costs: no request ever, and of the calls only those that no commit could know of."""

from __future__ import annotations

import signal
import time

from tests.support.scene import ask, check_once, ids
from tests.support.waiting import eventually

# A static member takes its place again at once; others wait until the session of the dead one has run out.
STATIC = {"KAFKA_CONSUMER_GROUP_INSTANCE_ID": "one"}


def kill(worker):
    """Kill the worker."""
    worker.signal(signal.SIGKILL)
    worker.wait(10)


def test_kill_in_the_middle_of_work_loses_no_request(scene):
    scene.make(requests=3, responses=3)
    worker = scene.ready(WORKER_CONCURRENCY="4", **STATIC)
    sent = [ask(f"r{n}", f"k{n % 20}", seconds=0.01 if n % 3 else 0.03) for n in range(400)]
    places = scene.send(*sent)
    again = []
    for share in (0.25, 0.6):
        eventually(lambda share=share: len(scene.starts()) >= share * len(sent), "some work", timeout=60, interval=0.01)
        kill(worker)
        again.append((set(ids(scene.responses())), scene.starts()))
        worker.start()
    everybody = {f"r{n}" for n in range(400)}
    eventually(lambda: set(ids(scene.responses())) == everybody, "the answers", timeout=60, interval=0.2)
    scene.wait_committed()
    assert worker.stop() == 0

    # An answer that came twice carries the same identity, and nothing was called again whose answer was there.
    for answer in scene.responses():
        assert answer.source == places[int(answer.id[1:])]
    for answered, starts in again:
        assert answered & (scene.starts() - starts).keys() == set()
    assert scene.count(scene.topics.dlq) == 0


def test_what_ended_is_committed_at_once(scene):
    scene.make()
    worker = scene.ready()
    delays = []
    for n in range(20):
        scene.send(ask(f"r{n}", "k"))
        eventually(lambda n=n: worker.metric("committed_offset") == n + 1, "the commit", interval=0.005)
        now = time.time()
        delays.append(now - next(call.at for call in scene.journal() if (call.moment, call.id) == ("end", f"r{n}")))
    # Commits that came once a second would each be nearly a second late, since each request follows the commit before
    # it. A busy machine delays nearly all by half of that.
    assert sorted(delays)[1] < 0.5


def test_crash_repeats_nothing_that_is_done_behind_a_slow_request(scene):
    scene.make()
    worker = scene.ready(WORKER_CONCURRENCY="4", **STATIC)
    gate = scene.file("gate")
    done = [f"done-{n}" for n in range(500)]
    scene.send(
        ask("slow", "slow", do="hang", file=str(gate)), *[ask(name, f"k{n % 40}") for n, name in enumerate(done)]
    )
    check_once(scene.wait_responses(500), done)
    time.sleep(1.0)  # the contract's second between the end of a request and its commit
    assert scene.committed() == {0: 0}
    kill(worker)
    worker.start().wait_ready()
    eventually(lambda: scene.starts()["slow"] == 2, "the slow one to be called again", timeout=30)
    scene.send(ask("new", "k0"))
    scene.wait_responses(501)
    assert {name for name, count in scene.starts().items() if count > 1} == {"slow"}
    gate.unlink()
    check_once(scene.wait_responses(502), [*done, "slow", "new"])
    scene.wait_committed()
    assert worker.stop() == 0


def test_crash_repeats_nothing_that_is_done_between_many_slow_requests(scene):
    scene.make()
    worker = scene.ready(WORKER_CONCURRENCY="60", KAFKA_CONSUMER_MAX_POLL_RECORDS="100", **STATIC)
    gate = scene.file("gate")
    sent, done, slow = [], [], []
    for n in range(600):
        name = f"slow-{n}" if n % 12 == 5 else f"done-{n}"
        (slow if n % 12 == 5 else done).append(name)
        sent.append(ask(name, None, **({"do": "hang", "file": str(gate)} if n % 12 == 5 else {})))
    scene.send(*sent)
    check_once(scene.wait_responses(len(done)), done)
    time.sleep(1.0)
    eventually(lambda: scene.committed() == {0: 5}, "the commit of what is done before the slow ones")
    kill(worker)
    worker.start().wait_ready()
    eventually(lambda: all(scene.starts()[name] == 2 for name in slow), "the slow ones to be called again", timeout=30)
    gate.unlink()
    check_once(scene.wait_responses(600), [*done, *slow])
    scene.wait_committed()
    starts = scene.starts()
    assert all(starts[name] == 1 for name in done)
