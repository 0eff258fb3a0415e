"""Parse and print quantities. Strings like "2TiB" end here; everything inside is a number.

Byte sizes take SI (kB, MB, GB, TB, PB: powers of 1000) and IEC (KiB … PiB: powers of 1024)
suffixes; durations take ns, us, ms, s, m, h, d; rates end in "/s".
"""

from __future__ import annotations

import re

from tiercache.errors import ConfigError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

_BYTES = {"": 1, "b": 1} | {
    f"{p}{s}": base ** (i + 1)
    for i, p in enumerate("kmgtp")
    for s, base in (("b", 1000), ("ib", 1024))
}
_SECONDS = {"": 1.0, "ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0} | {
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
_EXAMPLES = {
    "size": "write it like 512MiB, 2TiB or 10GB",
    "duration": "write it like 500ms, 60s, 5m or 1h",
    "number of operations": "write it like 20k or 500",
}
_OPERATIONS = {"": 1, "k": 1000, "m": 10**6}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


def _split(text: str, what: str) -> tuple[int | float, str]:
    match = _QUANTITY.fullmatch(text)
    # With 300 digits and a unit a float overflows; nobody means a number of a hundred.
    if match is None or len(text) > 100:
        raise ConfigError(f"{text[:100]!r} is not a {what}", remedy=_EXAMPLES.get(what, ""))
    # Whole numbers stay exact beyond 2^53.
    return (float if "." in match[1] else int)(match[1]), match[2].lower()


def parse_bytes(text: str | int) -> int:
    """Return a size in bytes. Raises ConfigError for anything else than "2TiB", "64 KiB", 4096."""
    if isinstance(text, int):
        if text < 0:
            raise ConfigError(f"{text} is not a size", remedy="sizes are not negative")
        return text
    number, unit = _split(text, "size")
    if unit not in _BYTES:
        raise ConfigError(f"{text!r} has no size unit", remedy=_EXAMPLES["size"])
    return int(number * _BYTES[unit])


def parse_byte_rate(text: str) -> float:
    """Return bytes a second from "500MB/s". Raises ConfigError for anything else."""
    remedy = "write it like 500MB/s or 2GiB/s"
    size, slash, second = text.partition("/")
    if not slash or second.strip() not in ("s", "sec"):
        raise ConfigError(f"{text!r} is not a rate", remedy=remedy)
    try:
        return float(parse_bytes(size))
    except ConfigError:
        raise ConfigError(f"{text!r} is not a rate", remedy=remedy) from None


def parse_operation_rate(text: str) -> float:
    """Return operations a second from "20k/s". Raises ConfigError for anything else."""
    remedy = "write it like 20k/s or 500/s"
    count, slash, second = text.partition("/")
    if not slash or second.strip() not in ("s", "sec"):
        raise ConfigError(f"{text!r} is not a rate of operations", remedy=remedy)
    try:
        return parse_operations(count)
    except ConfigError:
        raise ConfigError(f"{text!r} is not a rate of operations", remedy=remedy) from None


def parse_operations(text: str) -> float:
    """Return a number of operations from "20k". Raises ConfigError for anything else."""
    number, unit = _split(text, "number of operations")
    if unit not in _OPERATIONS:
        remedy = _EXAMPLES["number of operations"]
        raise ConfigError(f"{text!r} is not a number of operations", remedy=remedy)
    return number * _OPERATIONS[unit]


def parse_duration(text: str | int | float) -> float:
    """Return seconds. Raises ConfigError for anything else than "60s", "5m", "1.5h", 30."""
    if isinstance(text, int | float):
        if text < 0:
            raise ConfigError(f"{text} is not a duration", remedy="durations are not negative")
        return float(text)
    number, unit = _split(text, "duration")
    if unit not in _SECONDS:
        raise ConfigError(f"{text!r} has no time unit", remedy=_EXAMPLES["duration"])
    return number * _SECONDS[unit]


def parse_ratio(text: str | float) -> float:
    """Return a ratio in (0, 1) from "10%" or 0.1. Raises ConfigError otherwise."""
    if isinstance(text, str) and text.strip().endswith("%"):
        number, unit = _split(text.strip()[:-1], "percentage")
        ratio = number / 100 if not unit else -1.0
    elif isinstance(text, str):
        ratio = _split(text, "ratio")[0]
    else:
        ratio = float(text)
    if not 0.0 < ratio < 1.0:
        raise ConfigError(f"{text!r} is not a ratio", remedy='write it like "10%"')
    return ratio


def format_bytes(count: float) -> str:
    """Return "1.5 MiB": IEC units, at most one decimal."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} PiB"


def format_duration(seconds: float) -> str:
    """Return "450 ms", "12.3 s", "3:05" or "2:03:05"."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
