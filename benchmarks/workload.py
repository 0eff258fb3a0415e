"""Workloads: what is measured, as TOML files that anyone can read, copy and change.

One file in ``benchmarks/workloads/`` is one workload (docs/benchmarks.md has the schema). Its
``measure`` names the function that runs it; everything it varies stands in the file: data, access
pattern, load, state of the cache, network, contenders, and the bars with the bound that was
expected before the run. A ``[short]`` table overrides values for the gate; a workload without one
is not part of the gate.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from tiercache.errors import ConfigError
from tiercache.units import parse_bytes

FOLDER = Path(__file__).parent / "workloads"

State = Literal["hot", "nvme", "cold", "half-warm"]
Pattern = Literal["random", "sequential", "shuffled", "in-order"]
DatasetKind = Literal["objects", "tar", "parquet", "names"]
Count = Annotated[int, msgspec.Meta(ge=1)]
# "64KiB" in the file, bytes in the program.
Bytes = str | int


class Dataset(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``count`` objects of ``bytes`` each. Equal data sets are made once a run and shared."""

    kind: DatasetKind = "objects"
    count: Count = 1
    bytes: Bytes = "256MiB"

    @property
    def object_bytes(self) -> int:
        return parse_bytes(self.bytes)

    @property
    def total_bytes(self) -> int:
        return self.count * self.object_bytes

    @property
    def folder(self) -> str:
        return f"{self.kind}-{self.count}x{self.object_bytes}"


class Access(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which bytes are read, in which order. ``aligned`` is to pages of 64 KiB."""

    pattern: Pattern = "random"
    block: Bytes = "64KiB"
    aligned: bool = True

    @property
    def block_bytes(self) -> int:
        return parse_bytes(self.block)


class Load(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How hard. ``threads`` and ``processes`` may be lists: each value is measured. A run ends
    after ``operations``, or after ``seconds`` where operations is 0."""

    threads: tuple[Count, ...] = (1,)
    processes: tuple[Count, ...] = (1,)
    operations: int = 0
    seconds: float = 1.0
    rounds: Count = 3
    warm_up: int = 1


class BarSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A promise about one figure.

    ``ours`` names one of our contenders' figures and ``against`` the contenders it is divided by:
    the worst of the ratios counts, those that did not run do not, and where none ran there is no
    bar. Without ``against`` the figure itself counts. ``number`` names, instead, a number that
    the measure returns. ``slack`` is the factor that the gate, on a small and loaded machine,
    allows on top.
    """

    text: str
    ours: str = ""
    against: tuple[str, ...] = ()
    number: str = ""
    at_most: float | None = None
    at_least: float | None = None
    unit: str = "×"
    slack: float = 1.25


class Workload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    title: str
    measure: str
    order: int = 500  # the place in the report
    why: str = ""
    bound: str = ""  # what the machine allows, in words, as expected before the run
    bound_by: tuple[str, ...] = ()  # rivals that are the bound here, where no figure is it by role
    state: State = "hot"
    network: str = ""  # a profile of tiercache.testing.network; empty: no proxy in between
    dataset: Dataset = Dataset()
    access: Access = Access()
    load: Load = Load()
    contenders: tuple[str, ...] = ()
    bar: tuple[BarSpec, ...] = ()
    options: dict[str, int | float | str | bool] = {}  # what this measure alone knows
    short: dict[str, Any] | None = None

    def in_gate(self) -> bool:
        return self.short is not None

    def shortened(self) -> Workload:
        """Return the workload as the gate runs it. Raises ValueError where it does not."""
        if self.short is None:
            raise ValueError(f"{self.name} has no [short] table")
        whole = msgspec.to_builtins(self)
        del whole["short"]
        return msgspec.convert(_merged(whole, self.short), Workload)

    def option(self, name: str, default: int) -> int:
        """Return a whole number; sizes may be written with their unit."""
        value = self.options.get(name, default)
        return parse_bytes(value) if isinstance(value, str) else int(value)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        old = merged.get(name)
        both = isinstance(value, dict) and isinstance(old, dict)
        merged[name] = _merged(old, value) if both and isinstance(old, dict) else value
    return merged


def read(path: Path) -> Workload:
    """Read one file. Raises ConfigError that names the file and what is wrong in it."""
    try:
        found = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Workload)
        for form in (found, found.shortened() if found.in_gate() else found):
            _check(form)
    except (ConfigError, ValueError, msgspec.ValidationError) as error:
        message = error.message if isinstance(error, ConfigError) else str(error)
        raise ConfigError(message, path=str(path), remedy="see docs/benchmarks.md") from error
    return found


def _check(workload: Workload) -> None:
    parse_bytes(workload.dataset.bytes)
    parse_bytes(workload.access.block)
    for bar in workload.bar:
        if bool(bar.ours) == bool(bar.number):
            raise ValueError(f"bar {bar.text!r}: name either ours or number")
        if (bar.at_most is None) == (bar.at_least is None):
            raise ValueError(f"bar {bar.text!r}: say either at_most or at_least")


def read_all(folders: Iterable[Path] = (FOLDER,)) -> dict[str, Workload]:
    """Read every file, in the report's order. Raises ConfigError; file and name must agree."""
    found: dict[str, Workload] = {}
    for path in sorted(file for folder in folders for file in folder.glob("*.toml")):
        workload = read(path)
        if workload.name != path.stem:
            raise ConfigError(f"the file calls its workload {workload.name!r}", path=str(path))
        found[workload.name] = workload
    ordered = sorted(found.values(), key=lambda one: (one.order, one.name))
    return {one.name: one for one in ordered}
