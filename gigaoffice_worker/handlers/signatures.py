"""What a handler takes: the request itself, or its payload as a type of the handler's own."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import typing
from collections.abc import Callable
from typing import Any

import msgspec

from gigaoffice_worker.core.messages import InvalidRequestError
from gigaoffice_worker.core.records import Request

Call = Callable[[Request], Any]


def refusal(handler: Any) -> str | None:
    """Say why something that can be called cannot be a handler, as what follows its name; None if it can."""
    return asynchronous(handler) or _wrong_arity(handler)


def asynchronous(handler: Any) -> str | None:
    """Say that a function gives a coroutine or a generator instead of an answer."""
    code = handler if inspect.isroutine(handler) or isinstance(handler, functools.partial) else _call_of(handler)
    if inspect.iscoroutinefunction(code) or inspect.isasyncgenfunction(code):
        return "is asynchronous, and handlers run in threads: write it with def instead of async def"
    if inspect.isgeneratorfunction(code):
        return "is a generator function: return the whole answer instead of yielding it in parts"
    return None


def is_factory(found: Any) -> bool:
    """Say whether something is to be called without arguments first, to get the handler."""
    if isinstance(found, type):
        return True
    if not inspect.isroutine(found):
        return False
    signature = _signature(found)
    return signature is not None and not signature.parameters


def adapted(handler: Any) -> Call:
    """Return what is called with the request; a handler that wants its payload as a type gets it converted.

    That raises InvalidRequestError for a payload that does not convert.
    """
    wanted = _payload_type(handler)
    if wanted is None:
        return typing.cast("Call", handler)
    convert = _converter(wanted)

    @functools.wraps(handler, updated=())
    def call(request: Request) -> Any:
        return handler(convert(request))

    return call


def _wrong_arity(handler: Any) -> str | None:
    signature = _signature(handler)
    if signature is None:
        return None
    try:
        signature.bind(None)
    except TypeError:
        bare = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
        takes = str(inspect.Signature(bare)) if bare else "no argument"
        return f"takes {takes}, and is called with one argument, the request"
    return None


def _signature(found: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(found)
    except (TypeError, ValueError):  # written in C, without a word about its parameters
        return None


def _payload_type(handler: Any) -> type | None:
    """Return the type of the one parameter, where it is a dataclass, a msgspec.Struct or a pydantic model."""
    signature = _signature(handler)
    name = next(iter(signature.parameters), None) if signature is not None else None
    if name is None:
        return None
    code = handler if inspect.isroutine(handler) else _call_of(handler)
    try:
        wanted = typing.get_type_hints(inspect.unwrap(code)).get(name)
    except Exception:  # noqa: BLE001  # a name that only the type checker knows, or an annotation that is no type
        return None
    if not isinstance(wanted, type) or issubclass(wanted, Request):
        return None
    is_one = dataclasses.is_dataclass(wanted) or issubclass(wanted, msgspec.Struct) or _is_pydantic(wanted)
    return wanted if is_one else None


def _call_of(handler: Any) -> Any:
    return handler.func if isinstance(handler, functools.partial) else getattr(handler, "__call__", handler)  # noqa: B004


def _is_pydantic(wanted: type) -> bool:
    return "pydantic" in sys.modules and hasattr(wanted, "__pydantic_validator__")


def _converter(wanted: Any) -> Callable[[Request], Any]:
    if not _is_pydantic(wanted):

        def convert(request: Request) -> Any:
            try:
                return msgspec.convert(request.payload, wanted)
            except msgspec.ValidationError as error:
                raise _does_not_fit(request, wanted, str(error)) from None

        return convert

    import pydantic  # noqa: PLC0415  # it is loaded: the handler's own module has imported it

    def validate(request: Request) -> Any:
        try:
            # As JSON, which has other rules than Python's objects: a text may be a date, also for a strict model.
            return wanted.__pydantic_validator__.validate_json(msgspec.json.encode(request.payload))
        except pydantic.ValidationError as error:
            told = error.errors(include_input=False, include_url=False, include_context=False)
            complaints = [f"{'.'.join(map(str, each['loc'])) or 'it'}: {each['msg']}" for each in told[:5]]
            raise _does_not_fit(request, wanted, "; ".join(complaints)) from None

    return validate


def _does_not_fit(request: Request, wanted: type, why: str) -> InvalidRequestError:
    return InvalidRequestError(f"the payload is no {wanted.__name__}: {why}", request.id)
