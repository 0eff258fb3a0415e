"""A store that accepts preconditions and ignores them is found out before it loses a write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tiercache import compose
from tiercache.clock import BootClock
from tiercache.errors import AlreadyExists, Unsupported
from tiercache.model import ObjectInfo
from tiercache.namespace import Namespace, connect
from tiercache.origins.endpoint import Endpoint
from tiercache.origins.local_origin import LocalOrigin
from tiercache.origins.resilient import ResilientOrigin
from tiercache.policy.retry import RetryPolicy
from tiercache.policy.urls import parse_origin_url
from tiercache.ports import Always, Buffer, Condition
from tiercache.settings import CacheSettings, MountSettings, ProfileSettings, Settings, TotalBytes


class Careless(LocalOrigin):
    """Takes any condition and writes anyway, as some gateways do."""

    async def put(
        self, key: str, data: Buffer, *, condition: Condition = Always(), write_id: str = ""
    ) -> ObjectInfo:
        return await super().put(key, data, condition=Always(), write_id=write_id)


@pytest.fixture(params=[Careless, LocalOrigin])
def namespace(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Namespace]:
    (tmp_path / "store").mkdir()
    url = parse_origin_url(f"file://{tmp_path}/store")

    def open_wrapped(*_: object) -> ResilientOrigin:
        clock = BootClock()
        return ResilientOrigin(
            request.param(url, ProfileSettings(), identity="s3://bucket@gateway.test:9000"),
            endpoint=Endpoint("gateway", concurrency=8, clock=clock),
            clock=clock,
            policy=RetryPolicy(deadline_s=5.0),
            attempt_timeout_s=5.0,
        )

    monkeypatch.setattr(compose, "open_wrapped", open_wrapped)
    profile = ProfileSettings(endpoint="http://gateway.test:9000")
    settings = Settings(
        cache=CacheSettings(dir=str(tmp_path / "cache"), limit=TotalBytes(64 << 20)),
        mounts=(MountSettings(path="/data", origin="s3://bucket"),),
        profiles={"default": profile},
    )
    with connect(settings, embedded=True) as opened:
        yield opened


def test_conditions_are_kept_or_refused(
    namespace: Namespace, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store = request.node.callspec.params["namespace"]
    namespace.write("/data/kept", b"first")
    with pytest.raises(Unsupported if store is Careless else AlreadyExists):
        namespace.write("/data/kept", b"second", mode="create")
    assert (tmp_path / "store" / "kept").read_bytes() == b"first"
    assert [file.name for file in (tmp_path / "store").iterdir()] == ["kept"]
