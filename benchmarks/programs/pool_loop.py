"""A plain loop with a pool of threads: poll, call all at once, each with retries of its own, send, flush, commit."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

from kafka import KafkaConsumer, KafkaProducer

from benchmarks.handlers import RefusedError
from benchmarks.programs import common

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 8.0


def _respond(value: bytes) -> bytes:
    """Call until the provider takes it: after `Retry-After`, or for twice as long each time, jittered."""
    wait = _FIRST_WAIT
    while True:
        try:
            return common.respond(value)
        except RefusedError as error:
            time.sleep(error.retry_after if error.retry_after is not None else random.uniform(wait / 2, wait))
            wait = min(_LONGEST_WAIT, 2 * wait)


def main() -> None:
    """Run until SIGTERM."""
    place = common.Place.from_environment()
    asked_to_stop = common.termination()
    consumer = KafkaConsumer(
        place.requests,
        bootstrap_servers=place.bootstrap,
        group_id=place.group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_poll_records=common.MAX_POLL_RECORDS,
    )
    producer = KafkaProducer(
        bootstrap_servers=place.bootstrap,
        acks="all",
        compression_type=common.COMPRESSION,
        linger_ms=common.LINGER_MS,
    )
    with ThreadPoolExecutor(place.concurrency) as pool:
        while not asked_to_stop.is_set():
            found = [record for records in consumer.poll(timeout_ms=100).values() for record in records]
            answers = pool.map(_respond, [record.value for record in found])
            futures = [
                producer.send(place.responses, value, record.key) for record, value in zip(found, answers, strict=True)
            ]
            if futures:
                producer.flush()
                for future in futures:
                    future.get(timeout=0)  # raises what went wrong
                consumer.commit()
    consumer.close()
    producer.close()


if __name__ == "__main__":
    main()
