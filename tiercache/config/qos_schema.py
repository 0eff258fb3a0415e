"""Every key of a QoS policy file: what it takes and what it means.

The parser, the reference of keys in docs/qos-policy.md and docs/qos-policy.schema.json are all made
from these tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

VERSION = 1


class Kind(Enum):
    """What a value may be."""

    VERSION = auto()
    NAME = auto()  # of an identity or a class
    TEXT = auto()
    TEXTS = auto()  # a text, or several
    PATH = auto()  # as TEXTS
    ORIGIN = auto()
    WHEN = auto()
    BYTE_RATE = auto()
    BYTE_SHARE = auto()  # a rate of bytes, or a share of the node
    BYTE_LIMIT = auto()  # as BYTE_SHARE, or "unlimited"
    BYTE_BURST = auto()
    OPERATION_RATE = auto()
    OPERATION_SHARE = auto()
    OPERATION_LIMIT = auto()
    OPERATION_BURST = auto()
    NODE_BYTES = auto()  # a rate of bytes, or "auto"
    NODE_OPERATIONS = auto()
    SIZE_SHARE = auto()
    WEIGHT = auto()
    SHARE = auto()
    PRIORITY = auto()
    COUNT = auto()
    DURATION = auto()
    BOOLEAN = auto()
    TABLE = auto()
    TABLES = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """``table`` says what is inside a TABLE or each of TABLES; ``alone``: a single table may stand
    for an array of one."""

    name: str
    kind: Kind
    meaning: str
    default: str = ""
    required: bool = False
    choices: tuple[str, ...] = ()
    table: Table | None = None
    alone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """``heading`` is how it stands in TOML."""

    heading: str
    meaning: str
    keys: tuple[Key, ...]

    def key(self, name: str) -> Key | None:
        return next((key for key in self.keys if key.name == name), None)


def _shares(heading: str, meaning: str, share: Kind, limit: Kind, burst: Kind) -> Table:
    return Table(
        heading=heading,
        meaning=meaning,
        keys=(
            Key(
                name="reserve",
                kind=share,
                default="nothing",
                meaning="Granted before anything else; what it does not use, others get. All "
                "reservations together never exceed the node.",
            ),
            Key(
                name="limit",
                kind=limit,
                default='"unlimited"',
                meaning="Never exceeded by more than `burst`, however idle the node.",
            ),
            Key(
                name="weight",
                kind=Kind.WEIGHT,
                default="1",
                meaning="Its part of what is left among those of one priority: 3 gets three times "
                "as much as 1.",
            ),
            Key(
                name="burst",
                kind=burst,
                default="a tenth of a second of `limit`",
                meaning="By how much `limit` may be exceeded at once, after it was not used.",
            ),
        ),
    )


BYTE_SHARES = _shares(
    "read, write",
    "Throughput: bytes served to readers (hits and misses) or taken from writers.",
    Kind.BYTE_SHARE,
    Kind.BYTE_LIMIT,
    Kind.BYTE_BURST,
)
OPERATION_SHARES = _shares(
    "operations",
    "Operations: reads, writes and requests on names.",
    Kind.OPERATION_SHARE,
    Kind.OPERATION_LIMIT,
    Kind.OPERATION_BURST,
)
_READ = Key(
    name="read", kind=Kind.TABLE, table=BYTE_SHARES, meaning="Bytes a second that are read."
)
_WRITE = Key(
    name="write", kind=Kind.TABLE, table=BYTE_SHARES, meaning="Bytes a second that are written."
)
_OPERATIONS = Key(
    name="operations", kind=Kind.TABLE, table=OPERATION_SHARES, meaning="Operations a second."
)
_IN_FLIGHT = Key(
    name="in_flight",
    kind=Kind.COUNT,
    default="unbounded",
    meaning="How many of its requests the agent works on at once; hits do not count.",
)
_PRIORITY = Key(
    name="priority",
    kind=Kind.PRIORITY,
    default="0",
    meaning="Beyond reservations, a higher class is served first.",
)
_MAX_WAIT = Key(
    name="max_wait",
    kind=Kind.DURATION,
    default="as long as it takes",
    meaning="Who waits longer for tokens gets `Throttled`; a large read so long for each 8 MiB.",
)
_WHEN = Key(
    name="when",
    kind=Kind.WHEN,
    required=True,
    meaning="Days, hours or both, in the node's local time; over midnight too. One or several.",
)
CLASS_SCHEDULE = Table(
    heading="[[class.schedule]]",
    meaning="What holds at certain hours instead. Of several at once, the later listed wins.",
    keys=(_WHEN, _PRIORITY, _READ, _WRITE, _OPERATIONS, _IN_FLIGHT),
)
IDENTITY_SCHEDULE = Table(
    heading="[[identity.schedule]]",
    meaning="What holds at certain hours instead. Of several at once, the later listed wins.",
    keys=(_WHEN, _READ, _WRITE, _OPERATIONS, _IN_FLIGHT, _MAX_WAIT),
)
CLASS = Table(
    heading="[[class]]",
    meaning='A priority class. Its shares bound all of its identities together. "default" is '
    "always there.",
    keys=(
        Key(name="name", kind=Kind.NAME, required=True, meaning="Its name."),
        _PRIORITY,
        _READ,
        _WRITE,
        _OPERATIONS,
        _IN_FLIGHT,
        Key(name="schedule", kind=Kind.TABLES, table=CLASS_SCHEDULE, meaning="Other hours."),
    ),
)
MATCH = Table(
    heading="match",
    meaning="A rule: all keys that are given must hold. Several rules: an array of tables.",
    keys=(
        Key(name="user", kind=Kind.TEXTS, meaning="The user of the process, by name or number."),
        Key(name="group", kind=Kind.TEXTS, meaning="A group of the process, by name or number."),
        Key(
            name="name",
            kind=Kind.TEXTS,
            meaning="What the client is configured to be called (`[qos] name`); the agent's own "
            'bulk work is called "prefetch" where its client has no name.',
        ),
        Key(name="access_key", kind=Kind.TEXTS, meaning="The access key of a request."),
        Key(
            name="path",
            kind=Kind.PATH,
            meaning="Names at and below a namespace path, or an origin URL where no mount is.",
        ),
    ),
)
CAPACITY = Table(
    heading="capacity",
    meaning="Bytes of the cache that were brought in for this identity.",
    keys=(
        Key(
            name="min",
            kind=Kind.SIZE_SHARE,
            default="nothing",
            meaning="Below it nobody else evicts them.",
        ),
        Key(
            name="soft",
            kind=Kind.SIZE_SHARE,
            default="none",
            meaning="Above it they go first when room is needed.",
        ),
        Key(name="max", kind=Kind.SIZE_SHARE, default="none", meaning="Never exceeded."),
        Key(
            name="pin_max",
            kind=Kind.SIZE_SHARE,
            default="none",
            meaning="What of it may be pinned.",
        ),
    ),
)
IDENTITY = Table(
    heading="[[identity]]",
    meaning='Who is charged. "default" is whoever no rule matches, and always there.',
    keys=(
        Key(name="name", kind=Kind.NAME, required=True, meaning="Its name."),
        Key(name="class", kind=Kind.NAME, default='"default"', meaning="Its class."),
        Key(
            name="match",
            kind=Kind.TABLES,
            table=MATCH,
            alone=True,
            meaning="Whom it is for. The rule with more keys wins; among equals name goes before "
            "access_key, user, group and path, then the longer path, then who is listed first.",
        ),
        Key(
            name="claim",
            kind=Kind.TEXTS,
            default='"*"',
            meaning='Who may use the names of `match`: users, "@group", "*" for anybody.',
        ),
        _READ,
        _WRITE,
        _OPERATIONS,
        _IN_FLIGHT,
        _MAX_WAIT,
        Key(name="capacity", kind=Kind.TABLE, table=CAPACITY, meaning="Its part of the cache."),
        Key(
            name="schedule",
            kind=Kind.TABLES,
            table=IDENTITY_SCHEDULE,
            meaning="Other hours.",
        ),
    ),
)
NODE = Table(
    heading="[node]",
    meaning="What the node delivers in all.",
    keys=(
        Key(name="read", kind=Kind.NODE_BYTES, default='"auto"', meaning="Bytes read."),
        Key(name="write", kind=Kind.NODE_BYTES, default='"auto"', meaning="Bytes written."),
        Key(name="operations", kind=Kind.NODE_OPERATIONS, default='"auto"', meaning="Operations."),
        Key(
            name="safe_share",
            kind=Kind.SHARE,
            default='"10%"',
            meaning="What a process goes on with when the agent has been gone for long, of its "
            "limit, or of the node where it has none.",
        ),
    ),
)
BACKEND = Table(
    heading="[[backend]]",
    meaning="What may be asked of an account, a bucket or a prefix. All that cover a request must "
    "grant it.",
    keys=(
        Key(
            name="origin",
            kind=Kind.ORIGIN,
            required=True,
            meaning='"s3://" for a whole cloud, "s3://bucket", "s3://bucket/prefix", or '
            '"endpoint:" and an endpoint\'s name.',
        ),
        Key(name="get", kind=Kind.OPERATION_RATE, default="none", meaning="Reading requests."),
        Key(name="put", kind=Kind.OPERATION_RATE, default="none", meaning="Writing requests."),
        Key(name="list", kind=Kind.OPERATION_RATE, default="none", meaning="Listing requests."),
        Key(name="bytes", kind=Kind.BYTE_RATE, default="none", meaning="Bytes, both ways."),
        Key(
            name="adaptive",
            kind=Kind.BOOLEAN,
            default="true",
            meaning="The rate falls when the server answers 429 or 503, and comes back slowly.",
        ),
    ),
)
# Their texts stand in qos_profiles.
PROFILES = ("balanced", "training-first", "prefetch-first")
POLICY = Table(
    heading="(top)",
    meaning="The policy itself.",
    keys=(
        Key(name="version", kind=Kind.VERSION, required=True, meaning="Of the file's format: 1."),
        Key(
            name="profile",
            kind=Kind.TEXT,
            choices=PROFILES,
            default="none",
            meaning="A ready policy to start from: classes and identities of the same name are "
            "changed key by key, others are added before its own.",
        ),
        Key(name="node", kind=Kind.TABLE, table=NODE, meaning="The node."),
        Key(name="class", kind=Kind.TABLES, table=CLASS, meaning="Priority classes."),
        Key(name="identity", kind=Kind.TABLES, table=IDENTITY, meaning="Identities."),
        Key(name="backend", kind=Kind.TABLES, table=BACKEND, meaning="Limits of the clouds."),
    ),
)
TABLES = (POLICY, NODE, CLASS, IDENTITY, MATCH, BYTE_SHARES, OPERATION_SHARES, CAPACITY,
    CLASS_SCHEDULE, IDENTITY_SCHEDULE, BACKEND)  # fmt: skip
