"""The agent's mounts: paths to origins that are open, and the origins themselves.

Clients bring their mounts along; what contradicts a mount that stands is refused. Owned by the
event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from tiercache import records
from tiercache.agent.flights import retrieve
from tiercache.errors import AccessDenied, ConfigError, IsADirectory, Unsupported
from tiercache.model import Consistency
from tiercache.policy import agreement
from tiercache.policy.mounts import MountTable
from tiercache.policy.urls import OriginUrl
from tiercache.ports import Origin, OriginCapabilities
from tiercache.settings import MountSettings, ProfileSettings

OpenOrigin = Callable[[OriginUrl, ProfileSettings], Origin]
ProbeWrites = Callable[[Origin, str], Coroutine[Any, Any, OriginCapabilities]]


@dataclass(frozen=True, slots=True)
class Located:
    """One namespace path, resolved: which name of which origin it is."""

    mount: MountSettings
    origin: Origin
    key: str
    path: str
    digest: bytes

    @property
    def is_root(self) -> bool:
        """Whether this is the mount's own directory, which exists whatever the origin holds."""
        return self.path.rstrip("/") == self.mount.path

    @property
    def directory_prefix(self) -> str:
        """The prefix under which this name's children lie."""
        return self.key if not self.key or self.key.endswith("/") else self.key + "/"


class Mounts:
    """Mount table and open origins."""

    def __init__(
        self,
        mounts: Iterable[MountSettings],
        profiles: dict[str, ProfileSettings],
        open_origin: OpenOrigin,
        probe_writes: ProbeWrites,
    ) -> None:
        self._mounts = {mount.path: mount for mount in mounts}
        self._profiles = dict(profiles)
        self._open_origin = open_origin
        self._probe_writes = probe_writes
        self._probed: dict[str, OriginCapabilities] = {}
        self._probes: dict[str, asyncio.Task[OriginCapabilities]] = {}
        self._origins: dict[tuple[str, str, str, str], Origin] = {}
        self._table = MountTable(self._mounts.values(), self._profiles)

    @property
    def all(self) -> tuple[MountSettings, ...]:
        return tuple(self._mounts.values())

    @property
    def origins(self) -> list[Origin]:
        return list(self._origins.values())

    def add(self, mounts: Iterable[MountSettings], profiles: Iterable[ProfileSettings]) -> None:
        """Take over what a client is configured with. Raises ConfigError, changing nothing, where
        a path or profile name stands for something else already."""
        new_mounts, new_profiles = dict(self._mounts), dict(self._profiles)
        for profile in profiles:
            known = new_profiles.setdefault(profile.name, profile)
            if not (known.environment_account and profile.environment_account):
                # Only one of us has the variable: that one knows.
                account = known.environment_account or profile.environment_account
                known = msgspec.structs.replace(known, environment_account=account)
                profile = msgspec.structs.replace(profile, environment_account=account)
                new_profiles[profile.name] = known
            if known != profile:
                raise ConfigError(
                    f"profile {profile.name!r} differs from the one the running agent has",
                    remedy=agreement.REMEDY,
                )
        for mount in mounts:
            standing = new_mounts.setdefault(mount.path, mount)
            if standing != mount:
                raise ConfigError(
                    f"mount {mount.path} is {standing.origin} ({standing.consistency}) in the "
                    f"running agent, not {mount.origin} ({mount.consistency})",
                    remedy=agreement.REMEDY,
                )
        if new_mounts != self._mounts or new_profiles != self._profiles:
            self._table = MountTable(new_mounts.values(), new_profiles)
            self._mounts, self._profiles = new_mounts, new_profiles

    def locate(self, path: str) -> Located:
        """Resolve a path or URL. Raises NotFound or ConfigError where nothing is mounted there."""
        resolved = self._table.resolve(path)
        origin = self._origin(resolved.mount, resolved.origin)
        digest = records.name_hash(origin.url, resolved.key)
        return Located(resolved.mount, origin, resolved.key, resolved.path, digest)

    def sibling(self, located: Located, key: str) -> Located:
        """Return another key of the same mount; ``path`` is the one it has there."""
        digest = records.name_hash(located.origin.url, key)
        path = self._table.path_of(located.mount, key)
        return Located(located.mount, located.origin, key, path, digest)

    def below(self, path: str) -> list[str]:
        """Return the paths of the mounts strictly below a directory."""
        above = path.rstrip("/") + "/"
        return sorted(mount for mount in self._mounts if mount.startswith(above))

    def is_virtual(self, path: str) -> bool:
        """Return whether the path is a directory above mounts and of no origin itself."""
        try:
            self._table.resolve(path)
        except IsADirectory:
            return True
        return False

    def _origin(self, mount: MountSettings, url: OriginUrl) -> Origin:
        name = (url.scheme, url.bucket, url.account, mount.profile)
        origin = self._origins.get(name)
        if origin is None:
            origin = self._open_origin(url, self._profiles[mount.profile])
            self._origins[name] = origin
        return origin

    async def writing_capabilities(self, located: Located) -> OriginCapabilities:
        """Return what the origin honours of writes, found out once, before the first write that
        depends on it. Raises what the origin raises; it is asked again then."""
        return await self._probe(located.origin, located.key[: located.key.rfind("/") + 1])

    async def _probe(self, origin: Origin, prefix: str) -> OriginCapabilities:
        known = self._probed.get(origin.url)
        if known is not None:
            return known
        probe = self._probes.get(origin.url)
        if probe is None:
            probe = asyncio.create_task(self._probe_writes(origin, prefix))
            self._probes[origin.url] = probe
            probe.add_done_callback(lambda task: self._probe_ended(origin.url, task))
        return await asyncio.shield(probe)

    def _probe_ended(self, url: str, task: asyncio.Task[OriginCapabilities]) -> None:
        del self._probes[url]
        retrieve(task)
        if not task.cancelled() and task.exception() is None:
            self._probed[url] = task.result()

    async def admit(self, located: Located) -> None:
        """See that the mount's origin can keep what the mount promises: a strong one that may be
        written needs conditions on writes. Looks once, at the mount's first use.

        Raises Unsupported where the origin ignores them, AccessDenied where it lets nobody write,
        and what else it raises: one that does not answer is not one without capabilities.
        """
        mount = located.mount
        if mount.consistency is not Consistency.STRONG or mount.read_only:
            return
        origin = located.origin
        known = self._probed.get(origin.url)
        if known is None:
            top = self._table.resolve(mount.path).key
            try:
                known = await self._probe(origin, f"{top}/" if top else "")
            except AccessDenied as error:
                raise AccessDenied(
                    f"a strong mount writes once to learn what {origin.url} honours, and may not: "
                    f"{error.message}",
                    path=mount.path,
                    remedy="set read_only = true for this mount, or allow writes below it",
                ) from error
        if not (known.conditional_put and known.conditional_replace):
            raise Unsupported(
                f"{origin.url} does not keep conditions on writes, so no mount of it can be strong",
                path=mount.path,
                remedy='set read_only = true or consistency = "close-to-open" for this mount, or '
                "use a store that keeps If-Match and If-None-Match",
            )

    async def close(self) -> None:
        for probe in list(self._probes.values()):
            probe.cancel()
        await asyncio.gather(*self._probes.values(), return_exceptions=True)
        for origin in self._origins.values():
            await origin.close()
