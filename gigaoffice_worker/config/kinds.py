"""What a variable's declaration says, and the kinds of value that a variable can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from environs import validate

from gigaoffice_worker.config import values
from gigaoffice_worker.config.files import FILE_SUFFIX
from gigaoffice_worker.config.secret import Secret

DAY: Final = 86_400


@dataclass(frozen=True, slots=True)
class Kind:
    """How a variable's text is read, and what is allowed, in words that follow "must be"."""

    parse: str | Callable[[str], Any]
    """A method of environs, or a function of ours, whose errors say themselves what must be mended."""
    allowed: str
    check: Callable[[Any], Any] | None = None
    """For a method of environs: what the parsed value must pass."""
    convert: Callable[[Any], Any] | None = None
    """From the parsed value, in the variable's unit, to what the field holds."""
    none: Any = None
    """What the field holds where the variable is unset and has no default."""


class Variable(NamedTuple):
    """An environment variable: an empty default means none."""

    name: str
    default: str
    kind: Kind
    meaning: str

    @property
    def secret(self) -> bool:
        """Whether it is never shown, and can also be given as a file."""
        return self.kind is SECRET

    @property
    def twin(self) -> str:
        """The variable that names the file of a secret."""
        return self.name + FILE_SUFFIX

    def field_value(self, values: Mapping[str, Any]) -> Any:
        """Return what the field holds, out of all variables' parsed values."""
        value, kind = values[self.name], self.kind
        if value is None:
            return kind.none
        return kind.convert(value) if kind.convert else value


def env(name: str, default: str, kind: Kind, meaning: str) -> Any:
    """Declare the variable that fills a dataclass's field; `default` is a text as in the environment, or empty."""
    return field(metadata={"variables": (Variable(name, default, kind, meaning),)})


def whole(least: int, most: int, unit: str = "a whole number") -> Kind:
    """Take whole numbers between the two, both allowed."""
    return Kind("int", f"{unit} from {least} to {most}", validate.Range(min=least, max=most))


def seconds(least: float, most: float = DAY) -> Kind:
    """Take seconds, with fractions."""
    return Kind("float", f"seconds from {least:g} to {most:g}", validate.Range(min=least, max=most))


def milliseconds(least: int, most: int = DAY * 1000) -> Kind:
    """Take whole milliseconds; the field holds seconds."""
    return replace(whole(least, most, "whole milliseconds"), convert=lambda value: value / 1000)


def one_of(*choices: str, convert: Callable[[str], Any] | None = None) -> Kind:
    """Take one of these words, as it is written here."""
    return Kind("str", f"{', '.join(choices[:-1])} or {choices[-1]}", validate.OneOf(choices), convert)


BOOLEAN: Final = Kind("bool", "true or false")
RATIO: Final = Kind("float", "a number from 0 to 1", validate.Range(min=0, max=1))
RATE: Final = Kind(values.rate, "NUMBER/SECONDS, as in 20/60")
TEXT: Final = Kind(values.text, "text")
PATH: Final = Kind(values.text, "the path of a readable file")
DIRECTORY: Final = Kind(values.first_directory, "text")
SECRET: Final = Kind("str", "text", convert=Secret)
SERVERS: Final = Kind(values.servers, "host:port, separated by commas")
URL: Final = Kind(values.url, "an address that begins with https:// or http://")
HOSTS: Final = Kind(values.hosts, "host names separated by commas, or *", none=())
HANDLER: Final = Kind(values.handler, "echo, http, gigachat or package.module:callable")
HEADERS: Final = Kind(values.header_names, "names of headers, separated by commas", none=frozenset())
PLACE: Final = Kind(values.place, "a field's name, or header:NAME")
INSTANCE: Final = Kind(values.instance_id, "1 to 249 of A-Z a-z 0-9 . _ -")
LEVEL: Final = Kind(values.level, one_of(*values.LEVELS).allowed)

# The lower bounds of a topic's numbers, and its name, are checked by the rules, in the words of the service's guide.
TOPIC: Final = Kind("str", "1 to 249 of A-Z a-z 0-9 . _ -")
PARTITIONS: Final = Kind("int", "a whole number greater than 0, at most 2147483647", validate.Range(max=2**31 - 1))
REPLICATION: Final = Kind("int", "a whole number greater than 0, at most 32767", validate.Range(max=2**15 - 1))
SETTINGS: Final = Kind(values.topic_settings, "name=value, separated by commas", none={})
