"""Paths to index names, as a client resolves them: the mount table and its memory."""

from __future__ import annotations

import msgspec

from tiercache import records, wire
from tiercache.catalog import SnapshotObject
from tiercache.client.frozen import Frozen, FrozenNames
from tiercache.errors import ConfigError, IsADirectory, NotFound
from tiercache.model import Consistency
from tiercache.policy import snapshots
from tiercache.policy.mounts import MountTable
from tiercache.policy.urls import endpoint_name, identity
from tiercache.records import ObjectRecord
from tiercache.settings import MountSettings, ProfileSettings

# Paths of an epoch come again and again; ~400 B each.
KEPT_PATHS = 1 << 16


class Binding(msgspec.Struct, frozen=True, gc=False):
    """The one version that a path in a snapshot stands for."""

    snapshot: str
    created_unix_s: float
    object: SnapshotObject


class Name(msgspec.Struct, frozen=True, gc=False):
    """One path, resolved. ``origin`` is the identity under which its data is kept; ``path`` is the
    namespace path, also of a name in a snapshot, which has a ``binding``."""

    mount: MountSettings
    origin: str
    key: str
    path: str
    digest: bytes
    binding: Binding | None = None

    @property
    def directory_prefix(self) -> str:
        return self.key if not self.key or self.key.endswith("/") else self.key + "/"


class Resolver:
    """Thread safe."""

    def __init__(
        self,
        mounts: tuple[MountSettings, ...],
        profiles: dict[str, ProfileSettings],
        frozen: FrozenNames,
    ) -> None:
        self.table = MountTable(mounts, profiles)
        self.frozen = frozen
        self._profiles = profiles
        self._known: dict[str, Name] = {}
        # A pure result of the mount, remembered: building it costs as much as all the rest.
        self._identities: dict[str, str] = {}

    def locate(self, path: str) -> Name:
        """Raises NotFound, IsADirectory (above mounts) or ConfigError, as MountTable.resolve; of a
        path in a snapshot NotFound and IsADirectory say what the snapshot holds."""
        name = self._known.get(path)
        if name is not None:
            return name
        # Looked for here: a call costs what the search does, and most paths lie in none.
        inside = self.in_snapshot(path) if snapshots.SUFFIX in path else None
        name = self._resolve(path) if inside is None else self._bound(path, *inside)
        if len(self._known) >= KEPT_PATHS:
            self._known.clear()
        self._known[path] = name
        return name

    def _resolve(self, path: str) -> Name:
        resolved = self.table.resolve(path)
        mount = resolved.mount
        origin = self._identities.get(mount.path)
        if origin is None:
            profile = self._profiles[mount.profile]
            origin = identity(resolved.origin, profile, account=profile.environment_account)
            self._identities[mount.path] = origin
        digest = records.name_hash(origin, resolved.key)
        return Name(mount, origin, resolved.key, resolved.path, digest)

    def endpoint(self, path: str) -> str:
        """Return the name of the server behind a path, empty where there is no single one."""
        inside = self.in_snapshot(path)
        try:
            resolved = self.table.resolve(path if inside is None else inside[1])
        except (NotFound, IsADirectory):
            return ""
        profile = self._profiles[resolved.mount.profile]
        return endpoint_name(resolved.origin, profile, account=profile.environment_account)

    def in_snapshot(self, path: str) -> tuple[Frozen, str] | None:
        """Return the snapshot that a path lies in, and the namespace path there; None for none.
        Raises NotFound where there is no such snapshot."""
        split = snapshots.split(path)
        if split is None:
            return None
        name, inside = split
        if not inside.startswith("/"):
            inside = self.table.resolve(inside).path  # a URL may be one of a mount
        return self.frozen.of(name), inside

    def _bound(self, path: str, frozen: Frozen, inside: str) -> Name:
        snapshot = frozen.record.name
        found = frozen.find(inside)
        if found is None:
            if inside == snapshots.ROOT or frozen.has_below(snapshots.below(inside)):
                raise IsADirectory("a directory, not an object", path=path)
            raise NotFound(f"not in the snapshot {snapshot}", path=path)
        try:
            name = self._resolve(found.path)
        except (NotFound, IsADirectory) as error:
            raise ConfigError(
                f"frozen of {found.origin}, which is not mounted there any more",
                path=path,
                remedy="mount it as it was",
            ) from error
        if (name.origin, name.key) != (found.origin, found.key):
            raise ConfigError(
                f"frozen of {found.origin}, and {found.path} is now one of {name.origin}",
                path=path,
                remedy="mount it as it was, or make the snapshot anew",
            )
        binding = Binding(snapshot, frozen.record.created_unix_s, found)
        # A frozen version is bound for good, whatever the mount.
        mount = msgspec.structs.replace(name.mount, consistency=Consistency.IMMUTABLE)
        return msgspec.structs.replace(name, mount=mount, binding=binding)

    def forget_snapshot(self, snapshot: str) -> None:
        """Resolve names of this snapshot anew: another has its name."""
        for path, name in list(self._known.items()):
            if name.binding is not None and name.binding.snapshot == snapshot:
                self._known.pop(path, None)


def told(name: Name, found: wire.Found, boot_id: str) -> ObjectRecord:
    """Return the record of a name that the index cannot tell, as the agent has told it."""
    return ObjectRecord(
        origin=name.origin,
        key=name.key,
        kind=found.kind,
        token=found.token,
        size_bytes=found.size_bytes,
        mtime_s=found.mtime_s,
        validated_s=found.validated_s,
        boot=boot_id,
        validated_unix_s=found.validated_unix_s,
    )
