"""How a worker of a given configuration writes its outcomes: the same in the engine and in a trial without Kafka."""

from __future__ import annotations

from gigaoffice_worker._version import __version__
from gigaoffice_worker.config import Config
from gigaoffice_worker.core.messages import RecordEncoder


def record_encoder(config: Config) -> RecordEncoder:
    """Return what writes responses and dead letters."""
    return RecordEncoder(
        config.topics.responses.name,
        config.topics.dlq.name,
        config.consumer.group,
        __version__,
        config.worker.echo_headers,
        digests=config.worker.dedupe_window is not None,
    )
