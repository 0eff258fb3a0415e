"""webdataset and ``tiercache://``: it opens URLs by a table of its own, not by fsspec."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tiercache.fs.filesystem import TierCacheFileSystem
from tiercache.fs.paths import PROTOCOL


def register(filesystem: TierCacheFileSystem | None = None) -> None:
    """Let ``webdataset`` open ``tiercache://`` URLs in this process and its forked children,
    through ``filesystem`` or one made from the usual configuration. Raises ImportError where
    webdataset is not installed."""
    opened = filesystem or TierCacheFileSystem()

    def gopen(url: str, mode: str = "rb", bufsize: int = 8192) -> Any:
        """``bufsize`` is webdataset's default for pipes; nothing is buffered here."""
        return opened.open(url, mode)

    # Not ``webdataset.gopen``: the package has a function of that name.
    import_module("webdataset.gopen").gopen_schemes[PROTOCOL] = gopen
