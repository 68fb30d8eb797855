"""What makes a listener of the tests' brokers speak TLS, or ask for a login."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

AUTHORIZED = {"authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer"}
"""The brokers permit what is allowed, and nothing else."""
_MODULES = "org.apache.kafka.common.security"


def with_tls(listener: str, certificate: str, key: str) -> dict[str, str]:
    """Return the properties of a listener that shows this certificate; both are paths of PEM files."""
    prefix = f"listener.name.{listener}.ssl.keystore"
    return {
        f"{prefix}.type": "PEM",
        f"{prefix}.certificate.chain": Path(certificate).read_text(),
        f"{prefix}.key": Path(key).read_text(),
    }


def with_login(listener: str, mechanisms: Iterable[str], **users: str) -> dict[str, str]:
    """Return the properties of a listener that asks for a login.

    `users` are names with their passwords, for PLAIN alone: a user of SCRAM is no property, see `scram_user`.
    """
    prefix, offered = f"listener.name.{listener}", list(mechanisms)
    known = "".join(f' user_{name}="{password}"' for name, password in users.items())
    found = {f"{prefix}.sasl.enabled.mechanisms": ",".join(offered)}
    for mechanism in offered:
        asked = f"plain.PlainLoginModule required{known}" if mechanism == "PLAIN" else "scram.ScramLoginModule required"
        found[f"{prefix}.{mechanism.lower()}.sasl.jaas.config"] = f"{_MODULES}.{asked};"
    return found


def scram_user(name: str, password: str, *mechanisms: str) -> list[str]:
    """Return the options that lay down a user where a cluster's storage is made; without mechanisms, SCRAM-SHA-256."""
    user = f"[name={name},password={password}]"
    return [word for each in mechanisms or ("SCRAM-SHA-256",) for word in ("--add-scram", f"{each}={user}")]
