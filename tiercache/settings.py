"""Settings: what the configuration says, as values with units. No component lives here.

Defaults stand here and nowhere else; ``config`` parses into these and ``compose`` builds from
them. No field ever holds a secret.
"""

from __future__ import annotations

import os

import msgspec

from tiercache.model import Consistency
from tiercache.units import GIB


class TotalBytes(msgspec.Struct, frozen=True, tag="total"):
    """The cache directory holds at most ``capacity_bytes``, index and all."""

    capacity_bytes: int


class FreeSpaceRatio(msgspec.Struct, frozen=True, tag="free"):
    """The cache fills the file system until this share of it (0–1) is left free."""

    ratio: float


Limit = TotalBytes | FreeSpaceRatio


def default_cache_dir() -> str:
    """Return $XDG_CACHE_HOME/tiercache, or ~/.cache/tiercache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "tiercache")


class CacheSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``memory_bytes`` bounds all data buffers of the agent together."""

    dir: str = msgspec.field(default_factory=default_cache_dir)
    limit: Limit = FreeSpaceRatio(0.10)
    memory_bytes: int = GIB


class ProfileSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach one account. Credentials come from the cloud's own chain, never from here.

    ``driver`` is "obstore" or "fsspec"; ``options`` go to the fsspec constructor unchanged.
    ``deadline_s`` bounds one request with all its retries.
    """

    name: str = "default"
    region: str = ""
    endpoint: str = ""
    addressing: str = "auto"  # "auto" | "path" | "virtual"
    anonymous: bool = False
    account: str = ""  # Azure storage account
    environment_account: str = ""  # what the environment names; never configured
    credentials_profile: str = ""  # a profile of ~/.aws, or a gcloud/az configuration
    driver: str = "obstore"
    options: dict[str, str | int | float | bool] = {}
    connect_timeout_s: float = 5.0
    request_timeout_s: float = 30.0
    deadline_s: float = 60.0
    concurrency: int = 64  # requests in flight at this endpoint


class MountSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``path`` is absolute, without a slash at its end. ``origin`` is a URL of bucket and prefix.

    ``offline`` is what becomes of expired knowledge while the origin does not answer: "error" or
    "stale". None is what the mode says: eventual serves it, close-to-open does not; immutable
    knowledge never expires, and strong never serves any.
    """

    path: str
    origin: str
    profile: str = "default"
    consistency: Consistency = Consistency.EVENTUAL
    ttl_s: float = 60.0
    negative_ttl_s: float = 5.0
    offline: str | None = None
    read_only: bool = False


class MetadataSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where knowledge is kept that must outlive the cache directory; empty is nowhere.

    ``url`` is ``lmdb:/path`` of a directory on a block volume, or ``s3://``, ``az://``, ``gs://``
    or ``file://`` with bucket and prefix for SlateDB, reached as ``profile`` says.
    ``commit_interval_s``: what is learnt is committed together after this time at the latest.
    ``deadline_s`` bounds each request to the store with all its retries.
    """

    url: str = ""
    profile: str = "default"
    commit_interval_s: float = 0.1
    deadline_s: float = 10.0


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``idle_timeout_s``: an agent without clients and jobs leaves after this; 0 means never."""

    idle_timeout_s: float = 60.0
    metrics_address: str = ""  # "127.0.0.1:9464"; empty is off
    log_level: str = "info"


class QosSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``policy`` is the policy file that the agent keeps to and watches; empty: what was applied to
    the cache directory, if anything. ``name`` is what this client calls itself; the policy says who
    may. ``max_wait_s`` bounds each wait of this client beside what the policy says."""

    policy: str = ""
    name: str = ""
    max_wait_s: float | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. ``profiles`` always holds "default"."""

    cache: CacheSettings = msgspec.field(default_factory=CacheSettings)
    mounts: tuple[MountSettings, ...] = ()
    profiles: dict[str, ProfileSettings] = msgspec.field(
        default_factory=lambda: {"default": ProfileSettings()}
    )
    agent: AgentSettings = AgentSettings()
    metadata: MetadataSettings = MetadataSettings()
    qos: QosSettings = QosSettings()
