"""AWS_MSK_IAM: the signature against AWS's own implementation. There is no cluster here to try it on."""

from __future__ import annotations

import datetime as dt
import json
import sys

import pytest

from gigaoffice_worker.broker.msk import login_of
from gigaoffice_worker.core.errors import ConfigurationError

HOST = "b-1.example.kafka.eu-north-1.amazonaws.com"
KEYS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}


@pytest.fixture
def keys(monkeypatch, tmp_path):
    for name, value in {**KEYS, "AWS_CONFIG_FILE": str(tmp_path / "none"), "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    return monkeypatch


@pytest.mark.parametrize("token", ["", "a/session+token=="])
def test_signature_is_the_one_that_awss_own_signer_makes(keys, token) -> None:
    auth = pytest.importorskip("botocore.auth")
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    if token:
        keys.setenv("AWS_SESSION_TOKEN", token)
    login = login_of("eu-north-1")(host=HOST, security_protocol="SASL_SSL")
    said = json.loads(login.auth_bytes())
    assert (said["version"], said["host"], said["action"]) == ("2020_10_22", HOST, "kafka-cluster:Connect")
    assert said["x-amz-credential"].split("/")[2:] == ["eu-north-1", "kafka-cluster", "aws4_request"]

    signer = auth.SigV4QueryAuth(Credentials(*KEYS.values(), token or None), "kafka-cluster", "eu-north-1", expires=900)
    request = AWSRequest("GET", f"https://{HOST}/", params={"Action": "kafka-cluster:Connect"})
    moment = dt.datetime.strptime(said["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
    keys.setattr(auth, "get_current_datetime", lambda *_, **__: moment.replace(tzinfo=None), raising=False)
    signer.add_auth(request)
    expected = dict(part.split("=", 1) for part in request.url.partition("?")[2].split("&"))
    assert said["x-amz-signature"] == expected["X-Amz-Signature"]


def test_signing_key_is_that_of_awss_documentation() -> None:
    msk = pytest.importorskip("kafka.sasl.msk")
    client = msk.AwsMskIamClient(HOST, *KEYS.values(), "us-east-1")
    client.datestamp, client.service = "20150830", "iam"
    expected = "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9"
    assert client._signing_key.hex() == expected


def test_answer_of_the_broker_decides(keys) -> None:
    pytest.importorskip("botocore")
    login = login_of("eu-north-1")(host=HOST)
    assert not login.is_done()
    login.receive(b'{"version":"2020_10_22"}')
    assert login.is_done()
    assert login.is_authenticated()
    refused = login_of("eu-north-1")(host=HOST)
    refused.receive(b"")
    assert refused.is_done()
    assert not refused.is_authenticated()


def test_without_the_extra_it_is_said_what_to_install(monkeypatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "botocore"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "botocore", None)
    with pytest.raises(ConfigurationError, match="botocore is not installed") as told:
        login_of("eu-north-1")
    assert "gigaoffice-worker[aws]" in told.value.hint
