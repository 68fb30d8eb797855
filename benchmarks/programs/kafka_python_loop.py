"""The plain loop on kafka-python: poll, handle, send, flush, commit."""

from __future__ import annotations

from kafka import KafkaConsumer, KafkaProducer

from benchmarks.programs import common


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
        receive_message_max_bytes=100 * 1024 * 1024,  # by default less than one fetch can bring
    )
    producer = KafkaProducer(
        bootstrap_servers=place.bootstrap,
        acks="all",
        compression_type=common.COMPRESSION,
        linger_ms=common.LINGER_MS,
    )
    while not asked_to_stop.is_set():
        futures = [
            producer.send(place.responses, common.respond(record.value), record.key)
            for records in consumer.poll(timeout_ms=100).values()
            for record in records
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
