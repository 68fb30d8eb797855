"""What is said of readiness that comes and goes."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from gigaoffice_worker.observe.announcer import Announcer
from gigaoffice_worker.observe.health import Trouble

BLOCKED = Trouble("delivery-blocked", "outcomes cannot be delivered to responses: no leader")


@pytest.mark.parametrize(
    "trouble, lost, back",
    [
        (BLOCKED, "Worker not ready", "Worker ready again"),
        (Trouble("session-lost", "no heartbeat for 12 s"), "Session lost", "Session regained"),
        (Trouble("cluster-unreachable", "no broker"), "Cluster out of reach", "Cluster within reach again"),
    ],
)
def test_a_reason_is_told_once_when_it_comes_and_once_when_it_goes(trouble, lost, back) -> None:
    announcer = Announcer()
    with capture_logs() as told:
        for second in range(10):
            announcer.look([trouble], 100.0 + second)
        announcer.look([], 112.5)
        announcer.look([], 113.0)
    assert [(line["event"], line["log_level"]) for line in told] == [(lost, "warning"), (back, "info")]
    assert told[0]["reason"] == trouble.code
    assert told[0]["detail"] == trouble.text
    assert told[1]["after"] == 12.5


def test_a_reason_whose_words_change_is_not_told_again() -> None:
    announcer = Announcer()
    with capture_logs() as told:
        announcer.look([BLOCKED], 1.0)
        announcer.look([Trouble(BLOCKED.code, "outcomes cannot be delivered to dlq")], 2.0)
    assert len(told) == 1


def test_what_begins_and_ends_a_worker_is_no_news() -> None:
    announcer = Announcer()
    with capture_logs() as told:
        for code in ("starting", "joining", "draining", "paused", "storm-guard", "authentication-lost"):
            announcer.look([Trouble(code, "as it should be")], 1.0)
        announcer.look([], 2.0)
    assert told == []
