"""The http handler against a service that misbehaves in every way it has a word for."""

from __future__ import annotations

import gzip
import json
import re
import socket
import subprocess
import sys
import threading
import time
from email.utils import formatdate

import pytest
from structlog.testing import capture_logs

from gigaoffice_worker.core.errors import ConfigurationError, RejectedError, TransientError
from gigaoffice_worker.core.records import Deadline, Request
from gigaoffice_worker.handlers.failures import (
    AccessRefusedError,
    ConnectionFailedError,
    NoAnswerError,
    RateLimitedError,
    ServiceError,
    UnusableAnswerError,
    retry_after,
)
from gigaoffice_worker.handlers.http import HttpHandler
from gigaoffice_worker.handlers.loading import load
from tests.support.certificates import Authority
from tests.support.forked import ROOT
from tests.support.services import Service, answers, in_turn

SECRET_TEXT = "what the user asked"
PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def request(seconds=5.0, *, payload=None, request_id="r-1", headers=None, attempt=1):
    payload = payload if payload is not None else {"query": SECRET_TEXT}
    deadline = Deadline(time.monotonic() + seconds)
    return Request(payload, request_id, b"key", headers or {}, attempt, deadline, "requests", 2, 17, 0.0)


@pytest.fixture
def service():
    with Service() as service:
        yield service


@pytest.fixture
def make(service, monkeypatch):
    """Construct a handler with an environment of its own: make(HTTP_HANDLER_TOKEN="t"); closed at the end."""
    made = []

    def make(**environment):
        for name, value in {"HTTP_HANDLER_URL": f"{service.url}/ask?x=1", **environment}.items():
            monkeypatch.setenv(name, value)
        handler = HttpHandler()
        made.append(handler)
        return handler

    yield make
    for handler in made:
        handler.close()


def failure(handler, asked=None):
    """Return what the handler raises, which must not give away anything of the request, the answer or the secrets."""
    with pytest.raises((RejectedError, TransientError)) as caught:
        handler(asked or request())
    text = f"{caught.value} {caught.value.__cause__}"
    for private in (SECRET_TEXT, "127.0.0.1", "x=1", "tell-nobody", "secret-token"):
        assert private not in text
    assert str(caught.value)
    return caught.value


def test_payload_goes_out_as_json_and_the_json_answer_comes_back(service, make):
    asked = request(payload={"query": "Сколько?", "big": 2**70}, headers={"traceparent": PARENT, "tracestate": b"a=1"})
    assert make()(asked) == {"answer": "yes"}
    (seen,) = service.asked
    assert seen.path == "/ask?x=1"
    assert seen.json == {"query": "Сколько?", "big": 2**70}
    expected = {
        "content-type": "application/json",
        "accept": "application/json",
        "x-request-id": "r-1",
        "idempotency-key": "requests-2-17",
        "x-attempt": "1",
        "traceparent": PARENT.decode(),
        "tracestate": "a=1",
    }
    assert expected.items() <= seen.headers.items()
    assert "authorization" not in seen.headers


def test_a_bad_trace_context_is_not_passed_on(service, make):
    make()(request(headers={"traceparent": b"00-zz", "tracestate": b"a=1\r\nX-Evil: 1"}))
    assert not {"traceparent", "tracestate", "x-evil"} & service.asked[0].headers.keys()


@pytest.mark.parametrize(
    "request_id, sent", [("a b\r\nX: 1", "a%20b%0D%0AX:%201"), ("я%", "%D1%8F%25"), ("x" * 999, "x" * 256)]
)
def test_any_id_can_be_sent_as_a_header(service, make, request_id, sent):
    make()(request(request_id=request_id))
    assert service.asked[0].headers["x-request-id"] == sent


@pytest.mark.parametrize("answer", [{}, {"success": False}, [1, "a"], "text", 5, 2**80])
def test_any_json_is_a_result(service, make, answer):
    service.answer = answers(200, answer)
    assert make()(request()) == answer


@pytest.mark.parametrize("status, body", [(200, b"null"), (204, b""), (205, b"")])
def test_null_and_success_without_content_are_a_null_result(service, make, status, body):
    service.answer = answers(status, body)
    assert make()(request()) is None


@pytest.mark.usefixtures("no_collections")
@pytest.mark.parametrize("body", [b"", b" ", b"<html>tell-nobody</html>", b"{", b"\xff", b"NaN", b"[" * 100_000])
def test_success_that_is_not_json_is_tried_again(service, make, body):
    service.answer = answers(200, body)
    error = failure(make())
    assert type(error) is UnusableAnswerError
    assert not error.shared


