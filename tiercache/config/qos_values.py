"""Values of a QoS policy file: read, checked, written again."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import inf, isfinite
from typing import TypeGuard

from tiercache.config.qos_schema import VERSION, Kind
from tiercache.errors import ConfigError
from tiercache.policy.qos_rules import Fraction
from tiercache.policy.qos_schedule import DAY_MINUTES, DAYS, Window
from tiercache.units import (
    parse_byte_rate,
    parse_bytes,
    parse_duration,
    parse_operation_rate,
    parse_operations,
)

UNLIMITED = "unlimited"
AUTO = "auto"
# Above all that a node does: an exabyte, or 10^18 operations, a second.
MOST = 10**18
# Priorities are small numbers that a person compares.
HIGHEST_PRIORITY = 1000
# Sums of tokens by weight stay exact to a token between these, and nothing becomes infinite.
LEAST_WEIGHT, MOST_WEIGHT = 0.001, 1000
# A day is longer than anybody waits, and short enough for every clock.
LONGEST_WAIT_S = 86400.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_PERCENTAGE = re.compile(r"\s*(\d{1,3}(?:\.\d{1,12})?)\s*%\s*", re.ASCII)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://\S*|endpoint:\S+")
_HOURS = re.compile(r"(\d{1,2}):(\d\d)\s*-\s*(\d{1,2}):(\d\d)", re.ASCII)
_DAY_NUMBERS = {day.lower(): number for number, day in enumerate(DAYS)}


def _refuse(value: object, remedy: str) -> ConfigError:
    shown = repr(value) if isinstance(value, str | float | bool) else f"this {_type(value)}"
    if isinstance(value, int) and not isinstance(value, bool):
        shown = str(value) if abs(value) <= MOST else "a number of very many digits"
    return ConfigError(f"cannot be {shown[:200]}", remedy=remedy)


def _type(value: object) -> str:
    if isinstance(value, list | dict):
        return "array" if isinstance(value, list) else "table"
    return type(value).__name__


def _number(value: object, remedy: str) -> float:
    """Return a number of TOML that is not negative and not absurd."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST:
        raise _refuse(value, remedy)
    return float(value)


def _positive(number: float, value: object, remedy: str) -> float:
    if not (isfinite(number) and 0 < number <= MOST):
        raise _refuse(value, remedy)
    return number


def _rate(parse_text: Callable[[str], float], remedy: str) -> Callable[[object], float]:
    """Return a parser of tokens a second; 0 passes."""

    def parse(value: object) -> float:
        if not isinstance(value, str):
            return _number(value, remedy)
        return _number(parse_text(value), remedy)

    return parse


def _above_zero(parse: Callable[[object], float]) -> Callable[[object], float]:
    return lambda value: _positive(parse(value), value, "give a rate above 0: 0 stops it for ever")


def _or_share(parse: Callable[[object], float]) -> Callable[[object], float | Fraction]:
    return lambda value: _fraction(value) if _is_percentage(value) else parse(value)


def _limit(parse: Callable[[object], float]) -> Callable[[object], object]:
    def parse_limit(value: object) -> float | Fraction:
        if value == UNLIMITED:
            return inf
        limit = _or_share(parse)(value)
        _positive(
            limit.of_all if isinstance(limit, Fraction) else limit,
            value,
            f'give a limit above 0, or "{UNLIMITED}": 0 would stop it for ever',
        )
        return limit

    return parse_limit


def _or_auto(parse: Callable[[object], float]) -> Callable[[object], object]:
    return lambda value: None if value == AUTO else parse(value)


