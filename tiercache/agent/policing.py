"""The policy in force: where its text comes from, what was set by hand over it, what it comes to
now. docs/qos.md is the contract, docs/format.md that of the files.

A text comes from the file that ``qos.policy`` names, which is looked at every second, or else from
``apply``; it is taken over whole or not at all. The last good text is kept in the cache directory,
so that an agent that starts again has a policy even where the file is broken or out of reach.
Files are read and written on a thread; all else is owned by the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from tiercache.agent import kept
from tiercache.agent.audit import Audit, told
from tiercache.agent.calibration import Calibration
from tiercache.clock import Clock
from tiercache.errors import ConfigError, FormatError, TiercacheError
from tiercache.policy.qos import Plan, Rates

if TYPE_CHECKING:
    from tiercache.policy.qos_rules import Override, Policy
    from tiercache.policy.qos_schedule import Moment

log = logging.getLogger("tiercache.agent")

# A policy of a hundred identities is ~20 KiB.
MAX_POLICY_BYTES = 64 * 1024
MAX_OVERRIDES_BYTES = 16 * 1024
# Clocks may be set, and hours change in spring: the plan is looked at this often at least.
REPLAN_S = 60.0
# A file that was written is in force after this at most.
LOOK_S = 1.0

T = TypeVar("T")
Stamp = tuple[int, int, int, int]


class Language(Protocol):
    """How policies are written: ``config.qos_policy``."""

    def parse_policy(
        self, text: str, *, where: str, node_rates: Rates = ..., cache_bytes: int | None = ...
    ) -> Policy:
        """Raises ConfigError, also for what a node of these rates and this cache cannot keep."""
        ...

    def parse_override(
        self, identity: str, assignment: str, until_unix_s: float | None = ...
    ) -> Override:
        """Raises ConfigError."""
        ...

    def check_overrides(
        self,
        policy: Policy,
        overrides: Sequence[Override],
        *,
        node_rates: Rates,
        cache_bytes: int | None,
    ) -> None:
        """Raises ConfigError where a policy cannot be kept with what is set by hand over it."""
        ...

    def differences(self, old: Policy | None, new: Policy) -> tuple[str, ...]:
        """What ``new`` says otherwise than ``old``, or than nothing at all."""
        ...


class KeptOverride(msgspec.Struct, frozen=True):
    """A line of ``qos-overrides.json``: ``assignment`` is "read.limit=200MB/s"."""

    identity: str
    assignment: str
    until_unix_s: float | None = None


class KeptOverrides(msgspec.Struct, frozen=True):
    version: int
    overrides: tuple[KeptOverride, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is in force: nothing where ``policy`` is None. ``source`` is "file" or "applied"."""

    policy: Policy | None = None
    text: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Files: ``configured`` is the policy that qos.policy names, "" for none; the others lie in
    the cache directory."""

    configured: str
    applied: Path
    last_good: Path
    overrides: Path
    calibration: Path
    audit: Path


def _nothing() -> Rates:
    return 0.0, 0.0, 0.0


class Policing:
    """``changed`` is called with the policy and its plan whenever they are others than before."""

    def __init__(
        self,
        places: Places,
        language: Language,
        clock: Clock,
        executor: Executor,
        calibration: Calibration,
        audit: Audit,
        changed: Callable[[Policy | None, Plan | None], None],
    ) -> None:
        self._places = places
        self._language = language
        self._clock = clock
        self._executor = executor
        self._calibration = calibration
        self._audit = audit
        self._changed = changed
        self.standing = Standing()
        self.error = ""
        self.since_unix_s = 0.0
        self.cache_bytes: int | None = None
        # Set by who counts: tokens that everybody has used since the agent started.
        self.used: Callable[[], Rates] = _nothing
        self._seen: tuple[float, Rates] = (clock.now(), _nothing())
        # Tokens a second, at the last look.
        self._delivered = _nothing()
        self._overrides: tuple[Override, ...] = ()
        self._plan: Plan | None = None
        self._stamp: Stamp | None = None
        self._due_s = 0.0
        # What was last told, so that nobody is told the same twice.
        self._told: Policy | None = None
        self._watcher: asyncio.Task[None] | None = None
        # Changes by hand come one after the other.
        self._lock = asyncio.Lock()

    @property
    def source(self) -> str:
        """Return the file in force, "applied" for what was applied, "" for no policy."""
        if self.standing.policy is None:
            return ""
        return self._places.configured if self.standing.source == "file" else "applied"

    @property
    def overrides(self) -> tuple[Override, ...]:
        """What is set by hand now."""
        if not self._overrides:
            return ()
        from tiercache.policy.qos_rules import overrides_in_force

        return overrides_in_force(self._overrides, self._clock.unix())

    # -- life -------------------------------------------------------------------------------

    def load(self) -> None:
        """Take over what stood when the last agent ended, and the file's text of now. Blocks; to
        be called before the loop serves anybody."""
        self._calibration.load()
        self._load_overrides()
        if not self._places.configured:
            self._load_kept(self._places.applied, "applied")
        else:
            self._stamp = self._stamp_of_file()
            try:
                self.standing = self._parsed(self._read_file(), "file", is_new=False)
                kept.publish(self._places.last_good, self.standing.text.encode())
            except (TiercacheError, OSError) as error:
                self._refuse_file(error)
                if self.standing.policy is None:
                    self._load_kept(self._places.last_good, "file")
        self.replan()

    def _load_kept(self, path: Path, source: str) -> None:
        try:
            data = kept.read(path, MAX_POLICY_BYTES)
            if data is not None:
                self.standing = self._parsed(data.decode(), source, is_new=False)
        except (TiercacheError, OSError, UnicodeDecodeError) as error:
            self.error = self.error or f"{path}: {error}"
            log.error("no QoS policy is in force: %s", error)

    def _load_overrides(self) -> None:
        path = self._places.overrides
        try:
            data = kept.read(path, MAX_OVERRIDES_BYTES)
            if data is None:
                return
            lines = msgspec.json.decode(data, type=KeptOverrides)
            if lines.version != 1:
                raise FormatError(f"version {lines.version}, this reads 1", path=str(path))
            self._overrides = tuple(
                self._language.parse_override(one.identity, one.assignment, one.until_unix_s)
                for one in lines.overrides
            )
        except (TiercacheError, OSError, msgspec.DecodeError) as error:
            self.error = f"{path}: {error}"
            log.error("what was set by hand is lost: %s", error)

    def start(self) -> None:
        """Begin to watch."""
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except Exception:  # the task's top: a policy nobody watches any more would be worse
                log.exception("looking after the QoS policy failed")

    async def look(self) -> None:
        """Take over a changed file, drop what has expired, begin and end schedules; to be called
        every second."""
        if self._places.configured:
            stamp = await self._on_thread(self._stamp_of_file)
            if stamp != self._stamp:
                async with self._lock:
                    self._stamp = stamp
                    await self._reload()
        if self._clock.now() >= self._due_s or len(self.overrides) < len(self._overrides):
            self._overrides = self.overrides
            self.replan()
        node = None if self.standing.policy is None else self.standing.policy.node
        if node is not None and self._calibration.measured is None:
            if node.read is None or node.write is None:
                await self._calibration.measure()
                self.replan()
        if node is not None:
            await self._learn()
        await self._audit.flush()

    async def _learn(self) -> None:
        """Let what the node delivered at this look and the last correct what was measured of it:
        in one alone, a large object that is paid at once looks as if it had been delivered."""
        now_s, used = self._clock.now(), self.used()
        (seen_s, seen), self._seen = self._seen, (now_s, used)
        passed_s = now_s - seen_s
        before, self._delivered = self._delivered, _nothing()
        # A look that came late or early says less of a rate than the bursts at its ends.
        if not LOOK_S / 2 < passed_s < 2 * LOOK_S:
            return
        read, write, operations = (
            (now - then) / passed_s for now, then in zip(used, seen, strict=True)
        )
        self._delivered = read, write, operations
        read, write, operations = map(min, before, self._delivered)
        if await self._calibration.learn((read, write, operations)):
            self.replan()

    async def _reload(self) -> None:
        try:
            text = await self._on_thread(self._read_file)
            is_new = text != self.standing.text
            standing = self._parsed(text, "file", is_new=is_new)
        except (TiercacheError, OSError) as error:
            self._refuse_file(error)
            return
        self.error = ""
        if not is_new:
            return
        differences = self.differences(standing.text, self._places.configured)
        await self._take_over(standing)
        self._audit.note("reload", file=self._places.configured, differences=told(differences))

    def _refuse_file(self, error: Exception) -> None:
        path = self._places.configured
        text = str(error)
        self.error = text if path in text else f"{path}: {text}"
        log.error("the QoS policy stays as it was: %s", self.error)
        self._audit.note("reload", file=path, refused=text)

    async def _take_over(self, standing: Standing) -> None:
        """Keep the text for the next agent and put it in force; where it cannot be kept, that is
        logged and shown, and it is in force all the same."""
        path = self._places.applied if standing.source == "applied" else self._places.last_good
        self.standing = standing
        try:
            await self._on_thread(lambda: kept.publish(path, standing.text.encode()))
        except OSError as error:
            self.error = f"{path}: not kept for the next agent: {error}"
            log.error("%s", self.error)
        self.replan()

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _stamp_of_file(self) -> Stamp | None:
        try:
            found = os.stat(self._places.configured)
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def _read_file(self) -> str:
        path = Path(self._places.configured)
        data = kept.read(path, MAX_POLICY_BYTES)
        if data is None:
            raise ConfigError(
                "no such file", path=str(path), remedy="write it, or leave out qos.policy"
            )
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"not UTF-8: {error}", path=str(path)) from error

    def _parsed(self, text: str, source: str, *, is_new: bool) -> Standing:
        """Read a text. Only a new one is held against what the node delivers: one that stood
        before stands on a node that has become slower, with its reservations cut (``plan``)."""
        where = self._places.configured if source == "file" else str(self._places.applied)
        if is_new:
            policy = self._new_policy(text, where)
        else:
            policy = self._language.parse_policy(text, where=where)
        return Standing(policy=policy, text=text, source=source)

    def _new_policy(self, text: str, where: str) -> Policy:
        return self._language.parse_policy(
            text, where=where, node_rates=self._calibration.rates, cache_bytes=self.cache_bytes
        )

    # -- plans ------------------------------------------------------------------------------

    def moment(self) -> Moment:
        from tiercache.policy.qos_schedule import Moment

        local = time.localtime(self._clock.unix())
        return Moment(
            weekday=local.tm_wday, minute=local.tm_hour * 60 + local.tm_min, second=local.tm_sec
        )

    def plan_of(self, policy: Policy, overrides: Iterable[Override]) -> Plan:
        """Return what a policy would come to now."""
        return policy.plan(
            self.moment(), self._calibration.rates, tuple(overrides), cache_bytes=self.cache_bytes
        )

    def replan(self) -> None:
        """Work out what holds now and tell, if it is another policy or plan than before."""
        policy, plan = self.standing.policy, None
        due_s = REPLAN_S
        if policy is not None:
            plan = self.plan_of(policy, self.overrides)
            change_s = policy.next_change_s(self.moment())
            due_s = min(REPLAN_S, REPLAN_S if change_s is None else change_s)
        self._due_s = self._clock.now() + due_s
        if plan != self._plan or policy is not self._told:
            self._plan, self._told = plan, policy
            self.since_unix_s = self._clock.unix()
            self._changed(policy, plan)

    # -- by hand ----------------------------------------------------------------------------

    def check(self, text: str, file: str) -> Policy:
        """Return the policy of a text that may be applied. Raises ConfigError."""
        if len(text.encode()) > MAX_POLICY_BYTES:
            raise ConfigError(
                f"the policy is longer than {MAX_POLICY_BYTES} bytes", path=file or "policy"
            )
        return self._new_policy(text, file or "policy")

    def differences(self, text: str, file: str) -> tuple[str, ...]:
        """Return what a text says otherwise than the policy in force. Raises ConfigError."""
        new = self.check(text, file)
        return self._language.differences(self.standing.policy, new)

    async def apply(self, text: str, file: str) -> None:
        """Put a text in force. Raises ConfigError for one that cannot be, and where a file is
        configured that says otherwise."""
        policy = self.check(text, file)
        async with self._lock:
            if not self._places.configured:
                self.error = ""
                if text != self.standing.text:
                    await self._take_over(Standing(policy=policy, text=text, source="applied"))
                return
            try:
                configured = await self._on_thread(self._read_file)
            except (TiercacheError, OSError):
                configured = ""
            if configured != text:
                raise ConfigError(
                    f"the policy in force is the file {self._places.configured}, as qos.policy "
                    "says, and not what is applied",
                    path=file,
                    remedy="write the file instead: it is taken over within a second",
                )
            self._stamp = await self._on_thread(self._stamp_of_file)
            await self._reload()

    async def set_values(self, identity: str, values: dict[str, str], for_s: float | None) -> None:
        """Set values over the policy in force. Raises ConfigError, changing nothing."""
        if for_s is not None and not for_s > 0:
            raise ConfigError(
                f"{for_s} s would end at once", remedy="give a time above 0, or unset it instead"
            )
        until_s = None if for_s is None else self._clock.unix() + for_s
        new = [
            self._language.parse_override(identity, f"{key}={value}", until_s)
            for key, value in values.items()
        ]
        replaced = {(one.identity, one.key) for one in new}
        async with self._lock:
            kept_on = [one for one in self.overrides if (one.identity, one.key) not in replaced]
            assert self.standing.policy is not None
            self._language.check_overrides(
                self.standing.policy,
                (*kept_on, *new),
                node_rates=self._calibration.rates,
                cache_bytes=self.cache_bytes,
            )
            await self._keep_overrides((*kept_on, *new))

    async def unset_values(self, identity: str, keys: tuple[str, ...]) -> None:
        """Undo what was set, all of an identity without keys."""
        async with self._lock:
            left = [
                one
                for one in self.overrides
                if one.identity != identity or (keys and key_of(one) not in keys)
            ]
            await self._keep_overrides(tuple(left))

    async def _keep_overrides(self, overrides: tuple[Override, ...]) -> None:
        lines = KeptOverrides(
            1, tuple(KeptOverride(one.identity, one.text, one.until_unix_s) for one in overrides)
        )
        data = msgspec.json.encode(lines)
        if len(data) > MAX_OVERRIDES_BYTES:
            raise ConfigError(
                "too much is set by hand",
                remedy="write it into the policy, or unset some of it",
            )
        await self._on_thread(lambda: kept.publish(self._places.overrides, data))
        self._overrides = overrides
        self.replan()


def key_of(override: Override) -> str:
    """Return the key as it is written."""
    return override.text.partition("=")[0]
