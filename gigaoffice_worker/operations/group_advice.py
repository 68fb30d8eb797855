"""Which members of a group would keep workers out of it, or disturb them, and what to do about it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from gigaoffice_worker.broker.admin import CONSUMERS, Group, Member
from gigaoffice_worker.core.errors import ConfigurationError
from gigaoffice_worker.core.visible import visible

_MOST_MEMBERS: Final = 5
_MOST_TOPICS: Final = 3
_LONGEST_NAME: Final = 100
"""Members choose their names, their topics and what else they tell: all of it is cut, and escaped where printed."""

_MEND: Final = "Use another KAFKA_CONSUMER_GROUP, or stop those members ({members}) first: while they are in the group"


def summary(group: Group) -> str:
    """Say how many members there are, and what the group is at."""
    return f"members {len(group.members)}, {group.state.lower()}" if group.members else "no member at the moment"


def refusal(group: Group, offered: Collection[str]) -> ConfigurationError | None:
    """Return what a worker that joins would end with, if it offers these assignors; None where it is let in.

    A coordinator asks that all members are of one type, and that there is an assignor that each of them offers. It
    tells which one they chose, not which others they offer; nothing while they rebalance. Without a member anybody
    may join.
    """
    if not group.members:
        return None
    mend = _MEND.format(members=_some(_name(each) for each in group.members))
    if group.protocol_type not in {"", CONSUMERS}:
        found = f"{summary(group)}, of the protocol type {_shown(group.protocol_type)}: they are no consumers"
        return ConfigurationError(found, hint=f"{mend}, it takes no worker.")
    if group.protocol not in {"", *offered}:
        found = f"{summary(group)}, assigned by {_shown(group.protocol)}: workers offer {' and '.join(offered)}"
        unless = f"unless all of them offer {' or '.join(offered)}, too"
        return ConfigurationError(found, hint=f"{mend}, it takes no worker, {unless}.")
    return None


def remark(group: Group, topic: str) -> str:
    """Say which members do not subscribe to this topic alone, and what to do; empty where there are none."""
    strangers = [each for each in group.members if each.topics is not None and each.topics != {topic}]
    if not strangers:
        return ""
    told = _some(f"{_name(each)} ({_topics(each)})" for each in strangers)
    return (
        f"Members subscribe to something else than {topic} alone: {told}. Give them another group: whenever one of "
        f"them comes or goes, workers give up their partitions, too, and one that reads {topic} as well takes requests."
    )


def _name(member: Member) -> str:
    return _shown(member.client_id) or "without a name"


def _topics(member: Member) -> str:
    return _some(map(_shown, sorted(member.topics or ())), _MOST_TOPICS) or "nothing"


def _some(names: Iterable[str], most: int = _MOST_MEMBERS) -> str:
    """Name each once, and say of how many there is no room to."""
    different = list(dict.fromkeys(names))
    more = f" and {len(different) - most} more" if len(different) > most else ""
    return ", ".join(different[:most]) + more


def _shown(name: str) -> str:
    return visible(name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…")
