"""Secrets stand in nothing that the worker writes or answers; the workers of all other tests are held to that too."""

from __future__ import annotations

import pytest

from tests.support.scene import ask
from tests.support.services import Service, answers
from tests.support.workers import WorkerProcess

PASSWORD, TOKEN = "swordfish-of-the-seven-seas", "bearer-of-bad-tidings-4711"
PAGES = ("/", "/metrics", "/livez", "/readyz", "/health", "/health/topics", "/status", "/nothing")


def test_secrets_of_a_handler_stay_with_it(scene, tmp_path):
    file = tmp_path / "token"
    file.write_text(TOKEN)
    with Service() as service:
        service.answer = answers(500)
        worker = scene.ready(
            WORKER_HANDLER="http",
            HTTP_HANDLER_URL=service.url,
            HTTP_HANDLER_TOKEN_FILE=str(file),
            WORKER_MAX_ATTEMPTS="1",
            LOG_LEVEL="DEBUG",
        )
        scene.send(ask("1", "k"))
        scene.wait_responses(1)
    for path in PAGES:
        worker.ask(path)
    assert worker.stop() == 0
    assert any(line["level"] == "warning" for line in worker.logs())
    assert {TOKEN} <= worker._secrets
    assert TOKEN.encode() not in b"".join(rec.value or b"" for rec in scene.dead_letters())


def test_password_that_is_refused_is_not_told(kafka_bootstrap, worker):
    login = {"KAFKA_SASL_MECHANISM": "PLAIN", "KAFKA_SASL_USERNAME": "worker", "KAFKA_SASL_PASSWORD": PASSWORD}
    once = {"KAFKA_TOPIC_CREATION_RETRIES": "0", "KAFKA_TOPIC_CREATION_TIMEOUT": "3", "LOG_LEVEL": "DEBUG"}
    refused = worker(**login, **once).start()
    assert refused.wait(30) != 0
    assert refused.logs()


@pytest.mark.parametrize("where", ["out", "err", "answer"])
def test_a_secret_that_is_told_is_found(tmp_path, where):
    worker = WorkerProcess(tmp_path, {"KAFKA_SASL_PASSWORD": PASSWORD})
    worker.check_secrets()
    text = f'{{"event": "Logged in", "with": "{PASSWORD}"}}'
    if where == "answer":
        worker._answers["/status"] = text
    else:
        (worker.log_file if where == "out" else worker.error_file).write_text(text)
    with pytest.raises(AssertionError, match="a secret"):
        worker.check_secrets()
