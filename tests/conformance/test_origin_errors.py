"""One table over all clouds: the same condition raises the same class."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest
import pytest_asyncio

from tiercache.clock import BootClock
from tiercache.errors import (
    AccessDenied,
    NotFound,
    OriginThrottled,
    OriginUnavailable,
    PreconditionFailed,
    TiercacheError,
    Unsupported,
)
from tiercache.origins.open import open_origin
from tiercache.ports import Origin
from tiercache.testing.object_servers import ObjectServer
from tiercache.testing.proxy import Fault, FaultyProxy

pytestmark = pytest.mark.emulator

# Adapters: the fixture of their server and the driver.
CLOUDS = [
    pytest.param("s3", "obstore", id="s3"),
    pytest.param("azure", "obstore", id="azure"),
    pytest.param("gcs", "obstore", id="gcs"),
    pytest.param("s3", "fsspec", id="s3fs"),
    pytest.param("gcs", "fsspec", id="gcsfs"),
]
STATUSES = [
    (400, Unsupported),
    (401, AccessDenied),
    (403, AccessDenied),
    (404, NotFound),
    (412, PreconditionFailed),
    (429, OriginThrottled),
    (500, OriginUnavailable),
    (502, OriginUnavailable),
    (503, OriginThrottled),
    (504, OriginUnavailable),
]


class Behind:
    """An origin behind a proxy, with one object ``key`` of 100,000 bytes."""

    def __init__(self, server: ObjectServer, driver: str, bucket: str) -> None:
        self.proxy = FaultyProxy(server.endpoint).start()
        profile = msgspec.structs.replace(
            server.profile(endpoint=self.proxy.url),
            driver=driver,
            connect_timeout_s=1.0,
            request_timeout_s=2.0,
        )
        self.data = os.urandom(100_000)
        server.put(bucket, "key", self.data)
        self.origin: Origin = open_origin(server.url(bucket), profile, clock=BootClock())


@pytest_asyncio.fixture
async def behind(
    request: pytest.FixtureRequest, new_bucket: Callable[[ObjectServer], str]
) -> AsyncIterator[Behind]:
    fixture, driver = request.param
    server: ObjectServer = request.getfixturevalue(fixture)
    found = Behind(server, driver, new_bucket(server))
    yield found
    await found.origin.close()
    found.proxy.stop()


def clouds(driver: str = "") -> pytest.MarkDecorator:
    chosen = [
        pytest.param((cloud.values[0], cloud.values[1]), id=cloud.id)
        for cloud in CLOUDS
        if driver in ("", cloud.values[1])
    ]
    return pytest.mark.parametrize("behind", chosen, indirect=True)


@clouds("obstore")
@pytest.mark.parametrize(("status", "expected"), STATUSES)
async def test_status(behind: Behind, status: int, expected: type[TiercacheError]) -> None:
    await behind.origin.head("key")
    behind.proxy.inject(Fault(respond_status=status))
    for call in (behind.origin.head("key"), behind.origin.get("key", start=0, end=10)):
        with pytest.raises(TiercacheError) as caught:
            await call
        assert type(caught.value) is expected, caught.value
    if status not in (412,):
        for recursive in (True, False):
            with pytest.raises(TiercacheError) as caught:
                async for _ in behind.origin.list("k/", recursive=recursive):
                    pass
            assert type(caught.value) is expected, caught.value


@clouds("fsspec")
@pytest.mark.parametrize(
    ("status", "expected"), [(400, Unsupported), (403, AccessDenied), (404, NotFound)]
)
async def test_status_through_fsspec(
    behind: Behind, status: int, expected: type[TiercacheError]
) -> None:
    await behind.origin.head("key")
    behind.proxy.inject(Fault(respond_status=status))
    with pytest.raises(TiercacheError) as caught:
        await behind.origin.get("key")
    assert type(caught.value) is expected, caught.value


@clouds()
@pytest.mark.parametrize("status", [429, 500, 503])
async def test_an_outage_is_never_not_found(behind: Behind, status: int) -> None:
    await behind.origin.head("key")
    behind.proxy.inject(Fault(respond_status=status))
    with pytest.raises(OriginUnavailable):
        await behind.origin.get("key")


@clouds()
async def test_reset(behind: Behind) -> None:
    await behind.origin.head("key")
    behind.proxy.inject(Fault(reset_after_bytes=1000, methods=("GET",)))
    with pytest.raises(OriginUnavailable):
        await behind.origin.get("key")


@clouds()
async def test_truncated(behind: Behind) -> None:
    token = (await behind.origin.head("key")).token
    behind.proxy.inject(Fault(truncate_after_bytes=1000, methods=("GET",)))
    with pytest.raises(OriginUnavailable):
        await behind.origin.get("key", start=10, end=90_000, token=token)


@clouds()
async def test_refused_and_healed(behind: Behind) -> None:
    await behind.origin.head("key")
    behind.proxy.refuse()
    with pytest.raises(OriginUnavailable):
        await behind.origin.get("key")
    behind.proxy.heal()
    assert bytes((await behind.origin.get("key")).data) == behind.data


@clouds()
async def test_black_hole_ends_in_time(behind: Behind) -> None:
    await behind.origin.head("key")
    behind.proxy.black_hole()
    with pytest.raises(OriginUnavailable):
        await behind.origin.get("key")
    behind.proxy.heal()


@pytest.mark.parametrize("fixture", ["s3", "gcs"])
async def test_a_server_that_ignores_conditions(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    server: ObjectServer = request.getfixturevalue(fixture)
    behind = Behind(server, "obstore", server.make_bucket(f"open-{uuid.uuid4().hex[:12]}"))
    token = (await behind.origin.head("key")).token
    behind.proxy.inject(Fault(ignore_if_match=True))
    assert bytes((await behind.origin.get("key", token=token)).data) == behind.data
    with pytest.raises(PreconditionFailed):
        await behind.origin.get("key", start=0, end=10, token='"another"')
    await behind.origin.close()
    behind.proxy.stop()
