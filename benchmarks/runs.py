"""One run of one contestant on one workload, from fresh topics to a measurement."""

from __future__ import annotations

import itertools
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import Consumer, Producer

from benchmarks import figures
from benchmarks.ideal import ideal_seconds
from benchmarks.peers import Peer
from benchmarks.processes import Contestant
from benchmarks.provider import Provider
from benchmarks.stage import LIMIT, Response, Stage
from benchmarks.workloads import LATENCY_RATE, Late, Shape, Workload

_LOOK_EVERY = 0.1
_FIRST_WITHIN = 60.0
_STOP_WITHIN, _CUT_WITHIN = 30.0, 2.0
_WARM_UP = 200  # paced requests that are not counted
_IDLE_SETTLE, _IDLE_SECONDS = 3.0, 10.0
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 100)


@dataclass(slots=True)
class Measurement:
    """What one run has shown. Times in seconds, memory in bytes; None where it says nothing."""

    workload: str
    peer: str
    round: int
    answered: int
    complete: bool
    in_order: bool
    rate: float | None = None
    cpu_per_record: float | None = None
    efficiency: float | None = None
    peak_memory: int | None = None
    refusals: float | None = None  # for each hundred calls that the provider took
    late_wait: float | None = None  # of the late request that waited longest
    latency: dict[str, float] = field(default_factory=dict)  # percentile → the contestant's own part


@dataclass(frozen=True, slots=True)
class Hall:
    """Where runs take place: the cluster, and request topics that were filled once for all contestants."""

    stage: Stage
    filled: dict[str, str] = field(default_factory=dict)

    def requests_of(self, workload: Workload) -> str:
        """Return a topic with the requests of a backlog; an empty one for other shapes."""
        if workload.shape is Shape.BACKLOG and workload.name in self.filled:
            return self.filled[workload.name]
        topic = f"{workload.name}-requests-{uuid.uuid4().hex[:6]}"
        self.stage.create(topic, workload.partitions)
        if workload.shape is Shape.BACKLOG:
            self.stage.fill(topic, workload.generate())
            self.filled[workload.name] = topic
        return topic


@dataclass(frozen=True, slots=True)
class Scene:
    """The topics and processes of one run."""

    stage: Stage
    requests: str
    responses: str
    group: str
    contestant: Contestant
    provider: Provider | None


@contextmanager
def _scene(hall: Hall, peer: Peer, workload: Workload) -> Iterator[Scene]:
    name = f"{workload.name}-{peer.name}-{uuid.uuid4().hex[:6]}"
    requests, responses, dlq = hall.requests_of(workload), f"{name}-responses", f"{name}-dlq"
    hall.stage.create(responses, workload.partitions)
    environment = {
        "KAFKA_BOOTSTRAP_SERVERS": hall.stage.bootstrap,
        "KAFKA_TOPIC_REQUESTS": requests,
        "KAFKA_TOPIC_RESPONSES": responses,
        "KAFKA_TOPIC_DLQ": dlq,
        "KAFKA_CONSUMER_GROUP": name,
        "WORKER_CONCURRENCY": str(workload.concurrency),
        "PEER_PARTITIONS": str(workload.partitions),
        **peer.environment,
    }
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmarks-"))
        provider = stack.enter_context(Provider(workload.provider)) if workload.provider else None
        if provider:
            environment["PROVIDER_URL"] = provider.url
        log = Path(directory) / "contestant.log"
        contestant = Contestant(peer.command(), environment, log, count=workload.processes)
        yield Scene(hall.stage, requests, responses, name, stack.enter_context(contestant), provider)
    hall.stage.delete([responses, dlq, *([] if workload.shape is Shape.BACKLOG else [requests])])


def run(hall: Hall, peer: Peer, workload: Workload, number: int) -> Measurement:
    """Run a contestant once and measure it."""
    with _scene(hall, peer, workload) as scene:
        match workload.shape:
            case Shape.BACKLOG:
                return _backlog(scene, peer, workload, number)
            case Shape.BURST if workload.late:
                return _late(scene, peer, workload, workload.late, number)
            case Shape.BURST:
                return _burst(scene, peer, workload, number)
            case Shape.PACED:
                return _paced(scene, peer, workload, number)


def _backlog(scene: Scene, peer: Peer, workload: Workload, number: int) -> Measurement:
    _wait_for_answers(scene, workload.requests, workload.limit)
    made, responses = _measured(scene, peer, workload, number)
    if not responses:
        raise RuntimeError(f"{peer.name} has answered nothing in time")
    # From the first call, whose moment is told by the monotonic clock, to the last response: starting up is left out.
    first = min(response.started for response in responses) + time.time() - time.monotonic()
    last = responses[-1].written_at
    made.rate = len(responses) / (last - first)
    made.cpu_per_record = scene.contestant.cpu_between(first, last) / len(responses)
    if scene.provider is not None:
        made.refusals = scene.provider.refusals_per_100
        made.efficiency = scene.provider.limits.ideal_seconds(len(responses), workload.seconds) / (last - first)
    elif workload.seconds:
        ideal = ideal_seconds(workload.durations(), workload.lanes(), workload.concurrency)
        made.efficiency = ideal * len(responses) / workload.requests / (last - first)
    return made


def _burst(scene: Scene, peer: Peer, workload: Workload, number: int) -> Measurement:
    scene.stage.wait_for_members(scene.group, workload.processes)
    scene.stage.fill(scene.requests, workload.generate())
    return _backlog(scene, peer, workload, number)


