"""obstore's exceptions as ours: by type, and by the HTTP status where the type says nothing."""

from __future__ import annotations

import re

from obstore import exceptions as obs

from tiercache.cloud.statuses import (
    CREDENTIALS_REMEDY,
    another_version,
    from_status,
    taken,
)
from tiercache.errors import (
    AccessDenied,
    NotFound,
    OriginUnavailable,
    TiercacheError,
    Unsupported,
)

# What an obstore call can raise. Names that it cannot express raise InvalidPathError, or
# ValueError when it parses an argument.
OBSTORE_ERRORS = (obs.BaseError, OSError, ValueError)
BAD_NAME = (obs.InvalidPathError, ValueError)

# obstore puts a status that it has no type for into GenericError's text, and nowhere else:
# "Generic S3 error: Error performing GET <url> in 413µs - Server returned non-2xx status code:
# 416 Range Not Satisfiable: <body>". The URL before it is percent-encoded and holds no space,
# so the first match is the server's.
_STATUS = re.compile(r"Server returned non-2xx status code: (\d{3})")
# Bodies hold access key ids and string-to-sign; query strings hold SAS signatures.
_BODY = re.compile(r"(Server returned non-2xx status code: \d{3}[A-Za-z ]*).*", re.DOTALL)
_DEBUG = re.compile(r"\n+Debug source:.*", re.DOTALL)
_QUERY = re.compile(r"(https?://[^\s?]*)\?\S*")
_DETAIL_CHARS = 300


def status_of(error: Exception) -> int | None:
    """Return the HTTP status in an obstore error's text, None where it was no answer at all."""
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def scrubbed(error: Exception) -> str:
    """Return the error's first sentence without bodies and query strings, which hold secrets."""
    text = _DEBUG.sub("", str(error))
    text = _QUERY.sub(r"\1", _BODY.sub(r"\1", text))
    return text.strip()[:_DETAIL_CHARS]


def translate(error: Exception, *, path: str) -> TiercacheError:
    """Return our error for what an obstore call raised (one of OBSTORE_ERRORS)."""
    match error:
        case TiercacheError():
            return error
        case FileNotFoundError():
            return NotFound("no such object", path=path)
        case obs.AlreadyExistsError():
            return taken(path)
        case obs.PreconditionError() | obs.NotModifiedError():
            return another_version(path)
        case obs.UnauthenticatedError():
            # A credential provider's own words stand in the text; they may quote a secret.
            return AccessDenied("no valid credentials", path=path, remedy=CREDENTIALS_REMEDY)
        case obs.PermissionDeniedError() | PermissionError():
            return AccessDenied("the origin refused access", path=path, remedy=CREDENTIALS_REMEDY)
        case obs.NotSupportedError():
            return Unsupported(scrubbed(error), path=path)
        case obs.InvalidPathError() | ValueError():
            return Unsupported("obstore cannot name this key", path=path)
    status = status_of(error)
    if status is not None:
        return from_status(status, path=path)
    return OriginUnavailable(scrubbed(error), path=path)
