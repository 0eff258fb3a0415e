"""QoS policy files: what is taken, what is refused and in which words."""

from __future__ import annotations

import pytest

from tiercache.config.qos_policy import parse_policy
from tiercache.policy.qos import Claimant, Resource
from tiercache.policy.qos_schedule import Moment

pytestmark = pytest.mark.timeout(60)

POLICY = """\
version = 1
profile = "training-first"

[node]
read = "5GB/s"

[[identity]]
name = "training"
claim = "@ml"
read = { reserve = "60%", limit = "4GB/s" }
max_wait = "30s"
capacity = { min = "200GiB", max = "1TiB" }
[[identity.schedule]]
when = "Mon-Fri 08:00-20:00"
read = { reserve = "1GB/s" }

[[backend]]
origin = "s3://"
get = "3k/s"
"""


def test_a_profile_is_changed_key_by_key() -> None:
    policy = parse_policy(POLICY, where="qos.toml")
    assert [rule.name for rule in policy.identities] == ["training", "interactive", "prefetch"]
    night = policy.plan(Moment(weekday=6, minute=0))
    training = night.identities[0]
    assert training.class_name == "training"
    assert training.shares[Resource.READ].reserve == 3e9
    day = policy.plan(Moment(weekday=0, minute=8 * 60))
    assert day.identities[0].shares[Resource.READ].reserve == 1e9
    assert day.identities[0].shares[Resource.READ].limit == 4e9
    member = Claimant(name="training", groups=frozenset({"ml"}))
    assert policy.identify(member, "/x") == "training"
    assert policy.identify(Claimant(name="training"), "/x") == "default"
