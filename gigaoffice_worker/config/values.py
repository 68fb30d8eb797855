"""From stripped text to value, one function a kind; each raises ValidationError with a sentence for the operator."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from environs import ValidationError

from gigaoffice_worker.core.group_share import Rate

BUILT_IN_HANDLERS: Final = ("echo", "http", "gigachat")
LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
OWN_HEADERS: Final = frozenset({"request-digest", "duplicate-of", "usage"})
LARGEST_NAME: Final = 249
NAME: Final = re.compile(r"[A-Za-z0-9._-]+")
HOST: Final = re.compile(r"[A-Za-z0-9._-]+")
RATE: Final = re.compile(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,8})")
IPV6: Final = re.compile(r"\[[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?\]")


def text(value: str) -> str:
    """Return any text but a blank one."""
    if not value:
        raise ValidationError("must not be blank")
    return value


def first_directory(value: str) -> str | None:
    """Return the first of several directories: systemd separates them by colons, and the first is the unit's own."""
    return text(value).partition(":")[0] or None


def rate(value: str) -> Rate:
    """Read `NUMBER/SECONDS`, two whole numbers from 1 on."""
    found = RATE.fullmatch(value)
    if not found:
        raise ValidationError("must be NUMBER/SECONDS, two whole numbers from 1 to 999999999, as in 20/60")
    return Rate(int(found[1]), int(found[2]))


def url(value: str) -> str:
    """Read an address of the web, with a host and without a user or a fragment in it."""
    try:
        parts = urlsplit(value)
        usable = parts.scheme in {"http", "https"} and parts.hostname and not (parts.username or parts.fragment)
        _ = parts.port
    except ValueError:
        usable = False
    if not usable or not value.isascii() or any(each.isspace() for each in value):
        raise ValidationError("must be an address that begins with https:// or http://, without a user in it")
    return value


def hosts(value: str) -> tuple[str, ...]:
    """Read a list of host names without ports; `*` stands for any."""
    names = tuple(filter(None, (name.strip() for name in value.split(","))))
    if wrong := [name for name in names if name != "*" and not HOST.fullmatch(name)]:
        raise ValidationError(f"must be host names separated by commas, or *, but {wrong[0]!r} is none")
    return names


def servers(value: str) -> tuple[str, ...]:
    """Read a list of `host:port`, and name every entry that is none."""
    entries = [entry.strip() for entry in value.split(",") if entry.strip()]
    if not entries:
        raise ValidationError("must name at least one server as host:port")
    wrong = [f"{entry!r} {trouble}" for entry in entries if (trouble := _server_trouble(entry))]
    if wrong:
        raise ValidationError(f"must be host:port, separated by commas, but {'; '.join(wrong)}")
    return tuple(entries)


def _server_trouble(entry: str) -> str:
    host, colon, port = entry.rpartition(":")
    if "://" in entry:
        return "carries a protocol: leave it out, KAFKA_USE_SSL and KAFKA_SASL_MECHANISM decide it"
    if not colon or (entry.startswith("[") and entry.endswith("]")):
        return "has no port"
    if ":" in host and not host.startswith("["):
        return "looks like an IPv6 address: write it in brackets, as in [::1]:9092"
    if not (HOST.fullmatch(host) or IPV6.fullmatch(host)):
        return "has no valid host name"
    if not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535):
        return "has no port from 1 to 65535"
    return ""


def topic_settings(value: str) -> dict[str, str]:
    """Read `name=value,name=value`; an item without `=` continues the value before it, as in `cleanup.policy=a,b`."""
    settings: dict[str, str] = {}
    latest = ""
    for item in filter(None, (item.strip() for item in value.split(","))):
        name, equals, setting = (part.strip() for part in item.partition("="))
        if not equals and latest:
            settings[latest] += f",{item}"
        elif not equals or not NAME.fullmatch(name):
            raise ValidationError(f"must be name=value, separated by commas, but {item!r} is not")
        elif name in settings:
            raise ValidationError(f"names {name!r} twice")
        else:
            settings[name] = setting
            latest = name
    return settings


def header_names(value: str) -> frozenset[str]:
    """Read names of record headers; a lone comma names none."""
    names = frozenset(filter(None, (name.strip() for name in value.split(","))))
    if own := sorted(name for name in names if name.startswith("source-") or name in OWN_HEADERS):
        raise ValidationError(f"must not name what the worker writes itself: {', '.join(own)}")
    return names


def handler(value: str) -> str:
    """Check the name's shape: a handler that comes with the worker, or `package.module:callable`."""
    module, colon, attribute = value.partition(":")
    if value in BUILT_IN_HANDLERS or (colon and _is_dotted(module) and _is_dotted(attribute)):
        return value
    raise ValidationError(f"must be {', '.join(BUILT_IN_HANDLERS)} or package.module:callable")


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def place(value: str) -> str:
    """Check where something stands in a request: a field's name, or `header:NAME`."""
    if not value or value == "header:":
        raise ValidationError("must be a field's name, or header:NAME")
    return value


def instance_id(value: str) -> str:
    """Check a static member's id, for which Kafka has the rule of topic names."""
    if topic_name_trouble(value):
        raise ValidationError(f"must be 1 to {LARGEST_NAME} of the characters A-Z a-z 0-9 . _ -")
    return value


def level(value: str) -> str:
    """Read the name of a log level, in whatever case."""
    if value.upper() not in LEVELS:
        raise ValidationError(f"must be {', '.join(LEVELS[:-1])} or {LEVELS[-1]}")
    return value.upper()


def topic_name_trouble(name: str) -> str:
    """Return what is wrong with a topic's name, in the words of the service's guide, or nothing."""
    if not 1 <= len(name) <= LARGEST_NAME:
        return f"Topic name must be between 1 and {LARGEST_NAME} characters"
    if not NAME.fullmatch(name) or name in {".", ".."}:
        return "Topic name contains invalid characters"
    return ""


def partitions_trouble(name: str, partitions: int) -> str:
    """Return what is wrong with a topic's partition count, in the guide's words, or nothing."""
    return "" if partitions > 0 else f"Partition count must be greater than 0 for topic {name}"


def replication_trouble(name: str, replication: int) -> str:
    """Return what is wrong with a topic's replication factor, in the guide's words, or nothing."""
    return "" if replication > 0 else f"Replication factor must be greater than 0 for topic {name}"
