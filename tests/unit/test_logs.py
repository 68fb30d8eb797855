import contextlib
import gc
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from gigaoffice_worker.observe.log_bridge import StdlibBridge
from gigaoffice_worker.observe.log_lines import MASK, MAX_LINE, LineFormat
from gigaoffice_worker.observe.log_writer import BackgroundWriter
from gigaoffice_worker.observe.logs import configure, dump_stacks, tell_left_out
from gigaoffice_worker.observe.repeats import OwnRepeats, RateLimiter, Suppressed, template

ROOT = Path(__file__).parents[2]
UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class Log:
    """A configured log that can be read back."""

    def __init__(self, level="DEBUG", form="json", **options):
        self.stream = io.StringIO()
        self.sink = configure(level, form, stream=self.stream, **options)

    def text(self):
        self.sink.close(5)
        return self.stream.getvalue()

    def lines(self):
        return [json.loads(line) for line in self.text().splitlines()]


@pytest.fixture
def start_log():
    started = []

    def start(*args, **options):
        started.append(Log(*args, **options))
        return started[-1]

    yield start
    for log in started:
        log.sink.close(5)
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def log(start_log):
    return start_log()


def render(facts, event="Tried", secrets=(), **form):
    lines = LineFormat(**form)
    for secret in secrets:
        lines.hide(secret)
    return lines.line("info", event, facts, 1_700_000_000.25)


def rendered(facts, **options):
    line = render(facts, **options)
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert len(line.encode()) <= MAX_LINE
    return json.loads(line)


# The form of a line


def test_a_line_starts_with_time_level_and_event(log):
    before = datetime.now(UTC)
    structlog.get_logger().info("Request answered", request_id="r-1", partition=2)
    [line] = log.lines()
    assert list(line) == ["timestamp", "level", "event", "request_id", "partition"]
    assert (line["level"], line["event"], line["request_id"], line["partition"]) == (
        "info",
        "Request answered",
        "r-1",
        2,
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["timestamp"])
    assert abs((datetime.fromisoformat(line["timestamp"]) - before).total_seconds()) < 5


def test_levels_below_the_configured_one_are_left_out(start_log):
    log = start_log("WARNING")
    logger = structlog.get_logger()
    for level in ("debug", "info", "warning", "error", "critical"):
        getattr(logger, level)("Said")
        getattr(logging.getLogger("some.library"), level)("said")
    assert [line["level"] for line in log.lines()] == ["warning", "warning", "error", "error", "critical", "critical"]


def test_context_of_the_thread_is_in_each_line(log):
    structlog.contextvars.bind_contextvars(request_id="r-7")
    structlog.get_logger().info("Attempt started", attempt=1)
    logging.getLogger("a.library").warning("slow")
    structlog.contextvars.clear_contextvars()
    structlog.get_logger().info("Idle")
    first, second, third = log.lines()
    assert first["request_id"] == second["request_id"] == "r-7"
    assert "request_id" not in third


def test_facts_cannot_overwrite_what_every_line_has(log):
    structlog.get_logger().info("Tried", level="loud", timestamp="never")
    [line] = log.lines()
    assert line["level"] == "info"
    assert line["timestamp"] != "never"
    assert (line["level_"], line["timestamp_"]) == ("loud", "never")


