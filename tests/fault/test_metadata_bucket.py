"""The metadata store in a bucket: lost answers, servers that ignore conditions, foreign data,
credentials, and owners that come and go at the wrong moment."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
import uvloop
from slatedb import uniffi as slate

from tests.conformance.metadata_contract import until_available
from tiercache.errors import (
    AccessDenied,
    FormatError,
    MetadataFenced,
    MetadataUnavailable,
    NotFound,
    Unsupported,
)
from tiercache.metadata.object_tier import OWNER, ObjectTier
from tiercache.metadata.open import open_metadata
from tiercache.metadata.slatedb_store import LOG_COMMITS, SlateStore
from tiercache.ports import MetadataStore
from tiercache.settings import MetadataSettings, ProfileSettings
from tiercache.testing.network import Fault
from tiercache.testing.object_servers import S3_ACCESS_KEY, S3_SECRET_KEY, ObjectServer, S3Server
from tiercache.testing.proxy import FaultyProxy

pytestmark = pytest.mark.timeout(90)
NewBucket = Callable[[ObjectServer], str]
DEFAULT = {"default": ProfileSettings()}


def on_files(directory: Path) -> MetadataSettings:
    return MetadataSettings(url=f"file://{directory}/store", deadline_s=5.0)


async def open_raw(directory: Path) -> slate.Db:
    """Open the same place as another program would, which knows nothing of owners."""
    builder = slate.ObjectStoreBuilder(slate.ObjectStoreType.LOCAL)
    builder.with_config("local_path", f"{directory}/store")
    return await slate.DbBuilder("", builder.build()).build()


class Bucket:
    """A bucket behind a network that a test breaks."""

    def __init__(self, server: S3Server, bucket: str, proxy: FaultyProxy) -> None:
        self.server = server
        self.bucket = bucket
        self.proxy = proxy
        self.settings = MetadataSettings(url=f"s3://{bucket}/kept/here", deadline_s=3.0)
        self.profiles = {"default": server.profile(endpoint=proxy.url)}

    async def open(self) -> MetadataStore:
        return await open_metadata(self.settings, self.profiles)


@pytest.fixture
def bucket(s3: S3Server, new_bucket: NewBucket) -> Iterator[Bucket]:
    with FaultyProxy(s3.endpoint) as proxy:
        yield Bucket(s3, new_bucket(s3), proxy)


@pytest_asyncio.fixture
async def store(bucket: Bucket) -> AsyncIterator[MetadataStore]:
    opened = await bucket.open()
    yield opened
    bucket.proxy.heal()
    await opened.close()


@pytest.mark.emulator
@pytest.mark.parametrize("method", ["PUT", "GET"])
async def test_lost_answers_fence_nobody(store: MetadataStore, bucket: Bucket, method: str) -> None:
    """SlateDB writes its log by put-if-absent: told that an object is there already, it must not
    take its own for another's."""
    for number in range(1, 6):
        bucket.proxy.inject(Fault(methods=(method,), lose_answer=True, times=number))
        value = b"%d" % number
        await until_available(partial(store.commit, {b"a": value, b"b": value}))
        await until_available(store.check_owner)
        assert await store.get(b"a") == await store.get(b"b") == value
    bucket.proxy.heal()
    await store.flush()
    assert await store.commit({b"after": b""}) == store.sequence


@pytest.mark.emulator
async def test_lost_answers_at_the_opening(bucket: Bucket) -> None:
    for path in ("manifest", "wal", "compactions", OWNER):
        bucket.proxy.inject(Fault(methods=("PUT",), path_contains=path, lose_answer=True, times=1))
        store = await until_available(bucket.open)
        await store.commit({path.encode(): b"1"})
        await store.close()
        bucket.proxy.heal()
    store = await bucket.open()
    assert len([pair async for pair in store.scan(b"")]) == 4
    await store.close()


