"""Policies as documents, their schema and their pages; and that any text is one or refused."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from math import inf
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.config.qos_text import EVERYTHING
from tiercache.config import qos_json_schema, qos_page
from tiercache.config.qos_document import diff_policies, policy_document
from tiercache.config.qos_json_schema import json_schema
from tiercache.config.qos_policy import parse_policy
from tiercache.config.qos_profiles import TEXTS
from tiercache.config.qos_schema import BYTE_SHARES, IDENTITY
from tiercache.errors import ConfigError
from tiercache.policy.accounts import LIMIT_BURST_S
from tiercache.policy.qos import BackendPlan
from tiercache.policy.qos_rules import (
    CapacityTerms,
    Fraction,
    IdentityRule,
    Policy,
    ShareTerms,
    Terms,
)
from tiercache.policy.qos_schedule import Moment

pytestmark = pytest.mark.timeout(60)

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = REPOSITORY / "docs" / "examples" / "qos.toml"
VALIDATOR = jsonschema.Draft202012Validator(json_schema())

# ---- any text


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "1" * 5000,
        "a = " + "[" * 5000,
        "version = 1\nprofile = [" + "'x'," * 1000 + "]",
        "\x00",
        "version = 1\n" + "[[identity]]\nname='a'\n" * 300,
        "a.b.c = 1\na = 2",
        "version = 1\n[node]\nread = " + "9" * 400,
        'version = 1\n[node]\nread = "' + "9" * 400 + 'GB/s"',
        'version = 1\n[node]\nread = "' + "9" * 280 + 'PB/s"',
        "version = 1\n[[identity]]\nname='a'\nmatch={user=" + "9" * 400 + "}",
        "version = 1\n[[identity]]\nname='a'\nmatch={user='u'}\nclaim=" + "[" * 90 + "]" * 90,
        "version = 1e400",
        'version = 1\n"a\\nb\\u001b" = 1',
        '{"version": 1, "version": 1}',
        '{"a\\u001b": 1, "a\\u001b": 1}',
        f"version = 1\n{'k' * 100_000} = 1",
        '{"version": 1',
        '{"version": 1}}',
        '{"version": NaN}',
        '{"version": 1, "identity": [{"name": "a", "match": {"user": "\\ud800"}}]}',
        '{"version": 1, "backend": [{"origin": "s3://\\udfff", "get": 1}]}',
        '{"version": 1, "node": ' + '{"read": ' * 5000,
        "{" + "[" * 5000,
        "version = 1\n" + "".join(f"k{number} = 1\n" for number in range(5000)),
    ],
)
def test_hostile_texts_are_config_errors(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_policy(text, where="qos.toml")
    assert "\x1b" not in str(refused.value)
    assert len(str(refused.value)) < 10_000


_TOKENS = st.sampled_from(
    [
        *EVERYTHING.replace("\n", " \n ").split(" "),
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        "=",
        ",",
        '"',
        "'",
        '"""',
        "\n",
        "#",
        "\\",
        "-1",
        "1e999",
        "nan",
        "0x10",
        "1979-05-27T07:32:00",
        "\u0000",
        "\ud7ff",
        "name",
        "[[identity]]\n",
        "[[class]]\n",
        "%",
        "unlimited",
    ]
)


@given(st.lists(_TOKENS, max_size=60).map(" ".join))
@settings(max_examples=300)
def test_mangled_texts_are_policies_or_config_errors(text: str) -> None:
    survives(text)


@given(st.data())
@settings(max_examples=300)
def test_texts_with_a_wound_are_policies_or_config_errors(data: st.DataObject) -> None:
    """A policy file of which a piece was cut out, doubled or replaced."""
    text = data.draw(st.sampled_from([EVERYTHING, EXAMPLE.read_text(encoding="utf-8")]))
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 40)))
    piece = data.draw(st.one_of(_TOKENS, st.text(max_size=5), st.just(text[start:end] * 2)))
    survives(text[:start] + piece + text[end:])


@pytest.mark.parametrize("text", [EVERYTHING, '{"version": 1}'])
def test_a_mark_at_the_beginning_of_a_file_is_nothing(text: str) -> None:
    assert parse_policy("\ufeff" + text, where="qos") == parse_policy(text, where="qos")


def reparsed(document: dict[str, Any]) -> Policy:
    return parse_policy(json.dumps(document), where="document")


def survives(text: str) -> None:
    try:
        policy = parse_policy(text, where="qos.toml")
    except ConfigError:
        return
    policy.plan(Moment(weekday=0, minute=0), (1e9, 1e9, 1e5), cache_bytes=1 << 40)
    assert reparsed(policy_document(policy)) == policy


_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), _TOKENS,
    st.sampled_from(["5GB/s", "50%", "20k/s", "10GiB", "Mon-Fri 08:00-20:00", "30s", "/x", 3, 0.5]),
)  # fmt: skip


@st.composite
def wounded_documents(draw: st.DrawFn) -> Any:
    """The tables of a policy with some values replaced, added or lost."""
    document = json.loads(json.dumps(policy_document(parse_policy(EVERYTHING, where="x"))))
    for _ in range(draw(st.integers(0, 3))):
        inner: Any = document
        while True:
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(inner[key], dict | list) and draw(st.booleans()):
                inner = inner[key]
                continue
            if draw(st.booleans()):
                inner[key] = draw(_VALUES)
            elif isinstance(inner, dict):
                del inner[key]
                inner[draw(st.text(max_size=3))] = draw(_VALUES)
            break
    return document