def test_lines_of_many_threads_come_out_whole_and_in_each_threads_order(log):
    def speak(number):
        logger = structlog.get_logger()
        for count in range(200):
            logger.info("Counted", thread=number, count=count, text="x" * 500)

    threads = [threading.Thread(target=speak, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = log.lines()
    for number in range(6):
        assert [line["count"] for line in lines if line["thread"] == number] == list(range(200))


def test_logs_are_configured_once(log):
    with pytest.raises(RuntimeError, match="configured already"):
        configure("INFO", "json", stream=io.StringIO())
    assert log.lines() == []


def test_a_logger_that_was_used_before_follows_the_next_sink(start_log):
    logger = structlog.get_logger()
    first = start_log()
    logger.info("First")
    assert [line["event"] for line in first.lines()] == ["First"]
    logger.info("Nobody listens")
    second = start_log()
    logger.info("Second")
    assert [line["event"] for line in second.lines()] == ["Second"]


def test_closing_gives_everything_back(start_log):
    hooks = (sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning)
    root = logging.getLogger()
    state = (root.level, list(root.handlers), logging.getLogger("kafka").level)
    log = start_log()
    assert (sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning) != hooks
    log.sink.close(5)
    log.sink.close(5)
    assert (sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning) == hooks
    assert (root.level, list(root.handlers), logging.getLogger("kafka").level) == state
    assert "log-writer" not in [thread.name for thread in threading.enumerate()]


# Whatever is logged, a line comes out


class Wicked:
    def __repr__(self):
        raise ValueError("no")


class WickedText(str):
    __slots__ = ()

    def __str__(self):
        raise ValueError("no")

    def __len__(self):
        raise ValueError("no")


class WickedDict(dict):
    def items(self):
        raise KeyError("no")


class WickedError(Exception):
    def __str__(self):
        raise ValueError("no")


class Colour(Enum):
    RED = "red"


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def cyclic():
    value = {}
    value["self"] = value
    return value


@pytest.mark.parametrize(
    "value, shown",
    [
        ("half \ud800 pair", "half \\ud800 pair"),
        (2**63, 2**63),
        (2**64, str(2**64)),
        pytest.param(10**10_000, "<integer of 33220 bits>", id="huge"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (b"payload", "<7 bytes>"),
        (bytearray(3), "<3 bytes>"),
        (True, True),
        (None, None),
        (Colour.RED, "red"),
        (Path("/etc/x"), "/etc/x"),
        (datetime(2025, 1, 2, tzinfo=UTC), "2025-01-02 00:00:00+00:00"),
        (ValueError("bad value"), "ValueError: bad value"),
        (ValueError(), "ValueError"),
        ({1: "a", None: "b", ("x", 2): "c"}, {"1": "a", "None": "b", "['x', 2]": "c"}),
        (MappingProxyType({"a": 1}), {"a": 1}),
        ((1, [2, deque([3])]), [1, [2, [3]]]),
        (Wicked(), "<Wicked that cannot be shown: ValueError>"),
        pytest.param(WickedText("text"), "text", id="wicked-text"),
        (WickedDict(a=1), "<WickedDict that cannot be shown: KeyError>"),
        (WickedError(), "<WickedError that cannot be shown: ValueError>"),
        (nested(6), [[[[["<list of 1>"]]]]]),
        (list(range(60)), [*range(50), "(10 more)"]),
    ],
)
def test_value_is_shown_as(value, shown):
    assert rendered({"value": value})["value"] == shown


@pytest.mark.parametrize(
    "make",
    [
        lambda: nested(100_000),
        cyclic,
        lambda: "x" * 10_000_000,
        lambda: ["y" * 5_000] * 1_000,
        lambda: [{"z" * 100 + str(n): ["y" * 5_000] * 100 for n in range(100)}] * 100,
        Wicked,
        lambda: 10**100_000,
    ],
)
@pytest.mark.parametrize("console", [False, True])
def test_large_and_deep_values_give_short_lines(make, console):
    value = make()
    line = render({"value": value, **{f"more_{number}": value for number in range(40)}}, console=console)
    assert len(line.encode()) <= MAX_LINE
    assert "Tried" in line


def test_large_facts_are_left_out_before_small_ones():
    facts = {f"large_{number}": [f"{number}" * 2_000] * 20 for number in range(3)}
    line = rendered({"request_id": "r-1", **facts, "attempt": 3})
    assert (line["request_id"], line["attempt"]) == ("r-1", 3)
    assert re.fullmatch(r"\(left out: \d+ bytes\)", line["large_0"])


def test_too_many_facts_are_counted():
    line = rendered({f"k{number}": number for number in range(100)})
    assert line["facts_left_out"] == 60


TEXTS = st.text(st.characters(exclude_categories=()), max_size=40)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=20) | TEXTS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS | st.integers(), inner, max_size=5),
    max_leaves=20,
)


@given(facts=st.dictionaries(TEXTS, VALUES, max_size=8), event=TEXTS)
def test_any_record_is_one_line_of_strict_json(facts, event):
    line = render(facts, event=event)
    assert not UNPRINTABLE.search(line)
    assert line.count("\n") == 1
    record = json.loads(line)
    assert list(record)[:3] == ["timestamp", "level", "event"]


@given(facts=st.dictionaries(TEXTS, VALUES, max_size=8), event=TEXTS)
def test_any_record_reaches_a_terminal_without_control_characters(facts, event):
    line = render(facts, event=event, console=True)
    assert not UNPRINTABLE.search(line)
    line.encode()


def test_a_worst_case_of_escapes_still_fits():
    facts = {"\x01" * 60 + str(number): "\x02" * 5_000 for number in range(60)}
    rendered(facts, event="\x03" * 5_000)


def test_a_record_that_cannot_be_rendered_is_reported_not_raised():
    line = json.loads(LineFormat().line("info", "Tried", WickedDict(a=1), 0.0))
    assert (line["level"], line["event"], line["error_type"]) == (
        "error",
        "Log record could not be rendered",
        "KeyError",
    )
    assert "could not be rendered" in LineFormat().line("info", "Tried", {}, 1e300)


