"""Who takes part: how each is started, and what it cannot do."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

BASE = "kafka-python"


@dataclass(frozen=True, slots=True)
class Peer:
    """One contestant. `sequential`: its handler calls run one after the other, whatever WORKER_CONCURRENCY says."""

    name: str
    title: str
    module: str
    workloads: frozenset[str]
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    sequential: bool = False

    def command(self) -> list[str]:
        return [sys.executable, "-m", self.module, *self.arguments]


_BACKLOGS = frozenset({"W1", "W2", "W3", "W5"})
_OURS = {"WORKER_HANDLER": "benchmarks.handlers:handle", "KAFKA_PRODUCER_COMPRESSION_TYPE": "lz4", "METRICS_PORT": "0"}

_ALL = (
    Peer(
        "ours",
        "**gigaoffice-worker**",
        "gigaoffice_worker",
        _BACKLOGS | {"W4", "W6", "W7", "W8", "W9", "growth", "sweep"},
        ("run",),
        _OURS,
    ),
    Peer(
        "ours-fair",
        "the same, `WORKER_TENANT_FIELD=tenant`",
        "gigaoffice_worker",
        frozenset({"W9"}),
        ("run",),
        {**_OURS, "WORKER_TENANT_FIELD": "tenant"},
    ),
    Peer(
        "ours-unordered",
        "the same, `WORKER_ORDERING=none`",
        "gigaoffice_worker",
        frozenset({"W1"}),
        ("run",),
        {**_OURS, "WORKER_ORDERING": "none"},
    ),
    Peer(
        BASE,
        "plain kafka-python loop",
        "benchmarks.programs.kafka_python_loop",
        frozenset({"W1", "W2", "W4", "W5"}),
        sequential=True,
    ),
    Peer(
        "confluent",
        "plain confluent-kafka loop",
        "benchmarks.programs.confluent_loop",
        frozenset({"W1", "W2", "W4", "W5"}),
        sequential=True,
    ),
    Peer("pool", "plain loop with a pool, retries in it", "benchmarks.programs.pool_loop", frozenset({"W7"})),
    Peer("aiokafka", "plain aiokafka loop", "benchmarks.programs.aiokafka_loop", frozenset({"W1"}), sequential=True),
    Peer("arroyo", "arroyo (threads)", "benchmarks.programs.arroyo_app", _BACKLOGS | {"W4", "W8", "W9", "sweep"}),
    Peer("faststream", "FastStream", "benchmarks.programs.faststream_app", _BACKLOGS | {"W4", "W9", "sweep"}),
)
PEERS = {peer.name: peer for peer in _ALL}
