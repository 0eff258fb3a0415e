"""``ns.qos``: what its docstrings promise, on an agent of this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.fault.cache_rig import FileOrigin, cache_settings, namespace, wait_for
from tiercache.errors import ConfigError, NotFound
from tiercache.namespace import Namespace
from tiercache.qos_reports import Show, Top
from tiercache.settings import QosSettings, Settings

pytestmark = pytest.mark.timeout(60)

POLICY = """
version = 1
[[identity]]
name = "training"
match = [{ name = "training" }, { path = "/m/train" }]
read = { limit = "1GB/s" }
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    origin = FileOrigin(tmp_path / "origin")
    origin.put("train/a", b"a" * 1000)
    return cache_settings(tmp_path / "cache", origin.url)


@pytest.fixture
def ns(settings: Settings) -> Iterator[Namespace]:
    with namespace(settings, embedded=True) as found:
        yield found


def test_without_a_policy_there_is_nothing_to_tell(ns: Namespace) -> None:
    assert ns.qos.show() == Show() and ns.qos.top() == Top()
    with pytest.raises(NotFound, match="no QoS policy is in force"):
        ns.qos.explain("training", "/m")


def test_a_policy_is_applied_overridden_and_explained(ns: Namespace) -> None:
    dry = ns.qos.apply(POLICY, dry_run=True)
    assert dry.dry_run and dry.generation == 0 and dry.differences
    done = ns.qos.apply(POLICY)
    assert done.generation == 1 and done.differences == dry.differences
    ns.read("/m/train/a")
    wait_for(lambda: ns.qos.top().identities[0].read_bytes >= 1000)
    assert ns.qos.explain("training", "/m/train/a").claims[0].identity == "training"
    ns.qos.set("training", {"read.limit": "2GB/s", "in_flight": 4}, for_s=60)
    told = ns.qos.explain("training", "/m/train/a")
    assert told.identity.shares.read.limit == 2e9 and told.identity.in_flight == 4
    assert [one.key for one in told.overrides] == ["read.limit", "in_flight"]
    ns.qos.unset("training", ["in_flight"])
    assert ns.qos.explain("training", "/m").identity.in_flight is None
    ns.qos.unset("training")
    assert not ns.qos.show().overrides


def test_what_cannot_be_is_refused_and_changes_nothing(ns: Namespace) -> None:
    ns.qos.apply(POLICY)
    before = ns.qos.show()
    with pytest.raises(ConfigError, match=r"here\.toml"):
        ns.qos.apply("version = 2", file="here.toml")
    with pytest.raises(NotFound, match="did you mean training"):
        ns.qos.set("trainin", {"in_flight": 1})
    for key, value in (("nothing", "2"), ("read.limit", "x")):
        with pytest.raises(ConfigError, match=key):
            ns.qos.set("training", {"in_flight": 1, key: value})
    for no_time_s in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError):
            ns.qos.set("training", {"in_flight": 1}, for_s=no_time_s)
    with pytest.raises(NotFound):
        ns.qos.unset("training")
    half = "half \udcff"  # as a command line's bytes become
    for call in (
        lambda: ns.qos.explain("training", f"/m/{half}"),
        lambda: ns.qos.apply(half),
        lambda: ns.qos.set("training", {half: 1}),
        lambda: ns.qos.unset(half),
    ):
        with pytest.raises(ConfigError, match=r"udcff.*unicode"):
            call()
    assert ns.qos.show() == before


def test_a_policy_file_is_changed_and_not_applied(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "qos.toml"
    file.write_text(POLICY)
    settings = msgspec.structs.replace(settings, qos=QosSettings(policy=str(file)))
    with namespace(settings, embedded=True) as ns:
        assert ns.qos.show().source == str(file)
        with pytest.raises(ConfigError, match=r"qos\.toml"):
            ns.qos.apply(POLICY.replace("1GB/s", "2GB/s"))
        file.write_text(POLICY.replace("limit", "limits"))
        wait_for(lambda: ns.qos.show().error)
        assert ns.qos.show().text == POLICY and "limits" in ns.status()["qos"]["error"]
        file.write_text(POLICY.replace("1GB/s", "2GB/s"))
        wait_for(lambda: ns.qos.show().identities[0].shares.read.limit == 2e9)
        assert not ns.qos.show().error