def test_logging_at_the_end_of_the_stack_does_not_raise(log):
    failures = []

    def dive():
        try:
            structlog.get_logger().info("Deep")
        except RecursionError:  # structlog's own frames may not fit either; ours must not be what fails
            failures.append(traceback.extract_tb(sys.exc_info()[2])[-1].filename)
        dive()

    with pytest.raises(RecursionError):
        dive()
    assert log.lines()
    assert not [name for name in failures if "log_lines" in name]


# Secrets


@pytest.mark.parametrize(
    "key",
    [
        *("password", "sasl_plain_password", "KAFKA_SASL_PASSWORD", "client_secret", "access_token", "Authorization"),
        *("api_key", "apikey", "private-key", "Set-Cookie", "credentials", "payload", "input_data"),
    ],
)
def test_what_a_key_names_secret_is_masked_at_any_depth(key):
    line = render({key: "hunter2hunter2", "nested": [{"deep": {key: {"a": "hunter2hunter2"}}}]})
    assert "hunter2" not in line
    assert line.count(MASK) == 2


def test_token_counts_are_no_secret():
    line = rendered({"prompt_tokens": 17, "usage": {"total_tokens": 40}, "key": "user-1", "password": None})
    assert (line["prompt_tokens"], line["usage"], line["key"]) == (17, {"total_tokens": 40}, "user-1")
    assert line["password"] is None


@pytest.mark.parametrize("secret", ["s3cr3t-pa55", 'quo"ted\\pass', "tab\tpass/word+", "пароль-пароль"])
@pytest.mark.parametrize("console", [False, True])
def test_a_hidden_secret_never_appears_in_any_form(secret, console):
    lines = LineFormat(console=console)
    lines.hide(secret)
    url = "https://host/?p=" + quote(secret, safe="")
    try:
        raise RuntimeError(f"login with {secret} failed")  # noqa: TRY301
    except RuntimeError as error:
        facts = {"text": f"a {secret} b", "list": [secret], secret: 1, "obj": {secret}, "url": url, "exc_info": error}
        facts["printed"] = Printed(secret)
        line = lines.line("info", f"Event {secret}", facts, 0.0)
    for form in (secret, repr(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], quote(secret, safe="")):
        assert form not in line
    assert line.count(MASK) >= 8


class Printed:
    def __init__(self, secret):
        self.secret = secret

    def __repr__(self):
        return f"Printed({self.secret!r})"


def test_a_secret_at_the_cut_of_a_long_text_does_not_show_its_half():
    for shift in range(40):
        text = "x" * (1024 - shift) + "s3cr3t-password" + "y" * 5_000
        assert "s3cr" not in render({"text": text}, secrets=["s3cr3t-password"])


def test_a_secret_of_three_letters_is_not_hidden():
    assert rendered({"text": "abc"}, secrets=["abc", ""])["text"] == "abc"


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer abcdef0123456789",
        "sent 'basic dXNlcjpwYXNzd29yZA=='",
        "connect to https://user:hunter2hunter2@host:1/x failed",
        "KafkaClient(sasl_plain_password='hunter2hunter2', x=1)",
        '{"client_secret": "hunter2hunter2"}',
    ],
)
def test_credentials_inside_texts_are_masked(text):
    line = render({"message": text})
    assert MASK in line
    assert not re.search("abcdef|dXNl|hunter2", line)


# Exceptions


def fail(depth):
    local_secret = "do not print locals"  # noqa: F841
    if depth:
        fail(depth - 1)
    raise ValueError("the innermost")


def test_exception_is_told_with_its_cause_without_locals(log):
    try:
        try:
            fail(3)
        except ValueError as error:
            raise RuntimeError("the outer") from error
    except RuntimeError:
        structlog.get_logger().exception("Attempt failed", attempt=1)
    [line] = log.lines()
    assert (line["level"], line["error_type"], line["error"]) == ("error", "RuntimeError", "the outer")
    assert "ValueError: the innermost" in line["traceback"]
    assert "do not print locals" not in line["traceback"].replace('local_secret = "do not print locals"', "")
    assert line["traceback"].endswith("RuntimeError: the outer")


def test_frames_are_limited():
    try:
        fail(400)
    except ValueError as error:
        line = rendered({"exc_info": error})
    assert len(line["traceback"]) < 8_000
    assert "the innermost" in line["traceback"]


