"""AWS_MSK_IAM: a login that is signed with the credentials that AWS's own tools would find (extra `aws`)."""

from __future__ import annotations

from typing import Any

from kafka.errors import SaslAuthenticationFailedError
from kafka.sasl.abc import SaslMechanism
from kafka.sasl.msk import AwsMskIamClient

from gigaoffice_worker.core.errors import ConfigurationError


def login_of(region: str) -> type[SaslMechanism]:
    """Return the mechanism for brokers of a region. Raises ConfigurationError where the extra is not installed."""
    try:
        from botocore.session import Session  # noqa: PLC0415  # optional
    except ImportError as error:
        raise ConfigurationError(
            "KAFKA_SASL_MECHANISM=AWS_MSK_IAM: the package botocore is not installed",
            hint="pip install 'gigaoffice-worker[aws]'",
        ) from error
    session = Session()

    class Login(SaslMechanism):  # type: ignore[misc]  # the client ships no types
        """One login: the signature goes out, and the broker's answer says whether it holds."""

        def __init__(self, *, host: str, **_config: Any) -> None:
            self._host = host
            self._answer: bytes | None = None

        def auth_bytes(self) -> bytes:
            found = session.get_credentials()  # the session renews those that expire
            if found is None:
                raise SaslAuthenticationFailedError("AWS_MSK_IAM: no credentials in AWS's usual places")
            keys = found.get_frozen_credentials()
            return bytes(
                AwsMskIamClient(self._host, keys.access_key, keys.secret_key, region, keys.token).first_message()
            )

        def receive(self, auth_bytes: bytes) -> None:
            self._answer = auth_bytes

        def is_done(self) -> bool:
            return self._answer is not None

        def is_authenticated(self) -> bool:
            return bool(self._answer)

        def auth_details(self) -> str:
            return "Authenticated via SASL / AWS_MSK_IAM"

    return Login
