"""Watches one contender: CPU seconds, memory, latency, and which tier its bytes came from.

It looks before and after each counted round, never during it, and takes some milliseconds for
that. It asks the kernel and the origin, not the contender, so that it counts rivals as it counts
us.

**Kinds of process.** ``reader``: this process and the children it has waited for, or, where the
readers counted themselves, what they say. ``agent``: ours. ``server``: the emulator. ``proxy``:
the network in front of it. ``tool``: what a contender runs beside its readers.

**Tiers** (``Sample.tiers``), over all counted rounds:

- ``delivered_bytes``: what readers were given, as ``Measured.bytes`` says. Left out, with what
  follows from it, where a run does not say.
- ``nvme_bytes``: what readers, agent and tools made block devices read, by the kernel's count.
  Read-ahead and metadata are part of it.
- ``origin_bytes``, ``origin_received_bytes``, ``origin_requests_get|head|list|put|delete``: what
  the origin sent, was sent, and was asked. Without a proxy: the server's own counts, of objects'
  bytes alone; a GET that it answered without a byte stands as HEAD (see ``SeaweedS3.traffic``).
  With one: the proxy's counts of what passed it, whose bytes are of listings and errors too; a
  LIST of S3 is told from a GET by its query, as is a DELETE of several from a POST. Other POSTs
  and COPY count as PUT.
- ``page_cache_bytes``: delivered − nvme − origin. No one counts a hit in the page cache, so it is
  what is left.
- ``over_read_bytes``: in place of ``page_cache_bytes`` where more came from device and origin
  than was delivered, and so much more: whole pages fetched for parts of them, read-ahead. How
  much the page cache then served nobody knows.

What a prefetch still fetches when a round ends counts for whoever runs then. While a round runs,
leave the proxy's log alone and the server up: both count from there anew.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from hdrh.histogram import HdrHistogram

from benchmarks import processes as kernel
from benchmarks.harness import Latency, Measured, Sample
from benchmarks.prices import prices

if TYPE_CHECKING:
    from benchmarks.lab import Lab
    from tiercache.namespace import Namespace
    from tiercache.testing.proxy_process import ProxyProcess

# 1 ns to one hour, three significant digits: some 100 KiB of counters.
LOWEST_NS = 1
HIGHEST_NS = 3600 * 10**9
DIGITS = 3
# Whose device reads are the cache's. The server's are the origin's own affair.
READING = ("reader", "agent", "tool")
# What S3 asks by another method than its price is of: method, what is in the query, kind.
BY_QUERY = (("GET", "list-type=2", "LIST"), ("POST", "?delete", "DELETE"))


# -- latency --------------------------------------------------------------------------------


def histogram(values_ns: Iterable[int] = ()) -> HdrHistogram:
    """Return a histogram of nanoseconds as all of ours are. Recording takes 2 µs: keep the values
    in an array while the clock runs."""
    made = HdrHistogram(LOWEST_NS, HIGHEST_NS, DIGITS)
    for value in values_ns:
        made.record_value(min(max(int(value), LOWEST_NS), HIGHEST_NS))
    return made


def encoded(values_ns: Iterable[int]) -> bytes:
    """Return what ``Measured.histogram`` takes."""
    found: bytes = histogram(values_ns).encode()
    return found


def latency(of: HdrHistogram) -> Latency | None:
    """Return the percentiles; None of an empty histogram."""
    if not of.get_total_count():
        return None

    def us(percentile: float) -> float:
        return float(of.get_value_at_percentile(percentile)) / 1e3

    return Latency(
        count=of.get_total_count(),
        p50_us=us(50.0),
        p90_us=us(90.0),
        p99_us=us(99.0),
        p999_us=us(99.9),
        max_us=us(100.0),
        histogram=of.encode().decode("ascii"),
    )


# -- the sampler ----------------------------------------------------------------------------


class Sampler:
    """See the module. ``processes`` tells a contender's own by kind, asked anew each time. Not
    thread safe."""

    def __init__(
        self,
        lab: Lab,
        *,
        namespace: Namespace | None = None,
        processes: Callable[[], dict[str, list[int]]] | None = None,
        proxy: ProxyProcess | None = None,
    ) -> None:
        # Constant after construction
        self._lab = lab
        self._namespace = namespace
        self._processes = processes
        self._proxy = proxy
        profile = None if proxy is None else proxy.network
        self._network = "" if profile is None else profile.name
        # What begin() has seen
        self._cpu_s: dict[int, float] = {}
        self._device: dict[int, int] = {}
        self._origin: Counter[str] | None = None
        self._forgot: set[int] = set()
        # The sums over rounds
        self._operations = 0
        self._bytes = 0
        self._bytes_known = True
        self._seconds = 0.0
        self._histogram = histogram()
        self._cpu_sums: dict[str, float] = {}
        self._peaks: dict[str, int] = {}
        self._device_bytes = 0
        self._origin_sums: Counter[str] | None = None

    def begin(self) -> None:
        """Look before a round."""
        self._origin = self._origin_now()
        watched = self._watched()
        pids = [pid for found in watched.values() for pid in found]
        self._forgot = {pid for pid in pids if kernel.forget_peak_rss(pid)}
        self._device = {
            pid: kernel.device_read_bytes(pid) or 0
            for kind in READING
            for pid in watched.get(kind, ())
        }
        self._cpu_s = {pid: _cpu_s(pid) or 0.0 for pid in pids}

    def end(self, measured: Measured) -> None:
        """Look after it, and add what has happened to the sums."""
        watched = self._watched()
        spent = self._spent(watched)
        for kind, seconds in {**spent, **measured.cpu_s}.items():
            self._cpu_sums[kind] = self._cpu_sums.get(kind, 0.0) + seconds
        self._note_peaks(watched, measured.rss_bytes)
        self._note_device(watched, measured)
        self._note_origin()
        self._operations += measured.operations
        self._bytes += measured.bytes
        self._bytes_known = self._bytes_known and measured.bytes > 0
        self._seconds += measured.seconds
        if measured.histogram:
            self._histogram.decode_and_add(measured.histogram)

    def sample(self) -> Sample:
        """Return the sums so far."""
        tiers = self._tiers()
        origin = self._origin_sums
        return Sample(
            operations=self._operations,
            bytes=self._bytes,
            seconds=self._seconds,
            latency=latency(self._histogram),
            cpu_s=dict(self._cpu_sums),
            rss_bytes=dict(self._peaks),
            tiers=tiers,
            cost_dollars=None if origin is None else prices().dollars(tiers, self._network),
        )

    # -- processes --------------------------------------------------------------------------

    def _watched(self) -> dict[str, list[int]]:
        """Return the processes to watch, by kind. They may come and go between rounds."""
        found: dict[str, list[int]] = {"reader": [os.getpid()]}
        if self._namespace is not None and (agent := kernel.agent_pid(self._namespace)):
            found["agent"] = [agent]
        if self._lab.running_server is not None:
            found["server"] = [self._lab.running_server.pid]
        if self._proxy is not None:
            found["proxy"] = [self._proxy.pid]
        for kind, pids in (self._processes() if self._processes is not None else {}).items():
            found[kind] = [*found.get(kind, ()), *pids]
        return {kind: list(dict.fromkeys(pids)) for kind, pids in found.items()}

    def _spent(self, watched: Mapping[str, list[int]]) -> dict[str, float]:
        """Return CPU seconds since ``begin``. What has ended since then is not known."""
        spent = dict.fromkeys(watched, 0.0)
        for kind, pids in watched.items():
            for pid in pids:
                now = _cpu_s(pid)
                spent[kind] += 0.0 if now is None else now - self._cpu_s.get(pid, 0.0)
        return spent

    def _note_peaks(self, watched: Mapping[str, list[int]], told: Mapping[str, int]) -> None:
        """Keep the highest round's peak of each kind; processes of one kind add up."""
        peaks = dict.fromkeys(watched, 0)
        for kind, pids in watched.items():
            for pid in pids:
                # The peak since its start would be an earlier contender's.
                own = pid in self._forgot or pid not in self._cpu_s
                look = kernel.peak_rss_bytes if own else kernel.rss_bytes
                peaks[kind] += look(pid) or 0
        for kind, peak in {**peaks, **told}.items():
            self._peaks[kind] = max(self._peaks.get(kind, 0), peak)

    # -- tiers ------------------------------------------------------------------------------

    def _note_device(self, watched: Mapping[str, list[int]], measured: Measured) -> None:
        self._device_bytes += measured.device_read_bytes
        for kind in READING:
            if kind in measured.cpu_s:
                continue  # they counted themselves
            for pid in watched.get(kind, ()):
                now = kernel.device_read_bytes(pid)
                self._device_bytes += 0 if now is None else now - self._device.get(pid, 0)

    def _origin_now(self) -> Counter[str] | None:
        """Return the origin's counts so far; None where there is none."""
        if self._proxy is not None:
            asked, sent = Counter(self._proxy.counts()), self._proxy.bytes_out()
            received = self._proxy.bytes_in()
            for method, query, kind in BY_QUERY:
                asked[kind] += (count := len(self._proxy.exchanges(method, query)))
                asked[method] -= count
        elif (server := self._lab.running_server) is not None:
            traffic = server.traffic()
            asked, sent, received = traffic.requests, traffic.bytes_sent, traffic.bytes_received
        else:
            return None
        return Counter(
            origin_bytes=sent,
            origin_received_bytes=received,
            origin_requests_get=asked["GET"],
            origin_requests_head=asked["HEAD"],
            origin_requests_list=asked["LIST"],
            origin_requests_put=asked["PUT"] + asked["POST"] + asked["COPY"],
            origin_requests_delete=asked["DELETE"],
        )

    def _note_origin(self) -> None:
        now = self._origin_now()
        if now is None:
            return
        now.subtract(self._origin or {})
        if self._origin_sums is None:
            self._origin_sums = Counter(dict.fromkeys(now, 0))
        self._origin_sums.update(now)

    def _tiers(self) -> dict[str, int]:
        tiers = {"nvme_bytes": self._device_bytes, **(self._origin_sums or {})}
        if not self._bytes or not self._bytes_known:
            return tiers
        rest = self._bytes - self._device_bytes - tiers.get("origin_bytes", 0)
        name, count = ("page_cache_bytes", rest) if rest >= 0 else ("over_read_bytes", -rest)
        return {"delivered_bytes": self._bytes, name: count, **tiers}


def _cpu_s(pid: int) -> float | None:
    return kernel.own_cpu_s() if pid == os.getpid() else kernel.cpu_s(pid)
