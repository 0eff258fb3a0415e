"""An object replaced or removed under its readers: one version or StaleHandle, never a mixture."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fault.origin_rig import Rig, eventually, rig_of
from tiercache.client.file import ReadFile
from tiercache.errors import NotFound, StaleHandle
from tiercache.model import Consistency
from tiercache.namespace import Namespace
from tiercache.testing.emulators import OPEN_BUCKET_PREFIX
from tiercache.testing.object_servers import GcsServer, ObjectServer, S3Server
from tiercache.testing.proxy import Fault
from tiercache.units import KIB, MIB

PAGE = 64 * KIB
LONG = 5 * MIB + 777
SHORT = 3 * MIB + 55
SMALL_LONG, SMALL_SHORT = 300_000, 120_000


def version(number: int, length: int) -> bytes:
    """Every byte names its version, so that one byte of another shows."""
    return bytes([number % 251 + 1]) * length


def is_pure(data: bytes | bytearray | memoryview) -> bool:
    return len(set(bytes(data))) <= 1


def old_or_stale(handle: ReadFile, old: bytes) -> None:
    """What this handle has read it can read again, unless the node needed the space."""
    with contextlib.suppress(StaleHandle):
        assert handle.read_at(0, len(old)) == old


@pytest.fixture(params=["honours If-Match", "gcs ignores it", "s3 ignoring it"])
def rig(
    request: pytest.FixtureRequest,
    new_bucket: Callable[[ObjectServer], str],
    tmp_path: Path,
) -> Iterator[Rig]:
    with ExitStack() as stack:
        if request.param == "gcs ignores it":
            gcs: GcsServer = request.getfixturevalue("gcs")
            rig = stack.enter_context(rig_of(gcs, new_bucket(gcs), tmp_path))
        else:
            s3: S3Server = request.getfixturevalue("s3")
            bucket = new_bucket(s3)
            if request.param == "s3 ignoring it":
                bucket = s3.make_bucket(OPEN_BUCKET_PREFIX + bucket)
            rig = stack.enter_context(rig_of(s3, bucket, tmp_path))
            if request.param == "s3 ignoring it":
                rig.proxy.inject(Fault(methods=("GET",), ignore_if_match=True))
        yield rig


@pytest.mark.parametrize("sizes", [(LONG, SHORT), (SHORT, LONG), (SMALL_LONG, SMALL_SHORT)])
def test_an_open_handle_reads_its_version_or_is_stale(rig: Rig, sizes: tuple[int, int]) -> None:
    before, after = version(1, sizes[0]), version(2, sizes[1])
    rig.put("object", before)
    ns = rig.namespace(ttl_s=3600.0)
    handle = ns.open("/m/object")
    assert handle.read_at(0, PAGE) == before[:PAGE]
    rig.put("object", after)
    assert handle.read_at(0, PAGE) == before[:PAGE]
    cold = sizes[0] - 1000
    if sizes[0] > MIB:  # small objects are fetched whole
        with pytest.raises(StaleHandle):
            handle.read_at(cold, 1000)
        with pytest.raises(StaleHandle):
            handle.read()
        old_or_stale(handle, before[:PAGE])
        # The failure has shown that the name has moved, whatever the ttl says.
        assert ns.read("/m/object") == after
        assert ns.stat("/m/object").size_bytes == len(after)
    else:
        assert handle.read_at(cold, 1000) == before[cold : cold + 1000]
        ns.invalidate("/m/object")
        assert ns.read("/m/object") == after
    view = ns.view("/m/object")
    rig.put("object", version(3, sizes[0]))
    ns.invalidate("/m/object")
    assert bytes(ns.view("/m/object")) == version(3, sizes[0])
    assert bytes(view) == after  # a view stays what it was
    with ns.open("/m/object") as newer:
        assert newer.read() == version(3, sizes[0])
    handle.close()


def test_a_removed_object(rig: Rig) -> None:
    rig.put("object", version(1, LONG))
    ns = rig.namespace(ttl_s=3600.0)
    handle = ns.open("/m/object")
    assert handle.read_at(0, PAGE) == version(1, PAGE)
    view = ns.view("/m/object", 0, PAGE)
    rig.delete("object")
    with pytest.raises(StaleHandle):
        handle.read_at(MIB, PAGE)
    old_or_stale(handle, version(1, PAGE))
    assert bytes(view) == version(1, PAGE)
    with pytest.raises(NotFound):
        ns.read("/m/object")
    assert not ns.exists("/m/object")
    handle.close()


def test_a_read_by_path_follows_the_name(rig: Rig) -> None:
    """A name whose version vanished between look-up and fetch is looked up again, once."""
    rig.put("object", version(1, LONG))
    ns = rig.namespace(ttl_s=3600.0)
    assert ns.read("/m/object", 0, PAGE) == version(1, PAGE)
    rig.put("object", version(2, SHORT))
    assert ns.read("/m/object", 2 * MIB, PAGE) == version(2, PAGE)
    rig.put("object", version(3, LONG))
    ns.evict("/m/object")
    buffer = bytearray(LONG)
    assert ns.read_into("/m/object", 0, buffer) == LONG and buffer == version(3, LONG)
    rig.put("object", version(4, SHORT))
    ns.evict("/m/object")
    assert bytes(ns.view("/m/object", MIB, PAGE)) == version(4, PAGE)
    rig.put("object", version(5, SMALL_SHORT))
    ns.evict("/m/object")
    assert ns.read_many([("/m/object", 0, PAGE), ("/m/object", PAGE, 10)]) == [
        version(5, PAGE),
        version(5, 10),
    ]


def test_an_immutable_binding_is_for_good(rig: Rig) -> None:
    rig.put("object", version(1, LONG))
    ns = rig.namespace(Consistency.IMMUTABLE, ttl_s=0.0)
    assert ns.read("/m/object", 0, PAGE) == version(1, PAGE)
    rig.put("object", version(2, SHORT))
    ns.list("/m", refresh=True)
    assert ns.stat("/m/object").size_bytes == LONG
    assert ns.read("/m/object", 0, PAGE) == version(1, PAGE)
    with pytest.raises(StaleHandle):
        ns.read("/m/object", 2 * MIB, PAGE)
    assert ns.read("/m/object", 0, PAGE) == version(1, PAGE)
    ns.invalidate("/m/object")
    assert ns.read("/m/object") == version(2, SHORT)


@pytest.mark.parametrize("small", [False, True])
def test_readers_of_all_kinds_while_it_is_replaced_again_and_again(
    rig: Rig, small: bool, seed: int
) -> None:
    sizes = (SMALL_LONG, SMALL_SHORT) if small else (LONG, SHORT)
    rig.put("object", version(0, sizes[0]))
    ns = rig.namespace(ttl_s=0.02, negative_ttl_s=0.02)
    stop = threading.Event()
    counts = {"pure": 0, "stale": 0, "versions": 0}

    def replace() -> None:
        while not stop.is_set():
            counts["versions"] += 1
            rig.put("object", version(counts["versions"], sizes[counts["versions"] % 2]))
            time.sleep(0.05)

    def read(worker: int) -> None:
        rng = random.Random(seed + worker)
        while not stop.is_set():
            try:
                read_once(ns, rng, sizes[0])
                counts["pure"] += 1
            except StaleHandle:
                counts["stale"] += 1

    with ThreadPoolExecutor(9) as pool:
        writer = pool.submit(replace)
        readers = [pool.submit(read, worker) for worker in range(8)]
        try:
            eventually(
                lambda: counts["versions"] > 20 and counts["pure"] > 100,
                within_s=40,
                what="many versions and many reads",
            )
        finally:
            stop.set()
        for done in (writer, *readers):
            done.result()
    last = counts["versions"]
    final = version(last, sizes[last % 2])
    eventually(lambda: ns.read("/m/object") == final)


def read_once(ns: Namespace, rng: random.Random, length: int) -> None:
    offset = rng.randrange(length)
    count = rng.choice([10, PAGE, MIB, length])
    match rng.randrange(5):
        case 0:
            assert is_pure(ns.read("/m/object", offset, count))
        case 1:
            assert is_pure(ns.view("/m/object", offset, count))
        case 2:
            whole = ns.read("/m/object")
            assert is_pure(whole) and len(whole) == ns_length(whole, length)
        case 3:
            buffer = bytearray(count)
            got = ns.read_into("/m/object", offset, buffer)
            assert is_pure(buffer[:got])
        case _:
            with ns.open("/m/object") as handle:
                parts = [handle.read_at(rng.randrange(length), count) for _ in range(4)]
                assert is_pure(b"".join(parts))


def ns_length(whole: bytes, longest: int) -> int:
    """Odd versions are the short ones: a length of one and bytes of the other is a mixture."""
    number = (whole[0] - 1) % 251
    lengths = {LONG: SHORT, SMALL_LONG: SMALL_SHORT}
    # Fewer than 251 versions are written in a run, so the byte tells the number.
    return lengths[longest] if number % 2 else longest
