"""Paths to keys and back: tables of the decisions, and round trips of whatever names there are."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tiercache.errors import ConfigError, IsADirectory, NotFound
from tiercache.policy.mounts import MountTable
from tiercache.settings import MountSettings, ProfileSettings

pytestmark = pytest.mark.timeout(60)

PROFILES = {"default": ProfileSettings(), "east": ProfileSettings(name="east")}
MOUNTS = (
    MountSettings(path="/imagenet", origin="s3://bucket/data/imagenet", profile="east"),
    MountSettings(path="/imagenet/extra", origin="gs://extra"),
    MountSettings(path="/data/deep/web", origin="az://web/v1"),
    MountSettings(path="/data/deep/books", origin="abfss://books@acct.dfs.core.windows.net/b"),
    MountSettings(path="/all", origin="s3://bucket"),
    MountSettings(path="/local", origin="file:///srv/data"),
)
TABLE = MountTable(MOUNTS, PROFILES)


@pytest.mark.parametrize(
    ("path", "mount", "key"),
    [
        ("/imagenet", "/imagenet", "data/imagenet"),
        ("/imagenet/", "/imagenet", "data/imagenet/"),
        ("/imagenet/a", "/imagenet", "data/imagenet/a"),
        ("/imagenet/a/", "/imagenet", "data/imagenet/a/"),
        ("/imagenet//a", "/imagenet", "data/imagenet//a"),
        ("/imagenet/a//b", "/imagenet", "data/imagenet/a//b"),
        ("/imagenet/%2F", "/imagenet", "data/imagenet/%2F"),
        ("/imagenet/ä €/x y", "/imagenet", "data/imagenet/ä €/x y"),
        ("/imagenet/..a/.b/c.", "/imagenet", "data/imagenet/..a/.b/c."),
        ("/imagenet/...", "/imagenet", "data/imagenet/..."),
        ("/imagenet/extra", "/imagenet/extra", ""),
        ("/imagenet/extra/", "/imagenet/extra", ""),
        ("/imagenet/extra/a", "/imagenet/extra", "a"),
        ("/imagenet/extra//a", "/imagenet/extra", "/a"),
        ("/imagenet/extras", "/imagenet", "data/imagenet/extras"),
        ("/data/deep/web/a", "/data/deep/web", "v1/a"),
        ("/local/a/b", "/local", "a/b"),
    ],
)
def test_namespace_paths(path: str, mount: str, key: str) -> None:
    resolved = TABLE.resolve(path)
    assert (resolved.mount.path, resolved.key, resolved.path) == (mount, key, path)
    assert TABLE.resolve("tiercache:/" + path) == resolved
    assert TABLE.resolve("tiercache://" + path) == resolved


@pytest.mark.parametrize(
    ("url", "path", "key"),
    [
        ("s3://bucket/data/imagenet/a", "/imagenet/a", "data/imagenet/a"),
        ("s3a://bucket/data/imagenet/a", "/imagenet/a", "data/imagenet/a"),
        ("s3://bucket/data/imagenet", "/imagenet", "data/imagenet"),
        ("s3://bucket/data/imagenet/", "/imagenet/", "data/imagenet/"),
        ("s3://bucket/data/imagenets", "/all/data/imagenets", "data/imagenets"),
        ("s3://bucket", "/all", ""),
        ("gs://extra/a//b", "/imagenet/extra/a//b", "a//b"),
        # Seen through /imagenet it would be hidden by the mount over "extra".
        ("s3://bucket/data/imagenet/extra/x", "/all/data/imagenet/extra/x", None),
        ("az://web/v1/a", "/data/deep/web/a", "v1/a"),
        ("abfss://books@acct.dfs.core.windows.net/b/1", "/data/deep/books/1", "b/1"),
        ("az://books/b/1", "/data/deep/books/1", "b/1"),
        ("file:///srv/data/a", "/local/a", "a"),
        ("file:///srv/data", "/local", ""),
    ],
)
def test_urls_that_a_mount_covers(url: str, path: str, key: str | None) -> None:
    resolved = TABLE.resolve(url)
    assert resolved.path == path
    assert key is None or resolved.key == key
    assert TABLE.resolve(path) == resolved


@pytest.mark.parametrize(
    ("url", "mount", "key", "path"),
    [
        ("s3://other/a/b", "s3://other", "a/b", "s3://other/a/b"),
        ("s3a://other/a/b", "s3://other", "a/b", "s3://other/a/b"),
        ("S3://other/a/b", "s3://other", "a/b", "s3://other/a/b"),
        ("s3://other", "s3://other", "", "s3://other"),
        ("s3://other/", "s3://other", "", "s3://other/"),
        ("s3://other//a/", "s3://other", "/a/", "s3://other//a/"),
        ("s3://other/%2F?x#y", "s3://other", "%2F?x#y", "s3://other/%2F?x#y"),
        ("s3://other/a/../b", "s3://other", "a/../b", "s3://other/a/../b"),
        ("s3://bucket/a/../b", "s3://bucket", "a/../b", "s3://bucket/a/../b"),
        ("az://web/v2", "az://web", "v2", "az://web/v2"),
        ("gcs://extras/a", "gs://extras", "a", "gs://extras/a"),
        (
            "abfss://books@another.dfs.core.windows.net/b/1",
            "abfss://books@another.dfs.core.windows.net",
            "b/1",
            "abfss://books@another.dfs.core.windows.net/b/1",
        ),
        ("file:///srv/datum/x", "file://", "srv/datum/x", "file:///srv/datum/x"),
        ("memory://root/x", "memory://root", "x", "memory://root/x"),
    ],
)
def test_other_urls_are_mounted_implicitly(url: str, mount: str, key: str, path: str) -> None:
    resolved = TABLE.resolve(url)
    assert (resolved.mount.path, resolved.key, resolved.path) == (mount, key, path)
    assert resolved.mount.profile == "default"
    assert TABLE.resolve(resolved.path) == resolved


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("imagenet/a", "write /imagenet/a"),
        ("", "neither"),
        ("/imagenet/../a", "segments"),
        ("/imagenet/./a", "segments"),
        ("/imagenet/..", "segments"),
        ("/..", "segments"),
        ("/imagenet/a\0b", "NUL"),
        ("s3://bucket/a\0b", "NUL"),
        ("/imagenet/" + "k" * 1011, "1024"),
        ("/imagenet/" + "é" * 506, "1024"),
        ("s3://other/" + "é" * 513, "1024"),
        ("/imagenet/\udc80", "unicode"),
        ("s4://bucket/x", "s3://"),
        ("s3:///x", "no bucket"),
        ("file://relative/x", "absolute"),
        ("file:///srv/../etc/passwd", "segments"),
        ("s3://KEY:SECRET@bucket/x", "credentials"),
    ],
)
def test_refused(path: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        TABLE.resolve(path)
    assert isinstance(caught.value, ValueError)
    assert "SECRET" not in str(caught.value)


def test_the_longest_key_is_taken() -> None:
    prefix = "data/imagenet/"
    for name in ("k" * (1024 - len(prefix)), "é" * ((1024 - len(prefix)) // 2)):
        assert TABLE.resolve("/imagenet/" + name).key == prefix + name


def test_nothing_mounted_there() -> None:
    with pytest.raises(NotFound, match="mounted are"):
        TABLE.resolve("/imagene")
    with pytest.raises(NotFound):
        TABLE.resolve("/data/deeper")
    with pytest.raises(NotFound, match="nothing is mounted: configure"):
        MountTable((), PROFILES).resolve("/a")


@pytest.mark.parametrize("path", ["/", "/data", "/data/", "/data/deep"])
def test_above_the_mounts_are_directories(path: str) -> None:
    with pytest.raises(IsADirectory):
        TABLE.resolve(path)


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/", ("all", "data", "imagenet", "local")),
        ("/data", ("deep",)),
        ("/data/", ("deep",)),
        ("/data/deep", ("books", "web")),
        ("/data/deep/web", ()),
        ("/imagenet", ("extra",)),
        ("/nowhere", ()),
    ],
)
def test_virtual_children(path: str, names: tuple[str, ...]) -> None:
    assert TABLE.children_of_root(path) == names


def test_no_mount_has_an_empty_root() -> None:
    assert MountTable((), PROFILES).children_of_root("/") == ()


def test_contradictions_are_refused() -> None:
    with pytest.raises(ConfigError, match="twice"):
        MountTable([MOUNTS[0], MOUNTS[0]], PROFILES)
    with pytest.raises(ConfigError, match="no profile 'east'"):
        MountTable(MOUNTS, {"default": ProfileSettings()})
    with pytest.raises(ConfigError, match="not an origin URL"):
        MountTable([MountSettings(path="/a", origin="bucket")], PROFILES)


def test_exotic_schemes_can_be_allowed() -> None:
    mount = MountSettings(path="/x", origin="zany://place")
    with pytest.raises(ConfigError, match="unknown origin scheme"):
        MountTable([mount], PROFILES)
    table = MountTable([mount], PROFILES, more_schemes={"zany"})
    assert table.resolve("/x/a").origin.scheme == "zany"
    profiles = {"default": ProfileSettings(driver="fsspec")}
    assert MountTable([mount], profiles).resolve("/x/a").origin.scheme == "zany"


def test_key_outside_the_mount() -> None:
    with pytest.raises(ConfigError, match="not below"):
        TABLE.path_of(MOUNTS[0], "data/imagenets/a")


def test_path_of_knows_mounts_of_other_tables() -> None:
    other = MountSettings(path="/else", origin="s3://else/p")
    assert TABLE.path_of(other, "p/a") == "/else/a"
    assert TABLE.path_of(MountSettings(path="s3://new", origin="s3://new"), "a") == "s3://new/a"


_SEGMENT = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=8
).filter(lambda text: text not in (".", ".."))
_RELATIVE = st.lists(_SEGMENT, min_size=1, max_size=5).map("/".join)
_MOUNT_PATH = st.lists(st.sampled_from(["a", "b", "ab", "ä"]), min_size=1, max_size=3).map(
    lambda parts: "/" + "/".join(parts)
)
_ORIGIN = st.builds(
    lambda bucket, prefix: f"s3://{bucket}/{prefix}".rstrip("/"),
    st.sampled_from(["one", "two"]),
    st.sampled_from(["", "p", "p/q", "a", "a/b"]),
)
_TABLES = st.dictionaries(_MOUNT_PATH, _ORIGIN, min_size=1, max_size=5).map(
    lambda origins: MountTable(
        [MountSettings(path=path, origin=origin) for path, origin in origins.items()], PROFILES
    )
)


@given(table=_TABLES, data=st.data(), relative=_RELATIVE)
def test_paths_round_trip(table: MountTable, data: st.DataObject, relative: str) -> None:
    top = data.draw(st.sampled_from(table.mounts))
    path = f"{top.path}/{relative}"
    resolved = table.resolve(path)
    assert resolved.path == path
    assert len(resolved.mount.path) >= len(top.path)
    assume(resolved.key or not path.endswith("/"))  # a mount and its root have one key
    assert table.path_of(resolved.mount, resolved.key) == path


@given(table=_TABLES, bucket=st.sampled_from(["one", "two", "three"]), key=_RELATIVE)
def test_urls_mean_one_object(table: MountTable, bucket: str, key: str) -> None:
    resolved = table.resolve(f"s3://{bucket}/{key}")
    assert (resolved.origin.bucket, resolved.key) == (bucket, key)
    again = table.resolve(resolved.path)
    assert (again.mount, again.key) == (resolved.mount, resolved.key)


@given(table=_TABLES, bucket=st.sampled_from(["one", "two"]), keys=st.sets(_RELATIVE, max_size=6))
def test_keys_of_one_mount_never_share_a_path(
    table: MountTable, bucket: str, keys: set[str]
) -> None:
    for mount in table.mounts:
        below = {f"{mount.origin.partition(bucket)[2][1:]}/{key}".lstrip("/") for key in keys}
        inside = {key for key in below if mount.origin.startswith(f"s3://{bucket}")}
        assert len({table.path_of(mount, key) for key in inside}) == len(inside)
