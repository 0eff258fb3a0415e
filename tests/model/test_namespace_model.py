"""A namespace over a cache far too small, against a dict.

The oracle is a dict of bytes; it shares no code with the product. The cache holds eleven
megabytes, the objects together up to twice that, so eviction goes on all the time. After
each step the ledger must add up and the directory must keep within its capacity; at the end fsck
must find nothing.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import tiercache
from tests.fault.cache_rig import FileOrigin, cache_settings, kill_agent, occupied_bytes, wait_for
from tests.fault.origin_rig import agent_pids
from tiercache import compose
from tiercache.client.file import ReadFile
from tiercache.errors import AlreadyExists, CacheFull, NotFound, StaleHandle, Unsupported
from tiercache.model import Kind
from tiercache.namespace import Namespace
from tiercache.units import KIB, MIB

CAPACITY = 16 * MIB
NAMES = ("a", "b", "c", "d/a", "d/b", "d/sub/a", "e/z")
DIRECTORIES = ("", "d", "d/sub", "e")
KEYS = st.sampled_from(NAMES)
# Empty, around a page, around what is packed (256 KiB here), several extents of 64 KiB, large.
SIZES = st.sampled_from(
    [0, 1, 100, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 256 * KIB, 256 * KIB + 1, MIB, 3 * MIB]
)
SEEDS = st.integers(0, 255)
PLACES = st.floats(0, 1)
HELD_VIEWS = 3
HELD_FILES = 3


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(min(size, 4096)).ljust(size, bytes([seed]))


class NamespaceMachine(RuleBasedStateMachine):
    """One client with its engine on a thread."""

    embedded = True

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[str, bytes] = {}
        self.versions: dict[str, str] = {}
        self.pins: set[str] = set()
        self.views: list[tuple[memoryview, bytes]] = []
        self.files: list[tuple[ReadFile, bytes, str]] = []

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="tiercache-model-"))
        self.origin = FileOrigin(self.root / "origin")
        self.settings = cache_settings(
            self.root / "c", self.origin.url, capacity_bytes=CAPACITY, memory_bytes=8 * MIB
        )
        self.ns: Namespace = tiercache.connect(self.settings, embedded=self.embedded)

    def teardown(self) -> None:
        try:
            for view, expected in self.views:
                assert bytes(view) == expected
            self.views.clear()
            self.files.clear()
            self.ns.close()
            kill_agent(self.settings.cache.dir)
            wait_for(lambda: not agent_pids(self.settings))
            report = compose.fsck(self.settings)
            assert not report.corruptions, report.problems
            assert self.may_leave_remains or report.clean, report.problems
            assert report.ledger_bytes >= report.disk_bytes - MIB
        finally:
            self.ns.close()
            kill_agent(self.settings.cache.dir)
            shutil.rmtree(self.root)

    may_leave_remains = False

    # -- expectations -----------------------------------------------------------------------

    def expect(self, key: str, call: Callable[[], Any]) -> Any:
        """Return what the call returns for a name that is there; it must be absent else."""
        if key in self.model:
            return call()
        with pytest.raises(NotFound):
            call()
        return None

    def span(self, key: str, place: float, share: float) -> tuple[int, int]:
        size = len(self.model.get(key, b""))
        offset = int(size * place * 1.05)  # at times beyond the end
        return offset, int((size - offset) * share * 1.2) if offset < size else 10

    def written(self, key: str, data: bytes, version: str) -> None:
        self.model[key], self.versions[key] = data, version

    # -- reading ----------------------------------------------------------------------------

    @rule(key=KEYS, place=PLACES, share=PLACES)
    def read(self, key: str, place: float, share: float) -> None:
        offset, length = self.span(key, place, share)
        found = self.expect(key, lambda: self.ns.read(f"/m/{key}", offset, length))
        assert found is None or found == self.model[key][offset : offset + length]

    @rule(key=KEYS)
    def read_whole(self, key: str) -> None:
        found = self.expect(key, lambda: self.ns.read(f"/m/{key}"))
        assert found is None or found == self.model[key]

    @rule(keys=st.lists(KEYS, max_size=8), place=PLACES, share=PLACES)
    def read_many(self, keys: list[str], place: float, share: float) -> None:
        spans = [(key, *self.span(key, place, share)) for key in keys]
        items: list[tuple[str, int, int | None]] = [(f"/m/{k}", o, n) for k, o, n in spans]
        for (key, offset, length), found in zip(
            spans, self.ns.read_many_or_errors(items), strict=True
        ):
            if key in self.model:
                assert found == self.model[key][offset : offset + length]
            else:
                assert isinstance(found, NotFound)

    @rule(key=KEYS, place=PLACES, share=PLACES)
    def view(self, key: str, place: float, share: float) -> None:
        """A view stays what it was, whatever happens to its object and its extent."""
        offset, length = self.span(key, place, share)
        found = self.expect(key, lambda: self.ns.view(f"/m/{key}", offset, length))
        if found is not None:
            expected = self.model[key][offset : offset + length]
            assert bytes(found) == expected
            self.views = [*self.views, (found, expected)][-HELD_VIEWS:]

    @rule(key=KEYS)
    def open(self, key: str) -> None:
        file = self.expect(key, lambda: self.ns.open(f"/m/{key}"))
        if file is not None:
            self.files = [*self.files, (file, self.model[key], key)][-HELD_FILES:]

    @precondition(lambda self: self.files)
    @rule(number=st.integers(0, HELD_FILES - 1), place=PLACES, share=PLACES)
    def read_handle(self, number: int, place: float, share: float) -> None:
        """A handle reads its version or says that it is gone; never another, never a mixture."""
        file, expected, key = self.files[number % len(self.files)]
        offset = int(len(expected) * place)
        length = int((len(expected) - offset) * share)
        try:
            assert file.read_at(offset, length) == expected[offset : offset + length]
        except StaleHandle:
            assert self.versions.get(key) != file.version

    @rule(key=KEYS, pin=st.booleans())
    def local_path(self, key: str, pin: bool) -> None:
        try:
            path = self.expect(key, lambda: self.ns.local_path(f"/m/{key}", pin=pin))
        except CacheFull:
            assert self.pins or self.views or pin
            self.note_pin(key, pin)
            return
        if path is not None:
            self.note_pin(key, pin)
            data = Path(path).read_bytes() if pin else read_if_there(path)
            assert data is None or data == self.model[key]

    # -- names ------------------------------------------------------------------------------

    @rule(key=KEYS)
    def stat(self, key: str) -> None:
        found = self.expect(key, lambda: self.ns.stat(f"/m/{key}"))
        if found is not None:
            assert (found.kind, found.size_bytes) == (Kind.FILE, len(self.model[key]))
            assert found.version == self.versions[key]
            assert not found.stale

    @rule(path=st.sampled_from(NAMES + DIRECTORIES))
    def exists(self, path: str) -> None:
        inside = any(key.startswith(f"{path}/") for key in self.model)
        there = path == "" or path in self.model or inside
        assert self.ns.exists(f"/m/{path}".rstrip("/")) is there

    @rule(directory=st.sampled_from(DIRECTORIES), recursive=st.booleans(), refresh=st.booleans())
    def list(self, directory: str, recursive: bool, refresh: bool) -> None:
        prefix = f"{directory}/" if directory else ""
        below = {key[len(prefix) :]: key for key in self.model if key.startswith(prefix)}
        expected = {
            name: len(self.model[key])
            for name, key in below.items()
            if recursive or "/" not in name
        }
        if not recursive:
            expected.update({name.split("/")[0]: -1 for name in below if "/" in name})
        try:
            found = self.ns.list(f"/m/{directory}".rstrip("/"), recursive, refresh=refresh)
        except NotFound:
            assert directory and not below
            return
        assert [entry.name for entry in found] == sorted(entry.name for entry in found)
        names = {e.name: e.size_bytes if e.kind is Kind.FILE else -1 for e in found}
        for name in names.keys() - expected.keys():
            # A file system keeps directories that have become empty; object stores have none.
            assert names[name] == -1 and (self.origin.root / prefix / name).is_dir(), name
            del names[name]
        assert names == expected

    # -- changing ---------------------------------------------------------------------------

    @rule(key=KEYS, size=SIZES, seed=SEEDS)
    def write(self, key: str, size: int, seed: int) -> None:
        data = content(seed, size)
        found = self.ns.write(f"/m/{key}", data)
        assert found.size_bytes == size
        self.written(key, data, found.version)

    @rule(key=KEYS, size=SIZES, seed=SEEDS)
    def create(self, key: str, size: int, seed: int) -> None:
        data = content(seed, size)
        if key in self.model:
            with pytest.raises(AlreadyExists):
                self.ns.write(f"/m/{key}", data, mode="create")
        else:
            found = self.ns.write(f"/m/{key}", data, mode="create")
            self.written(key, data, found.version)

    @rule(key=KEYS, seed=SEEDS)
    def write_if_version(self, key: str, seed: int) -> None:
        """Files know no such condition: it is refused, and nothing is written."""
        with pytest.raises(Unsupported):
            self.ns.write(f"/m/{key}", content(seed, 10), if_version=self.versions.get(key, "none"))

    @rule(key=KEYS)
    def abandon_a_write(self, key: str) -> None:
        def write() -> None:
            with self.ns.open_for_writing(f"/m/{key}") as file:
                file.write(b"half of it")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write()

    @rule(key=KEYS)
    def remove(self, key: str) -> None:
        if self.expect(key, lambda: self.ns.remove(f"/m/{key}")) is not None:
            del self.model[key], self.versions[key]

    @rule(directory=st.sampled_from(DIRECTORIES[1:]))
    def remove_tree(self, directory: str) -> None:
        gone = [key for key in self.model if key.startswith(f"{directory}/")]
        if not gone:
            with pytest.raises(NotFound):
                self.ns.remove(f"/m/{directory}", recursive=True)
            return
        assert self.ns.remove(f"/m/{directory}", recursive=True) == len(gone)
        for key in gone:
            del self.model[key], self.versions[key]

    @rule(old=KEYS, new=KEYS)
    def copy(self, old: str, new: str) -> None:
        self.expect(old, lambda: self.ns.copy(f"/m/{old}", f"/m/{new}"))
        if old in self.model and old != new:
            self.written(new, self.model[old], self.ns.stat(f"/m/{new}").version)

    @rule(old=KEYS, new=KEYS)
    def rename(self, old: str, new: str) -> None:
        self.expect(old, lambda: self.ns.rename(f"/m/{old}", f"/m/{new}"))
        if old in self.model and old != new:
            self.written(new, self.model[old], self.ns.stat(f"/m/{new}").version)
            del self.model[old], self.versions[old]

    @rule(key=KEYS, size=SIZES, seed=SEEDS)
    def replace_at_the_origin(self, key: str, size: int, seed: int) -> None:
        """Somebody else writes; we are told."""
        data = content(seed, size)
        self.origin.put(key, data)
        self.ns.invalidate(f"/m/{key}")
        self.ns.invalidate("/m")  # the listings above, and what is known of directories
        self.written(key, data, self.ns.stat(f"/m/{key}").version)

    # -- the cache --------------------------------------------------------------------------

    @rule(path=st.sampled_from(NAMES + DIRECTORIES))
    def evict(self, path: str) -> None:
        dropped = self.ns.evict(f"/m/{path}".rstrip("/"))
        assert dropped >= 0
        if path in self.model:
            assert self.ns.cached_bytes(f"/m/{path}") == 0

    @rule(path=st.sampled_from(NAMES + DIRECTORIES))
    def invalidate(self, path: str) -> None:
        assert self.ns.invalidate(f"/m/{path}".rstrip("/")) >= 1

    @rule(key=KEYS)
    def pin(self, key: str) -> None:
        self.expect(key, lambda: self.ns.pin(f"/m/{key}"))
        self.note_pin(key, True)

    def note_pin(self, key: str, pin: bool) -> None:
        if pin and key in self.model:
            self.pins.add(key)

    @precondition(lambda self: self.pins)
    @rule()
    def unpin_all(self) -> None:
        for key in sorted(self.pins):
            self.ns.unpin(f"/m/{key}")
            with pytest.raises(NotFound):
                self.ns.unpin(f"/m/{key}")
        self.pins.clear()

    @rule(directory=st.sampled_from(DIRECTORIES))
    def prefetch(self, directory: str) -> None:
        inside = [key for key in self.model if not directory or key.startswith(f"{directory}/")]
        if inside:
            progress = self.ns.prefetch(f"/m/{directory}".rstrip("/")).wait(60)
            assert progress.listed == len(inside)
            assert progress.hit + progress.filled + progress.failed + progress.skipped >= 1

    @rule()
    def restart(self) -> None:
        self.files.clear()
        self.ns.close()
        self.ns = tiercache.connect(self.settings, embedded=self.embedded)

    # -- what holds always ------------------------------------------------------------------

    @invariant()
    def views_stay(self) -> None:
        for view, expected in self.views:
            assert len(view) == len(expected) and view[:100] == expected[:100]

    @invariant()
    def the_ledger_adds_up(self) -> None:
        status = self.ns.status()
        assert status["agent"]["internal_errors"] == 0
        assert status["cache"]["corrupt_pages"] == 0
        assert status["cache"]["used_bytes"] <= CAPACITY
        assert status["memory"]["held_bytes"] >= 0
        assert set(status["pins"]) == {f"/m/{key}" for key in self.pins}
        # The directory's own entries are no file's blocks.
        assert occupied_bytes(self.settings.cache.dir) <= CAPACITY + 64 * KIB
        if self.embedded:
            self.in_the_engine(check_engine)

    def in_the_engine(self, check: Callable[[Any], None]) -> None:
        embedded = self.ns.client.engine
        assert embedded is not None and embedded._loop is not None and embedded._agent is not None
        engine = embedded._agent.engine

        async def on_the_loop() -> None:
            check(engine)

        asyncio.run_coroutine_threadsafe(on_the_loop(), embedded._loop).result(30)


def check_engine(engine: Any) -> None:
    """Ledger, extents, eviction queue and memory agree with one another."""
    space = engine.space
    space.ledger.assert_invariants()
    assert len(space.victims) == len(space.live)
    assert all(extent_id in space.victims for extent_id in space.live)
    assert all(state.busy >= 0 for state in space.live.values())
    assert all(space.ledger.charge_of(extent) for extent in space.live)
    slots = [state.slot for state in space.live.values()]
    assert len(slots) == len(set(slots))


def read_if_there(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return None  # not pinned, and evicted since


class KilledAgentMachine(NamespaceMachine):
    """The same with an agent of its own that is killed now and then."""

    embedded = False
    may_leave_remains = True

    @rule()
    def kill(self) -> None:
        kill_agent(self.settings.cache.dir)

    @rule()
    def leave(self) -> None:
        """Exit in good order, in the middle of the client's life."""
        self.ns.shut_down_agent()
        wait_for(lambda: not (Path(self.settings.cache.dir) / "agent.sock").exists())


def run(machine: type[NamespaceMachine], *, examples: int, steps: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=bool(os.environ.get("CI")),
            print_blob=True,
            report_multiple_bugs=False,
        ),
    )


def test_a_namespace_is_a_dict() -> None:
    run(NamespaceMachine, examples=25, steps=40)


@pytest.mark.slow
def test_a_namespace_is_a_dict_whatever_happens_to_its_agent() -> None:
    run(KilledAgentMachine, examples=5, steps=25)
