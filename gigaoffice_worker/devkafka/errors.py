"""What goes wrong with the development Kafka."""

from __future__ import annotations

from gigaoffice_worker.core.errors import WorkerError


class DevKafkaError(WorkerError):
    """The local Kafka could not be fetched, started or steered. The message ends with its last log lines, if any."""
