"""One answer for one id: the second request of an id gets the answer of the first, without a call."""

from __future__ import annotations

import signal
from collections import Counter

from tests.support.scene import ask, ids
from tests.support.waiting import eventually

ON = {"WORKER_DEDUPE_WINDOW": "600", "WORKER_CONCURRENCY": "16", "KAFKA_CONSUMER_GROUP_INSTANCE_ID": "one"}
IDS = [f"r{n}" for n in range(200)]


def check(scene, answers):
    """Fail unless each id has two equal responses, the second marked with where the first request stands."""
    for name in IDS:
        first, second = sorted((each for each in answers if each.id == name), key=lambda each: each.source.offset)
        assert first.rec.value == second.rec.value
        place = f"{scene.topics.requests}-{first.source.partition}-{first.source.offset}"
        headers = dict(second.rec.headers)
        assert "duplicate-of" not in dict(first.rec.headers)
        assert headers["duplicate-of"] == place.encode()
        assert headers["request-digest"] == dict(first.rec.headers)["request-digest"]


def send_twice(scene):
    """Send each id twice: half of them while the first runs (under other keys), half when it is answered."""
    late, early = [ask(name, name, seconds=0.05) for name in IDS[:100]], IDS[100:]
    scene.send(*late, *[ask(name, f"a-{name}", seconds=0.5) for name in early], partition=0)
    scene.send(*[ask(name, f"b-{name}", seconds=0.5) for name in early], partition=0)
    return late


def test_ids_sent_twice_are_called_once_and_answered_twice(scene):
    scene.make()
    worker = scene.ready(**ON)
    late = send_twice(scene)
    scene.wait_responses(300)
    scene.send(*late, partition=0)
    answers = scene.wait_responses(400)
    scene.wait_committed()
    assert scene.starts() == Counter(IDS)
    check(scene, answers)
    assert worker.metric("requests_total", outcome="duplicate") == 200
    assert worker.metric("requests_total", outcome="completed") == 200


def test_memory_of_ids_outlives_a_crash(scene):
    scene.make()
    worker = scene.ready(**ON)
    late = send_twice(scene)
    eventually(lambda: len(scene.starts()) >= 150, "some calls", interval=0.01)
    worker.signal(signal.SIGKILL)
    worker.wait(10)
    answered, before = set(ids(scene.responses())), scene.starts()
    worker.start().wait_ready()
    scene.wait_responses(300, timeout=60)
    scene.send(*late, partition=0)
    scene.wait_responses(400)
    scene.wait_committed()
    # Only what has no answer yet is called again, however many answers were on their way, and no more than once.
    again = scene.starts() - before
    assert again.keys() & answered == set()
    assert set(again.values()) <= {1}
    assert before.keys() | again.keys() == set(IDS)


def test_other_value_runs_with_a_warning_and_a_replayed_request_always(scene):
    scene.make()
    worker = scene.ready(**ON)
    scene.send(ask("r", "k"))
    scene.wait_responses(1)
    scene.send(ask("r", "k", more=1), ask("r", "k", headers=[("dlq-replays", b"1")]))
    scene.wait_responses(3)
    scene.wait_committed()
    assert scene.starts() == {"r": 3}
    assert worker.stop() == 0
    [told] = [line for line in worker.logs() if line["event"].startswith("Request has the id of another")]
    assert (told["level"], told["request_id"]) == ("warning", "r")
