"""From files, environment and arguments to ``Settings``, with the place of every value.

Later sources override earlier ones key by key: /etc/tiercache/config.toml,
$XDG_CONFIG_HOME/tiercache/config.toml, the file that TIERCACHE_CONFIG names,
TIERCACHE_SECTION__KEY, arguments. ``docs/configuration.md`` is generated from ``schema``.

Everything here is imported when it is first used: an agent without a policy reads no file.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiercache.config.loading import LoadedConfig, load
    from tiercache.config.rendering import show

__all__ = ["LoadedConfig", "load", "show"]

_WHERE = {"LoadedConfig": "loading", "load": "loading", "show": "rendering"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
