"""Storage options to settings, and the namespaces that all instances of a process share."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping
from typing import Any

import msgspec

from tiercache.config.loading import load
from tiercache.namespace import Namespace
from tiercache.settings import Settings

Table = Mapping[str, Any]

# fsspec makes instances by arguments, thread and loop; readers, descriptors and connections are
# per namespace, so equal settings share one. Guarded by _lock; both outlive a fork.
_namespaces: weakref.WeakValueDictionary[bytes, Namespace] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def settings_of(
    *,
    config: str | os.PathLike[str] | None,
    cache_dir: str | os.PathLike[str] | None,
    mounts: Mapping[str, str | Table] | None,
    profiles: Mapping[str, Table] | None,
    cache: Table | None,
    agent: Table | None,
    qos: Table | None,
) -> Settings:
    """Merge storage options over the configuration's files and environment.

    ``mounts`` maps a path to an origin URL or to a table of keys as in the file; mounts of the
    options are added to those of the file. Raises ConfigError.
    """
    overrides: dict[str, object] = {
        "mount": None if mounts is None else [_mount(*item) for item in mounts.items()],
        "profile": profiles,
        "cache": cache,
        "agent": agent,
        "qos": qos,
        "cache.dir": None if cache_dir is None else os.fspath(cache_dir),
    }
    return load(None if config is None else os.fspath(config), overrides=overrides).settings


def _mount(path: str, value: str | Table) -> dict[str, Any]:
    table = {"origin": value} if isinstance(value, str) else dict(value)
    return {"path": path, **table}


def shared_namespace(settings: Settings, *, embedded: bool) -> Namespace:
    """Return this process's namespace of these settings; nothing is opened before its use."""
    key = msgspec.json.encode([settings, embedded])
    with _lock:
        namespace = _namespaces.get(key)
        if namespace is None:
            namespace = _namespaces[key] = Namespace(settings, embedded=embedded)
        return namespace


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