def test_a_thousand_causes_still_make_one_line_with_both_ends():
    error = ValueError("cause number 0")
    for number in range(1, 1000):
        later = ValueError(f"cause number {number}")
        later.__cause__ = error
        error = later
    text = rendered({"exc_info": error})["traceback"]
    assert "cause number 0" in text
    assert text.endswith("cause number 999")
    assert len(text) < 17_000


def test_an_exception_that_cannot_be_printed_is_named():
    line = rendered({"exc_info": WickedError()})
    assert line["error_type"] == "WickedError"


def test_facts_of_the_caller_win_over_the_exceptions():
    line = rendered({"error": "authorization", "exc_info": ValueError("x")})
    assert (line["error"], line["error_type"]) == ("authorization", "ValueError")


# The standard library's loggers


def test_lines_of_our_libraries_have_a_constant_event_and_those_of_others_their_text(log):
    logging.getLogger("kafka.conn").warning("%s: connecting to %s:%d", "<conn 1>", "host", 9092)
    logging.getLogger("waitress").error("oh")
    logging.getLogger("somebody.else").info("took %.1f s", 1.25, extra={"model": "m-1"})
    kafka, server, other = log.lines()
    assert (kafka["event"], kafka["logger"]) == ("Kafka client message", "kafka.conn")
    assert kafka["message"] == "<conn 1>: connecting to host:9092"
    assert (server["event"], other["event"]) == ("Side port message", "took 1.2 s")
    assert (other["logger"], other["model"], other["level"]) == ("somebody.else", "m-1", "info")
    assert "message" not in other


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING"])
def test_kafka_is_never_heard_below_info(start_log, level):
    log = start_log(level)
    child = logging.getLogger("kafka.protocol.parser")
    child.debug("password=hunter2")
    child.setLevel(logging.DEBUG)  # even if somebody asks for it
    try:
        child.debug("password=hunter2")
        logging.getLogger("kafka").debug("password=hunter2")
        child.warning("heard")
    finally:
        child.setLevel(logging.NOTSET)
    assert [line["message"] for line in log.lines()] == ["heard"]
    assert not logging.getLogger("kafka.conn").isEnabledFor(logging.DEBUG)


def test_exception_of_a_library_is_told_like_ours(log):
    try:
        fail(0)
    except ValueError:
        logging.getLogger("kafka.coordinator").exception("commit failed")
    [line] = log.lines()
    assert (line["level"], line["error_type"], line["message"]) == ("error", "ValueError", "commit failed")
    assert "the innermost" in line["traceback"]


def test_a_library_line_whose_arguments_do_not_fit_is_not_lost():
    told = []
    bridge = StdlibBridge(lambda *line: told.append(line), context=dict, limiter=RateLimiter())
    for text, argument in (("%d things", "three"), ("%s things", Wicked())):
        bridge.handle(logging.makeLogRecord({"name": "a.library", "levelno": 30, "msg": text, "args": (argument,)}))
    assert [event for _, event, _, _ in told] == [
        "%d things (arguments not shown: TypeError)",
        "%s things (arguments not shown: ValueError)",
    ]


def test_python_warnings_are_log_lines(log):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old way", DeprecationWarning, stacklevel=1)
    [line] = log.lines()
    assert (line["event"], line["level"]) == ("Python warning", "warning")
    assert "old way" in line["message"]


def test_a_storm_of_kafka_lines_is_thinned_out_and_counted(log):
    for attempt in range(500):
        logging.getLogger("kafka.conn").error("Connect attempt to %s returned error %d", "host", attempt)
    logging.getLogger("kafka.conn").error("another")
    lines = log.lines()
    assert [line["message"][:18] for line in lines[:4]] == ["Connect attempt to"] * 3 + ["another"]
    [summary] = lines[4:]
    assert (summary["event"], summary["suppressed"]) == ("Repeated messages left out", 497)
    assert summary["template"] == "Connect attempt to %s returned error %d"


def test_what_was_left_out_is_told_before_a_last_line_and_once(log):
    for _ in range(10):
        logging.getLogger("kafka.conn").error("again")
    tell_left_out()
    structlog.get_logger().info("Worker stopped")
    lines = log.lines()
    assert [line["event"] for line in lines[3:]] == ["Repeated messages left out", "Worker stopped"]
    assert lines[3]["suppressed"] == 7


def test_lines_of_a_handlers_own_library_are_not_thinned_out(log):
    for number in range(100):
        logging.getLogger("my_handler").info("answered %d", number)
    assert len(log.lines()) == 100


# Our own repeats


