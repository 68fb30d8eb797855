"""A headless Chromium, told what to do by its DevTools protocol over two pipes: no port, no driver, no library."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ANSWER_LIMIT = 20.0
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-sync",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
)


class BrowserError(Exception):
    """The browser refused, or did not answer in time."""


class Browser:
    """One process with a profile of its own; pages are opened with `open`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._said = b""
        self._number = 0
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        hears, self._tell = os.pipe()
        self._hear, says = os.pipe()
        # High numbers, so that neither is in the way of the 3 and 4 that the browser expects.
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (hears, says)]
        sandbox = ("--no-sandbox",) if os.geteuid() == 0 else ()
        with (self._directory / "chromium.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "/bin/bash",
                    "-c",
                    f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}',
                    "chromium",
                    shutil.which("chromium") or "chromium",
                    *FLAGS,
                    *sandbox,
                    f"--user-data-dir={self._directory}/profile",
                    "about:blank",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=ends,
                start_new_session=True,
            )
        for fd in (hears, says, *ends):
            os.close(fd)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self._tell)  # which it takes for a good-bye
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
        os.close(self._hear)

    def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False, scripts: bool = True) -> Page:
        """Open a page of this size and taste, and return it when it has loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        page = Page(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        page.call("Emulation.setEmulatedMedia", features=scheme)
        page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        page.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        page.call("Page.navigate", url=url)
        page.wait_for("Page.loadEventFired")
        return page

    def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """Have a command done and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._tell, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + ANSWER_LIMIT
        while True:
            answer = self._next(deadline, method)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])
            self._events.append(answer)

    def events(self, session: str, method: str) -> list[dict[str, Any]]:
        """Return the parameters of the events of one kind that a page has had so far."""
        self.call("Browser.getVersion")  # whatever was said before its answer has been heard then
        return [e["params"] for e in self._events if (e.get("sessionId"), e.get("method")) == (session, method)]

    def _next(self, deadline: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._said:
            readable, _, _ = select.select([self._hear], [], [], max(0.0, deadline - time.monotonic()))
            heard = os.read(self._hear, 1 << 20) if readable else b""
            if not heard:
                raise BrowserError(f"no answer to {what}; {self._directory}/chromium.log may say why")
            self._said += heard
        message, _, self._said = self._said.partition(b"\0")
        return dict(json.loads(message))


class Page:
    """A page that is open."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def wait_for(self, event: str) -> None:
        deadline = time.monotonic() + ANSWER_LIMIT
        while not self._browser.events(self._session, event):
            if time.monotonic() > deadline:
                raise BrowserError(f"no {event} within {ANSWER_LIMIT:g} s")
            time.sleep(0.05)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; it is evaluated where the page's own scripts are off, too."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise BrowserError(f"{expression}: {found['exceptionDetails']['exception']['description']}")
        return found["result"].get("value")

    def text(self) -> str:
        """Return what can be read on the page."""
        return str(self.evaluate("document.body.innerText"))

    def requests(self) -> list[str]:
        """Return the addresses that the page has asked for."""
        return [event["request"]["url"] for event in self._browser.events(self._session, "Network.requestWillBeSent")]

    def complaints(self) -> list[str]:
        """Return what the console shows: exceptions, messages, refused and failed loads."""
        events = [
            event
            for kind in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
            for event in self._browser.events(self._session, kind)
        ]
        return [json.dumps(event) for event in events]

    def screenshot(self) -> bytes:
        """Return the whole page as PNG."""
        self.call("Page.bringToFront")
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])