def test_compressed_answers_are_not_asked_for_and_not_unfolded(service, make):
    service.answer = answers(200, b"\x1f\x8b", {"Content-Encoding": "gzip"})
    assert type(failure(make())) is UnusableAnswerError
    assert service.asked[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("encodings", [("gzip", "identity"), ("identity", "gzip"), ("", "deflate"), ("GZIP", "")])
def test_no_second_header_hides_that_an_answer_is_compressed(service, make, encodings):
    first, second = encodings
    headers = {"Content-Encoding": first, "content-encoding": second}
    service.answer = answers(200, gzip.compress(b"1" * 1000), headers)
    assert type(failure(make(HTTP_HANDLER_MAX_RESPONSE_BYTES="100"))) is UnusableAnswerError
    service.answer = answers(200, {"answer": "yes"}, dict.fromkeys(headers, "identity"))
    assert make()(request()) == {"answer": "yes"}


def test_answer_may_have_as_many_bytes_as_allowed(service, make):
    service.answer = answers(200, b'"%b"' % (b"x" * 98))
    assert make(HTTP_HANDLER_MAX_RESPONSE_BYTES="100")(request()) == "x" * 98


@pytest.mark.parametrize("told", [True, False])
def test_too_large_an_answer_is_refused_before_it_is_read(service, make, told):
    sent = []

    def endless(exchange):
        exchange.start(200, {"Content-Length": "1000000000"} if told else {"Connection": "close"})
        while not exchange.server.service.closing.is_set():
            sent.append(exchange.wfile.write(b"x" * 4096))

    service.answer = endless
    error = failure(make(HTTP_HANDLER_MAX_RESPONSE_BYTES="5000"))
    assert type(error) is RejectedError
    assert "5000 bytes" in str(error)


@pytest.mark.parametrize("status", [400, 404, 405, 409, 410, 413, 418, 422, 431, 451, 499])
def test_refusals_of_the_request_are_not_tried_again(service, make, status):
    service.answer = answers(status, b'{"detail": "tell-nobody"}', {"Retry-After": "3"})
    error = failure(make())
    assert type(error) is RejectedError
    assert str(status) in str(error)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 304])
def test_redirects_are_not_followed(service, make, status):
    service.answer = in_turn(answers(status, b"", {"Location": f"{service.url}/elsewhere"}), answers(200, {}))
    assert type(failure(make())) is RejectedError
    assert len(service.asked) == 1


@pytest.mark.parametrize("status", [408, 425, 500, 501, 502, 503, 504, 507, 599])
def test_failures_of_the_service_are_tried_again(service, make, status):
    service.answer = answers(status, b"tell-nobody")
    error = failure(make())
    assert type(error) is ServiceError
    assert (error.shared, error.retry_after) == (False, None)
    assert str(status) in str(error)


@pytest.mark.parametrize("status", [500, 502, 408])
def test_the_time_that_a_failing_service_asks_for_is_the_least_delay(service, make, status):
    service.answer = answers(status, b"", {"Retry-After": "7"})
    error = failure(make())
    assert (error.shared, error.retry_after) == (False, 7.0)


@pytest.mark.parametrize("status", [429, 503])
def test_rate_limits_close_the_gate_for_the_time_asked_for(service, make, status):
    service.answer = answers(status, b"", {"Retry-After": "30"})
    error = failure(make())
    assert type(error) is RateLimitedError
    assert (error.shared, error.retry_after) == (True, 30.0)


def test_rate_limit_without_a_time_closes_the_gate_for_the_workers_own(service, make):
    service.answer = answers(429)
    error = failure(make())
    assert (error.shared, error.retry_after) == (True, None)


