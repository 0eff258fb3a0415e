"""Check one value against its field, and turn it into what settings hold."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable

from tiercache.config.schema import BY_NAME, SECTIONS, Field, Kind, Section
from tiercache.config.secret_words import is_secret_name, is_secret_value
from tiercache.errors import ConfigError
from tiercache.settings import FreeSpaceRatio, TotalBytes
from tiercache.units import parse_bytes, parse_duration, parse_ratio

Option = str | int | float | bool

# What people write who come from other tools.
_OTHER_NAMES = {
    "size": "capacity",
    "max_size": "capacity",
    "limit": "capacity",
    "url": "origin",
    "source": "origin",
    "prefix": "path",
    "mode": "consistency",
    "directory": "dir",
    "path": "dir",
    "endpoint_url": "endpoint",
    "timeout": "request_timeout",
    "level": "log_level",
}
_METRICS_ADDRESS = re.compile(r"(?:\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):(\d{1,5})")
_ENDPOINT = re.compile(r"https?://[^\s/?#]+(?:/[^\s?#]*)?", re.IGNORECASE)
_SECRET_REMEDY = (
    "credentials never stand in the configuration: they come from the cloud's own chain; "
    "name one of its profiles with credentials_profile"
)


def refuse_secret(name: str, value: object, place: str) -> None:
    """Raise ConfigError where a key or value is a credential. Never prints the value."""
    if is_secret_name(name, value):
        raise ConfigError(f"{name!r} is a credential", path=place, remedy=_SECRET_REMEDY)
    if is_secret_value(value):
        raise ConfigError(
            f"the value of {name!r} looks like a credential", path=place, remedy=_SECRET_REMEDY
        )


def refuse_secrets(tree: object, name: str, place: str) -> None:
    """Search all of a value, tables and arrays included."""
    match tree:
        case dict():
            for key, value in tree.items():
                refuse_secrets(value, str(key), place)
        case list() | tuple():
            for value in tree:
                refuse_secrets(value, name, place)
        case _:
            refuse_secret(name, tree, place)


def unknown_section(name: str, place: str) -> ConfigError:
    owners = [section.heading for section in SECTIONS if section.field(name)]
    if owners:
        return ConfigError(f"{name!r} stands outside of {owners[0]}", path=place)
    headings = {section.name: section.heading for section in SECTIONS}
    near = _nearest(name, headings)
    remedy = f"did you mean {headings[near]}?" if near else f"known are {_list(headings.values())}"
    return ConfigError(f"unknown section [{name}]", path=place, remedy=remedy)


def unknown_key(section: Section, key: str, place: str) -> ConfigError:
    near = _OTHER_NAMES.get(key, "")
    owner = None
    if section.field(near) is None:
        near = _nearest(key, section.keys)
        owner = next((other for other in SECTIONS if other.field(key)), None)
    if owner is not None:
        remedy = f"it belongs in {owner.heading}"
    elif near:
        remedy = f"did you mean {near!r}?"
    else:
        remedy = f"known are {_list(section.keys)}"
    return ConfigError(f"unknown key {key!r} in {section.heading}", path=place, remedy=remedy)


def nearest_hint(name: str, known: Iterable[str], otherwise: str = "known are") -> str:
    """Return the remedy for a misspelled name."""
    names = sorted(str(name) for name in known)
    near = _nearest(name, names)
    return f"did you mean {near!r}?" if near else f"{otherwise} {_list(names)}"


def _nearest(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.55)
    return found[0] if found else ""


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def parse(field: Field, value: object, place: str, *, from_text: bool) -> object:
    """Return the setting. ``from_text`` is true for values that can only be strings (the
    environment): numbers and booleans are then read out of them. Raises ConfigError."""
    try:
        return _parse(field, value, from_text)
    except ConfigError as error:
        if error.path:
            raise
        message = f"{field.key}: {error.message}"
        raise ConfigError(message, path=place, remedy=error.remedy) from None


def _parse(field: Field, value: object, from_text: bool) -> object:
    match field.kind:
        case Kind.TEXT:
            return _text(field, value)
        case Kind.DIRECTORY | Kind.FILE:
            return _place(value, from_text, field.kind)
        case Kind.SIZE:
            return _size(field, value, from_text)
        case Kind.DURATION:
            return _duration(field, value)
        case Kind.RATIO:
            if isinstance(value, bool) or not isinstance(value, str | float):
                raise _wrong_type(value, field.kind)
            return FreeSpaceRatio(parse_ratio(value))
        case Kind.COUNT:
            if from_text and isinstance(value, str) and value.isdecimal():
                value = int(value)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise _wrong_type(value, field.kind)
            return value
        case Kind.BOOLEAN:
            if from_text and isinstance(value, str):
                value = {"true": True, "1": True, "false": False, "0": False}.get(value.lower())
            if not isinstance(value, bool):
                raise _wrong_type(value, field.kind)
            return value
        case Kind.TABLE:
            raise AssertionError("tables are taken apart by the caller")


def parse_option(name: str, value: object, place: str) -> Option:
    if not isinstance(value, str | int | float):
        raise ConfigError(
            f"option {name!r} is {_what(value)}",
            path=place,
            remedy="options are text, numbers and booleans",
        )
    return value


def _text(field: Field, value: object) -> object:
    if not isinstance(value, str):
        raise _wrong_type(value, Kind.TEXT)
    if field.choices and value not in field.choices:
        raise ConfigError(f"{value!r} is unknown", remedy=nearest_hint(value, field.choices))
    if field.key == "endpoint" and value and not _ENDPOINT.fullmatch(value):
        raise ConfigError(
            f"{value!r} is not an http(s) address", remedy="write it like https://host:9000"
        )
    if field.key == "metrics_address" and value:
        found = _METRICS_ADDRESS.fullmatch(value)
        if found is None or int(found[1]) > 65535:
            raise ConfigError(
                f"{value!r} is not an address", remedy='write host:port, like "127.0.0.1:9464"'
            )
    return value


def _place(value: object, from_text: bool, kind: Kind) -> str:
    if not isinstance(value, str):
        raise _wrong_type(value, kind)
    if not value and kind is Kind.FILE:
        return ""
    expanded = os.path.expanduser(value)
    if not value or "\0" in value:
        raise ConfigError(f"{value!r} is not a {kind.value}")
    if not os.path.isabs(expanded) and not from_text:
        raise ConfigError(
            f"{value!r} is relative", remedy="write an absolute path: a file has no current place"
        )
    return os.path.abspath(expanded)


def _size(field: Field, value: object, from_text: bool) -> object:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _wrong_type(value, field.kind)
    size_bytes = parse_bytes(value)
    if size_bytes == 0:
        raise ConfigError(f"{value!r} leaves no room", remedy="give a size above 0")
    return TotalBytes(size_bytes) if field.key == "capacity" else size_bytes


def _duration(field: Field, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _wrong_type(value, field.kind)
    seconds = parse_duration(value)
    if not seconds < float("inf"):
        raise ConfigError(f"{value!r} is not a duration")
    if field.positive and seconds == 0:
        raise ConfigError("0 would end every request at once", remedy="give a duration above 0")
    return seconds


def _wrong_type(value: object, kind: Kind) -> ConfigError:
    return ConfigError(f"{_what(value)} where a {kind.name.lower()} belongs", remedy=kind.value)


def _what(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str() | int() | float():
            return repr(value)
        case list():
            return "an array"
        case dict():
            return "a table"
        case _:
            return f"a {type(value).__name__}"


def section_named(name: str, place: str) -> Section:
    section = BY_NAME.get(name)
    if section is None:
        raise unknown_section(name, place)
    return section
