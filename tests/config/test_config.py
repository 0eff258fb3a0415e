"""Configuration: what is taken, what is refused and in which words, and where values come from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.config.conftest import load_text
from tiercache.config.document import document
from tiercache.config.loading import load
from tiercache.config.rendering import show
from tiercache.config.schema import SECTIONS
from tiercache.errors import ConfigError
from tiercache.model import Consistency
from tiercache.settings import (
    FreeSpaceRatio,
    MetadataSettings,
    MountSettings,
    ProfileSettings,
    QosSettings,
    Settings,
    TotalBytes,
    default_cache_dir,
)

pytestmark = pytest.mark.timeout(60)

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = """\
[cache]
dir = "/mnt/nvme/tiercache"
capacity = "2TiB"              # or free_space = "10%"
memory = "1GiB"                # the agent's whole buffer budget
[[mount]]
path = "/imagenet"
origin = "s3://bucket/prefix"
profile = "aws-east"
consistency = "eventual"       # the default
ttl = "60s"
negative_ttl = "5s"
[profile.aws-east]
region = "us-east-1"           # endpoint, anonymous, addressing …
"""


# ---- what is taken


def test_nothing_configured_gives_the_defaults(environ: dict[str, str]) -> None:
    loaded = load(environ=environ)
    assert loaded.settings == Settings()
    assert loaded.files == ()
    assert set(loaded.origins.values()) == {"default"}


def test_the_example(tmp_path: Path, environ: dict[str, str]) -> None:
    settings = load_text(EXAMPLE, tmp_path, environ).settings
    assert settings.cache.dir == "/mnt/nvme/tiercache"
    assert settings.cache.limit == TotalBytes(2 << 40)
    assert settings.cache.memory_bytes == 1 << 30
    assert settings.mounts == (
        MountSettings(path="/imagenet", origin="s3://bucket/prefix", profile="aws-east"),
    )
    assert settings.profiles == {
        "default": ProfileSettings(),
        "aws-east": ProfileSettings(name="aws-east", region="us-east-1"),
    }


def test_every_key_reaches_its_setting(tmp_path: Path, environ: dict[str, str]) -> None:
    text = """
        cache = { dir = "~/tc", free_space = 0.25, memory = 1048576 }
        metadata = { url = "s3://meta/tc", profile = "p", commit_interval = "1s", deadline = 3 }
        qos = { policy = "~/qos.toml", name = "training", max_wait = "30s" }
        agent = { idle_timeout = 0, metrics_address = "[::1]:9464", log_level = "debug" }
        [[mount]]
        path = "/a"
        origin = "zany://place/x"
        profile = "p"
        consistency = "close-to-open"
        ttl = 1.5
        negative_ttl = "1m"
        offline = "stale"
        read_only = true
        [profile.p]
        region = "r"
        endpoint = "http://127.0.0.1:9000"
        addressing = "path"
        anonymous = true
        account = "acct"
        credentials_profile = "work"
        driver = "fsspec"
        options = { text = "a", number = 1, ratio = 0.5, flag = true }
        connect_timeout = "1s"
        request_timeout = "2s"
        deadline = "3s"
        concurrency = 4
    """
    settings = load_text(text, tmp_path, environ).settings
    assert settings.cache.dir == os.path.expanduser("~/tc")
    assert settings.cache.limit == FreeSpaceRatio(0.25)
    assert settings.cache.memory_bytes == 1 << 20
    assert settings.metadata == MetadataSettings(
        url="s3://meta/tc", profile="p", commit_interval_s=1, deadline_s=3
    )
    assert settings.qos == QosSettings(
        policy=os.path.expanduser("~/qos.toml"), name="training", max_wait_s=30
    )
    assert settings.agent.idle_timeout_s == 0
    assert settings.agent.metrics_address == "[::1]:9464"
    assert settings.agent.log_level == "debug"
    assert settings.mounts == (
        MountSettings(
            path="/a",
            origin="zany://place/x",
            profile="p",
            consistency=Consistency.CLOSE_TO_OPEN,
            ttl_s=1.5,
            negative_ttl_s=60,
            offline="stale",
            read_only=True,
        ),
    )
    assert settings.profiles["p"] == ProfileSettings(
        name="p",
        region="r",
        endpoint="http://127.0.0.1:9000",
        addressing="path",
        anonymous=True,
        account="acct",
        credentials_profile="work",
        driver="fsspec",
        options={"text": "a", "number": 1, "ratio": 0.5, "flag": True},
        connect_timeout_s=1,
        request_timeout_s=2,
        deadline_s=3,
        concurrency=4,
    )
    assert isinstance(settings.mounts[0].consistency, Consistency)


def test_the_short_form_of_metadata(tmp_path: Path, environ: dict[str, str]) -> None:
    loaded = load_text('\nmetadata = "lmdb:/mnt/ebs/tiercache"\n[cache]\n', tmp_path, environ)
    assert loaded.settings.metadata == MetadataSettings(url="lmdb:/mnt/ebs/tiercache")
    assert loaded.origins["metadata.url"].endswith(":2")
    assert loaded.origins["metadata.deadline"] == "default"
    environ["TIERCACHE_METADATA__URL"] = "s3://bucket/other"
    loaded = load_text('metadata = "lmdb:/mnt/ebs/tiercache"\n', tmp_path, environ)
    assert loaded.settings.metadata.url == "s3://bucket/other"
    arguments = load(environ={}, overrides={"metadata": "gs://bucket/x"})
    assert arguments.settings.metadata.url == "gs://bucket/x"
    assert 'url = "gs://bucket/x"' in show(arguments, with_origin=True, as_json=False)


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ('metadata = "lmdb:relative"', "names no directory", "lmdb:/path"),
        ('metadata = "lmdb:"', "names no directory", "lmdb:/path"),
        ('metadata = "lmdb:/a/../b"', "names no directory", "absolute and plain"),
        ('metadata = "/mnt/ebs"', "not an origin URL", "scheme://"),
        ('metadata = "redis://h/0"', "unknown origin scheme", ""),
        ('metadata = "hf://datasets/x"', "no metadata store on hf://", "lmdb:/path"),
        ("metadata = 1", "is not a table", "[metadata]"),
        ('[metadata]\nurl = "s3://b"\nprofile = "nobody"', "no profile 'nobody'", "default"),
        ('[metadata]\nurl = "s3://b"\ndeadline = 0', "0 would end", "above 0"),
        ('[metadata]\nuri = "s3://b"', "unknown key 'uri'", "url"),
    ],
)
def test_what_is_no_metadata_store(
    text: str, message: str, remedy: str, tmp_path: Path, environ: dict[str, str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(text, tmp_path, environ)
    assert message in caught.value.message and remedy in caught.value.remedy
    assert caught.value.path


def test_nested_mounts_are_allowed(tmp_path: Path, environ: dict[str, str]) -> None:
    text = '[[mount]]\npath="/a"\norigin="s3://b"\n[[mount]]\npath="/a/b"\norigin="gs://c"\n'
    mounts = load_text(text, tmp_path, environ).settings.mounts
    assert [mount.path for mount in mounts] == ["/a", "/a/b"]


# ---- sources and their order


def test_later_sources_override_key_by_key(tmp_path: Path, environ: dict[str, str]) -> None:
    user = tmp_path / "xdg" / "tiercache" / "config.toml"
    user.parent.mkdir(parents=True)
    user.write_text(
        '[cache]\ndir = "/user"\ncapacity = "1GiB"\nmemory = "1MiB"\n'
        '[[mount]]\npath = "/m"\norigin = "s3://user"\nttl = "1s"\n'
        '[profile.aws-east]\nregion = "user"\naccount = "user"\n'
    )
    named = tmp_path / "named.toml"
    named.write_text(
        '[cache]\nfree_space = "5%"\nmemory = "2MiB"\n'
        '[[mount]]\npath = "/m"\norigin = "s3://named"\n'
        '[profile.aws-east]\nregion = "named"\n'
    )
    environ |= {
        "TIERCACHE_CONFIG": str(named),
        "TIERCACHE_CACHE__MEMORY": "3MiB",
        "TIERCACHE_AGENT__LOG_LEVEL": "warning",
        "TIERCACHE_QOS__NAME": "training",
        "TIERCACHE_PROFILE__AWS_EAST__REGION": "env",
        "TIERCACHE_PROFILE__NEW_ONE__ANONYMOUS": "true",
        "TIERCACHE_PROFILE__NEW_ONE__CONCURRENCY": "7",
        "TIERCACHE_PROFILE__NEW_ONE__OPTIONS__ROOT": "x",
    }
    loaded = load(
        environ=environ,
        overrides={
            "cache.memory": "4MiB",
            "agent": {"idle_timeout": 5},
            "cache.dir": None,
            "profile.aws-east.endpoint": "http://h:1",
        },
    )
    settings, origins = loaded.settings, loaded.origins
    assert loaded.files == (str(user), str(named))
    assert settings.cache.dir == "/user"
    assert settings.cache.limit == FreeSpaceRatio(0.05)
    assert settings.cache.memory_bytes == 4 << 20
    assert (settings.mounts[0].origin, settings.mounts[0].ttl_s) == ("s3://named", 1)
    east = settings.profiles["aws-east"]
    assert (east.region, east.account, east.endpoint) == ("env", "user", "http://h:1")
    new = settings.profiles["new-one"]
    assert (new.anonymous, new.concurrency, new.options) == (True, 7, {"root": "x"})
    assert origins["cache.dir"] == f"{user}:2"
    assert "cache.capacity" not in origins
    assert origins["cache.free_space"] == f"{named}:2"
    assert origins["cache.memory"] == "argument"
    assert settings.qos.name == "training"
    assert origins["agent.log_level"] == "env TIERCACHE_AGENT__LOG_LEVEL"
    assert origins["mount./m.origin"] == f"{named}:6"
    assert origins["mount./m.ttl"] == f"{user}:8"
    assert origins["mount./m.offline"] == "default"
    assert origins["profile.aws-east.region"] == "env TIERCACHE_PROFILE__AWS_EAST__REGION"
    assert (
        origins["profile.new-one.options.root"] == "env TIERCACHE_PROFILE__NEW_ONE__OPTIONS__ROOT"
    )


def test_an_explicit_file_replaces_the_search(tmp_path: Path, environ: dict[str, str]) -> None:
    user = tmp_path / "xdg" / "tiercache" / "config.toml"
    user.parent.mkdir(parents=True)
    user.write_text("this is not TOML")
    environ["TIERCACHE_CONFIG"] = str(tmp_path / "missing.toml")
    environ["TIERCACHE_CACHE__DIR"] = "/env"
    loaded = load_text('[cache]\ndir = "/file"\nmemory = "1MiB"', tmp_path, environ)
    assert loaded.settings.cache.dir == "/env"
    assert loaded.settings.cache.memory_bytes == 1 << 20


def test_home_config_is_found_without_xdg(tmp_path: Path) -> None:
    file = tmp_path / ".config" / "tiercache" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text('[cache]\ndir = "/x"')
    assert load(environ={"HOME": str(tmp_path)}).settings.cache.dir == "/x"


def test_arguments_may_hold_mounts(environ: dict[str, str]) -> None:
    mounts = [{"path": "/a", "origin": "s3://b"}, {"path": "/c", "origin": "memory://d"}]
    loaded = load(environ=environ, overrides={"mount": mounts})
    assert [mount.origin for mount in loaded.settings.mounts] == ["s3://b", "memory://d"]
    assert loaded.origins["mount./a.origin"] == "argument"


def test_relative_directories_of_arguments_are_made_absolute(environ: dict[str, str]) -> None:
    loaded = load(environ=environ, overrides={"cache.dir": "here"})
    assert loaded.settings.cache.dir == os.path.join(os.getcwd(), "here")


# ---- what is refused: text, line, words of the message, words of the remedy

MOUNT = '[[mount]]\npath = "/a"\norigin = "s3://b"\n'

REFUSED = [
    # unknown keys
    ('[cache]\ncapcity = "1GiB"', 2, "unknown key 'capcity'", "did you mean 'capacity'?"),
    ('[cache]\n\nsize = "1GiB"', 3, "unknown key 'size'", "did you mean 'capacity'?"),
    ("[cache]\nzzz = 1", 2, "unknown key 'zzz'", "known are dir, capacity"),
    ('[cache]\nttl = "5s"', 2, "unknown key 'ttl'", "it belongs in [[mount]]"),
    ('[chache]\ndir = "/x"', 1, "unknown section [chache]", "did you mean [cache]?"),
    ('[mounts]\npath = "/x"', 1, "unknown section [mounts]", "did you mean [[mount]]?"),
    ('capacity = "1GiB"', 1, "stands outside of [cache]", ""),
    (MOUNT + 'url = "s3://c"', 4, "unknown key 'url'", "did you mean 'origin'?"),
    ("[[mount]]\nname = 1", 2, "unknown key 'name'", ""),
    (
        '[profile.x]\nendpoint_url = "http://h"',
        2,
        "unknown key 'endpoint_url'",
        "did you mean 'endpoint'?",
    ),
    ('[profile]\nregion = "x"', 2, "without a profile's name", "[profile.default]"),
    ('[agent]\nloglevel = "info"', 2, "unknown key 'loglevel'", "did you mean 'log_level'?"),
    # wrong types
    ("[cache]\ndir = 5", 2, "dir: 5 where a directory belongs", ""),
    ("[cache]\ncapacity = true", 2, "capacity: true where a size belongs", "2TiB"),
    ("[cache]\ncapacity = 1.5", 2, "capacity: 1.5", "2TiB"),
    ("[cache]\nmemory = [1]", 2, "memory: an array where a size belongs", ""),
    (MOUNT + 'read_only = "yes"', 4, "read_only: 'yes'", "true or false"),
    (MOUNT + "ttl = {}", 4, "ttl: a table where a duration belongs", "60s"),
    ("[profile.x]\nconcurrency = 0", 2, "concurrency: 0", "at least 1"),
    ("[profile.x]\nconcurrency = 1.0", 2, "concurrency: 1.0", "at least 1"),
    ("[profile.x]\noptions = 1", 2, "options is not a table", ""),
    ("[profile.x.options]\na = [1]", 2, "option 'a' is an array", "text, numbers"),
    ("cache = 1", 1, "cache is not a table", "[cache]"),
    ("profile = 1", 1, "profile is not a table", "[profile.NAME]"),
    ('[mount]\npath = "/x"', 1, "mount is a single table", "[[mount]]"),
    ("mount = [1]", 1, "path is not text", ""),
    ("[[mount]]\npath = 1", 2, "path is not text", ""),
    # bad values
    ('[cache]\ncapacity = "2 parsecs"', 2, "'2 parsecs' has no size unit", "2TiB"),
    ('[cache]\ncapacity = "lots"', 2, "'lots' is not a size", ""),
    ("[cache]\ncapacity = -1", 2, "-1 is not a size", "not negative"),
    ("[cache]\ncapacity = 0", 2, "leaves no room", "above 0"),
    ('[cache]\nfree_space = "110%"', 2, "'110%' is not a ratio", "10%"),
    ('[cache]\ndir = "here"', 2, "'here' is relative", "absolute"),
    (MOUNT + 'ttl = "5 parsecs"', 4, "has no time unit", "60s"),
    (MOUNT + "ttl = nan", 4, "is not a duration", ""),
    ('[profile.x]\ndeadline = "0s"', 2, "deadline: 0", "above 0"),
    ('[profile.x]\naddressing = "paths"', 2, "'paths' is unknown", "did you mean 'path'?"),
    ('[profile.x]\nendpoint = "host:9000"', 2, "not an http(s) address", "https://host:9000"),
    ('[profile.x]\ndriver = "boto3"', 2, "'boto3' is unknown", "known are fsspec, obstore"),
    ('[agent]\nlog_level = "loud"', 2, "'loud' is unknown", ""),
    ('[agent]\nmetrics_address = "9464"', 2, "'9464' is not an address", "127.0.0.1:9464"),
    ('[agent]\nmetrics_address = "h:99999"', 2, "is not an address", ""),
    (MOUNT + 'consistency = "eventualy"', 4, "is unknown", "did you mean 'eventual'?"),
    (MOUNT + 'consistency = "stron"', 4, "is unknown", "did you mean 'strong'?"),
    ('[[mount]]\npath="/a"\norigin = "bucket/x"', 3, "not an origin URL", "scheme://"),
    ('[[mount]]\npath="/a"\norigin = "s33://x"', 3, "unknown origin scheme", "did you mean"),
    # contradictions
    ('[cache]\ncapacity = "1GiB"\nfree_space = "1%"', 3, "contradict", "remove one"),
    (
        MOUNT + 'consistency = "immutable"\nttl = "5s"',
        5,
        "ttl on a mount that is immutable",
        "remove",
    ),
    (MOUNT + 'consistency = "immutable"\noffline = "error"', 5, "offline on a mount", "remove"),
    (MOUNT + 'consistency = "strong"\noffline = "stale"', 5, "serves nothing", "close-to-open"),
    (
        MOUNT + 'consistency = "strong"\nttl = "5s"',
        5,
        "ttl on a mount that is strong",
        "remove ttl",
    ),
    (MOUNT + 'consistency = "strong"\nnegative_ttl = "5s"', 5, "which always asks", "remove"),
    (MOUNT + MOUNT, 5, "/a is mounted twice", ":2; remove one"),
    (MOUNT + 'profile = "easd"\n[profile.east]', 4, "no profile 'easd'", "did you mean 'east'?"),
    (MOUNT + 'profile = "x"', 4, "no profile 'x'", "the profiles are default"),
    # mount paths
    ('[[mount]]\npath = "a"', 2, "is not absolute", 'write "/a"'),
    ('[[mount]]\npath = "/a/"', 2, "ends with a slash", 'write "/a"'),
    ('[[mount]]\npath = "/"', 2, "is the root", "below it"),
    ('[[mount]]\npath = "/a//b"', 2, "not in normal form", "without"),
    ('[[mount]]\npath = "/a/../b"', 2, "not in normal form", "without"),
    ('[[mount]]\npath = "/a"', 2, "has no origin", "s3://"),
    ('[[mount]]\norigin = "s3://b"', 1, "without a path", "/imagenet"),
    # TOML
    ('[cache]\ndir = "x', 2, "not TOML", ""),
    ('[cache]\ndir = "/x"\ndir = "/y"', 3, "not TOML", ""),
    # places in longer files
    ('[cache]\nmemory = """\n1MiB"""\n[agent]\nzzz = 1', 5, "unknown key 'zzz'", ""),
    (
        MOUNT + '[[mount]]\n# a comment\npath = "/b"\norgin = "x"',
        7,
        "unknown key 'orgin'",
        "origin",
    ),
    ('profile.x.regon = "a"', 1, "unknown key 'regon'", "did you mean 'region'?"),
    ('["profile".\'a.b\']\nregon = "a"', 2, "unknown key 'regon'", "did you mean 'region'?"),
    ("[profile.x]\n\noptions = { a = 1, b = [] }", 3, "option 'b'", ""),
]


@pytest.mark.parametrize(("text", "line", "message", "remedy"), REFUSED)
def test_refused_with_place_and_remedy(
    tmp_path: Path, environ: dict[str, str], text: str, line: int, message: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(text, tmp_path, environ)
    assert caught.value.path == f"{tmp_path}/config.toml:{line}"
    assert message in caught.value.message
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "value", "message", "remedy"),
    [
        ("TIERCACHE_CACHE__DRI", "/x", "unknown key 'dri'", "'dir'"),
        ("TIERCACHE_CHACHE__DIR", "/x", "unknown section [chache]", "[cache]"),
        ("TIERCACHE_CACHE_DIR", "/x", "one underscore", "write TIERCACHE_CACHE__DIR"),
        ("TIERCACHE_MOUNT__A__TTL", "5s", "no mount by environment", "file"),
        ("TIERCACHE_PROFILE__REGION", "x", "not a configuration key", "PROFILE__NAME__KEY"),
        ("TIERCACHE_CACHE__MEMORY", "lots", "'lots' is not a size", ""),
        ("TIERCACHE_PROFILE__X__ANONYMOUS", "perhaps", "belongs", "true or false"),
        ("TIERCACHE_PROFILE__X__CONCURRENCY", "-1", "belongs", "at least 1"),
    ],
)
def test_environment_is_refused_by_name(
    environ: dict[str, str], name: str, value: str, message: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(environ=environ | {name: value})
    assert caught.value.path == f"env {name}"
    assert message in caught.value.message
    assert remedy in caught.value.remedy


def test_other_variables_of_ours_are_left_alone(environ: dict[str, str]) -> None:
    assert load(environ=environ | {"TIERCACHE_TEST_SEED": "1"}).settings == Settings()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"cache.dri": "/x"}, "unknown key"),
        ({"cache.capacity": "1GiB", "cache.free_space": "5%"}, "contradict"),
        ({"cache": 1}, "not a table"),
        ({"cache": 1, "cache.dir": "/x"}, "as a value and as a table"),
        ({"mount": [{"path": "/a", "origin": "s3://b", "consistency": "weak"}]}, "weak"),
    ],
)
def test_arguments_are_refused(
    environ: dict[str, str], overrides: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(environ=environ, overrides=overrides)
    assert caught.value.path == "argument"


def test_missing_files_are_named(tmp_path: Path, environ: dict[str, str]) -> None:
    missing = tmp_path / "missing.toml"
    with pytest.raises(ConfigError, match="no such configuration file") as caught:
        load(missing, environ=environ)
    assert caught.value.path == str(missing)
    with pytest.raises(ConfigError, match="no such configuration file") as caught:
        load(environ=environ | {"TIERCACHE_CONFIG": str(missing)})
    assert caught.value.path == str(missing)


def test_unreadable_files_are_named(tmp_path: Path, environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        load(tmp_path, environ=environ)
    assert caught.value.path == str(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'[cache]\ndir = "/\xe4"')
    with pytest.raises(ConfigError, match="UTF-8"):
        load(tmp_path / "latin.toml", environ=environ)


# ---- showing it


def test_shown_configuration_loads_to_the_same(tmp_path: Path, environ: dict[str, str]) -> None:
    text = EXAMPLE + (
        '[[mount]]\npath = "/fixed \\" ä"\norigin = "gs://b"\nconsistency = "immutable"\n'
        '[[mount]]\npath = "/open"\norigin = "gs://c"\nconsistency = "close-to-open"\n'
        '[[mount]]\npath = "/now"\norigin = "gs://c"\nconsistency = "strong"\noffline = "error"\n'
        '[[mount]]\npath = "/loose"\norigin = "gs://c"\noffline = "error"\n'
        '[profile."a.b"]\ndriver = "fsspec"\noptions = { "x y" = 1.5, z = true, w = "\\u007f" }\n'
        'connect_timeout = "0.1ms"\n'
    )
    first = load_text(text, tmp_path, environ)
    for with_origin in (True, False):
        shown = show(first, with_origin=with_origin, as_json=False)
        assert load_text(shown, tmp_path, environ).settings == first.settings


def test_shown_origins(tmp_path: Path, environ: dict[str, str]) -> None:
    loaded = load_text(EXAMPLE, tmp_path, environ | {"TIERCACHE_AGENT__LOG_LEVEL": "debug"})
    lines = show(loaded, with_origin=True, as_json=False).splitlines()
    shown = {line.partition(" = ")[0]: line.partition("  # ")[2] for line in lines[:15]}
    assert shown["capacity"] == f"{tmp_path}/config.toml:3"
    assert shown["ttl"] == f"{tmp_path}/config.toml:10"
    assert any(line.endswith("# env TIERCACHE_AGENT__LOG_LEVEL") for line in lines)
    assert any(line.endswith("# default") for line in lines)
    assert "#" not in show(loaded, with_origin=False, as_json=False)


def test_shown_json(tmp_path: Path, environ: dict[str, str]) -> None:
    loaded = load_text(EXAMPLE, tmp_path, environ)
    plain = json.loads(show(loaded, with_origin=False, as_json=True))
    assert plain["cache"] == {"dir": "/mnt/nvme/tiercache", "capacity": "2TiB", "memory": "1GiB"}
    assert plain["mount"][0]["path"] == "/imagenet"
    assert plain["profile"]["aws-east"]["region"] == "us-east-1"
    assert plain == tomllib.loads(show(loaded, with_origin=False, as_json=False)) | {
        "profile": plain["profile"]
    }
    placed = json.loads(show(loaded, with_origin=True, as_json=True))
    assert placed["cache"]["capacity"] == {
        "value": "2TiB",
        "origin": f"{tmp_path}/config.toml:3",
    }
    assert placed["agent"]["log_level"] == {"value": "info", "origin": "default"}


def test_default_directory_is_the_settings_own(environ: dict[str, str]) -> None:
    assert load(environ=environ).settings.cache.dir == default_cache_dir()


# ---- schema and documentation


def test_schema_names_every_setting_and_no_other() -> None:
    for section in SECTIONS:
        targets = {field.target for field in section.fields}
        names = set(section.settings.__struct_fields__)
        given = {"name", "environment_account"} if section.name == "profile" else set()
        assert targets == names - given


def test_committed_documentation_is_current() -> None:
    committed = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert committed == document(), "run: python -m tiercache.config.document docs/configuration.md"


def test_documented_example_loads(tmp_path: Path, environ: dict[str, str]) -> None:
    text = document().partition("```toml\n")[2].partition("```")[0]
    assert load_text(text, tmp_path, environ).settings.mounts[0].profile == "aws-east"


def test_document_runs_as_a_program(tmp_path: Path) -> None:
    target = tmp_path / "page.md"
    command = [sys.executable, "-m", "tiercache.config.document", str(target)]
    subprocess.run(command, check=True, cwd=REPOSITORY, timeout=30)
    assert target.read_text(encoding="utf-8") == document()


@pytest.mark.parametrize("text", ["a = " + "1" * 5000, "a = " + "[" * 5000])
def test_numbers_and_arrays_without_end_are_refused(
    text: str, tmp_path: Path, environ: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match="not TOML"):
        load_text(text, tmp_path, environ)
