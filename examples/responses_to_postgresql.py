"""Reads responses into PostgreSQL, each once.

DATABASE_URL=postgresql:///gigaoffice python examples/responses_to_postgresql.py

Three rules make it safe to kill at any moment and to run more than one of:

- A finished row is never overwritten: responses are written at least once, and a late duplicate must change nothing.
- Kafka's offset is committed after the database has committed, so no response is lost in between.
- A response is taken for the request that it names only if the database knows that request: whoever may write
  requests can name any id.

Needs `pip install 'psycopg[binary]'`. With --once it ends when it has read what is there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

import psycopg
from kafka import KafkaConsumer, TopicPartition
from kafka.structs import OffsetAndMetadata
from psycopg.types.json import Jsonb

from gigaoffice_worker.client import read_response

GROUP = os.environ.get("RESPONSES_GROUP", "responses-to-postgresql")

TABLE = """
CREATE TABLE IF NOT EXISTS requests (
    id text PRIMARY KEY,
    status text NOT NULL DEFAULT 'pending',
    result jsonb,
    error jsonb,
    processing_time double precision,
    finished_at timestamptz
)
"""
# The row was made by whoever sent the request. Only a row that is still pending takes a response.
UPDATE = """
UPDATE requests
SET status = %(status)s, result = %(result)s, error = %(error)s, processing_time = %(processing_time)s,
    finished_at = %(timestamp)s
WHERE id = %(request_id)s AND status = 'pending'
"""


def store(database: psycopg.Connection, records: Iterable[tuple[bytes | None, list[tuple[str, bytes]]]]) -> int:
    """Write responses, given as value and headers, in one transaction; return how many rows became finished."""
    finished = 0
    with database.transaction(), database.cursor() as cursor:
        for value, headers in records:
            response = read_response(value, headers)
            if response is None:  # others may write to the topic too
                continue
            fields = {
                "request_id": _without_nul(response.request_id),
                "status": response.status,
                "result": Jsonb(_without_nul(response.result)),
                "error": Jsonb(_without_nul(response.error)) if response.error else None,
                "processing_time": response.processing_time,
                "timestamp": response.timestamp,
            }
            cursor.execute(UPDATE, fields)
            finished += cursor.rowcount
    return finished


def _without_nul(content: Any) -> Any:
    """Return JSON without the one character that PostgreSQL's texts cannot hold."""
    if isinstance(content, str):
        return content.replace("\0", "")
    if isinstance(content, list):
        return [_without_nul(each) for each in content]
    if isinstance(content, dict):
        return {_without_nul(name): _without_nul(value) for name, value in content.items()}
    return content


def main(*, once: bool) -> None:
    """Read until told otherwise."""
    consumer = KafkaConsumer(
        os.environ.get("KAFKA_TOPIC_RESPONSES", "gigaoffice-responses"),
        bootstrap_servers=os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092"),
        group_id=GROUP,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as database:
        database.execute(TABLE)
        empty = 0
        while not once or empty < 3:
            batches: dict[TopicPartition, list[object]] = consumer.poll(timeout_ms=1000)
            records = [record for batch in batches.values() for record in batch]
            empty = 0 if records else empty + bool(consumer.assignment())
            if records:
                finished = store(database, [(record.value, record.headers) for record in records])
                behind = {place: OffsetAndMetadata(batch[-1].offset + 1, "", -1) for place, batch in batches.items()}
                consumer.commit(behind)
                print(f"{len(records)} responses read, {finished} requests finished", flush=True)
    consumer.close()


if __name__ == "__main__":
    main(once="--once" in sys.argv)
