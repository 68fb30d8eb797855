import contextlib
import gzip
import io
import json
import resource
import socket
import threading
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from gigaoffice_worker.core.errors import ConfigurationError
from gigaoffice_worker.observe.listener import MAX_CONNECTIONS, THREADS, HTTPListener
from gigaoffice_worker.observe.logs import configure
from gigaoffice_worker.observe.page import page_policy
from gigaoffice_worker.observe.server import Answer, SidePort
from tests.support.waiting import eventually

GET = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Response:
    def __init__(self, raw):
        self.raw = raw
        head, _, self.body = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split()[1]) if first else 0
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


def exchange(port, request, *, host="127.0.0.1", timeout=10.0):
    """Send raw bytes, read to the end of the connection."""
    with socket.create_connection((host, port), timeout=timeout) as connection:
        connection.sendall(request)
        raw = b""
        while chunk := connection.recv(65_536):
            raw += chunk
    return Response(raw)


def get(port, path="/livez", **options):
    return exchange(port, GET % path.encode(), **options)


def broken():
    raise RuntimeError("the page is broken")


PAGES = {
    "/livez": lambda: Answer(200, "ok\n"),
    "/readyz": lambda: Answer(503, {"status": "draining", "причина": ["SIGTERM"], 3: None, "odd": "\ud800"}),
    "/raw": lambda: Answer(200, b"\x00\xff", "application/x-thing"),
    "/broken": broken,
    "/strange": lambda: Answer(200, {"set": object}),
    "/unknown-status": lambda: Answer(299, "?"),
}


@contextlib.contextmanager
def opened(pages=None, registry=None, host="127.0.0.1", **options):
    side_port = SidePort(host, options.pop("port", 0), pages or PAGES, registry or CollectorRegistry(), **options)
    side_port.start()
    try:
        yield side_port
    finally:
        side_port.close(time.monotonic() + 10)
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("side-port")]


@pytest.fixture
def registry():
    made = CollectorRegistry()
    counter = Counter("gigaoffice_worker_messages_sent", "Sent.", ["topic"], registry=made)
    counter.labels("responses").inc(3)
    return made


@pytest.fixture
def port(registry):
    with opened(registry=registry) as side_port:
        yield side_port.port


# Pages


def test_page_is_answered_with_headers_that_keep_it_fresh_and_plain(port):
    response = get(port)
    assert (response.status, response.body) == (200, b"ok\n")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["connection"] == "close"
    assert "server" not in response.headers


def test_dict_is_sent_as_json_whatever_is_in_it(port):
    response = get(port, "/readyz")
    assert (response.status, response.headers["content-type"]) == (503, "application/json")
    assert json.loads(response.body) == {"status": "draining", "причина": ["SIGTERM"], "3": None, "odd": "\\ud800"}


def test_bytes_are_sent_as_they_are(port):
    response = get(port, "/raw")
    assert (response.body, response.headers["content-type"]) == (b"\x00\xff", "application/x-thing")


def test_query_does_not_change_the_page(port):
    assert get(port, "/livez?verbose=1").status == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/nowhere", "/broken"])
