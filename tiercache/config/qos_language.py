"""What an agent needs of the language of policies, in one place: ``agent.policing.Language``."""

from __future__ import annotations

from tiercache.config.qos_document import diff_policies
from tiercache.config.qos_policy import parse_override, parse_policy
from tiercache.policy.qos_rules import Policy

__all__ = ["differences", "parse_override", "parse_policy"]


def differences(old: Policy, new: Policy) -> tuple[str, ...]:
    """Return what one policy says otherwise than the other, a line a key."""
    return tuple(map(str, diff_policies(old, new)))
