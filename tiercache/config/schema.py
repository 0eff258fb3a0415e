"""Every key of the configuration: what it takes, what it means, which setting it becomes.

Parsing, ``config show`` and docs/configuration.md are all made from this table. Defaults stand in
``tiercache.settings`` alone and are read from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from tiercache.model import Consistency
from tiercache.settings import (
    AgentSettings,
    CacheSettings,
    MetadataSettings,
    MountSettings,
    ProfileSettings,
    QosSettings,
)


class Kind(StrEnum):
    """What a value may be; the text is how the documentation names it."""

    TEXT = "text"
    DIRECTORY = "directory"
    FILE = "file"
    SIZE = 'size: "2TiB", "512 MiB", 10737418240'
    DURATION = 'duration: "60s", "5m", "1.5h", 30'
    RATIO = 'ratio: "10%", 0.1'
    COUNT = "whole number, at least 1"
    BOOLEAN = "true or false"
    TABLE = "table of text, numbers and booleans"


# Settings name their units, the file gives them with the value.
UNITS = {Kind.SIZE: "_bytes", Kind.DURATION: "_s"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One key. ``attribute`` is the field of the section's settings that it becomes, where that is
    not the key and its unit (``capacity`` and ``free_space`` both become ``limit``)."""

    key: str
    meaning: str
    kind: Kind = Kind.TEXT
    attribute: str = ""
    choices: tuple[str, ...] = ()
    required: bool = False
    positive: bool = False  # a duration of 0 is refused

    @property
    def target(self) -> str:
        return self.attribute or self.key + UNITS.get(self.kind, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """``heading`` is how it stands in TOML."""

    name: str
    heading: str
    meaning: str
    settings: type[msgspec.Struct]
    fields: tuple[Field, ...]

    def field(self, key: str) -> Field | None:
        return next((field for field in self.fields if field.key == key), None)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(field.key for field in self.fields)


CACHE = Section(
    name="cache",
    heading="[cache]",
    meaning="The cache directory and its limits. One agent serves one directory.",
    settings=CacheSettings,
    fields=(
        Field(
            key="dir",
            kind=Kind.DIRECTORY,
            meaning="Where cached data and the index live: a local file system, best an NVMe "
            'device of its own. Absolute, or beginning with "~". Without it: '
            "`$XDG_CACHE_HOME/tiercache`, or `~/.cache/tiercache`.",
        ),
        Field(
            key="capacity",
            kind=Kind.SIZE,
            attribute="limit",
            meaning="The directory never holds more than this, index and all. Not together with "
            "`free_space`.",
        ),
        Field(
            key="free_space",
            kind=Kind.RATIO,
            attribute="limit",
            meaning="The cache fills the file system until this share of it is left free. Not "
            "together with `capacity`.",
        ),
        Field(
            key="memory",
            kind=Kind.SIZE,
            meaning="Bound of all data buffers of the agent together.",
        ),
    ),
)

MOUNT = Section(
    name="mount",
    heading="[[mount]]",
    meaning="Binds a namespace path to an origin. May be given many times. Mounts may be nested: "
    "the longest path that covers a name wins, and hides what the outer origin holds there.",
    settings=MountSettings,
    fields=(
        Field(
            key="path",
            required=True,
            meaning='Namespace path: absolute, without "//", ".", ".." or a slash at its end.',
        ),
        Field(
            key="origin",
            required=True,
            meaning="`s3://bucket/prefix`, `gs://…`, `az://container/…`, or the URL of any fsspec "
            "filesystem.",
        ),
        Field(key="profile", meaning="The `[profile.NAME]` that says how to reach it."),
        Field(
            key="consistency",
            choices=tuple(Consistency),
            meaning="How fresh names are. `immutable`: the first successful open binds the version "
            "for good. `eventual`: at most `ttl` old. `close-to-open`: validated at each open. "
            "`strong`: validated at each read, and written on a condition.",
        ),
        Field(
            key="ttl",
            kind=Kind.DURATION,
            meaning="How long a name is used without asking the origin again. Not with "
            "`immutable`, which never asks, nor with `strong`, which always does.",
        ),
        Field(
            key="negative_ttl",
            kind=Kind.DURATION,
            meaning="How long the origin's word that there is no such object is used.",
        ),
        Field(
            key="offline",
            choices=("error", "stale"),
            meaning="What becomes of knowledge past its time while the origin cannot be reached: "
            "`error` fails, `stale` serves what is cached, marked. Not given: `eventual` serves, "
            "`close-to-open` fails. `strong` always fails, `immutable` knows no such time.",
        ),
        Field(
            key="read_only", kind=Kind.BOOLEAN, meaning="Refuse writes and removals below `path`."
        ),
    ),
)

PROFILE = Section(
    name="profile",
    heading="[profile.NAME]",
    meaning="How to reach one account or endpoint. `[profile.default]` is used where a mount names "
    "none, and for origin URLs without a mount. Credentials never stand here: they come from the "
    "cloud's own chain (environment, `~/.aws`, instance roles, `gcloud`, managed identity).",
    settings=ProfileSettings,
    fields=(
        Field(key="region", meaning="Region of the buckets. Empty: the cloud's own chain says."),
        Field(
            key="endpoint",
            meaning="`http://` or `https://` address of the server. Empty: the cloud's own.",
        ),
        Field(
            key="addressing",
            choices=("auto", "path", "virtual"),
            meaning="S3: whether the bucket stands in the path or in the host name.",
        ),
        Field(key="anonymous", kind=Kind.BOOLEAN, meaning="Send no credentials (public buckets)."),
        Field(key="account", meaning="Azure storage account."),
        Field(
            key="credentials_profile",
            meaning="A profile of `~/.aws`, or a `gcloud` or `az` configuration, by its name.",
        ),
        Field(
            key="driver",
            choices=("obstore", "fsspec"),
            meaning="Which library speaks to the origin. Schemes that obstore does not know use "
            "fsspec anyway.",
        ),
        Field(
            key="options",
            kind=Kind.TABLE,
            meaning="Arguments of the fsspec filesystem, unchanged. Only with the fsspec driver.",
        ),
        Field(
            key="connect_timeout",
            kind=Kind.DURATION,
            positive=True,
            meaning="Bound of one connection attempt.",
        ),
        Field(
            key="request_timeout",
            kind=Kind.DURATION,
            positive=True,
            meaning="Bound of one attempt of a request.",
        ),
        Field(
            key="deadline",
            kind=Kind.DURATION,
            positive=True,
            meaning="Bound of one request with all its retries.",
        ),
        Field(key="concurrency", kind=Kind.COUNT, meaning="Requests in flight at this endpoint."),
    ),
)

METADATA = Section(
    name="metadata",
    heading="[metadata]",
    meaning="Where the agent keeps what it knows of names beside the cache directory, so that it "
    'outlives the node. The short form `metadata = "lmdb:/mnt/ebs/tiercache"`, above all tables, '
    "sets `url` alone.",
    settings=MetadataSettings,
    fields=(
        Field(
            key="url",
            meaning="`lmdb:/path` of a directory on a block volume, or `s3://bucket/prefix`, "
            "`az://…`, `gs://…`, `file://…` for SlateDB on an object store. Empty: nowhere.",
        ),
        Field(key="profile", meaning="The `[profile.NAME]` that says how to reach it."),
        Field(
            key="commit_interval",
            kind=Kind.DURATION,
            meaning="What is learnt is committed together after this time at the latest.",
        ),
        Field(
            key="deadline",
            kind=Kind.DURATION,
            positive=True,
            meaning="Bound of one request to the store with all its retries.",
        ),
    ),
)

AGENT = Section(
    name="agent",
    heading="[agent]",
    meaning="The process that owns the cache directory.",
    settings=AgentSettings,
    fields=(
        Field(
            key="idle_timeout",
            kind=Kind.DURATION,
            meaning="An agent without clients and jobs leaves after this; 0 means never.",
        ),
        Field(
            key="metrics_address",
            meaning='`host:port` of the Prometheus endpoint, such as "127.0.0.1:9464". Empty: off.',
        ),
        Field(
            key="log_level",
            choices=("debug", "info", "warning", "error"),
            meaning="The least severe messages that are logged.",
        ),
    ),
)

QOS = Section(
    name="qos",
    heading="[qos]",
    meaning="Who may use how much of the node and of the clouds: docs/qos.md.",
    settings=QosSettings,
    fields=(
        Field(
            key="policy",
            kind=Kind.FILE,
            meaning="The policy file that the agent keeps to and watches. Absolute, or beginning "
            'with "~". Empty: what was applied to the cache directory, if anything.',
        ),
        Field(
            key="name",
            meaning="What this client calls itself; the policy says who may, and what it gets.",
        ),
        Field(
            key="max_wait",
            kind=Kind.DURATION,
            positive=True,
            meaning="Bound of each wait of this client for what the policy grants, beside the "
            "policy's own; beyond it `Throttled` is raised.",
        ),
    ),
)

SECTIONS = (CACHE, MOUNT, PROFILE, METADATA, AGENT, QOS)
BY_NAME = {section.name: section for section in SECTIONS}
