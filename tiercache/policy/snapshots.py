"""Paths of dataset snapshots, and the tree that a snapshot's objects make.

``/NAME@snapshot/imagenet/x`` is what the snapshot NAME froze of ``/imagenet/x``; what was frozen
of an origin URL stands below as it is (``/NAME@snapshot/s3://bucket/x``). No mount has such a name.
"""

from __future__ import annotations

import re

from tiercache.errors import ConfigError

SUFFIX = "@snapshot"
ROOT = "/"
# The names of what is made for one comparison begin with this: nobody else's can, and it is shown
# to nobody.
SCRATCH = "~"
# Instead of a snapshot's name: what the origins list now.
LIVE = "live"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_HEAD = re.compile(r"(?:tiercache://|/)?([^/]*)@snapshot(?:/(.*))?", re.DOTALL)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# The topmost directory of a URL: its bucket, of a file URL the first directory.
_TOP = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:///?[^/]*")


def check_name(name: str) -> str:
    """Return the name. Raises ConfigError where it is none of a snapshot."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            "a snapshot's name is 1 to 100 letters, digits, '.', '_' and '-', and begins with a "
            "letter or digit",
            path=ascii(name)[1:-1],
        )
    return name


def is_scratch(name: str) -> bool:
    return name.startswith(SCRATCH)


def split(path: str) -> tuple[str, str] | None:
    """Return (snapshot, namespace path inside it), None for a path of no snapshot.

    The whole snapshot has the path "/". Raises ConfigError for a name that none can have.
    """
    if SUFFIX not in path:
        return None
    found = _HEAD.fullmatch(path)
    if found is None:
        return None
    below = found[2] or ""
    return check_name(found[1]), below if _URL.match(below) else ROOT + below


def join(name: str, path: str = ROOT) -> str:
    """Return the path under which a snapshot shows what it froze of ``path``."""
    return f"/{name}{SUFFIX}/{path.removeprefix(ROOT)}"


def below(path: str) -> str:
    """Return what all paths below a directory begin with; nothing for a whole snapshot."""
    if path == ROOT:
        return ""
    return path if path.endswith("/") else path + "/"


def child(path: str, prefix: str) -> tuple[str, bool]:
    """Return the name that a path below ``prefix`` has there, and whether that is a directory."""
    if not prefix:
        if not path.startswith(ROOT):
            top = _TOP.match(path)
            assert top is not None, path
            return top[0], len(top[0]) < len(path)
        prefix = ROOT
    name, slash, _ = path[len(prefix) :].partition("/")
    return name, bool(slash)


def after(prefix: str, name: str, path: str) -> str:
    """Return the least path behind the directory ``name`` of ``prefix``, in which ``path`` is."""
    start = prefix or (ROOT if path.startswith(ROOT) else "")
    return f"{start}{name}0"  # the character behind "/"


def relative(path: str, prefix: str) -> str:
    """Return a path below ``prefix``, relative to it."""
    return path[len(prefix) :] if prefix else path.removeprefix(ROOT)


CHANGED_REMEDY = "put the frozen version back, or make the snapshot anew"


def changed(snapshot: str, frozen: str, found: str, *, stale: bool = False) -> str:
    """Return what is wrong with an object that has another version (``found`` is empty for none)
    than a snapshot froze; ``stale`` where that is only what was last known."""
    now = f"has {found}" if found else "has none"
    if stale:
        now = f"{now}, as was last known of it"
    return f"the snapshot {snapshot} froze version {frozen}, and the origin {now}"
