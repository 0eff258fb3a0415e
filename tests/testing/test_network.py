"""The network shapes as it promises, by its profile and by its timeline, here and elsewhere.

A rate or a delay is never better than promised, in no sample. A busy machine may make it worse
than promised: then more samples are taken until enough of them are as promised.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tiercache.testing.byte_server import ByteServer
from tiercache.testing.network import PROFILES, Fault, FirstByteDelay, NetworkProfile
from tiercache.testing.pacing import REQUEST_BURST_S
from tiercache.testing.proxy import FaultyProxy
from tiercache.testing.proxy_cost import measure_own_cost
from tiercache.testing.proxy_process import ProxyProcess
from tiercache.testing.timeline import Condition, Period, Timeline

ROOT = Path(__file__).resolve().parents[2]
MB = 1_000_000
SLACK = 0.10
TRIES_S = 15.0  # a test's patience with a busy machine
ENOUGH = 3
TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds from the request to the answer's first byte and to its last."""

    first_byte_s: float
    last_byte_s: float
    status: int


class Client:
    """One bare connection, so that what is measured is the proxy."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        assert address.hostname is not None and address.port is not None
        self._sock = socket.create_connection((address.hostname, address.port), timeout=TIMEOUT_S)
        self._block = bytearray(MB)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._sock.close()

    def get(self, count: int) -> Took:
        return self._ask(f"GET /{count} HTTP/1.1\r\nHost: here\r\n\r\n".encode())

    def put(self, count: int) -> Took:
        head = f"PUT /put HTTP/1.1\r\nHost: here\r\nContent-Length: {count}\r\n\r\n"
        return self._ask(head.encode() + bytes(count))

    def _ask(self, request: bytes) -> Took:
        started_s = time.monotonic()
        self._sock.sendall(request)
        received = self._receive()
        first_byte_s = time.monotonic() - started_s
        head, _, body = received.partition(b"\r\n\r\n")
        left = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]) - len(body)
        while left > 0:
            left -= len(self._receive())
        return Took(first_byte_s, time.monotonic() - started_s, int(head.split(b" ")[1]))

    def _receive(self) -> bytes:
        count = self._sock.recv_into(self._block)
        if not count:
            raise ConnectionError("closed early")
        return bytes(self._block[:count])


def assert_takes(expected_s: float, measure: Callable[[], float]) -> None:
    """No sample is faster than promised by more than the slack, and enough are as promised."""
    samples: list[float] = []
    deadline_s = time.monotonic() + max(TRIES_S, expected_s * 15)
    while time.monotonic() < deadline_s:
        samples.append(measure())
        assert samples[-1] >= expected_s * (1 - SLACK), (samples, expected_s)
        if sum(sample <= expected_s * (1 + SLACK) for sample in samples) == ENOUGH:
            return
    raise AssertionError(f"{samples} s instead of {expected_s} s")


def network(
    *,
    delay_s: float | None = None,
    p99_s: float | None = None,
    connection: float | None = None,
    total: float | None = None,
    requests: float | None = None,
    retry_after_s: int | None = None,
    throttle_status: int = 503,
) -> NetworkProfile:
    delay = None
    if delay_s is not None:
        delay = FirstByteDelay(median_s=delay_s, p99_s=p99_s or delay_s)
    return NetworkProfile(
        name="test",
        source="this test",
        first_byte=delay,
        connection_bytes_per_s=connection,
        total_bytes_per_s=total,
        requests_per_s=requests,
        throttle_status=throttle_status,
        retry_after_s=retry_after_s,
    )


@pytest.fixture(scope="module")
def server() -> Iterator[ByteServer]:
    with ByteServer() as started:
        yield started


@pytest.fixture
def proxy(server: ByteServer) -> Iterator[FaultyProxy]:
    with FaultyProxy(server.url) as started:
        yield started


# Values


def test_a_delay_has_its_median_and_its_tail(seed: int) -> None:
    delay = FirstByteDelay(median_s=0.025, p99_s=0.100)
    rng = random.Random(seed)
    drawn = sorted(delay.draw(rng) for _ in range(20_000))
    assert statistics.median(drawn) == pytest.approx(0.025, rel=0.05)
    assert drawn[int(len(drawn) * 0.99)] == pytest.approx(0.100, rel=0.15)
    with pytest.raises(ValueError, match="median"):
        FirstByteDelay(median_s=0.1, p99_s=0.05)
    with pytest.raises(ValueError, match="not positive"):
        network(connection=0.0)


def test_a_seed_repeats() -> None:
    delay = PROFILES["wan"].first_byte
    assert delay is not None

    def drawn(seed: int) -> list[float]:
        rng = random.Random(seed)
        return [delay.draw(rng) for _ in range(20)]

    assert drawn(7) == drawn(7) != drawn(8)


def test_profiles_are_as_the_plan_says() -> None:
    assert list(PROFILES) == ["local", "premium", "same-region", "cross-region", "wan"]
    assert all(profile.source for profile in PROFILES.values())
    near, premium = PROFILES["same-region"], PROFILES["premium"]
    assert near.first_byte is not None and premium.first_byte is not None
    assert 0.020 <= near.first_byte.median_s <= 0.030
    assert near.connection_bytes_per_s == 90 * MB
    assert premium.first_byte.median_s == 0.003
    local = PROFILES["local"]
    assert local == NetworkProfile(name="local", source=local.source)


def test_a_timeline_is_read() -> None:
    timeline = Timeline.parse(
        [
            "outage from 10 s to 20 s",
            "wan from 500 ms to 8s",
            "503 retry after 2 s from 3 s to 4 s",
            "429 from 4 s to 5.5 s",
            "refuse from 20 s to 21 s",
            "lost answers from 1 s to 2 s",
            "reset after 10 bytes from 1 s to 2 s",
            "truncate after 1 byte from 1 s to 2 s",
        ]
    )
    assert [period.what for period in timeline.periods] == [
        Condition.OUTAGE,
        PROFILES["wan"],
        Fault(respond_status=503, retry_after_s=2),
        Fault(respond_status=429),
        Condition.REFUSE,
        Fault(lose_answer=True),
        Fault(reset_after_bytes=10),
        Fault(truncate_after_bytes=1),
    ]
    assert [(found.from_s, found.to_s) for found in timeline.periods[:4]] == [
        (10.0, 20.0),
        (0.5, 8.0),
        (3.0, 4.0),
        (4.0, 5.5),
    ]
    assert Timeline.parse("wan from 1 s to 2 s\n\noutage from 1 s to 2 s") == Timeline.parse(
        iter(["wan from 1 s to 2 s", "outage from 1 s to 2 s"])
    )
    # At 20 s the outage ends before the refusal begins.
    at_20 = [(begins, found.text) for at_s, begins, found in timeline.steps() if at_s == 20.0]
    assert at_20 == [(False, "outage"), (True, "refuse")]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("flood from 1 s to 2 s", "flood"),
        ("outage from 1 to 2", "from N s"),
        ("outage from 2 s to 1 s", "from < to"),
        ("outage from 1 s to 3 s\nrefuse from 2 s to 4 s", "overlap"),
        ("wan from 1 s to 3 s\npremium from 2 s to 4 s", "overlap"),
    ],
)
def test_a_timeline_without_meaning_is_refused(line: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Timeline.parse(line)


# Shapes


@pytest.mark.parametrize("rate_mb_per_s", [1, 20, 90, 200])
def test_a_connection_has_its_rate(proxy: FaultyProxy, rate_mb_per_s: int) -> None:
    proxy.set_network(network(connection=rate_mb_per_s * MB))
    count = rate_mb_per_s * MB // 5
    with Client(proxy.url) as client:
        assert_takes(0.2, lambda: client.get(count).last_byte_s)
        if rate_mb_per_s <= 20:
            assert_takes(0.2, lambda: client.put(count).last_byte_s)


def test_a_fault_may_be_narrower_than_the_network(proxy: FaultyProxy) -> None:
    proxy.set_network(network(connection=20 * MB))
    proxy.inject(Fault(connection_bytes_per_s=5 * MB))
    with Client(proxy.url) as client:
        assert_takes(0.2, lambda: client.get(MB).last_byte_s)


@pytest.mark.parametrize(("rate_mb_per_s", "connections"), [(2, 2), (40, 4), (150, 8)])
def test_all_connections_share_the_rate_in_all(
    proxy: FaultyProxy, rate_mb_per_s: int, connections: int
) -> None:
    # Each connection alone may have half of it: the rate in all binds.
    proxy.set_network(network(total=rate_mb_per_s * MB, connection=rate_mb_per_s * MB // 2 + 1))
    count = rate_mb_per_s * MB * 3 // 10 // connections
    clients = [Client(proxy.url) for _ in range(connections)]

    def all_at_once() -> float:
        threads = [threading.Thread(target=client.get, args=(count,)) for client in clients]
        started_s = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
        return time.monotonic() - started_s

    try:
        assert_takes(0.3, all_at_once)
    finally:
        for client in clients:
            client.__exit__()


@pytest.mark.parametrize("delay_ms", [3, 25, 200])
def test_the_first_byte_is_late(proxy: FaultyProxy, delay_ms: int) -> None:
    proxy.set_network(network(delay_s=delay_ms / 1000))
    with Client(proxy.url) as client:
        assert_takes(delay_ms / 1000, lambda: client.get(1000).first_byte_s)
        if delay_ms > 3:  # of which the proxy's own two tasks for an upload take a tenth
            assert_takes(delay_ms / 1000, lambda: client.put(1000).first_byte_s)


def test_delays_are_those_of_the_seed(server: ByteServer) -> None:
    shape = network(delay_s=0.010, p99_s=0.060)
    assert shape.first_byte is not None
    with FaultyProxy(server.url, network=shape, seed=5) as proxy, Client(proxy.url) as client:
        rng = random.Random(5)
        expected = [shape.first_byte.draw(rng) for _ in range(20)]
        found = [client.get(10).first_byte_s for _ in expected]
    assert all(late_s > due_s * 0.98 for late_s, due_s in zip(found, expected, strict=True))
    assert max(expected) > 2 * min(expected)


@pytest.mark.parametrize(("status", "retry_after_s"), [(503, 3), (429, None)])
def test_requests_beyond_the_limit_are_sent_away(
    server: ByteServer, status: int, retry_after_s: int | None
) -> None:
    rate, count = 50.0, 200
    shape = network(requests=rate, retry_after_s=retry_after_s, throttle_status=status)
    with FaultyProxy(server.url, network=shape) as proxy, Client(proxy.url) as client:
        asked_before = server.request_count
        started_s = time.monotonic()
        statuses = [client.get(10).status for _ in range(count)]
        spent_s = time.monotonic() - started_s
        assert set(statuses) == {200, status}
        passed = statuses.count(200)
        assert passed == server.request_count - asked_before
        assert rate * REQUEST_BURST_S <= passed <= rate * (REQUEST_BURST_S + spent_s) + 1
        found = {retry_after_of_refusal(proxy.url, status) for _ in range(3)}
    assert found == {None if retry_after_s is None else str(retry_after_s)}


def retry_after_of_refusal(url: str, status: int) -> str | None:
    """Ask until sent away with this status; return the Retry-After header."""
    while True:
        try:
            urllib.request.urlopen(f"{url}/1", timeout=5).close()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == status:
                return error.headers["Retry-After"]
            raise


def test_a_black_hole_swallows_a_paced_body(proxy: FaultyProxy) -> None:
    proxy.set_network(network(connection=MB))
    with Client(proxy.url) as client:
        timer = threading.Timer(0.1, proxy.black_hole)
        heal = threading.Timer(0.5, proxy.heal)
        timer.start()
        heal.start()
        with pytest.raises(ConnectionError):
            client.get(10 * MB)
        heal.join(TIMEOUT_S)
    assert 0 < proxy.bytes_out() < 2 * MB


# Timelines


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s, "the condition did not come true"
        time.sleep(0.005)


def test_a_timeline_plays_in_order(server: ByteServer) -> None:
    timeline = Timeline.parse(
        [
            "503 retry after 1 s from 0 s to 300 ms",
            "outage from 300 ms to 600 ms",
            "refuse from 600 ms to 900 ms",
            "premium from 900 ms to 1200 ms",
        ]
    )
    with FaultyProxy(server.url, timeline=timeline) as proxy:
        seen: list[str] = []
        while len(proxy.timeline_events()) < 8:
            outcome = outcome_of_get(proxy)
            if seen[-1:] != [outcome]:
                seen.append(outcome)
        events = proxy.timeline_events()
        assert outcome_of_get(proxy) == "200"
    names = ["503 retry after 1 s", "outage", "refuse", "premium"]
    assert [(event.begins, event.text) for event in events] == [
        (begins, name) for name in names for begins in (True, False)
    ]
    marks = [0.0, 0.3, 0.3, 0.6, 0.6, 0.9, 0.9, 1.2]
    starts = [event.at_s - events[0].at_s for event in events]
    assert all(start >= mark - 0.02 for start, mark in zip(starts, marks, strict=True)), starts
    # Each came in its turn. What is caught between two may show as either.
    order = ["503", "silence", "refused", "200"]
    assert [outcome for outcome in seen if outcome in order][:1] == ["503"]
    assert seen[-1] == "200" and "silence" in seen and "refused" in seen
    assert seen.index("silence") < seen.index("refused") < len(seen) - 1


def outcome_of_get(proxy: FaultyProxy) -> str:
    try:
        with urllib.request.urlopen(f"{proxy.url}/10", timeout=0.05) as answer:
            return str(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return str(error.code)
    except urllib.error.URLError as error:
        return "refused" if isinstance(error.reason, ConnectionRefusedError) else "silence"
    except OSError:
        return "silence"


def test_healing_ends_a_timeline(proxy: FaultyProxy) -> None:
    proxy.play(Timeline.parse(["outage from 0 s to 60 s", "503 from 0 s to 60 s"]))
    wait_for(lambda: len(proxy.timeline_events()) == 2)
    proxy.heal()
    events = [(event.begins, event.text) for event in proxy.timeline_events()]
    assert sorted(events[2:]) == [(False, "503"), (False, "outage")]
    with Client(proxy.url) as client:
        assert client.get(10).status == 200
    # Another replaces the one under way.
    proxy.play(Timeline((Period(from_s=0, to_s=60, what=Fault(respond_status=500)),)))
    wait_for(lambda: proxy.timeline_events()[-1].text == "500")
    proxy.play(Timeline((Period(from_s=0, to_s=60, what=network(delay_s=0.05)),)))
    wait_for(lambda: proxy.timeline_events()[-1].text == "test")
    with Client(proxy.url) as client:
        took = client.get(10)
    assert took.status == 200 and took.first_byte_s >= 0.05
    proxy.clear()
    assert proxy.timeline_events() == []


def test_a_profile_ends_where_the_network_goes_on(proxy: FaultyProxy) -> None:
    proxy.set_network(network(delay_s=0.1))
    proxy.play(Timeline((Period(from_s=0, to_s=0.2, what=network(requests=0.001)),)))
    with Client(proxy.url) as client:
        wait_for(lambda: client.get(1).status == 503)
        wait_for(lambda: len(proxy.timeline_events()) == 2)
        took = client.get(1)
    assert took.status == 200 and took.first_byte_s >= 0.1


# Its own process, and its own cost


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_proxy_elsewhere_does_the_same(server: ByteServer) -> None:
    with ProxyProcess(server.url, network=network(delay_s=0.02), seed=3) as proxy:
        assert proxy.pid != os.getpid() and is_running(proxy.pid)
        with Client(proxy.url) as client:
            assert client.get(100_000).first_byte_s >= 0.02
            client.put(1000)
            assert proxy.counts() == {"GET": 1, "PUT": 1}
            assert proxy.bytes_out("/100000") == proxy.bytes_out() == 100_000
            assert [found.upload_bytes for found in proxy.exchanges("PUT")] == [1000]
            assert proxy.peak_in_flight == 1
            proxy.clear()
            assert not proxy.exchanges()
            assert proxy.inject(Fault(respond_status=500, times=1)).respond_status == 500
            assert [client.get(1).status, client.get(1).status] == [500, 200]
            proxy.set_network(PROFILES["local"])
            proxy.play(Timeline.parse(["503 from 0 s to 60 s"]))
            wait_for(lambda: client.get(1).status == 503)
            proxy.heal()
            assert [event.text for event in proxy.timeline_events()] == ["503", "503"]
            assert client.get(1).status == 200
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            Client(proxy.url)
        proxy.heal()
        proxy.black_hole()
        proxy.heal()
        assert proxy.cpu_s() > 0
        pid = proxy.pid
    assert not is_running(pid)
    with pytest.raises(RuntimeError, match="not running"):
        proxy.counts()


def test_a_proxy_elsewhere_says_what_it_cannot(server: ByteServer) -> None:
    with ProxyProcess(server.url) as proxy:
        os.kill(proxy.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="gone"):
            proxy.counts()


OWNER = """
import sys, time
from tiercache.testing.proxy_process import ProxyProcess
proxy = ProxyProcess("http://127.0.0.1:9").start()
print(proxy.pid, flush=True)
time.sleep(600)
"""


def test_a_proxy_elsewhere_dies_with_its_owner() -> None:
    command = [sys.executable, "-c", OWNER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        [directory] = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[3:4]
        assert is_running(pid)
        owner.kill()
    wait_for(lambda: not is_running(pid))
    wait_for(lambda: not Path(os.fsdecode(directory)).parent.exists())


@pytest.mark.parametrize("own_server", [True, False])
def test_its_own_cost_is_told(server: ByteServer, own_server: bool) -> None:
    cost = measure_own_cost(
        None if own_server else server.url,
        large_path="/8000000",
        small_count=50,
        large_count=4,
    )
    assert cost.added_cpu_s > 0 and cost.cpu_s_per_gb > 0
    assert cost.max_bytes_per_s > 0 and cost.straight_bytes_per_s > 0
    assert "µs a request" in str(cost) and "CPU s a GB" in str(cost)


def test_the_cost_is_not_that_of_an_error(server: ByteServer) -> None:
    with pytest.raises(OSError, match="not a 200"):
        measure_own_cost(server.url, small_path="/999999999999", small_count=1)


# The document


def profile_table() -> str:
    """The profiles as the document shows them."""
    lines = [
        "| profile | first byte: median, p99 | a connection | in all | requests |",
        "|---|---|---|---|---|",
    ]
    for profile in PROFILES.values():
        delay, requests = profile.first_byte, profile.requests_per_s
        lines.append(
            f"| `{profile.name}` "
            f"| {f'{delay.median_s * 1e3:.0f} ms, {delay.p99_s * 1e3:.0f} ms' if delay else '–'} "
            f"| {megabytes(profile.connection_bytes_per_s)} "
            f"| {megabytes(profile.total_bytes_per_s)} "
            f"| {f'{requests:,.0f}/s' if requests else '–'} |"
        )
    return "\n".join(lines)


def megabytes(bytes_per_s: float | None) -> str:
    return "–" if bytes_per_s is None else f"{bytes_per_s / MB:,.1f} MB/s".replace(".0 ", " ")


def source_list() -> str:
    return "\n".join(f"* `{found.name}`: {found.source}" for found in PROFILES.values())


@pytest.mark.parametrize("expected", [profile_table(), source_list()], ids=["table", "sources"])
def test_the_document_is_true(expected: str) -> None:
    assert expected in (ROOT / "docs" / "network.md").read_text(), f"it should say:\n{expected}"
