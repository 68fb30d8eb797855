"""What a node is told: the broker settings of a small cluster on the loopback interface."""

from __future__ import annotations

from collections.abc import Mapping

from gigaoffice_worker.devkafka.ports import LOOPBACK

# Every node has these two beside the caller's listeners, both plaintext: brokers talk among themselves whatever is
# asked of clients, and readiness is probed without knowing about TLS or passwords.
BROKER, CONTROLLER = "BROKER", "CONTROLLER"


def node_settings(
    node_id: int,
    *,
    data: str,
    ports: Mapping[int, Mapping[str, int]],
    listeners: Mapping[str, str],
    advertised: Mapping[str, int],
) -> dict[str, str]:
    """Return the settings of one node of a cluster whose `ports` are known, by node and listener.

    `listeners` maps the clients' listener names to security protocols, `advertised` to ports told instead of the own.
    """
    own = ports[node_id]
    told = {name: advertised.get(name, port) for name, port in own.items() if name != CONTROLLER}
    protocols = {**listeners, BROKER: "PLAINTEXT", CONTROLLER: "PLAINTEXT"}
    return {
        "node.id": str(node_id),
        "process.roles": "broker,controller",
        "listeners": _addresses(own),
        "advertised.listeners": _addresses(told),
        "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
        "inter.broker.listener.name": BROKER,
        "controller.listener.names": CONTROLLER,
        "controller.quorum.voters": ",".join(f"{i}@{LOOPBACK}:{ports[i][CONTROLLER]}" for i in ports),
        "super.users": "User:ANONYMOUS",  # the nodes themselves, where an authorizer is set
        "log.dirs": data,
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": "0",
        # A killed broker is let in again only when its last session has run out.
        "broker.session.timeout.ms": "2000",
        "broker.heartbeat.interval.ms": "300",
        # By default 128 MiB of heap, and 20 MB of sparse file for every log segment.
        "log.cleaner.dedupe.buffer.size": str(2 * 1024 * 1024),
        "log.index.size.max.bytes": str(1024 * 1024),
        **_internal_topics(len(ports)),
    }


def properties_text(settings: Mapping[str, str]) -> str:
    """Write settings as Java's properties reader reads them, values of several lines (PEM, JAAS) included; ASCII."""
    return "".join(f"{_escaped(name)}={_escaped(value)}\n" for name, value in settings.items())


def _internal_topics(nodes: int) -> dict[str, str]:
    """Give Kafka's own topics one partition a node rather than 50, and the replicas that the cluster can carry."""
    replicas = min(3, nodes)
    settings: dict[str, str] = {}
    for topic in ("offsets.topic", "transaction.state.log", "share.coordinator.state.topic"):
        settings[f"{topic}.num.partitions"] = str(nodes)
        settings[f"{topic}.replication.factor"] = str(replicas)
        if topic != "offsets.topic":
            settings[f"{topic}.min.isr"] = str(min(2, replicas))
    return settings


def _addresses(ports: Mapping[str, int]) -> str:
    return ",".join(f"{name}://{LOOPBACK}:{port}" for name, port in ports.items())


def _escaped(text: str) -> str:
    for character, escape in {
        "\\": "\\\\",
        "\n": "\\n",
        "\r": "\\r",
        "\t": "\\t",
        " ": "\\ ",
        "=": "\\=",
        ":": "\\:",
    }.items():
        text = text.replace(character, escape)
    utf16 = text.encode("utf-16-be")
    units = (int.from_bytes(utf16[at : at + 2], "big") for at in range(0, len(utf16), 2))
    return "".join(chr(unit) if unit < 0x80 else f"\\u{unit:04x}" for unit in units)