@pytest.mark.emulator
@pytest.mark.parametrize("status", [503, 500, 429])
async def test_an_overloaded_store(store: MetadataStore, bucket: Bucket, status: int) -> None:
    bucket.proxy.inject(Fault(respond_status=status, times=4))
    await until_available(lambda: store.commit({b"a": b"1"}))
    assert await store.get(b"a") == b"1"


@pytest.mark.emulator
async def test_in_an_outage_calls_fail_at_once(store: MetadataStore, bucket: Bucket) -> None:
    """One waits for its deadline; the next ones do not each wait again."""
    bucket.proxy.black_hole()
    with pytest.raises(MetadataUnavailable):
        await store.commit({b"a": b"1"})
    with pytest.raises(MetadataUnavailable):
        await store.get(b"a")  # tries to open again, and waits
    began = time.monotonic()
    for _ in range(5):
        with pytest.raises(MetadataUnavailable):
            await store.get(b"a")
    assert time.monotonic() - began < bucket.settings.deadline_s


@pytest.mark.emulator
async def test_an_outage_at_the_opening(bucket: Bucket) -> None:
    bucket.proxy.refuse()
    with pytest.raises(MetadataUnavailable) as caught:
        await bucket.open()
    assert bucket.settings.url in caught.value.path
    bucket.proxy.heal()
    bucket.proxy.black_hole()
    began = time.monotonic()
    with pytest.raises(MetadataUnavailable):
        await bucket.open()
    assert time.monotonic() - began < 3 * bucket.settings.deadline_s
    bucket.proxy.heal()
    await (await until_available(bucket.open)).close()


