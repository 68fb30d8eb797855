"""A handler for the system tests, installed beside the worker: each request says what becomes of it.

What would happen again after a restart is done only while the file /run/mischief is there.
"""

import os
import re
import signal
import time
from pathlib import Path

MISCHIEF = Path("/run/mischief")


def handle(request):
    """Answer after `seconds`, raise an error that is called as `raise` says, or do the mischief that `do` names."""
    time.sleep(request.payload.get("seconds", 0))
    if name := request.payload.get("raise"):
        raise type(name, (Exception,), {})("as asked")
    if MISCHIEF.exists():
        match request.payload.get("do"):
            case "stall":
                re.match(r"(a+)+$", "a" * 64 + "b")  # takes for ever, and lets no other thread run meanwhile
            case "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            case "fail":
                raise ValueError("the model is down")
    return {"answer": request.payload.get("query")}
