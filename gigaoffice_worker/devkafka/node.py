"""One Kafka node, broker and controller at once: its directory, its ports, its process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from gigaoffice_worker.devkafka.distribution import Distribution
from gigaoffice_worker.devkafka.errors import DevKafkaError
from gigaoffice_worker.devkafka.probe import known_brokers
from gigaoffice_worker.devkafka.settings import BROKER, properties_text
from gigaoffice_worker.devkafka.storage import prepare

FORMAT_LIMIT = 60.0
PROBE_INTERVAL = 0.03
LOG_LINES_SHOWN = 20


class Node:
    """A node on disk and, while it runs, its JVM. Processes join the process group `group`."""

    def __init__(
        self,
        node_id: int,
        directory: Path,
        ports: Mapping[str, int],
        *,
        distribution: Distribution,
        group: int,
        java_options: Sequence[str] = (),
    ) -> None:
        self.id = node_id
        self.ports = ports
        self.data = directory / "data"
        self.log = directory / "kafka.log"
        self._properties = directory / "server.properties"
        self._scratch = directory / "tmp"  # for what a JVM unpacks, since a killed one never tidies up
        self._distribution = distribution
        self._group = group
        self._java_options = java_options
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = False

    # On disk

    def configure(self, properties: Mapping[str, str]) -> None:
        """Write the node's settings."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._properties.write_text(properties_text(properties), encoding="ascii")

    def cluster_id(self) -> str | None:
        """Return the id of the cluster that the data belong to, None before `format`."""
        try:
            text = (self.data / "meta.properties").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        match = re.search(r"^cluster\.id=(.+)$", text, re.MULTILINE)
        return match[1] if match else None

    def format(self, cluster_id: str, options: Sequence[str]) -> None:
        """Make the node's data directory a member of the cluster."""
        tool = partial(self._run_storage_tool, cluster_id, options)
        if options:
            tool()
        else:
            prepare(self.data, self._distribution, node=self.id, cluster_id=cluster_id, run_tool=tool)

    def _run_storage_tool(self, cluster_id: str, options: Sequence[str]) -> None:
        arguments = ["format", f"--cluster-id={cluster_id}", "--config", str(self._properties), *options]
        self._launch("kafka.tools.StorageTool", arguments)
        if self.wait(FORMAT_LIMIT) != 0:
            raise self.failure("could not prepare its storage")

    # Running

    def launch(self) -> None:
        """Start the node."""
        self._launch("kafka.Kafka", [str(self._properties)], self._java_options)

    def wait_until_serving(self, expected: frozenset[int], deadline: float) -> None:
        """Wait until the node serves and knows the `expected` brokers, at most until `deadline` (monotonic)."""
        while not self._serves(expected):
            if not self.running:
                raise self.failure("ended while it was starting")
            if time.monotonic() > deadline:
                raise self.failure("did not serve in time")
            time.sleep(PROBE_INTERVAL)

    @property
    def running(self) -> bool:
        """Tell whether the process exists, frozen or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """Return the process; DevKafkaError unless it runs."""
        if self._process is None or not self.running:
            raise DevKafkaError(f"Kafka node {self.id} is not running")
        return self._process

    def freeze(self) -> None:
        """Stop the process in its tracks; all of its threads have stopped when this returns."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        self._frozen = True

    def thaw(self) -> None:
        """Let a frozen process go on."""
        self.process.send_signal(signal.SIGCONT)
        self._frozen = False

    def kill(self) -> None:
        """End the process at once, frozen or not, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def terminate(self) -> None:
        """Ask the process to end, if it runs."""
        if self.running:
            self.process.terminate()
            if self._frozen:  # or it would never hear of it
                self.thaw()

    def wait(self, timeout: float) -> int | None:
        """Wait for the end of the process; past `timeout` seconds it is killed. Return its exit code, if it ran."""
        if self._process is None:
            return None
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.returncode

    def failure(self, what: str) -> DevKafkaError:
        """Build an error out of what happened and the last lines of the log."""
        try:
            with self.log.open(encoding="utf-8", errors="replace") as log:
                lines = deque((line.rstrip() for line in log), maxlen=LOG_LINES_SHOWN)
        except OSError:
            lines = deque()
        shown = "\n".join(["The last lines of its log:", *lines]) if lines else "It logged nothing."
        return DevKafkaError(f"Kafka node {self.id} {what}. {shown}")

    def _launch(self, main: str, arguments: Sequence[str], options: Sequence[str] = ()) -> None:
        command = self._distribution.command(main, arguments, [f"-Djava.io.tmpdir={self._scratch}", *options])
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.log.parent,  # where a crashing JVM leaves its report
                process_group=self._group,
            )
        self._frozen = False

    def _serves(self, expected: frozenset[int]) -> bool:
        try:
            return known_brokers(self.ports[BROKER]) >= expected
        except OSError:
            return False
