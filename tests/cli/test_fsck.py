"""fsck finds every kind of disagreement, repairs it, and what it repaired is read right again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from tiercache import records
from tiercache.agent.fsck import FsckReport
from tiercache.compose import fsck
from tiercache.errors import AgentUnavailable, NotFound
from tiercache.metadata.lmdb_store import LmdbStore
from tiercache.namespace import Namespace
from tiercache.records import ExtentRecord, ListingPart
from tiercache.settings import CacheSettings, MountSettings, Settings, TotalBytes

pytestmark = pytest.mark.timeout(60)

# 64 MiB: extents of 512 KiB, packs of 1 MiB, packed are objects up to 256 KiB.
CAPACITY_BYTES = 64 << 20
LARGE = os.urandom(2_000_000)
SMALL = [os.urandom(70_000) for _ in range(20)]
LARGE_PAGES, SMALL_PAGES = 31, 20 * 2


@dataclass
class Cache:
    """A filled cache that nobody serves."""

    settings: Settings

    @property
    def root(self) -> Path:
        return Path(self.settings.cache.dir)

    @contextmanager
    def store(self) -> Iterator[LmdbStore]:
        with closing(LmdbStore(self.root / "index.lmdb")) as store:
            yield store

    def files(self) -> list[Path]:
        found = (self.root / "extents").glob("[0-9a-f][0-9a-f]/*")
        return sorted(path for path in found if path.is_file())

    def holding(self, data: bytes) -> Path:
        """Return the extent file that holds these bytes."""
        return next(file for file in self.files() if data in file.read_bytes())

    def check(self, *, repair: bool = False) -> FsckReport:
        return fsck(self.settings, repair=repair)

    def assert_reads(self) -> None:
        with Namespace(self.settings, embedded=True) as namespace:
            assert namespace.read("/m/large") == LARGE
            names = [(f"/m/s/{i:02}", 0, None) for i in range(20)]
            assert namespace.read_many(names) == SMALL
            assert len(namespace.list("/m/s")) == 20


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    origin = tmp_path / "origin"
    (origin / "s").mkdir(parents=True)
    (origin / "large").write_bytes(LARGE)
    for number, data in enumerate(SMALL):
        (origin / "s" / f"{number:02}").write_bytes(data)
    settings = Settings(
        cache=CacheSettings(dir=str(tmp_path / "cache"), limit=TotalBytes(CAPACITY_BYTES)),
        mounts=(MountSettings(path="/m", origin=f"file://{origin}"),),
    )
    cache = Cache(settings)
    cache.assert_reads()
    return cache


def test_a_whole_cache_is_clean(cache: Cache) -> None:
    report = cache.check()
    assert report.clean, report.problems
    assert report.pages_checked == LARGE_PAGES + SMALL_PAGES
    assert report.bytes_checked == len(LARGE) + sum(map(len, SMALL))
    assert report.objects_checked >= 21
    assert report.disk_bytes <= report.ledger_bytes <= CAPACITY_BYTES


def flip(file: Path, data: bytes) -> None:
    whole = bytearray(file.read_bytes())
    whole[whole.index(data)] ^= 0xFF
    file.write_bytes(whole)


def damage_large(cache: Cache) -> None:
    flip(cache.holding(LARGE[600_000:600_100]), LARGE[600_000:600_100])


def damage_small(cache: Cache) -> None:
    flip(cache.holding(SMALL[3]), SMALL[3])


def truncate_extent(cache: Cache) -> None:
    os.truncate(cache.holding(LARGE[:100]), 65536 + 1)


def swap_extents(cache: Cache) -> None:
    first, second = cache.holding(LARGE[:100]), cache.holding(LARGE[600_000:600_100])
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def remove_extent(cache: Cache) -> None:
    cache.holding(LARGE[600_000:600_100]).unlink()


def remove_pack(cache: Cache) -> None:
    cache.holding(SMALL[0]).unlink()


def forget_extent(cache: Cache) -> None:
    extent_id = int("".join(cache.holding(LARGE[:100]).parts[-2:]), 16)
    with cache.store() as store:
        store.commit({records.extent_key(extent_id): None})


def forget_member(cache: Cache) -> None:
    with cache.store() as store:
        key, _ = next(iter(list(store.scan(b"m"))))
        store.commit({key: None})


def exchange_extents(cache: Cache) -> None:
    """Two extents of one object, swapped in its record."""
    with cache.store() as store:
        for key, raw in list(store.scan(b"o")):
            record = records.decode_object(raw)
            if len(record.extents) > 1:
                places = (record.extents[1], record.extents[0], *record.extents[2:])
                changed = msgspec.structs.replace(record, extents=places)
                store.commit({key: records.encode(changed)})


def break_records(cache: Cache) -> None:
    with cache.store() as store:
        objects = [key for key, raw in store.scan(b"o") if records.decode_object(raw).packed]
        store.commit({objects[0]: b"\x93nonsense", objects[1]: b"\x93\xa2\xff\xfe\xa1k\x01"})


def break_extent_record(cache: Cache) -> None:
    with cache.store() as store:
        store.commit({next(iter(list(store.scan(b"x"))))[0]: b"nonsense"})


def tear_listing(cache: Cache) -> None:
    with cache.store() as store:
        key, raw = next(iter(list(store.scan(b"l"))))
        part = records.decode_listing(raw)
        torn = ListingPart(part.origin, part.prefix, False, 2, part.validated_s, part.boot, ())
        store.commit({key: records.encode(torn)})


def share_slot(cache: Cache) -> None:
    with cache.store() as store:
        found = {key: records.decode_extent(raw) for key, raw in store.scan(b"x")}
        first, second = [key for key, record in found.items() if not record.is_pack][:2]
        changed = msgspec.structs.replace(found[second], slot=found[first].slot)
        store.commit({second: records.encode(changed)})


@pytest.mark.parametrize(
    ("damage", "kinds", "bad_pages"),
    [
        (damage_large, {"bad-page"}, 1),
        (damage_small, {"bad-page"}, 1),
        (truncate_extent, {"bad-page"}, 7),
        (swap_extents, {"bad-page"}, 16),
        (remove_extent, {"missing-file"}, 0),
        (remove_pack, {"missing-file"}, 0),
        (forget_extent, {"placement", "orphan-file"}, 0),
        (forget_member, {"placement"}, 0),
        (exchange_extents, {"placement"}, 0),
        (break_records, {"record"}, 0),
        (break_extent_record, {"record", "placement", "orphan-file"}, 0),
        (tear_listing, {"listing"}, 0),
        (share_slot, {"slot", "placement"}, 0),
    ],
)
def test_corruption_is_found_and_repaired(
    cache: Cache, damage: Callable[[Cache], None], kinds: set[str], bad_pages: int
) -> None:
    damage(cache)
    found = cache.check()
    assert {problem.kind for problem in found.problems} - {"unused-member"} == kinds
    assert found.corruptions and not found.repaired
    assert found.bad_pages == bad_pages
    assert cache.check().problems == found.problems, "looking changed something"
    repaired = cache.check(repair=True)
    assert repaired.repaired and repaired.corruptions == found.corruptions
    after = cache.check()
    assert after.clean, after.problems
    cache.assert_reads()
    assert cache.check().clean


def add_orphan(cache: Cache) -> None:
    cache.files()[0].with_name("00000000ffffff").write_bytes(bytes(100_000))


def add_unused_extent(cache: Cache) -> None:
    add_orphan(cache)
    extent_id = int(cache.files()[0].parts[-2] + "00000000ffffff", 16)
    record = ExtentRecord(slot=9999, length_bytes=100_000, owner=bytes(16), data_id=99)
    with cache.store() as store:
        store.commit({records.extent_key(extent_id): records.encode(record)})


def add_unused_chunk(cache: Cache) -> None:
    with cache.store() as store:
        store.commit({records.chunk_key(9999, 0): bytes(128)})


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (add_orphan, "orphan-file"),
        (add_unused_extent, "unused-extent"),
        (add_unused_chunk, "unused-chunk"),
    ],
)
def test_leftovers_are_no_corruption(
    cache: Cache, damage: Callable[[Cache], None], kind: str
) -> None:
    damage(cache)
    found = cache.check()
    assert [problem.kind for problem in found.problems] == [kind]
    assert (found.corruptions, found.leftovers) == (0, 1)
    assert cache.check(repair=True).leftovers == 1
    assert cache.check().clean
    cache.assert_reads()


def test_a_running_agent_is_left_alone(cache: Cache) -> None:
    damage_large(cache)
    with Namespace(cache.settings, embedded=True):
        with pytest.raises(AgentUnavailable, match="an agent serves"):
            cache.check()
        beside = fsck(cache.settings, online=True)
    assert beside.online and beside.bad_pages == 1
    assert cache.check().bad_pages == 1


def test_no_cache_is_not_a_clean_one(tmp_path: Path) -> None:
    settings = Settings(cache=CacheSettings(dir=str(tmp_path / "none")))
    with pytest.raises(NotFound):
        fsck(settings)
    assert not (tmp_path / "none").exists()
