"""The QoS policy of a node: what holds, who gets how much, why somebody waits, and changes.

docs/qos.md is the contract of policies; the answers are values of tiercache.qos_reports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from typing import TypeVar

import msgspec

from tiercache import wire
from tiercache.client.link import Link
from tiercache.errors import ConfigError
from tiercache.qos_reports import (
    Apply,
    Changed,
    Explain,
    Explained,
    QuotaCheck,
    Quotas,
    SetValues,
    Show,
    Top,
    UnsetValues,
)

T = TypeVar("T", bound=msgspec.Struct)


class Qos:
    """What the agent knows of its policy, asked anew at each call. Thread safe.

    Without a policy generations are 0: there are no identities, and no limits.
    """

    def __init__(self, link: Callable[[], Link]) -> None:
        """``link`` returns a link to the agent, and is called for each request."""
        self._link = link

    def show(self) -> Show:
        """Return the policy in force: its text, shares, overrides, schedules and backends."""
        return self._ask(wire.QosQuery("show"), Show)

    def top(self) -> Top:
        """Return who gets how much at the moment, and who waits on what."""
        return self._ask(wire.QosQuery("top"), Top)

    def explain(self, identity: str, path: str) -> Explained:
        """Return why ``identity`` gets what it gets of ``path``: rules, shares, buckets, backends.

        Raises NotFound for an identity that the policy does not have, naming the nearest.
        """
        arguments = Explain(identity=identity, path=path)
        return self._ask(wire.QosQuery("explain", _encoded(arguments)), Explained)

    def apply(self, text: str, *, file: str = "", dry_run: bool = False) -> Changed:
        """Put a policy into force, whole or not at all, and keep it in the cache directory.

        ``text`` is TOML; ``file`` names it in errors. A dry run only says what would change.
        Raises ConfigError for a policy that is refused, and where ``qos.policy`` names the file
        that the agent keeps to: change that one.
        """
        return self._change("apply", Apply(text=text, file=file, dry_run=dry_run), Changed)

    def set(
        self, identity: str, values: Mapping[str, str | float], *, for_s: float | None = None
    ) -> Changed:
        """Override values of an identity, all or none: ``{"read.limit": "200MB/s"}``, as a policy
        writes them. For ``for_s`` seconds, or until ``unset``; a later policy does not end it.

        Raises NotFound for an unknown identity, ConfigError for an unknown key or a bad value, and
        where ``for_s`` is no time above 0.
        """
        if for_s is not None and not isfinite(for_s):  # as JSON neither would end ever
            raise ConfigError(f"{for_s} s is no time", remedy="leave it out for one without end")
        written = {key: str(value) for key, value in values.items()}
        return self._change(
            "set", SetValues(identity=identity, values=written, for_s=for_s), Changed
        )

    def unset(self, identity: str, keys: Iterable[str] = ()) -> Changed:
        """End overrides of an identity: of these keys, or all. Raises NotFound where there are
        none."""
        return self._change("unset", UnsetValues(identity=identity, keys=tuple(keys)), Changed)

    def calibrate(self) -> Changed:
        """Measure what the node delivers, which "auto" in a policy stands for. Takes some seconds
        and reads and writes in the cache directory as fast as it can."""
        return self._ask(wire.QosChange("calibrate"), Changed)

    def quotas(self) -> Quotas:
        """Return what each identity holds of the cache, and its bounds."""
        return self._ask(wire.QosQuery("quotas"), Quotas)

    def check_quotas(self) -> QuotaCheck:
        """Hold what identities are charged against index and device."""
        return self._ask(wire.QosQuery("quota-check"), QuotaCheck)

    def repair_quotas(self) -> Changed:
        """Make what identities are charged agree with the device."""
        return self._ask(wire.QosChange("quota-repair"), Changed)

    def _change(self, what: str, arguments: msgspec.Struct, kind: type[T]) -> T:
        return self._ask(wire.QosChange(what, _encoded(arguments)), kind)

    def _ask(self, request: wire.QosQuery | wire.QosChange, kind: type[T]) -> T:
        body = self._link().request(request, wire.Status).body
        return msgspec.json.decode(body, type=kind)


def _encoded(arguments: msgspec.Struct) -> bytes:
    """Raises ConfigError for half a character, which a command line's bytes may make."""
    try:
        return msgspec.json.encode(arguments)
    except UnicodeEncodeError as error:
        near = error.object[max(0, error.start - 20) : error.end]
        raise ConfigError(f"{near!a} is not valid unicode") from error
