"""The namespace: which origin and key a path names, and which path a key has.

Paths are absolute ("/imagenet/a"; "tiercache://imagenet/a" is the same), or origin URLs
("s3://bucket/a"). The longest mount that covers a path wins, so mounts may be nested. Keys are
taken verbatim: ``//``, ``%2F``, a slash at the end and any unicode stay as they are. A URL that no
mount covers is mounted implicitly: at its bucket's URL, with the profile "default".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set

import msgspec

from tiercache.errors import ConfigError, IsADirectory, NotFound, Unsupported
from tiercache.policy import snapshots
from tiercache.policy.urls import OriginUrl, parse_origin_url
from tiercache.settings import MountSettings, ProfileSettings

# The limit of all three clouds, in UTF-8.
MAX_KEY_BYTES = 1024
OWN_SCHEME = "tiercache://"
# An implicit mount is remembered, since paths of one bucket come in millions; the buckets of one
# process are few. Beyond this many the memory starts anew.
IMPLICIT_MOUNTS = 1024

_DOT_SEGMENT = re.compile(r"(?:^|/)\.\.?(?:/|$)")
_BUCKET_PART = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)")


class Resolved(msgspec.Struct, frozen=True, gc=False):
    """What a path names: ``key`` of the bucket of ``origin``, seen through ``mount``.

    ``path`` is the namespace path; a URL covered by a mount gets the path it has there. The key of
    a mount's own path is the origin's prefix, without a slash.
    """

    mount: MountSettings
    origin: OriginUrl
    key: str
    path: str


class _Point(msgspec.Struct, frozen=True):
    """A mount, taken apart. ``below`` is its path and a slash; ``base`` its origin as a URL in
    canonical spelling, without a slash at its end."""

    mount: MountSettings
    origin: OriginUrl
    below: str
    base: str

    @classmethod
    def of(
        cls, mount: MountSettings, more_schemes: Set[str], profile: ProfileSettings | None = None
    ) -> _Point:
        if profile is not None and profile.driver == "fsspec":
            more_schemes = more_schemes | {mount.origin.partition("://")[0].lower()}
        origin = parse_origin_url(mount.origin, more_schemes=more_schemes)
        return cls(mount, origin, mount.path + "/", _canonical(origin, origin.prefix))


def _canonical(origin: OriginUrl, key: str) -> str:
    """Return the URL of a key. A file's bucket is its directory, so all of its path counts."""
    base = f"{origin.scheme}://{origin.bucket}"
    if base == "file:///":
        base = "file://"
    return f"{base}/{key}" if key else base


