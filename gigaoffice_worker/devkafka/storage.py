"""A node's storage as Kafka's own tool prepares it: by the tool the first time, from what it wrote then ever after."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from gigaoffice_worker.devkafka.distribution import Distribution, new_id, work_directory

_META = "meta.properties"


def prepare(
    data: Path, distribution: Distribution, *, node: int, cluster_id: str, run_tool: Callable[[], None]
) -> None:
    """Make `data` the storage of a node. The tool is a JVM of its own, which takes longer than the node's start."""
    template = distribution.archive.with_suffix(".storage")
    if not (template / _META).is_file():
        run_tool()
        with work_directory(template) as directory:
            made = directory / "made"
            shutil.copytree(data, made)
            with contextlib.suppress(OSError):  # another process was first
                made.replace(template)
        return
    shutil.copytree(template, data, dirs_exist_ok=True)
    meta = (data / _META).read_text(encoding="utf-8")
    for name, value in {"cluster.id": cluster_id, "node.id": str(node), "directory.id": new_id()}.items():
        meta = re.sub(rf"^{re.escape(name)}=.*$", f"{name}={value}", meta, flags=re.MULTILINE)
    (data / _META).write_text(meta, encoding="utf-8")
