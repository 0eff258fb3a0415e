"""The agent's parts that keep to a QoS policy, built and run together."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tiercache.agent.audit import Audit
from tiercache.agent.calibration import Calibration
from tiercache.agent.governing import Governing
from tiercache.agent.mounts import Mounts
from tiercache.agent.pinning import Pinning
from tiercache.agent.plane import Plane
from tiercache.agent.policing import Language, Places, Policing
from tiercache.agent.quotas import QuotaDesk
from tiercache.clock import Clock
from tiercache.policy.ledger import NOBODY
from tiercache.policy.qos import Plan
from tiercache.policy.quotas import capacities_of
from tiercache.ports import Endpoints, LeaseFile, SharedState

if TYPE_CHECKING:
    from tiercache.agent.accounts import Account
    from tiercache.agent.qos_desk import QosDesk


@dataclass(frozen=True, slots=True, kw_only=True)
class QosParts:
    """What compose hands in."""

    leases: LeaseFile
    language: Language
    places: Places


@dataclass(slots=True, kw_only=True)
class QosPlane:
    """Owned by the event loop."""

    # Constant after construction
    governing: Governing
    policing: Policing
    calibration: Calibration
    audit: Audit
    pinning: Pinning
    make_desk: Callable[[], QosDesk]
    # Connections that ask for data; set by who knows them.
    accounts: Callable[[], list[Account]] = list
    _desk: QosDesk | None = None

    @property
    def desk(self) -> QosDesk:
        """Where the policy is asked about and changed: made at the first question."""
        if self._desk is None:
            self._desk = self.make_desk()
            self._desk.accounts = self.accounts
        return self._desk

    def load(self, capacity_bytes: int) -> None:
        """Put in force what stood before, ahead of all work. Blocks."""
        self.calibration.capacity_bytes = capacity_bytes
        self.policing.cache_bytes = capacity_bytes
        self.policing.load()

    def start(self) -> None:
        """Begin to serve: to be called when the agent is about to answer."""
        self.governing.start()
        self.policing.start()

    async def stop(self) -> None:
        await self.policing.stop()
        await self.governing.stop()
        await self.audit.flush()


def build_qos(
    parts: QosParts,
    *,
    state: SharedState,
    plane: Plane,
    mounts: Mounts,
    endpoints: Endpoints,
    clock: Clock,
    executor: Executor,
) -> QosPlane:
    audit = Audit(str(parts.places.audit), clock, executor)
    governing = Governing(parts.leases, state, clock, audit.denied)
    space = plane.space
    calibration = Calibration(
        parts.places.calibration,
        clock,
        executor,
        lambda count: space.reserve(count, identity=NOBODY),
        lambda count: space.ledger.release(count, NOBODY),
    )
    policing = Policing(
        parts.places, parts.language, clock, executor, calibration, audit, governing.keep_to
    )
    policing.used = governing.admission.used

    def make_desk() -> QosDesk:
        from tiercache.agent.qos_desk import QosDesk

        quotas = QuotaDesk(plane)
        desk = QosDesk(governing, policing, calibration, audit, mounts, clock, quotas)
        desk.backends = lambda: tuple(endpoints.limits())
        desk.waits = endpoints.waits
        return desk

    def limit(plan: Plan | None) -> None:
        endpoints.limit(() if plan is None else plan.backends)
        space.set_quotas(capacities_of(plan))

    governing.listeners.append(limit)
    space.victims.reader_of = lambda mark: governing.marked(mark) or NOBODY
    space.books.on_refusal = audit.denied
    return QosPlane(
        governing=governing,
        policing=policing,
        calibration=calibration,
        audit=audit,
        pinning=Pinning(plane, governing),
        make_desk=make_desk,
    )
