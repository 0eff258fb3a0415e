"""HTTP status to error class: the one table that all origin adapters share."""

from __future__ import annotations

from tiercache.errors import (
    AccessDenied,
    NotFound,
    OriginUnavailable,
    PreconditionFailed,
    Throttled,
    TiercacheError,
    Unsupported,
)

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
            error = Throttled(said, path=path)
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
