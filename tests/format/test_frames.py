"""Frames on the socket, byte for byte (wire version 1)."""

from __future__ import annotations

from typing import get_args

import pytest

from tests.format.golden import golden
from tiercache import wire
from tiercache.errors import FormatError
from tiercache.model import JobProgress, JobState, Kind
from tiercache.settings import (
    AgentSettings,
    CacheSettings,
    MetadataSettings,
    MountSettings,
    ProfileSettings,
    QosSettings,
)

MOUNT = MountSettings(path="/m", origin="s3://bucket/data")
GONE = wire.Failure("NotFound", "x", "/m/a", "")
SLOW = wire.Failure("Throttled", "x", "/m/a", "wait", 1.5)
HERE = wire.Found(Kind.FILE, "v1", 10, 1.0, 2.0, 62.0, False, True, 3.0)
# From when every mount said "error" or "stale".
OLD_MOUNT = MountSettings(path="/m", origin="s3://bucket/data", offline="error")

MESSAGES: dict[str, wire.Request | wire.Response] = {
    "Hello": wire.Hello("0.1.0", 42, (MOUNT,), (ProfileSettings(),), "train", 1.5),
    "Lookup": wire.Lookup("/m/a", True),
    "Fill": wire.Fill("/m/a", "v1", ((0, 65536), (131072, 10)), (200_000, 4 << 20), True),
    "FillMany": wire.FillMany((("/m/a", 0, None), ("/m/b", 5, 7))),
    "Advise": wire.Advise("/m/a", "v1", 1, 2),
    "ListNames": wire.ListNames("/m", True, False),
    "WriteBegin": wire.WriteBegin("/m/a", "if-version", "v1"),
    "WriteData": wire.WriteData(3, b"\x00\xff"),
    "WriteFinish": wire.WriteFinish(3),
    "WriteAbort": wire.WriteAbort(3),
    "Remove": wire.Remove("/m/a", True),
    "Pin": wire.Pin("/m"),
    "Unpin": wire.Unpin("/m"),
    "Evict": wire.Evict("/m"),
    "Invalidate": wire.Invalidate("/m"),
    "Prefetch": wire.Prefetch(("/m",), ("*.a",), ("*.b",), True, False, 1024, 8, True, True),
    "JobQuery": wire.JobQuery("0badcafe", 1.5),
    "JobCancel": wire.JobCancel("0badcafe"),
    "StatusQuery": wire.StatusQuery(),
    "ReportCorrupt": wire.ReportCorrupt("/m/a", 258, (0, 1)),
    "CopyObject": wire.CopyObject("/m/a", "/m/b", True),
    "Shutdown": wire.Shutdown(),
    "MountList": wire.MountList(),
    "LocalPath": wire.LocalPath("/m/a", True, "v1"),
    "ReportUse": wire.ReportUse((("/m", 3, 196608),)),
    "ReadThrough": wire.ReadThrough("/m/a", "v1", 0, 100),
    "Bind": wire.Bind((wire.FrozenSpan("/m/a", "v1", 10, 1.0, 2.0, 3, 4),)),
    "SnapshotCreate": wire.SnapshotCreate(
        "v1", ("/m",), ("*.a",), ("*.b",), checksums=True, replace=True, dry_run=False
    ),
    "SnapshotRemove": wire.SnapshotRemove("v1"),
    "Enlist": wire.Enlist("train"),
    "QosQuery": wire.QosQuery("explain", b'{"path":"/m"}'),
    "QosChange": wire.QosChange("unset", b'{"identity":"train"}'),
    "Wake": wire.Wake(),
    "Failure": wire.Failure("NotFound", "no such object", "/m/a", ""),
    "Failure-2": SLOW,
    "Done": wire.Done(7),
    "Welcome": wire.Welcome(
        "0.1.0",
        42,
        (MOUNT,),
        CacheSettings(dir="/c"),
        AgentSettings(),
        MetadataSettings(url="lmdb:/mnt/ebs"),
        QosSettings(policy="/etc/qos.toml"),
    ),
    "Found": HERE,
    "Filled": wire.Filled((None,)),
    "Filled-2": wire.Filled((b"ab",)),
    "FilledMany": wire.FilledMany((None, GONE), (HERE, None)),
    "Listed": wire.Listed(True, 2.0, None),
    "WriteStarted": wire.WriteStarted(3),
    "Job": wire.Job(JobProgress(id="0badcafe", state=JobState.RUNNING, paths=("/m",))),
    "Status": wire.Status(b"{}"),
    "Mounts": wire.Mounts((MOUNT,)),
    "Local": wire.Local("/c/extents/00/1"),
    "Bound": wire.Bound((wire.Found(Kind.FILE, "v1", 10, 1.0, 2.0, 62.0), GONE)),
    "Enlisted": wire.Enlisted(7, (wire.Seat("/m", "train", 3, 99, 2, 1.5, 1e6, 1e3),)),
}