def _is_percentage(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and value.strip().endswith("%")


def _fraction(text: str) -> Fraction:
    """Return a share; rounded, so that it reads the same when it is written as a percentage."""
    number = _PERCENTAGE.fullmatch(text)
    if number is None or float(number[1]) > 100:
        raise _refuse(text, "shares are 0% to 100%")
    return Fraction(of_all=round(float(number[1]) / 100, 10))


def _share_of_all(value: object) -> float:
    remedy = 'above 0 and at most 1, like "10%"'
    share = _fraction(value).of_all if _is_percentage(value) else _number(value, remedy)
    if not 0 < share <= 1:
        raise _refuse(value, remedy)
    return share


def _size(value: object) -> int | Fraction:
    remedy = 'write it like "200GiB", or "10%" of the cache'
    if _is_percentage(value):
        return _fraction(value)
    if isinstance(value, str):
        size_bytes = parse_bytes(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        size_bytes = value
    else:
        raise _refuse(value, remedy)
    if not 0 <= size_bytes <= MOST:
        raise _refuse(value, remedy)
    return size_bytes


def _burst_bytes(value: object) -> float:
    size = parse_bytes(value) if isinstance(value, str) else _number(value, 'like "64MiB"')
    return _positive(size, value, 'write a size above 0, like "64MiB"')


def _burst_operations(value: object) -> float:
    count = parse_operations(value) if isinstance(value, str) else _number(value, "like 500")
    return _positive(count, value, 'write a number above 0, like 500 or "20k"')


def _weight(value: object) -> float:
    remedy = f"a number from {LEAST_WEIGHT} to {MOST_WEIGHT}"
    weight = _number(value, remedy)
    if not LEAST_WEIGHT <= weight <= MOST_WEIGHT:
        raise _refuse(value, remedy)
    return weight


def _priority(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > HIGHEST_PRIORITY:
        raise _refuse(value, f"a whole number from -{HIGHEST_PRIORITY} to {HIGHEST_PRIORITY}")
    return value


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
        raise _refuse(value, "a whole number, at least 1")
    return value


def _duration(value: object) -> float:
    remedy = 'write it like "500ms", "30s" or "5m"'
    seconds = parse_duration(value) if isinstance(value, str) else _number(value, remedy)
    if not 0 < seconds <= LONGEST_WAIT_S:
        raise _refuse(value, f"above 0 and at most a day; {remedy}")
    return seconds


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise _refuse(value, "true or false")
    return value


def _version(value: object) -> int:
    if isinstance(value, bool) or value != VERSION or not isinstance(value, int):
        raise _refuse(value, f"this version of tiercache reads {VERSION}")
    return value


def _text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _refuse(value, "a text")
    # Users and groups may be given by their numbers.
    text = value if isinstance(value, str) else str(_count(value) if value else 0)
    if not text or "\0" in text or len(text) > 4096:
        raise _refuse(text, "a text that is not empty")
    return text


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        return (_text(value),)
    return tuple(dict.fromkeys(_text(one) for one in value))


def _name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise _refuse(value, "a name of letters, digits and . _ -, at most 64")
    return value


def _path(text: str) -> str:
    scheme, url, rest = text.partition("://")
    segments = rest.split("/") if url else text.split("/")[1:]
    if not url and not text.startswith("/"):
        raise _refuse(text, f'paths are absolute: write "/{text}"')
    if text == "/":
        raise _refuse(text, "it covers everything: leave path out")
    if text.endswith("/"):
        raise _refuse(text, f'write "{text.rstrip("/")}": it covers all below it')
    if {"", ".", ".."} & set(segments[:1] if url else segments) or (url and not scheme):
        raise _refuse(text, 'write it without "//", "." and ".."')
    return text


def _paths(value: object) -> tuple[str, ...]:
    return tuple(_path(text) for text in _texts(value))


def _origin(value: object) -> str:
    if not isinstance(value, str) or not _ORIGIN.fullmatch(value) or len(value) > 4096:
        raise _refuse(value, 'write it like "s3://", "s3://bucket/prefix" or "endpoint:NAME"')
    return value if value.endswith("://") else value.rstrip("/")


def _days(text: str) -> tuple[int, ...]:
    days: set[int] = set()
    for part in text.split(","):
        first, dash, last = (word.strip().lower() for word in part.partition("-"))
        if first not in _DAY_NUMBERS or (dash and last not in _DAY_NUMBERS):
            raise _refuse(text, f"days are {', '.join(DAYS)}, like Mon-Fri or Sat,Sun")
        start, end = _DAY_NUMBERS[first], _DAY_NUMBERS[last or first]
        days |= {(start + step) % 7 for step in range((end - start) % 7 + 1)}
    return tuple(sorted(days))


def _window(text: str) -> Window:
    remedy = 'write it like "Mon-Fri 08:00-20:00", "Sat,Sun" or "22:00-06:00"'
    hours = _HOURS.search(text)
    if hours is None:
        if ":" in text or not text.strip():
            raise _refuse(text, remedy)
        return Window(days=_days(text), start_minute=0, end_minute=DAY_MINUTES)
    if text[hours.end() :].strip():
        raise _refuse(text, remedy)
    numbers = [int(number) for number in hours.groups()]
    start, end = numbers[0] * 60 + numbers[1], numbers[2] * 60 + numbers[3]
    if max(numbers[1], numbers[3]) > 59 or start >= DAY_MINUTES or end > DAY_MINUTES:
        raise _refuse(text, "hours are 00:00 to 24:00")
    if start == end:
        raise _refuse(text, "it begins when it ends: the whole day is 00:00-24:00")
    before = text[: hours.start()].strip()
    days = _days(before) if before else tuple(range(7))
    # An end at midnight is written 24:00 as well as 00:00.
    return Window(days=days, start_minute=start, end_minute=end or DAY_MINUTES)


def _when(value: object) -> tuple[Window, ...]:
    windows = tuple(_window(text) for text in _texts(value))
    if not windows:
        raise _refuse(value, 'write it like "Mon-Fri 08:00-20:00"')
    return windows


_bytes_a_second = _rate(parse_byte_rate, 'write it like "500MB/s" or "2GiB/s"')
_operations_a_second = _rate(parse_operation_rate, 'write it like "20k/s" or "500/s"')

PARSERS: dict[Kind, Callable[[object], object]] = {
    Kind.VERSION: _version,
    Kind.NAME: _name,
    Kind.TEXT: _text,
    Kind.TEXTS: _texts,
    Kind.PATH: _paths,
    Kind.ORIGIN: _origin,
    Kind.WHEN: _when,
    Kind.BYTE_RATE: _above_zero(_bytes_a_second),
    Kind.BYTE_SHARE: _or_share(_bytes_a_second),
    Kind.BYTE_LIMIT: _limit(_bytes_a_second),
    Kind.BYTE_BURST: _burst_bytes,
    Kind.OPERATION_RATE: _above_zero(_operations_a_second),
    Kind.OPERATION_SHARE: _or_share(_operations_a_second),
    Kind.OPERATION_LIMIT: _limit(_operations_a_second),
    Kind.OPERATION_BURST: _burst_operations,
    Kind.NODE_BYTES: _or_auto(_above_zero(_bytes_a_second)),
    Kind.NODE_OPERATIONS: _or_auto(_above_zero(_operations_a_second)),
    Kind.SIZE_SHARE: _size,
    Kind.WEIGHT: _weight,
    Kind.SHARE: _share_of_all,
    Kind.PRIORITY: _priority,
    Kind.COUNT: _count,
    Kind.DURATION: _duration,
    Kind.BOOLEAN: _boolean,
}

_UNITS = (("TiB", 1 << 40), ("TB", 10**12), ("GiB", 1 << 30), ("GB", 10**9), ("MiB", 1 << 20),
    ("MB", 10**6), ("KiB", 1 << 10), ("kB", 10**3))  # fmt: skip


def _written_bytes(count: float, end: str) -> object:
    """Return the shortest exact text of a number of bytes, or the number."""
    if count != int(count):
        return count
    exact = [
        f"{int(count) // unit_bytes}{unit}{end}"
        for unit, unit_bytes in (*_UNITS, ("B", 1))
        if count % unit_bytes == 0
    ]
    return min(exact, key=len)


def _written_operations(count: float) -> object:
    for unit, factor in (("M", 10**6), ("k", 1000)):
        if count and count % factor == 0:
            return f"{int(count) // factor}{unit}/s"
    plain = _plain(count)
    # An exponent is no part of the grammar.
    return plain if "e" in repr(plain) else f"{plain}/s"


def _plain(number: float) -> float:
    return int(number) if number == int(number) else number


def written(kind: Kind, value: object) -> object:
    """Return a parsed value as the file or JSON would say it; what is read again is equal."""
    if isinstance(value, Fraction):
        return f"{value.of_all * 100:.12g}%"
    if isinstance(value, tuple):
        texts = [str(one) if isinstance(one, Window) else one for one in value]
        return texts[0] if len(texts) == 1 else texts
    if not isinstance(value, int | float) or isinstance(value, bool):
        return value
    if value == inf:
        return UNLIMITED
    match kind:
        case Kind.BYTE_RATE | Kind.BYTE_SHARE | Kind.BYTE_LIMIT | Kind.NODE_BYTES:
            return _written_bytes(value, "/s")
        case Kind.SIZE_SHARE | Kind.BYTE_BURST:
            return _written_bytes(value, "")
        case Kind.OPERATION_RATE | Kind.OPERATION_SHARE | Kind.OPERATION_LIMIT:
            return _written_operations(value)
        case Kind.NODE_OPERATIONS:
            return _written_operations(value)
        case Kind.DURATION if "e" not in repr(value):
            return f"{_plain(value)}s"
        case _:
            return _plain(value)