def test_head_is_get_without_the_body(port, path):
    head = exchange(port, b"HEAD %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
    full = get(port, path)
    assert head.body == b""
    assert head.status == full.status
    assert int(head.headers["content-length"]) == len(full.body) > 0


def test_unknown_path_lists_the_known_ones(port):
    response = get(port, "/../../etc/passwd")
    assert response.status == 404
    assert response.body.decode().splitlines()[1:] == ["/metrics", *sorted(PAGES)]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
@pytest.mark.parametrize("path", ["/livez", "/metrics"])
def test_other_methods_are_refused(port, method, path):
    response = exchange(port, f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert (response.status, response.headers["allow"]) == (405, "GET, HEAD")


def test_failing_page_is_a_500_and_one_log_line_until_it_recovers():
    fails = [True]

    def page():
        if fails[0]:
            raise RuntimeError("no snapshot")
        return Answer(200, "fine\n")

    stream = io.StringIO()
    sink = configure("INFO", "json", stream=stream)
    with opened({"/page": page}) as side_port:
        assert [get(side_port.port, "/page").status for _ in range(3)] == [500, 500, 500]
        fails[0] = False
        assert get(side_port.port, "/page").status == 200
        fails[0] = True
        response = get(side_port.port, "/page")
        assert (response.status, b"no snapshot" in response.body) == (500, False)
    sink.close(5)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    failures = [line for line in lines if line["event"] == "Page of the side port failed"]
    assert [(line["path"], line["error"]) for line in failures] == [("/page", "no snapshot")] * 2


def test_page_that_makes_no_answer_is_a_500(port):
    assert get(port, "/unknown-status").status == 500
    assert get(port, "/livez").status == 200


# Metrics


def test_metrics_come_in_the_text_format(port):
    response = get(port, "/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    [family] = parse_text(response.body.decode())
    assert [(sample.name, sample.value) for sample in family.samples] == [
        ("gigaoffice_worker_messages_sent_total", 3.0)
    ]
    assert response.headers["cache-control"] == "no-store"


def test_metrics_come_as_openmetrics_for_who_asks(port):
    request = b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n\r\n"
    response = exchange(port, request)
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    [family] = parse_openmetrics(response.body.decode())
    assert [sample.name for sample in family.samples] == ["gigaoffice_worker_messages_sent_total"]  # no _created


def test_metrics_are_compressed_for_who_asks(port):
    response = exchange(port, b"GET /metrics HTTP/1.1\r\nAccept-Encoding: gzip\r\n\r\n")
    assert response.headers["content-encoding"] == "gzip"
    assert b"gigaoffice_worker_messages_sent_total" in gzip.decompress(response.body)


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=x", "text/plain;version=", ";;,=", "\xff"])
def test_an_odd_accept_header_still_gets_metrics(port, accept):
    response = exchange(port, f"GET /metrics HTTP/1.1\r\nAccept: {accept}\r\n\r\n".encode("latin-1"))
    assert response.status == 200
    assert b"messages_sent_total" in response.body


# Where it listens


def test_a_picked_port_is_written_to_the_runtime_directory_and_removed(tmp_path):
    with opened(runtime_directory=str(tmp_path)) as side_port:
        assert (tmp_path / "port").read_text() == f"{side_port.port}\n"
        assert get(int((tmp_path / "port").read_text())).status == 200
    assert list(tmp_path.iterdir()) == []


def test_a_configured_port_is_written_nowhere(tmp_path):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        free = sock.getsockname()[1]
    with opened(port=free, runtime_directory=str(tmp_path)) as side_port:
        assert side_port.port == free
        assert list(tmp_path.iterdir()) == []


def test_a_port_file_that_cannot_be_written_stops_nothing():
    with opened(runtime_directory="/nowhere/at/all") as side_port:
        assert get(side_port.port).status == 200


def test_a_taken_port_is_a_configuration_error_that_names_it():
    with (
        opened() as first,
        pytest.raises(ConfigurationError, match=f"METRICS_PORT: port {first.port} .*taken") as caught,
    ):
        SidePort("127.0.0.1", first.port, PAGES, CollectorRegistry()).start()
    assert "METRICS_PORT" in caught.value.hint
    assert caught.value.exit_code == 78


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 300, "192.0.2.1", "256.1.1.1"])
def test_a_host_that_is_not_ours_is_a_configuration_error(host):
    with pytest.raises(ConfigurationError, match="METRICS_HOST") as caught:
        SidePort(host, 0, PAGES, CollectorRegistry()).start()
    assert "127.0.0.1" in caught.value.hint


@pytest.mark.parametrize(
    "host, reached_at",
    [
        ("0.0.0.0", "127.0.0.1"),  # noqa: S104 - that it can be done is the point
        ("localhost", "localhost"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("::", "::1"),
    ],
)
def test_any_way_to_name_an_address_works(host, reached_at):
    if ":" in host and not has_ipv6():
        pytest.skip("no IPv6 here")
    with opened(host=host) as side_port:
        assert get(side_port.port, host=reached_at).status == 200


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_a_port_that_is_freed_in_time_is_waited_for():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        freed = threading.Timer(0.4, taken.close)
        freed.start()
        with opened(port=taken.getsockname()[1], wait=10.0) as side_port:
            assert get(side_port.port).status == 200
        freed.join()


def test_a_port_that_stays_taken_is_waited_for_no_longer_than_told():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        started = time.monotonic()
        with (
            pytest.raises(ConfigurationError, match="is taken by another process"),
            opened(port=taken.getsockname()[1], wait=0.5),
        ):
            pass
        assert 0.5 <= time.monotonic() - started < 10.0


def test_who_is_asked_to_stop_does_not_wait_for_a_port():
    stop = threading.Event()
    stop.set()
    SidePort("127.0.0.1", 0, PAGES, CollectorRegistry(), wait=60.0).start(stop)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("side-port")]


# Names


@pytest.mark.parametrize(
    "header, status",
    [
        ("localhost", 200),
        ("LocalHost.:9464", 200),
        (socket.gethostname(), 200),
        ("127.0.0.1:9464", 200),
        ("[::1]:9464", 200),
        ("10.9.8.7", 200),
        ("known.example:80", 200),
        ("rebound.example", 421),
        ("rebound.example:9464", 421),
        ("127.0.0.1.rebound.example", 421),
        ("localhost.rebound.example", 421),
        ("rebound.example, localhost", 421),
        ("user@localhost", 421),
        ("[rebound.example]", 421),
        ("[::1", 421),
    ],
)
@pytest.mark.parametrize("path", ["/livez", "/metrics", "/nowhere"])
def test_only_a_host_that_the_worker_is_known_by_is_answered(registry, header, status, path):
    with opened(registry=registry, names=["known.example"]) as side_port:
        response = exchange(side_port.port, f"GET {path} HTTP/1.1\r\nHost: {header}\r\n\r\n".encode())
    assert response.status == (404 if status == 200 and path == "/nowhere" else status)
    assert status == 200 or (b"METRICS_ALLOWED_HOSTS" in response.body and b"ok" not in response.body)


def test_a_client_that_names_no_host_is_no_browser(port):
    assert exchange(port, b"GET /livez HTTP/1.0\r\n\r\n").status == 200


def test_any_name_can_be_allowed():
    with opened(names=["*"]) as side_port:
        assert exchange(side_port.port, b"GET /livez HTTP/1.1\r\nHost: whatever\r\n\r\n").status == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/nowhere"])
def test_nothing_that_is_answered_may_load_or_frame_anything(port, path):
    assert get(port, path).headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


def test_the_status_page_has_a_policy_of_its_own():
    with opened({"/": lambda: Answer(200, "<!doctype html>", "text/html; charset=utf-8")}) as side_port:
        assert get(side_port.port, "/").headers["content-security-policy"] == page_policy()


def test_a_port_can_be_opened_again_at_once():
    with opened() as first:
        get(first.port)
    with opened(port=first.port) as second:
        assert get(second.port).status == 200


# The end


def test_close_lets_a_running_answer_end():
    entered, leave = threading.Event(), threading.Event()

    def slow():
        entered.set()
        leave.wait(10)
        return Answer(200, "late but whole")

    side_port = SidePort("127.0.0.1", 0, {"/slow": slow}, CollectorRegistry())
    side_port.start()
    answers = []
    client = threading.Thread(target=lambda: answers.append(get(side_port.port, "/slow")))
    client.start()
    assert entered.wait(10)
    closing = threading.Thread(target=side_port.close, args=(time.monotonic() + 10,))
    closing.start()
    while connects(side_port.port):
        time.sleep(0.01)
    leave.set()
    closing.join()
    client.join()
    assert answers[0].body == b"late but whole"


def connects(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def test_close_does_not_wait_past_its_deadline_for_a_page_that_hangs():
    entered, leave = threading.Event(), threading.Event()

    def hanging():
        entered.set()
        leave.wait(30)
        return Answer(200, "")

    side_port = SidePort("127.0.0.1", 0, {"/hanging": hanging}, CollectorRegistry())
    side_port.start()
    with socket.create_connection(("127.0.0.1", side_port.port), timeout=10) as client:
        client.sendall(GET % b"/hanging")
        assert entered.wait(10)
        before = time.monotonic()
        side_port.close(before + 0.3)
        assert time.monotonic() - before < 15.0
        assert client.recv(100) == b""
    leave.set()
    for thread in threading.enumerate():
        if thread.name.startswith("side-port"):
            thread.join(10)
    assert not connects(side_port.port)


def test_close_is_quick_with_idle_connections_and_can_be_repeated():
    side_port = SidePort("127.0.0.1", 0, PAGES, CollectorRegistry())
    side_port.close(time.monotonic())
    side_port.start()
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection(("127.0.0.1", side_port.port), timeout=10))
        get(side_port.port)
        before = time.monotonic()
        side_port.close(before + 60)
        assert time.monotonic() - before < 15.0
    side_port.close(time.monotonic())


def test_nothing_is_left_open():
    before = open_files()
    for _ in range(20):
        with opened() as side_port:
            get(side_port.port)
            get(side_port.port, "/broken")
    # Clients of Kafka that other tests have left to this process open and close a few of theirs meanwhile.
    assert len(open_files() - before) < 20


def open_files() -> set[str]:
    found = set()
    for number in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(str(number.readlink()))
    return found


# Abuse: whatever a client does, the others are answered


@pytest.fixture
def many_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    if wanted < 2500:
        pytest.skip("too few file descriptors allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def answered_within(port, seconds):
    before = time.monotonic()
    return get(port, timeout=seconds).status == 200 and time.monotonic() - before < seconds


def server_side(port):
    """Connections that this process holds as the server."""
    text = Path("/proc/self/net/tcp").read_text()
    return sum(1 for line in text.splitlines() if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "01")


def test_a_thousand_idle_connections_do_not_keep_a_probe_out(port, many_files):
    with contextlib.ExitStack() as stack:
        for _ in range(1_000):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        assert answered_within(port, 4.0)
        assert server_side(port) <= MAX_CONNECTIONS
        assert sum(thread.name.startswith("side-port") for thread in threading.enumerate()) == THREADS + 1


def test_a_thousand_slow_headers_do_not_keep_a_probe_out(port, many_files):
    with contextlib.ExitStack() as stack:
        connections = []
        for _ in range(1_000):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            connection.sendall(b"GET /livez HTTP/1.1\r\nX-Slow: ")
            connections.append(connection)
        for _ in range(3):
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.send(b"a")
            assert answered_within(port, 4.0)


@contextlib.contextmanager
def listener(body, **limits):
    def application(environ, start_response):
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    listening = socket.create_server(("127.0.0.1", 0))
    server = HTTPListener(application, listening, **limits)
    port = listening.getsockname()[1]
    server.start()
    try:
        yield port
    finally:
        server.close(time.monotonic() + 10)


def is_closed(client):
    try:
        client.send(b"a")
    except (ConnectionResetError, BrokenPipeError):
        return True
    return False


def test_a_header_that_drips_is_cut_off_in_time():
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(listener(b"", request_seconds=0.5))
        before = time.monotonic()
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        client.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
        while time.monotonic() - before < 30 and not is_closed(client):
            time.sleep(0.02)
        assert 0.4 < time.monotonic() - before < 15.0


def test_a_client_that_does_not_read_is_cut_off_in_time():
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(listener(b"x" * 20_000_000, connection_seconds=0.5))
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        before = time.monotonic()
        while server_side(port):
            assert time.monotonic() - before < 15.0
            time.sleep(0.05)


def test_only_the_first_of_many_pipelined_requests_is_answered(port):
    response = exchange(port, GET % b"/metrics" * 300)
    assert response.raw.count(b"HTTP/1.1 200 OK") == 1
    assert answered_within(port, 4.0)


def test_more_busy_clients_than_threads_are_all_answered(port):
    answers = []
    clients = [
        threading.Thread(target=lambda: answers.append(get(port, "/metrics", timeout=20).status)) for _ in range(60)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert answers == [200] * 60


BODY = b"Content-Length: %d\r\n\r\n"


@pytest.mark.parametrize(
    "request_bytes, status",
    [
        pytest.param(b"POST /livez HTTP/1.1\r\n" + BODY % 5 + b"hello", 413, id="body"),
        pytest.param(
            b"POST /livez HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 413, id="chunked"
        ),
        pytest.param(b"GET /livez HTTP/1.1\r\n" + BODY % 0, 200, id="empty body"),
        pytest.param(b"GET /livez HTTP/1.1\r\nContent-Length: many\r\n\r\n", 400, id="odd length"),
        pytest.param(b"GET /livez HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501, id="odd encoding"),
        pytest.param(GET % (b"/livez?" + b"a" * 5_000), 414, id="long target"),
        pytest.param(b"GET /livez HTTP/1.1\r\nX: " + b"a" * 9_000 + b"\r\n\r\n", 431, id="long header"),
        pytest.param(b"GET /livez HTTP/1.1\r\n" + b"a: b\r\n" * 5_000 + b"\r\n", 431, id="many headers"),
        pytest.param(b"get /livez HTTP/1.1\r\n\r\n", 400, id="lower case"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400, id="TLS"),
        pytest.param(b"GET\r\n\r\n", 400, id="no target"),
        pytest.param(b"GET /livez HTTP/1.1\r\n bad: folded\r\n\r\n", 400, id="folded"),
        pytest.param(b"GET /livez HTTP/1.1\r\nno colon\r\n\r\n", 400, id="no colon"),
        pytest.param(b"GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 200, id="old"),
        pytest.param(b"GET http://elsewhere/livez HTTP/1.1\r\n\r\n", 200, id="absolute"),
    ],
)
def test_odd_request_gets_the_status_that_says_why(port, request_bytes, status):
    response = exchange(port, request_bytes)
    assert response.status == status
    assert response.headers["connection"] == "close"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "server" not in response.headers
    assert answered_within(port, 4.0)


@pytest.mark.parametrize(
    "request_bytes, status",
    [
        pytest.param(b"GET /livez HTTP/1.1\r\n" + BODY % 1_000_000 + b"x" * 1_000_000, 413, id="body"),
        pytest.param(GET % (b"/" + b"a" * 1_000_000), 431, id="target"),
        pytest.param(b"GET /livez HTTP/1.1\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n", 431, id="header"),
    ],
)
def test_huge_request_is_refused_while_it_is_being_sent(port, request_bytes, status):
    # What is still on its way when the connection closes can reset it before the answer is read.
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        assert exchange(port, request_bytes).status == status
    assert answered_within(port, 4.0)


def test_urgent_data_and_resets_do_no_harm(port):
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.send(b"x", socket.MSG_OOB)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(GET % b"/metrics")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    assert answered_within(port, 4.0)


def test_a_hundred_scrapes_a_second_delay_no_probe(port):
    statuses, stop = [], threading.Event()

    def scrape():
        while not stop.wait(0.04):
            statuses.append(get(port, "/metrics").status)

    scrapers = [threading.Thread(target=scrape) for _ in range(4)]
    for scraper in scrapers:
        scraper.start()
    try:
        for _ in range(20):
            assert answered_within(port, 4.0)
            time.sleep(0.05)
        eventually(lambda: len(statuses) > 20, "the scrapes")
    finally:
        stop.set()
        for scraper in scrapers:
            scraper.join()
    assert set(statuses) == {200}