@given(wounded_documents())
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
def test_what_the_schema_refuses_is_refused(document: dict[str, Any]) -> None:
    try:
        reparsed(document)
    except ConfigError:
        return
    VALIDATOR.validate(document)


# ---- documents, differences


@pytest.mark.parametrize("text", [EVERYTHING, EXAMPLE.read_text(encoding="utf-8"), *TEXTS.values()])
def test_a_document_says_the_same(text: str) -> None:
    policy = parse_policy(text, where="qos.toml")
    document = policy_document(policy)
    assert reparsed(document) == policy
    assert policy_document(reparsed(document)) == document
    assert parse_policy(f"\n {json.dumps(document)}", where="qos.json") == policy
    VALIDATOR.validate(document)
    VALIDATOR.validate(tomllib.loads(text))
    # And all of it crosses the socket.
    assert msgspec.json.encode(policy)


_NUMBERS = st.one_of(st.floats(1e-3, 1e15), st.integers(1, 10**15).map(float))
_RATE_VALUES = st.one_of(
    st.none(),
    _NUMBERS,
    st.integers(1, 10**6).map(lambda part: Fraction(of_all=part / 10**6)),
)
_SHARES = st.builds(
    ShareTerms,
    limit=st.one_of(_RATE_VALUES, st.just(inf)),
    weight=st.one_of(st.none(), st.floats(0.001, 1000)),
    burst=st.one_of(st.none(), _NUMBERS),
)


@given(
    st.builds(
        Terms,
        read=_SHARES,
        write=_SHARES,
        operations=_SHARES,
        in_flight=st.one_of(st.none(), st.integers(1, 10**9)),
        max_wait_s=st.one_of(st.none(), st.floats(1e-9, 86400)),
    ),
    st.builds(CapacityTerms, max=st.one_of(st.none(), st.integers(0, 10**18))),
    st.builds(
        BackendPlan,
        origin=st.just("s3://b"),
        get=st.one_of(_NUMBERS, st.just(1.0), st.just(inf)),
        bytes=_NUMBERS,
        adaptive=st.booleans(),
    ),
)
@settings(max_examples=200)
def test_whatever_number_is_written_is_read_again(
    terms: Terms, capacity: CapacityTerms, backend: BackendPlan
) -> None:
    policy = Policy(
        identities=(IdentityRule(name="default", terms=terms, capacity=capacity),),
        backends=(backend,),
    )
    assert reparsed(policy_document(policy)) == policy


def test_differences_are_told_key_by_key() -> None:
    old = parse_policy(EVERYTHING, where="old")
    text = EVERYTHING.replace('"5GB/s"', '"6GB/s"').replace("in_flight = 4\n", "")
    text = text.replace('origin = "s3://bucket/prefix/"', 'origin = "gs://b"\nget = "1/s"')
    new = parse_policy(text, where="new")
    assert diff_policies(old, old) == []
    assert list(map(str, diff_policies(old, new))) == [
        "node.read: 5GB/s → 6GB/s",
        "identity[a].in_flight: 4 → unsaid",
        "backend[s3://bucket/prefix]: removed",
        "backend[gs://b]: added",
        "backend[gs://b].get: unsaid → 1/s",
    ]


def test_the_order_of_identities_is_a_difference() -> None:
    text = "version = 1\n"
    tables = [f'[[identity]]\nname = "{n}"\nmatch = {{ group = "{n}" }}\n' for n in "abc"]
    old = parse_policy(text + "".join(tables), where="old")
    new = parse_policy(text + "".join(reversed(tables[1:])), where="new")
    changes = diff_policies(old, new)
    assert [change.key for change in changes if "order" in change.key] == ["identity order"]
    assert (changes[-1].old, changes[-1].new) == (["b", "c"], ["c", "b"])


# ---- schema and documentation


def test_the_schema_is_one_and_takes_the_example() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    VALIDATOR.validate(tomllib.loads(EXAMPLE.read_text(encoding="utf-8")))
    assert not VALIDATOR.is_valid({"version": 1, "nodes": {}})
    assert not VALIDATOR.is_valid({"version": 1, "profile": "best"})


def test_committed_schema_and_page_are_current() -> None:
    schema = json.loads((REPOSITORY / "docs" / "qos-policy.schema.json").read_text())
    command = "run: python -m tiercache.config.qos_json_schema docs/qos-policy.schema.json"
    assert schema == json_schema(), command
    page = (REPOSITORY / "docs" / "qos-policy.md").read_text(encoding="utf-8")
    assert page == qos_page.page(), "run: python -m tiercache.config.qos_page docs/qos-policy.md"


@pytest.mark.parametrize("module", [qos_json_schema.__name__, qos_page.__name__])
def test_they_are_written_by_programs(module: str, tmp_path: Path) -> None:
    target = tmp_path / "page"
    command = [sys.executable, "-m", module]
    subprocess.run([*command, str(target)], check=True, cwd=REPOSITORY, timeout=30)
    shown = subprocess.run(command, check=True, cwd=REPOSITORY, timeout=30, capture_output=True)
    assert target.read_bytes() == shown.stdout != b""


def test_the_documented_default_burst_is_the_governors() -> None:
    burst = BYTE_SHARES.key("burst")
    assert burst is not None
    assert (burst.default, LIMIT_BURST_S) == ("a tenth of a second of `limit`", 0.1)


def test_the_documented_example_is_a_policy() -> None:
    text = qos_page.page().partition("```toml\n")[2].partition("```")[0]
    assert parse_policy(text, where="page").profile == "training-first"
    assert IDENTITY.key("claim") is not None
