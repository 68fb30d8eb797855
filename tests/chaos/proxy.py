"""A TCP proxy that makes a network slow, mute or broken."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Self

from gigaoffice_worker.devkafka.ports import LOOPBACK

_CHUNK = 64 * 1024
_LOOK_EVERY = 0.02


class Proxy:
    """Forwards connections to a port on the loopback interface, from a thread of its own.

    What it does to them may be changed at any time: `latency` seconds each way, at most `rate` bytes a second and
    connection each way (0: no limit), `mute` (everything is held back, connections stay open).
    """

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.target = target
        self.latency = 0.0
        self.rate = 0
        self.mute = False
        self.forwarded = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._stop = asyncio.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10), f"port {self.port} could not be listened on"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def break_connections(self) -> None:
        """Cut every connection that is open now, without a word to either side."""
        self._loop.call_soon_threadsafe(self._abort)

    def _abort(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, LOOPBACK, self.port)
        self._ready.set()
        await self._stop.wait()
        server.close()
        self._abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection(LOOPBACK, self.target)
        except OSError:
            writer.transport.abort()
            self._writers.discard(writer)
            return
        self._writers.add(far_writer)
        pumps = [
            asyncio.ensure_future(self._pump(reader, far_writer)),
            asyncio.ensure_future(self._pump(far_reader, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for end in (writer, far_writer):
                end.transport.abort()
                self._writers.discard(end)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one direction. A line that holds what is on its way lets latency and rate act independently."""
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        outgoing = asyncio.ensure_future(self._deliver(line, writer))
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(_CHUNK):
                    line.put_nowait((self._loop.time() + self.latency, data))
                    if self.rate:
                        await asyncio.sleep(len(data) / self.rate)
        finally:
            outgoing.cancel()
            await asyncio.gather(outgoing, return_exceptions=True)

    async def _deliver(self, line: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        while True:
            due, data = await line.get()
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            while self.mute:  # noqa: ASYNC110  # another thread sets it
                await asyncio.sleep(_LOOK_EVERY)
            writer.write(data)
            self.forwarded += len(data)
            await writer.drain()
