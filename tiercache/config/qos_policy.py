"""A QoS policy file: from TOML to a ``Policy``. qos_schema says what may stand in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

from tiercache.config import qos_profiles
from tiercache.config.places import Path, line_numbers, line_of
from tiercache.config.qos_schema import IDENTITY, POLICY, Key, Kind, Table
from tiercache.config.qos_values import PARSERS
from tiercache.config.secret_words import is_secret_value
from tiercache.config.toml_text import parse_toml
from tiercache.config.values import nearest_hint
from tiercache.errors import ConfigError
from tiercache.policy.qos import BackendPlan, Rates
from tiercache.policy.qos_checks import MOST_SHOWN, Problem, find_problems, find_warnings
from tiercache.policy.qos_match import MatchRule
from tiercache.policy.qos_rules import (
    UNKNOWN_RATES,
    CapacityTerms,
    ClassRule,
    IdentityRule,
    NodeRule,
    Override,
    Policy,
    Schedule,
    ShareTerms,
    Terms,
)

_Values = dict[str, Any]
# Tables of several, and the key that names each.
_NAMED = {"class": "name", "identity": "name", "backend": "origin"}
_SHARES = ("read", "write", "operations")
_EXAMPLES = {
    "version": "1",
    "name": '"training"',
    "when": '"Mon-Fri 08:00-20:00"',
    "origin": '"s3://bucket"',
}
# Mistakes that an error tells; ``check_policy`` returns all.
MOST_TOLD = 20
# Of the users, groups, names, keys and paths that one rule gives; each is a rule of its own.
MOST_COMBINATIONS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """``policy`` is None where there are ``problems``."""

    policy: Policy | None
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()


def parse_policy(
    text: str,
    *,
    where: str,
    node_rates: Rates = UNKNOWN_RATES,
    cache_bytes: int | None = None,
) -> Policy:
    """Return the policy that a TOML text says, or a JSON one; ``where`` names it in errors.

    What is known of the node and of the cache must hold what is reserved of it. Raises ConfigError
    that tells the problems, one a line, and nothing else, whatever the text.
    """
    checked = check_policy(text, where=where, node_rates=node_rates, cache_bytes=cache_bytes)
    if checked.policy is None:
        raise refusal(checked.problems, where)
    return checked.policy


def refusal(problems: tuple[Problem, ...], where: str) -> ConfigError:
    """Return problems as one error."""
    first = problems[0]
    if len(problems) == 1:
        message = f"{first.key}: {first.cause}" if first.key else first.cause
        return ConfigError(message, path=first.place or where, remedy=first.remedy)
    lines = "".join(f"\n{problem}" for problem in problems[:MOST_TOLD])
    more = f"\nand {len(problems) - MOST_TOLD} more" if len(problems) > MOST_TOLD else ""
    return ConfigError(f"{len(problems)} mistakes{lines}{more}", path=where)


def check_policy(
    text: str,
    *,
    where: str,
    node_rates: Rates = UNKNOWN_RATES,
    cache_bytes: int | None = None,
) -> Checked:
    """Return the policy, or everything that is wrong with it, and what is seldom meant."""
    text = text.removeprefix("\ufeff")  # which some editors begin a file with
    is_json = text.lstrip().startswith("{")  # as no TOML does
    try:
        data = _parse_json(text, where) if is_json else parse_toml(text, where)
    except ConfigError as error:
        problem = Problem(at=(), cause=error.message, remedy=error.remedy, place=error.path)
        return Checked(policy=None, problems=(problem,))
    reader = _Reader(where, None if is_json else line_numbers(text))
    return _checked(reader, data, node_rates, cache_bytes)


def _parse_json(text: str, where: str) -> dict[str, object]:
    def table(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"the key {key[:MOST_SHOWN]!r} stands twice")
            found[key] = value
        return found

    try:
        data: dict[str, object] = json.loads(text, object_pairs_hook=table)
        # Half a character, which JSON can say, can be told in no answer and no log.
        json.dumps(data, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not JSON: {error}", path=where) from None
    return data


def _checked(
    reader: _Reader, data: Mapping[str, object], node_rates: Rates, cache_bytes: int | None
) -> Checked:
    values = reader.table(POLICY, data, (), ())
    reader.find_duplicates(values)
    reader.note_rules(values)
    policy = _policy(values, _profile(values.get("profile", "")))
    whole = find_problems(policy, node_rates, cache_bytes=cache_bytes)
    reader.problems += [reader.placed(one) for one in whole if not reader.follows(one)]
    if reader.problems:
        return Checked(policy=None, problems=tuple(reader.problems))
    warnings = tuple(map(reader.placed, find_warnings(policy)))
    return Checked(policy=policy, warnings=warnings)


class _Reader:
    """Reads tables by their schema and gathers what is wrong."""

    def __init__(self, where: str, lines: dict[Path, int] | None) -> None:
        """``lines`` is None where there is no text."""
        self._where = where
        self._lines = lines
        self._sources: dict[tuple[str, str], int] = {}  # of a named table: its number in the file
        self._rules: dict[str, list[int]] = {}  # of an identity's rules: numbers of their tables
        self.problems: list[Problem] = []

    def table(self, table: Table, data: Mapping[str, object], at: Path, source: Path) -> _Values:
        """Return the values of a table by key; what is wrong is left out. ``at`` names it, by the
        names in it, ``source`` is where it stands in the file."""
        values: _Values = {}
        for name, value in data.items():
            key = table.key(name)
            if key is None:
                hint = nearest_hint(name, [key.name for key in table.keys])
                self.wrong((*at, name), (*source, name), "unknown key", hint)
            elif key.table is not None:
                self._inner(values, key, value, (*at, name), (*source, name))
            else:
                self._value(values, key, value, (*at, name), (*source, name))
        for key in table.keys:
            if key.required and key.name not in data:
                remedy = f"write {key.name} = {_EXAMPLES[key.name]}"
                self.wrong((*at, key.name), source, "missing", remedy)
        return values

    def _value(self, values: _Values, key: Key, value: object, at: Path, source: Path) -> None:
        texts = value if isinstance(value, list) else [value]
        if key.name != "access_key" and any(map(is_secret_value, texts)):
            self.wrong(at, source, "looks like a credential", "a policy holds none: remove it")
            return
        try:
            parsed = PARSERS[key.kind](value)
        except ConfigError as error:
            self.wrong(at, source, error.message, error.remedy)
            return
        if key.choices and parsed not in key.choices:
            self.wrong(
                at, source, f"no {key.name} {parsed!r}", nearest_hint(str(parsed), key.choices)
            )
            return
        values[key.name] = parsed

    def _inner(self, values: _Values, key: Key, value: object, at: Path, source: Path) -> None:
        assert key.table is not None
        if key.kind is Kind.TABLE or (key.alone and isinstance(value, dict)):
            if not isinstance(value, dict):
                first = key.table.keys[0].name
                self.wrong(at, source, "not a table", f"write {key.name} = {{ {first} = … }}")
                return
            inner = self.table(key.table, value, at, source)
            values[key.name] = inner if key.kind is Kind.TABLE else [inner]
            return
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            self.wrong(at, source, "not an array of tables", f"write {key.table.heading}")
            return
        found = []
        for number, one in enumerate(value):
            inside: Path = (*at, self._called(key.name, one, number))
            found.append(self.table(key.table, one, inside, (*source, number)))
        values[key.name] = found

    def _called(self, kind: str, table: Mapping[str, object], number: int) -> str | int:
        """Return what a table of several is called: its name, if it has one."""
        name = table.get(_NAMED[kind]) if kind in _NAMED else None
        if not isinstance(name, str) or not name:
            return number
        self._sources.setdefault((kind, name), number)
        return name

    def find_duplicates(self, values: _Values) -> None:
        for kind, name_key in _NAMED.items():
            seen: dict[str, int] = {}
            for number, table in enumerate(values.get(kind, ())):
                name = table.get(name_key)
                if name in seen:
                    first = self._place((kind, seen[name]))
                    self.wrong(
                        (kind, name, name_key),
                        (kind, number, name_key),
                        f"{name!r} stands here twice",
                        f"the first is at {first}; remove one of them",
                    )
                elif name is not None:
                    seen[name] = number

    def note_rules(self, values: _Values) -> None:
        """Remember which rules come of which table: one that gives several users is several."""
        for number, table in enumerate(values.get("identity", ())):
            name = table.get("name", "")
            matches = table.get("match", [])
            numbers = self._rules.setdefault(name, [])
            for index, match in enumerate(matches):
                count = prod(map(len, match.values()))
                at: Path = ("identity", name or number, "match", index)
                source: Path = ("identity", number, "match", index)
                if not match and not any(one.at[:3] == at[:3] for one in self.problems):
                    remedy = 'whoever no rule matches is "default" already: add a key'
                    self.wrong(at, source, "an empty rule", remedy)
                elif count > MOST_COMBINATIONS:
                    remedy = f"at most {MOST_COMBINATIONS}: match a group or a path instead"
                    self.wrong(at, source, f"{count} combinations of its values", remedy)
                    match.clear()
                else:
                    numbers += [index] * count

    def wrong(self, at: Path, source: Path, cause: str, remedy: str) -> None:
        place = self._place(source)
        self.problems.append(Problem(at=at, cause=cause, remedy=remedy, place=place))

    def _place(self, source: Path) -> str:
        if self._lines is None:
            return self._where
        return f"{self._where}:{line_of(self._lines, source)}"

    def placed(self, problem: Problem) -> Problem:
        """Add where it stands; what comes from the profile stands at the profile's line."""
        at = problem.at
        if len(at) < 2:
            return replace(problem, place=self._place(at))
        number = self._sources.get((str(at[0]), str(at[1])))
        tables = self._rules.get(str(at[1]), [])
        if at[2:3] == ("match",) and isinstance(at[-1], int) and at[-1] < len(tables):
            at = (*at[:3], tables[at[-1]])
        source: Path = ("profile",) if number is None else (at[0], number, *at[2:])
        return replace(problem, at=at, place=self._place(source))

    def follows(self, problem: Problem) -> bool:
        """Say whether a problem may be but the consequence of one that was found before: of a value
        that could not be read, and so was left out."""
        at = problem.at
        broken = [one.at for one in self.problems]
        return (
            ("profile",) in broken
            or any(other[:3] == at[:3] for other in broken)
            or (at[-1:] == ("class",) and any(other[:1] == at[-1:] for other in broken))
            or (at[-1:] == ("reserve",) and any(at[-1] in other for other in broken))
        )


