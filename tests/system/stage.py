"""What the system tests build upon: a Debian root, and the worker as wheels."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = "systemd,systemd-sysv,python3,python3-venv,ca-certificates"
SHIPPED = ("gigaoffice_worker", "requirements", "systemd", "pyproject.toml", "setup.py", "README.md", "LICENSE")


def debian() -> Path:
    """Return a Debian 12 root, made with debootstrap the first time. DEBIAN_MIRROR names another mirror."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gigaoffice-worker"
    root = cache / "debian-12"
    if not root.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        half = cache / f"debian-12.{os.getpid()}"
        mirror = os.environ.get("DEBIAN_MIRROR")
        try:
            run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(half), mirror, limit=900)
            half.rename(root)
        finally:
            shutil.rmtree(half, ignore_errors=True)
    return root


def source(directory: Path, *more: str) -> Path:
    """Copy what is shipped, and `more`, to where a build may leave its litter."""
    for name in (*SHIPPED, *more):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, directory / name)
    return directory


def wheelhouse(directory: Path) -> Path:
    """Gather the worker's wheel and those that it needs."""
    tree = directory / "source"
    tree.mkdir()
    wheels = directory / "wheels"
    pip = [sys.executable, "-m", "pip"]
    run(*pip, "wheel", "--quiet", "--no-deps", f"--wheel-dir={wheels}", str(source(tree)), limit=600)
    for lock in ("image.txt", "build.txt"):  # what builds the wheel too: an image is built without a network
        locked = ["--require-hashes", "--only-binary=:all:", f"--requirement={tree / 'requirements' / lock}"]
        run(*pip, "download", "--quiet", f"--dest={wheels}", *locked, limit=600)
    return wheels


def free_port() -> int:
    """Return a port of the loopback interface on which nothing listens at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(*command: str | None, limit: float = 120, check: bool = True) -> str:
    """Run a command and return what it said; what it said is in the AssertionError too when it fails."""
    done = subprocess.run(
        [word for word in command if word is not None],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=limit,
        text=True,
        check=False,
    )
    assert done.returncode == 0 or not check, f"{command} ended with {done.returncode}:\n{done.stdout[-4000:]}"
    return done.stdout
