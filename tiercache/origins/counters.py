"""What one origin was asked and what it answered. Plain integers, owned by the event loop."""

from __future__ import annotations

from collections import deque

from tiercache.clock import Clock

# Seconds with traffic that the throughput is taken from, and the bytes that they must hold to say
# anything: a few small objects tell how the server answers, not what the network carries.
THROUGHPUT_SECONDS = 60
THROUGHPUT_BYTES = 16 << 20


class Throughput:
    """What one endpoint has delivered lately: the most bytes of a second, for readers rarely ask
    for all that it could deliver."""

    __slots__ = ("_bytes", "_clock", "_second", "_seconds")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._second = 0
        self._bytes = 0
        self._seconds: deque[int] = deque(maxlen=THROUGHPUT_SECONDS)

    def received(self, count: int, *, sent_s: float) -> None:
        """Note an answer of ``count`` bytes, whose request left at ``sent_s``: they came evenly."""
        now_s = self._clock.now()
        if int(now_s) != self._second:
            self._seconds.append(self._bytes)
            self._second, self._bytes = int(now_s), 0
        # Of an answer that took ten seconds only the last one's share belongs to this second.
        self._bytes += int(count / max(1.0, now_s - sent_s))

    def bytes_per_s(self) -> int:
        """Return 0 where too little was read to tell."""
        if sum(self._seconds) + self._bytes < THROUGHPUT_BYTES:
            return 0
        return max(self._bytes, *self._seconds, 0)


class OriginCounters:
    """``requests_*`` count attempts sent, by method; ``calls`` what callers asked for, once
    each. ``errors`` counts attempts that got no usable answer, ``throttles`` those that the
    server put off (429, 503), ``settled`` writes whose lost answer a HEAD made up for, and
    ``rejected`` calls that an open breaker refused without a request."""

    __slots__ = (
        "bytes_read",
        "bytes_written",
        "calls",
        "errors",
        "rejected",
        "requests_copy",
        "requests_delete",
        "requests_get",
        "requests_head",
        "requests_list",
        "requests_put",
        "retries",
        "settled",
        "throttles",
    )

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    bytes_read: int
    bytes_written: int
    calls: int
    errors: int
    rejected: int
    requests_copy: int
    requests_delete: int
    requests_get: int
    requests_head: int
    requests_list: int
    requests_put: int
    retries: int
    settled: int
    throttles: int

    def snapshot(self) -> dict[str, int]:
        """Return all counts by name."""
        return {name: getattr(self, name) for name in self.__slots__}

    def by_method(self) -> dict[str, int]:
        """Return the attempts sent, by method: copy, delete, get, head, list, put."""
        return {
            name.removeprefix("requests_"): getattr(self, name)
            for name in self.__slots__
            if name.startswith("requests_")
        }

    @property
    def requests(self) -> int:
        """Attempts sent, of all methods. A page of a listing is one."""
        return sum(self.by_method().values())