# Of what ``set`` may change: where it stands in the schema.
_SETTABLE = ("read", "write", "operations", "capacity", "in_flight", "max_wait")


def parse_override(identity: str, assignment: str, until_unix_s: float | None = None) -> Override:
    """Return what "read.limit=100MB/s" sets for an identity. Raises ConfigError.

    Keys are those of [[identity]] in the policy file: read, write and operations with .reserve,
    .limit, .weight, .burst; in_flight; max_wait; capacity with .min, .soft, .max, .pin_max.
    """
    name, equals, text = (part.strip() for part in assignment.partition("="))
    if not equals:
        raise ConfigError(
            f"{assignment!r} sets nothing", remedy="write KEY=VALUE: read.limit=1GB/s"
        )
    keys = settable_keys()
    if name not in keys:
        raise ConfigError(f"no key {name!r} to set", remedy=nearest_hint(name, keys))
    # On a command line numbers are texts.
    number = _as_number(text)
    try:
        value: Any = PARSERS[keys[name]](text if number is None else number)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error.message}", remedy=error.remedy) from None
    return Override(
        identity=identity,
        key="max_wait_s" if name == "max_wait" else name,
        value=value,
        text=f"{name}={text}",
        until_unix_s=until_unix_s,
    )


def settable_keys() -> dict[str, Kind]:
    """Return what ``parse_override`` takes, and the kind of value."""
    found: dict[str, Kind] = {}
    for key in IDENTITY.keys:
        if key.name in _SETTABLE and key.table is None:
            found[key.name] = key.kind
        elif key.name in _SETTABLE and key.table is not None:
            found |= {f"{key.name}.{inner.name}": inner.kind for inner in key.table.keys}
    return found


