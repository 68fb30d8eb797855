"""OAUTHBEARER: a real broker that checks signed tokens, and a token endpoint that is really asked."""

from __future__ import annotations

import pytest

from tests.conftest import TopicSet
from tests.support.releases import OwnKafka
from tests.support.scene import Scene, ask
from tests.support.tokens import TokenEndpoint
from tests.support.workers import run_command

BEARER = "org.apache.kafka.common.security.oauthbearer"
VALIDATOR = f"{BEARER}.OAuthBearerValidatorCallbackHandler"
LISTENER = "listener.name.oauth"


@pytest.fixture(scope="module")
def place():
    with TokenEndpoint() as endpoint:
        properties = {
            f"{LISTENER}.sasl.enabled.mechanisms": "OAUTHBEARER",
            f"{LISTENER}.oauthbearer.sasl.jaas.config": f"{BEARER}.OAuthBearerLoginModule required;",
            f"{LISTENER}.oauthbearer.sasl.server.callback.handler.class": VALIDATOR,
            f"{LISTENER}.sasl.oauthbearer.jwks.endpoint.url": f"{endpoint.address}/keys",
            f"{LISTENER}.sasl.oauthbearer.expected.audience": "kafka",
            f"{LISTENER}.sasl.oauthbearer.expected.issuer": "test",
            # A connection lives no longer than the token that it was made with.
            "connections.max.reauth.ms": "3600000",
        }
        allowed = f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={endpoint.address}/keys"
        with OwnKafka(
            listeners={"OAUTH": "SASL_PLAINTEXT", "OPEN": "PLAINTEXT"}, properties=properties, java_options=[allowed]
        ) as cluster:
            yield cluster, endpoint


@pytest.fixture
def scene(place, request, tmp_path):
    cluster, endpoint = place
    endpoint.answer, endpoint.lifetime = None, 3600.0
    name = request.node.name.removeprefix("test_")[:40]
    topics = TopicSet(f"{name}-requests", f"{name}-responses", f"{name}-dlq", name)
    login = endpoint.settings(KAFKA_BOOTSTRAP_SERVERS=cluster.bootstrap("OAUTH"))
    with Scene(cluster.bootstrap("OPEN"), topics, tmp_path, **login) as scene:
        yield scene


def test_worker_answers_with_tokens_and_all_of_its_clients_share_one(place, scene):
    _, endpoint = place
    before = len(endpoint.asked)
    worker = scene.make().ready()
    scene.send(ask("r-1"))
    scene.wait_responses(1)
    assert worker.stop() == 0
    assert len(endpoint.asked) == before + 1


def test_worker_outlives_its_token(place, scene):
    _, endpoint = place
    endpoint.lifetime = 6.0
    before = len(endpoint.asked)
    worker = scene.make().ready()
    worker.wait_until(lambda: len(endpoint.asked) >= before + 4, 60, "the token to be renewed")
    scene.send(*(ask(f"r-{number}") for number in range(20)))
    scene.wait_responses(20)
    assert worker.stop() == 0


def test_endpoint_that_fails_for_a_while_is_survived(place, scene):
    _, endpoint = place
    endpoint.lifetime = 4.0
    worker = scene.make().ready()
    endpoint.answer = (503, {}, b"")
    before = len(endpoint.asked)
    worker.wait_until(lambda: len(endpoint.asked) >= before + 3, 60, "the endpoint to be asked again and again")
    scene.send(ask("r-1"))
    endpoint.answer, endpoint.lifetime = None, 3600.0
    scene.wait_responses(1, timeout=60)
    assert worker.stop() == 0


@pytest.mark.parametrize(
    "changed, code, says",
    [
        ({"KAFKA_SASL_OAUTH_CLIENT_SECRET": "wrong"}, 77, "answers 401 (invalid_client: unknown client)"),
        ({"KAFKA_SASL_OAUTH_TOKEN_URL": "http://127.0.0.1:1/token"}, 69, "cannot be reached: connection refused"),
    ],
)
def test_start_without_a_token_ends_with_the_code_that_says_why(scene, changed, code, says):
    patience = {"KAFKA_TOPIC_CREATION_RETRIES": "0", "KAFKA_TOPIC_CREATION_TIMEOUT": "15"}
    done = run_command({**scene.environment, **changed, **patience, "METRICS_PORT": "0"}, "topics")
    assert done.returncode == code, done.stderr
    assert says in done.stderr


def test_token_that_the_broker_does_not_trust_is_an_access_error(scene):
    with TokenEndpoint() as stranger:
        settings = {**scene.environment, "KAFKA_SASL_OAUTH_TOKEN_URL": f"{stranger.address}/token"}
        done = run_command({**settings, "METRICS_PORT": "0"}, "topics")
    assert done.returncode == 77, done.stderr
    assert "invalid_token" in done.stderr or "authentication failed" in done.stderr


def test_check_names_mechanism_and_client_and_never_the_secret(place, scene):
    _, endpoint = place
    done = run_command({**scene.environment, "METRICS_PORT": "0"}, "check")
    assert "OAUTHBEARER as worker:1" in done.stdout
    assert endpoint.secret not in done.stdout + done.stderr
