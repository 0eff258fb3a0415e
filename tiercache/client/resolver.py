"""Paths to index names, as a client resolves them: the mount table and its memory."""

from __future__ import annotations

import msgspec

from tiercache import records, wire
from tiercache.policy.mounts import MountTable
from tiercache.policy.urls import identity
from tiercache.records import ObjectRecord
from tiercache.settings import MountSettings, ProfileSettings

# Paths of an epoch come again and again; ~400 B each.
KEPT_PATHS = 1 << 16


class Name(msgspec.Struct, frozen=True, gc=False):
    """One path, resolved. ``origin`` is the identity under which its data is kept."""

    mount: MountSettings
    origin: str
    key: str
    path: str
    digest: bytes

    @property
    def directory_prefix(self) -> str:
        return self.key if not self.key or self.key.endswith("/") else self.key + "/"


class Resolver:
    """Thread safe."""

    def __init__(
        self, mounts: tuple[MountSettings, ...], profiles: dict[str, ProfileSettings]
    ) -> None:
        self.table = MountTable(mounts, profiles)
        self._profiles = profiles
        self._known: dict[str, Name] = {}
        # A pure result of the mount, remembered: building it costs as much as all the rest.
        self._identities: dict[str, str] = {}

    def locate(self, path: str) -> Name:
        """Raises NotFound, IsADirectory (above mounts) or ConfigError, as MountTable.resolve."""
        name = self._known.get(path)
        if name is not None:
            return name
        resolved = self.table.resolve(path)
        mount = resolved.mount
        origin = self._identities.get(mount.path)
        if origin is None:
            profile = self._profiles[mount.profile]
            origin = identity(resolved.origin, profile, account=profile.environment_account)
            self._identities[mount.path] = origin
        digest = records.name_hash(origin, resolved.key)
        name = Name(mount, origin, resolved.key, resolved.path, digest)
        if len(self._known) >= KEPT_PATHS:
            self._known.clear()
        self._known[path] = name
        return name


def told(name: Name, found: wire.Found) -> ObjectRecord:
    """Return the record of a name that the index cannot tell, as the agent has told it."""
    return ObjectRecord(
        origin=name.origin,
        key=name.key,
        kind=found.kind,
        token=found.token,
        size_bytes=found.size_bytes,
        mtime_s=found.mtime_s,
        validated_s=found.validated_s,
    )