def test_two_thousand_records_that_fail_alike_are_a_few_lines_and_their_number():
    stream = io.StringIO()
    sink = configure("INFO", "json", stream=stream)
    for number in range(2_000):
        structlog.get_logger().warning(
            "Request goes to the dead letter queue", error_type="InvalidRequestError", request_id=f"r-{number}"
        )
    structlog.get_logger().warning("Request goes to the dead letter queue", error_type="TypeError", at="a.py:1 f")
    sink.close()
    *told, other, summary = map(json.loads, stream.getvalue().splitlines())
    assert [line["request_id"] for line in told] == [f"r-{number}" for number in range(10)]
    assert other["error_type"] == "TypeError"
    assert {
        "event": "Repeated messages left out",
        "level": "warning",
        "of": "Request goes to the dead letter queue",
        "error_type": "InvalidRequestError",
        "suppressed": 1_990,
    }.items() <= summary.items()


def test_the_next_line_of_a_cause_says_how_many_were_left_out_before_it():
    told = []
    repeats = OwnRepeats(lambda *line: told.append(line))
    facts = {"error_type": "TimeoutError", "at": "a.py:7 handle"}
    admitted = [repeats.admit("warning", "Attempt failed", facts, 100.0 + 0.01 * n) for n in range(50)]
    assert admitted == [0] * 10 + [None] * 40
    assert repeats.admit("warning", "Attempt failed", facts, 112.0) == 40
    assert repeats.admit("warning", "Attempt failed", {**facts, "at": "a.py:8 handle"}, 112.0) == 0


def test_partitions_stacks_and_what_is_told_of_good_things_are_never_left_out():
    stream = io.StringIO()
    sink = configure("INFO", "json", stream=stream)
    for number in range(100):
        structlog.get_logger().error("Offset out of range", topic="requests", partition=number)
        structlog.get_logger().warning("Thread stack", stack=f"File {number}")
        structlog.get_logger().info("Request answered", request_id=number)
    sink.close()
    assert len(stream.getvalue().splitlines()) == 300


def test_at_debug_nothing_of_ours_is_left_out():
    stream = io.StringIO()
    sink = configure("DEBUG", "json", stream=stream)
    for _ in range(100):
        structlog.get_logger().warning("Attempt failed", error_type="TimeoutError")
    sink.close()
    assert len(stream.getvalue().splitlines()) == 100


# What the Kafka client says


@pytest.mark.parametrize("level, told", [("INFO", ["of note"]), ("ERROR", []), ("DEBUG", ["connected", "of note"])])
def test_the_client_speaks_from_warning_on_unless_everything_is_asked_for(level, told):
    stream = io.StringIO()
    sink = configure(level, "json", stream=stream)
    client = logging.getLogger("kafka.conn")
    client.info("connected")
    client.warning("of note")
    client.debug("a password")
    sink.close()
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == told


def test_first_line_passes_then_a_few_then_one_each_interval():
    limiter = RateLimiter(burst=3, interval=10.0)
    key = ("kafka.conn", "connecting to %s")
    assert [limiter.admit(key, 100.0) for _ in range(5)] == [0, 0, 0, None, None]
    assert limiter.admit(key, 109.0) is None
    assert limiter.admit(key, 110.5) == 3
    assert limiter.admit(("kafka.conn", "other"), 110.5) == 0
    assert limiter.admit(("kafka.client", "connecting to %s"), 110.5) == 0


def test_numbers_in_a_message_make_no_new_template():
    limiter = RateLimiter(burst=1)
    assert limiter.admit(("kafka", template("node 1 at 0xdeadbeef")), 1.0) == 0
    assert limiter.admit(("kafka", template("node 2 at 0x12ab")), 1.0) is None


def test_data_in_the_place_of_templates_is_limited_as_a_whole():
    limiter = RateLimiter(burst=3, new_burst=50, size=100)
    words = [f"payload {'abcdefghij'[n % 10] * (n // 10 + 1)}" for n in range(5_000)]
    passed = [word for word in words if limiter.admit(("kafka", word), 1.0) is not None]
    assert len(passed) == 50
    assert Suppressed((), 4_950, logging.INFO) in limiter.sweep(100.0)
    assert len(limiter._buckets) <= 100


def test_forgotten_templates_are_still_counted():
    limiter = RateLimiter(burst=1, size=2)
    for text in ("a", "a", "b", "c"):
        limiter.admit(("kafka", text), 1.0, logging.ERROR)
    assert limiter.sweep(100.0) == [Suppressed(("kafka", "a"), 1, logging.ERROR)]
    assert limiter.sweep(101.0) == []


# The writing thread


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "w") as writer:
        yield reader, writer


class Dropped:
    def __init__(self):
        self.total = 0
        self.threads = set()

    def __call__(self, lines):
        self.total += lines
        self.threads.add(threading.current_thread().name)


