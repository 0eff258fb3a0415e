"""What every IndexStore keeps: the contract class, and a subclass for each implementation."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiercache.errors import CacheFull, FormatError, NotFound, Unsupported
from tiercache.metadata.lmdb_store import LmdbReader, LmdbStore
from tiercache.ports import IndexReader, IndexStore
from tiercache.testing.memory_store import MemoryStore

pytestmark = pytest.mark.timeout(60)

KEYS = st.binary(min_size=1, max_size=6).filter(lambda key: key != b"\x00seq")
BATCHES = st.lists(
    st.dictionaries(KEYS, st.none() | st.binary(max_size=300), max_size=8), max_size=8
)


class IndexStoreContract:
    """Subclasses give the fixtures ``store``, an empty store, and ``small``, one with room for
    less than 4 MiB."""

    def test_absent_key_is_none(self, store: IndexStore) -> None:
        assert store.get(b"nothing") is None
        assert store.get_many([b"a", b"b"]) == [None, None]

    def test_commit_then_get(self, store: IndexStore) -> None:
        store.commit({b"a": b"1", b"b": b""})
        assert store.get(b"a") == b"1"
        assert store.get(b"b") == b""
        assert store.get_many([b"b", b"x", b"a"]) == [b"", None, b"1"]

    def test_none_deletes_and_absence_is_no_error(self, store: IndexStore) -> None:
        store.commit({b"a": b"1"})
        store.commit({b"a": None, b"never": None})
        assert store.get(b"a") is None

    def test_sequence_numbers_rise_by_commit(self, store: IndexStore) -> None:
        first = store.commit({b"a": b"1"})
        second = store.commit({b"a": b"2"})
        assert second == first + 1
        assert store.commit({}) == second

    def test_values_are_bytes_of_their_own(self, store: IndexStore) -> None:
        store.commit({b"a": b"x" * 5000})
        value = store.get(b"a")
        store.commit({b"a": b"y" * 5000})
        assert isinstance(value, bytes)
        assert value == b"x" * 5000

    @pytest.mark.parametrize("key", [b"", b"k" * 512, b"\x00seq"])
    def test_bad_key_refuses_the_whole_batch(self, store: IndexStore, key: bytes) -> None:
        with pytest.raises(ValueError, match="metadata key"):
            store.commit({b"good": b"1", key: b"2"})
        assert store.get(b"good") is None

    def test_longest_key_is_kept_and_longer_ones_are_absent(self, store: IndexStore) -> None:
        store.commit({b"k" * 511: b"1"})
        assert store.get(b"k" * 511) == b"1"
        assert store.get(b"k" * 512) is None
        assert store.get(b"") is None
        assert store.get_many([b"", b"k" * 512]) == [None, None]

    def test_scan_is_ordered_bounded_and_hides_bookkeeping(self, store: IndexStore) -> None:
        store.commit({b"b%d" % i: b"%d" % i for i in range(10)} | {b"a": b"-", b"c": b"-"})
        assert [key for key, _ in store.scan(b"b")] == [b"b%d" % i for i in range(10)]
        assert [key for key, _ in store.scan(b"b", start=b"b7")] == [b"b7", b"b8", b"b9"]
        assert [key for key, _ in store.scan(b"b", limit=2)] == [b"b0", b"b1"]
        assert [key for key, _ in store.scan(b"b", start=b"b8", limit=9)] == [b"b8", b"b9"]
        assert list(store.scan(b"b", limit=0)) == []
        assert list(store.scan(b"b", start=b"c")) == []
        assert next(iter(store.scan(b""))) == (b"a", b"-")
        assert len(list(store.scan(b""))) == 12

    def test_scan_holds_its_snapshot(self, store: IndexStore) -> None:
        store.commit({b"k%d" % i: b"old" for i in range(5)})
        pairs = iter(store.scan(b"k"))
        assert next(pairs) == (b"k0", b"old")
        store.commit({b"k1": b"new", b"k4": None, b"k9": b"new"})
        assert list(pairs) == [(b"k%d" % i, b"old") for i in range(1, 5)]

    def test_full_store_refuses_and_keeps_what_it_had(self, small: IndexStore) -> None:
        small.commit({b"before": b"1"})
        with pytest.raises(CacheFull):
            small.commit({b"k%d" % i: b"x" * 4096 for i in range(1024)})
        assert small.get(b"k0") is None
        assert small.get(b"before") == b"1"
        assert small.commit({b"after": b"2"}) == 2

    def test_size_grows_with_what_it_holds(self, store: IndexStore) -> None:
        store.commit({b"a": b"1"})
        before = store.size_bytes()
        store.commit({b"k%d" % i: b"x" * 4096 for i in range(64)})
        assert store.size_bytes() >= before + 64 * 4096

    def test_readers_see_commits_whole(self, store: IndexStore) -> None:
        keys = [b"k%d" % i for i in range(50)]
        store.commit(dict.fromkeys(keys, b"0"))
        torn: list[list[bytes | None]] = []
        done = threading.Event()

        def watch() -> None:
            while not done.is_set():
                values = store.get_many(keys)
                if len(set(values)) != 1:
                    torn.append(values)

        watchers = [threading.Thread(target=watch) for _ in range(2)]
        for watcher in watchers:
            watcher.start()
        for i in range(50):
            store.commit(dict.fromkeys(keys, b"%d" % i))
        done.set()
        for watcher in watchers:
            watcher.join()
        assert not torn


class TestMemoryStore(IndexStoreContract):
    @pytest.fixture
    def store(self) -> IndexStore:
        return MemoryStore()

    @pytest.fixture
    def small(self) -> IndexStore:
        return MemoryStore(limit_bytes=1 << 20)


class TestLmdbStore(IndexStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[LmdbStore]:
        store = LmdbStore(tmp_path / "index.lmdb")
        yield store
        store.close()

    @pytest.fixture
    def small(self, tmp_path: Path) -> Iterator[LmdbStore]:
        store = LmdbStore(tmp_path / "small.lmdb", map_bytes=1 << 20)
        yield store
        store.close()

    def test_a_reader_is_a_port(self, store: LmdbStore, tmp_path: Path) -> None:
        store.commit({b"a": b"1"})
        reader: IndexReader = LmdbReader(tmp_path / "index.lmdb")
        assert reader.get(b"a") == b"1"
        store.commit({b"a": b"2"})
        assert reader.get(b"a") == b"2"
        reader.close()
        reader.close()
        assert store.get(b"a") == b"2"

    def test_files_are_private_and_the_map_is_sparse(
        self, store: LmdbStore, tmp_path: Path
    ) -> None:
        store.commit({b"a": b"1"})
        assert (tmp_path / "index.lmdb").stat().st_mode & 0o077 == 0
        assert store.size_bytes() < 2 << 20

    def test_commits_outlive_the_store(self, tmp_path: Path) -> None:
        first = LmdbStore(tmp_path / "i.lmdb")
        number = first.commit({b"a": b"1"})
        first.close()
        with pytest.raises(ValueError, match="closed"):
            first.get(b"a")
        second = LmdbStore(tmp_path / "i.lmdb")
        assert second.get(b"a") == b"1"
        assert second.commit({b"a": b"2"}) == number + 1
        second.close()

    def test_a_store_may_follow_a_reader_in_one_process(self, tmp_path: Path) -> None:
        path = tmp_path / "i.lmdb"
        store = LmdbStore(path)
        store.commit({b"a": b"1"})
        store.close()
        reader = LmdbReader(path)
        writer = LmdbStore(path)
        writer.commit({b"a": b"2"})
        assert reader.get(b"a") == b"2"
        writer.close()
        assert reader.get(b"a") == b"2"
        reader.close()

    @pytest.mark.parametrize("content", [b"hello" * 4000, b"\0" * 16384, os.urandom(8192)])
    @pytest.mark.parametrize("kind", [LmdbReader, LmdbStore])
    def test_foreign_file_is_refused(
        self, tmp_path: Path, content: bytes, kind: type[LmdbReader]
    ) -> None:
        (tmp_path / "i.lmdb").write_bytes(content)
        with pytest.raises(FormatError):
            kind(tmp_path / "i.lmdb")
        assert (tmp_path / "i.lmdb").read_bytes() == content

    def test_lmdb_of_another_data_format_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "i.lmdb"
        store = LmdbStore(path)
        store.commit({b"a": b"1"})
        store.close()
        raw = bytearray(path.read_bytes())
        for page in (0, 4096):  # MDB_meta stands after the 16-byte page header: magic, version
            magic, version = struct.unpack_from("<II", raw, page + 16)
            assert (magic, version) == (0xBEEFC0DE, 1)
            struct.pack_into("<I", raw, page + 20, 99)
        path.write_bytes(raw)
        with pytest.raises(FormatError):
            LmdbReader(path)

    def test_no_index_yet_is_not_found(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound):
            LmdbReader(tmp_path / "i.lmdb")
        (tmp_path / "i.lmdb").touch()
        with pytest.raises(NotFound):
            LmdbReader(tmp_path / "i.lmdb")

    def test_missing_directory_is_an_os_error(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            LmdbStore(tmp_path / "no" / "i.lmdb")

    def test_other_processes_see_commits_whole(self, store: LmdbStore, tmp_path: Path) -> None:
        keys = [b"k%d" % i for i in range(50)]
        store.commit(dict.fromkeys(keys, b"0"))
        watcher = subprocess.Popen(
            [sys.executable, "-c", _WATCH, str(tmp_path / "index.lmdb")],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert watcher.stdout is not None
            assert watcher.stdout.readline() == "ready\n"
            for i in range(100):
                store.commit(dict.fromkeys(keys, b"%d" % i))
            store.commit({b"stop": b"1"})
            assert watcher.stdout.read() == "whole\n"
            assert watcher.wait(30) == 0
        finally:
            watcher.kill()
            watcher.wait()
            if watcher.stdout is not None:
                watcher.stdout.close()

    def test_killed_amid_commits_keeps_the_last_one(self, tmp_path: Path) -> None:
        path = tmp_path / "i.lmdb"
        for _ in range(5):
            writer = subprocess.Popen(
                [sys.executable, "-c", _WRITE, str(path)], stdout=subprocess.PIPE, text=True
            )
            try:
                assert writer.stdout is not None
                acknowledged = [int(writer.stdout.readline()) for _ in range(7)][-1]
            finally:
                writer.send_signal(signal.SIGKILL)
                writer.wait()
            rest = writer.stdout.read().split("\n")
            writer.stdout.close()
            acknowledged = max([acknowledged, *(int(line) for line in rest[:-1] if line)])
            store = LmdbStore(path)
            found = store.sequence()
            assert found >= acknowledged
            assert set(store.get_many([b"k%d" % i for i in range(200)])) == {b"%d" % found * 50}
            store.close()

    def test_slots_of_killed_readers_are_freed(self, store: LmdbStore, tmp_path: Path) -> None:
        """An idle reader keeps its slot, so that look-ups take no mutex; its death frees it."""
        reader = subprocess.Popen(
            [sys.executable, "-c", _IDLE, str(tmp_path / "index.lmdb")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        reader.kill()
        reader.wait()
        reader.communicate()
        assert store.reader_check() == 1

    def test_handles_survive_a_fork_on_both_sides(self, store: LmdbStore, tmp_path: Path) -> None:
        store.commit({b"k%d" % i: b"1" for i in range(5)})
        reader = LmdbReader(tmp_path / "index.lmdb")
        open_scan = iter(reader.scan(b"k"))
        assert next(open_scan) == (b"k0", b"1")
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        child = context.Process(target=_in_child, args=(reader, store, theirs))
        child.start()
        try:
            assert ours.poll(30)
            # The child reads through an environment of its own.
            assert ours.recv() == [b"1", "Unsupported", True]
            store.commit({b"k0": b"2"})  # the parent is still the writer
            ours.send("go on")
            assert ours.poll(30)
            assert ours.recv() == b"2"
            assert [key for key, _ in open_scan] == [b"k1", b"k2", b"k3", b"k4"]
            child.join(30)
            assert child.exitcode == 0
            assert reader.get(b"k0") == b"2"
        finally:
            child.kill()
            child.join()
        reader.close()

    def test_fork_beside_busy_threads(self, store: LmdbStore, tmp_path: Path) -> None:
        store.commit({b"a": b"1"})
        reader = LmdbReader(tmp_path / "index.lmdb")
        done = threading.Event()
        failures: list[BaseException] = []

        def busy(work: int) -> None:
            try:
                while not done.is_set():
                    if work == 0:
                        store.commit({b"b": b"2"})
                    elif reader.get(b"a") != b"1" or reader.get_many([b"a"]) != [b"1"]:
                        raise AssertionError("lost a record")
            except (OSError, ValueError, lmdb.Error, AssertionError) as error:
                failures.append(error)

        threads = [threading.Thread(target=busy, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        statuses = []
        for _ in range(15):
            pid = os.fork()
            if pid == 0:
                os._exit(0 if reader.get(b"a") == b"1" else 1)
            statuses.append(os.waitpid(pid, 0)[1])
        done.set()
        for thread in threads:
            thread.join()
        reader.close()
        assert failures == []
        assert statuses == [0] * 15


@pytest.mark.parametrize("kind", ["memory", "lmdb"])
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(batches=BATCHES, prefix=st.binary(max_size=2), start=st.binary(max_size=3))
def test_behaves_as_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    batches: list[dict[bytes, bytes | None]],
    prefix: bytes,
    start: bytes,
) -> None:
    path = tmp_path_factory.mktemp("store") / "index.lmdb"
    store: IndexStore = LmdbStore(path) if kind == "lmdb" else MemoryStore()
    model: dict[bytes, bytes] = {}
    for batch in batches:
        store.commit(batch)
        for key, value in batch.items():
            model.pop(key, None)
            if value is not None:
                model[key] = value
        assert store.get_many(sorted(batch)) == [model.get(key) for key in sorted(batch)]
    expected = [
        (key, value)
        for key, value in sorted(model.items())
        if key.startswith(prefix) and key >= start
    ]
    assert list(store.scan(prefix, start=start)) == expected
    store.close()


def _in_child(
    reader: LmdbReader, store: LmdbStore, pipe: multiprocessing.connection.Connection
) -> None:
    try:
        store.commit({b"k0": b"child"})
        refused = "nothing"
    except Unsupported as error:
        refused = type(error).__name__
    pipe.send([reader.get(b"k0"), refused, reader._shared.env_pid == os.getpid()])
    pipe.recv()
    pipe.send(reader.get(b"k0"))
    reader.abandon()


_IDLE = """
import sys
from tiercache.metadata.lmdb_store import LmdbReader
reader = LmdbReader(sys.argv[1])
reader.get(b"k0")
print("ready", flush=True)
sys.stdin.read()
"""

_WATCH = """
import sys
from tiercache.metadata.lmdb_store import LmdbReader
reader = LmdbReader(sys.argv[1])
keys = [b"k%d" % i for i in range(50)]
reader.get(b"k0")
print("ready", flush=True)
whole = True
while reader.get(b"stop") != b"1":
    whole = whole and len(set(reader.get_many(keys))) == 1
print("whole" if whole else "torn", flush=True)
"""

_WRITE = """
import sys
from tiercache.metadata.lmdb_store import LmdbStore
store = LmdbStore(sys.argv[1])
while True:
    number = store.sequence() + 1
    value = b"%d" % number * 50
    assert store.commit({b"k%d" % i: value for i in range(200)}) == number
    print(number, flush=True)
"""
