"""The public surface as a golden listing: whoever changes it sees it here and in the CHANGELOG."""

from __future__ import annotations

import inspect
import json
import os
import pickle
from pathlib import Path

import pytest

import tiercache
from tiercache import errors
from tiercache.fs import TierCacheFileSystem
from tiercache.model import Entry, FileExtent, JobProgress, Stat
from tiercache.namespace import Namespace
from tiercache.qos import Qos
from tiercache.qos_reports import Changed, Explained, IdentityUse, Show, Top
from tiercache.snapshots import Snapshot, Snapshots

GOLDEN = Path(__file__).with_name("public_api.json")
# Set to write the listing anew after a change that is meant.
REWRITE = "REWRITE_PUBLIC_API"


def signature(member: object) -> str:
    if isinstance(member, property):
        return "property"
    assert callable(member)
    return str(inspect.signature(member))


def surface(cls: type) -> dict[str, str]:
    """Return the public members that a class itself defines, by name."""
    return {
        name: signature(member.__func__ if isinstance(member, classmethod) else member)
        for name, member in sorted(vars(cls).items())
        if not name.startswith("_")
        and (callable(member) or isinstance(member, property | classmethod))
    }


def listing() -> dict[str, object]:
    return {
        "tiercache": sorted(tiercache.__all__),
        "connect": signature(tiercache.connect),
        "Namespace": {"(new)": signature(Namespace.__init__), **surface(Namespace)},
        "Snapshot": surface(Snapshot),
        "Snapshots": surface(Snapshots),
        "Qos": surface(Qos),
        "TierCacheFileSystem": surface(TierCacheFileSystem),
        "errors": {name: lineage(cls) for name, cls in sorted(errors.BY_NAME.items())},
        "values": {
            cls.__name__: list(cls.__struct_fields__)
            for cls in (
                *(Entry, FileExtent, JobProgress, Stat),
                *(Show, Top, IdentityUse, Explained, Changed),
            )
        },
    }


def lineage(cls: type) -> list[str]:
    """Return the direct bases: the tree's and the builtin one."""
    return [base.__name__ for base in cls.__bases__]


def test_the_public_surface_is_the_one_listed() -> None:
    found = json.dumps(listing(), indent=1) + "\n"
    if os.environ.get(REWRITE):
        GOLDEN.write_text(found)
    assert json.loads(found) == json.loads(GOLDEN.read_text()), f"meant? set {REWRITE}=1"


def test_everything_named_is_there_and_documented() -> None:
    for name in tiercache.__all__:
        assert getattr(tiercache, name) is not None
        assert name in dir(tiercache)
    for name, member in inspect.getmembers(Namespace):
        if not name.startswith("_"):
            assert inspect.getdoc(member), f"Namespace.{name} has no contract"


def test_what_is_not_named_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        tiercache.no_such_name  # noqa: B018  # the attribute is the test


# The tree of errors.py's docstring, with the builtin base of each.
TREE: dict[str, tuple[str, type[BaseException] | None]] = {
    "NotFound": ("TiercacheError", FileNotFoundError),
    "IsADirectory": ("TiercacheError", IsADirectoryError),
    "AccessDenied": ("TiercacheError", PermissionError),
    "OriginUnavailable": ("TiercacheError", ConnectionError),
    "Throttled": ("TiercacheError", OSError),
    "OriginThrottled": ("OriginUnavailable", None),
    "PreconditionFailed": ("TiercacheError", None),
    "AlreadyExists": ("PreconditionFailed", FileExistsError),
    "StaleHandle": ("TiercacheError", OSError),
    "CorruptPage": ("TiercacheError", OSError),
    "CacheFull": ("TiercacheError", OSError),
    "ConfigError": ("TiercacheError", ValueError),
    "Unsupported": ("TiercacheError", NotImplementedError),
    "FormatError": ("TiercacheError", ValueError),
    "AgentUnavailable": ("TiercacheError", ConnectionError),
    "MetadataUnavailable": ("TiercacheError", ConnectionError),
    "MetadataFenced": ("TiercacheError", None),
    "Interrupted": ("TiercacheError", None),
}


def test_the_error_tree_is_whole() -> None:
    assert set(errors.BY_NAME) == {*TREE, "TiercacheError"}
    assert errors.__doc__ is not None
    assert all(name in errors.__doc__ for name in TREE)


@pytest.mark.parametrize("name", TREE)
def test_an_error(name: str) -> None:
    parent, builtin = TREE[name]
    cls = errors.BY_NAME[name]
    assert cls.__bases__[0] is errors.BY_NAME[parent]
    if builtin is not None:
        assert issubclass(cls, builtin)
    error = cls("what happened", path="/m/x", remedy="what to do")
    assert str(error) == "/m/x: what happened (what to do)"
    if isinstance(error, OSError):
        assert error.errno, "an OSError without a number is none to its callers"
    else:
        assert not issubclass(cls, OSError)
    for again in (
        pickle.loads(pickle.dumps(error)),
        errors.from_wire(name, error.message, error.path, error.remedy),
    ):
        assert type(again) is cls and str(again) == str(error)
        assert getattr(again, "errno", None) == getattr(error, "errno", None)


def test_an_error_of_a_newer_agent_is_still_one_of_ours() -> None:
    error = errors.from_wire("Invented", "message", "", "")
    assert type(error) is errors.TiercacheError and str(error) == "message"


def test_absence_and_outage_are_not_each_other() -> None:
    assert not issubclass(errors.OriginUnavailable, FileNotFoundError)
    assert not issubclass(errors.NotFound, ConnectionError)
    assert not issubclass(errors.StaleHandle, FileNotFoundError)