class MountTable:
    """All mounts. Thread safe: nothing that ``resolve`` gives depends on what came before.

    Raises ConfigError for an origin URL that cannot be read, two mounts of one path, or a mount
    whose profile is not among ``profiles``. ``more_schemes`` are fsspec protocols to accept in
    addition to the known ones; a profile with the fsspec driver accepts any.
    """

    def __init__(
        self,
        mounts: Iterable[MountSettings],
        profiles: Mapping[str, ProfileSettings],
        *,
        more_schemes: Set[str] = frozenset(),
    ) -> None:
        # Constant after construction
        self._more_schemes = more_schemes
        self._by_path: dict[str, _Point] = {}
        for mount in mounts:
            if mount.path in self._by_path:
                raise ConfigError("mounted twice", path=mount.path, remedy="remove one of the two")
            if mount.path.lstrip("/").split("/", 1)[0].endswith(snapshots.SUFFIX):
                raise ConfigError(
                    "a name of snapshots", path=mount.path, remedy="mount it elsewhere"
                )
            if mount.profile not in profiles:
                raise ConfigError(
                    f"no profile {mount.profile!r}",
                    path=mount.path,
                    remedy=f"known are {', '.join(sorted(profiles))}",
                )
            self._by_path[mount.path] = _Point.of(mount, more_schemes, profiles[mount.profile])
        longest_first = sorted(
            self._by_path.values(), key=lambda point: len(point.below), reverse=True
        )
        # By first segment: a look-up then tries the few mounts that can match.
        self._by_head: dict[str, list[_Point]] = {}
        for point in longest_first:
            self._by_head.setdefault(point.below.split("/", 2)[1], []).append(point)
        self._by_base = sorted(
            self._by_path.values(), key=lambda point: len(point.base), reverse=True
        )
        # A memory of pure results; replaced entries are equal
        self._implicit: dict[str, _Point] = {}

    @property
    def mounts(self) -> tuple[MountSettings, ...]:
        return tuple(point.mount for point in self._by_path.values())

    def resolve(self, path: str) -> Resolved:
        """Return what ``path`` names. Costs ~1 µs for namespace paths.

        Raises ConfigError (a ValueError) for a path that is not absolute, holds NUL, "." or ".."
        segments or a key over 1,024 bytes; IsADirectory for a directory above mounts, NotFound
        where nothing is mounted, Unsupported for a path in a snapshot.
        """
        if not path.startswith("/"):
            if not path.startswith(OWN_SCHEME):
                return self._resolve_url(path)
            path = "/" + path[len(OWN_SCHEME) :].removeprefix("/")
        if "\0" in path:
            raise ConfigError("a path cannot hold NUL", path=path.replace("\0", "\\0"))
        # The search costs 0.1 µs only where a dot begins a segment.
        if "/." in path and _DOT_SEGMENT.search(path):
            raise ConfigError(
                'a path cannot hold "." or ".." segments', path=path, remedy="write it in full"
            )
        point = self._covering(path)
        if point is None:
            raise self._unmounted(path)
        return _resolved(point, path[len(point.below) :], path)

    def _covering(self, path: str) -> _Point | None:
        end = path.find("/", 1)
        head = path[1:end] if end >= 0 else path[1:]
        for point in self._by_head.get(head, ()):
            if path.startswith(point.below) or path == point.mount.path:
                return point
        return None

    def _unmounted(self, path: str) -> NotFound | IsADirectory | Unsupported:
        if self.children_of_root(path):
            return IsADirectory("a directory above the mounts", path=path)
        if snapshots.split(path):
            return Unsupported(
                "a snapshot is read only", path=path, remedy="name the namespace path itself"
            )
        if self._by_path:
            remedy = f"mounted are {', '.join(sorted(self._by_path)[:10])}"
        else:
            remedy = "nothing is mounted: configure a [[mount]], or name an origin URL"
        return NotFound("nothing is mounted there", path=path, remedy=remedy)

    def _resolve_url(self, text: str) -> Resolved:
        found = _BUCKET_PART.match(text)
        if found is None:
            raise ConfigError(
                "neither a namespace path nor an origin URL",
                path=text.replace("\0", "\\0"),
                remedy=f"write /{text}, or scheme://bucket/key",
            )
        if "\0" in text:
            raise ConfigError("a path cannot hold NUL", path=text.replace("\0", "\\0"))
        bucket_url, rest = found[0], text[found.end() :].removeprefix("/")
        implicit = self._implicit_point(bucket_url)
        if implicit.origin.scheme == "file" and _DOT_SEGMENT.search(rest):
            raise ConfigError(
                'a file URL cannot hold "." or ".." segments', path=text, remedy="write it in full"
            )
        covered = self._covered_by_mount(implicit.origin, rest)
        return covered or _resolved(implicit, rest, implicit.mount.path + text[found.end() :])

    def _implicit_point(self, bucket_url: str) -> _Point:
        point = self._implicit.get(bucket_url)
        if point is None:
            # A file's "bucket" is the root directory, whatever directories the path goes through.
            is_file = bucket_url.lower() in ("file://", "local://")
            url = "file:///" if is_file else bucket_url
            origin = parse_origin_url(url, more_schemes=self._more_schemes)
            # The account stands only in the long spelling of an Azure URL.
            path = bucket_url if origin.account else _canonical(origin, "")
            mount = MountSettings(path=path, origin="file:///" if is_file else path)
            point = _Point(mount, origin, path + "/", path)
            if len(self._implicit) >= 2 * IMPLICIT_MOUNTS:
                self._implicit = {}
            self._implicit[bucket_url] = self._implicit[path] = point
        return point

    def _covered_by_mount(self, origin: OriginUrl, key: str) -> Resolved | None:
        """Find the mount of the longest origin prefix through which this URL is seen; not one
        where another mount lies over the name."""
        url = _canonical(origin, key)
        for point in self._by_base:
            if not url.startswith(point.base):
                continue
            rest = url[len(point.base) :]
            if rest and not rest.startswith("/"):
                continue
            if origin.account and point.origin.account not in ("", origin.account):
                continue
            path = point.mount.path + rest
            if self._covering(path) is point and not _DOT_SEGMENT.search(path):
                return _resolved(point, rest[1:], path)
        return None

    def path_of(self, mount: MountSettings, key: str) -> str:
        """Return the path under which ``key`` is seen through ``mount``.

        Raises ConfigError for a key outside the mount's prefix.
        """
        point = self._by_path.get(mount.path) or self._implicit.get(mount.path)
        if point is None or point.mount != mount:
            point = _Point.of(mount, self._more_schemes)
        prefix = point.origin.prefix
        if key == prefix:
            return mount.path
        if not prefix:
            return point.below + key
        if not key.startswith(prefix + "/"):
            raise ConfigError(f"key {key!r} is not below {mount.origin}", path=mount.path)
        return mount.path + key[len(prefix) :]

    def children_of_root(self, path: str) -> tuple[str, ...]:
        """Return the names in directory ``path`` that lead to mounts below it, sorted.

        Not empty for the virtual directories above mounts ("/" holds every mount), and for a
        mounted directory with another mount inside: its listing is then that of the origin and
        these names.
        """
        above = path.rstrip("/") + "/"
        names = {
            mount_path[len(above) :].split("/", 1)[0]
            for mount_path in self._by_path
            if mount_path.startswith(above)
        }
        return tuple(sorted(names))


def _resolved(point: _Point, rest: str, path: str) -> Resolved:
    """Return the name ``rest`` below a mount. ``path`` tells the mount itself from its root with
    a slash."""
    prefix = point.origin.prefix
    if not prefix:
        key = rest
    elif rest or path.endswith("/"):
        key = f"{prefix}/{rest}"
    else:
        key = prefix
    length_bytes = len(key) if key.isascii() else _utf8_length(key, path)
    if length_bytes > MAX_KEY_BYTES:
        raise ConfigError(f"the key is longer than {MAX_KEY_BYTES} bytes", path=path[:200] + "…")
    return Resolved(point.mount, point.origin, key, path)


def _utf8_length(key: str, path: str) -> int:
    try:
        return len(key.encode())
    except UnicodeEncodeError as error:
        raise ConfigError("the path is not valid unicode", path=ascii(path)) from error
