"""Tokens by client credentials, from an endpoint that is really asked; and how long one is kept."""

from __future__ import annotations

import json
import threading

import pytest
from kafka.errors import KafkaConnectionError, SaslAuthenticationFailedError

from gigaoffice_worker.broker.oauth import TokenProvider, TokenSource
from gigaoffice_worker.config import load
from gigaoffice_worker.core.errors import AccessError, ConfigurationError, UnreachableError
from tests.support.tokens import TokenEndpoint


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def endpoint():
    with TokenEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
def clock() -> Clock:
    return Clock()


def source(endpoint: TokenEndpoint, clock: Clock, **other: str) -> TokenSource:
    return TokenSource(load(endpoint.settings(**other)).kafka, clock)


def test_one_token_serves_until_a_fifth_of_its_life_is_left(endpoint, clock) -> None:
    endpoint.lifetime = 100
    tokens = source(endpoint, clock)
    first = tokens.token()
    clock.now += 79
    assert tokens.token() == first
    assert len(endpoint.asked) == 1
    clock.now += 2
    tokens.token()
    assert len(endpoint.asked) == 2


def test_a_wall_clock_that_is_wrong_changes_nothing(endpoint, clock, monkeypatch) -> None:
    tokens = source(endpoint, clock)
    tokens.token()
    monkeypatch.setattr("time.time", lambda: 4e9)
    for _ in range(60):
        tokens.token()
    assert len(endpoint.asked) == 1


def test_scope_is_asked_for_and_credentials_are_encoded_as_the_standard_says(endpoint, clock) -> None:
    assert source(endpoint, clock, KAFKA_SASL_OAUTH_SCOPE="kafka write").token()
    assert endpoint.asked == [{"grant_type": ["client_credentials"], "scope": ["kafka write"]}]


def test_a_rotated_secret_is_read_again(endpoint, clock, tmp_path) -> None:
    file = tmp_path / "secret"
    file.write_text("old\n")
    settings = {
        **endpoint.settings(),
        "KAFKA_SASL_OAUTH_CLIENT_SECRET": "",
        "KAFKA_SASL_OAUTH_CLIENT_SECRET_FILE": str(file),
    }
    tokens = TokenSource(load(settings).kafka, clock)
    with pytest.raises(AccessError, match=r"401 \(invalid_client: unknown client\)"):
        tokens.token()
    file.write_text(f"{endpoint.secret}\n")
    clock.now += 3
    assert tokens.token()


def test_a_failure_is_not_asked_about_again_at_once(endpoint, clock) -> None:
    endpoint.answer = (503, {}, b"")
    tokens = source(endpoint, clock)
    for _ in range(10):
        with pytest.raises(UnreachableError, match="answers 503"):
            tokens.token()
    assert len(endpoint.asked) == 1
    endpoint.answer = None
    clock.now += 2.1
    assert tokens.token()


@pytest.mark.parametrize(
    "status, headers, body, error",
    [
        (400, {}, b'{"error": "invalid_scope"}', AccessError),
        (403, {}, b"<html>", AccessError),
        (404, {}, b"", ConfigurationError),
        (429, {}, b"", UnreachableError),
        (500, {}, b"", UnreachableError),
        (302, {"Location": "http://127.0.0.1:1/elsewhere"}, b"", ConfigurationError),
        (200, {}, b"<html>", ConfigurationError),
        (200, {}, b"[]", ConfigurationError),
        (200, {}, b'{"access_token": ""}', ConfigurationError),
        (200, {}, b'{"access_token": "a\\u0001auth=Bearer b"}', ConfigurationError),
        (200, {}, b'{"access_token": "a", "token_type": "mac"}', ConfigurationError),
        (200, {}, b'{"access_token": "a"' + b" " * 100_000 + b"}", ConfigurationError),
    ],
)
def test_an_answer_that_is_no_token_is_told_as_whose_fault_it_is(endpoint, clock, status, headers, body, error) -> None:
    endpoint.answer = (status, headers, body)
    with pytest.raises(error) as told:
        source(endpoint, clock).token()
    assert endpoint.address in str(told.value)
    assert told.value.hint


@pytest.mark.parametrize("lifetime", [None, "soon", "60", 0, -5, 1e300])
def test_an_odd_lifetime_still_gives_a_token(endpoint, clock, lifetime) -> None:
    endpoint.answer = (200, {}, json.dumps({"access_token": "abc", "expires_in": lifetime}).encode())
    assert source(endpoint, clock).token() == "abc"


def test_an_endpoint_that_is_not_there_is_unreachable(clock) -> None:
    with TokenEndpoint() as endpoint:
        settings = endpoint.settings(KAFKA_SASL_OAUTH_TOKEN_URL="http://127.0.0.1:1/token")
    with pytest.raises(UnreachableError, match="cannot be reached: connection refused"):
        TokenSource(load(settings).kafka, clock).token()


def test_threads_that_log_in_at_once_share_one_question(endpoint, clock) -> None:
    tokens = source(endpoint, clock)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(tokens.token())) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(endpoint.asked) == 1


def test_the_client_hears_of_failures_in_its_own_errors(endpoint, clock) -> None:
    endpoint.answer = (401, {}, b"")
    with pytest.raises(SaslAuthenticationFailedError, match="answers 401"):
        TokenProvider(source(endpoint, clock)).token()
    endpoint.answer = (502, {}, b"")
    with pytest.raises(KafkaConnectionError, match="answers 502"):
        TokenProvider(source(endpoint, clock)).token()


# The configuration


def wrong(**environment: str) -> str:
    with pytest.raises(ConfigurationError) as told:
        load(environment)
    return str(told.value)


def test_each_mechanism_says_what_it_lacks() -> None:
    told = wrong(KAFKA_SASL_MECHANISM="OAUTHBEARER")
    for name in ("TOKEN_URL", "CLIENT_ID", "CLIENT_SECRET"):
        assert f"KAFKA_SASL_OAUTH_{name}: must be set, because KAFKA_SASL_MECHANISM is OAUTHBEARER" in told
    assert "PASSWORD" not in told
    told = wrong(KAFKA_SASL_MECHANISM="AWS_MSK_IAM")
    assert "KAFKA_SASL_AWS_REGION: must be set" in told
    assert "KAFKA_USE_SSL=false: must be true" in told


@pytest.mark.parametrize(
    "address", ["ftp://a/b", "tokens", "https://", "https://user@host/", "https://a b/", "http://a:x/"]
)
def test_an_address_that_is_none_is_refused(address, endpoint) -> None:
    assert "KAFKA_SASL_OAUTH_TOKEN_URL" in wrong(**endpoint.settings(KAFKA_SASL_OAUTH_TOKEN_URL=address))


def test_a_secret_that_is_sent_readable_is_warned_of(endpoint) -> None:
    assert any("KAFKA_SASL_OAUTH_TOKEN_URL without TLS" in each for each in load(endpoint.settings()).warnings)
