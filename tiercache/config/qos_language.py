"""What an agent needs of the language of policies, in one place: ``agent.policing.Language``.

Everything is imported when it is first used: an agent without a policy starts in fifty milliseconds
less.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tiercache.policy.qos import Rates
    from tiercache.policy.qos_rules import Override, Policy


def parse_policy(
    text: str, *, where: str, node_rates: Rates | None = None, cache_bytes: int | None = None
) -> Policy:
    """``qos_policy.parse_policy``; nothing is known of the node where it is not told."""
    from tiercache.config import qos_policy
    from tiercache.policy.qos_rules import UNKNOWN_RATES

    return qos_policy.parse_policy(
        text, where=where, node_rates=node_rates or UNKNOWN_RATES, cache_bytes=cache_bytes
    )


def parse_override(identity: str, assignment: str, until_unix_s: float | None = None) -> Override:
    """``qos_policy.parse_override``."""
    from tiercache.config import qos_policy

    return qos_policy.parse_override(identity, assignment, until_unix_s)


def check_overrides(
    policy: Policy,
    overrides: Sequence[Override],
    *,
    node_rates: Rates,
    cache_bytes: int | None,
) -> None:
    """Raises ConfigError where a policy cannot be kept with what is set by hand over it. What was
    wrong with it before, on a node that has become slower, is not these values' fault."""
    from tiercache.config.qos_policy import refusal
    from tiercache.policy.qos_checks import find_problems

    before = find_problems(policy, node_rates, cache_bytes=cache_bytes)
    found = find_problems(policy, node_rates, cache_bytes=cache_bytes, overrides=overrides)
    if found and not before:
        raise refusal(found, "set by hand")


def differences(old: Policy | None, new: Policy) -> tuple[str, ...]:
    """Return what one policy says otherwise than the other, or than none, a line a key."""
    from tiercache.config.qos_document import diff_policies
    from tiercache.policy.qos_rules import Policy

    return tuple(map(str, diff_policies(old or Policy(), new)))
