"""By which names the side port answers: a page of somebody else's must not read it through a browser.

A web page whose own name suddenly leads to 127.0.0.1 (DNS rebinding) may read every answer, because the browser takes
us for that page's server. Only the Host header tells: it carries the page's name, which is none of ours.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable

ANY = "*"
_HOST = re.compile(r"(?P<host>\[[^\[\]]*\]|[^\[\]:/@?#,\s]+)(:\d{0,5})?")


class KnownHosts:
    """The names of this worker: `localhost`, this machine's, the one that is listened on, and `more`.

    Addresses are always known: no page can be served under an address that it does not have, and behind a translated
    port a worker does not know its own. A request without a Host header (HTTP/1.0) is no browser's.
    """

    def __init__(self, listened_on: str, more: Iterable[str] = ()) -> None:
        machine = socket.gethostname()
        names = {"localhost", machine, machine.partition(".")[0], listened_on, *more}
        self._names = frozenset(name.lower().removesuffix(".") for name in names if name)

    def __contains__(self, header: object) -> bool:
        if not header or ANY in self._names:
            return True
        found = _HOST.fullmatch(str(header))
        if found is None:
            return False
        host = found["host"]
        return host.lower().removesuffix(".") in self._names or _is_address(host.removeprefix("[").removesuffix("]"))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
