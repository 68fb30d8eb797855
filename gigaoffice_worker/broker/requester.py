"""The Kafka edge of whoever requests: a producer of requests, and a reader of all responses in no consumer group."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

from kafka import KafkaConsumer, TopicPartition

from gigaoffice_worker.broker.clients import open_consumer, open_producer
from gigaoffice_worker.broker.error_table import SendFailure, send_failure, to_worker_error
from gigaoffice_worker.broker.errors import UndecodableError
from gigaoffice_worker.broker.kafka_python.fetching import set_aside
from gigaoffice_worker.broker.producer import Producer
from gigaoffice_worker.config import Config
from gigaoffice_worker.core.errors import AccessError, WorkerError
from gigaoffice_worker.core.records import Record

_NAME: Final = "requester"
_CLOSE_LIMIT: Final = 1.0
_RIGHTS: Final = "To send, the user needs WRITE on the request topic and READ on the response topic."
_REQUEST_LIMITS: Final = (2.0, 30.0)  # seconds for one request to a broker: at least, at most
_LOOK_FOR_PARTITIONS_EVERY: Final = 5.0


class ResponseReader:
    """Reads what is written to the response topic from now on; for one thread at a time. Raises WorkerErrors only."""

    def __init__(self, config: Config, partitions: int, timeout: float) -> None:
        """Fix the position, so that no response to a request that is written from now on can be missed."""
        changes = {
            "group_id": None,
            "group_instance_id": None,
            "client_id": f"{config.kafka.client_id}-{_NAME}",
            "request_timeout_ms": round(_request_limit(timeout) * 1000),
            "auto_offset_reset": "latest",  # only if the responses are deleted under our hands
        }
        self._topic = config.topics.responses.name
        self._client: KafkaConsumer = open_consumer("connecting to read responses", config, timeout, **changes)
        self._partitions = partitions
        self._look_at = time.monotonic() + _LOOK_FOR_PARTITIONS_EVERY
        places = self._places(range(partitions))
        self._client.assign(places)
        try:
            # Asked for now: `seek_to_end` would ask at the first poll, when answers may be behind us already.
            for place, end in self._client.end_offsets(places).items():
                self._client.seek(place, end)
        except Exception as error:
            self.close()
            raise told(error, f"finding the end of {self._topic}") from error

    def poll(self, timeout: float) -> list[Record]:
        """Return the records that have come, waiting up to `timeout` seconds for the first."""
        try:
            self._follow_the_topic()
            batches = self._client.poll(timeout_ms=round(timeout * 1000))
        except UndecodableError as error:
            # Nobody can read it: the next one may be the response that somebody waits for.
            set_aside(self._client, error.partition)
            behind = error.offset + 1 if error.behind is None else error.behind
            self._client.seek(TopicPartition(self._topic, error.partition), behind)
            raise told(error, "reading responses") from error
        except Exception as error:
            raise told(error, "reading responses") from error
        return [record for batch in batches.values() for record in batch]

    def close(self) -> None:
        """Close the connections."""
        self._client.close(autocommit=False, timeout_ms=round(_CLOSE_LIMIT * 1000))

    def _follow_the_topic(self) -> None:
        """Read partitions that the topic has got meanwhile, each from its beginning."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_FOR_PARTITIONS_EVERY
        known = len(self._client.partitions_for_topic(self._topic) or ())
        if known > self._partitions:
            new = self._places(range(self._partitions, known))
            self._client.assign([*self._client.assignment(), *new])
            for place in new:
                self._client.seek(place, 0)
            self._partitions = known

    def _places(self, partitions: range) -> list[TopicPartition]:
        return [TopicPartition(self._topic, partition) for partition in partitions]


def request_writer(config: Config, timeout: float) -> Producer:
    """Make a producer that acknowledges or fails a request within `timeout` seconds. Raises WorkerErrors only.

    Whatever is configured, the cluster has to acknowledge: without the offset no response can be told from another.
    """
    if config.producer.acks == 0:
        config = replace(config, producer=replace(config.producer, acks=1))
    request_limit = _request_limit(timeout)
    changes = {
        "max_block_ms": round(timeout * 1000),
        "request_timeout_ms": round(request_limit * 1000),
        # The client wants it above the time of one request and the linger.
        "delivery_timeout_ms": round((max(timeout, request_limit) + config.producer.linger + 0.1) * 1000),
    }
    try:
        return Producer(open_producer("connecting to send requests", config, timeout, _NAME, **changes))
    except AccessError as error:
        raise AccessError(str(error), hint=_RIGHTS) from error


def told(error: BaseException, during: str) -> WorkerError:
    """Return an error for whoever requests, who needs other rights than the worker does."""
    if isinstance(error, WorkerError):
        return error
    if send_failure(error) is SendFailure.TOO_LARGE:
        hint = "Raise the topic's max.message.bytes, or send less."
        return WorkerError(f"{during}: it is larger than the request topic takes", hint=hint)
    found = to_worker_error(error, during)
    if isinstance(found, AccessError):
        return AccessError(str(found), hint=_RIGHTS)
    return found


def _request_limit(timeout: float) -> float:
    least, most = _REQUEST_LIMITS
    return min(most, max(least, timeout))
