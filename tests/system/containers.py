"""Images and containers without a Docker engine: buildah and podman on a storage of their own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.waiting import eventually
from tests.system import stage

# What a machine without systemd as its first process, or inside of a sandbox itself, lets a container have.
LIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=512:512", "--health-interval=disable")
RUNTIME = ("--runtime=runc", "--cgroup-manager=cgroupfs")
RESTRICTIONS = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--tmpfs=/tmp")


class Engine:
    """Everything that is made is removed at the end."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # podman takes no more than 50 characters of this, and a socket's path may have 107 bytes.
        self._short = Path(tempfile.mkdtemp(prefix="podman-", dir="/tmp"))
        self._storage = (f"--root={directory}/storage", f"--runroot={self._short}/run")

    def __enter__(self) -> Self:
        self._directory.mkdir()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._podman("rm", "--all", "--force", "--time=0", check=False)
        self._podman("umount", "--all", "--force", check=False)
        shutil.rmtree(self._directory, ignore_errors=True)
        shutil.rmtree(self._short, ignore_errors=True)

    def import_root(self, root: Path, name: str) -> None:
        """Make an image out of a root directory."""
        with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as tar:  # noqa: S607
            command = ["podman", *self._storage, "import", "--quiet", "-", name]
            subprocess.run(command, stdin=tar.stdout, check=True, timeout=300, capture_output=True)
        assert tar.returncode == 0

    @contextlib.contextmanager
    def service(self) -> Iterator[Path]:
        """Answer Docker's API on a socket for as long as the context lasts."""
        socket = self._short / "podman.sock"
        config = self._directory / "containers.conf"
        config.write_text('[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n')
        with (self._directory / "service.log").open("wb") as log:
            service = subprocess.Popen(
                ["podman", *RUNTIME, *self._storage, "system", "service", "--time=0", f"unix://{socket}"],  # noqa: S607
                env={**os.environ, "CONTAINERS_CONF": str(config)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            eventually(socket.exists, "podman to listen")
            yield socket
        finally:
            service.terminate()
            service.wait(20)

    def build(self, source: Path, name: str, wheels: Path, **arguments: str) -> str:
        """Build the Dockerfile without a package index; return what the build said."""
        given = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheelhouse", **arguments}
        values = [f"--build-arg={key}={value}" for key, value in given.items()]
        return self._build(name, f"--volume={wheels}:/wheelhouse:ro", *values, str(source))

    def lay_over(self, base: str, directory: Path, name: str) -> None:
        """Make an image out of another one and the files of a directory, at the places that they have in it."""
        recipe = self._directory / "Containerfile"
        recipe.write_text(f"FROM {base}\nCOPY . /\n")
        self._build(name, f"--file={recipe}", str(directory))

    def image(self, name: str) -> dict[str, Any]:
        """Return what the image says about itself."""
        return dict(json.loads(self._podman("image", "inspect", name))[0])

    def run(self, name: str, image: str, *arguments: str, mounts: tuple[str, ...] = (), **environment: str) -> None:
        """Start a container on the host's network, as restricted as it should be."""
        variables = [f"--env={key}={value}" for key, value in environment.items()]
        volumes = [f"--volume={mount}" for mount in mounts]
        options = [f"--name={name}", "--detach", "--network=host", *RESTRICTIONS, *LIMITS, *volumes, *variables]
        self._podman("run", *options, image, *arguments)

    def run_once(self, image: str, script: str) -> str:
        """Run a shell script in a container of its own and return what it said."""
        options = ["--rm", "--network=none", "--entrypoint=/bin/sh", *RESTRICTIONS, *LIMITS]
        return self._podman("run", *options, image, "-c", script)

    def exec(self, name: str, *command: str, check: bool = True) -> str:
        return self._podman("exec", name, *command, check=check)

    def names(self) -> list[str]:
        """Return the names of all containers, ended or not."""
        return self._podman("ps", "--all", "--format={{.Names}}").split()

    def healthcheck(self, name: str) -> str:
        """Run the image's own HEALTHCHECK and return what it makes of the container."""
        self._podman("healthcheck", "run", name, check=False)
        return self._podman("inspect", name, "--format={{.State.Health.Status}}").strip()

    def ended(self, name: str) -> str:
        """Return the exit code, or nothing while the container runs."""
        state, code = self._podman("inspect", name, "--format={{.State.Status}} {{.State.ExitCode}}").split()
        return code if state == "exited" else ""

    def stop(self, name: str, patience: int) -> int:
        """Send the stop signal and return the exit code; after `patience` seconds it is killed (137)."""
        self._podman("stop", f"--time={patience}", name)
        return int(self._podman("inspect", name, "--format={{.State.ExitCode}}"))

    def logs(self, name: str) -> list[str]:
        return self._podman("logs", name).splitlines()

    def _build(self, name: str, *words: str) -> str:
        # The other format has no HEALTHCHECK. This isolation wants the host's network, which is not used.
        fixed = ("--format=docker", "--isolation=chroot", "--network=host", f"--tag={name}")
        return stage.run("buildah", *self._storage, "build", *fixed, *words, limit=600)

    def _podman(self, *arguments: str, check: bool = True) -> str:
        said = stage.run("podman", *RUNTIME, *self._storage, *arguments, limit=200, check=check)
        # Without systemd around it, podman mourns the timers of health checks, which are not used here.
        return "".join(line for line in said.splitlines(keepends=True) if not line.startswith("time="))
