"""Merge the layers and build the settings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from tiercache.config.layers import (
    ENV_FILE,
    Entry,
    Key,
    Layer,
    argument_layer,
    environment_layer,
    file_layer,
    unknown_profile,
)
from tiercache.config.schema import AGENT, CACHE, METADATA, MOUNT, PROFILE, QOS, Kind, Section
from tiercache.errors import ConfigError
from tiercache.model import Consistency
from tiercache.policy.urls import parse_metadata_url, parse_origin_url
from tiercache.settings import (
    AgentSettings,
    CacheSettings,
    MetadataSettings,
    MountSettings,
    ProfileSettings,
    QosSettings,
    Settings,
)

SYSTEM_FILE = "/etc/tiercache/config.toml"
DEFAULT = "default"

_NEVER_ASKS, _ALWAYS_ASKS = "which never asks the origin again", "which always asks the origin"
# Keys of a mount that its consistency gives no meaning, and why
MEANINGLESS = {
    Consistency.IMMUTABLE: {"ttl": _NEVER_ASKS, "offline": _NEVER_ASKS},
    Consistency.STRONG: {"ttl": _ALWAYS_ASKS, "negative_ttl": _ALWAYS_ASKS},
}

_S = TypeVar("_S", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedConfig:
    """``origins`` says for each key of ``settings`` where its value came from: "file:line",
    "env NAME", "argument" or "default". Keys: "cache.dir", "mount./imagenet.ttl",
    "profile.east.region", "profile.east.options.name". ``files`` are the files that were read."""

    settings: Settings
    origins: dict[str, str]
    files: tuple[str, ...] = ()


def load(
    config: str | Path | None = None,
    *,
    overrides: Mapping[str, object] = {},
    environ: Mapping[str, str] = os.environ,
) -> LoadedConfig:
    """Return the effective configuration.

    ``config`` names one file that replaces the search for files. ``overrides`` are arguments, by
    dotted key ("cache.dir") or as nested tables; None means not given. Raises ConfigError, whose
    ``path`` is the place and which never prints a credential.
    """
    layers: list[Layer] = []
    files: list[str] = []
    for file, required in _files(config, environ):
        text = _read_file(file, required)
        if text is not None:
            layers.append(file_layer(text, file))
            files.append(file)
    profiles = {key[1] for layer in layers for key in layer if key[0] == "profile"}
    layers.append(environment_layer(environ, profiles))
    layers.append(argument_layer(overrides))
    merged = _merge(layers)
    return LoadedConfig(settings=_build(merged), origins=_origins(merged), files=tuple(files))


def _files(config: str | Path | None, environ: Mapping[str, str]) -> list[tuple[str, bool]]:
    """Return the files to read, weakest first, and whether each must be there."""
    if config is not None:
        return [(os.path.abspath(os.path.expanduser(config)), True)]
    home = environ.get("XDG_CONFIG_HOME") or os.path.join(
        environ.get("HOME") or os.path.expanduser("~"), ".config"
    )
    files = [(SYSTEM_FILE, False), (os.path.join(home, "tiercache", "config.toml"), False)]
    named = environ.get(ENV_FILE)
    if named:
        files.append((os.path.abspath(os.path.expanduser(named)), True))
    return files


def _read_file(file: str, required: bool) -> str | None:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        if not required:
            return None
        remedy = f"check --config, config= and {ENV_FILE}"
        raise ConfigError("no such configuration file", path=file, remedy=remedy) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", path=file) from error
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8 text", path=file) from None


def _merge(layers: Iterable[Layer]) -> Layer:
    merged: Layer = {}
    limits: tuple[Key, Key] = (("cache", "capacity"), ("cache", "free_space"))
    for layer in layers:
        if any(key in layer for key in limits):
            for key in limits:
                merged.pop(key, None)
        merged.update(layer)
    return merged


def _build(merged: Layer) -> Settings:
    profiles = {
        name: _struct(PROFILE, ("profile", name), merged, ProfileSettings, name=name)
        for name in {"default": None} | _names(merged, "profile")
    }
    mounts = tuple(_mount(path, merged, profiles) for path in _names(merged, "mount"))
    return Settings(
        cache=_struct(CACHE, ("cache",), merged, CacheSettings),
        mounts=mounts,
        profiles=profiles,
        agent=_struct(AGENT, ("agent",), merged, AgentSettings),
        metadata=_metadata(merged, profiles),
        qos=_struct(QOS, ("qos",), merged, QosSettings),
    )


def _names(merged: Layer, section: str) -> dict[str, None]:
    """Return the names of mounts or profiles in the order in which they first appear."""
    return dict.fromkeys(key[1] for key in merged if key[0] == section)


def _struct(section: Section, at: Key, merged: Layer, kind: type[_S], **more: object) -> _S:
    values: dict[str, object] = dict(more)
    for field in section.fields:
        if field.kind is Kind.TABLE:
            inside = (*at, field.key)
            values[field.target] = {
                key[-1]: entry.value for key, entry in merged.items() if key[:-1] == inside
            }
        elif (*at, field.key) in merged:
            values[field.target] = merged[*at, field.key].value
    return kind(**values)


def _metadata(merged: Layer, profiles: Mapping[str, ProfileSettings]) -> MetadataSettings:
    settings = _struct(METADATA, ("metadata",), merged, MetadataSettings)
    url, profile = merged.get(("metadata", "url")), merged.get(("metadata", "profile"))
    if profile is not None and settings.profile not in profiles:
        raise unknown_profile(settings.profile, set(profiles), profile.place)
    if url is not None and settings.url:
        try:
            parse_metadata_url(settings.url)
        except ConfigError as error:
            raise ConfigError(error.message, path=url.place, remedy=error.remedy) from None
    return settings


def _mount(path: str, merged: Layer, profiles: Mapping[str, ProfileSettings]) -> MountSettings:
    def entry(key: str) -> Entry | None:
        return merged.get(("mount", path, key))

    here = merged["mount", path, "path"]
    origin = entry("origin")
    if origin is None:
        raise ConfigError(
            f"mount {path} has no origin",
            path=here.place,
            remedy='give it one, such as origin = "s3://bucket/prefix"',
        )
    mode = entry("consistency")
    consistency = Consistency(str(mode.value)) if mode else Consistency.EVENTUAL
    mount = _struct(MOUNT, ("mount", path), merged, MountSettings)
    mount = msgspec.structs.replace(mount, consistency=consistency)
    if mount.profile not in profiles:
        place = entry("profile")
        raise unknown_profile(mount.profile, set(profiles), place.place if place else here.place)
    _check_origin(mount.origin, profiles[mount.profile], origin.place)
    for key, reason in MEANINGLESS.get(consistency, {}).items():
        given = entry(key)
        if given is not None:
            raise ConfigError(
                f"{key} on a mount that is {consistency}, {reason}",
                path=given.place,
                remedy=f'remove {key}, or set consistency = "eventual"',
            )
    offline = entry("offline")
    if consistency is Consistency.STRONG and offline is not None and mount.offline != "error":
        raise ConfigError(
            "a strong mount serves nothing while its origin does not answer",
            path=offline.place,
            remedy='remove offline, or set consistency = "close-to-open"',
        )
    return mount


def _check_origin(origin: str, profile: ProfileSettings, place: str) -> None:
    # What fsspec knows depends on what is installed where the agent runs.
    anything = profile.driver == "fsspec"
    more = frozenset({origin.partition("://")[0].lower()}) if anything else frozenset()
    try:
        parse_origin_url(origin, more_schemes=more)
    except ConfigError as error:
        raise ConfigError(error.message, path=place, remedy=error.remedy) from None


def _origins(merged: Layer) -> dict[str, str]:
    found: dict[str, str] = {}

    def note(section: Section, at: Key) -> None:
        for field in section.fields:
            key = (*at, field.key)
            if field.kind is not Kind.TABLE:
                found[".".join(key)] = merged[key].place if key in merged else DEFAULT
            for option, entry in merged.items():
                if option[:-1] == key:
                    found[".".join(option)] = entry.place

    note(CACHE, ("cache",))
    del found["cache.free_space" if ("cache", "capacity") in merged else "cache.capacity"]
    for path in _names(merged, "mount"):
        note(MOUNT, ("mount", path))
    for name in {"default": None} | _names(merged, "profile"):
        note(PROFILE, ("profile", name))
    note(METADATA, ("metadata",))
    note(AGENT, ("agent",))
    note(QOS, ("qos",))
    return found
