"""HTTP status to error class, and the words for conditions that were not met: what all origin
adapters share."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from tiercache.errors import (
    AccessDenied,
    AlreadyExists,
    NotFound,
    OriginThrottled,
    OriginUnavailable,
    PreconditionFailed,
    TiercacheError,
    Unsupported,
)
from tiercache.model import ObjectInfo

CREDENTIALS_REMEDY = "check the credentials chain with `tiercache doctor`"


def from_status(
    status: int, *, path: str, detail: str = "", retry_after_s: float = 0.0
) -> TiercacheError:
    """Return the error that an answer with this status stands for.

    ``detail`` must hold no secret. A 4xx that names no condition of ours means that the server
    will refuse the same request again: Unsupported, which nobody retries.
    """
    said = f"the origin answered {status}{': ' + detail if detail else ''}"
    match status:
        case 404 | 410:
            return NotFound("no such object", path=path)
        case 401 | 403 | 407:
            return AccessDenied(said, path=path, remedy=CREDENTIALS_REMEDY)
        case 304 | 409 | 412:
            return PreconditionFailed(said, path=path)
        case 429 | 503:
            error = OriginThrottled(said, path=path)
            error.retry_after_s = retry_after_s
            return error
        case 408:
            return OriginUnavailable(said, path=path)
        case _ if 300 <= status < 400:
            return Unsupported(said, path=path, remedy="check the profile's region and endpoint")
        case _ if 400 <= status < 500 or status == 501:
            remedy = "check the region, the clock and the length of the key"
            return Unsupported(said, path=path, remedy=remedy)
        case _:
            return OriginUnavailable(said, path=path)


def retry_after_s(headers: object) -> float:
    """Return the advice in an answer's headers, a mapping (of any other thing: none), in seconds;
    0.0 where there is none that is understood. It is a number of seconds or a date (RFC 9110)."""
    if not isinstance(headers, Mapping):
        return 0.0
    said = str(headers.get("Retry-After") or headers.get("retry-after") or "")
    if said.isdecimal():
        return float(said[:9])
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def bucket_missing(url: str) -> NotFound:
    """Return the NotFound that is about the bucket, not about a key in it."""
    return NotFound(
        "bucket does not exist", path=url, remedy="check the bucket's name, region and account"
    )


def truncated(path: str, *, got_bytes: int, want_bytes: int) -> OriginUnavailable:
    """Return the error for an answer that ended early."""
    return OriginUnavailable(
        f"the answer was cut short: {got_bytes} of {want_bytes} bytes", path=path
    )


def require_version(info: ObjectInfo, token: str | None, *, path: str) -> None:
    """Raise PreconditionFailed for any version but the token's; None asks for no certain one."""
    if token is not None and info.token != token:
        raise another_version(path)


def another_version(path: str) -> PreconditionFailed:
    return PreconditionFailed("the object is another version", path=path)


def version_gone(path: str) -> PreconditionFailed:
    """Return the error for a condition on a version where there is no object any more."""
    return PreconditionFailed("the object is gone", path=path)


def taken(path: str) -> AlreadyExists:
    return AlreadyExists("an object is there already", path=path)
