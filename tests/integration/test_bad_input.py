"""Whatever is written to the request topic: one outcome each, and nothing else is hurt by it."""

from __future__ import annotations

import json
from collections import defaultdict

import psutil

from tests.support import corpus, wire
from tests.support.scene import ask

# Resident, the interpreter and a record of a megabyte in several hands at once included.
MOST_MEMORY = 400 * 1024 * 1024


def test_no_input_hurts_the_worker_or_its_neighbours(scene):
    """The table of docs/security.md is what this test has seen: it fails for any other outcome."""
    worker = scene.ready(KAFKA_TOPIC_REQUESTS_PARTITIONS="3", WORKER_CONCURRENCY="8", LOG_LEVEL="DEBUG")
    cases = [*corpus.cases(), *corpus.fuzzed()]
    neighbours = [ask(f"neighbour-{number}", f"n{number % 7}") for number in range(len(cases))]
    sent = [each for case, neighbour in zip(cases, neighbours, strict=True) for each in ((*case[2:5],), neighbour)]
    places = scene.send(*sent, message_max_bytes=2_000_000, batch_size=1_000_000)
    scene.wait_committed(60)
    memory = psutil.Process(worker.pid).memory_info().rss

    answered, letters = defaultdict(list), defaultdict(list)
    for response in scene.responses():
        answered[response.source].append(response)
    for letter in scene.dead_letters():
        letters[int(letter.header("source-partition")), int(letter.header("source-offset"))].append(letter)
    for case, place in zip(cases, places[::2], strict=True):
        dead = case.outcome == corpus.DEAD
        assert len(letters[place]) == int(dead), case.name
        assert len(answered[place]) <= 1, case.name
        for letter in letters[place]:
            assert (letter.key, letter.value) == (case.key, case.value), case.name
            written = [(name, value if value is not None else b"") for name, value in case.headers]
            assert letter.headers[: len(case.headers)] == written, case.name
            assert letter.header("dlq-reason") == b"invalid-request", case.name
        for response in answered[place]:
            assert response.status == ("failed" if dead else "completed"), case.name
            assert response.rec.key == case.key, case.name
        if not dead:
            assert answered[place], case.name
    assert [[answer.id for answer in answered[place]] for place in places[1::2]] == [
        [f"neighbour-{number}"] for number in range(len(cases))
    ]

    assert memory < MOST_MEMORY
    assert worker.stop(20) == 0
    assert scene.committed() == wire.end_offsets(scene.bootstrap, scene.topics.requests)
    _check_lines(worker.log_file.read_bytes())


def _check_lines(written: bytes) -> None:
    """Fail unless no record has more than one line, and no line anything in it that a terminal would obey."""
    lines = written.decode().splitlines(keepends=True)
    assert written.decode().count("\n") == len(lines)  # also none of the other characters that end a line
    told = [json.loads(line) for line in lines]
    of_records = [(line["partition"], line["offset"]) for line in told if "offset" in line]
    assert of_records
    assert len(of_records) == len(set(of_records))
    text = written.decode().replace("\n", "")
    assert [character for character in text if not character.isprintable()] == []
