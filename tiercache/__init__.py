"""tiercache: the NVMe next to the GPUs as the near tier of S3, Google Cloud Storage and Azure Blob.

    import tiercache

    ns = tiercache.connect()
    data = ns.read("/imagenet/train-0001.tar", offset=0, length=65536)

Everything here is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tiercache.version import __version__

if TYPE_CHECKING:
    from tiercache.errors import TiercacheError
    from tiercache.fs import TierCacheFileSystem
    from tiercache.namespace import Namespace, connect

__all__ = ["Namespace", "TierCacheFileSystem", "TiercacheError", "__version__", "connect"]

_WHERE = {
    "connect": "tiercache.namespace",
    "Namespace": "tiercache.namespace",
    "TierCacheFileSystem": "tiercache.fs",
    "TiercacheError": "tiercache.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'tiercache' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
