"""The exception tree: its shape, its builtin bases, pickling, and the socket."""

from __future__ import annotations

import copy
import errno
import pickle
import re

import pytest

from tiercache import errors, wire
from tiercache.errors import BY_NAME, TiercacheError, from_wire

# Class → its parent among ours, its builtin base, its errno.
TREE: dict[str, tuple[str, type[Exception], int]] = {
    "NotFound": ("TiercacheError", FileNotFoundError, errno.ENOENT),
    "IsADirectory": ("TiercacheError", IsADirectoryError, errno.EISDIR),
    "AccessDenied": ("TiercacheError", PermissionError, errno.EACCES),
    "OriginUnavailable": ("TiercacheError", ConnectionError, errno.EHOSTUNREACH),
    "Throttled": ("TiercacheError", OSError, errno.EAGAIN),
    "OriginThrottled": ("OriginUnavailable", ConnectionError, errno.EAGAIN),
    "PreconditionFailed": ("TiercacheError", Exception, 0),
    "AlreadyExists": ("PreconditionFailed", FileExistsError, errno.EEXIST),
    "StaleHandle": ("TiercacheError", OSError, errno.ESTALE),
    "CorruptPage": ("TiercacheError", OSError, errno.EIO),
    "CacheFull": ("TiercacheError", OSError, errno.ENOSPC),
    "ConfigError": ("TiercacheError", ValueError, 0),
    "Unsupported": ("TiercacheError", NotImplementedError, 0),
    "FormatError": ("TiercacheError", ValueError, 0),
    "AgentUnavailable": ("TiercacheError", ConnectionError, errno.ECONNREFUSED),
    "MetadataUnavailable": ("TiercacheError", ConnectionError, errno.EHOSTUNREACH),
    "MetadataFenced": ("TiercacheError", Exception, 0),
    "Interrupted": ("TiercacheError", Exception, 0),
}


def test_the_tree_is_whole_and_its_docstring_draws_all_of_it() -> None:
    assert BY_NAME.keys() == TREE.keys() | {"TiercacheError"}
    assert errors.__doc__ is not None
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__)
    assert sorted(drawn) == sorted(TREE)


@pytest.mark.parametrize("name", TREE)
def test_shape(name: str) -> None:
    parent, builtin, number = TREE[name]
    cls = BY_NAME[name]
    assert BY_NAME[parent] in cls.__bases__
    assert issubclass(cls, builtin)
    error = cls("why", path="/m/a", remedy="do that")
    assert str(error) == "/m/a: why (do that)"
    if isinstance(error, OSError):
        assert error.errno == number
    else:
        assert number == 0


@pytest.mark.parametrize("name", BY_NAME)
def test_pickling_copying_and_the_socket_keep_everything(name: str) -> None:
    error = BY_NAME[name]("why", path="/m/ä", remedy="do that")
    frame = wire.frame(wire.Failure(name, error.message, error.path, error.remedy))
    answer = wire.decode_response(frame[wire.HEADER.size :])
    assert isinstance(answer, wire.Failure)
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), wire.error_of(answer)):
        assert type(other) is type(error)
        assert (other.message, other.path, other.remedy) == ("why", "/m/ä", "do that")
        assert str(other) == str(error)
        assert getattr(other, "errno", None) == getattr(error, "errno", None)


def test_a_class_of_a_newer_version_is_still_an_error() -> None:
    error = from_wire("QuantumDecoherence", "why", "/m", "")
    assert type(error) is TiercacheError
    assert str(error) == "/m: why"


def test_nothing_but_the_message_is_needed() -> None:
    assert str(TiercacheError()) == ""
    assert str(errors.NotFound("why")) == "why"
    with pytest.raises(FileNotFoundError):
        raise errors.NotFound("why", path="/m")
