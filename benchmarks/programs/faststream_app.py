"""FastStream, at least once: a message is acknowledged after its response, one consumer a partition."""

from __future__ import annotations

import asyncio
import os

from faststream import AckPolicy, FastStream
from faststream.kafka import KafkaBroker, KafkaMessage, KafkaResponse

from benchmarks.programs import common


async def main() -> None:
    """Run until SIGTERM."""
    place = common.Place.from_environment()
    broker = KafkaBroker(
        place.bootstrap,
        acks="all",
        compression_type=common.COMPRESSION,
        linger_ms=common.LINGER_MS,
        logger=None,  # it would log two lines a message
    )

    # More workers than partitions would stay without work: it runs the messages of one partition in turn.
    @broker.subscriber(
        place.requests,
        group_id=place.group,
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.NACK_ON_ERROR,
        max_workers=int(os.environ["PEER_PARTITIONS"]),
    )
    @broker.publisher(place.responses)
    def handle(message: KafkaMessage) -> KafkaResponse:
        record = message.raw_message
        return KafkaResponse(common.respond(record.value), key=record.key)

    await FastStream(broker).run()


if __name__ == "__main__":
    asyncio.run(main())
