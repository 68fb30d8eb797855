"""What the cluster knows of a request that was not answered."""

from __future__ import annotations

from gigaoffice_worker.broker.admin import admin
from gigaoffice_worker.config import Config
from gigaoffice_worker.core.records import Source


def why_no_answer(config: Config, place: Source, timeout: float) -> str:
    """Say what the cluster knows of a request that was not answered, as far as it can be found out in `timeout`."""
    group = config.consumer.group
    try:
        with admin(config, timeout) as client:
            members = len(client.group(group).members)
            position = client.committed(group).get((place.topic, place.partition))
    except Exception:  # noqa: BLE001  # this only adds to a message
        return ""
    if members == 0:
        return f"The group {group} has no members: no worker is running."
    if position is not None and position > place.offset:
        return (
            f"The worker is done with it (group {group}, partition {place.partition}, committed {position}): look for "
            f"the response in {config.topics.responses.name}."
        )
    behind = place.offset - (position or 0)
    waiting = f"{behind} unfinished or waiting before it" if behind > 0 else "none before it"
    return (
        f"The group {group} has {members} member(s) and is not done with it: {waiting} in partition {place.partition}."
    )
