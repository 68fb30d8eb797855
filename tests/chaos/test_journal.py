"""What a crash costs with the journal: nothing whose outcome stood in the cluster is called again or written twice."""

from __future__ import annotations

import signal
import time
from datetime import datetime

import pytest

from tests.chaos.checker import called_though_answered
from tests.chaos.load import mixture
from tests.chaos.stage import hooked, recovered_after, report

THREADS = 16
DEATHS = 5
# It takes the place of the dead one at once; others wait until its session has run out.
STATIC = {"KAFKA_CONSUMER_GROUP_INSTANCE_ID": "one", "WORKER_CONCURRENCY": str(THREADS)}


def logged_at(worker, event: str) -> float:
    """Return when a worker wrote its newest line of this event, in seconds of the clock."""
    return max(
        datetime.fromisoformat(line["timestamp"]).timestamp() for line in worker.logs() if line["event"] == event
    )


@pytest.mark.parametrize(
    "place, every",
    [
        ("after-poll", 6),
        ("in-handler", 60),
        pytest.param("after-send", 60, marks=pytest.mark.quick),
        ("before-commit", 4),
        ("in-commit", 4),
        ("after-commit", 4),
    ],
)
def test_kill_repeats_no_call_whose_response_stood_in_the_log(stage, place, every):
    stage.make()
    # What waits for a retry begins with its first attempt again: that is no repeated call.
    stage.load(mixture(keys=60, seconds=0.05, retried=False), rate=150)
    taken_over, died = {}, 0.0
    for n in range(DEATHS):
        worker = stage.worker(f"doomed-{n}", **STATIC, **hooked(kill=f"{place}:{every}")).start()
        assert worker.wait(60) == -signal.SIGKILL
        died = time.time()
        taken_over[worker.pid] = logged_at(worker, "Partitions assigned")
    survivor = stage.worker("survivor", **STATIC).start().wait_ready()
    stage.wait_settled()
    waited = survivor.metric("journal_read_seconds_sum") / survivor.metric("journal_read_seconds_count")
    findings, evidence = stage.conclude()
    taken_over[survivor.pid] = logged_at(survivor, "Partitions assigned")
    assert called_though_answered(evidence, taken_over) == []
    assert findings.duplicate_outcomes == 0
    # What ran, and what had ended in the moment before, without an acknowledgement yet.
    assert findings.repeated_calls <= DEATHS * THREADS * 1.5
    assert waited < 1.0
    report(
        f"kill -9 {place.replace('-', ' ')}, with the journal",
        findings,
        runs=DEATHS,
        recovery=recovered_after(evidence, died),
    )
