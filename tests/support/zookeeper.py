"""A Kafka from the time before KRaft: one broker, and the ZooKeeper that it keeps its metadata in."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

from gigaoffice_worker.devkafka.distribution import Release, install
from gigaoffice_worker.devkafka.node import Node
from gigaoffice_worker.devkafka.ports import LOOPBACK, ReservedPorts
from gigaoffice_worker.devkafka.reaper import Guard
from gigaoffice_worker.devkafka.settings import BROKER

START_LIMIT = 90.0


class ZooKeeperKafka:
    """A context manager that starts one broker and its ZooKeeper on the loopback interface, and ends both."""

    def __init__(self, release: Release) -> None:
        self._release = release
        self._ports = ReservedPorts()
        self.bootstrap_servers = ""

    def __enter__(self) -> Self:
        distribution = install(print, self._release)
        self._directory = Path(tempfile.mkdtemp(prefix="gigaoffice-kafka-"))
        self._guard = Guard(litter=[self._directory])
        broker, keeper = self._ports.take_any(), self._ports.take_any()
        self.bootstrap_servers = f"{LOOPBACK}:{broker}"
        self._keeper = self._start_keeper(distribution, keeper)
        self._node = Node(
            1, self._directory / "node-1", {BROKER: broker}, distribution=distribution, group=self._guard.group
        )
        self._node.configure(_settings(broker, keeper, self._node.data))
        try:
            self._node.launch()
            self._node.wait_until_serving(frozenset({1}), time.monotonic() + START_LIMIT)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._node.kill()
        self._keeper.kill()
        self._keeper.wait()
        self._guard.close()
        shutil.rmtree(self._directory)
        self._ports.close()

    def _start_keeper(self, distribution, port) -> subprocess.Popen[bytes]:
        settings = self._directory / "zookeeper.properties"
        settings.write_text(
            f"dataDir={self._directory / 'zookeeper'}\nclientPort={port}\nclientPortAddress={LOOPBACK}\n"
            "admin.enableServer=false\n",
            encoding="ascii",
        )
        command = distribution.command("org.apache.zookeeper.server.quorum.QuorumPeerMain", [str(settings)])
        with (self._directory / "zookeeper.log").open("wb") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=self._guard.group
            )


def _settings(port: int, keeper: int, data: Path) -> dict[str, str]:
    return {
        "broker.id": "1",
        "zookeeper.connect": f"{LOOPBACK}:{keeper}",
        "listeners": f"PLAINTEXT://{LOOPBACK}:{port}",
        "log.dirs": str(data),
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": "0",
        "offsets.topic.num.partitions": "1",
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.num.partitions": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "log.cleaner.dedupe.buffer.size": str(2 * 1024 * 1024),
        "log.index.size.max.bytes": str(1024 * 1024),
    }
