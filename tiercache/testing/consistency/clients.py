"""Clients that run a program and write down what they did and saw.

``python -m tiercache.testing.consistency.clients`` is one process with a client of every history:
it reads how to begin, then one history a line, from standard input, and writes one line for each.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable
from typing import Literal, Protocol

import msgspec
import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from tiercache.clock import BootClock
from tiercache.errors import AlreadyExists, NotFound, PreconditionFailed, TiercacheError
from tiercache.model import PAGE_BYTES
from tiercache.model import Kind as NameKind
from tiercache.namespace import Namespace
from tiercache.settings import Settings
from tiercache.testing.consistency.operations import (
    ABSENT,
    ORIGIN,
    Kind,
    Operation,
    Outcome,
    body_of,
    value_in,
)
from tiercache.testing.consistency.programs import Step, Workload, programs, sizes_of


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """One history to take part in."""

    seed: int
    directory: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What one process did in one history."""

    directory: str
    operations: tuple[Operation, ...]


class Begin(msgspec.Struct, frozen=True, kw_only=True):
    """How one process begins: who it is, and its way to the objects: a namespace's settings and the
    mount's path, or a server's endpoint and bucket."""

    process: str
    site: str
    workload: Workload
    mount: str = ""
    settings: Settings | None = None
    endpoint: str = ""
    region: str = ""
    bucket: str = ""


class Seen(msgspec.Struct, kw_only=True):
    """How one call ended; ``returned_s`` where that was before the last byte was read."""

    outcome: Outcome = Outcome.OK
    observed: str | None = None
    token: str = ""
    stale: bool = False
    detail: str = ""
    returned_s: float | None = None


class Client(Protocol):
    """One process's way to the objects of one history. Not thread safe."""

    def call(self, step: Step, expected: str) -> Seen:
        """Do what the step says, with ``expected`` the version token that a REPLACE requires."""
        ...

    def list(self) -> tuple[dict[str, Seen], bool]:
        """Return what a listing of the directory says of the keys that it names, and whether it is
        marked as stale. Raises TiercacheError."""
        ...


class Recorder:
    """Runs one program and keeps what it did."""

    def __init__(self, process: str, site: str, client: Client) -> None:
        self._process, self._site, self._client = process, site, client
        self._clock = BootClock()
        self._known: dict[str, tuple[str, str]] = {}  # key → (token, value) as last seen
        self.operations: list[Operation] = []

    def run(self, steps: Iterable[Step], keys: Iterable[str]) -> None:
        keys = list(keys)
        for step in steps:
            time.sleep(step.pause_s)
            if step.kind is Kind.LIST:
                self._list(keys)
            else:
                self._call(step)

    def _call(self, step: Step) -> None:
        token, expected = self._known.get(step.key, ("", ""))
        if step.kind is Kind.REPLACE and not token:
            step = msgspec.structs.replace(step, kind=Kind.STAT, value="")  # nothing to replace
        invoked_s = self._clock.now()
        try:
            seen = self._client.call(step, token)
        except TiercacheError as error:
            seen = Seen(outcome=Outcome.UNKNOWN, detail=_short(error))
        returned_s = self._clock.now() if seen.returned_s is None else seen.returned_s
        self._note(step.key, step, (invoked_s, returned_s), seen, expected)

    def _list(self, keys: list[str]) -> None:
        invoked_s = self._clock.now()
        try:
            found, stale = self._client.list()
        except TiercacheError:
            return
        returned_s = self._clock.now()
        for key in keys:
            step = Step(kind=Kind.LIST, key=key, pause_s=0.0)
            seen = found.get(key) or Seen(observed=ABSENT, stale=stale)
            self._note(key, step, (invoked_s, returned_s), seen, "")

    def _note(
        self, key: str, step: Step, times: tuple[float, float], seen: Seen, expected: str
    ) -> None:
        if seen.outcome is Outcome.OK and seen.token:
            value = step.value or seen.observed or ""
            self._known[key] = seen.token, value
        elif seen.outcome is Outcome.OK:
            self._known.pop(key, None)
        self.operations.append(
            Operation(
                key=key,
                process=self._process,
                site=self._site,
                kind=step.kind,
                invoked_s=times[0],
                returned_s=times[1],
                outcome=seen.outcome,
                value=step.value,
                expected=expected if step.kind is Kind.REPLACE else "",
                observed=seen.observed,
                token=seen.token,
                stale=seen.stale,
                detail=seen.detail,
            )
        )


