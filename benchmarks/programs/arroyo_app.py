"""arroyo: its own chain of threads, producer and commit."""

from __future__ import annotations

from collections.abc import Mapping

from arroyo.backends.kafka import KafkaConsumer, KafkaPayload, KafkaProducer
from arroyo.backends.kafka.configuration import build_kafka_consumer_configuration, build_kafka_producer_configuration
from arroyo.processing.processor import StreamProcessor
from arroyo.processing.strategies import CommitOffsets, Produce, RunTaskInThreads
from arroyo.processing.strategies.abstract import ProcessingStrategy, ProcessingStrategyFactory
from arroyo.types import Commit, Message, Partition, Topic

from benchmarks.programs import common


class Chain(ProcessingStrategyFactory[KafkaPayload]):
    """Answers in threads, produces, and commits what was acknowledged."""

    def __init__(self, place: common.Place, producer: KafkaProducer) -> None:
        self._place = place
        self._producer = producer

    def create_with_partitions(
        self,
        commit: Commit,
        partitions: Mapping[Partition, int],  # noqa: ARG002  # the signature is arroyo's
    ) -> ProcessingStrategy[KafkaPayload]:
        concurrency = self._place.concurrency
        produce = Produce(self._producer, Topic(self._place.responses), CommitOffsets(commit))
        return RunTaskInThreads(_respond, concurrency, max_pending_futures=16 * concurrency, next_step=produce)


def _respond(message: Message[KafkaPayload]) -> KafkaPayload:
    request = message.payload
    return KafkaPayload(request.key, common.respond(request.value), [])


def main() -> None:
    """Run until SIGTERM."""
    place = common.Place.from_environment()
    bootstrap = [place.bootstrap]
    settings = {"acks": "all", "compression.type": common.COMPRESSION, "linger.ms": common.LINGER_MS}
    consumer = KafkaConsumer(
        build_kafka_consumer_configuration(
            {}, place.group, auto_offset_reset="earliest", bootstrap_servers=bootstrap, enable_auto_commit=False
        )
    )
    producer = KafkaProducer(build_kafka_producer_configuration(settings, bootstrap))
    processor = StreamProcessor(consumer, Topic(place.requests), Chain(place, producer))
    common.on_termination(processor.signal_shutdown)
    processor.run()
    producer.close().result(5.0)


if __name__ == "__main__":
    main()
