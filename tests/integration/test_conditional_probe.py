"""A store that accepts preconditions and ignores them is found out before it loses a write."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tiercache import compose
from tiercache.clock import BootClock
from tiercache.errors import AlreadyExists, NotFound, PreconditionFailed, Unsupported
from tiercache.model import Consistency, ObjectInfo
from tiercache.namespace import Namespace, connect
from tiercache.origins.backend import Backends
from tiercache.origins.endpoint import Endpoint
from tiercache.origins.local_origin import LocalOrigin
from tiercache.origins.probe import probe
from tiercache.origins.resilient import ResilientOrigin
from tiercache.policy.retry import RetryPolicy
from tiercache.policy.urls import parse_origin_url
from tiercache.ports import Always, Buffer, Condition, IfAbsent, IfVersion
from tiercache.settings import CacheSettings, MountSettings, ProfileSettings, Settings, TotalBytes


class Careless(LocalOrigin):
    """Takes any condition and writes anyway, as some gateways do."""

    async def put(
        self, key: str, data: Buffer, *, condition: Condition = Always(), write_id: str = ""
    ) -> ObjectInfo:
        return await super().put(key, data, condition=Always(), write_id=write_id)


class HalfCareless(Careless):
    """Refuses to create what is there, and replaces whatever is asked."""

    async def put(
        self, key: str, data: Buffer, *, condition: Condition = Always(), write_id: str = ""
    ) -> ObjectInfo:
        if isinstance(condition, IfAbsent):
            return await LocalOrigin.put(self, key, data, condition=condition, write_id=write_id)
        return await super().put(key, data, condition=condition, write_id=write_id)


class Careful(LocalOrigin):
    """Keeps both conditions, one write at a time."""

    async def put(
        self, key: str, data: Buffer, *, condition: Condition = Always(), write_id: str = ""
    ) -> ObjectInfo:
        if isinstance(condition, IfVersion):
            if (await self.head(key)).token != condition.token:
                raise PreconditionFailed("another version", path=key)
            condition = Always()
        return await super().put(key, data, condition=condition, write_id=write_id)


STORES = {store.__name__: store for store in (Careless, HalfCareless, Careful, LocalOrigin)}


@pytest.fixture
def opened(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Namespace]]:
    """A function that connects to a store of this kind, as an S3 gateway would be."""
    (tmp_path / "store").mkdir()
    url = parse_origin_url(f"file://{tmp_path}/store")
    store = STORES[request.param]

    def open_wrapped(*_: object) -> ResilientOrigin:
        clock = BootClock()
        return ResilientOrigin(
            store(url, ProfileSettings(), identity="s3://bucket@gateway.test:9000"),
            endpoint=Endpoint("gateway", concurrency=8, clock=clock),
            clock=clock,
            backends=Backends(clock=BootClock()),
            policy=RetryPolicy(deadline_s=5.0),
            attempt_timeout_s=5.0,
        )

    monkeypatch.setattr(compose, "open_wrapped", open_wrapped)
    profile = ProfileSettings(endpoint="http://gateway.test:9000")

    with contextlib.ExitStack() as stack:

        def connected(**mount: Any) -> Namespace:
            settings = Settings(
                cache=CacheSettings(dir=str(tmp_path / "cache"), limit=TotalBytes(64 << 20)),
                mounts=(MountSettings(path="/data", origin="s3://bucket", **mount),),
                profiles={"default": profile},
            )
            return stack.enter_context(connect(settings, embedded=True))

        yield connected


@pytest.mark.parametrize(
    ("opened", "creates", "replaces"),
    [
        ("Careless", False, False),
        ("HalfCareless", True, False),
        ("Careful", True, True),
        ("LocalOrigin", True, False),
    ],
    indirect=["opened"],
)
def test_conditions_are_kept_or_refused(
    opened: Callable[..., Namespace], tmp_path: Path, creates: bool, replaces: bool
) -> None:
    namespace = opened()
    version = namespace.write("/data/kept", b"first").version
    with pytest.raises(AlreadyExists if creates else Unsupported):
        namespace.write("/data/kept", b"second", mode="create")
    assert (tmp_path / "store" / "kept").read_bytes() == b"first"
    with pytest.raises(PreconditionFailed if replaces else Unsupported):
        namespace.write("/data/kept", b"second", if_version=version + "x")
    assert (tmp_path / "store" / "kept").read_bytes() == b"first"
    if replaces:
        namespace.write("/data/kept", b"second", if_version=version)
        assert (tmp_path / "store" / "kept").read_bytes() == b"second"
    assert [file.name for file in (tmp_path / "store").iterdir()] == ["kept"]


@pytest.mark.parametrize("opened", STORES, indirect=True)
def test_a_strong_mount_is_kept_or_refused(
    opened: Callable[..., Namespace], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "store" / "kept").write_bytes(b"first")
    namespace = opened(consistency=Consistency.STRONG)
    if request.node.callspec.params["opened"] == "Careful":
        assert namespace.read("/data/kept") == b"first"
        namespace.write("/data/kept", b"second!")
        assert (tmp_path / "store" / "kept").read_bytes() == b"second!"
    else:
        for call in (namespace.read, namespace.stat, namespace.list, namespace.remove):
            with pytest.raises(Unsupported, match="does not keep conditions on writes"):
                call("/data/kept")
        with pytest.raises(Unsupported, match="read_only = true") as caught:
            namespace.write("/data/kept", b"second")
        assert "s3://bucket@gateway.test:9000" in caught.value.message
        assert (tmp_path / "store" / "kept").read_bytes() == b"first"
    assert [file.name for file in (tmp_path / "store").iterdir()] == ["kept"]


@pytest.mark.parametrize("opened", STORES, indirect=True)
def test_a_read_only_strong_mount_needs_no_conditions(
    opened: Callable[..., Namespace], tmp_path: Path
) -> None:
    (tmp_path / "store" / "kept").write_bytes(b"first")
    namespace = opened(consistency=Consistency.STRONG, read_only=True)
    assert namespace.read("/data/kept") == b"first"
    (tmp_path / "store" / "kept").write_bytes(b"second!")
    assert namespace.read("/data/kept") == b"second!"


class Vanishing(Careful):
    """Whatever it lists is gone when it is asked for."""

    async def refuses_wrong_token(self, key: str, token: str) -> bool:
        raise NotFound("no such object", path=key)


async def test_an_object_removed_under_the_probe_teaches_nothing_and_harms_nobody(
    tmp_path: Path,
) -> None:
    """Its absence would be told to whoever waits for the probe, of another name."""
    url = f"file://{tmp_path}"
    (tmp_path / "there").write_bytes(b"x")
    origin = Vanishing(parse_origin_url(url), ProfileSettings(), identity=url)
    assert (await probe(origin, probe_writes=True)).conditional_replace