def test_time_to_wait_may_be_a_date_by_the_clock_of_the_service(service, make):
    service.answer = answers(
        503, b"", {"Date": formatdate(1_000_000, usegmt=True), "Retry-After": formatdate(1_000_090)}
    )
    error = failure(make())
    assert (error.shared, error.retry_after) == (True, 90.0)


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("0", 0.0),
        (" 12 ", 12.0),
        ("1.5", 1.5),
        ("Thu, 01 Jan 1970 00:20:00 GMT", 200.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("", None),
        ("-1", None),
        ("soon", None),
        ("inf", None),
        ("9" * 5000, None),
        ("\u0661", None),
        ("Thu, 01 Jan 99999 00:00:00 GMT", None),
        ("Thu, 99 Foo 1970 00:00:00 GMT", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_date_or_not_at_all(text, seconds):
    assert retry_after({"retry-after": text}, 1000.0) == seconds


@pytest.mark.parametrize("status", [401, 402, 403, 407])
def test_a_refused_token_holds_all_calls_and_costs_no_request(service, make, status):
    service.answer = answers(status, b"tell-nobody")
    error = failure(make(HTTP_HANDLER_TOKEN="secret-token"))
    assert type(error) is AccessRefusedError
    assert error.shared
    assert str(status) in str(error)
    assert "HTTP_HANDLER_TOKEN" in str(error)


def test_token_goes_out_as_a_bearer_token_and_is_shown_nowhere(service, make):
    handler = make(HTTP_HANDLER_TOKEN="secret-token")
    handler(request())
    assert service.asked[0].headers["authorization"] == "Bearer secret-token"
    assert "secret-token" not in f"{handler!r} {vars(handler)!r} {vars(handler._token)!r}"


@pytest.mark.parametrize("url, warnings", [("http://elsewhere/", 1), ("https://elsewhere/", 0), ("http://[::1]/", 0)])
def test_token_without_tls_is_warned_of(make, url, warnings):
    with capture_logs() as logs:
        make(HTTP_HANDLER_URL=url, HTTP_HANDLER_TOKEN="secret-token")
    assert [line["event"] for line in logs] == ["Token is sent without TLS"] * warnings
    assert "secret-token" not in str(logs)


def test_token_is_read_again_from_its_file_when_it_is_refused(service, make, tmp_path):
    file = tmp_path / "token"
    file.write_text("old\n")

    def answer(exchange):
        exchange.reply(200 if exchange.headers["Authorization"] == "Bearer new" else 401, b"1")

    service.answer = answer
    handler = make(HTTP_HANDLER_TOKEN_FILE=str(file))
    assert type(failure(handler)) is AccessRefusedError
    assert len(service.asked) == 1
    file.write_text("new\n")
    assert handler(request()) == 1
    assert handler(request()) == 1
    assert len(service.asked) == 4


@pytest.mark.parametrize("content", [None, "", "two words"])
def test_token_file_that_is_being_replaced_does_no_harm(service, make, tmp_path, content):
    file = tmp_path / "token"
    file.write_text("old")
    handler = make(HTTP_HANDLER_TOKEN_FILE=str(file))
    service.answer = answers(401)
    file.unlink() if content is None else file.write_text(content)
    assert type(failure(handler)) is AccessRefusedError
    service.answer = answers(200, 1)
    assert handler(request()) == 1


def test_a_service_that_is_not_there_is_no_requests_fault(make):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        error = failure(make(HTTP_HANDLER_URL=f"http://127.0.0.1:{nobody.getsockname()[1]}/"))
    assert type(error) is ConnectionFailedError
    assert error.shared


def test_a_name_that_cannot_be_looked_up_is_tried_again(make):
    assert type(failure(make(HTTP_HANDLER_URL="http://a..b/"))) is ConnectionFailedError


def test_the_next_address_of_a_host_is_tried_when_one_refuses(service, make):
    # localhost is ::1 first where IPv6 is there; the service listens on 127.0.0.1 alone.
    assert make(HTTP_HANDLER_URL=f"http://localhost:{service.port}/")(request()) == {"answer": "yes"}


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 2",
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 500_000,
    ],
    ids=["nothing", "half a body", "bad chunks", "nonsense", "half a line", "endless header"],
)
def test_a_connection_that_breaks_is_tried_again(service, make, sent):
    def answer(exchange):
        exchange.connection.sendall(sent)
        exchange.hang_up()

    service.answer = answer
    error = failure(make())
    assert type(error) is ConnectionFailedError
    assert not error.shared
    assert len(service.asked) == 1  # A call may be paid for: nothing is repeated behind the worker's back.


def _silent(exchange):
    exchange.pause(30)


def _dripping_headers(exchange):
    exchange.drip(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 1000, 0.05)


def _dripping_body(exchange):
    exchange.start(200, {"Content-Length": "1000"})
    exchange.drip(b"1" * 1000, 0.05)


def _stalled_body(exchange):
    exchange.start(200, {"Content-Length": "1000"})
    exchange.connection.sendall(b"{")
    exchange.pause(30)


def _interim_answers(exchange):
    for _ in range(1000):
        exchange.connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        if exchange.pause(0.05):
            return


