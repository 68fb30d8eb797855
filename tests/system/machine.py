"""A machine with a real systemd: a Debian root that is booted with systemd-nspawn, and forgotten at its end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.waiting import eventually
from tests.system import stage

WORKER = "/opt/gigaoffice-worker/bin/gigaoffice-worker"
ETC = "/etc/gigaoffice-worker"


class Machine:
    """Shares the network of its host, so that it reaches a Kafka on the loopback interface."""

    def __init__(self, root: Path, directory: Path, wheels: Path) -> None:
        self._root = root
        self._directory = directory
        self._wheels = wheels
        self._console = directory / "console.log"
        self._shared = directory / "shared"
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._pid = 0

    def __enter__(self) -> Self:
        stage.source(self._make(self._shared))
        shutil.copy(stage.ROOT / "tests/system/desk.py", self._shared)
        with self._console.open("wb") as console:
            self._nspawn = subprocess.Popen(
                [  # noqa: S607
                    "systemd-nspawn",
                    "--quiet",
                    "--register=no",  # the host may have no systemd
                    "--keep-unit",
                    "--volatile=overlay",  # nothing that happens here is kept
                    "--console=pipe",
                    "--resolv-conf=off",
                    f"--machine=worker-{os.getpid()}",
                    f"--directory={self._root}",
                    f"--bind-ro={self._shared}:/shared",
                    f"--bind-ro={self._wheels}:/wheels",
                    "--boot",
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )
        try:
            eventually(self._booted, "the machine to boot", timeout=180, interval=0.3)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._end()

    def install_worker(self) -> None:
        """Install the worker from its source as docs/operations.md says, without a package index."""
        self.sh("PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels /shared/systemd/install.sh")

    def update_worker(self) -> None:
        """Install it again, now from its wheel."""
        self.sh("PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels /shared/systemd/install.sh /wheels/gigaoffice_worker-*.whl")

    # Commands

    def sh(self, script: str, *, check: bool = True, limit: float = 180) -> str:
        """Run a shell script inside and return what it said."""
        inside = ("nsenter", f"--target={self._pid}", "--all", "--wdns=/", "env", "-i")
        return stage.run(*inside, "PATH=/usr/sbin:/usr/bin", "/bin/sh", "-euc", script, limit=limit, check=check)

    def write(self, path: str, text: str, mode: str = "600") -> None:
        """Write a file inside."""
        self.sh(f"mkdir -p {Path(path).parent}; umask 077; cat > {path} <<'END-OF-FILE'\n{text}\nEND-OF-FILE")
        self.sh(f"chmod {mode} {path}")

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Return properties of a unit."""
        lines = self.sh(f"systemctl show {unit} --property={','.join(names)}").splitlines()
        return dict(line.partition("=")[::2] for line in lines)

    def journal(self, unit: str) -> list[dict[str, Any]]:
        """Return the journal of a unit, the service manager's own lines included."""
        lines = self.sh(f"journalctl --quiet --output=json --unit={unit}").splitlines()
        return [json.loads(line) for line in lines]

    def said(self, unit: str) -> list[str]:
        """Return the text of the journal of a unit."""
        return [str(entry.get("MESSAGE")) for entry in self.journal(unit)]

    # Life

    def _init(self) -> int:
        assert self._nspawn is not None
        assert self._nspawn.poll() is None, self._console.read_text(errors="replace")[-2000:]
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def _booted(self) -> bool:
        # Asked for each time: for a moment the child is one that sets up the machine, and ends.
        self._pid = self._init()
        said = self.sh("systemctl is-system-running", check=False) if self._pid else ""
        return said.strip() in {"running", "degraded"}

    def _end(self) -> None:
        if self._nspawn is None:
            return
        self._nspawn.send_signal(signal.SIGTERM)  # an orderly power-off
        try:
            self._nspawn.wait(60)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait(10)

    @staticmethod
    def _make(directory: Path) -> Path:
        directory.mkdir()
        return directory