def _as_number(text: str) -> int | float | None:
    if not text.isascii() or len(text) > 30:
        return None
    for parse in (int, float):
        with suppress(ValueError):
            return parse(text)
    return None


def _profile(name: str) -> _Values:
    """Return the values of a ready policy; nothing for no name."""
    if not name:
        return {}
    text = qos_profiles.TEXTS[name]
    return _Reader(name, None).table(POLICY, parse_toml(text, name), (), ())


def _policy(values: _Values, profile: _Values) -> Policy:
    return Policy(
        profile=values.get("profile", ""),
        node=NodeRule(**values.get("node", {})),
        classes=tuple(map(_class, _over(profile, values, "class"))),
        identities=tuple(map(_identity, _over(profile, values, "identity"))),
        backends=tuple(
            BackendPlan(**table) for table in values.get("backend", ()) if "origin" in table
        ),
    )


def _over(profile: _Values, values: _Values, kind: str) -> list[_Values]:
    """Return the tables of a file, over those of its profile that have the same name, and then
    those that the file does not name."""
    given = {table["name"]: table for table in reversed(values.get(kind, ())) if "name" in table}
    ready = {table["name"]: table for table in profile.get(kind, ())}
    tables = [_changed(ready.get(name, {}), table) for name, table in reversed(given.items())]
    return tables + [table for name, table in ready.items() if name not in given]


def _changed(ready: _Values, table: _Values) -> _Values:
    changed = ready | table
    for key in (*_SHARES, "capacity"):
        if key in ready and key in table:
            changed[key] = ready[key] | table[key]
    return changed


def _class(table: _Values) -> ClassRule:
    return ClassRule(name=table["name"], terms=_terms(table), schedules=_schedules(table))


def _identity(table: _Values) -> IdentityRule:
    said = {"class_name": table["class"]} if "class" in table else {}
    if "claim" in table:
        said["claim"] = table["claim"]
    return IdentityRule(
        name=table["name"],
        matches=tuple(rule for match in table.get("match", ()) for rule in _rules(match)),
        terms=_terms(table),
        capacity=CapacityTerms(**table.get("capacity", {})),
        schedules=_schedules(table),
        **said,
    )


def _rules(match: _Values) -> list[MatchRule]:
    """Return a rule for every combination of the values that a table gives."""
    if not match:
        return []
    return [
        MatchRule(**dict(zip(match, combination, strict=True)))
        for combination in product(*match.values())
    ]


def _schedules(table: _Values) -> tuple[Schedule, ...]:
    return tuple(
        Schedule(when=one["when"], terms=_terms(one))
        for one in table.get("schedule", ())
        if "when" in one
    )


def _terms(table: _Values) -> Terms:
    return Terms(
        **{key: ShareTerms(**table.get(key, {})) for key in _SHARES},
        in_flight=table.get("in_flight"),
        max_wait_s=table.get("max_wait"),
        priority=table.get("priority"),
    )
