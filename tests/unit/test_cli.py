from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from gigaoffice_worker import __version__
from gigaoffice_worker.cli import health, main
from gigaoffice_worker.cli.entry import environment_additions
from gigaoffice_worker.cli.health import reachable_host
from gigaoffice_worker.cli.outgoing import read_request, read_requests
from gigaoffice_worker.cli.samples import sample_requests
from gigaoffice_worker.cli.terminal import UsageError
from gigaoffice_worker.config import VARIABLES, load
from tests.support.forked import PATHS
from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
NOBODY = "127.0.0.1:1"  # nothing listens on the first port of all
IMPATIENT = {
    "KAFKA_TOPIC_CREATION_TIMEOUT": "1",
    "KAFKA_TOPIC_CREATION_RETRIES": "1",
    "KAFKA_TOPIC_CREATION_RETRY_DELAY": "0.05",
}


def command(*arguments: str, cwd: Path = ROOT, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in an environment that holds nothing but what it is given."""
    return subprocess.run(
        [sys.executable, "-m", "gigaoffice_worker", *arguments],
        env=clean(environment),
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def clean(environment: dict[str, str]) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": PATHS, "METRICS_PORT": "0", **environment}


def assert_one_message(done: subprocess.CompletedProcess[str], code: int, *told: str) -> None:
    """Check that an expected failure ended as it should: its code, its message, and no traceback anywhere."""
    assert done.returncode == code, done.stderr
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stdout + done.stderr
    for text in told:
        assert text in done.stderr


@pytest.fixture
def silent_server():
    """A server that accepts connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


# Usage


def test_without_a_command_the_help_is_printed_and_the_usage_is_wrong(capsys):
    assert main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    for name in ("run", "check", "topics", "health", "send", "dev"):
        assert f"\n    {name} " in printed.err


@pytest.mark.parametrize(
    "arguments",
    [
        "nonsense",
        "run now",
        "check --offl",
        "topics --force",
        "health --timeout 0",
        "health --timeout soon",
        "send --header nothing x",
        "send --header =value x",
        "send a b",
        "send --file requests.jsonl text",
        "dev --send 0",
        "dev --port many",
        "dev --once",
        "--env-file",
    ],
)
def test_wrong_usage_ends_with_2_and_a_message(arguments):
    done = command(*arguments.split())
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("name", ["", "run", "check", "topics", "health", "send", "dev"])
def test_help_is_printed_for_every_command(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*name.split(), "--help"])
    assert ended.value.code == 0
    assert "--env-file FILE" in capsys.readouterr().out


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"gigaoffice-worker {__version__}\n"


def test_the_console_script_is_this_main():
    assert 'gigaoffice-worker = "gigaoffice_worker.cli:main"' in (ROOT / "pyproject.toml").read_text()