@pytest.mark.emulator
async def test_commits_under_way_in_an_outage_are_a_prefix(
    store: MetadataStore, bucket: Bucket
) -> None:
    """What was pipelined behind a commit that failed is not there without it."""
    tasks = [asyncio.create_task(store.commit({b"k%03d" % n: b""})) for n in range(60)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    bucket.proxy.refuse()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    bucket.proxy.heal()
    assert all(isinstance(found, int | MetadataUnavailable) for found in outcomes)
    acknowledged = sum(isinstance(found, int) for found in outcomes)
    await until_available(lambda: store.get(b"k"))
    there = [key async for key, _ in store.scan(b"k")]
    assert there == [b"k%03d" % n for n in range(len(there))]
    assert len(there) >= acknowledged > 0
    assert store.sequence == 1 + len(there)


@pytest.mark.emulator
async def test_a_server_that_ignores_put_if_absent(
    moto_s3: S3Server, new_bucket: NewBucket
) -> None:
    bucket = new_bucket(moto_s3)
    moto_s3.client.put_bucket_acl(Bucket=bucket, ACL="public-read-write")
    settings = MetadataSettings(url=f"s3://{bucket}/kept")
    with FaultyProxy(moto_s3.endpoint) as proxy:
        proxy.inject(Fault(methods=("PUT",), ignore_if_match=True))
        with pytest.raises(Unsupported, match="put-if-absent") as caught:
            await open_metadata(settings, {"default": moto_s3.profile(endpoint=proxy.url)})
    assert settings.url in caught.value.path
    assert "lmdb:" in caught.value.remedy
    assert moto_s3.keys(bucket) == [], "it leaves nothing behind"


@pytest.mark.emulator
async def test_no_bucket(moto_s3: S3Server) -> None:
    settings = MetadataSettings(url="s3://no-such-bucket-here/kept")
    for read_only in (False, True):
        with pytest.raises(NotFound) as caught:
            await open_metadata(settings, {"default": moto_s3.profile()}, read_only=read_only)
        assert settings.url in caught.value.path


@pytest.mark.emulator
async def test_no_right(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "the-secret-of-somebody-else"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    for read_only in (False, True):
        with pytest.raises(AccessDenied) as refused:
            await open_metadata(bucket.settings, bucket.profiles, read_only=read_only)
        assert secret not in f"{refused.value} {refused.value!r}"
        assert S3_ACCESS_KEY not in str(refused.value)


@pytest.mark.emulator
async def test_a_named_profile_whose_credentials_are_renewed(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SlateDB is given frozen credentials: it is opened again with those that follow."""
    file = tmp_path / "credentials"
    keys = f"aws_access_key_id = {S3_ACCESS_KEY}\naws_secret_access_key = {S3_SECRET_KEY}\n"
    file.write_text(f"[work]\n{keys}")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    profile = msgspec.structs.replace(bucket.profiles["default"], credentials_profile="work")
    store = await open_metadata(bucket.settings, {"default": profile})
    assert isinstance(store, SlateStore)
    last = await store.commit({b"a": b"1"})
    database = store._db
    assert await store.get(b"a") == b"1" and store._db is database

    async def once(self: ObjectTier) -> bool:
        monkeypatch.undo()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        return True

    monkeypatch.setattr(ObjectTier, "renewed", once)
    assert await store.commit({b"a": b"2"}) == last + 1
    assert store._db is not database
    await store.check_owner()
    await store.close()


async def test_a_database_that_died_at_rest_is_opened_again(tmp_path: Path) -> None:
    """As after an outage in which nobody asked."""
    for read_only in (False, True):
        store = await open_metadata(on_files(tmp_path), DEFAULT)
        await store.commit({b"a": b"1"})
        asked = store
        if read_only:
            asked = await open_metadata(on_files(tmp_path), DEFAULT, read_only=True)
        assert isinstance(asked, SlateStore)
        await asked._db.shutdown()
        assert await asked.get(b"a") == b"1"
        await asked.flush()
        await asked.close()
        await store.close()


@pytest.mark.emulator
async def test_an_opening_slower_than_a_call_goes_on(bucket: Bucket) -> None:
    """The calls that wait for it give up one after the other; it must not begin again each time."""
    store = await bucket.open()
    last = await store.commit({b"a": b"1"})
    assert isinstance(store, SlateStore)
    await store._db.shutdown()
    # Some 25 requests one after the other.
    bucket.proxy.inject(Fault(first_byte_delay_s=bucket.settings.deadline_s / 15))
    with pytest.raises(MetadataUnavailable):
        await store.get(b"a")
    assert await until_available(lambda: store.get(b"a")) == b"1"
    assert store.sequence == last
    bucket.proxy.heal()
    await store.close()


# -- who owns it ------------------------------------------------------------------------------


async def test_an_agent_that_was_fenced_by_mistake_opens_again(tmp_path: Path) -> None:
    """One that has been replaced may open the store a last time before it learns of it."""
    store = await open_metadata(on_files(tmp_path), DEFAULT)
    last = await store.commit({b"a": b"1"})
    raw = await open_raw(tmp_path)
    assert await until_available(lambda: store.commit({b"a": b"3"})) == last + 1
    await store.check_owner()
    with pytest.raises(slate.Error.Closed):
        await (await raw.put(b"a", b"lost")).await_durable()
    assert await store.get(b"a") == b"3"
    await store.close()


async def test_two_that_take_over_at_once(tmp_path: Path) -> None:
    """At most one of them owns it after, and that one can commit."""
    for number in range(6):
        found = await asyncio.gather(
            *[open_metadata(on_files(tmp_path), DEFAULT) for _ in range(2)],
            return_exceptions=True,
        )
        stores = [store for store in found if not isinstance(store, BaseException)]
        errors = [error for error in found if isinstance(error, BaseException)]
        assert all(isinstance(error, MetadataFenced) for error in errors)
        winners = []
        for store in stores:
            try:
                await until_available(partial(store.commit, {b"n": b"%d" % number}))
                winners.append(store)
            except MetadataFenced:
                pass
        assert len(winners) == 1
        for store in stores:
            await store.close()


async def test_a_database_of_another_program(tmp_path: Path) -> None:
    """It is refused before its writer is fenced."""
    (tmp_path / "store").mkdir()
    raw = await open_raw(tmp_path)
    await (await raw.put(b"k", b"theirs")).await_durable()
    with pytest.raises(FormatError, match="another program"):
        await open_metadata(on_files(tmp_path), DEFAULT)
    await (await raw.put(b"k", b"still theirs")).await_durable()
    await raw.shutdown()
    assert not (tmp_path / "store" / OWNER).exists()


async def test_records_without_a_format(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    raw = await open_raw(tmp_path)
    await (await raw.put(b"k", b"theirs")).await_durable()
    await raw.shutdown()
    (tmp_path / "store" / OWNER).write_text("{}")
    with pytest.raises(FormatError, match="no metadata store of tiercache"):
        await open_metadata(on_files(tmp_path), DEFAULT)
    with pytest.raises(FormatError, match="no metadata store of tiercache"):
        await open_metadata(on_files(tmp_path), DEFAULT, read_only=True)


async def test_a_damaged_manifest(tmp_path: Path) -> None:
    await (await open_metadata(on_files(tmp_path), DEFAULT)).close()
    for file in (tmp_path / "store" / "manifest").iterdir():
        file.write_bytes(b"nonsense" * 8)
    with pytest.raises(FormatError) as caught:
        await open_metadata(on_files(tmp_path), DEFAULT)
    assert str(tmp_path) in caught.value.path and caught.value.remedy


async def test_a_file_where_a_directory_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a letter")
    for read_only in (False, True):
        with pytest.raises((MetadataUnavailable, NotFound)) as caught:
            await open_metadata(on_files(tmp_path), DEFAULT, read_only=read_only)
        assert str(tmp_path) in caught.value.path and caught.value.remedy


async def test_a_cancelled_commit_disturbs_no_other(tmp_path: Path) -> None:
    store = await open_metadata(on_files(tmp_path), DEFAULT)
    for turns in range(1, 12):
        tasks = [asyncio.create_task(store.commit({b"k%d" % n: b"1"})) for n in range(10)]
        for _ in range(turns):
            await asyncio.sleep(0.0005)
        tasks[5].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        failed = [found for found in outcomes if not isinstance(found, int)]
        assert all(isinstance(found, asyncio.CancelledError) for found in failed)
        assert len(failed) <= 1
    await store.close()


async def test_the_owner_is_gone(tmp_path: Path) -> None:
    store = await open_metadata(on_files(tmp_path), DEFAULT)
    os.unlink(tmp_path / "store" / OWNER)
    with pytest.raises(MetadataUnavailable, match="owner is gone"):
        await store.check_owner()
    await store.close()


# -- its own upkeep ---------------------------------------------------------------------------


async def test_the_log_is_written_into_tables(tmp_path: Path) -> None:
    store = await open_metadata(on_files(tmp_path), DEFAULT)
    for number in range(LOG_COMMITS + 1):
        await store.commit({b"k%03d" % number: b""})
    until = time.monotonic() + 20
    while not list((tmp_path / "store").glob("compacted/*.sst")):
        assert time.monotonic() < until
        await asyncio.sleep(0.02)
    await store.close()
    again = await open_metadata(on_files(tmp_path), DEFAULT)
    assert len([pair async for pair in again.scan(b"k")]) == LOG_COMMITS + 1
    await again.close()


def test_it_runs_on_uvloop_and_in_one_loop_after_another(tmp_path: Path) -> None:
    async def add() -> int:
        store = await open_metadata(on_files(tmp_path), DEFAULT)
        last = await store.commit({b"k": b"1"})
        await store.close()
        return last

    assert [uvloop.run(add()), asyncio.run(add()), uvloop.run(add())] == [2, 3, 4]


async def test_byte_strings_of_every_kind_arrive_whole(tmp_path: Path) -> None:
    """They go by a way of our own into the library."""
    store = await open_metadata(on_files(tmp_path), DEFAULT)
    values = [b"", b"\0", bytes(range(256)) * 300, os.urandom(1_000_003)]
    expected = {b"%d\xff\0" % number: value for number, value in enumerate(values)}
    await store.commit(expected)
    assert {key: value async for key, value in store.scan(b"")} == expected
    await store.close()
