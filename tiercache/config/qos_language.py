"""What an agent needs of the language of policies, in one place: ``agent.policing.Language``."""

from __future__ import annotations

from collections.abc import Sequence

from tiercache.config.qos_document import diff_policies
from tiercache.config.qos_policy import parse_override, parse_policy, refusal
from tiercache.policy.qos import Rates
from tiercache.policy.qos_checks import find_problems
from tiercache.policy.qos_rules import Override, Policy

__all__ = ["check_overrides", "differences", "parse_override", "parse_policy"]


def check_overrides(
    policy: Policy,
    overrides: Sequence[Override],
    *,
    node_rates: Rates,
    cache_bytes: int | None,
) -> None:
    """Raises ConfigError where a policy cannot be kept with what is set by hand over it. What was
    wrong with it before, on a node that has become slower, is not these values' fault."""
    before = find_problems(policy, node_rates, cache_bytes=cache_bytes)
    found = find_problems(policy, node_rates, cache_bytes=cache_bytes, overrides=overrides)
    if found and not before:
        raise refusal(found, "set by hand")


def differences(old: Policy, new: Policy) -> tuple[str, ...]:
    """Return what one policy says otherwise than the other, a line a key."""
    return tuple(map(str, diff_policies(old, new)))
