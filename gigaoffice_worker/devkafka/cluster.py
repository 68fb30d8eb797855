"""A Kafka cluster in KRaft mode on the loopback interface, and what one does to it: kill, freeze, restart."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Self

from gigaoffice_worker.devkafka.distribution import Distribution, Progress, install, new_id, work_directory
from gigaoffice_worker.devkafka.errors import DevKafkaError
from gigaoffice_worker.devkafka.node import Node
from gigaoffice_worker.devkafka.ports import LOOPBACK, ReservedPorts
from gigaoffice_worker.devkafka.reaper import Guard
from gigaoffice_worker.devkafka.settings import BROKER, CONTROLLER, node_settings

# Seconds
START_LIMIT = 90.0
STOP_LIMIT = 20.0
RECORD_LIMIT = 120.0

PLAINTEXT_CLIENTS: Mapping[str, str] = MappingProxyType({"CLIENT": "PLAINTEXT"})
NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
NO_PORTS: Mapping[int, int] = MappingProxyType({})


class KafkaCluster:
    """Real Apache Kafka nodes, numbered from 1, each broker and controller; a context manager that starts and stops.

    `data_dir` keeps the data between runs; without it they live in a temporary directory that `stop` removes.
    `port` is the first node's client port, the next nodes take the next ones; without it free ones are taken.
    `listeners` maps listener names to security protocols; each node gets a port for each, the first is the clients'.
    `advertised` maps node ids to the port that clients of the first listener are told, for a proxy in front.
    `properties` are broker settings over our own; `java_options` go to the broker's JVM, after our own;
    `format_options` go to the storage tool (`--add-scram`, …). `distribution` replaces the installed Kafka.

    The listener BROKER is plaintext, and whoever connects there is the super user ANONYMOUS: with an authorizer and
    clients on a listener of their own, it is the door for setting up ACLs.
    The nodes die with this process, also when it is killed. Methods are for one thread at a time.
    """

    def __init__(
        self,
        nodes: int = 1,
        *,
        data_dir: Path | None = None,
        port: int | None = None,
        listeners: Mapping[str, str] = PLAINTEXT_CLIENTS,
        advertised: Mapping[int, int] = NO_PORTS,
        properties: Mapping[str, str] = NO_SETTINGS,
        java_options: Sequence[str] = (),
        format_options: Sequence[str] = (),
        distribution: Distribution | None = None,
    ) -> None:
        self._ids = range(1, nodes + 1)
        self._data_dir = data_dir
        self._first_port = port
        self._listeners = listeners
        self._client_listener = next(iter(listeners))
        self._advertised = advertised
        self._properties = properties
        self._java_options = java_options
        self._format_options = format_options
        self._distribution = distribution
        self._nodes: dict[int, Node] = {}
        self._ports = ReservedPorts()
        self._guard: Guard | None = None
        self._temporary: Path | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # Life cycle

    def start(self, progress: Progress | None = None) -> None:
        """Start all nodes and return when each serves; `progress` is told what takes long. DevKafkaError on failure.

        The very first time on a machine Kafka is fetched and a start-up archive made: half a minute together.
        """
        if self._nodes:
            raise DevKafkaError("the Kafka cluster has been started already")
        tell = progress or _say_nothing
        distribution = self._distribution or _prepared(tell)
        tell(f"Starting Apache Kafka{'' if len(self._ids) == 1 else f' ({len(self._ids)} nodes)'}")
        try:
            self._lay_out(distribution)
            self._format()
            self._launch(self._nodes.values(), expected=frozenset(self._ids))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all nodes; temporary data are removed, kept data are left in order. Does nothing when stopped."""
        for node in self._nodes.values():
            if self._temporary is None:
                node.terminate()
            else:
                node.kill()  # nobody will read these data again
        for node in self._nodes.values():
            node.wait(STOP_LIMIT)
        self._nodes = {}
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        if self._temporary is not None:
            shutil.rmtree(self._temporary)
            self._temporary = None
        self._ports.close()

    # Where it is

    @property
    def bootstrap_servers(self) -> str:
        """Return the clients' addresses of all nodes, comma-separated, as advertised."""
        return _addresses(self._told_port(node.id, node.ports) for node in self._chosen(()))

    def bootstrap(self, listener: str) -> str:
        """Return the addresses of all nodes on one listener, comma-separated."""
        return _addresses(self.port(node.id, listener) for node in self._chosen(()))

    def port(self, node: int, listener: str | None = None) -> int:
        """Return the port on which a node listens, by default for clients."""
        return self._node(node).ports[listener or self._client_listener]

    def pid(self, node: int) -> int:
        """Return the process id of a running node."""
        return self._node(node).process.pid

    def log(self, node: int) -> Path:
        """Return the file that a node logs to."""
        return self._node(node).log

    def running(self, node: int) -> bool:
        """Tell whether a node's process exists, frozen or not."""
        return self._node(node).running

    # What happens to nodes. Where none is named: to all of them.

    def kill(self, *nodes: int) -> None:
        """End nodes without warning (SIGKILL)."""
        for node in self._chosen(nodes):
            node.kill()

    def freeze(self, *nodes: int) -> None:
        """Stop nodes in their tracks (SIGSTOP): connections stay open, nothing answers."""
        for node in self._chosen(nodes):
            node.freeze()

    def thaw(self, *nodes: int) -> None:
        """Let frozen nodes go on (SIGCONT)."""
        for node in self._chosen(nodes):
            node.thaw()

    def stop_node(self, *nodes: int, timeout: float = STOP_LIMIT) -> None:
        """End nodes in order (SIGTERM); those that need more than `timeout` seconds are killed."""
        chosen = self._chosen(nodes)
        for node in chosen:
            node.terminate()
        for node in chosen:
            node.wait(timeout)

    def restart(self, *nodes: int) -> None:
        """Start nodes again on their data and ports, ending them first if they run; return when they serve."""
        self.stop_node(*nodes)
        self._launch(self._chosen(nodes))

    # How it is done

    def _chosen(self, nodes: Sequence[int]) -> list[Node]:
        if not self._nodes:
            raise DevKafkaError("the Kafka cluster is not started")
        return [self._node(node) for node in nodes or self._ids]

    def _node(self, node: int) -> Node:
        if node not in self._nodes:
            known = ", ".join(map(str, self._nodes)) or "none, for the cluster is not started"
            raise DevKafkaError(f"there is no Kafka node {node}; nodes: {known}")
        return self._nodes[node]

    def _lay_out(self, distribution: Distribution) -> None:
        """Take ports, make directories, write the settings of all nodes."""
        if self._data_dir is None:
            self._temporary = Path(tempfile.mkdtemp(prefix="gigaoffice-kafka-"))
        root = (self._data_dir or self._temporary or Path()).resolve()
        self._guard = Guard(litter=[] if self._temporary is None else [self._temporary])
        ports = {node: self._take_ports(node) for node in self._ids}
        for node_id in self._ids:
            node = Node(
                node_id,
                root / f"node-{node_id}",
                ports[node_id],
                distribution=distribution,
                group=self._guard.group,
                java_options=self._java_options,
            )
            settings = node_settings(
                node_id,
                data=str(node.data),
                ports=ports,
                listeners=self._listeners,
                advertised={self._client_listener: self._told_port(node_id, ports[node_id])},
            )
            node.configure({**settings, **self._properties})
            self._nodes[node_id] = node

    def _take_ports(self, node: int) -> dict[str, int]:
        names = [*self._listeners, BROKER, CONTROLLER]
        first = names.pop(0)
        wanted = None if self._first_port is None else self._first_port + node - 1
        ports = {first: self._ports.take_any() if wanted is None else self._ports.take(wanted)}
        return ports | {name: self._ports.take_any() for name in names}

    def _told_port(self, node: int, ports: Mapping[str, int]) -> int:
        return self._advertised.get(node, ports[self._client_listener])

    def _format(self) -> None:
        """Prepare the storage of the nodes that are new, as members of one cluster."""
        ids = {node: node.cluster_id() for node in self._nodes.values()}
        cluster_id = next(filter(None, ids.values()), None) or new_id()
        for node, known in ids.items():
            if known is None:
                node.format(cluster_id, self._format_options)

    def _launch(self, nodes: Iterable[Node], expected: frozenset[int] = frozenset()) -> None:
        nodes = list(nodes)
        for node in nodes:
            node.launch()
        deadline = time.monotonic() + START_LIMIT
        for node in nodes:
            node.wait_until_serving(expected | {node.id}, deadline)


def _prepared(tell: Progress) -> Distribution:
    """Install Kafka, with the archive that makes it start in a second rather than three."""
    distribution = install(tell)
    if not distribution.archive.is_file():
        tell("Making an archive for faster starts (10 s, only the first time)")
        try:
            _record_archive(distribution)
        except (OSError, DevKafkaError) as error:
            tell(f"It could not be made, so starts are slower: {error}")
    return distribution


def _record_archive(distribution: Distribution) -> None:
    """Run a node whose JVM writes down at its end what it loaded."""
    with work_directory(distribution.archive) as directory:
        archive = directory / "archive.aot"
        recorder = KafkaCluster(
            java_options=[f"-XX:AOTCacheOutput={archive}"], distribution=replace(distribution, archive=archive)
        )
        with recorder:
            recorder.stop_node(timeout=RECORD_LIMIT)
        archive.replace(distribution.archive)


def _addresses(ports: Iterable[int]) -> str:
    return ",".join(f"{LOOPBACK}:{port}" for port in ports)


def _say_nothing(_: str) -> None:
    pass
