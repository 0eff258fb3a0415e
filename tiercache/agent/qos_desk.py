"""Where the QoS policy is asked about and changed: ``QosQuery`` and ``QosChange``.

Arguments and answers are ``qos_reports``. Owned by the event loop.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from typing import Any, TypeVar

import msgspec

from tiercache import wire
from tiercache.agent.accounts import Account, find_claimant
from tiercache.agent.audit import Audit, told
from tiercache.agent.calibration import Calibration
from tiercache.agent.flights import endpoint_of
from tiercache.agent.governing import Governing
from tiercache.agent.mounts import Mounts
from tiercache.agent.policing import Policing, key_of
from tiercache.agent.qos_answers import (
    Counts,
    Holding,
    InForce,
    buckets,
    check_known,
    claims,
    class_now,
    identity_now,
    is_below,
    next_change_s,
    overrides_now,
    rates_now,
    schedules_now,
    sums_of,
    uses,
)
from tiercache.agent.quotas import QuotaDesk
from tiercache.clock import Clock
from tiercache.errors import AccessDenied, FormatError, NotFound, TiercacheError, Unsupported
from tiercache.model import BackendStatus, BackendWait
from tiercache.policy.qos import Claimant
from tiercache.qos_reports import (
    Apply,
    Changed,
    Explain,
    Explained,
    IdentityUse,
    SetValues,
    Show,
    Top,
    UnsetValues,
)

T = TypeVar("T", bound=msgspec.Struct)


class QosDesk:
    """Answers questions and makes changes. Set after construction by who knows: ``backends``, the
    buckets of the origins, and ``waits``, who waits there."""

    def __init__(
        self,
        governing: Governing,
        policing: Policing,
        calibration: Calibration,
        audit: Audit,
        mounts: Mounts,
        clock: Clock,
        quotas: QuotaDesk,
    ) -> None:
        self._governing = governing
        self._policing = policing
        self._calibration = calibration
        self._audit = audit
        self._mounts = mounts
        self._clock = clock
        self._quotas = quotas
        self.holding: Holding = quotas.holding
        self.backends: Callable[[], tuple[BackendStatus, ...]] = tuple
        self.waits: Callable[[], Sequence[BackendWait]] = tuple
        # Connections that ask for data, whose claimants "explain" tells of.
        self.accounts: Callable[[], list[Account]] = list
        self._changes: dict[str, Callable[[Account, bytes], Awaitable[Changed]]] = {
            "apply": self._apply,
            "set": self._set,
            "unset": self._unset,
            "calibrate": self._calibrate,
            "quota-repair": self._repair_quotas,
        }

    # -- questions --------------------------------------------------------------------------

    async def query(self, request: wire.QosQuery) -> wire.Status:
        match request.what:
            case "show":
                return _answer(self.show())
            case "top":
                return _answer(self.top())
            case "explain":
                return _answer(self._explain(_arguments(request.arguments, Explain)))
            case "quotas":
                return _answer(self._quotas.quotas())
            case "quota-check":
                return _answer(await self._quotas.check())
            case _:
                raise Unsupported(f"this agent does not know the question {request.what!r}")

    def _force(self) -> InForce | None:
        policy, plan = self._governing.policy, self._governing.plan
        if policy is None or plan is None:
            return None
        return InForce(
            policy=policy,
            plan=plan,
            moment=self._policing.moment(),
            now_unix_s=self._clock.unix(),
            overrides=self._policing.overrides,
        )

    def show(self) -> Show:
        force, policing = self._force(), self._policing
        if force is None:
            return Show(error=policing.error)
        return Show(
            generation=self._governing.generation,
            source=policing.source,
            error=policing.error,
            profile=force.policy.profile,
            text=policing.standing.text,
            node=rates_now(force.plan.node),
            measured=rates_now(self._calibration.rates),
            measured_unix_s=self._calibration.measured_unix_s,
            classes=tuple(class_now(one) for one in force.plan.classes),
            identities=tuple(
                identity_now(force, one, self.holding) for one in force.plan.identities
            ),
            overrides=overrides_now(force),
            schedules=schedules_now(force),
            backends=self.backends(),
            next_change_s=next_change_s(force),
        )

    def top(self) -> Top:
        governor, plan = self._governing.governor, self._governing.plan
        if governor is None or plan is None:
            return Top()
        self._governing.turn()
        return Top(
            generation=self._governing.generation,
            node=rates_now(plan.node),
            used=rates_now(sums_of(governor.report())),
            identities=self._uses(),
            backends=self.backends(),
        )

    def _uses(self) -> tuple[IdentityUse, ...]:
        governor, plan = self._governing.governor, self._governing.plan
        if governor is None or plan is None:
            return ()
        waits = self.waits()
        return uses(
            plan.node,
            governor.report(),
            lambda identity: self._counts(identity, waits),
            self.holding,
        )

    def _counts(self, identity: str, waits: Sequence[BackendWait]) -> Counts:
        tally = self._governing.admission.tally(identity)
        return Counts(
            processes=self._governing.processes(identity),
            waits=tally.waits,
            waited_s=tally.waited_s,
            throttled=tally.throttled,
            read_bytes=tally.read_bytes,
            written_bytes=tally.written_bytes,
            operations=tally.operations,
            is_full=self._governing.admission.is_full(identity),
            backend=tuple(one for one in waits if one.identity == identity),
        )

    def _explain(self, asked: Explain) -> Explained:
        plan = check_known(self._governing.plan, asked.identity)
        force, governor = self._force(), self._governing.governor
        assert force is not None and governor is not None
        self._governing.turn()
        path = self._spelt(asked.path)
        use = next(one for one in self._uses() if one.identity == plan.name)
        report = next(one for one in governor.report() if one.name == plan.name)
        of_class = force.class_of(plan)
        return Explained(
            generation=self._governing.generation,
            path=path,
            identity=identity_now(force, plan, self.holding),
            of_class=class_now(of_class),
            use=use,
            claims=claims(force.policy, plan.name, path, self._claimants()),
            schedules=schedules_now(force, (of_class.name, plan.name)),
            overrides=overrides_now(force, plan.name),
            buckets=buckets(force, plan, report),
            backends=self._backends_of(path),
        )

    def _spelt(self, path: str) -> str:
        """Return a path as its mount spells it; one of no mount as it was given."""
        try:
            return self._mounts.locate(path).path
        except TiercacheError:
            return path

    def _claimants(self) -> list[tuple[int, Claimant]]:
        return [
            (account.pid, account.claimant)
            for account in self.accounts()
            if account.claimant is not None
        ]

    def _backends_of(self, path: str) -> tuple[BackendStatus, ...]:
        """Return the backends that a miss at a path pays to."""
        try:
            located = self._mounts.locate(path)
        except TiercacheError:
            return ()
        place, endpoint = f"{located.origin.url}/{located.key}", endpoint_of(located.origin)
        names = f"endpoint:{endpoint.name}" if endpoint is not None else None
        return tuple(
            one for one in self.backends() if one.scope == names or is_below(place, one.scope)
        )

    def status(self) -> dict[str, Any]:
        """Return the status document's ``qos``."""
        self._governing.turn()
        return {
            "generation": self._governing.generation,
            "source": self._policing.source,
            "error": self._policing.error,
            "identities": [msgspec.to_builtins(one) for one in self._uses()],
            "backends": [msgspec.to_builtins(one) for one in self.backends()],
        }

    # -- changes ----------------------------------------------------------------------------

    async def change(self, account: Account, request: wire.QosChange) -> wire.Status:
        """Make a change and note in the audit log whose it was, also where it is refused.

        Raises AccessDenied, and what the change does.
        """
        make = self._changes.get(request.what)
        if make is None:
            raise Unsupported(f"this agent does not know the change {request.what!r}")
        who = await self._who(account)
        before = self._governing.generation
        try:
            if account.uid not in (os.geteuid(), 0):
                raise AccessDenied("only root and the agent's user may change the QoS policy")
            changed = await make(account, request.arguments)
        except (TiercacheError, OSError) as error:
            self._audit.note(request.what, **who, generation=before, refused=str(error))
            await self._audit.flush()
            raise
        if not changed.dry_run and (changed.generation != before or changed.differences):
            self._audit.note(
                request.what,
                **who,
                before=before,
                generation=changed.generation,
                differences=told(changed.differences),
            )
            await self._audit.flush()
        return _answer(changed)

    async def _who(self, account: Account) -> dict[str, str | int]:
        claimant = await find_claimant(account)
        user = min(claimant.users, key=lambda text: (text.isdecimal(), text))
        return {"pid": account.pid, "uid": account.uid, "user": user}

    def _changed(self, *differences: str) -> Changed:
        plan = self._governing.plan
        return Changed(
            generation=self._governing.generation,
            differences=differences,
            node=rates_now(plan.node if plan is not None else (inf, inf, inf)),
        )

    async def _apply(self, account: Account, raw: bytes) -> Changed:
        asked = _arguments(raw, Apply)
        differences = self._policing.differences(asked.text, asked.file)
        if asked.dry_run:
            return msgspec.structs.replace(self._changed(*differences), dry_run=True)
        await self._policing.apply(asked.text, asked.file)
        return self._changed(*differences)

    async def _set(self, account: Account, raw: bytes) -> Changed:
        asked = _arguments(raw, SetValues)
        check_known(self._governing.plan, asked.identity)
        await self._policing.set_values(asked.identity, asked.values, asked.for_s)
        for_text = "" if asked.for_s is None else f" for {asked.for_s:.0f} s"
        return self._changed(
            *(f"{asked.identity}: {key} = {value}{for_text}" for key, value in asked.values.items())
        )

    async def _unset(self, account: Account, raw: bytes) -> Changed:
        asked = _arguments(raw, UnsetValues)
        ended = [
            one.text
            for one in self._policing.overrides
            if one.identity == asked.identity and (not asked.keys or key_of(one) in asked.keys)
        ]
        if not ended:
            what = f"{', '.join(asked.keys)} is not" if asked.keys else "nothing is"
            raise NotFound(
                f"of {asked.identity!r} {what} set by hand",
                remedy="tiercache qos show lists what is",
            )
        await self._policing.unset_values(asked.identity, asked.keys)
        return self._changed(*(f"{asked.identity}: {text} is unset" for text in ended))

    async def _calibrate(self, account: Account, raw: bytes) -> Changed:
        await self._calibration.measure()
        self._policing.replan()
        return self._changed(*self._calibration.sentences())

    async def _repair_quotas(self, account: Account, raw: bytes) -> Changed:
        check = await self._quotas.check(repair=True)
        return self._changed(
            *(f"{one.identity}: {one.what}: {one.recorded} → {one.found}" for one in check.problems)
        )


def _arguments(raw: bytes, kind: type[T]) -> T:
    """Raises FormatError."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError as error:
        raise FormatError(f"arguments of no {kind.__name__}: {error}") from error


def _answer(document: msgspec.Struct) -> wire.Status:
    return wire.Status(msgspec.json.encode(document))