@pytest.mark.parametrize("answer", [_silent, _dripping_headers, _dripping_body, _stalled_body, _interim_answers])
def test_the_deadline_bounds_the_whole_call(service, make, answer):
    service.answer = answer
    handler, asked = make(), request(0.4)
    error = failure(handler, asked)
    assert type(error) is NoAnswerError
    assert not error.shared
    assert asked.deadline.remaining() < 0.1
    assert asked.deadline._at > time.monotonic() - 10


def test_the_deadline_bounds_a_service_that_does_not_read(service, make):
    service.reads_bodies = False
    service.answer = _silent
    asked = request(0.4, payload={"query": "x" * 20_000_000})
    assert type(failure(make(), asked)) is NoAnswerError
    assert asked.deadline._at > time.monotonic() - 10


def test_the_deadline_bounds_a_service_that_reads_slowly(service, make):
    service.reads_bodies = False

    def answer(exchange):
        while not exchange.pause(0.01):
            exchange.rfile.read1(5000)

    service.answer = answer
    asked = request(0.6, payload={"query": "x" * 20_000_000})
    assert type(failure(make(), asked)) is NoAnswerError
    assert asked.deadline._at > time.monotonic() - 10


def test_connecting_has_a_time_of_its_own(make):
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with socket.create_connection(full.getsockname()), socket.socket() as second:
            second.setblocking(False)
            second.connect_ex(full.getsockname())
            url = f"http://127.0.0.1:{full.getsockname()[1]}/"
            asked = request(30)
            error = failure(make(HTTP_HANDLER_URL=url, HTTP_HANDLER_CONNECT_TIMEOUT="0.2"), asked)
    assert type(error) is ConnectionFailedError
    assert asked.deadline.remaining() > 15


def test_no_time_left_means_no_call(service, make):
    assert type(failure(make(), request(0))) is NoAnswerError
    assert service.asked == []


def test_connections_are_kept_and_no_more_than_calls_may_run(service, make):
    handler = make(WORKER_CONCURRENCY="3")

    def several():
        for _ in range(10):
            handler(request())

    threads = [threading.Thread(target=several) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(service.asked) == 60
    assert len(service.connections) <= 3


def test_no_failure_costs_the_connection(service, make):
    def broken(exchange):
        exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{")
        exchange.hang_up()

    handler = make(WORKER_CONCURRENCY="1", HTTP_HANDLER_MAX_RESPONSE_BYTES="1000")
    bad = [
        _silent,
        _dripping_body,
        broken,
        answers(500, b"x" * 100_000),
        answers(302),
        answers(401),
        answers(200, b"x" * 5000),
    ]
    for answer in bad * 2:
        service.answer = answer
        failure(handler, request(0.2))
        service.answer = answers(200, 1)
        assert handler(request()) == 1


def test_threads_have_deadlines_of_their_own(service, make):
    release = threading.Event()
    service.answer = lambda exchange: (release.wait(10), exchange.reply(200, b"1"))
    handler = make()
    found = []
    slow = threading.Thread(target=lambda: found.append(handler(request(10))))
    slow.start()
    assert type(failure(handler, request(0.2))) is NoAnswerError
    release.set()
    slow.join()
    assert found == [1]


def test_an_early_refusal_of_a_large_request_is_heard(service, make):
    service.reads_bodies = False
    service.answer = lambda exchange: (exchange.reply(413, b"", {"Connection": "close"}), exchange.pause(0.3))
    assert type(failure(make(), request(payload={"query": "x" * 20_000_000}))) in {RejectedError, ConnectionFailedError}


# What a service does to the requests after its answer


def test_no_cookie_of_an_answer_goes_with_the_next_request(service, make):
    cookies = {"Set-Cookie": "tenant=one; Path=/", "set-cookie": "long=" + "x" * 3000}
    service.answer = answers(200, {"answer": "yes"}, cookies)
    handler = make()
    for _ in range(3):
        handler(request())
    assert all("cookie" not in asked.headers for asked in service.asked)
    assert len({id(connection) for connection in service.connections}) == 1


def _answer_and_more(more):
    """Answer completely, and in the same packet say what only the next request should hear."""
    body = b'{"answer": "mine"}'
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    return lambda exchange: exchange.connection.sendall(head + body + more)


SMUGGLED = b'HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n{"answer": "forged"}'


@pytest.mark.parametrize(
    "more", [SMUGGLED, SMUGGLED[:30], b"\r\n", b"garbage"], ids=["whole", "part", "blank", "garbage"]
)
def test_bytes_behind_an_answer_are_never_taken_for_the_next_one(service, make, more):
    service.answer = in_turn(_answer_and_more(more), answers(200, {"answer": "yours"}))
    handler = make(WORKER_CONCURRENCY="1")
    assert handler(request()) == {"answer": "mine"}
    assert handler(request()) == {"answer": "yours"}
    assert len(service.connections) == 2


def test_a_connection_with_nothing_left_is_kept(service, make):
    handler = make(WORKER_CONCURRENCY="1")
    for _ in range(5):
        handler(request())
    assert len(service.connections) == 1


def _announcing(exchange):
    while not exchange.pause(0):
        exchange.connection.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 200)


def _in_single_bytes(exchange):
    exchange.start(200, {"Transfer-Encoding": "chunked"})
    while not exchange.pause(0):
        exchange.connection.sendall(b"1\r\n \r\n" * 500)


@pytest.mark.parametrize(
    "answer, expected", [(_announcing, ConnectionFailedError), (_in_single_bytes, UnusableAnswerError)]
)
def test_a_service_that_never_comes_to_the_point_is_given_up_long_before_the_deadline(service, make, answer, expected):
    service.answer = answer
    asked, used = request(60), time.process_time()
    assert type(failure(make(), asked)) is expected
    assert asked.deadline.remaining() > 15
    assert time.process_time() - used < 30
    service.answer = answers(200, {"answer": "yes"})
    assert make()(request()) == {"answer": "yes"}


def test_an_answer_in_many_pieces_of_some_size_is_taken(service, make):
    content = json.dumps({"answer": "x" * 300_000}).encode()

    def in_pieces(exchange):
        exchange.start(200, {"Transfer-Encoding": "chunked"})
        pieces = [content[at : at + 32] for at in range(0, len(content), 32)]
        exchange.connection.sendall(b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in pieces) + b"0\r\n\r\n")

    service.answer = in_pieces
    assert len(make()(request())["answer"]) == 300_000


