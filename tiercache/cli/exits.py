"""Exit codes, and which error ends with which: the one table of it."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from tiercache import ending, errors


class ExitCode(IntEnum):
    """What a script may rely on."""

    OK = 0
    FAILED = 1  # some items failed, or something has no code of its own
    USAGE = 2
    NOT_FOUND = 3
    CONFIG = 4  # configuration or credentials
    UNREACHABLE = 5
    LIMIT = 6
    CORRUPT = 7
    INTERRUPTED = ending.INTERRUPTED


MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "ok",
    ExitCode.FAILED: "some items failed",
    ExitCode.USAGE: "wrong usage",
    ExitCode.NOT_FOUND: "not found",
    ExitCode.CONFIG: "configuration or credentials",
    ExitCode.UNREACHABLE: "origin or metadata store unreachable",
    ExitCode.LIMIT: "limit reached",
    ExitCode.CORRUPT: "corruption found",
    ExitCode.INTERRUPTED: "interrupted",
}

# The nearest class in an error's own order of bases decides.
BY_CLASS: dict[type[BaseException], ExitCode] = {
    errors.NotFound: ExitCode.NOT_FOUND,
    errors.IsADirectory: ExitCode.USAGE,
    errors.AccessDenied: ExitCode.CONFIG,
    errors.OriginUnavailable: ExitCode.UNREACHABLE,
    errors.MetadataUnavailable: ExitCode.UNREACHABLE,
    errors.CacheFull: ExitCode.LIMIT,
    errors.Throttled: ExitCode.LIMIT,
    errors.CorruptPage: ExitCode.CORRUPT,
    errors.ConfigError: ExitCode.CONFIG,
    errors.FormatError: ExitCode.CONFIG,
    errors.MetadataUnavailable: ExitCode.UNREACHABLE,
    errors.Interrupted: ExitCode.INTERRUPTED,
    errors.TiercacheError: ExitCode.FAILED,
    KeyboardInterrupt: ExitCode.INTERRUPTED,
    FileNotFoundError: ExitCode.NOT_FOUND,  # a local file
    BaseException: ExitCode.FAILED,
}


def exit_code_of(kind: type[BaseException]) -> ExitCode:
    """Return the code with which an error of this class ends the program."""
    return next(BY_CLASS[base] for base in kind.__mro__ if base in BY_CLASS)


def exit_code_of_name(name: str) -> ExitCode:
    """The same for a class that crossed the socket by its name."""
    return exit_code_of(errors.BY_NAME.get(name, errors.TiercacheError))


def exit_code_of_many(failures: Iterable[ExitCode], *, succeeded: int) -> ExitCode:
    """Return the code of a command over many items: the failures' own where they all agree and
    nothing succeeded, else that some failed."""
    codes = set(failures)
    if not codes:
        return ExitCode.OK
    if len(codes) == 1 and not succeeded:
        return codes.pop()
    return ExitCode.FAILED
