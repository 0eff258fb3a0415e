"""On which lines the keys of a TOML text stand."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercache.config.places import line_numbers

pytestmark = pytest.mark.timeout(60)


def test_places_are_found_in_linear_time() -> None:
    """Cubic time would take days."""
    blanks = " " * 100_000
    assert line_numbers(f"a = [\n[{blanks}\n]]\n{blanks}b = 1") == {("a",): 1, ("b",): 4}


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("[[a]]\n[a.b]\nc = 1\n[[a]]", {("a",): 1, ("a", 0, "b", "c"): 3, ("a", 1): 4}),
        ('"x=y" = 1', {("x=y",): 1}),
        ("[ 'a]b' . c ] # d\r\ne = 1", {("a]b", "c", "e"): 2}),
        ("a = [\n['b'],\n[1],\n]\nc = 1", {("c",): 5}),
    ],
)
def test_places_of(text: str, places: dict[tuple[str | int, ...], int]) -> None:
    assert places.items() <= line_numbers(text).items()
    tomllib.loads(text)


_KEY = st.text("abc-_", min_size=1, max_size=3)


@given(
    st.lists(
        st.tuples(st.sampled_from(["[{}]", "[[{}]]", "# {}", "", "  [ {} ] # c"]), _KEY, _KEY),
        max_size=12,
    )
)
def test_places_are_where_the_keys_stand(blocks: list[tuple[str, str, str]]) -> None:
    """Every key is on the line that is named for it."""
    lines: list[str] = []
    for number, (header, table, key) in enumerate(blocks):
        lines += [header.format(f"{table}{number}"), f"{key}{number} = {number}"]
    text = "\n".join(lines)
    data = tomllib.loads(text)
    places = line_numbers(text)

    def check(tree: object, path: tuple[str | int, ...]) -> None:
        if isinstance(tree, dict):
            for name, value in tree.items():
                check(value, (*path, name))
        elif isinstance(tree, list):
            for index, value in enumerate(tree):
                check(value, (*path, index))
        else:
            assert lines[places[path] - 1] == f"{path[-1]} = {tree}"

    check(data, ())
