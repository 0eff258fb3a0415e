"""Globs: a table of what matches, and properties against the shell's own matcher."""

from __future__ import annotations

import fnmatch
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercache.policy.globs import GlobFilter, translate

pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("*.tar", ["a.tar", "d/a.tar", "d/e/.tar"], ["a.tarx", "a.tar/b", "a.TAR"]),
        ("train", ["train", "a/train"], ["train/a", "trains"]),
        ("a?c", ["abc", "x/a.c", "a c"], ["ac", "a/c", "abbc"]),
        ("train/*.tar", ["train/a.tar", "train/.tar"], ["a.tar", "train/b/a.tar", "x/train/a.tar"]),
        ("/*.tar", ["a.tar"], ["d/a.tar"]),
        ("**/*.tar", ["a.tar", "d/a.tar", "d/e/a.tar"], ["a.tarx"]),
        ("train/**", ["train/a", "train/a/b", "train/"], ["train", "trains/a"]),
        ("train/", ["train/a", "train/a/b"], ["train", "x/train/a"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b", "a//b"], ["ab", "a/xb", "a/b/c"]),
        ("a/**/b/**/c", ["a/b/c", "a/x/b/y/z/c"], ["a/c", "a/b/xc"]),
        ("**", ["a", "a/b"], []),
        ("**x", ["x", "ax", "d/ax"], ["xa"]),
        ("a**/b", ["a/b", "abc/b"], ["a/b/b"]),
        ("[abc].bin", ["a.bin", "d/c.bin"], ["d.bin", "ab.bin"]),
        ("shard-[0-4]?", ["shard-00", "shard-4x"], ["shard-50", "shard-0"]),
        ("[!a-c]", ["d", "x/d", "-"], ["a", "b", "c", ""]),
        ("x[!a]y", ["xby"], ["x/y", "xay"]),
        ("x/[.-0]y", ["x/.y", "x/0y"], ["x//y"]),
        ("[]a]", ["]", "a"], ["b"]),
        ("[!]a]", ["b"], ["]", "a"]),
        ("[z-a]", [], ["a", "m", "z"]),
        ("[a-]", ["a", "-"], ["b"]),
        ("a[b", ["a[b"], ["ab"]),
        ("[*]", ["*"], ["a"]),
        ("[\\d]", ["\\", "d"], ["1"]),
        ("[^a]", ["^", "a"], ["b"]),
        ("a.b+c$", ["a.b+c$"], ["axb+c$", "a.bc"]),
        ("é*", ["éa"], ["e"]),
        ("*", ["a", ".hidden", "x/y", "line\nbreak"], []),
        ("d/*", ["d/a", "d/", "d/line\nbreak"], ["d/a/b", "a"]),
    ],
)
def test_patterns(pattern: str, matching: list[str], other: list[str]) -> None:
    wanted = GlobFilter(include=[pattern])
    assert [name for name in matching if not wanted.matches(name)] == []
    assert [name for name in other if wanted.matches(name)] == []


@pytest.mark.parametrize(
    ("include", "exclude", "name", "wanted"),
    [
        ([], [], "any/thing", True),
        (["*.tar"], [], "a.tar", True),
        (["*.tar"], [], "a.json", False),
        (["*.tar", "*.json"], [], "a.json", True),
        ([], ["*.tmp"], "a.tar", True),
        ([], ["*.tmp"], "d/a.tmp", False),
        (["*.tar"], ["old/**"], "old/a.tar", False),
        (["*.tar"], ["*.tar"], "a.tar", False),
        (["**"], ["a/*/c"], "a/b/c", False),
        (["train/*", "*.json"], [], "val/x.json", True),
    ],
)
def test_exclude_wins(include: list[str], exclude: list[str], name: str, wanted: bool) -> None:
    assert GlobFilter(include, exclude).matches(name) is wanted


_LITERAL = st.text(st.characters(exclude_characters="*?[/", exclude_categories=["Cs"]), max_size=9)


@given(st.lists(_LITERAL, min_size=1, max_size=4).map("/".join))
def test_a_name_matches_itself(name: str) -> None:
    assert translate("/" + name).fullmatch(name) or name.startswith("/") or name.endswith("/")


@given(
    pattern=st.text("ab*?[]!-", max_size=8).filter(lambda text: "**" not in text),
    name=st.text("ab*?[]!-", max_size=6),
)
def test_one_segment_agrees_with_the_shell(pattern: str, name: str) -> None:
    assert bool(translate(pattern).fullmatch(name)) == fnmatch.fnmatchcase(name, pattern)


_SEGMENTS = st.lists(st.sampled_from(["**", "a", "b", "a*", "*b*", "*"]), min_size=1, max_size=6)


@given(pattern=_SEGMENTS, name=st.lists(st.sampled_from(["a", "b", "ab", "aab"]), max_size=6))
def test_double_stars_agree_with_their_definition(pattern: list[str], name: list[str]) -> None:
    def defined(rest: list[str], names: list[str]) -> bool:
        if rest == ["**"]:
            return bool(names) or len(pattern) == 1
        if not rest:
            return not names
        if rest[0] == "**":
            return defined(rest[1:], names) or (bool(names) and defined(rest, names[1:]))
        return (
            bool(names) and fnmatch.fnmatchcase(names[0], rest[0]) and defined(rest[1:], names[1:])
        )

    if name:
        found = translate("/".join(pattern)).fullmatch("/".join(name))
        assert bool(found) == defined(pattern, name)


@given(pattern=st.text("ab/*?[]!-", max_size=10), name=st.text("ab/-", max_size=8))
def test_any_pattern_compiles_and_matches_in_time(pattern: str, name: str) -> None:
    GlobFilter([pattern], [pattern]).matches(name)


def test_hostile_patterns_take_no_time() -> None:
    """Each takes centuries where stars backtrack over one another."""
    wanted = GlobFilter(["*" * 60 + "b", "a*" * 30 + "b", "**/a/" * 20 + "b/c", "**/a*" * 20 + "b"])
    begun = time.monotonic()
    assert not wanted.matches("a" * 400)
    assert not wanted.matches("a/" * 200)
    assert time.monotonic() - begun < 5
