"""Send COUNT requests at once with FastStream and print each number beside its reply.

Takes BOOTSTRAP REQUESTS RESPONSES GROUP COUNT. FastStream 0.7 refuses `request()` on Kafka ("doesn't support `request`
method without test client"), so this is what is left: `publish` with `reply_to` and `correlation_id`, and a subscriber.
"""

import asyncio
import json
import sys

from faststream.kafka import KafkaBroker, KafkaMessage

SECONDS = 40


async def main(bootstrap: str, requests: str, responses: str, group: str, count: int) -> None:
    broker = KafkaBroker(bootstrap, logger=None)
    waiting: dict[str, asyncio.Future[object]] = {}

    # From the beginning: what others were answered is not taken for a reply.
    @broker.subscriber(responses, group_id=group, auto_offset_reset="earliest")
    async def take(message: KafkaMessage) -> None:
        # Taken out: a reply may come twice.
        if reply := waiting.pop(message.correlation_id or "", None):
            reply.set_result(await message.decode())

    async def ask(number: int) -> object:
        name = f"question-{number}"
        reply = waiting[name] = asyncio.get_running_loop().create_future()
        await broker.publish({"number": number}, requests, reply_to=responses, correlation_id=name)
        return await reply

    async with broker, asyncio.timeout(SECONDS):
        await broker.start()
        for number, reply in enumerate(await asyncio.gather(*map(ask, range(count)))):
            print(number, json.dumps(reply), sep="\t")


asyncio.run(main(*sys.argv[1:5], count=int(sys.argv[5])))
