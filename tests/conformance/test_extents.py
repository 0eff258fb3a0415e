"""What extents and the shared state keep: for one process, for several, and after a SIGKILL."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tiercache.extents.files import ExtentFiles, ExtentReaders, OpenExtent
from tiercache.extents.shared_state import (
    SharedStateReader,
    SharedStateWriter,
)
from tiercache.ports import Buffer, ExtentDirectory, ExtentStore, SharedState, SharedStateView

pytestmark = pytest.mark.timeout(60)

MIB = 1 << 20
ID = 0xAB00_0000_0000_0001
OTHER = 0x0100_0000_0000_0002


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "extents"


@pytest.fixture
def store(root: Path) -> ExtentFiles:
    return ExtentFiles(root)


@pytest.fixture
def readers(root: Path, store: ExtentFiles) -> ExtentReaders:
    return ExtentReaders(root)


def open_descriptors(path: str) -> int:
    """Count this process's descriptors on the file now at ``path``."""
    wanted = os.stat(path)
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found = os.stat(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        count += (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)
    return count


# ---- one process


def test_they_are_the_ports(store: ExtentFiles, readers: ExtentReaders, tmp_path: Path) -> None:
    shared: SharedState = SharedStateWriter(tmp_path / "shared.state")
    seen: SharedStateView = SharedStateReader(tmp_path / "shared.state")
    assert len(seen.visited) == shared.slots_count
    writing: ExtentStore = store
    reading: ExtentDirectory = readers
    assert writing.path(ID) == reading.path(ID)


def test_layout_is_the_documented_one(store: ExtentFiles, root: Path) -> None:
    store.create(ID, 10)
    store.create(OTHER, 10)
    assert store.path(ID) == str(root / "ab" / "00000000000001")
    assert (root / "ab" / "00000000000001").is_file()
    assert (root / "01" / "00000000000002").is_file()
    assert (root / "ab").stat().st_mode & 0o777 == 0o700
    assert (root / "trash").stat().st_mode & 0o777 == 0o700
    assert os.stat(store.path(ID)).st_mode & 0o777 == 0o600


@pytest.mark.parametrize("extent_id", [0, 1, (1 << 56) - 1, 1 << 56, (1 << 64) - 1])
def test_every_id_round_trips(store: ExtentFiles, extent_id: int) -> None:
    store.create(extent_id, 4096)
    store.write(extent_id, 0, b"x")
    assert set(store.scan()) == {extent_id}
    store.discard(extent_id)
    assert set(store.discarded()) == {extent_id}
    assert [found for found, _ in store.reap()] == [extent_id]


def test_created_extent_is_sparse_zeros(store: ExtentFiles) -> None:
    store.create(ID, 64 * MIB)
    assert store.scan() == {ID: 0}
    assert store.allocated(ID) == 0
    assert store.read(ID, 5 * MIB, 4) == b"\0\0\0\0"
    assert store.read(ID, 64 * MIB - 2, 100) == b"\0\0"
    assert store.read(ID, 64 * MIB, 100) == b""


def test_what_is_written_is_read(store: ExtentFiles, readers: ExtentReaders) -> None:
    store.create(ID, 4 * MIB)
    data = random.Random(7).randbytes(MIB + 5)
    store.write(ID, 3, data)
    store.write(ID, 2 * MIB, bytearray(b"abc"))
    store.write(ID, 3 * MIB, memoryview(b"defg")[1:3])
    assert store.read(ID, 3, len(data)) == data
    opened = readers.open(ID)
    assert opened is not None
    assert os.pread(opened.fd, len(data), 3) == data
    view = opened.view()
    assert view.readonly
    assert len(view) == 4 * MIB
    assert view[3 : 3 + len(data)] == data
    assert bytes(view[2 * MIB : 2 * MIB + 3]) == b"abc"
    assert bytes(view[3 * MIB : 3 * MIB + 3]) == b"ef\0"
    # The mapping shows what is written later.
    store.write(ID, 0, b"new")
    assert bytes(view[:3]) == b"new"
    assert MIB <= store.allocated(ID) < 2 * MIB
    assert store.scan()[ID] == store.allocated(ID)


@settings(max_examples=40, deadline=None)
@given(
    parts=st.lists(st.tuples(st.integers(0, 300) | st.none(), st.binary(max_size=64)), max_size=20)
)
def test_many_parts_are_written_in_order(parts: list[tuple[int | None, bytes]]) -> None:
    """None as offset: right behind the part before."""
    with tempfile.TemporaryDirectory() as directory:
        store = ExtentFiles(directory)
        store.create(ID, 4096)
        model = bytearray(4096)
        placed: list[tuple[int, Buffer]] = []
        end = 0
        for start, content in parts:
            offset = end if start is None else start
            placed.append((offset, content))
            model[offset : offset + len(content)] = content
            end = offset + len(content)
        store.write_many(ID, placed)
        assert store.read(ID, 0, 4096) == model


def test_a_run_may_exceed_the_vector_limit_of_the_kernel(store: ExtentFiles) -> None:
    store.create(ID, MIB)
    store.write_many(ID, [(i * 3, b"%03d" % (i % 1000)) for i in range(2500)])
    assert store.read(ID, 0, 7500) == b"".join(b"%03d" % (i % 1000) for i in range(2500))


def test_an_empty_extent_has_an_empty_view(store: ExtentFiles, readers: ExtentReaders) -> None:
    store.create(ID, 0)
    opened = readers.open(ID)
    assert opened is not None
    assert bytes(opened.view()) == b""


def test_unknown_extents(store: ExtentFiles, readers: ExtentReaders) -> None:
    assert readers.open(ID) is None
    for call in (
        lambda: store.read(ID, 0, 1),
        lambda: store.write(ID, 0, b"x"),
        lambda: store.allocated(ID),
    ):
        with pytest.raises(FileNotFoundError):
            call()
    store.discard(ID)
    assert store.discarded() == {}
    assert store.reap() == []


def test_ids_are_made_once(store: ExtentFiles) -> None:
    store.create(ID, 100)
    store.write(ID, 0, b"kept")
    with pytest.raises(FileExistsError):
        store.create(ID, 100)
    assert store.read(ID, 0, 4) == b"kept"


def test_a_length_the_device_refuses_leaves_nothing(store: ExtentFiles) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        store.create(ID, 1 << 62)
    assert store.scan() == {}


def test_discarded_extent_is_out_of_reach_and_counts_until_reaped(
    store: ExtentFiles, readers: ExtentReaders
) -> None:
    store.create(ID, MIB)
    store.write(ID, 0, b"x" * MIB)
    held = readers.open(ID)
    assert held is not None
    store.discard(ID)
    assert readers.open(ID) is None
    assert store.scan() == {}
    assert store.discarded() == {ID: MIB}
    with pytest.raises(FileNotFoundError):
        store.write(ID, 0, b"y")
    assert store.reap() == []
    assert os.pread(held.fd, 3, 0) == b"xxx"
    del held
    assert store.reap() == [(ID, MIB)]
    assert store.discarded() == {}
    assert store.reap() == []


def test_a_view_keeps_lock_and_bytes_after_its_extent_is_dropped(
    store: ExtentFiles, readers: ExtentReaders, root: Path
) -> None:
    store.create(ID, MIB)
    store.write(ID, 0, b"x" * MIB)
    held = readers.open(ID)
    assert held is not None
    part = held.view()[100:200]
    fd = held.fd
    del held
    gc.collect()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(fd)
    store.discard(ID)
    assert store.reap() == []  # the mapping's own descriptor shares the lock
    assert bytes(part) == b"x" * 100
    del part
    gc.collect()
    assert store.reap() == [(ID, MIB)]


def test_handles_close_with_their_last_reference(
    store: ExtentFiles, readers: ExtentReaders
) -> None:
    store.create(ID, MIB)
    store.close()
    path = store.path(ID)
    held = readers.open(ID)
    assert held is not None
    held.view()
    assert open_descriptors(path) == 2
    del held
    assert open_descriptors(path) == 0


@pytest.mark.parametrize(
    ("call", "use"),
    [
        ("pread", lambda store: store.read(ID, 0, 3)),
        ("ftruncate", lambda store: store.truncate(ID, MIB)),
        ("fstat", lambda store: store.allocated(ID)),
    ],
    ids=["read", "truncate", "allocated"],
)
def test_a_handle_that_another_thread_drops_stays_open_while_it_is_used(
    store: ExtentFiles,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    use: Callable[[ExtentFiles], Any],
) -> None:
    """Else the call fails with EBADF, or meets a file that was opened since under its number."""
    store.create(ID, MIB)
    store.write(ID, 0, b"abc")
    expected = use(store)
    real = getattr(os, call)

    def late(*args: Any) -> Any:
        store.close()  # what another thread does that discards it, or needs its place
        return real(*args)

    monkeypatch.setattr(f"tiercache.extents.files.os.{call}", late)
    assert use(store) == expected


def test_a_failed_open_leaves_no_descriptor(
    store: ExtentFiles, readers: ExtentReaders, root: Path
) -> None:
    store.create(ID, MIB)
    store.close()
    before = len(os.listdir("/proc/self/fd"))
    with open(store.path(ID), "rb") as reaper:
        fcntl_lock_exclusive(reaper.fileno())
        assert readers.open(ID) is None
    assert len(os.listdir("/proc/self/fd")) == before
    assert readers.open(ID) is not None


def fcntl_lock_exclusive(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("reaped", [False, True])
def test_an_extent_discarded_between_open_and_lock_is_gone(
    store: ExtentFiles, readers: ExtentReaders, monkeypatch: pytest.MonkeyPatch, reaped: bool
) -> None:
    """Else a reader would hold blocks that the ledger counts as free."""
    store.create(ID, MIB)
    real = fcntl.flock

    def late(fd: int, operation: int) -> None:
        monkeypatch.setattr("tiercache.extents.files.fcntl.flock", real)
        store.discard(ID)
        if reaped:
            assert [found for found, _ in store.reap()] == [ID]
        real(fd, operation)

    monkeypatch.setattr("tiercache.extents.files.fcntl.flock", late)
    assert readers.open(ID) is None
    assert [found for found, _ in store.reap()] == ([] if reaped else [ID])


def test_writable_handles_are_bounded(root: Path) -> None:
    store = ExtentFiles(root, writable_handles=3)
    before = len(os.listdir("/proc/self/fd"))
    for extent_id in range(10):
        store.create(extent_id, MIB)
    for extent_id in [*range(10), *range(10)]:
        store.write(extent_id, 0, b"%d" % extent_id)
    assert len(os.listdir("/proc/self/fd")) == before + 3
    assert [store.read(i, 0, 1) for i in range(10)] == [b"%d" % i for i in range(10)]
    store.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_restart_goes_on_counting_the_trash(root: Path, store: ExtentFiles) -> None:
    store.create(ID, MIB)
    store.write(ID, 0, b"x" * MIB)
    store.create(OTHER, MIB)
    held = ExtentReaders(root).open(ID)
    store.discard(ID)
    after = ExtentFiles(root)
    assert after.discarded() == {ID: MIB}
    assert set(after.scan()) == {OTHER}
    assert after.reap() == []
    del held
    assert after.reap() == [(ID, MIB)]


def test_scan_passes_over_what_is_not_an_extent(root: Path, store: ExtentFiles) -> None:
    store.create(ID, MIB)
    (root / "ab" / "notes").write_text("x")
    (root / "zz").mkdir()
    (root / "zz" / "00000000000001").write_text("x")
    (root / "cd").write_text("a file")
    (root / "trash" / "notes").write_text("x")
    assert set(store.scan()) == {ID}
    assert ExtentFiles(root).discarded() == {}


def test_trash_emptied_by_hand_counts_no_more(root: Path, store: ExtentFiles) -> None:
    store.create(ID, MIB)
    store.discard(ID)
    (root / "trash" / f"{ID:016x}").unlink()
    assert store.discarded() == {}
    assert store.reap() == [(ID, 0)]


def test_free_describes_the_file_system(store: ExtentFiles, root: Path) -> None:
    available, total, inodes = store.free()
    status = os.statvfs(root)
    assert 0 < available <= total == status.f_blocks * status.f_frsize
    assert inodes > 0


def test_a_write_in_flight_holds_the_reaper_off(store: ExtentFiles) -> None:
    store.create(ID, MIB)
    in_flight = store._open_writable(ID)
    store.discard(ID)
    assert store.reap() == []
    os.pwrite(in_flight.fd, b"x" * 4096, 0)
    assert store.discarded()[ID] >= 4096
    del in_flight
    assert len(store.reap()) == 1


def test_readers_race_with_discard_and_reap(store: ExtentFiles, readers: ExtentReaders) -> None:
    """Whoever opens an extent reads its bytes; nobody reads another's or none."""
    done = threading.Event()
    wrong: list[tuple[int, bytes]] = []
    opened_count = [0]
    newest = [0]

    def read() -> None:
        while not done.is_set():
            extent_id = newest[0]
            held = readers.open(extent_id)
            if held is None:
                continue
            opened_count[0] += 1
            found = os.pread(held.fd, 8, 0)
            if found != extent_id.to_bytes(8, "big"):
                wrong.append((extent_id, found))

    store.create(0, 4096)
    store.write(0, 0, bytes(8))
    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    freed = 0
    for extent_id in range(1, 200):
        store.create(extent_id, 4096)
        store.write(extent_id, 0, extent_id.to_bytes(8, "big"))
        newest[0] = extent_id
        store.discard(extent_id - 1)
        freed += len(store.reap())
    done.set()
    for thread in threads:
        thread.join()
    freed += len(store.reap())
    assert wrong == []
    assert freed == 199
    assert opened_count[0] > 0


# ---- several processes


@pytest.fixture
def holder(store: ExtentFiles, root: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds extent ID open and mapped, and answers "read" with its bytes."""
    store.create(ID, MIB)
    store.write(ID, 0, b"precious" * (MIB // 8))
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(root), str(ID)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


_HOLD = """
import sys
from tiercache.extents.files import ExtentReaders
readers = ExtentReaders(sys.argv[1])
held = readers.open(int(sys.argv[2]))
view = held.view()
print("held", flush=True)
for line in sys.stdin:
    if line == "read\\n":
        print(bytes(view[-8:]).decode(), readers.open(int(sys.argv[2])), flush=True)
    elif line == "drop file\\n":
        del held
        print("dropped", flush=True)
    elif line == "drop view\\n":
        del view
        print("dropped", flush=True)
"""


def ask(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_another_process_keeps_a_trashed_extent(
    store: ExtentFiles, holder: subprocess.Popen[str]
) -> None:
    store.discard(ID)
    assert store.reap() == []
    assert store.discarded() == {ID: MIB}
    assert ask(holder, "read") == "precious None"
    assert ask(holder, "drop file") == "dropped"
    assert store.reap() == []  # still mapped there
    assert ask(holder, "read") == "precious None"
    assert ask(holder, "drop view") == "dropped"
    assert store.reap() == [(ID, MIB)]


def test_a_killed_reader_holds_nothing(store: ExtentFiles, holder: subprocess.Popen[str]) -> None:
    store.discard(ID)
    assert store.reap() == []
    holder.kill()
    holder.wait()
    assert store.reap() == [(ID, MIB)]


def test_a_forked_child_keeps_the_lock_it_inherited(
    store: ExtentFiles, readers: ExtentReaders
) -> None:
    store.create(ID, MIB)
    held = readers.open(ID)
    assert held is not None
    waiting, release = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(release)
        os.read(waiting, 1)
        os._exit(0)
    os.close(waiting)
    del held
    store.discard(ID)
    assert store.reap() == []
    os.close(release)
    assert os.waitpid(child, 0)[1] == 0
    assert [found for found, _ in store.reap()] == [ID]


class _Reference(RuleBasedStateMachine):
    """Extents against a dictionary of bytes, with handles held over discards and restarts."""

    LENGTH = 3 * 4096

    @initialize()
    def begin(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.store = ExtentFiles(self.directory.name, writable_handles=2)
        self.live: dict[int, bytearray] = {}
        self.trash: dict[int, bytearray] = {}
        self.handles: list[tuple[int, OpenExtent]] = []
        self.next_id = 1

    @rule()
    def create(self) -> None:
        self.store.create(self.next_id, self.LENGTH)
        self.live[self.next_id] = bytearray(self.LENGTH)
        self.next_id += 1

    @precondition(lambda self: self.live)
    @rule(data=st.data(), offset=st.integers(0, 4096), content=st.binary(max_size=200))
    def write(self, data: st.DataObject, offset: int, content: bytes) -> None:
        extent_id = data.draw(st.sampled_from(sorted(self.live)))
        self.store.write(extent_id, offset, content)
        self.live[extent_id][offset : offset + len(content)] = content

    @precondition(lambda self: self.live)
    @rule(data=st.data(), mapped=st.booleans())
    def open(self, data: st.DataObject, mapped: bool) -> None:
        extent_id = data.draw(st.sampled_from(sorted(self.live)))
        held = self.store.open(extent_id)
        assert held is not None
        if mapped:
            held.view()
        self.handles.append((extent_id, held))

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        self.handles.pop(data.draw(st.integers(0, len(self.handles) - 1)))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        extent_id = data.draw(st.sampled_from(sorted(self.live)))
        self.store.discard(extent_id)
        self.trash[extent_id] = self.live.pop(extent_id)

    @rule()
    def reap(self) -> None:
        held = {extent_id for extent_id, _ in self.handles}
        expected = sorted(set(self.trash) - held)
        assert [extent_id for extent_id, _ in self.store.reap()] == expected
        for extent_id in expected:
            del self.trash[extent_id]

    @rule()
    def restart(self) -> None:
        self.store = ExtentFiles(self.directory.name, writable_handles=2)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "store"):
            return
        assert set(self.store.scan()) == set(self.live)
        assert set(self.store.discarded()) == set(self.trash)
        for extent_id, content in self.live.items():
            assert self.store.read(extent_id, 0, self.LENGTH) == content
        for extent_id, held in self.handles:
            known = self.live.get(extent_id) or self.trash.get(extent_id)
            assert known is not None
            assert os.pread(held.fd, self.LENGTH, 0) == known
        for extent_id in self.trash:
            assert self.store.open(extent_id) is None

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.handles.clear()
            self.store.close()
            self.directory.cleanup()


TestReference = _Reference.TestCase
TestReference.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
