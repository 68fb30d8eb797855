"""Prints dead letters as they come, a line each: `python examples/dead_letter_watcher.py`.

The place for a message to whoever looks after them. In a group of its own, so that each is told once; with --once it
ends when it has told what is there.
"""

from __future__ import annotations

import os
import sys

from kafka import KafkaConsumer


def told(value: bytes | None, headers: list[tuple[str, bytes]]) -> str:
    """Return a line about a dead letter, made of its headers; the request itself stays where it is."""
    said = {name: text.decode("utf-8", "replace") for name, text in headers}
    place = "-".join(said.get(f"source-{part}", "?") for part in ("topic", "partition", "offset"))
    line = (
        f"{said.get('dlq-timestamp', '?')} {said.get('dlq-reason', '?')} after {said.get('dlq-attempts', '?')} "
        f"attempts: {said.get('dlq-error-type', '?')} at {said.get('dlq-error-at') or 'no place'}, request {place}, "
        f"{len(value or b'')} bytes"
    )
    # Anybody may have written it: a terminal must not obey it.
    return "".join(each if each.isprintable() else "?" for each in line)


def main(*, once: bool) -> None:
    """Print until told otherwise."""
    consumer = KafkaConsumer(
        os.environ.get("KAFKA_TOPIC_DLQ", "gigaoffice-dlq"),
        bootstrap_servers=os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092"),
        group_id=os.environ.get("WATCHER_GROUP", "dead-letter-watcher"),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    empty = 0
    while not once or empty < 3:
        records = [record for batch in consumer.poll(timeout_ms=1000).values() for record in batch]
        empty = 0 if records else empty + bool(consumer.assignment())
        for record in records:
            print(told(record.value, record.headers), flush=True)
        if records:
            consumer.commit()
    consumer.close()


if __name__ == "__main__":
    main(once="--once" in sys.argv)
