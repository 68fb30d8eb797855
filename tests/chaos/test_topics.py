"""Topics that are deleted and created again under a running worker."""

from __future__ import annotations

import json

import pytest

from tests import wire


def requests(prefix: str, count: int) -> list[tuple[bytes, bytes, list[tuple[str, bytes | None]]]]:
    return [(f"k{n}".encode(), json.dumps({"id": f"{prefix}-{n}"}).encode(), []) for n in range(count)]


@pytest.mark.quick
@pytest.mark.parametrize("count", [20, 200], ids=["fewer-than-before", "more-than-before"])
def test_a_topic_created_again_is_processed_from_its_beginning(kafka_bootstrap, topic_set, make_topics, worker, count):
    make_topics({topic_set.requests: 1, topic_set.responses: 1, topic_set.dlq: 1})
    ours = worker("worker").start().wait_ready()
    wire.produce(kafka_bootstrap, topic_set.requests, requests("old", 60))
    ours.wait_until(lambda: ours.metric("committed_offset") == 60, 30, "the old topic to be committed")

    wire.delete_topics(kafka_bootstrap, [topic_set.requests])
    make_topics({topic_set.requests: 1})
    wire.produce(kafka_bootstrap, topic_set.requests, requests("new", count))

    def answered() -> set[str]:
        values = [json.loads(record.value or b"{}") for record in wire.read_all(kafka_bootstrap, topic_set.responses)]
        return {value["request_id"] for value in values if value["request_id"].startswith("new-")}

    ours.wait_until(lambda: len(answered()) == count, 60, "every request of the new topic to be answered")
    ours.wait_until(lambda: ours.metric("committed_offset") == count, 30, "the new topic to be committed")
    assert ours.stop() == 0
    assert wire.committed(kafka_bootstrap, topic_set.group, topic_set.requests)[0][0] == count
