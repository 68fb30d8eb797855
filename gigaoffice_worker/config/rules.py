"""What no single variable can tell: problems that forbid a start, and warnings that do not.

`Values` maps a variable's name to its value, None where it is unset; a variable whose own text was wrong is missing,
and a rule that needs it stays silent, because that problem is reported already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Final

from gigaoffice_worker.config import values as kinds
from gigaoffice_worker.config.files import file_trouble
from gigaoffice_worker.config.model import VARIABLES

Values = Mapping[str, Any]

ROLES: Final = ("REQUESTS", "RESPONSES", "DLQ")
OUR_PREFIXES: Final = ("KAFKA_TOPIC_", "KAFKA_CONSUMER_", "KAFKA_PRODUCER_", "WORKER_")
LONGEST_SHOWN: Final = 100
OAUTH: Final = ("KAFKA_SASL_OAUTH_TOKEN_URL", "KAFKA_SASL_OAUTH_CLIENT_ID", "KAFKA_SASL_OAUTH_CLIENT_SECRET")
TLS_FILES: Final = ("KAFKA_SSL_CAFILE", "KAFKA_SSL_CERTFILE", "KAFKA_SSL_KEYFILE")


def problems(values: Values) -> Iterator[str]:
    """Yield every contradiction between values, each naming its variables and what is allowed."""
    yield from _topics(values)
    yield from _sasl(values)
    yield from _tls(values)
    yield from _intervals(values)


def _topics(values: Values) -> Iterator[str]:
    seen: dict[str, str] = {}
    for variable in (f"KAFKA_TOPIC_{role}" for role in ROLES):
        name = values[variable]
        if trouble := kinds.topic_name_trouble(name):
            yield f"{variable}={short(name)}: {trouble}"
        if name in seen:
            yield f"{variable}={short(name)}: must differ from {seen[name]}"
        seen[name] = variable
        partitions = values.get(f"{variable}_PARTITIONS", 1)
        if trouble := kinds.partitions_trouble(name, partitions):
            yield f"{variable}_PARTITIONS={partitions}: {trouble}"
        replication = values.get(f"{variable}_REPLICATION", 1)
        if trouble := kinds.replication_trouble(name, replication):
            yield f"{variable}_REPLICATION={replication}: {trouble}"


def _sasl(values: Values) -> Iterator[str]:
    mechanism = values.get("KAFKA_SASL_MECHANISM")
    if mechanism == "AWS_MSK_IAM":
        yield from _needed(mechanism, ("KAFKA_SASL_AWS_REGION",), values)
        if values.get("KAFKA_USE_SSL") is False:
            yield "KAFKA_USE_SSL=false: must be true, because KAFKA_SASL_MECHANISM is AWS_MSK_IAM"
    elif mechanism == "OAUTHBEARER":
        yield from _needed(mechanism, OAUTH, values)
        path = values.get("KAFKA_SASL_OAUTH_CAFILE")
        if path and (trouble := file_trouble(path)):
            yield f"KAFKA_SASL_OAUTH_CAFILE={path!r}: {trouble}"
    else:
        yield from _together(("KAFKA_SASL_MECHANISM", "KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD"), values)


def _needed(mechanism: str, names: tuple[str, ...], values: Values) -> Iterator[str]:
    for name in names:
        if name in values and values[name] is None:
            yield f"{name}: must be set, because KAFKA_SASL_MECHANISM is {mechanism}"


def _together(names: tuple[str, ...], values: Values) -> Iterator[str]:
    """Yield a problem for each unset name if any other one is set, rightly or wrongly."""
    given = [name for name in names if name not in values or values[name] is not None]
    if given:
        for name in names:
            if name not in given:
                yield f"{name}: must be set, because {' and '.join(given)} {'is' if len(given) == 1 else 'are'}"


def _tls(values: Values) -> Iterator[str]:
    if not values.get("KAFKA_USE_SSL"):
        return
    yield from _together(("KAFKA_SSL_CERTFILE", "KAFKA_SSL_KEYFILE"), values)
    for name in TLS_FILES:
        path = values.get(name)
        if path and (trouble := file_trouble(path)):
            yield f"{name}={path!r}: {trouble}"


def _intervals(values: Values) -> Iterator[str]:
    heartbeat = values.get("KAFKA_CONSUMER_HEARTBEAT_INTERVAL_MS")
    session = values.get("KAFKA_CONSUMER_SESSION_TIMEOUT_MS")
    poll = values.get("KAFKA_CONSUMER_MAX_POLL_INTERVAL_MS")
    if heartbeat and session and heartbeat >= session:
        yield (
            f"KAFKA_CONSUMER_HEARTBEAT_INTERVAL_MS={heartbeat}: "
            f"must be less than KAFKA_CONSUMER_SESSION_TIMEOUT_MS={session}"
        )
    if session and poll and session > poll:
        yield (
            f"KAFKA_CONSUMER_SESSION_TIMEOUT_MS={session}: "
            f"must not be more than KAFKA_CONSUMER_MAX_POLL_INTERVAL_MS={poll}"
        )


def warnings(values: Values, names: Mapping[str, str]) -> Iterator[str]:
    """Yield what works but deserves a second look; `names` are all variables of the environment that are not empty."""
    yield from _weak_security(values)
    yield from _weak_delivery(values)
    yield from _unknown(names)


def _weak_security(values: Values) -> Iterator[str]:
    tls = values["KAFKA_USE_SSL"]
    if values["KAFKA_SASL_MECHANISM"] == "PLAIN" and not tls:
        yield "KAFKA_SASL_MECHANISM=PLAIN without TLS sends the password readable; set KAFKA_USE_SSL=true or use SCRAM"
    token_url = values["KAFKA_SASL_OAUTH_TOKEN_URL"]
    if values["KAFKA_SASL_MECHANISM"] == "OAUTHBEARER" and token_url.startswith("http:"):
        yield "KAFKA_SASL_OAUTH_TOKEN_URL without TLS sends the client's secret readable; name an https:// address"
    if not values["KAFKA_SSL_CHECK_HOSTNAME"]:
        yield "KAFKA_SSL_CHECK_HOSTNAME=false accepts any broker that holds a trusted certificate, whatever its host"
    unused = [name for name in TLS_FILES if values[name]]
    if unused and not tls:
        yield f"{', '.join(unused)} without effect, because KAFKA_USE_SSL is false"


def _weak_delivery(values: Values) -> Iterator[str]:
    acks = values["KAFKA_PRODUCER_ACKS"]
    if acks != "all":
        lost = ", and a response can be lost unseen" if acks == "0" else ""
        yield f"KAFKA_PRODUCER_ACKS={acks}: after a broker fault responses can come twice or out of order{lost}"
    if values["KAFKA_CONSUMER_ENABLE_AUTO_COMMIT"]:
        yield (
            "KAFKA_CONSUMER_ENABLE_AUTO_COMMIT=true has no effect: it would commit requests that are not finished; "
            "the worker commits what it has answered"
        )
    if values["WORKER_REBALANCE_WAIT"] * 1000 >= values["KAFKA_CONSUMER_MAX_POLL_INTERVAL_MS"]:
        yield (
            "WORKER_REBALANCE_WAIT is not below KAFKA_CONSUMER_MAX_POLL_INTERVAL_MS: "
            "a rebalance that waits so long loses its partitions"
        )


def _unknown(names: Mapping[str, str]) -> Iterator[str]:
    known = {each.name for each in VARIABLES} | {each.twin for each in VARIABLES if each.secret}
    for name in sorted(names.keys() - known):
        if name.startswith(OUR_PREFIXES):
            nearest = get_close_matches(name, known, n=1)
            meant = f"; did you mean {nearest[0]}?" if nearest else ""
            yield f"{name} is not a variable of this worker and has no effect{meant}"


def short(text: str) -> str:
    """Quote a text for a message, the first characters of it if it is long."""
    return repr(text) if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]!r}..."