def _late(scene: Scene, peer: Peer, workload: Workload, late: Late, number: int) -> Measurement:
    scene.stage.wait_for_members(scene.group, 1)
    requests = workload.generate()
    backlog = workload.requests - late.requests
    scene.stage.fill(scene.requests, itertools.islice(requests, backlog))
    _wait_for_answers(scene, late.after)
    sent = time.time()
    scene.stage.fill(scene.requests, requests)
    _wait_for_answers(scene, workload.requests, workload.limit)
    made, responses = _measured(scene, peer, workload, number)
    waits = [response.written_at - sent for response in responses if response.number >= backlog]
    if len(waits) == late.requests:
        made.late_wait = max(waits)
    return made


def _paced(scene: Scene, peer: Peer, workload: Workload, number: int) -> Measurement:
    scene.stage.wait_for_members(scene.group, 1)
    # A loop that sleeps 5 ms at a time could not keep up with 200 requests a second: it does not sleep at all.
    calm = list(workload.generate())
    if peer.sequential:
        calm = [request._replace(value=request.value.replace(b'"seconds": 0.005', b'"seconds": 0')) for request in calm]
    seen: dict[bytes, float] = {}
    sent: dict[bytes, float] = {}
    reading = threading.Event()
    reader = threading.Thread(target=_read, args=(scene, len(calm), seen, reading), name="reader")
    reader.start()
    reading.wait(LIMIT)
    producer = Producer({"bootstrap.servers": scene.stage.bootstrap, "linger.ms": 0})
    begin = time.monotonic() + 0.2
    for request in calm:
        time.sleep(max(0.0, begin + request.number / LATENCY_RATE - time.monotonic()))
        sent[request.key] = time.monotonic()
        producer.produce(scene.requests, request.value, request.key)
        producer.poll(0)
    producer.flush(LIMIT)
    reader.join()
    made, responses = _measured(scene, peer, workload, number)
    calls = {b"key-%06d" % response.number: response.ended - response.started for response in responses}
    own = [seen[key] - sent[key] - calls[key] for key in itertools.islice(sent, _WARM_UP, None) if key in seen]
    made.latency = {str(percent): figures.percentile(own, percent) for percent in PERCENTILES}
    first, last = responses[0].written_at, responses[-1].written_at
    made.cpu_per_record = scene.contestant.cpu_between(first, last) / max(1, len(responses) - 1)
    return made


def _read(scene: Scene, count: int, seen: dict[bytes, float], reading: threading.Event) -> None:
    """Note when each response arrives at its reader, until all have or none has for a while."""
    consumer = Consumer(
        {"bootstrap.servers": scene.stage.bootstrap, "group.id": f"{scene.group}-reader", "fetch.wait.max.ms": 100}
    )
    consumer.assign(scene.stage.places(scene.responses))
    consumer.poll(1.0)  # the connection is there
    reading.set()
    quiet = 0.0
    while len(seen) < count and quiet < 10.0:
        message = consumer.poll(0.5)
        quiet = quiet + 0.5 if message is None else 0.0
        if message is not None and message.error() is None:
            seen.setdefault(message.key(), time.monotonic())
    consumer.close()


def _wait_for_answers(scene: Scene, answers: int, limit: float = _FIRST_WITHIN) -> None:
    """Wait until so many requests are answered, or `limit` seconds from the first answer on are over."""
    deadline = time.monotonic() + _FIRST_WITHIN
    started = False
    while (count := scene.stage.count(scene.responses)) < answers and time.monotonic() < deadline:
        if count and not started:
            started = True
            deadline = time.monotonic() + limit
        scene.contestant.check()
        time.sleep(_LOOK_EVERY)
    if not count:
        raise TimeoutError(f"no answer within {_FIRST_WITHIN:.0f} s")


def _measured(scene: Scene, peer: Peer, workload: Workload, number: int) -> tuple[Measurement, list[Response]]:
    """End the run, and look at what every measurement tells: whether all was answered, committed and in order."""
    peak = scene.contestant.peak_memory()
    answered_while_running = scene.stage.count(scene.responses)
    # Who has more to do than the time allowed may be in the midst of a long batch.
    scene.contestant.stop(_STOP_WITHIN if answered_while_running >= workload.requests else _CUT_WITHIN)
    responses = scene.stage.responses(scene.responses)
    committed = scene.stage.committed(scene.group, scene.requests)
    numbers = {response.number for response in responses}
    if committed > len(numbers):
        raise RuntimeError(f"{peer.name} has committed {committed} requests and answered {len(numbers)} of them")
    complete = len(numbers) == workload.requests
    made = Measurement(workload.name, peer.name, number, len(numbers), complete, _in_order(workload, responses))
    made.peak_memory = peak
    return made, responses[:answered_while_running]


def _in_order(workload: Workload, responses: list[Response]) -> bool:
    """Say whether the calls of each key ran one at a time and in order."""
    lanes = workload.lanes()
    calls: dict[int, list[tuple[float, float]]] = {}
    for response in sorted(responses, key=lambda found: found.number):
        calls.setdefault(lanes[response.number], []).append((response.started, response.ended))
    return not any(map(figures.overlapping, calls.values()))


def idle(hall: Hall, peer: Peer, workload: Workload) -> tuple[float, int]:
    """Return the share of a core and the memory, in bytes, of a contestant that has nothing to do."""
    with _scene(hall, peer, workload) as scene:
        scene.stage.wait_for_members(scene.group, 1)
        time.sleep(_IDLE_SETTLE)
        start = time.time()
        time.sleep(_IDLE_SECONDS)
        used = scene.contestant.cpu_between(start, start + _IDLE_SECONDS)
        memory = scene.contestant.memory()
        scene.contestant.stop(_STOP_WITHIN)
        return used / _IDLE_SECONDS, memory
