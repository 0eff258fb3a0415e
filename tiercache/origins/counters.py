"""What one origin was asked and what it answered. Plain integers, owned by the event loop."""

from __future__ import annotations


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
