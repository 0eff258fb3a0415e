"""Paths of snapshots, the tree that their objects make, and checksums put together."""

from __future__ import annotations

import crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercache.errors import ConfigError
from tiercache.model import PAGE_BYTES
from tiercache.policy import checksums, snapshots


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1@snapshot/m/x", ("v1", "/m/x")),
        ("v1@snapshot/m/x", ("v1", "/m/x")),
        ("tiercache://v1@snapshot/m/x", ("v1", "/m/x")),
        ("/v1@snapshot", ("v1", "/")),
        ("/v1@snapshot/", ("v1", "/")),
        ("/v1@snapshot/m//x/", ("v1", "/m//x/")),
        ("/v1@snapshot/s3://bucket/x", ("v1", "s3://bucket/x")),
        ("/v1@snapshot/m\n/x", ("v1", "/m\n/x")),
        ("/m/v1@snapshot", None),
        ("/v1@snapshots/x", None),
        ("/v1/@snapshot", None),
        ("s3://v1@snapshot/x", None),
    ],
)
def test_paths_are_taken_apart(path: str, expected: tuple[str, str] | None) -> None:
    assert snapshots.split(path) == expected
    if expected is not None:
        assert snapshots.split(snapshots.join(*expected)) == expected


@pytest.mark.parametrize("name", ["", ".x", "-x", "a b", "ü", "x" * 101, "~x", "a\n"])
def test_names_are_checked(name: str) -> None:
    with pytest.raises(ConfigError, match="snapshot's name"):
        snapshots.check_name(name)


@pytest.mark.parametrize(
    ("path", "prefix", "expected"),
    [
        ("/m/a", "", ("m", True)),
        ("/m/a", "/m/", ("a", False)),
        ("/m/a/b", "/m/", ("a", True)),
        ("/m//b", "/m/", ("", True)),
        ("s3://bucket/a", "", ("s3://bucket", True)),
        ("s3://bucket/a", "s3://bucket/", ("a", False)),
        ("file:///tmp/a", "", ("file:///tmp", True)),
    ],
)
def test_children(path: str, prefix: str, expected: tuple[str, bool]) -> None:
    assert snapshots.child(path, prefix) == expected


def test_what_lies_behind_a_directory() -> None:
    for path, prefix in (("/m/a/b", "/m/"), ("/m/a", ""), ("s3://b/x", "")):
        name, _ = snapshots.child(path, prefix)
        behind = snapshots.after(prefix, name, path)
        assert path < behind
        assert all(path + more < behind for more in ("", "\U0010ffff", "/z"))


@given(st.binary(max_size=3 * PAGE_BYTES), st.integers(0, 3 * PAGE_BYTES))
def test_the_checksum_of_two_parts_is_that_of_both(data: bytes, cut: int) -> None:
    first, second = data[:cut], data[cut:]
    whole = checksums.combine(crc32c.crc32c(first), crc32c.crc32c(second), len(second))
    assert whole == crc32c.crc32c(data)


@pytest.mark.parametrize("size", [0, 1, PAGE_BYTES - 1, PAGE_BYTES, PAGE_BYTES + 1, 1_000_003])
def test_the_checksum_of_pages_is_that_of_the_object(size: int) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    data = data[:size]
    pages = [crc32c.crc32c(data[at : at + PAGE_BYTES]) for at in range(0, size, PAGE_BYTES)]
    assert checksums.of_pages(pages, size) == crc32c.crc32c(data)
