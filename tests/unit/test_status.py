"""What is told of a worker in odd circumstances: while it is starting, and in a sandbox."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import psutil

from gigaoffice_worker.broker.connection_log import LoginWatch
from gigaoffice_worker.engine.status import Observer
from gigaoffice_worker.observe.metrics import ProcessStatistics


def test_threads_that_are_still_to_be_started_are_not_taken_for_dead():
    def part() -> SimpleNamespace:
        return SimpleNamespace(thread=threading.Thread(target=time.sleep, args=(0,)), last_turn=time.monotonic())

    dispatcher = SimpleNamespace(counts=lambda: SimpleNamespace(starving_since=None))
    engine = SimpleNamespace(consumer=part(), delivery=part(), dispatcher=dispatcher)
    observer = Observer(SimpleNamespace(), LoginWatch(), "dlq", 600.0)
    observer.engine = engine
    assert observer.not_live() == []
    engine.consumer.thread.start()
    engine.consumer.thread.join()
    assert [trouble.code for trouble in observer.not_live()] == ["consumer-dead"]


def test_metrics_of_the_process_are_there_although_the_system_hides_its_own_figures(tmp_path):
    (tmp_path / "self").symlink_to("/proc/self")
    process = ProcessStatistics(registry=None, proc=str(tmp_path))
    found = {sample.name: sample.value for metric in process.collect() for sample in metric.samples}
    assert abs(found["process_start_time_seconds"] - psutil.Process().create_time()) < 2.0
    assert found["process_resident_memory_bytes"] > 1_000_000
