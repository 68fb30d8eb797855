"""The plain loop on librdkafka: consume, handle, produce, flush, commit. The practical limit in Python."""

from __future__ import annotations

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer

from benchmarks.programs import common


def main() -> None:
    """Run until SIGTERM."""
    place = common.Place.from_environment()
    asked_to_stop = common.termination()
    consumer = Consumer(
        {
            "bootstrap.servers": place.bootstrap,
            "group.id": place.group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([place.requests])
    producer = Producer(
        {
            "bootstrap.servers": place.bootstrap,
            "acks": "all",
            "compression.type": common.COMPRESSION,
            "linger.ms": common.LINGER_MS,
        }
    )
    while not asked_to_stop.is_set():
        first = consumer.poll(0.1)
        if first is None:
            continue
        for message in [first, *consumer.consume(common.MAX_POLL_RECORDS - 1, timeout=0)]:
            if message.error() is not None:
                raise KafkaException(message.error())
            producer.produce(place.responses, common.respond(message.value()), message.key(), on_delivery=_check)
        producer.flush()
        consumer.commit(asynchronous=False)
    consumer.close()


def _check(error: KafkaError | None, _message: Message) -> None:
    if error is not None:
        raise KafkaException(error)


if __name__ == "__main__":
    main()
