"""Faults planted in the engine: each is caught by its checker, and the same seeds pass without it.

The sites' engines run in this process, so that a patch reaches them.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import pytest

from tiercache import namespace as namespace_module
from tiercache.agent import names as names_module
from tiercache.agent.mounts import Located
from tiercache.agent.names import Names
from tiercache.client import names as client_names
from tiercache.errors import AlreadyExists, PreconditionFailed
from tiercache.model import Consistency, Kind, ObjectInfo
from tiercache.origins.obstore_origin import ObstoreOrigin
from tiercache.origins.resilient import ResilientOrigin
from tiercache.policy import freshness
from tiercache.ports import Condition, Fetched, IfAbsent
from tiercache.settings import MountSettings
from tiercache.testing.consistency.modes import MODES
from tiercache.testing.consistency.operations import Kind as Call
from tiercache.testing.consistency.programs import Workload
from tiercache.testing.consistency.runner import Lab, Outcomes, Plan, summary
from tiercache.testing.object_servers import ObjectServer, S3Server

Patch = pytest.MonkeyPatch
Run = Callable[[], Outcomes]


# -- the faults -----------------------------------------------------------------------------


def ignore_the_negative_ttl(patch: Patch) -> None:
    """Absence holds for good."""
    until = freshness.fresh_until_s

    def forever(mount: MountSettings, *, kind: Kind, validated_s: float, same_boot: bool) -> float:
        if kind is Kind.ABSENT:
            return inf
        return until(mount, kind=kind, validated_s=validated_s, same_boot=same_boot)

    patch_freshness(patch, forever)


def patch_freshness(patch: Patch, until: Callable[..., float]) -> None:
    for module in (names_module, client_names, namespace_module):
        patch.setattr(module, "fresh_until_s", until)


def stamp_the_answer(patch: Patch) -> None:
    """The time to live counts from when the answer came, not from when it was asked for."""

    async def ask(self: Names, located: Located) -> Any:
        kind, info = await self._identify(located)
        record = self.learn(located, kind, info, self._clock.now())
        await self._keep()
        return record

    patch.setattr(Names, "_ask", ask)


def trust_any_version(patch: Patch) -> None:
    """A ranged GET takes what comes, without If-Match and without a look at its token."""
    get = ObstoreOrigin.get

    async def careless(
        self: ObstoreOrigin,
        key: str,
        *,
        start: int = 0,
        end: int | None = None,
        token: str | None = None,
    ) -> Fetched:
        del token
        return await get(self, key, start=start, end=end, token=None)

    patch.setattr(ObstoreOrigin, "get", careless)


def take_a_lost_answer_for_failure(patch: Patch) -> None:
    """A write whose answer was lost, repeated and refused is a conflict: with itself."""

    async def settle(
        self: ResilientOrigin, key: str, condition: Condition, write_id: str
    ) -> ObjectInfo | None:
        del self, write_id
        if isinstance(condition, IfAbsent):
            raise AlreadyExists("an object is there already", path=key)
        raise PreconditionFailed("the object is another version", path=key)

    patch.setattr(ResilientOrigin, "_settle_put", settle)


def serve_without_asking(patch: Patch) -> None:
    """What a strong mount knows it serves for a while."""
    until = freshness.fresh_until_s

    def cached(mount: MountSettings, *, kind: Kind, validated_s: float, same_boot: bool) -> float:
        known = until(mount, kind=kind, validated_s=validated_s, same_boot=same_boot)
        strong = mount.consistency is Consistency.STRONG
        return validated_s + mount.ttl_s if strong and kind is Kind.FILE else known

    patch_freshness(patch, cached)


def share_an_earlier_request(patch: Patch) -> None:
    """An open takes the answer of a HEAD that was sent before it."""
    head = Names._head

    def shared(self: Names, located: Located, since_s: float) -> Any:
        del since_s
        return head(self, located, -inf)

    patch.setattr(Names, "_head", shared)


# -- where they show ------------------------------------------------------------------------

LOOKS = {Call.STAT: 50, Call.HANDLE: 20, Call.READ: 20, Call.WRITE: 1}
CHANGES = {Call.WRITE: 60, Call.DELETE: 20, Call.CREATE: 20}
LARGE = Workload(
    steps=10,
    keys=("k0",),
    pause_s=0.15,
    site_mix={Call.HANDLE: 60, Call.READ: 30},
    origin_mix={Call.WRITE: 100},
    smallest_bytes=270_000,
)
CREATORS = Workload(
    site_mix={Call.CREATE: 40, Call.REPLACE: 10, Call.READ: 20, Call.DELETE: 20}, faults=4
)
SLOW = Workload(steps=14, pause_s=0.15, site_mix=LOOKS, origin_mix=CHANGES, faults=4)

FAULTS: dict[str, tuple[Callable[[Patch], None], str, Workload, str]] = {
    "negative ttl ignored": (ignore_the_negative_ttl, "eventual", SLOW, "the absence had been"),
    "ttl from the answer": (stamp_the_answer, "eventual", SLOW, "had been changed"),
    "any version taken": (trust_any_version, "eventual", LARGE, "no value that was written"),
    "lost answer a failure": (
        take_a_lost_answer_for_failure,
        "close-to-open",
        CREATORS,
        "reported as failed|no order",
    ),
    "served without asking": (serve_without_asking, "strong", SLOW, "no order"),
    "earlier request shared": (share_an_earlier_request, "close-to-open", SLOW, "had been changed"),
}
HISTORIES = 16
SEED = 100


@pytest.fixture(params=FAULTS)
def planted(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(
    planted: str, s3: S3Server, new_bucket: Callable[[ObjectServer], str], tmp_path: Path
) -> Callable[[str], Outcomes]:
    _, mode, workload, _ = FAULTS[planted]
    plan = Plan(
        mode=MODES[mode],
        first_seed=SEED,
        histories=HISTORIES,
        at_once=HISTORIES,
        storms=False,
        workload=workload,
    )

    def run_once(name: str) -> Outcomes:
        directory = tmp_path / name
        with Lab(s3, new_bucket(s3), directory, plan, embedded=True) as lab:
            return lab.run()

    return run_once


def test_a_planted_fault_is_caught(
    planted: str, run: Callable[[str], Outcomes], monkeypatch: Patch
) -> None:
    plant, mode, _, said = FAULTS[planted]
    whole = run("whole")
    assert not whole.bad, summary(mode, whole)
    with monkeypatch.context() as patch:
        plant(patch)
        broken = run("broken")
    rules = {found.rule for judgement in broken.bad for found in judgement.violations}
    assert any(part in rule for rule in rules for part in said.split("|")), rules
