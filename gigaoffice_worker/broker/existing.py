"""Looking for topics on behalf of commands, which create nothing."""

from __future__ import annotations

from collections.abc import Mapping

from gigaoffice_worker.broker.admin import admin
from gigaoffice_worker.broker.error_table import to_worker_error
from gigaoffice_worker.config import Config
from gigaoffice_worker.core.errors import AccessError, WorkerError


def existing(config: Config, rights: Mapping[str, str], timeout: float) -> dict[str, int]:
    """Return the topics' numbers of partitions; `rights` says of each what will be needed there.

    Raises WorkerErrors only, one that names the topics where some are missing.
    """
    try:
        with admin(config, timeout) as client:
            states = client.describe(rights)
    except WorkerError:
        raise  # the login was refused: no right would help
    except Exception as error:
        told = to_worker_error(error, f"looking for the topic {' and the topic '.join(rights)}")
        if isinstance(told, AccessError):
            needed = " and ".join(f"{right} on the topic {name}" for name, right in rights.items())
            told = AccessError(str(told), hint=f"Grant the user {needed}.")
        raise told from error
    if missing := [name for name in rights if name not in states]:
        hint = "`gigaoffice-worker topics` creates what is missing. Is this the name that the worker has?"
        raise WorkerError(f"there is no topic {' and no topic '.join(missing)}", hint=hint)
    return {name: states[name].partitions for name in rights}
