"""TCP ports that stay ours from before a broker starts until after it has ended, through all its restarts."""

from __future__ import annotations

import platform
import secrets
import socket
from collections.abc import Iterable
from contextlib import ExitStack

from gigaoffice_worker.devkafka.errors import DevKafkaError

LOOPBACK = "127.0.0.1"

# Below the range that the system hands out for outgoing connections (32768 up): a client that keeps reconnecting to
# a dead broker's port in that range can be given this very port as its own, connect to itself and keep the broker out.
RANDOM_PORTS = range(20_000, 32_000)


class ReservedPorts:
    """Ports of the loopback interface that no other cluster picks; `close` gives them back.

    Each is held by a socket that is bound but does not listen. A broker sets SO_REUSEADDR, as we do after binding,
    so Linux lets it listen there at any time, while another reservation, which binds without it, is refused.
    """

    def __init__(self) -> None:
        self._sockets = ExitStack()

    def take(self, port: int) -> int:
        """Reserve this very port; DevKafkaError if something listens there."""
        holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        # Unlike for a random port, connections of its last owner that still linger must not be in the way.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind((LOOPBACK, port))
        except (OSError, OverflowError) as error:
            holder.close()
            raise DevKafkaError(
                f"port {port} on {LOOPBACK} cannot be used: {error}",
                hint="End what listens there or choose another port.",
            ) from error
        self._hold(holder)
        return port

    def take_any(self) -> int:
        """Reserve a port that is free now."""
        return self._first_free(_shuffled(RANDOM_PORTS))

    def close(self) -> None:
        """Give all ports back."""
        self._sockets.close()

    def _first_free(self, candidates: Iterable[int]) -> int:
        for port in candidates:
            holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                holder.bind((LOOPBACK, port))
            except OSError:
                holder.close()
                continue
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._hold(holder)
            return port
        raise DevKafkaError(f"no port is free between {RANDOM_PORTS.start} and {RANDOM_PORTS.stop}")

    def _hold(self, holder: socket.socket) -> None:
        if platform.system() == "Linux":
            self._sockets.enter_context(holder)
        else:  # elsewhere two sockets never share a port, so it is only known to have been free
            holder.close()


def _shuffled(ports: range) -> list[int]:
    return secrets.SystemRandom().sample(ports, len(ports))
