"""Logins with the password of the moment, and the notice taken of refused ones."""

from __future__ import annotations

import logging

import pytest
from kafka.errors import SaslAuthenticationFailedError
from kafka.sasl import get_sasl_mechanism

from gigaoffice_worker.broker.connection_log import LoginWatch
from gigaoffice_worker.broker.security import Password, log_in_late
from gigaoffice_worker.config import load

CONNECTION = "<BrokerConnection client_id=x, node_id=1 host=h:9092 <authenticating> [IPv4 ('127.0.0.1', 9092)]>"
SASL = {"KAFKA_SASL_USERNAME": "worker"}


def mechanism(name, file):
    kafka = load({**SASL, "KAFKA_SASL_MECHANISM": name, "KAFKA_SASL_PASSWORD_FILE": str(file)}).kafka
    log_in_late()
    return get_sasl_mechanism(name)(
        host="h", sasl_mechanism=name, sasl_plain_username="worker", sasl_plain_password=Password(kafka)
    )


def test_a_connection_that_is_made_before_a_rotation_logs_in_with_the_new_password(tmp_path):
    file = tmp_path / "password"
    file.write_text("old\n")
    login = mechanism("PLAIN", file)
    assert not login.is_done()
    file.write_text("new\n")
    assert login.auth_bytes() == b"worker\0worker\0new"
    login.receive(b"")
    assert login.is_done()
    assert login.is_authenticated()
    assert login.auth_details() == "Authenticated as worker via SASL / Plain"


@pytest.mark.parametrize("name", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_scram_login_speaks_as_the_client_does(tmp_path, name):
    file = tmp_path / "password"
    file.write_text("old")
    login = mechanism(name, file)
    assert login.auth_bytes().startswith(b"n,,n=worker,r=")
    assert not login.is_done()


def test_a_password_file_that_is_gone_refuses_the_login_and_is_named(tmp_path):
    file = tmp_path / "password"
    file.write_text("old")
    login = mechanism("PLAIN", file)
    file.unlink()
    with pytest.raises(SaslAuthenticationFailedError, match=r"KAFKA_SASL_PASSWORD_FILE=.*there is no such file"):
        login.auth_bytes()


@pytest.fixture
def kafka_log():
    log = logging.getLogger("kafka.conn")
    level = log.level
    log.setLevel(logging.INFO)
    yield log
    log.setLevel(level)


def test_a_refused_login_is_known_in_the_brokers_words_until_somebody_is_let_in(kafka_log):
    with LoginWatch(lambda: 0.0) as watch:
        kafka_log.error("%s: Closing connection. %s", CONNECTION, "KafkaConnectionError: reset")
        assert watch.refusal is None
        kafka_log.error("%s: SaslAuthenticate error: %s (%s)", CONNECTION, "SaslAuthenticationFailedError", "no")
        kafka_log.error("%s: Closing connection. %s", CONNECTION, "SaslAuthenticationFailedError: no")
        assert watch.refusal == "SaslAuthenticate error: SaslAuthenticationFailedError (no)"
        kafka_log.info("%s: %s", CONNECTION, "Authenticated as worker via SASL / Plain")
        assert watch.refusal is None
    kafka_log.error("%s: SaslAuthenticate error: %s (%s)", CONNECTION, "SaslAuthenticationFailedError", "no")
    assert watch.refusal is None


def test_a_refusal_that_is_not_repeated_is_forgotten_even_if_successes_are_not_logged(kafka_log):
    now = [0.0]
    with LoginWatch(lambda: now[0]) as watch:
        kafka_log.error("%s: Closing connection. %s", CONNECTION, "UnsupportedSaslMechanismError: x")
        now[0] = 29.0
        assert watch.refusal == "UnsupportedSaslMechanismError: x"
        now[0] = 31.0
        assert watch.refusal is None
