"""What a QoS policy costs a hit: none in force, and one in force that nobody has to wait for."""

from __future__ import annotations

import ast
import gc
import inspect
import statistics
import textwrap
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from benchmarks.harness import Figure, Outcome, Role
from benchmarks.lab import Lab
from benchmarks.measures.hot import warm
from benchmarks.qos_rig import Rig, governed
from benchmarks.registry import measure
from benchmarks.workload import Workload
from tiercache.client.reader import Reader

OFF_COST, ON_COST, NOISE = "µs, off − before", "µs, on − off", "µs, one − its copy"
ON_RATIO = "on ÷ off, 64 KiB"
BEFORE, OFF, COPY, ON = "before", "policy off", "policy off, a copy", "policy on"
# The attributes of an entry by which a hit knows of a policy.
ATTRIBUTES = {"pays": None, "mark": 1}
TINY, WHOLE = "1 byte", "64 KiB"
# Of one byte in a third of a millisecond: mostly undisturbed on a machine that is not quiet.
BATCH_READS = 250

Read = Callable[[Reader, str, int, int], bytes]


@measure("qos-hit-cost")
def hit_cost(lab: Lab, workload: Workload) -> Outcome:
    """The same reads by the hit path as it is, by the hit path without what the policy added to it,
    and under a policy whose limits are never reached; of one byte, where the copy of a page does
    not drown the difference, and, off and on, of 64 KiB."""
    block = workload.access.block_bytes
    with ExitStack() as stack:
        off = stack.enter_context(governed(lab, workload, free=True))
        on = stack.enter_context(governed(lab, workload))
        for rig in (off, on):
            warm(rig.namespace, rig.path)
        rng = lab.random()
        places = [rng.randrange(off.length_bytes // block) * block for _ in range(BATCH_READS)]
        ways = (
            Way(BEFORE, "bound", off, without(Reader.read, ATTRIBUTES)),
            Way(OFF, "ours", off, Reader.read),
            Way(COPY, "ours", off, without(Reader.read, {})),
            Way(ON, "ours", on, Reader.read),
        )
        taken = {
            TINY: _interleaved(workload, ways, places, 1),
            WHOLE: _interleaved(workload, (ways[1], ways[3]), places, block),
        }
    tiny, whole = taken[TINY], taken[WHOLE]
    return Outcome(
        figures=tuple(
            Figure(
                name=way.name,
                role=way.role,
                unit="µs",
                values=tuple(map(statistics.median, _shares(values[way.name], workload))),
                work=work,
            )
            for work, values in taken.items()
            for way in ways
            if way.name in values
        ),
        numbers={
            OFF_COST: _difference(tiny[OFF], tiny[BEFORE]),
            ON_COST: _difference(tiny[ON], tiny[OFF]),
            ON_RATIO: statistics.median(a / b for a, b in zip(whole[ON], whole[OFF], strict=True)),
            NOISE: _difference(tiny[COPY], tiny[OFF]),
        },
        sizes={"reads_a_batch": BATCH_READS, "batches": len(tiny[OFF])},
        notes=(
            "batches of all four in turns, each a third of a millisecond; numbers are the medians "
            "of the differences of neighbours. Before: the same function compiled without what it "
            "asks of a policy. The copy: compiled anew as it is; its difference is what this "
            "method cannot see",
        ),
    )


class Way(NamedTuple):
    name: str
    role: Role
    rig: Rig
    read: Read


def _interleaved(
    workload: Workload, ways: Sequence[Way], places: Sequence[int], length: int
) -> dict[str, list[float]]:
    """Return the µs a read of each batch: one of each way, again and again, every other time in
    reverse. What else the machine does in a moment falls on neighbours alike."""
    batches = workload.load.rounds * (workload.load.operations // BATCH_READS)
    taken: dict[str, list[float]] = {way.name: [] for way in ways}
    now = time.perf_counter_ns
    gc.collect()
    gc.disable()
    try:
        for number in range(batches):
            for way in ways[:: 1 if number % 2 == 0 else -1]:
                read, reader, path = way.read, way.rig.namespace.reader(), way.rig.path
                began = now()
                for place in places:
                    read(reader, path, place, length)
                taken[way.name].append((now() - began) / 1e3 / len(places))
    finally:
        gc.enable()
    return taken


def _shares(values: Sequence[float], workload: Workload) -> list[Sequence[float]]:
    """Return the batches of each round."""
    size = len(values) // workload.load.rounds
    return [values[at : at + size] for at in range(0, len(values), size)]


def _difference(values: Sequence[float], others: Sequence[float]) -> float:
    return statistics.median(a - b for a, b in zip(values, others, strict=True))


def without(function: Callable[..., Any], attributes: dict[str, Any]) -> Callable[..., Any]:
    """Return a function as if these attributes were not there: compiled from the same source, less
    the statements that read one whose value here is None; another value stands in its place.
    Raises ValueError for one that the function does not read."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    remover = _Remover(attributes)
    found = ast.fix_missing_locations(remover.visit(tree))
    if missing := attributes.keys() - remover.seen:
        raise ValueError(f"{function.__qualname__} reads no {', '.join(sorted(missing))}")
    names: dict[str, Any] = {}
    code = compile(found, f"<{function.__qualname__}>", "exec")
    exec(code, function.__globals__, names)
    made: Callable[..., Any] = names[function.__name__]
    return made


class _Remover(ast.NodeTransformer):
    """``seen``: which attributes it has met."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        self._attributes = attributes
        self.seen: set[str] = set()

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.AST]:
        if isinstance(node.test, ast.BoolOp):
            left = [one for one in node.test.values if not self._gone(one)]
            if left:
                node.test = ast.BoolOp(node.test.op, left) if len(left) > 1 else left[0]
                return self.generic_visit(node)
        if self._gone(node.test):
            return [self.visit(one) for one in node.orelse]
        return self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        return None if self._gone(node.value) else self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if self._attributes.get(node.attr) is None:
            return self.generic_visit(node)
        self.seen.add(node.attr)
        return ast.Constant(self._attributes[node.attr])

    def _gone(self, tree: ast.AST) -> bool:
        """Whether an expression reads one that is to be left out, or a variable set from it."""
        names = {one.attr for one in ast.walk(tree) if isinstance(one, ast.Attribute)}
        names |= {one.id for one in ast.walk(tree) if isinstance(one, ast.Name)}
        found = {name for name in names if name in self._attributes} - {
            name for name, value in self._attributes.items() if value is not None
        }
        self.seen |= found
        return bool(found)
