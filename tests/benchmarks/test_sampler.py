"""The sampler counts right: bytes by tier against the emulator's own log, and what follows."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store

from benchmarks import processes
from benchmarks.harness import Measured, Race, Sample
from benchmarks.lab import BUCKET, Lab, path_of
from benchmarks.prices import Prices, prices
from benchmarks.sampler import Sampler, encoded, histogram, latency
from benchmarks.workload import Dataset
from tiercache.namespace import Namespace
from tiercache.testing.emulators import EmulatorMissing, SeaweedS3
from tiercache.testing.network import PROFILES, NetworkProfile
from tiercache.testing.proxy_process import ProxyProcess

MIB = 1 << 20
BLOCK = 64 * 1024
DATASET = Dataset(count=1, bytes="4MiB")
WHOLE = DATASET.total_bytes
DEADLINE_S = 20.0


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(seed=3, directory=str(tmp_path_factory.mktemp("lab")))
    try:
        made.objects(DATASET)
        yield made
    except EmulatorMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    finally:
        made.close()


@pytest.fixture
def key(lab: Lab) -> str:
    (found,) = lab.objects(DATASET)
    return found.key


def straight(lab: Lab, endpoint: str = "") -> S3Store:
    env = lab.server.env
    return S3Store(
        BUCKET,
        endpoint=endpoint or lab.server.endpoint,
        access_key_id=env["AWS_ACCESS_KEY_ID"],
        secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        region=env["AWS_REGION"],
        client_options={"allow_http": True},
    )


def sampled(sampler: Sampler, run: Callable[[], int]) -> Sample:
    """Run once between ``begin`` and ``end``; ``run`` returns the bytes it was given."""
    sampler.begin()
    started = time.perf_counter()
    count = run()
    sampler.end(Measured(seconds=time.perf_counter() - started, bytes=count, operations=1))
    return sampler.sample()


def in_blocks(namespace: Namespace, key: str) -> Callable[[], int]:
    def run() -> int:
        path = path_of(key)
        return sum(len(namespace.read(path, place, BLOCK)) for place in range(0, WHOLE, BLOCK))

    return run


# -- tiers ----------------------------------------------------------------------------------


def test_ours_cold_then_hot_against_the_servers_own_count(lab: Lab, key: str) -> None:
    with lab.namespace() as namespace:
        before = lab.server.traffic()
        cold = sampled(Sampler(lab, namespace=namespace), in_blocks(namespace, key))
        after = lab.server.traffic()
        hot = sampled(Sampler(lab, namespace=namespace), in_blocks(namespace, key))
    assert cold.tiers["origin_bytes"] == after.bytes_sent - before.bytes_sent == WHOLE
    gets = after.requests["GET"] - before.requests["GET"]
    assert cold.tiers["origin_requests_get"] == gets > 0
    assert cold.tiers["delivered_bytes"] == WHOLE
    assert cold.tiers["origin_bytes"] + cold.tiers["nvme_bytes"] + cold.tiers.get(
        "page_cache_bytes", 0
    ) == WHOLE + cold.tiers.get("over_read_bytes", 0)
    assert cold.cost_dollars is not None and cold.cost_dollars > 0
    assert hot.tiers["origin_bytes"] == hot.tiers["origin_requests_get"] == 0
    assert hot.tiers["page_cache_bytes"] + hot.tiers["nvme_bytes"] == WHOLE
    assert hot.cost_dollars == 0
    assert {"reader", "agent", "server"} == set(cold.cpu_s)
    assert all(seconds > 0 for seconds in cold.cpu_s.values())
    assert all(peak > MIB for peak in cold.rss_bytes.values())


def test_ours_cold_against_the_proxys_own_log(lab: Lab, key: str) -> None:
    with (
        ProxyProcess(lab.server.endpoint) as proxy,
        lab.namespace(lab.settings(endpoint=proxy.url)) as namespace,
    ):
        sampler = Sampler(lab, namespace=namespace, proxy=proxy)
        proxy.clear()
        cold = sampled(sampler, in_blocks(namespace, key))
        log = proxy.exchanges()
    assert cold.tiers["origin_bytes"] == sum(one.body_bytes for one in log) >= WHOLE
    assert cold.tiers["origin_requests_get"] == sum(one.method == "GET" for one in log)
    assert cold.tiers["origin_requests_head"] == sum(one.method == "HEAD" for one in log)
    assert cold.cpu_s["proxy"] > 0


def test_a_rival_is_counted_as_ours_is(lab: Lab, key: str) -> None:
    store = straight(lab)

    def run() -> int:
        obstore.head(store, key)
        list(obstore.list(store, prefix=key))
        obstore.put(store, "sampler/put", b"x" * 100)
        obstore.delete(store, "sampler/put")
        places = range(0, 8 * BLOCK, BLOCK)
        return sum(len(obstore.get_range(store, key, start=at, length=BLOCK)) for at in places)

    run()  # else its code, read from the device at first use, counts as bytes of the cache
    found = sampled(Sampler(lab), run)
    assert found.tiers == {
        "delivered_bytes": 8 * BLOCK,
        "page_cache_bytes": 0,
        "nvme_bytes": 0,
        "origin_bytes": 8 * BLOCK,
        "origin_received_bytes": 100,
        "origin_requests_get": 8,
        "origin_requests_head": 1,
        "origin_requests_list": 1,
        "origin_requests_put": 1,
        "origin_requests_delete": 1,
    }
    assert found.cost_dollars == pytest.approx((9 * 0.0004 + 2 * 0.005) / 1000)


def test_a_rival_behind_the_proxy(lab: Lab, key: str) -> None:
    with ProxyProcess(lab.server.endpoint, network=PROFILES["local"]) as proxy:
        store = straight(lab, proxy.url)

        def run() -> int:
            obstore.head(store, key)
            list(obstore.list(store, prefix=key))
            list(obstore.list(straight(lab), prefix=key))  # another's, past the proxy
            obstore.put(store, "sampler/put", b"x" * 100)
            obstore.delete(store, "sampler/put")
            return len(obstore.get_range(store, key, start=0, length=BLOCK))

        found = sampled(Sampler(lab, proxy=proxy), run)
        log = proxy.exchanges()
    kinds = ("get", "head", "list", "put", "delete")
    assert [found.tiers[f"origin_requests_{kind}"] for kind in kinds] == [1, 1, 1, 1, 1]
    assert found.tiers["origin_received_bytes"] > 100  # and the list of what to delete
    assert found.tiers["origin_bytes"] == sum(one.body_bytes for one in log) > BLOCK


def test_more_than_was_delivered_is_said(lab: Lab, key: str) -> None:
    store = straight(lab)

    def run() -> int:
        return len(obstore.get_range(store, key, start=0, length=BLOCK)) // 4

    tiers = sampled(Sampler(lab), run).tiers
    assert tiers["over_read_bytes"] == BLOCK - BLOCK // 4
    assert "page_cache_bytes" not in tiers


def test_without_delivered_bytes_nothing_is_derived(lab: Lab) -> None:
    tiers = sampled(Sampler(lab), lambda: 0).tiers
    assert not {"delivered_bytes", "page_cache_bytes", "over_read_bytes"} & set(tiers)


def test_the_device_counts_once_the_page_cache_is_dropped(lab: Lab, key: str) -> None:
    with lab.namespace() as namespace:
        in_blocks(namespace, key)()
        fd = os.open(namespace.local_path(path_of(key), pin=False), os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            before = processes.device_read_bytes(os.getpid())
            os.preadv(fd, [bytearray(BLOCK)], 0)
            if processes.device_read_bytes(os.getpid()) == before:
                pytest.skip("this file system reads from no block device, or keeps its pages")
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
        found = sampled(Sampler(lab, namespace=namespace), in_blocks(namespace, key))
    assert found.tiers["nvme_bytes"] > WHOLE // 2
    assert found.tiers["origin_bytes"] == 0


def test_rounds_add_up_and_a_race_fills_in_what_it_knows(lab: Lab, key: str) -> None:
    store = straight(lab)
    race = Race(amount=2.0, bytes=2 * BLOCK, unit="µs", per="op", sampler=lab.sampler())

    def run() -> None:
        for at in (0, BLOCK):
            obstore.get_range(store, key, start=at, length=BLOCK)

    race.add("obstore", "rival", run)
    race.run(3, warm_up=1)
    (figure,) = race.figures
    assert figure.sample is not None
    assert figure.sample.operations == 6
    assert figure.sample.bytes == figure.sample.tiers["origin_bytes"] == 6 * BLOCK
    assert figure.sample.seconds == pytest.approx(sum(figure.values) * 2 / 1e6)


def test_no_origin_no_cost(tmp_path: Path) -> None:
    lab = Lab(seed=1, directory=str(tmp_path))
    try:
        found = sampled(Sampler(lab), lambda: BLOCK)
        assert lab.running_server is None
    finally:
        lab.close()
    assert found.cost_dollars is None
    assert found.tiers == {
        "delivered_bytes": BLOCK,
        "page_cache_bytes": BLOCK,
        "nvme_bytes": 0,
    }


# -- processes ------------------------------------------------------------------------------


def from_device(path: Path) -> None:
    """Write a file, and let the device read it where the file system lies on one."""
    path.write_bytes(bytes(BLOCK))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.read()


def spin(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_cpu_seconds_of_this_process_and_of_children_it_waited_for(lab: Lab) -> None:
    def run() -> int:
        spin(0.05)
        code = "import time\nwhile time.process_time() < 0.2: pass"
        subprocess.run([sys.executable, "-S", "-c", code], check=True)
        return 0

    found = sampled(Sampler(lab), run)
    # What it says is what the kernel says: the spinning, and two starts of little else.
    assert 0.24 < found.cpu_s["reader"] < 2.0


def test_what_readers_say_of_themselves_counts(lab: Lab, tmp_path: Path) -> None:
    sampler = Sampler(lab)
    for number in range(2):
        file = tmp_path / str(number)
        sampler.begin()
        spin(0.02)
        from_device(file)  # this process's own, which then does not count
        sampler.end(
            Measured(
                seconds=1.0,
                operations=5,
                bytes=BLOCK,
                cpu_s={"reader": 3.0},
                rss_bytes={"reader": 7 * MIB},
                device_read_bytes=1000,
            )
        )
    found = sampler.sample()
    assert found.cpu_s["reader"] == 6.0
    assert found.rss_bytes["reader"] == 7 * MIB
    assert found.tiers["nvme_bytes"] == 2000
    assert (found.operations, found.seconds) == (10, 2.0)


def test_a_tool_beside_the_reader(lab: Lab) -> None:
    code = "import sys\nx = bytearray(30 << 20)\nprint(1, flush=True)\nsys.stdin.read()"
    tool: list[subprocess.Popen[str]] = []

    def run() -> int:
        tool.append(
            subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert tool[0].stdout is not None
        tool[0].stdout.readline()
        return 0

    try:
        sampler = Sampler(lab, processes=lambda: {"tool": [one.pid for one in tool]})
        found = sampled(sampler, run)
    finally:
        for one in tool:
            one.communicate()
    assert found.cpu_s["tool"] > 0
    assert 30 * MIB < found.rss_bytes["tool"] < 200 * MIB


def test_the_peak_is_the_rounds_own() -> None:
    if not processes.forget_peak_rss(os.getpid()):
        pytest.skip("this kernel forgets no peak")
    big = bytearray(64 * MIB)
    high = processes.peak_rss_bytes(os.getpid())
    del big
    processes.forget_peak_rss(os.getpid())
    low = processes.peak_rss_bytes(os.getpid())
    assert high is not None and low is not None
    assert high - low > 32 * MIB


def test_what_is_gone_reads_as_none() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert processes.cpu_s(child.pid) is None
    assert processes.peak_rss_bytes(child.pid) is None
    assert processes.device_read_bytes(child.pid) is None
    assert not processes.alive(child.pid)


# -- latency --------------------------------------------------------------------------------


def test_percentiles_of_known_values() -> None:
    # 1 µs to 10,000 µs, each once: the percentile is the value.
    found = latency(histogram(value * 1000 for value in range(1, 10_001)))
    assert found is not None
    assert found.count == 10_000
    assert found.p50_us == pytest.approx(5_000, rel=2e-3)
    assert found.p90_us == pytest.approx(9_000, rel=2e-3)
    assert found.p99_us == pytest.approx(9_900, rel=2e-3)
    assert found.p999_us == pytest.approx(9_990, rel=2e-3)
    assert found.max_us == pytest.approx(10_000, rel=2e-3)


def test_histograms_of_rounds_merge(lab: Lab) -> None:
    sampler = Sampler(lab)
    for values in ([1_000] * 99, [1_000_000]):
        sampler.begin()
        sampler.end(Measured(seconds=1.0, histogram=encoded(values)))
    found = sampler.sample().latency
    assert found is not None
    assert found.count == 100
    assert found.p90_us == pytest.approx(1.0, rel=2e-3)
    assert found.max_us == pytest.approx(1_000.0, rel=2e-3)
    again = histogram()
    again.decode_and_add(found.histogram.encode())
    assert latency(again) == found


def test_values_outside_the_range_are_kept_at_its_ends() -> None:
    found = latency(histogram([0, 10**18]))
    assert found is not None
    assert found.count == 2


def test_nothing_recorded_is_no_latency() -> None:
    assert latency(histogram()) is None


# -- cost -----------------------------------------------------------------------------------

TIERS = {
    "origin_bytes": 10 * (1 << 30),
    "origin_requests_get": 9_000,
    "origin_requests_head": 1_000,
    "origin_requests_list": 2_000,
    "origin_requests_put": 3_000,
    "origin_received_bytes": 5 * (1 << 30),
}


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("", 10 * 0.0004 + 5 * 0.005),
        ("local", 10 * 0.0004 + 5 * 0.005),
        ("same-region", 10 * 0.0004 + 5 * 0.005),
        ("cross-region", 10 * 0.0004 + 5 * 0.005 + 10 * 0.02),
        ("wan", 10 * 0.0004 + 5 * 0.005 + 10 * 0.09),
        ("premium", 10 * 0.00003 + 5 * 0.00113 + 10 * 0.0006 + 5 * 0.0032),
        ("of one's own", 10 * 0.0004 + 5 * 0.005),
    ],
)
def test_cost_is_requests_and_bytes_by_the_list(network: str, expected: float) -> None:
    assert prices().dollars(TIERS, network) == pytest.approx(expected)


def test_every_network_profile_has_a_price_and_every_price_a_source() -> None:
    found: Prices = prices()
    assert set(found.networks) == set(PROFILES)
    assert all(store.source for store in found.stores.values())
    assert all(transfer.source for transfer in found.transfers.values())
    assert all(volume.source for volume in found.volumes.values())
    assert found.date


# -- the emulator's counters ----------------------------------------------------------------


def test_the_server_counts_each_kind_of_request(lab: Lab, key: str) -> None:
    store = straight(lab)
    before = lab.server.traffic()
    obstore.get_range(store, key, start=0, length=100)
    with pytest.raises(FileNotFoundError):
        obstore.get(store, "not/there")
    obstore.put(store, "sampler/copied", b"y" * 50)
    obstore.copy(store, "sampler/copied", "sampler/copy")
    obstore.delete(store, "sampler/copy")
    after = lab.server.traffic()
    asked = after.requests - before.requests
    assert asked == {"GET": 1, "HEAD": 1, "PUT": 1, "COPY": 1, "DELETE": 1}
    assert after.bytes_sent - before.bytes_sent == 100
    assert after.bytes_received - before.bytes_received == 50


def test_a_server_without_metrics_says_so() -> None:
    with pytest.raises(RuntimeError, match="metrics=True"):
        SeaweedS3().traffic()


def test_the_proxy_names_its_network(lab: Lab) -> None:
    mine = NetworkProfile(name="mine", source="a test")
    proxy = ProxyProcess(lab.server.endpoint, network=mine)
    assert proxy.network is mine
