"""A policy as tables again, for JSON, for people and for comparison."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tiercache.config.qos_schema import (
    BACKEND,
    BYTE_SHARES,
    CAPACITY,
    CLASS,
    CLASS_SCHEDULE,
    IDENTITY,
    IDENTITY_SCHEDULE,
    MATCH,
    NODE,
    OPERATION_SHARES,
    VERSION,
    Kind,
    Table,
)
from tiercache.config.qos_values import AUTO, written
from tiercache.policy.qos import BackendPlan
from tiercache.policy.qos_match import ANYBODY
from tiercache.policy.qos_rules import ClassRule, IdentityRule, Policy, Schedule, Terms

Document = dict[str, Any]
# What a class, an identity or a backend is in a comparison, beside its keys.
_IS_THERE = "there"
_SECTIONS = ("version", "profile", "node", "class", "identity", "backend")
_UNBOUNDED = BackendPlan(origin="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What differs between two policies: ``key`` as in "identity[training].read.limit"; None is
    unsaid."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        """One line: "identity[training].read.limit: 1GB/s → 2GB/s"."""
        if self.old == _IS_THERE or self.new == _IS_THERE:
            return f"{self.key}: {'added' if self.old is None else 'removed'}"
        return f"{self.key}: {_shown(self.old)} → {_shown(self.new)}"


def _shown(value: Any) -> str:
    if value is None:
        return "unsaid"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def policy_document(policy: Policy) -> Document:
    """Return the tables of a policy file that says the same, of values that JSON has.

    What a profile gives is said in full, and its name beside it; parsing the document as TOML or
    JSON gives an equal policy.
    """
    document: Document = {"version": VERSION}
    if policy.profile:
        document["profile"] = policy.profile
    node: Document = dict.fromkeys(("read", "write", "operations"), AUTO)
    document["node"] = node | _table(NODE, policy.node)
    document["class"] = [_class(rule) for rule in policy.classes]
    document["identity"] = [_identity(rule) for rule in policy.identities]
    document["backend"] = [_backend(plan) for plan in policy.backends]
    return {key: value for key, value in document.items() if value != []}


def _table(table: Table, value: object) -> Document:
    """Return the keys of a table that are said and are no tables themselves."""
    found: Document = {}
    for key in table.keys:
        said = getattr(value, key.name, None)
        if key.table is None and said is not None and said != "":
            found[key.name] = written(key.kind, said)
    return found


def _terms(table: Table, terms: Terms) -> Document:
    found = {
        "read": _table(BYTE_SHARES, terms.read),
        "write": _table(BYTE_SHARES, terms.write),
        "operations": _table(OPERATION_SHARES, terms.operations),
    }
    said = _table(table, terms)
    said |= {key: value for key, value in found.items() if value}
    if terms.max_wait_s is not None:
        said["max_wait"] = written(Kind.DURATION, terms.max_wait_s)
    return said


def _schedules(table: Table, schedules: tuple[Schedule, ...]) -> Document:
    tables: list[Document] = []
    for one in schedules:
        tables.append({"when": written(Kind.WHEN, one.when)})
        tables[-1] |= _terms(table, one.terms)
    return {"schedule": tables} if tables else {}


def _class(rule: ClassRule) -> Document:
    terms = _terms(CLASS, rule.terms)
    return {"name": rule.name} | terms | _schedules(CLASS_SCHEDULE, rule.schedules)


def _identity(rule: IdentityRule) -> Document:
    found: Document = {"name": rule.name, "class": rule.class_name}
    matches = [_table(MATCH, match) for match in rule.matches]
    if matches:
        found["match"] = matches[0] if len(matches) == 1 else matches
    if rule.claim != (ANYBODY,):
        found["claim"] = list(rule.claim)
    found |= _terms(IDENTITY, rule.terms)
    if capacity := _table(CAPACITY, rule.capacity):
        found["capacity"] = capacity
    return found | _schedules(IDENTITY_SCHEDULE, rule.schedules)


def _backend(plan: BackendPlan) -> Document:
    return {
        key: value
        for key, value in _table(BACKEND, plan).items()
        if getattr(plan, key) != getattr(_UNBOUNDED, key)
    }


def diff_policies(old: Policy, new: Policy) -> list[Change]:
    """Return every key that one says and the other does not, or says otherwise."""
    before, after = _flat(policy_document(old)), _flat(policy_document(new))
    tables = list(dict.fromkeys(map(_table_of, [*before, *after])))
    tables.sort(key=lambda table: _SECTIONS.index(table.partition("[")[0]))
    keys = sorted(before | after, key=lambda key: tables.index(_table_of(key)))
    found = [
        Change(key=key, old=before.get(key), new=after.get(key))
        for key in keys
        if before.get(key) != after.get(key)
    ]
    return found + list(_orders(old, new))


def _table_of(key: str) -> str:
    """Return "identity[training]" for a key inside, "node" for "node.read"."""
    table, bracket, _ = key.partition("]")
    return table + bracket if bracket else key.partition(".")[0]


def _flat(document: Document, at: str = "") -> Document:
    """Return single values by dotted key; tables of several go by their names, and rules and hours
    as a whole."""
    found: Document = {}
    for key, value in document.items():
        place = f"{at}.{key}" if at else key
        if key in ("class", "identity", "backend") and isinstance(value, list):
            for table in value:
                name = table["origin"] if key == "backend" else table["name"]
                found[f"{key}[{name}]"] = _IS_THERE
                found |= _flat(
                    {k: v for k, v in table.items() if k not in ("name", "origin")},
                    f"{key}[{name}]",
                )
        elif isinstance(value, dict) and key != "match":
            found |= _flat(value, place)
        else:
            found[place] = value
    return found


def _orders(old: Policy, new: Policy) -> Iterator[Change]:
    """The order of identities breaks ties between their rules."""
    before, after = ([rule.name for rule in policy.identities] for policy in (old, new))
    both = set(before) & set(after)
    kept = [[name for name in names if name in both] for names in (before, after)]
    if kept[0] != kept[1]:
        yield Change(key="identity order", old=kept[0], new=kept[1])