def test_certificates_are_verified(make, tmp_path):
    authority = Authority(tmp_path)
    with Service(certificate=authority.issue("localhost")) as secure:
        url = f"https://localhost:{secure.port}/"
        assert make(HTTP_HANDLER_URL=url, HTTP_HANDLER_CA_FILE=authority.file)(request()) == {"answer": "yes"}
        wrong_name = failure(make(HTTP_HANDLER_URL=f"https://127.0.0.1:{secure.port}/"))
        unknown = failure(make(HTTP_HANDLER_URL=url, HTTP_HANDLER_CA_FILE=""))
    for error in (wrong_name, unknown):
        assert type(error) is AccessRefusedError
        assert "not trusted" in str(error)


def test_a_certificate_without_key_identifiers_is_refused_by_python_3_13_with_the_reason(make, tmp_path):
    lax = Authority(tmp_path, strict=False)
    with Service(certificate=lax.issue("localhost")) as secure:
        handler = make(HTTP_HANDLER_URL=f"https://localhost:{secure.port}/", HTTP_HANDLER_CA_FILE=lax.file)
        if sys.version_info < (3, 13):
            assert handler(request()) == {"answer": "yes"}
        else:
            assert "Missing Authority Key Identifier. Python 3.13 and newer ask for" in str(failure(handler))


