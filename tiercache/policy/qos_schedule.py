"""Hours of the week, by the clock on the node's wall. Pure: whoever asks says what time it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
DAY_MINUTES = 24 * 60
WEEK_MINUTES = 7 * DAY_MINUTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Local time of the node: ``weekday`` 0 is Monday, ``minute`` of the day, ``second`` of the
    minute. From ``time.localtime()``: tm_wday, tm_hour * 60 + tm_min, tm_sec."""

    weekday: int
    minute: int
    second: float = 0.0

    @property
    def week_minute(self) -> int:
        return self.weekday * DAY_MINUTES + self.minute


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """From ``start_minute`` (inclusive) to ``end_minute`` (exclusive, up to 1440) of each of
    ``days`` (0 is Monday). One whose end is not after its start goes on into the next day."""

    days: tuple[int, ...]
    start_minute: int
    end_minute: int

    @property
    def minutes(self) -> int:
        """How long it is."""
        length = self.end_minute - self.start_minute
        return length if length > 0 else length + DAY_MINUTES

    @property
    def starts(self) -> tuple[int, ...]:
        """Minutes of the week at which it begins."""
        return tuple(day * DAY_MINUTES + self.start_minute for day in self.days)

    def __str__(self) -> str:
        """Return it as a policy writes it: "Mon-Fri 08:00-20:00"."""
        runs: list[list[int]] = []
        for day in self.days:
            if runs and runs[-1][-1] == day - 1:
                runs[-1].append(day)
            else:
                runs.append([day])
        days = ",".join(
            DAYS[run[0]] if len(run) == 1 else f"{DAYS[run[0]]}-{DAYS[run[-1]]}" for run in runs
        )
        start, end = divmod(self.start_minute, 60), divmod(self.end_minute, 60)
        hours = f"{start[0]:02}:{start[1]:02}-{end[0]:02}:{end[1]:02}"
        return hours if len(self.days) == 7 else f"{days} {hours}"

    def holds(self, moment: Moment) -> bool:
        return any(
            (moment.week_minute - start) % WEEK_MINUTES < self.minutes for start in self.starts
        )


def changes(windows: Iterable[Window]) -> list[int]:
    """Return the minutes of the week at which any of them begins or ends, in order."""
    found: set[int] = set()
    for window in windows:
        for start in window.starts:
            found |= {start % WEEK_MINUTES, (start + window.minutes) % WEEK_MINUTES}
    return sorted(found)


def next_change_s(windows: Iterable[Window], moment: Moment) -> float | None:
    """Return the seconds until any of them begins or ends; None where there are none.

    In time of the wall: where clocks change in between, it is wrong by as much.
    """
    now_s = moment.week_minute * 60 + moment.second
    # What begins at this very second is in force already: the next is a week ahead.
    waits = [(minute * 60 - now_s) % (WEEK_MINUTES * 60) for minute in changes(windows)]
    waits = [wait if wait > 0 else float(WEEK_MINUTES * 60) for wait in waits]
    return min(waits, default=None)
