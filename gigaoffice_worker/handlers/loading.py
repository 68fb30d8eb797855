"""Finding a handler by its name."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry

from gigaoffice_worker.core.errors import ConfigurationError
from gigaoffice_worker.core.records import Request

BUILT_IN = {
    "echo": "gigaoffice_worker.handlers.echo:handle",
    "http": "gigaoffice_worker.handlers.http:HttpHandler",
    "gigachat": "gigaoffice_worker.handlers.gigachat:GigaChatHandler",
}


def _nothing(*_: Any) -> None:
    """Do nothing: a plain function has nothing to free or to count."""


@dataclass(frozen=True, slots=True)
class Handler:
    """A handler ready to be called, what frees what it holds, and what adds its metrics to the worker's."""

    name: str
    call: Callable[[Request], Any]
    close: Callable[[], None]
    register_metrics: Callable[[CollectorRegistry], None] = _nothing


def load(name: str) -> Handler:
    """Return the handler called `name`: a built-in one, or `package.module:callable`.

    A class, or a function that needs no argument, is called once and what it returns is the handler; if that has a
    `close()` method it is called at the end, and its `register_metrics(registry)` method may add Prometheus metrics to
    the worker's. Raises ConfigurationError with what was tried and what went wrong.
    """
    target = BUILT_IN.get(name, name)
    module_name, _, path = target.partition(":")
    if not path:
        known = ", ".join(BUILT_IN)
        message = f"WORKER_HANDLER: there is no handler named {name!r}"
        raise ConfigurationError(message, hint=f"use one of {known}, or package.module:callable")
    found = _attribute(_module(name, module_name), path, name)
    handler = _constructed(found, name) if _is_factory(found) else found
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None)):  # noqa: B004
        message = f"WORKER_HANDLER {name}: {path} is asynchronous, and handlers run in threads"
        raise ConfigurationError(message, hint="write it with def instead of async def")
    if not callable(handler):
        message = f"WORKER_HANDLER {name}: {path} gave a {type(handler).__name__}, which cannot be called"
        raise ConfigurationError(message, hint="name a function, or a class with a __call__ method")
    return Handler(name, handler, getattr(handler, "close", _nothing), getattr(handler, "register_metrics", _nothing))


def _module(name: str, module_name: str) -> Any:
    # The console script does not have the working directory on its path, `python -m` does: both shall find the same.
    if os.getcwd() not in sys.path and "" not in sys.path:  # noqa: PTH109  # a text for sys.path
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        _complain_about_extra(name, error)
        missing = isinstance(error, ModuleNotFoundError) and error.name and module_name.startswith(error.name)
        message = f"WORKER_HANDLER {name}: module {module_name} cannot be imported: {type(error).__name__}: {error}"
        hint = "put its directory on PYTHONPATH, or start the worker in it" if missing else "mend the module"
        raise ConfigurationError(message, hint=hint) from error


def _attribute(found: Any, path: str, name: str) -> Any:
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            message = f"WORKER_HANDLER {name}: {getattr(found, '__name__', found)!s} has no {part!r}"
            raise ConfigurationError(message, hint="check the spelling behind the colon") from error
    return found


def _is_factory(found: Any) -> bool:
    if isinstance(found, type):
        return True
    if not inspect.isroutine(found):
        return False
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return False
    takes = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    )
    return not any(parameter.kind in takes for parameter in parameters)


def _constructed(factory: Any, name: str) -> Any:
    try:
        return factory()
    except ConfigurationError:
        raise
    except (Exception, SystemExit) as error:
        _complain_about_extra(name, error)
        message = f"WORKER_HANDLER {name}: it could not be constructed: {type(error).__name__}: {error}"
        raise ConfigurationError(message, hint="its class or factory is called without arguments") from error


def _complain_about_extra(name: str, error: BaseException) -> None:
    """Raise ConfigurationError if a handler of ours lacks a package: the extra of its name brings it."""
    if name in BUILT_IN and isinstance(error, ModuleNotFoundError):
        message = f"WORKER_HANDLER {name}: the package {error.name} is not installed"
        raise ConfigurationError(message, hint=f"pip install 'gigaoffice-worker[{name}]'") from error
