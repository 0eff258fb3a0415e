"""RocksDB by rocksdict: small objects as values of an embedded store on the same device.

It has no origin: somebody has put the objects there before. Values are incompressible, so
nothing is compressed; the rest is as RocksDB sets it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks import page_cache
from benchmarks.contenders.contender import Contender, Object, Recipe, missing_package
from benchmarks.harness import Role
from benchmarks.registry import contender
from benchmarks.workload import State, Workload
from tiercache.units import MIB

if TYPE_CHECKING:
    from benchmarks.lab import Lab

VALUE_BYTES = MIB  # the largest it is asked to hold


def _options() -> Any:
    from rocksdict import DBCompressionType, Options

    options = Options(raw_mode=True)
    options.set_compression_type(DBCompressionType.none())
    return options


@contender("rocksdict")
class RocksDict(Contender):
    name = "rocksdict"
    role: Role = "rival"

    def __init__(self, lab: Lab, url: str) -> None:
        self._lab = lab
        self._folder = lab.folder("rocksdb")
        self._filled: tuple[str, ...] = ()

    def why_missing(self) -> str:
        return missing_package("rocksdict")

    def why_not(self, workload: Workload) -> str:
        if workload.state not in ("hot", "nvme"):
            return "an embedded store: it knows no origin to be cold at"
        if workload.dataset.object_bytes > VALUE_BYTES:
            return "a store of small values"
        return ""

    def prepare(self, objects: Sequence[Object], state: State) -> None:
        wanted = tuple(one.key for one in objects)
        if wanted != self._filled:
            self._fill(objects)
            self._filled = wanted
        if state == "nvme":
            page_cache.drop_below(self._folder)

    def _fill(self, objects: Sequence[Object]) -> None:
        from rocksdict import Rdict

        from benchmarks.contenders.plain import files

        source = files(self._lab, objects)
        database = Rdict(str(self._folder), options=_options())
        try:
            for one in objects:
                database[one.key.encode()] = (source / one.key).read_bytes()
            database.flush()
        finally:
            database.close()

    def recipe(self) -> Recipe:
        return Recipe(RocksReader, (str(self._folder),))

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


class RocksReader:
    def __init__(self, folder: str) -> None:
        from rocksdict import AccessType, Rdict

        self._database = Rdict(folder, options=_options(), access_type=AccessType.read_only(False))

    def read(self, key: str, offset: int, length: int) -> object:
        value = self._database[key.encode()]
        assert isinstance(value, bytes)
        return value if length == len(value) else value[offset : offset + length]

    def close(self) -> None:
        self._database.close()
