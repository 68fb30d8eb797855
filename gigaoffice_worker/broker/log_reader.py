"""Reading topics from chosen offsets on, in no group. For one thread at a time."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Final, Self

from kafka import TopicPartition
from kafka import errors as kafka_errors

from gigaoffice_worker.broker.clients import open_consumer
from gigaoffice_worker.broker.error_table import to_worker_error
from gigaoffice_worker.broker.errors import OutOfRangeError
from gigaoffice_worker.broker.kafka_python import group
from gigaoffice_worker.config import Config
from gigaoffice_worker.core.errors import WorkerError
from gigaoffice_worker.core.records import Record

Place = tuple[str, int]
"""A partition, as (topic, partition)."""

_AT_ONCE: Final = 2000
_CLOSE_LIMIT_MS: Final = 1000
# What is asked for may end in the middle of a fetch: nobody shall wait for the broker to gather more.
_GATHER_MS: Final = 20


class LogReader:
    """A consumer without a group that sees what is committed: a context manager.

    `timeout` in seconds bounds the connecting and each question. Raises WorkerErrors, and OutOfRangeError.
    """

    def __init__(self, config: Config, purpose: str, timeout: float) -> None:
        self._during = f"reading for the {purpose}"
        self._timeout = timeout
        named = dataclasses.replace(config.kafka, client_id=f"{config.kafka.client_id}-{purpose}")
        self._client = open_consumer(
            f"connecting the {purpose}",
            dataclasses.replace(config, kafka=named),
            timeout,
            group_id=None,
            group_instance_id=None,
            max_poll_records=_AT_ONCE,
            fetch_max_wait_ms=_GATHER_MS,
            api_version_auto_timeout_ms=round(timeout * 1000),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(Exception):  # what was read is read
            self._client.close(autocommit=False, timeout_ms=_CLOSE_LIMIT_MS)

    def starts(self, places: Iterable[Place]) -> dict[Place, int]:
        """Return the lowest offset that each partition holds; those without a leader are left out."""
        return self._offsets(places, group.EARLIEST)

    def ends(self, places: Iterable[Place]) -> dict[Place, int]:
        """Return the position behind the last record of each partition; those without a leader are left out."""
        return self._offsets(places, group.LATEST)

    def since(self, places: Iterable[Place], moment: float) -> dict[Place, int]:
        """Return the first offset that is not older than `moment` (seconds since the epoch), where there is one."""
        return self._offsets(places, max(0, round(moment * 1000)))

    def _offsets(self, places: Iterable[Place], at: int) -> dict[Place, int]:
        wanted = {TopicPartition(*place): at for place in places}
        with self._telling():
            found = group.offsets_at(self._client, wanted, self._timeout)
        return {(place.topic, place.partition): offset for place, offset in found.items()}

    def read_from(self, positions: Mapping[Place, int]) -> None:
        """Read these partitions, and no others, from these positions on."""
        with self._telling():
            self._client.assign([TopicPartition(*place) for place in positions])
            for place, position in positions.items():
                self._client.seek(TopicPartition(*place), position)

    def poll(self, timeout: float) -> list[Record]:
        """Return the next records, waiting up to `timeout` seconds for the first."""
        with self._telling():
            batches = self._client.poll(timeout_ms=round(timeout * 1000))
        return [record for batch in batches.values() for record in batch]

    def position(self, place: Place) -> int | None:
        """Return the position that is read from next. It moves past what is no record, too."""
        return group.position(self._client, TopicPartition(*place))

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except WorkerError:
            raise
        except kafka_errors.OffsetOutOfRangeError as error:
            raise OutOfRangeError({place.partition: at for place, at in error.args[0].items()}) from error
        except Exception as error:
            raise to_worker_error(error, self._during) from error
