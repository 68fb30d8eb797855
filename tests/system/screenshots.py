"""Take the pictures of docs/images anew, of a worker with traffic: python -m tests.system.screenshots"""

from __future__ import annotations

import io
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from gigaoffice_worker.devkafka import KafkaCluster
from tests.conftest import TopicSet, settings
from tests.support import wire
from tests.support.workers import WorkerProcess
from tests.system import stage
from tests.system.browser import Browser

PICTURES = stage.ROOT / "docs/images"
TASTES = {
    "status-light": {"width": 1100, "height": 640},
    "status-dark": {"width": 1100, "height": 640, "dark": True},
    "status-narrow": {"width": 390, "height": 844},
}
TRAFFIC_SECONDS = 130.0  # what the lines on the page show
TOPICS = TopicSet("gigaoffice-requests", "gigaoffice-responses", "gigaoffice-dlq", "gigaoffice-consumers")


def main() -> int:
    """Start Kafka, a worker and a browser, send requests for two minutes, and save what the pages look like."""
    if shutil.which("chromium") is None:
        print("cannot run: chromium missing; on Debian: apt-get install chromium", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as scratch, KafkaCluster() as kafka:
        directory = Path(scratch)
        environment = {**settings(kafka.bootstrap_servers, TOPICS), "WORKER_RETRY_DELAY": "20"}
        with WorkerProcess(directory, environment) as worker, Browser(directory) as browser:
            url = f"http://127.0.0.1:{worker.wait_ready().port()}/"
            pages = {name: browser.open(url, **taste) for name, taste in TASTES.items()}
            _send_for(TRAFFIC_SECONDS, kafka.bootstrap_servers)
            PICTURES.mkdir(exist_ok=True)
            for name, page in pages.items():
                file = PICTURES / f"{name}.png"
                file.write_bytes(_small(page.screenshot()))
                print(f"{file.relative_to(stage.ROOT)}: {file.stat().st_size / 1000:.0f} kB")
    return 0


def _send_for(seconds: float, bootstrap: str) -> None:
    """Send a steady mixture of quick and slow requests, of which a few fail at first."""
    dice = random.Random(1)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        count = int(20 + 8 * dice.random() + (25 if 40 < left < 60 else 0))
        wire.produce(bootstrap, TOPICS.requests, [_request(dice) for _ in range(count)])
        time.sleep(1)


def _request(dice: random.Random) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    payload: dict[str, object] = {"query": "Sum column B", "seconds": dice.choice([0.05, 0.1, 0.3, 0.8])}
    if dice.random() < 0.01:
        payload |= {"do": "fail", "until_attempt": 2}
    return f"key-{dice.randrange(60)}".encode(), json.dumps(payload).encode(), []


def _small(png: bytes) -> bytes:
    """Return the picture with as many colours as a page without photographs needs."""
    small = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(96, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


if __name__ == "__main__":
    raise SystemExit(main())
