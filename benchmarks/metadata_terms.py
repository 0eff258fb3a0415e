"""What the workloads of the metadata store call what they measure, for whoever makes an answer of
it. A figure's ``work`` is one of these, a comma, and where the store lies."""

from __future__ import annotations

ONE, HUNDRED, MANY = "commit of 1 record", "commit of 100 records", "commit of 2,000 records"
AT_ONCE = "commits of 1 record, 16 at once"
COLD, HOT = "read of a record after an opening", "read of a record just committed"
SCAN, OPEN = "scan of all records after an opening", "opening"
FIRST_COMMIT, OLD_TOLD = "first commit after a takeover", "old agent told of a takeover"
BUSY = " of the busy"  # with either: the old agent commits without a pause
NAMES, PINS = "until all names are listed", "until status shows the pins"


def at_rest(where: str) -> str:
    return f"requests an hour at rest, {where}"


def dollars_at_rest(where: str) -> str:
    return f"dollars a month at rest, {where}"
