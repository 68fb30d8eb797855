"""Finding a handler by its name, and saying what is wrong with one that cannot be used, and where."""

from __future__ import annotations

import importlib
import linecache
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from gigaoffice_worker.core.errors import ConfigurationError
from gigaoffice_worker.core.frames import own_frame
from gigaoffice_worker.core.records import Request
from gigaoffice_worker.handlers.signatures import adapted, asynchronous, is_factory, refusal

BUILT_IN = {
    "echo": "gigaoffice_worker.handlers.echo:handle",
    "http": "gigaoffice_worker.handlers.http:HttpHandler",
    "gigachat": "gigaoffice_worker.handlers.gigachat:GigaChatHandler",
}

log = structlog.get_logger(__name__)

_ONE_ARGUMENT = "a handler is a function with one argument, or a class whose __call__ has one"


def _nothing(*_: Any) -> None:
    """Do nothing: a plain function has nothing to free or to count."""


@dataclass(frozen=True, slots=True)
class Handler:
    """A handler ready to be called; `holder` is what may have a `close` and a `register_metrics` method."""

    name: str
    call: Callable[[Request], Any]
    holder: Any

    def close(self, within: float = 5.0) -> str:
        """Free what the handler holds, and return what went wrong with that, empty if nothing did.

        It never raises, and takes `within` seconds at most: the work is done, and must not be lost for this.
        """
        failures: list[str] = []

        def close() -> None:
            try:
                getattr(self.holder, "close", _nothing)()
            except (Exception, SystemExit) as error:  # noqa: BLE001  # code of the handler's own runs here
                failures.append(told_with_place(error))

        closing = threading.Thread(target=close, name="handler-close", daemon=True)
        closing.start()
        closing.join(within)
        if closing.is_alive():
            failures.append(f"it did not come back within {within:g} seconds")
        for told in failures:
            log.warning("Handler could not be closed", error=told)
        return "".join(failures)

    def register_metrics(self, registry: CollectorRegistry) -> None:
        """Let the handler add its metrics to the worker's. Raises ConfigurationError if it cannot."""
        try:
            getattr(self.holder, "register_metrics", _nothing)(registry)
        except ConfigurationError:
            raise
        except (Exception, SystemExit) as error:
            message = f"WORKER_HANDLER {self.name}: it could not register its metrics: {told_with_place(error)}"
            hint = "each metric needs a name of its own; the worker's begin with gigaoffice_worker_"
            raise ConfigurationError(message, hint=hint) from error


def load(name: str) -> Handler:
    """Return the handler called `name`: a built-in one, or `package.module:callable`.

    The working directory is searched for the latter's module, behind all else. Raises ConfigurationError with what was
    tried, what went wrong, and in which line.
    """
    target = BUILT_IN.get(name, name)
    module_name, _, path = target.partition(":")
    if not path:
        known = ", ".join(BUILT_IN)
        message = f"WORKER_HANDLER: there is no handler named {name!r}"
        raise ConfigurationError(message, hint=f"use one of {known}, or package.module:callable")
    if name not in BUILT_IN:
        _search_the_working_directory()
    return prepare(_attribute(_module(name, module_name), path, name), name, path)


def prepare(found: Any, name: str = "", path: str = "") -> Handler:
    """Return a handler made of what its module holds, or of what a test gives.

    A class, or a function without parameters, is called once and what it returns is the handler; if that has a
    `close()` method it is called at the end, and its `register_metrics(registry)` method may add Prometheus metrics to
    the worker's. `name` and `path` are for messages. Raises ConfigurationError.
    """
    path = path or str(getattr(found, "__qualname__", type(found).__qualname__))
    name = name or path
    # Before anything is called: a coroutine that nobody awaits would only give a warning.
    if why := asynchronous(found.__call__ if isinstance(found, type) and _has_call(found) else found):
        raise ConfigurationError(f"WORKER_HANDLER {name}: {path} {why}", hint=_ONE_ARGUMENT)
    handler = _constructed(found, name) if is_factory(found) else found
    if not callable(handler):
        how = "is" if handler is found else "takes no argument, was called as a factory, and gave"
        message = f"WORKER_HANDLER {name}: {path} {how} a {type(handler).__name__}, which cannot be called"
        raise ConfigurationError(message, hint=_ONE_ARGUMENT)
    if why := refusal(handler):
        raise ConfigurationError(f"WORKER_HANDLER {name}: {path} {why}", hint=_ONE_ARGUMENT)
    return Handler(name, adapted(handler), handler)


def _search_the_working_directory() -> None:
    """Search the working directory last, so that nothing in it takes the place of what is installed."""
    here = os.getcwd()  # noqa: PTH109  # a text for sys.path
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)


def _module(name: str, module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        _complain_about_extra(name, error)
        told = told_with_place(error, module_name)
        message = f"WORKER_HANDLER {name}: module {module_name} cannot be imported: {told}"
        # Itself or its package, not something that it imports.
        lacking = f"{error.name}." if isinstance(error, ModuleNotFoundError) else "?"
        is_missing = f"{module_name}.".startswith(lacking)
        hint = "put its directory on PYTHONPATH, or start the worker in it" if is_missing else "mend the module"
        raise ConfigurationError(message, hint=hint) from error


def _attribute(found: Any, path: str, name: str) -> Any:
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            message = f"WORKER_HANDLER {name}: {getattr(found, '__name__', found)!s} has no {part!r}"
            raise ConfigurationError(message, hint="check the spelling behind the colon") from error
    return found


def _has_call(found: type) -> bool:
    return any("__call__" in kind.__dict__ for kind in found.__mro__[:-1])


def _constructed(factory: Any, name: str) -> Any:
    try:
        return factory()
    except ConfigurationError:
        raise
    except (Exception, SystemExit) as error:
        _complain_about_extra(name, error)
        message = f"WORKER_HANDLER {name}: it could not be constructed: {told_with_place(error)}"
        raise ConfigurationError(message, hint="its class or factory is called without arguments") from error


def told_with_place(error: BaseException, module: str = "") -> str:
    """Return an error's type and message, and the line of the handler's own code that it comes from."""
    if isinstance(error, SyntaxError) and error.filename:
        file, line, text = error.filename, error.lineno or 0, error.text
        said = f"{type(error).__name__}: {error.msg}"
    else:
        said = _said(error)
        frame = own_frame(error.__traceback__, module)
        if frame is None:
            return said
        file, line, text = frame.file, frame.line, linecache.getline(frame.file, frame.line)
    shown = f", in {_relative(file)} line {line}"
    return said + (f"{shown}: {text.strip()}" if text and text.strip() else shown)


def _said(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}".rstrip(": ")
    except Exception:  # noqa: BLE001  # code of the handler's own runs here
        return type(error).__name__


def _relative(file: str) -> str:
    here = os.path.join(os.getcwd(), "")  # noqa: PTH109, PTH118  # a prefix
    return file.removeprefix(here)


def _complain_about_extra(name: str, error: BaseException) -> None:
    """Raise ConfigurationError if a handler of ours lacks a package: the extra of its name brings it."""
    if name in BUILT_IN and isinstance(error, ModuleNotFoundError):
        message = f"WORKER_HANDLER {name}: the package {error.name} is not installed"
        raise ConfigurationError(message, hint=f"pip install 'gigaoffice-worker[{name}]'") from error