def writer_to(stream, dropped, capacity=100_000):
    return BackgroundWriter(stream, gap=lambda missing: f"gap {missing}\n", on_dropped=dropped, capacity=capacity)


def test_a_stalled_reader_costs_lines_but_no_time(pipe):
    reader, stream = pipe
    dropped = Dropped()
    writer = writer_to(stream, dropped)
    slowest = 0.0
    for number in range(2_000):
        before = time.perf_counter()
        writer.write(f"{number} {'x' * 490}\n")
        slowest = max(slowest, time.perf_counter() - before)
    assert slowest < 10.0
    before = time.perf_counter()
    writer.close(0.3)
    assert time.perf_counter() - before < 10.0
    assert not writer._thread.is_alive()
    stream.close()
    written = reader.read().decode().splitlines()
    numbers = [int(line.split()[0]) for line in written if len(line) > 490]
    assert numbers == list(range(len(numbers)))  # the first ones, without a hole
    assert 50_000 <= len(numbers) * 500 <= 100_000  # what the pipe holds, 64 KiB
    # Where the queue was half free for a moment, the line that tells of the gap is one of the lines that were lost.
    assert dropped.total - (2_000 - len(numbers)) in {0, 1}
    assert dropped.threads == {"log-writer"}


def test_a_reader_that_comes_back_sees_how_much_is_missing_and_where(pipe):
    reader, stream = pipe
    dropped = Dropped()
    writer = writer_to(stream, dropped)
    for number in range(1_000):
        writer.write(f"{number} {'x' * 490}\n")
    first = reader.read(1)  # what is waiting follows
    while writer._waiting > 10_000:
        first += reader.read1(65_536)
    writer.write("after\n")
    closing = threading.Thread(target=writer.close, args=(5.0,))
    closing.start()
    while not first.endswith(b"after\n"):
        first += reader.read1(65_536)
    closing.join()
    *before, gap, after = first.decode().splitlines()
    assert gap == f"gap {1_000 - len(before)}"
    assert after == "after"
    assert dropped.total == 1_000 - len(before)


def test_a_queue_that_was_full_takes_nothing_until_half_of_it_is_free():
    class Gate(io.StringIO):
        passes = threading.Semaphore(0)

        def write(self, text):
            self.passes.acquire()
            return super().write(text)

    stream = Gate()
    writer = writer_to(stream, Dropped(), capacity=100)
    while_full = [writer.write(f"{number:09d}\n") for number in range(15)]
    assert while_full == [None] * 15
    for _ in range(3):
        stream.passes.release()
    while writer._waiting > 70:
        time.sleep(0.001)
    writer.write("too early\n")
    for _ in range(100):
        stream.passes.release()
    while writer._waiting:
        time.sleep(0.001)
    writer.write("in time\n")
    writer.close(5)
    lines = stream.getvalue().splitlines()
    assert lines[:10] == [f"{number:09d}" for number in range(10)]
    assert lines[10:] == ["gap 6", "in time"]


def test_a_finalizer_that_logs_while_the_queue_is_locked_does_not_hang():
    stream = io.StringIO()
    writer = writer_to(stream, Dropped())
    with writer._changed:
        writer.write("from a finalizer\n")
    writer.close(5)
    assert stream.getvalue() == "from a finalizer\n"


def test_a_stream_that_refuses_and_recovers_goes_on_with_a_gap_line():
    class Disk(io.StringIO):
        full = True

        def write(self, text):
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    stream, dropped = Disk(), Dropped()
    writer = writer_to(stream, dropped)
    writer.write("one\n")
    writer.write("two\n")
    while dropped.total < 2:
        time.sleep(0.001)
    stream.full = False
    writer.write("three\n")
    writer.close(5)
    assert stream.getvalue() == "gap 2\nthree\n"


def test_a_reader_that_left_costs_lines_only(pipe):
    reader, stream = pipe
    dropped = Dropped()
    writer = writer_to(stream, dropped)
    reader.close()
    for _ in range(10):
        writer.write("lost\n")
    writer.close(5)
    assert dropped.total >= 10  # and the lines that tell of the gap


def test_the_writer_keeps_its_own_descriptor(pipe):
    reader, stream = pipe
    writer = writer_to(stream, Dropped())
    stream.close()  # the number can be another file's from now on
    writer.write("still here\n")
    writer.close(5)
    assert reader.read() == b"still here\n"


def test_a_line_after_the_end_is_dropped(pipe):
    reader, stream = pipe
    writer = writer_to(stream, Dropped())
    writer.close(5)
    writer.write("late\n")
    stream.close()
    assert reader.read() == b""


