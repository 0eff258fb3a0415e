"""Paths of the filesystem: what stands before "://" goes, and the mount's own path remains.

"tiercache://imagenet/a", "/imagenet/a" and "imagenet/a" are one name: "/imagenet/a". An origin URL
stays one ("tiercache://s3://bucket/a" is "s3://bucket/a", mounted implicitly). As everywhere in
fsspec a slash at the end goes too; keys that end in one are reached through ``tiercache.connect``.
"""

from __future__ import annotations

import os
import re

PROTOCOL = "tiercache"
ROOT = "/"
_PREFIX = PROTOCOL + "://"
_CHAIN = PROTOCOL + "::"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def strip(path: str | os.PathLike[str]) -> str:
    """Return the namespace path, or the origin URL, without a slash at its end.

    Raises TypeError for what is no path.
    """
    text = path if type(path) is str else _text(path)
    if text.startswith("/") and not text.startswith("//"):
        return text.rstrip("/") or ROOT
    if text.startswith(_PREFIX):
        text = text[len(_PREFIX) :]
    elif text.startswith(_CHAIN):
        text = text[len(_CHAIN) :]
    if _URL.match(text):
        return text.rstrip("/")
    return ROOT + text.strip("/") if text.startswith("/") else (ROOT + text).rstrip("/") or ROOT


def _text(path: object) -> str:
    if isinstance(path, str | os.PathLike):
        text = os.fspath(path)
        if isinstance(text, str):
            return str(text)
    raise TypeError(f"a path is a string or path-like, not {type(path).__name__}")


def unstrip(path: str) -> str:
    """Return the full URL of a stripped path."""
    return path if path.startswith(_PREFIX) else _PREFIX + path.removeprefix(ROOT)


def parent(path: str) -> str:
    """Return the directory that a stripped path stands in; the root and buckets are their own."""
    above, slash, _ = path.rpartition("/")
    if not slash or above.endswith("/"):  # "s3:/" is left of a bucket's name
        return path
    return above or ROOT


def join(directory: str, name: str) -> str:
    return directory + name if directory.endswith("/") else f"{directory}/{name}"
