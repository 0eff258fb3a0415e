"""fsspec's own suite for filesystems, unmodified."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fsspec.tests import abstract

from tests.consumers.conftest import Tier
from tiercache.fs import TierCacheFileSystem


class Fixtures(abstract.AbstractFixtures):  # type: ignore[misc]  # fsspec is untyped
    @pytest.fixture
    def fs(self, flat_tier: Tier) -> TierCacheFileSystem:
        return flat_tier.filesystem()

    @pytest.fixture
    def fs_path(self, new_path: Callable[[], str]) -> str:
        return new_path()

    @pytest.fixture
    def fs_join(self) -> Callable[..., str]:
        return lambda *parts: "/".join(parts)

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return False


class TestCopy(abstract.AbstractCopyTests, Fixtures):  # type: ignore[misc]  # as above
    pass


class TestGet(abstract.AbstractGetTests, Fixtures):  # type: ignore[misc]  # as above
    pass


class TestPut(abstract.AbstractPutTests, Fixtures):  # type: ignore[misc]  # as above
    pass


class TestOpen(abstract.AbstractOpenTests, Fixtures):  # type: ignore[misc]  # as above
    pass


class TestPipe(abstract.AbstractPipeTests, Fixtures):  # type: ignore[misc]  # as above
    pass


def test_every_suite_is_run() -> None:
    suites = {name for name in vars(abstract) if name.endswith("Tests")}
    ours: set[Any] = {base.__name__ for cls in Fixtures.__subclasses__() for base in cls.__bases__}
    assert suites <= ours