def test_a_failing_drop_counter_does_not_end_the_writer():
    def broken(lines):
        raise RuntimeError(lines)

    class Refusing(io.StringIO):
        refuse = True

        def write(self, text):
            if self.refuse:
                raise ValueError("I/O operation on closed file")
            return super().write(text)

    stream = Refusing()
    writer = writer_to(stream, broken)
    writer.write("lost\n")
    while writer._waiting:
        time.sleep(0.001)
    stream.refuse = False
    writer.write("kept\n")
    writer.close(5)
    assert stream.getvalue() == "gap 1\nkept\n"


# Stacks of all threads


def test_stacks_of_all_threads_are_told_one_line_each(log):
    stuck, leave = threading.Event(), threading.Event()

    def wait_for_godot():
        stuck.set()
        leave.wait()

    thread = threading.Thread(target=wait_for_godot, name="handler-3")
    thread.start()
    stuck.wait()
    dump_stacks(structlog.get_logger(), "consumer stands still")
    leave.set()
    thread.join()
    lines = {line["thread"]: line for line in log.lines()}
    assert {line["event"] for line in lines.values()} == {"Thread stack"}
    assert {line["reason"] for line in lines.values()} == {"consumer stands still"}
    assert "wait_for_godot" in lines["handler-3"]["stack"]
    assert "dump_stacks" in lines["MainThread"]["stack"]
    assert lines["handler-3"]["threads"] == len(lines)


# For people


def test_console_lines_are_short_and_safe():
    line = render(
        {"request_id": "r-1", "text": "two words", "bad": "\x1b[2J\x9b31m\r\nfake", "partition": 0, "list": [1, "a"]},
        event="Tried\x1b[31m",
        console=True,
    )
    assert line == (
        '22:13:20.250 info     Tried\\u001b[31m  request_id=r-1 text="two words" '
        'bad="\\u001b[2J\\u009b31m\\r\\nfake" partition=0 list=[1, "a"]\n'
    )


def test_console_shows_a_traceback_as_a_block():
    line = render({"exc_info": ValueError("bad \x1b[0m\nthing")}, console=True)
    assert line.splitlines()[1:] == ["    ValueError: bad \\u001b[0m", "    thing"]


# A process of its own with real pipes


def run(code, *, stdout=subprocess.PIPE, timeout=30):
    source = "import structlog\nfrom gigaoffice_worker.observe.logs import configure\n" + code
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", source], cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True,
        timeout=timeout, check=False,
    )  # fmt: skip