def test_a_command_needs_no_standard_output():
    program = f"{sys.executable} -m gigaoffice_worker check --offline >&-"
    done = subprocess.run(
        ["/bin/sh", "-c", program], env=clean({}), cwd=ROOT, stderr=subprocess.PIPE, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_the_terminal_cannot_show_is_printed_as_an_escape():
    done = command("check", "--offline", PYTHONIOENCODING="ascii", KAFKA_CLIENT_ID="клиент")
    assert done.returncode == 0
    assert "\\u043a" in done.stdout


# The environment file


def test_variables_of_the_file_are_used_and_those_of_the_environment_win(tmp_path):
    file = tmp_path / "worker.env"
    file.write_text("KAFKA_CLIENT_ID=from-file\nKAFKA_CONSUMER_GROUP=from-file\nKAFKA_TOPIC_DLQ=from-file\n")
    environment = {"KAFKA_CLIENT_ID": "from-environment", "KAFKA_TOPIC_DLQ": ""}
    for arguments in (["--env-file", str(file), "check", "--offline"], ["check", "--offline", "--env-file", str(file)]):
        shown = dict(
            line.split()[-2:] for line in command(*arguments, **environment).stdout.splitlines() if "  " in line
        )
        assert shown["KAFKA_CLIENT_ID"] == "from-environment"
        assert shown["KAFKA_CONSUMER_GROUP"] == "from-file"
        assert shown["KAFKA_TOPIC_DLQ"] == "from-file"  # empty counts as unset


def test_a_secret_of_the_environment_wins_over_its_twin_in_the_file():
    found = {"KAFKA_SASL_PASSWORD": "old", "KAFKA_SSL_PASSWORD_FILE": "/run/old", "LOG_LEVEL": "DEBUG"}
    real = {"KAFKA_SASL_PASSWORD_FILE": "/run/new", "KAFKA_SSL_PASSWORD": "new"}
    assert environment_additions(found, real) == {"LOG_LEVEL": "DEBUG"}


def test_no_file_is_read_unasked(tmp_path):
    (tmp_path / ".env").write_text("KAFKA_CLIENT_ID=from-file\n")
    assert "from-file" not in command("check", "--offline", cwd=tmp_path).stdout


@pytest.mark.parametrize("path", ["/no/such/file", ""])
def test_an_environment_file_that_cannot_be_read_is_a_wrong_configuration(path):
    assert_one_message(command("--env-file", path, "run"), 78, f"{path!r}: there is no such file")


def test_an_environment_file_with_what_no_environment_takes_is_a_wrong_configuration(tmp_path):
    file = tmp_path / "worker.env"
    file.write_bytes(b"KAFKA_SASL_PASSWORD=a\0b\n")
    assert_one_message(command("--env-file", str(file), "check", "--offline"), 78, "line 1 is not NAME=value")


def test_an_environment_file_that_never_ends_or_never_begins_is_refused_at_once(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in ("/dev/zero", str(pipe), str(tmp_path)):
        assert_one_message(command("--env-file", path, "run"), 78, path, "must be a regular file")
    huge = tmp_path / "huge.env"
    huge.write_bytes(b"A=" + b"x" * 1_048_577)
    assert_one_message(command("--env-file", str(huge), "run"), 78, "must hold at most 1048576 bytes")


@pytest.mark.parametrize("name", ["run", "check", "topics"])
def test_a_command_in_a_directory_that_was_deleted_says_so(name):
    script = (
        "import os, sys; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); os.execv(sys.argv[1], sys.argv[1:])"
    )
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            [sys.executable, "-c", script, sys.executable, "-m", "gigaoffice_worker", name],
            env=clean({}),
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert_one_message(done, 78, "the working directory was deleted")


# run


def test_run_names_all_wrong_settings_at_once():
    done = command("run", WORKER_CONCURRENCY="many", KAFKA_PRODUCER_ACKS="2", KAFKA_TOPIC_DLQ="a b")
    assert_one_message(done, 78, "3 settings", "WORKER_CONCURRENCY", "KAFKA_PRODUCER_ACKS", "KAFKA_TOPIC_DLQ", "hint: ")
    assert_stopped(done, 78)


def test_run_gives_up_on_a_cluster_that_is_not_there():
    done = command("run", KAFKA_BOOTSTRAP_SERVERS=NOBODY, **IMPATIENT)
    assert_one_message(done, 69, NOBODY, "hint: ")
    assert_stopped(done, 69)


def test_run_gives_up_on_a_cluster_that_does_not_answer(silent_server):
    done = command("run", KAFKA_BOOTSTRAP_SERVERS=silent_server, **IMPATIENT)
    assert_one_message(done, 69, "hint: ")
    assert_stopped(done, 69)


def test_run_says_why_it_stopped_once_where_both_outputs_lead_to_one_place():
    done = subprocess.run(
        [sys.executable, "-m", "gigaoffice_worker", "run"],
        env=clean({"KAFKA_BOOTSTRAP_SERVERS": NOBODY, **IMPATIENT}),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 69
    assert "error: " not in done.stdout
    assert_stopped(done, 69)


def test_run_refuses_a_handler_that_cannot_be_loaded():
    done = command("run", WORKER_HANDLER="no.such:thing")
    assert_one_message(done, 78, "no.such")
    assert_stopped(done, 78)


TAKEN_NAME = """
from prometheus_client import Counter


class Client:
    def __call__(self, request): ...

    def register_metrics(self, registry):
        Counter("gigaoffice_worker_tokens", "Mine.", registry=registry)
"""


def test_run_refuses_a_handler_that_cannot_register_its_metrics(tmp_path):
    (tmp_path / "mine.py").write_text(TAKEN_NAME)
    done = command("run", cwd=tmp_path, WORKER_HANDLER="mine:Client")
    assert_one_message(done, 78, "WORKER_HANDLER mine:Client: it could not register its metrics: Duplicate")
    assert_stopped(done, 78)


def test_run_refuses_a_side_port_that_is_taken(silent_server):
    done = command("run", METRICS_PORT=silent_server.rpartition(":")[2], METRICS_PORT_WAIT="0.3")
    assert_one_message(done, 78, "METRICS_PORT")
    assert_stopped(done, 78)


@pytest.mark.parametrize("directory", ["/no/such/directory", "."])
def test_run_ignores_the_metrics_directory_of_another_program_and_says_so(directory, tmp_path):
    done = command("run", cwd=tmp_path, PROMETHEUS_MULTIPROC_DIR=directory, KAFKA_BOOTSTRAP_SERVERS=NOBODY, **IMPATIENT)
    assert_one_message(done, 69)
    warned = [json.loads(line) for line in done.stdout.splitlines() if '"warning"' in line]
    assert [line["variable"] for line in warned if "variable" in line] == ["PROMETHEUS_MULTIPROC_DIR"]
    assert list(tmp_path.iterdir()) == []


def test_run_logs_an_unexpected_error_with_its_traceback_and_without_its_values(tmp_path):
    (tmp_path / "kafka.py").write_text("password = 'a-local-value'\nraise RuntimeError('broken installation')\n")
    done = command("run", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    stopped = assert_stopped(done, 1)
    assert "broken installation" in stopped["error"]
    assert "kafka.py" in stopped["traceback"]
    assert "a-local-value" not in done.stdout + done.stderr


def test_run_never_logs_a_secret():
    secret = "correct horse battery staple"
    environment = {
        "KAFKA_SASL_MECHANISM": "PLAIN",
        "KAFKA_SASL_USERNAME": "worker",
        "KAFKA_SASL_PASSWORD": secret,
        "WORKER_HANDLER": "http",
        "KAFKA_BOOTSTRAP_SERVERS": NOBODY,
        **IMPATIENT,
    }
    done = command("run", LOG_LEVEL="DEBUG", **environment)
    assert done.returncode != 0
    assert secret not in done.stdout + done.stderr
    assert "Configuration warning" in {json.loads(line)["event"] for line in done.stdout.splitlines()}


def test_run_that_is_asked_to_stop_while_it_looks_for_the_cluster_ends_with_0(silent_server):
    environment = clean({"KAFKA_BOOTSTRAP_SERVERS": silent_server, "KAFKA_TOPIC_CREATION_TIMEOUT": "2"})
    with subprocess.Popen(
        [sys.executable, "-m", "gigaoffice_worker", "run"], env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert "Worker starting" in process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait(20) == 0


def assert_stopped(done: subprocess.CompletedProcess[str], code: int) -> dict[str, object]:
    """Check that the log is JSON to its end and says last why the worker stopped; return that line."""
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    (stopped,) = [line for line in lines if line["event"] == "Worker stopped"]
    assert {line["event"] for line in lines[lines.index(stopped) + 1 :]} <= {"Repeated messages left out"}
    assert stopped["exit_code"] == code
    assert stopped["level"] in {"error", "critical"}
    return stopped


# check


def test_check_shows_every_variable_and_marks_what_is_set():
    done = command("check", "--offline", KAFKA_CLIENT_ID="special", KAFKA_PRODUCER_ACKS="1")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    for variable in VARIABLES:
        (line,) = [line for line in lines if line[2:].split("  ")[0] == variable.name]
        assert line.startswith("*") == (variable.name in {"KAFKA_CLIENT_ID", "KAFKA_PRODUCER_ACKS", "METRICS_PORT"})
    assert any(line.startswith("! configuration: KAFKA_PRODUCER_ACKS=1") for line in lines)
    assert lines[-1] == "✓ handler: echo can be loaded"


def test_check_masks_secrets():
    login = {"KAFKA_SASL_MECHANISM": "PLAIN", "KAFKA_SASL_USERNAME": "worker", "KAFKA_SASL_PASSWORD": "swordfish"}
    for arguments in (["check", "--offline"], ["check", "--offline", "--json"]):
        done = command(*arguments, **login)
        assert done.returncode == 0
        assert "********" in done.stdout
        assert "swordfish" not in done.stdout + done.stderr


def test_check_shows_the_settings_although_one_is_wrong():
    done = command("check", "--offline", WORKER_CONCURRENCY="many")
    assert_one_message(done, 78, "WORKER_CONCURRENCY='many'")
    assert "* WORKER_CONCURRENCY " in done.stdout


def test_check_finds_a_handler_that_cannot_be_loaded():
    done = command("check", "--offline", WORKER_HANDLER="no.such:thing")
    assert done.returncode == 78
    assert "✗ handler: " in done.stdout


@pytest.mark.parametrize("close", ["close = True", "def close(self): raise OSError('no socket')"])
def test_check_warns_of_a_handler_that_cannot_be_closed(tmp_path, close):
    (tmp_path / "mine.py").write_text(f"class Client:\n    def __call__(self, request): ...\n    {close}\n")
    done = command("check", "--offline", cwd=tmp_path, WORKER_HANDLER="mine:Client")
    assert (done.returncode, done.stderr) == (0, "")
    assert "! handler: mine:Client can be loaded, but not closed: " in done.stdout


def test_check_finds_a_handler_that_cannot_register_its_metrics(tmp_path):
    (tmp_path / "mine.py").write_text(TAKEN_NAME)
    done = command("check", "--offline", cwd=tmp_path, WORKER_HANDLER="mine:Client")
    assert done.returncode == 78
    assert "✗ handler: WORKER_HANDLER mine:Client: it could not register its metrics: Duplicate" in done.stdout


def test_check_finds_a_handler_in_the_working_directory(tmp_path):
    (tmp_path / "mine.py").write_text("def handle(request):\n    return {}\n")
    assert command("check", "--offline", cwd=tmp_path, WORKER_HANDLER="mine:handle").returncode == 0


def test_check_tells_an_unreachable_cluster_and_skips_what_builds_on_it():
    done = command("check", KAFKA_BOOTSTRAP_SERVERS=f"{NOBODY},127.0.0.1:2", **IMPATIENT)
    assert done.returncode == 69
    steps = done.stdout.splitlines()[-8:]
    assert steps[0].startswith(f"✗ reach {NOBODY}: ")
    assert steps[1].startswith("    ")
    assert [step.split(":")[0] for step in steps[4:]] == ["- authentication", "- brokers", "- topics", "- group"]


def test_check_gives_up_on_a_cluster_that_does_not_answer(silent_server):
    done = command("check", KAFKA_BOOTSTRAP_SERVERS=silent_server, **IMPATIENT)
    assert done.returncode == 69
    assert f"✗ reach {silent_server}: accepts connections but does not answer as Kafka does" in done.stdout


def test_check_as_json_is_one_document():
    done = command("check", "--json", KAFKA_BOOTSTRAP_SERVERS=NOBODY, **IMPATIENT)
    document = json.loads(done.stdout)
    assert {each["name"] for each in document["settings"]} == {variable.name for variable in VARIABLES}
    (reach,) = [each for each in document["findings"] if each["step"] == f"reach {NOBODY}"]
    assert (reach["mark"], reach["exit_code"]) == ("bad", 69)
    assert done.returncode == 69


# topics


def test_topics_gives_up_on_a_cluster_that_is_not_there():
    assert_one_message(command("topics", KAFKA_BOOTSTRAP_SERVERS=NOBODY, **IMPATIENT), 69, NOBODY, "hint: ")


# health


@contextlib.contextmanager
def side_port(host: str = "127.0.0.1", *, ready: bool = True, family: socket.AddressFamily = socket.AF_INET):
    """A server that is live, and ready or not; yields its port."""

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self):
            good = self.path == "/livez" or (self.path == "/readyz" and ready)
            body = f"{self.path} says {'yes' if good else 'no'}\n".encode()
            self.send_response(200 if good else 503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    class Server(HTTPServer):
        address_family = family

    with Server((host, 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield str(server.server_port)
        finally:
            server.shutdown()
            thread.join()


def test_health_prints_what_a_ready_worker_answers():
    with side_port() as port:
        done = command("health", METRICS_PORT=port)
    assert (done.returncode, done.stdout) == (0, "/readyz says yes\n")


def test_health_of_a_worker_that_is_live_but_not_ready():
    with side_port(ready=False) as port:
        ready, live = command("health", METRICS_PORT=port), command("health", "--live", METRICS_PORT=port)
    assert (ready.returncode, ready.stdout) == (1, "/readyz says no\n")
    assert (live.returncode, live.stdout) == (0, "/livez says yes\n")


def test_health_asks_over_loopback_when_the_worker_is_bound_to_every_address():
    with side_port("0.0.0.0") as port:  # noqa: S104  # that is the point
        assert command("health", METRICS_HOST="0.0.0.0", METRICS_PORT=port).returncode == 0  # noqa: S104


def test_health_knows_no_proxy():
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy"), f"http://{NOBODY}")
    with side_port() as port:
        assert command("health", METRICS_PORT=port, **proxies).returncode == 0


def test_health_finds_the_port_that_the_worker_picked(tmp_path):
    with side_port() as port:
        (tmp_path / "port").write_text(f"{port}\n")
        assert command("health", METRICS_PORT="0", RUNTIME_DIRECTORY=str(tmp_path)).returncode == 0


def test_health_without_a_port_file_means_that_no_worker_runs(tmp_path):
    done = command("health", METRICS_PORT="0", RUNTIME_DIRECTORY=str(tmp_path))
    assert_one_message(done, 1, str(tmp_path / "port"))


def test_health_that_cannot_know_the_port_is_a_wrong_configuration():
    assert_one_message(command("health", METRICS_PORT="0"), 78, "RUNTIME_DIRECTORY")


def test_health_without_a_worker():
    assert_one_message(command("health", METRICS_PORT="1"), 1, "http://127.0.0.1:1/readyz", "refused")


def test_health_waits_no_longer_than_it_was_told(silent_server):
    done = command("health", "--timeout", "0.2", METRICS_PORT=silent_server.rpartition(":")[2])
    assert_one_message(done, 1, "timed out")


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"METRICS_HOST": "0.0.0.0", "METRICS_PORT": "8080"},  # noqa: S104
        {"METRICS_HOST": " worker ", "METRICS_PORT": " 0 ", "RUNTIME_DIRECTORY": "/run/a:/run/b"},
        {"METRICS_HOST": "", "METRICS_PORT": "", "RUNTIME_DIRECTORY": ""},
    ],
)
def test_health_reads_the_place_of_the_worker_as_the_configuration_does(given):
    found = load(given).side_port
    assert health.side_port(given) == (found.host, found.port, found.runtime_directory)


@pytest.mark.parametrize("port", ["x", "-1", "65536", "1e3", "²"])
def test_health_of_a_port_that_is_none_is_a_wrong_configuration(port):
    assert_one_message(command("health", METRICS_PORT=port), 78, "METRICS_PORT")


@pytest.mark.parametrize("host", ["a..b", "a b", "ж" * 64])
def test_health_of_a_host_that_can_be_none_is_a_wrong_configuration(host):
    assert_one_message(command("health", METRICS_HOST=host, METRICS_PORT="1"), 78, f"METRICS_HOST={host!r}", "hint: ")


def test_health_loads_nothing_that_it_does_not_need():
    script = "import sys; from gigaoffice_worker.cli import main; main(['health']); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=clean({"METRICS_PORT": "1"}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    loaded = set(done.stdout.split())
    assert "gigaoffice_worker.cli.health" in loaded
    heavy = {"asyncio", "environs", "kafka", "marshmallow", "prometheus_client", "structlog", "waitress"}
    assert loaded & heavy == set()
    assert "gigaoffice_worker.config" not in loaded


def test_an_interrupt_ends_a_command_quietly(silent_server):
    host, _, port = silent_server.rpartition(":")
    del host
    with subprocess.Popen(
        [sys.executable, "-m", "gigaoffice_worker", "health", "--timeout", "60"],
        env=clean({"METRICS_PORT": port}),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        connections = psutil.Process(process.pid).net_connections
        eventually(lambda: any(each.status == psutil.CONN_ESTABLISHED for each in connections()), "it to ask")
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(20) == 130
    assert "Traceback" not in rest
    assert "error" not in rest


@pytest.mark.parametrize(
    "bound, asked",
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),  # noqa: S104  # that is the point
        ("::", "::1"),
        ("[::]", "::1"),
        ("::1", "::1"),
        ("10.1.2.3", "10.1.2.3"),
        ("localhost", "localhost"),
    ],
)
def test_a_worker_is_asked_where_it_can_be_reached_from_this_machine(bound, asked):
    assert reachable_host(bound) == asked


# send


def test_plain_text_becomes_a_query_with_an_id_of_its_own():
    first, second = read_request(" Sum column A\n"), read_request("Sum column A")
    assert json.loads(first.value) == {"query": "Sum column A", "id": first.id}
    assert str(uuid.UUID(first.id)) == first.id
    assert first.id != second.id


def test_an_object_keeps_its_fields_and_its_id():
    request = read_request('{"id": "7", "query": "Größe", "input_data": [1, null]}')
    assert request.id == "7"
    assert request.value == '{"id": "7", "query": "Größe", "input_data": [1, null]}'.encode()


def test_json_that_is_no_object_is_plain_text():
    assert json.loads(read_request("[1, 2]").value)["query"] == "[1, 2]"


@pytest.mark.parametrize(
    "text, told",
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("{query: 1}", "begins like a JSON object"),
        ('{"id": 7}', "id must be a non-empty string"),
        ('{"id": ""}', "id must be a non-empty string"),
        ('{"x": NaN}', "cannot be written as JSON"),
        ('{"x": "\\ud800"}', "cannot be written as JSON"),
    ],
)
def test_what_is_no_request_is_wrong_usage(text, told):
    with pytest.raises(UsageError, match=told):
        read_request(text)


def test_each_wrong_line_is_named_and_the_others_are_read():
    lines = [b"\xef\xbb\xbfone\n", b" \r\n", b"{two\n", b"\xff\n", "drei: größer\n".encode()]
    first, *wrong, last = read_requests(lines)
    assert json.loads(first.value)["query"] == "one"
    assert str(wrong[0]).startswith("line 3: the request begins like a JSON object")
    assert str(wrong[1]) == "line 4: the request is not UTF-8 text"
    assert len(wrong) == 2
    assert json.loads(last.value)["query"] == "drei: größer"


def test_lines_that_cannot_be_read_to_their_end_are_told_behind_those_that_were():
    def lines():
        yield b"one\n"
        raise OSError(errno.EIO, "Input/output error")

    first, wrong = read_requests(lines())
    assert json.loads(first.value)["query"] == "one"
    assert str(wrong) == "what follows line 1 cannot be read: Input/output error"


@pytest.mark.parametrize("arguments", [["@/no/such/file"], ["--file", "/no/such/file"]])
def test_a_file_that_cannot_be_read_is_wrong_usage(arguments):
    assert_one_message(command("send", *arguments), 2, "/no/such/file")


def test_a_file_that_is_no_text_is_wrong_usage(tmp_path):
    (tmp_path / "request").write_bytes(b"\xff\xfe")
    assert_one_message(command("send", f"@{tmp_path / 'request'}"), 2, "UTF-8")


def test_send_gives_up_on_a_cluster_that_is_not_there():
    assert_one_message(command("send", "hello", KAFKA_BOOTSTRAP_SERVERS=NOBODY), 69, NOBODY, "hint: ")


def test_send_gives_up_on_a_cluster_that_does_not_answer(silent_server):
    done = command("send", "--timeout", "1", "hello", KAFKA_BOOTSTRAP_SERVERS=silent_server)
    assert_one_message(done, 69, "hint: ")


def test_sample_requests_are_what_the_api_service_writes():
    requests = list(sample_requests(10))
    assert len({request.id for request in requests}) == 10
    for request in requests:
        payload = json.loads(request.value)
        assert payload["id"] == request.id
        assert {"user_id", "priority", "query", "input_range", "category", "input_data", "created_at"} < payload.keys()


# dev


def test_dev_says_what_is_wrong_before_kafka_is_started():
    done = command("dev", WORKER_CONCURRENCY="many")
    assert_one_message(done, 78, "WORKER_CONCURRENCY")
    assert done.stdout == ""


def test_dev_does_not_look_at_the_secrets_of_another_cluster():
    names = ("KAFKA_SSL_PASSWORD", "KAFKA_SASL_PASSWORD", "KAFKA_SASL_OAUTH_CLIENT_SECRET")
    done = command("dev", WORKER_CONCURRENCY="many", **{f"{name}_FILE": "/no/such/file" for name in names})
    assert_one_message(done, 78, "1 setting is wrong", "WORKER_CONCURRENCY")