def test_the_environments_proxy_is_used_only_when_asked_for(service, make, monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with Service() as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        elsewhere = f"http://elsewhere.invalid:{service.port}/path"
        make(HTTP_HANDLER_URL=f"{service.url}/")(request())
        assert (len(service.asked), len(proxy.asked)) == (1, 0)
        make(HTTP_HANDLER_URL=elsewhere, HTTP_HANDLER_USE_ENV_PROXY="true")(request())
        assert [asked.path for asked in proxy.asked] == [elsewhere]
        error = failure(make(HTTP_HANDLER_URL="https://elsewhere.invalid/"))
        assert type(error) is ConnectionFailedError  # The proxy refuses to connect us.
        assert proxy.asked[-1].path == "elsewhere.invalid:443"


@pytest.mark.parametrize(
    "status, expected",
    [
        *((status, AccessRefusedError) for status in (401, 403, 407)),
        *((status, ConnectionFailedError) for status in (302, 400, 404, 429, 502, 503, 504)),
    ],
)
def test_no_request_is_to_blame_where_a_proxy_does_not_connect(make, monkeypatch, status, expected):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with Service() as proxy:
        proxy.connect_status = status
        monkeypatch.setenv("https_proxy", proxy.url)
        error = failure(make(HTTP_HANDLER_URL="https://elsewhere.invalid/", HTTP_HANDLER_USE_ENV_PROXY="true"))
    assert (type(error), error.shared) == (expected, True)
    assert "the proxy" in str(error)


def test_all_wrong_variables_are_told_at_once_and_no_secret_with_them(make, tmp_path):
    (tmp_path / "token").write_text("secret-token")
    with pytest.raises(ConfigurationError) as caught:
        make(
            HTTP_HANDLER_URL="ftp://user:secret-token@host/",
            HTTP_HANDLER_TOKEN="secret-token",
            HTTP_HANDLER_TOKEN_FILE=str(tmp_path / "token"),
            HTTP_HANDLER_CA_FILE=str(tmp_path / "missing"),
            HTTP_HANDLER_CONNECT_TIMEOUT="soon",
            HTTP_HANDLER_MAX_RESPONSE_BYTES="0",
            HTTP_HANDLER_USE_ENV_PROXY="perhaps",
        )
    text = str(caught.value)
    for name in ("URL", "TOKEN", "CA_FILE", "CONNECT_TIMEOUT", "MAX_RESPONSE_BYTES", "USE_ENV_PROXY"):
        assert f"HTTP_HANDLER_{name}" in text
    assert "secret-token" not in text
    assert caught.value.exit_code == 78


@pytest.mark.parametrize(
    "name, value",
    [
        ("HTTP_HANDLER_URL", ""),
        ("HTTP_HANDLER_URL", "localhost:8000"),
        ("HTTP_HANDLER_URL", "http://"),
        ("HTTP_HANDLER_URL", "http://host:99999999/"),
        ("HTTP_HANDLER_TOKEN", "two words"),
        ("HTTP_HANDLER_TOKEN", "пароль"),
        ("HTTP_HANDLER_CA_FILE", __file__),
        ("HTTP_HANDLER_CONNECT_TIMEOUT", "nan"),
    ],
)
def test_a_wrong_variable_is_named(make, name, value):
    with pytest.raises(ConfigurationError, match=name):
        make(**{name: value})


def test_an_empty_variable_counts_as_unset(make):
    names = ("TOKEN", "TOKEN_FILE", "CA_FILE", "CONNECT_TIMEOUT", "MAX_RESPONSE_BYTES", "USE_ENV_PROXY")
    assert make(**{f"HTTP_HANDLER_{name}": "" for name in names})(request()) == {"answer": "yes"}


def test_the_worker_loads_it_by_its_short_name(service, monkeypatch):
    monkeypatch.setenv("HTTP_HANDLER_URL", service.url)
    handler = load("http")
    assert handler.call(request()) == {"answer": "yes"}
    handler.close()


@pytest.mark.parametrize("name, package", [("http", "httpx"), ("gigachat", "gigachat")])
def test_a_missing_extra_is_named(name, package):
    program = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from gigaoffice_worker.core.errors import ConfigurationError\n"
        "from gigaoffice_worker.handlers.loading import load\n"
        f"try: load({name!r})\n"
        "except ConfigurationError as error: print(error, '|', error.hint)\n"
    )
    environment = {
        "PYTHONPATH": str(ROOT),
        "GIGACHAT_MODE": "cloud",
        "GIGACHAT_MODEL": "m",
        "GIGACHAT_CREDENTIALS": "YTpi",
    }
    said = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=30, check=True
    )
    assert f"the package {package} is not installed" in said.stdout, said.stderr
    assert f"pip install 'gigaoffice-worker[{name}]'" in said.stdout


@pytest.mark.parametrize("module", ["http", "gigachat", "gigachat_client", "failures"])
def test_every_variable_and_every_error_type_is_documented(module):
    source = (ROOT / "gigaoffice_worker" / "handlers" / f"{module}.py").read_text()
    documented = (ROOT / "docs" / "handlers.md").read_text()
    names = re.findall(
        r"\"((?:HTTP_HANDLER|GIGACHAT)_[A-Z_]+)\"|\{PREFIX\}([A-Z_]+)|^class (\w+Error)\(", source, re.MULTILINE
    )
    found = [full or error or f"GIGACHAT_{short}" for full, short, error in names]
    assert found
    assert [name for name in found if f"`{name}`" not in documented] == []
