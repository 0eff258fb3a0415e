"""The whole exception tree. Every error a caller can see is one of these.

    TiercacheError
    ├── NotFound            (FileNotFoundError)   the origin said: no such object
    ├── IsADirectory        (IsADirectoryError)   data asked of a prefix
    ├── AccessDenied        (PermissionError)     the origin refused the credentials
    ├── OriginUnavailable   (ConnectionError)     nobody could be asked (is it there?)
    │   └── OriginThrottled                       it answered 429 or 503; a Throttled too
    ├── Throttled           (OSError, EAGAIN)     the policy's limit makes it wait too long
    ├── PreconditionFailed                        a conditional request met another version
    │   └── AlreadyExists   (FileExistsError)     mode="create" met an object
    ├── StaleHandle         (OSError, ESTALE)     the version bound to a handle is gone
    ├── CorruptPage         (OSError, EIO)        bytes on the cache device fail their checksum
    ├── CacheFull           (OSError, ENOSPC)     the limit leaves no room
    ├── ConfigError         (ValueError)          configuration refused
    ├── Unsupported         (NotImplementedError) the origin or this version lacks a capability
    ├── FormatError         (ValueError)          a cache directory or frame of another format
    ├── AgentUnavailable    (ConnectionError)     no agent could be reached or started
    ├── MetadataUnavailable (ConnectionError)     the metadata store cannot be asked
    ├── MetadataFenced                            another agent has taken the metadata store over
    └── Interrupted                               the operation was cancelled

Each carries ``message``, ``path`` (namespace path or URL, may be empty) and ``remedy`` (may be
empty); each pickles, and crosses the socket by its class name.
"""

from __future__ import annotations

import errno


class TiercacheError(Exception):
    """Base of all errors; ``str()`` gives path, cause and remedy in one line."""

    def __init__(self, message: str = "", *, path: str = "", remedy: str = "") -> None:
        self.message = message
        self.path = path
        self.remedy = remedy
        if isinstance(self, OSError) and self._errno:
            OSError.__init__(self, self._errno, message)
        else:
            Exception.__init__(self, message)

    _errno: int = 0

    def __str__(self) -> str:
        text = f"{self.path}: {self.message}" if self.path else self.message
        return f"{text} ({self.remedy})" if self.remedy else text

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self).__name__, self.message, self.path, self.remedy))


class NotFound(TiercacheError, FileNotFoundError):
    _errno = errno.ENOENT


class IsADirectory(TiercacheError, IsADirectoryError):
    _errno = errno.EISDIR


class AccessDenied(TiercacheError, PermissionError):
    _errno = errno.EACCES


class OriginUnavailable(TiercacheError, ConnectionError):
    _errno = errno.EHOSTUNREACH


class Throttled(TiercacheError, OSError):
    """``retry_after_s`` is the advice of who set the limit, 0.0 where there is none."""

    _errno = errno.EAGAIN
    retry_after_s: float = 0.0


class OriginThrottled(OriginUnavailable, Throttled):
    """The origin's own limit; that of the QoS policy is plain ``Throttled``."""

    _errno = errno.EAGAIN


class PreconditionFailed(TiercacheError):
    pass


class AlreadyExists(PreconditionFailed, FileExistsError):
    _errno = errno.EEXIST


class StaleHandle(TiercacheError, OSError):
    _errno = errno.ESTALE


class CorruptPage(TiercacheError, OSError):
    _errno = errno.EIO


class CacheFull(TiercacheError, OSError):
    _errno = errno.ENOSPC


class ConfigError(TiercacheError, ValueError):
    pass


class Unsupported(TiercacheError, NotImplementedError):
    pass


class FormatError(TiercacheError, ValueError):
    pass


class AgentUnavailable(TiercacheError, ConnectionError):
    _errno = errno.ECONNREFUSED


class MetadataUnavailable(TiercacheError, ConnectionError):
    _errno = errno.EHOSTUNREACH


class MetadataFenced(TiercacheError):
    pass


class Interrupted(TiercacheError):
    pass


def _subclasses(cls: type[TiercacheError]) -> dict[str, type[TiercacheError]]:
    found = {cls.__name__: cls}
    for sub in cls.__subclasses__():
        found.update(_subclasses(sub))
    return found


BY_NAME: dict[str, type[TiercacheError]] = _subclasses(TiercacheError)


def _rebuild(name: str, message: str, path: str, remedy: str) -> TiercacheError:
    return BY_NAME[name](message, path=path, remedy=remedy)


def from_wire(name: str, message: str, path: str, remedy: str) -> TiercacheError:
    """Rebuild an error that crossed the socket; an unknown class becomes TiercacheError."""
    return BY_NAME.get(name, TiercacheError)(message, path=path, remedy=remedy)
