"""What fsspec filesystems raise, as our errors: by status where one is found, else by type."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from tiercache.cloud.statuses import (
    CREDENTIALS_REMEDY,
    from_status,
    retry_after_s,
    taken,
)
from tiercache.errors import (
    AccessDenied,
    NotFound,
    OriginUnavailable,
    TiercacheError,
    Unsupported,
)

_CAUSES = 5  # a filesystem wraps its client's error once or twice


def translate(error: Exception, *, path: str, protocol: str) -> TiercacheError:
    """Return our error. The texts of foreign errors are left out: they may quote a secret."""
    if isinstance(error, TiercacheError):
        return error
    if isinstance(error, FileExistsError):
        return taken(path)
    for cause in _chain(error):
        status = _status(cause)
        if status is not None:
            return from_status(status, path=path, retry_after_s=retry_after_s(_headers(cause)))
    match error:
        case FileNotFoundError() | IsADirectoryError() | NotADirectoryError():
            return NotFound("no such object", path=path)
        case PermissionError():
            return AccessDenied("access refused", path=path, remedy=CREDENTIALS_REMEDY)
        case NotImplementedError() | ValueError() | TypeError():
            name = type(error).__name__
            return Unsupported(f"the {protocol} filesystem refused it ({name})", path=path)
        case OSError(errno=errno.ENAMETOOLONG | errno.EINVAL | errno.ENOTEMPTY):
            return Unsupported("the file system cannot hold this name", path=path)
        case OSError(errno=None) if protocol in ("gs", "gcs") and type(error) is OSError:
            # gcsfs raises a bare OSError for 403, and for nothing else.
            return AccessDenied("access refused", path=path, remedy=CREDENTIALS_REMEDY)
    if _is_credentials_error(error):
        return AccessDenied("no valid credentials", path=path, remedy=CREDENTIALS_REMEDY)
    return OriginUnavailable(f"{protocol}: {type(error).__name__}", path=path)


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    for _ in range(_CAUSES):
        if current is None:
            return
        yield current
        current = current.__cause__ or current.__context__


def _status(error: BaseException) -> int | None:
    """Find the HTTP status where botocore, gcsfs, azure-core and aiohttp each keep it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return found if isinstance(found, int) else None
    names: tuple[str, ...] = ("status_code", "status")
    if type(error).__module__.partition(".")[0] in ("gcsfs", "google"):
        names = ("code",)  # elsewhere it is no status: aiohttp's parser numbers its own faults
    for name in names:
        found = getattr(error, name, None)
        if isinstance(found, int) and 300 <= found < 600:
            return found
    return None


def _headers(error: BaseException) -> object:
    """Find the answer's headers where botocore, azure-core and aiohttp each keep them."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPHeaders")
    return getattr(response if response is not None else error, "headers", None)


def _is_credentials_error(error: Exception) -> bool:
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(
        names & {"NoCredentialsError", "CredentialRetrievalError", "GoogleAuthError"}
        | names & {"ClientAuthenticationError", "UnauthorizedSSOTokenError"}
    )