# What peers of the same wire version sent before a field was added: read, no longer written.
OLDER: dict[str, wire.Request | wire.Response] = {
    "Hello-without-wait": wire.Hello("0.1.0", 42, (MOUNT,), (ProfileSettings(),), "train"),
    "Hello-without-name": wire.Hello("0.1.0", 42, (MOUNT,), (ProfileSettings(),)),
    "Failure-without-advice": wire.Failure("NotFound", "no such object", "/m/a", ""),
    "Bound-without-advice": wire.Bound((wire.Found(Kind.FILE, "v1", 10, 1.0, 2.0, 62.0), GONE)),
    "FilledMany-without-advice": wire.FilledMany((None, GONE), (HERE, None)),
    "Welcome-without-qos": wire.Welcome(
        "0.1.0",
        42,
        (MOUNT,),
        CacheSettings(dir="/c"),
        AgentSettings(),
        MetadataSettings(url="lmdb:/mnt/ebs"),
    ),
    "Welcome-without-settings": wire.Welcome("0.1.0", 42, (OLD_MOUNT,)),
    "Welcome-without-metadata": wire.Welcome(
        "0.1.0", 42, (OLD_MOUNT,), CacheSettings(dir="/c"), AgentSettings()
    ),
    "Prefetch-without-order": wire.Prefetch(
        ("/m",), ("*.a",), ("*.b",), True, False, 1024, 8, True
    ),
    "Found-without-time": wire.Found(Kind.FILE, "v1", 10, 1.0, 2.0, 62.0, False, True),
    "Bound-without-time": wire.Bound((wire.Found(Kind.FILE, "v1", 10, 1.0, 2.0, 62.0), GONE)),
    "FilledMany-without-found": wire.FilledMany((None, GONE)),
    "Fill-without-inline": wire.Fill("/m/a", "v1", ((0, 65536), (131072, 10)), (200_000, 4 << 20)),
    "LocalPath-without-token": wire.LocalPath("/m/a", True),
    "Listed-without-partial": wire.Listed(True, 2.0, None),
    "Job-without-order": wire.Job(
        JobProgress(id="0badcafe", state=JobState.RUNNING, paths=("/m",))
    ),
}


def test_every_message_has_its_golden_frame() -> None:
    assert wire.WIRE_VERSION == 1
    assert golden("frames").keys() == MESSAGES.keys() | OLDER.keys()
    kinds = {*get_args(wire.AnyRequest), *get_args(wire.AnyResponse)}
    assert {type(message) for message in MESSAGES.values()} == kinds


@pytest.mark.parametrize("name", MESSAGES)
def test_frames(name: str) -> None:
    message, raw = MESSAGES[name], golden("frames")[name]
    assert wire.frame(message) == raw
    assert read(message, raw) == message


@pytest.mark.parametrize("name", OLDER)
def test_older_frames_are_read(name: str) -> None:
    assert read(OLDER[name], golden("frames")[name]) == OLDER[name]


def read(message: wire.Request | wire.Response, raw: bytes) -> wire.Request | wire.Response:
    """Return what ``raw`` says, decoded as what ``message`` is."""
    header, body = raw[: wire.HEADER.size], raw[wire.HEADER.size :]
    assert wire.parse_header(header) == len(body)
    decode = wire.decode_request if isinstance(message, wire.Request) else wire.decode_response
    found: wire.Request | wire.Response = decode(body)
    return found


def test_the_header_is_checked_before_the_body_is_read() -> None:
    assert wire.parse_header(bytes.fromhex("0000c00001")) == 12 << 20
    with pytest.raises(FormatError, match="exceeds the cap"):
        wire.parse_header(bytes.fromhex("0100c00001"))
    with pytest.raises(FormatError, match="exceeds the cap"):
        wire.parse_header(bytes.fromhex("ffffffff01"))
    with pytest.raises(FormatError, match="version 2, this is 1") as caught:
        wire.parse_header(bytes.fromhex("0000000002"))
    assert "one tiercache version" in caught.value.remedy


def test_no_frame_leaves_that_the_other_side_would_refuse() -> None:
    wire.frame(wire.WriteData(1, bytes(wire.MAX_FRAME_BYTES - 16)))
    with pytest.raises(FormatError, match="exceeds the cap"):
        wire.frame(wire.WriteData(1, bytes(wire.MAX_FRAME_BYTES)))
