"""Show the effective configuration: TOML that ``load`` reads again, or JSON."""

from __future__ import annotations

import json
import math

import msgspec

from tiercache.config.loading import MEANINGLESS, LoadedConfig
from tiercache.config.schema import (
    AGENT,
    CACHE,
    METADATA,
    MOUNT,
    PROFILE,
    QOS,
    Field,
    Kind,
    Section,
)
from tiercache.settings import FreeSpaceRatio, MountSettings, TotalBytes

_UNITS = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def show(loaded: LoadedConfig, *, with_origin: bool, as_json: bool) -> str:
    """Return the configuration in force. ``with_origin`` adds where each value came from: as a
    comment, in JSON as ``{"value": …, "origin": …}``. No secret can be in it."""
    tables = _tables(loaded)
    if as_json:
        return json.dumps(_as_json(tables, loaded.origins, with_origin), indent=2)
    return _as_toml(tables, loaded.origins, with_origin)


class _Table(msgspec.Struct, frozen=True):
    """One table: ``heading`` in TOML, ``at`` its dotted place, ``values`` by key."""

    section: Section
    heading: str
    at: str
    values: dict[str, object]


def _tables(loaded: LoadedConfig) -> list[_Table]:
    settings = loaded.settings
    tables = [_table(CACHE, "[cache]", "cache", settings.cache)]
    tables += [_mount(mount) for mount in settings.mounts]
    tables += [
        _table(PROFILE, f"[profile.{_toml_key(name)}]", f"profile.{name}", profile)
        for name, profile in sorted(settings.profiles.items())
    ]
    tables.append(_table(METADATA, "[metadata]", "metadata", settings.metadata))
    tables.append(_table(AGENT, "[agent]", "agent", settings.agent))
    tables.append(_table(QOS, "[qos]", "qos", settings.qos))
    return tables


def _mount(mount: MountSettings) -> _Table:
    """Return a mount without the keys that its consistency gives no meaning."""
    table = _table(MOUNT, "[[mount]]", f"mount.{mount.path}", mount)
    for key in MEANINGLESS.get(mount.consistency, ()):
        table.values.pop(key, None)
    return table


def _table(section: Section, heading: str, at: str, settings: msgspec.Struct) -> _Table:
    values = {}
    for field in section.fields:
        value = render_value(field, getattr(settings, field.target))
        if value is not None:
            values[field.key] = value
    return _Table(section, heading, at, values)


def render_value(field: Field, setting: object) -> object:
    """Return a setting as the configuration would say it; None where another key says it."""
    match setting, field.kind:
        case TotalBytes(), Kind.SIZE:
            return _size(setting.capacity_bytes)
        case FreeSpaceRatio(), Kind.RATIO:
            return f"{setting.ratio * 100:.12g}%"
        case ((TotalBytes() | FreeSpaceRatio()), _):
            return None
        case int(), Kind.SIZE:
            return _size(setting)
        case ((int() | float()), Kind.DURATION):
            return _duration(float(setting))
        case str(), _:
            return str(setting)
        case _:
            return setting


def _size(size_bytes: int) -> object:
    for unit, unit_bytes in _UNITS:
        if size_bytes % unit_bytes == 0:
            return f"{size_bytes // unit_bytes}{unit}"
    return size_bytes


def _duration(seconds: float) -> str:
    text = f"{seconds:.12g}"
    # An exponent is no part of a duration's grammar.
    return f"{seconds:f}s" if "e" in text else f"{text}s"


def _as_json(tables: list[_Table], origins: dict[str, str], with_origin: bool) -> dict[str, object]:
    def leaf(table: _Table, key: str, value: object) -> object:
        if isinstance(value, dict):
            return {name: leaf(table, f"{key}.{name}", inner) for name, inner in value.items()}
        if not with_origin:
            return value
        return {"value": value, "origin": _origin(table, key, origins)}

    result: dict[str, object] = {}
    mounts: list[object] = []
    profiles: dict[str, object] = {}
    for table in tables:
        content = {key: leaf(table, key, value) for key, value in table.values.items()}
        if table.section is MOUNT:
            mounts.append(content)
        elif table.section is PROFILE:
            profiles[table.at.removeprefix("profile.")] = content
        else:
            result[table.section.name] = content
    return {
        "cache": result["cache"],
        "mount": mounts,
        "profile": profiles,
        "metadata": result["metadata"],
        "agent": result["agent"],
        "qos": result["qos"],
    }


def _origin(table: _Table, key: str, origins: dict[str, str]) -> str:
    return origins[f"{table.at}.{key}"]


def _as_toml(tables: list[_Table], origins: dict[str, str], with_origin: bool) -> str:
    blocks = []
    for table in tables:
        lines = [(table.heading, "")]
        for key, value in table.values.items():
            if isinstance(value, dict):
                lines += [
                    (
                        f"{key}.{_toml_key(name)} = {_toml(inner)}",
                        _origin(table, f"{key}.{name}", origins),
                    )
                    for name, inner in sorted(value.items())
                ]
            else:
                lines.append((f"{key} = {_toml(value)}", _origin(table, key, origins)))
        width = max(len(text) for text, _ in lines)
        blocks.append(
            "\n".join(
                f"{text:<{width}}  # {origin}" if with_origin and origin else text
                for text, origin in lines
            )
        )
    return "\n\n".join(blocks) + "\n"


def _toml(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case float() if not math.isfinite(value):
            return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
        case int() | float():
            return repr(value)
        case _:
            # JSON's string is a TOML basic string but for DEL.
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_key(name: str) -> str:
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare else _toml(name)
