"""What a QoS policy costs a hit: none in force, and one in force that nobody has to wait for."""

from __future__ import annotations

import ast
import inspect
import statistics
import textwrap
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.harness import Outcome, Race, Role
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

Read = Callable[[Reader, str, int, int], bytes]


@measure("qos-hit-cost")
def hit_cost(lab: Lab, workload: Workload) -> Outcome:
    """The same reads by the hit path as it is, by the hit path without what the policy added to it,
    and under a policy whose limits are never reached; of one byte, where the copy of a page does
    not drown the difference, and of 64 KiB."""
    block = workload.access.block_bytes
    with ExitStack() as stack:
        off = stack.enter_context(governed(lab, workload, free=True))
        on = stack.enter_context(governed(lab, workload))
        rng = lab.random()
        places = [
            rng.randrange(off.length_bytes // block) * block
            for _ in range(workload.load.operations)
        ]

        def loop(reader: Reader, path: str, read: Read, length: int) -> Callable[[], None]:
            def run() -> None:
                for place in places:
                    read(reader, path, place, length)

            return run

        race = Race(amount=len(places), unit="µs", per="op")
        for rig in (off, on):
            warm(rig.namespace, rig.path)
        ways: tuple[tuple[str, Rig, Read, Role], ...] = (
            (BEFORE, off, without(Reader.read, ATTRIBUTES), "bound"),
            (OFF, off, Reader.read, "ours"),
            (COPY, off, without(Reader.read, {}), "ours"),
            (ON, on, Reader.read, "ours"),
        )
        for length, work in ((1, TINY), (block, WHOLE)):
            for name, rig, read, role in ways:
                if length == 1 or name in (OFF, ON):
                    run = loop(rig.namespace.reader(), rig.path, read, length)
                    race.add(name, role, run, work=work, bytes=len(places) * length)
        race.run(workload.load.rounds, warm_up=workload.load.warm_up)
    values = {(one.name, one.work): one.values for one in race.figures}
    return Outcome(
        figures=race.figures,
        numbers={
            OFF_COST: _difference(values[OFF, TINY], values[BEFORE, TINY]),
            ON_COST: _difference(values[ON, TINY], values[OFF, TINY]),
            ON_RATIO: statistics.median(
                a / b for a, b in zip(values[ON, WHOLE], values[OFF, WHOLE], strict=True)
            ),
            NOISE: _difference(values[COPY, TINY], values[OFF, TINY]),
        },
        sizes={"reads_a_round": len(places), "rounds": workload.load.rounds},
        notes=(
            "medians of the rounds' differences, all four in turns; before: the same function "
            "compiled without what it asks of a policy; the copy: compiled anew as it is, whose "
            "difference is what this method cannot see",
        ),
    )


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
