"""An image that testcontainers takes for its own Kafka, made of the same Java and jars as the embedded one.

It has what testcontainers calls: the scripts of /etc/confluent/docker, kafka-storage, and settings out of KAFKA_*.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from gigaoffice_worker.devkafka.distribution import install

NAME = "docker.io/confluentinc/cp-kafka:7.6.0"
_FILES = {
    "etc/confluent/docker/bash-config": "set -eu\n",
    "etc/confluent/docker/configure": """\
env | grep '^KAFKA_' | while IFS='=' read -r name value; do
  echo "$(echo "${name#KAFKA_}" | tr 'A-Z_' 'a-z.')=$value"
done > /etc/kafka/kafka.properties
echo log.dirs=/var/lib/kafka >> /etc/kafka/kafka.properties
""",
    "etc/confluent/docker/launch": """\
exec /opt/java/bin/java -Xmx512m -cp '/opt/kafka/*' kafka.Kafka /etc/kafka/kafka.properties
""",
    "usr/bin/kafka-storage": '#!/bin/sh\nexec /opt/java/bin/java -cp "/opt/kafka/*" kafka.tools.StorageTool "$@"\n',
}


def lay_out(directory: Path) -> Path:
    """Write what stands above a Debian root in the image."""
    distribution = install(lambda _: None)
    shutil.copytree(distribution.java.resolve().parents[1], directory / "opt/java")
    (directory / "opt/kafka").mkdir()
    for jar in distribution.jars:
        shutil.copy(jar, directory / "opt/kafka")
    (directory / "etc/kafka").mkdir(parents=True)
    for name, text in _FILES.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    directory.chmod(0o755)
    return directory