def parsed(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_last_lines_are_written_when_nobody_closes_the_sink():
    done = run("configure('INFO', 'auto')\nfor n in range(2000): structlog.get_logger().info('Counted', n=n)")
    assert [line["n"] for line in parsed(done)] == list(range(2000))
    assert (done.returncode, done.stderr) == (0, "")


def test_what_was_printed_before_comes_before():
    done = run("print('first')\nconfigure('INFO', 'json')\nstructlog.get_logger().info('Second')")
    assert done.stdout.splitlines()[0] == "first"


def test_what_ends_the_process_or_a_thread_is_a_log_line():
    done = run(
        "import threading, gc\n"
        "configure('INFO', 'json')\n"
        "class Bad:\n    def __del__(self): raise OSError('in del')\n"
        "def fail(): raise KeyError('in thread')\n"
        "Bad(); gc.collect()\n"
        "t = threading.Thread(target=fail, name='consumer'); t.start(); t.join()\n"
        "raise RuntimeError('in main')\n"
    )
    finalizer, thread, process = parsed(done)
    assert (finalizer["level"], finalizer["error"]) == ("error", "in del")
    assert (thread["event"], thread["thread"]) == ("Unexpected error ended a thread", "consumer")
    assert (thread["level"], thread["error_type"]) == ("critical", "KeyError")
    assert (process["event"], process["error"]) == ("Unexpected error ended the process", "in main")
    assert (done.returncode, done.stderr) == (1, "")


def test_a_full_disk_neither_raises_nor_holds():
    with Path("/dev/full").open("w") as full:
        done = run(
            "import sys, time\n"
            "dropped = []\n"
            "sink = configure('INFO', 'json', on_dropped=dropped.append)\n"
            "for n in range(1000): structlog.get_logger().info('Counted', n=n)\n"
            "sink.close(5)\n"
            "print(sum(dropped), file=sys.stderr)\n",
            stdout=full,
        )
    assert done.returncode == 0
    assert int(done.stderr) >= 1000


def test_a_closed_reader_neither_raises_nor_holds():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        done = run(
            "import sys\n"
            "dropped = []\n"
            "sink = configure('INFO', 'json', on_dropped=dropped.append)\n"
            "for n in range(1000): structlog.get_logger().info('Counted', n=n)\n"
            "sink.close(5)\n"
            "print(sum(dropped), file=sys.stderr)\n",
            stdout=stream,
        )
    assert done.returncode == 0
    assert int(done.stderr) >= 1000


def test_a_stalled_reader_holds_neither_the_process_nor_its_end():
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream, os.fdopen(reading, "rb"):
        done = run(
            "import sys, time\n"
            "dropped = []\n"
            "sink = configure('INFO', 'json', on_dropped=dropped.append)\n"
            "log = structlog.get_logger(); slowest = 0\n"
            "for n in range(30000):\n"
            "    t = time.perf_counter(); log.info('Counted', n=n, text='x' * 300)\n"
            "    slowest = max(slowest, time.perf_counter() - t)\n"
            "t = time.perf_counter(); sink.close(0.5)\n"
            "print(slowest, time.perf_counter() - t, sum(dropped), file=sys.stderr)\n",
            stdout=stream,
        )
    slowest, closing, dropped = map(float, done.stderr.split())
    assert done.returncode == 0
    assert slowest < 10.0
    assert closing < 10.0
    assert 10_000 < dropped < 30_000


def test_standard_output_that_is_closed_from_the_start_does_no_harm():
    code = (
        "import sys\nsys.stdout.close()\nsink = configure('INFO', 'auto')\nstructlog.get_logger().info('Nobody')\n"
        "sink.close(2)\nprint('done', file=sys.stderr)"
    )
    done = run(code)
    assert (done.returncode, done.stderr.strip()) == (0, "done")


def test_a_process_that_is_interrupted_leaves_no_traceback_in_the_log():
    source = (
        "import signal, structlog, time\nfrom gigaoffice_worker.observe.logs import configure\n"
        # Python leaves the signal ignored where its parent does, as a shell does for what it runs in the background.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "configure('INFO', 'json')\nstructlog.get_logger().info('Up')\ntime.sleep(30)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", source], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert b"Up" in process.stdout.readline()
    # The line is written by another thread: the first signal may come while the process still logs, which must not
    # fail, and so nothing would come of it.
    for _ in range(20):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
            break
    out, err = process.communicate(timeout=10.0)
    assert (out, err) == (b"", b"")
    gc.collect()


def test_a_connection_that_breaks_is_told_by_the_kafka_client_without_a_traceback(log):
    try:
        raise ConnectionResetError("reset by peer")  # noqa: TRY301
    except ConnectionResetError:
        logging.getLogger("kafka.conn").exception("Error receiving network data closing socket")
    (line,) = log.lines()
    assert line["error_type"] == "ConnectionResetError"
    assert line["error"] == "reset by peer"
    assert "traceback" not in line


@pytest.mark.parametrize(
    "message",
    [
        "KAFKA_SASL_PASSWORD: must be set, because KAFKA_SASL_MECHANISM is",
        "KAFKA_SASL_PASSWORD and KAFKA_SASL_PASSWORD_FILE: only one of them may be set",
        "KAFKA_SASL_OAUTH_CLIENT_SECRET: must be set, because KAFKA_SASL_MECHANISM is OAUTHBEARER",
        "KAFKA_SSL_PASSWORD_FILE='/none': there is no such file",
    ],
)
def test_redaction_does_not_eat_what_a_message_says_of_a_variable(message):
    line = json.loads(LineFormat().line("error", "Worker stopped", {"error": message}, 0.0))
    assert line["error"].replace(MASK, "/none") == message.replace("'/none'", "'/none'")


@pytest.mark.parametrize("told", ["password: hunter22", "password=must-be-secret", "token: onlyme", "secret:must"])
def test_redaction_still_hides_what_looks_like_those_words(told):
    line = json.loads(LineFormat().line("error", "x", {"error": told}, 0.0))
    assert line["error"].endswith(MASK)


# The level


def test_level_changes_for_loggers_that_are_in_use_already():
    stream = io.StringIO()
    sink = configure("INFO", "json", stream=stream)
    try:
        log, library = structlog.get_logger("early"), logging.getLogger("some.library")
        log.info("one")
        log.debug("not told")
        sink.set_level("debug")
        log.debug("two")
        library.debug("three")
        assert sink.level == "DEBUG"
        assert logging.getLogger("kafka").level == logging.INFO  # below that it tells passwords
        sink.set_level("ERROR")
        log.warning("not told")
        library.warning("not told")
        log.error("four")
        with pytest.raises(ValueError, match="is no level"):
            sink.set_level("LOUD")
    finally:
        sink.close()
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line.get("message", line["event"]) for line in told] == ["one", "two", "three", "four"]
