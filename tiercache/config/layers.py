"""The sources of configuration, each as a flat layer of checked entries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from tiercache.config.places import Path, line_numbers, line_of
from tiercache.config.schema import AGENT, CACHE, METADATA, MOUNT, PROFILE, QOS, Kind, Section
from tiercache.config.toml_text import parse_toml
from tiercache.config.values import (
    nearest_hint,
    parse,
    parse_option,
    refuse_secrets,
    section_named,
    unknown_key,
)
from tiercache.errors import ConfigError

ENV_PREFIX = "TIERCACHE_"
ENV_FILE = "TIERCACHE_CONFIG"


@dataclass(frozen=True, slots=True)
class Entry:
    """A checked value, and where it came from: "file:line", "env NAME" or "argument"."""

    value: object
    place: str


# ("cache", "dir"), ("mount", "/imagenet", "ttl"), ("profile", "east", "options", "name")
Key: TypeAlias = tuple[str, ...]
Layer: TypeAlias = dict[Key, Entry]


class _Source:
    """One source being read into a layer."""

    def __init__(self, lines: dict[Path, int] | None, name: str, *, from_text: bool) -> None:
        self._lines = lines
        self._name = name
        self._from_text = from_text
        self.layer: Layer = {}

    def place(self, path: Path) -> str:
        return self._name if self._lines is None else f"{self._name}:{line_of(self._lines, path)}"

    def section(self, section: Section, key: Key, path: Path, table: object) -> None:
        """Take over the keys of one table; ``key`` and ``path`` are where it stands in the layer
        and in the source."""
        if not isinstance(table, dict):
            raise ConfigError(
                f"{'.'.join(key)} is not a table",
                path=self.place(path),
                remedy=f"write {section.heading} on a line of its own and the keys below",
            )
        for name, value in table.items():
            if value is None:
                continue
            place = self.place((*path, name))
            field = section.field(name)
            if field is None:
                raise unknown_key(section, name, place)
            if field.kind is Kind.TABLE:
                self._options((*key, name), (*path, name), value)
            else:
                parsed = parse(field, value, place, from_text=self._from_text)
                self.layer[*key, name] = Entry(parsed, place)

    def _options(self, key: Key, path: Path, table: object) -> None:
        if not isinstance(table, dict):
            raise ConfigError(
                f"{key[-1]} is not a table", path=self.place(path), remedy=Kind.TABLE.value
            )
        for name, value in table.items():
            place = self.place((*path, name))
            self.layer[*key, name] = Entry(parse_option(name, value, place), place)

    def profiles(self, table: object) -> None:
        if not isinstance(table, dict):
            raise ConfigError(
                "profile is not a table",
                path=self.place(("profile",)),
                remedy="write [profile.NAME]",
            )
        for name, profile in table.items():
            if not isinstance(profile, dict):
                raise ConfigError(
                    f"[profile] holds {name!r} without a profile's name",
                    path=self.place(("profile", name)),
                    remedy="write [profile.NAME], or [profile.default]",
                )
            # Known by its header even where no key follows.
            self.layer["profile", name, ""] = Entry(None, self.place(("profile", name)))
            self.section(PROFILE, ("profile", name), ("profile", name), profile)

    def mounts(self, tables: object) -> None:
        if not isinstance(tables, list | tuple):
            raise ConfigError(
                "mount is a single table", path=self.place(("mount",)), remedy="write [[mount]]"
            )
        for index, table in enumerate(tables):
            path: Path = ("mount", index)
            mount_path = table.get("path") if isinstance(table, dict) else None
            if isinstance(table, dict) and mount_path is None:
                for name in table:
                    if MOUNT.field(name) is None:
                        raise unknown_key(MOUNT, name, self.place((*path, name)))
                raise ConfigError(
                    "a mount without a path",
                    path=self.place(path),
                    remedy='give it one, such as path = "/imagenet"',
                )
            if not isinstance(mount_path, str):
                raise ConfigError("a mount's path is not text", path=self.place((*path, "path")))
            place = self.place((*path, "path"))
            check_mount_path(mount_path, place)
            standing = self.layer.get(("mount", mount_path, "path"))
            if standing is not None:
                raise ConfigError(
                    f"{mount_path} is mounted twice",
                    path=place,
                    remedy=f"the first is at {standing.place}; remove one of them",
                )
            self.section(MOUNT, ("mount", mount_path), path, table)


def check_mount_path(path: str, place: str) -> None:
    """Raise ConfigError for a path that is not absolute and in normal form."""
    segments = path.split("/")
    if not path.startswith("/"):
        message, remedy = "is not absolute", f'write "/{path}"'
    elif path == "/":
        message, remedy = "is the root of the namespace", "give the mount a name below it"
    elif path.endswith("/"):
        message, remedy = "ends with a slash", f'write "{path.rstrip("/")}"'
    elif "" in segments[1:] or "." in segments or ".." in segments or "\0" in path:
        message, remedy = "is not in normal form", 'write it without "//", "." and ".."'
    else:
        return
    raise ConfigError(f"mount path {path!r} {message}", path=place, remedy=remedy)


def _read(source: _Source, data: Mapping[str, object]) -> Layer:
    for name, value in data.items():
        if value is None:
            continue
        section = section_named(name, source.place((name,)))
        if section is MOUNT:
            source.mounts(value)
        elif section is PROFILE:
            source.profiles(value)
        elif section is METADATA and isinstance(value, str):
            source.section(section, (name,), (name,), {"url": value})
        else:
            source.section(section, (name,), (name,), value)
    _refuse_both_limits(source.layer)
    return source.layer


def _refuse_both_limits(layer: Layer) -> None:
    capacity, free = layer.get(("cache", "capacity")), layer.get(("cache", "free_space"))
    if capacity is not None and free is not None:
        raise ConfigError(
            "capacity and free_space contradict each other",
            path=free.place,
            remedy=f"remove one; capacity stands at {capacity.place}",
        )


def file_layer(text: str, file: str) -> Layer:
    """Read one TOML file. Raises ConfigError naming file and line."""
    data = parse_toml(text, file)
    lines = line_numbers(text)
    _refuse_secrets_of_file(data, (), lines, file)
    return _read(_Source(lines, file, from_text=False), data)


def _refuse_secrets_of_file(tree: object, path: Path, lines: dict[Path, int], file: str) -> None:
    """Search everything, before anything else is said about the file."""
    match tree:
        case dict():
            for name, value in tree.items():
                _refuse_secrets_of_file(value, (*path, name), lines, file)
        case list():
            for index, value in enumerate(tree):
                _refuse_secrets_of_file(value, (*path, index), lines, file)
        case _:
            name = next(part for part in reversed(path) if isinstance(part, str))
            refuse_secrets(tree, name, f"{file}:{line_of(lines, path)}")


def argument_layer(overrides: Mapping[str, object]) -> Layer:
    """Read arguments: nested tables as in TOML, or dotted keys ("cache.dir",
    "profile.east.region"). None means not given."""
    tree: dict[str, object] = {}
    for dotted, value in overrides.items():
        if value is None:
            continue
        refuse_secrets(value, dotted.rpartition(".")[2], "argument")
        *tables, last = dotted.split(".")
        inner = tree
        for name in tables:
            inner = _table(inner, name)
        if isinstance(value, Mapping):
            _table(inner, last).update(value)
        else:
            inner[last] = value
    return _read(_Source(None, "argument", from_text=True), tree)


def _table(tree: dict[str, object], name: str) -> dict[str, object]:
    found = tree.setdefault(name, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{name} is given as a value and as a table", path="argument")
    return found


def environment_layer(environ: Mapping[str, str], profiles: set[str]) -> Layer:
    """Read TIERCACHE_SECTION__KEY. A profile's name is found in any case and with "_" for "-"
    among ``profiles``; a new one is taken in lower case with "-"."""
    layer: Layer = {}
    by_env_name = {_env_name(name): name for name in sorted(profiles)}
    for name, value in sorted(environ.items()):
        if not name.startswith(ENV_PREFIX) or name == ENV_FILE:
            continue
        place = f"env {name}"
        parts = name.removeprefix(ENV_PREFIX).split("__")
        if len(parts) == 1:
            _refuse_single_underscore(parts[0], place)
            continue
        refuse_secrets(value, parts[-1].lower(), place)
        source = _Source(None, place, from_text=True)
        match [part.lower() for part in parts]:
            case ["cache" | "agent" | "metadata" | "qos" as section, key]:
                source.section(section_named(section, place), (section,), (), {key: value})
            case ["profile", _, key]:
                profile = by_env_name.get(parts[1], parts[1].lower().replace("_", "-"))
                source.section(PROFILE, ("profile", profile), (), {key: value})
            case ["profile", _, "options", option]:
                profile = by_env_name.get(parts[1], parts[1].lower().replace("_", "-"))
                source.section(PROFILE, ("profile", profile), (), {"options": {option: value}})
            case ["mount", *_]:
                remedy = "mounts stand in a configuration file"
                raise ConfigError("no mount by environment", path=place, remedy=remedy)
            case [section, *_]:
                section_named(section, place)
                form = "TIERCACHE_SECTION__KEY, TIERCACHE_PROFILE__NAME__KEY"
                raise ConfigError("not a configuration key", path=place, remedy=f"write {form}")
        layer.update(source.layer)
    _refuse_both_limits(layer)
    return layer


def _env_name(profile: str) -> str:
    return "".join(char if char.isalnum() else "_" for char in profile).upper()


def _refuse_single_underscore(rest: str, place: str) -> None:
    """Refuse TIERCACHE_CACHE_DIR, which would be ignored in silence."""
    for section in (CACHE, METADATA, AGENT, QOS):
        for field in section.fields:
            if rest == f"{section.name}_{field.key}".upper():
                right = f"{ENV_PREFIX}{section.name.upper()}__{field.key.upper()}"
                raise ConfigError("one underscore", path=place, remedy=f"write {right}")


def unknown_profile(name: str, known: set[str], place: str) -> ConfigError:
    return ConfigError(
        f"no profile {name!r}", path=place, remedy=nearest_hint(name, known, "the profiles are")
    )