def _short(error: Exception) -> str:
    """Return its class and its first line."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:100]}"


def _mode(step: Step) -> Literal["create", "overwrite"]:
    return "create" if step.kind is Kind.CREATE else "overwrite"


# -- a site ---------------------------------------------------------------------------------


class SiteClient:
    """One history's objects as a namespace shows them."""

    def __init__(self, ns: Namespace, mount: str, directory: str, sizes: dict[int, str]) -> None:
        self._ns = ns
        self._directory = directory
        self._root = f"{mount}/{directory}"
        self._sizes = sizes
        self._clock = BootClock()

    def call(self, step: Step, expected: str) -> Seen:
        try:
            match step.kind:
                case Kind.READ:
                    return self._read(step)
                case Kind.HANDLE:
                    return self._handle(step)
                case Kind.STAT:
                    return self._stat(step)
                case Kind.DELETE:
                    self._ns.remove(self._path(step))
                    return Seen()
                case _:
                    return self._write(step, expected)
        except NotFound as error:
            if step.kind.is_change:
                return Seen(outcome=Outcome.FAILED, detail=_short(error))
            return Seen(observed=ABSENT)
        except (AlreadyExists, PreconditionFailed) as error:
            return Seen(outcome=Outcome.FAILED, detail=_short(error))

    def _path(self, step: Step) -> str:
        return f"{self._root}/{step.key}"

    def _read(self, step: Step) -> Seen:
        path = self._path(step)
        match step.variant % 4:
            case 0 | 1:
                data = self._ns.read(path)
            case 2:
                data = bytes(self._ns.view(path))
            case _:
                (data,) = self._ns.read_many([(path, 0, None)])
        value = value_in(self._directory, step.key, data, size_bytes=len(data))
        # Only this thread uses the path in this process: what is known by heart is what was read.
        entry = self._ns.reader().names.hot.get(path)
        token = "" if entry is None else entry.record.token
        return Seen(observed=value, token=token, stale=entry is None or entry.stale)

    def _handle(self, step: Step) -> Seen:
        with self._ns.open(self._path(step), "rb") as file:
            seen = Seen(token=file.version, stale=file.stat.stale, returned_s=self._clock.now())
            values = {self._value_of(file.size)}
            try:
                for start, end in ((0, PAGE_BYTES), (PAGE_BYTES, file.size)):
                    if start < file.size:
                        data = file.read_at(start, end - start)
                        values.add(self._value_in(step.key, data, start, file.size))
                        time.sleep(step.rest_s)
            except TiercacheError as error:
                seen.detail = _short(error)
        seen.observed = " and ".join(sorted(values))
        return seen

    def _value_in(self, key: str, data: bytes, start: int, size_bytes: int) -> str:
        return value_in(self._directory, key, data, offset=start, size_bytes=size_bytes)

    def _value_of(self, size_bytes: int) -> str:
        return self._sizes.get(size_bytes, f"unknown bytes: {size_bytes}")

    def _stat(self, step: Step) -> Seen:
        found = self._ns.stat(self._path(step))
        if found.kind is not NameKind.FILE:
            return Seen(observed="a directory")
        return Seen(
            observed=self._value_of(found.size_bytes), token=found.version, stale=found.stale
        )

    def _write(self, step: Step, expected: str) -> Seen:
        path = self._path(step)
        body = body_of(self._directory, step.key, step.value, step.size_bytes)
        if step.kind is Kind.REPLACE:
            return Seen(token=self._ns.write(path, body, if_version=expected).version)
        if step.variant % 3:
            return Seen(token=self._ns.write(path, body, _mode(step)).version)
        with self._ns.open(path, "xb" if step.kind is Kind.CREATE else "wb") as file:
            file.write(body[: len(body) // 2])
            time.sleep(step.rest_s / 3)
            file.write(body[len(body) // 2 :])
        assert file.stat is not None
        return Seen(token=file.stat.version)

    def list(self) -> tuple[dict[str, Seen], bool]:
        try:
            listing = self._ns.list(self._root)
        except NotFound:
            return {}, False
        found = {}
        for entry in listing:
            is_file = entry.kind is NameKind.FILE
            value = self._value_of(entry.size_bytes) if is_file else "a directory"
            found[entry.name] = Seen(observed=value, token=entry.token, stale=listing.stale)
        return found, listing.stale


# -- the origin -----------------------------------------------------------------------------


class OriginClient:
    """One history's objects as the server itself shows them, with no cache between."""

    def __init__(self, store: S3Store, directory: str) -> None:
        self._store = store
        self._directory = directory

    def call(self, step: Step, expected: str) -> Seen:
        del expected
        path = f"{self._directory}/{step.key}"
        try:
            match step.kind:
                case Kind.DELETE:
                    obstore.delete(self._store, path)
                    return Seen()
                case Kind.WRITE | Kind.CREATE:
                    return self._write(path, step)
                case _:
                    data = obstore.get(self._store, path).bytes().to_bytes()
                    value = value_in(self._directory, step.key, data, size_bytes=len(data))
                    return Seen(observed=value)
        except AlreadyExistsError as error:
            return Seen(outcome=Outcome.FAILED, detail=_short(error))
        except FileNotFoundError:
            return Seen(observed=ABSENT)
        except BaseError as error:
            return Seen(outcome=Outcome.UNKNOWN, detail=_short(error))

    def _write(self, path: str, step: Step) -> Seen:
        body = body_of(self._directory, step.key, step.value, step.size_bytes)
        answer = obstore.put(self._store, path, body, mode=_mode(step), use_multipart=False)
        return Seen(token=answer["e_tag"] or "")

    def list(self) -> tuple[dict[str, Seen], bool]:
        raise NotImplementedError("the origin's client lists nothing")


# -- a process ------------------------------------------------------------------------------


class Player:
    """A client of every history it is told of, each on a thread of its own, in this process."""

    def __init__(self, begin: Begin, *, ns: Namespace | None = None) -> None:
        """``ns`` is used instead of one of the settings' own, and left open."""
        self.begin = begin
        self._ns = ns
        self._store: S3Store | None = None
        if begin.site == ORIGIN:
            self._store = S3Store(
                begin.bucket,
                endpoint=begin.endpoint,
                region=begin.region,
                virtual_hosted_style_request=False,
                client_options={"allow_http": True, "timeout": "10s"},
                # A write sent twice could take effect twice: another history than the one told.
                retry_config={"max_retries": 0},
            )
        elif ns is None:
            assert begin.settings is not None
            self._ns = Namespace(begin.settings)

    def play(self, assignment: Assignment) -> Report:
        """Do this process's part of one history."""
        begin = self.begin
        all_steps = programs(assignment.seed, begin.workload)
        client: Client
        if self._store is not None:
            client = OriginClient(self._store, assignment.directory)
        else:
            assert self._ns is not None
            client = SiteClient(self._ns, begin.mount, assignment.directory, sizes_of(all_steps))
        recorder = Recorder(begin.process, begin.site, client)
        recorder.run(all_steps[begin.process], begin.workload.keys)
        return Report(directory=assignment.directory, operations=tuple(recorder.operations))

    def close(self) -> None:
        if self._ns is not None and self.begin.settings is not None:
            self._ns.close()


def main() -> None:
    """Serve one owner, until it closes standard input."""
    lines = sys.stdin.buffer
    player = Player(msgspec.json.decode(lines.readline(), type=Begin))
    output = threading.Lock()

    def work(assignment: Assignment) -> None:
        report = msgspec.json.encode(player.play(assignment))
        with output:
            sys.stdout.buffer.write(report + b"\n")
            sys.stdout.buffer.flush()

    for line in lines:
        assignment = msgspec.json.decode(line, type=Assignment)
        thread = threading.Thread(target=work, args=(assignment,), daemon=True)
        thread.start()
    # The owner has gone or has all it asked for; what still runs serves nobody.
    player.close()


if __name__ == "__main__":
    main()
