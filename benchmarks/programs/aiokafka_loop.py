"""The plain loop on aiokafka: fetch, handle, send, wait for all, commit."""

from __future__ import annotations

import asyncio
import signal

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from benchmarks.programs import common


async def main() -> None:
    """Run until SIGTERM."""
    place = common.Place.from_environment()
    asked_to_stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked_to_stop.set)
    consumer = AIOKafkaConsumer(
        place.requests,
        bootstrap_servers=place.bootstrap,
        group_id=place.group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    producer = AIOKafkaProducer(
        bootstrap_servers=place.bootstrap,
        acks="all",
        compression_type=common.COMPRESSION,
        linger_ms=common.LINGER_MS,
    )
    async with consumer, producer:
        while not asked_to_stop.is_set():
            batches = await consumer.getmany(timeout_ms=100, max_records=common.MAX_POLL_RECORDS)
            sent = [
                await producer.send(place.responses, common.respond(record.value), record.key)
                for records in batches.values()
                for record in records
            ]
            if sent:
                await asyncio.gather(*sent)
                await consumer.commit()


if __name__ == "__main__":
    asyncio.run(main())
