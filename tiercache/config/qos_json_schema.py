"""The JSON Schema of policy files, for editors and for other programs:
``python -m tiercache.config.qos_json_schema [FILE]``. TOML and JSON have the same tables.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tiercache.config.qos_schema import POLICY, VERSION, Key, Kind, Table
from tiercache.config.qos_values import (
    AUTO,
    HIGHEST_PRIORITY,
    LEAST_WEIGHT,
    MOST_WEIGHT,
    UNLIMITED,
)
from tiercache.policy.qos_schedule import DAYS

Schema = dict[str, Any]


def _text(pattern: str) -> Schema:
    return {"type": "string", "pattern": f"^\\s*(?:{pattern})\\s*$"}


def _one_or_more(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "array", "items": schema}]}


_NUMBER = r"\d+(?:\.\d+)?"
_UNITS = r"(?:[kKmMgGtTpP][iI]?)?[bB]?"
_BYTES_A_SECOND = _text(rf"{_NUMBER}\s*{_UNITS}\s*/\s*s(?:ec)?")
_OPERATIONS_A_SECOND = _text(rf"{_NUMBER}\s*[kKmM]?\s*/\s*s(?:ec)?")
_PERCENTAGE = _text(r"\d{1,3}(?:\.\d{1,12})?\s*%")
_ABOVE_ZERO: Schema = {"type": "number", "exclusiveMinimum": 0}
_NOT_NEGATIVE: Schema = {"type": "number", "minimum": 0}
_SIZE = _text(rf"{_NUMBER}\s*{_UNITS}")
_ANY_TEXT: Schema = {"anyOf": [{"type": "string", "minLength": 1}, {"type": "integer"}]}
# Patterns of JSON Schema know no flags: a day's letters in either case.
_DAY = "(?:" + "|".join("".join(f"[{c}{c.swapcase()}]" for c in day) for day in DAYS) + ")"
_DAYS = rf"{_DAY}(?:\s*-\s*{_DAY})?"
_HOURS = r"\d{1,2}:\d\d\s*-\s*\d{1,2}:\d\d"
_WHEN = _text(rf"(?:{_DAYS}(?:\s*,\s*{_DAYS})*)?\s*(?:{_HOURS})?")

_OF_KIND: dict[Kind, Schema] = {
    Kind.VERSION: {"const": VERSION},
    Kind.NAME: {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
    Kind.TEXT: {"type": "string"},
    Kind.TEXTS: _one_or_more(_ANY_TEXT),
    Kind.PATH: _one_or_more({"type": "string", "pattern": "^(/|[^/]+://)[^/]"}),
    Kind.ORIGIN: {"type": "string", "pattern": "^(?:[a-z][a-z0-9+.-]*://\\S*|endpoint:\\S+)$"},
    Kind.WHEN: _one_or_more(_WHEN),
    Kind.BYTE_RATE: {"anyOf": [_BYTES_A_SECOND, _ABOVE_ZERO]},
    Kind.BYTE_SHARE: {"anyOf": [_BYTES_A_SECOND, _PERCENTAGE, _NOT_NEGATIVE]},
    Kind.BYTE_LIMIT: {
        "anyOf": [_BYTES_A_SECOND, _PERCENTAGE, {"const": UNLIMITED}, _ABOVE_ZERO]
    },
    Kind.BYTE_BURST: {"anyOf": [_SIZE, _ABOVE_ZERO]},
    Kind.OPERATION_RATE: {"anyOf": [_OPERATIONS_A_SECOND, _ABOVE_ZERO]},
    Kind.OPERATION_SHARE: {"anyOf": [_OPERATIONS_A_SECOND, _PERCENTAGE, _NOT_NEGATIVE]},
    Kind.OPERATION_LIMIT: {
        "anyOf": [_OPERATIONS_A_SECOND, _PERCENTAGE, {"const": UNLIMITED}, _ABOVE_ZERO]
    },
    Kind.OPERATION_BURST: {"anyOf": [_text(rf"{_NUMBER}\s*[kKmM]?"), _ABOVE_ZERO]},
    Kind.NODE_BYTES: {"anyOf": [_BYTES_A_SECOND, {"const": AUTO}, _ABOVE_ZERO]},
    Kind.NODE_OPERATIONS: {"anyOf": [_OPERATIONS_A_SECOND, {"const": AUTO}, _ABOVE_ZERO]},
    Kind.SIZE_SHARE: {"anyOf": [_SIZE, _PERCENTAGE, {"type": "integer", "minimum": 0}]},
    Kind.WEIGHT: {"type": "number", "minimum": LEAST_WEIGHT, "maximum": MOST_WEIGHT},
    Kind.SHARE: {"anyOf": [_PERCENTAGE, {"type": "number", "exclusiveMinimum": 0, "maximum": 1}]},
    Kind.PRIORITY: {
        "type": "integer", "minimum": -HIGHEST_PRIORITY, "maximum": HIGHEST_PRIORITY,
    },
    Kind.COUNT: {"type": "integer", "minimum": 1},
    Kind.DURATION: {"anyOf": [_text(rf"{_NUMBER}\s*(?:ns|us|ms|s|m|h|d)?"), _ABOVE_ZERO]},
    Kind.BOOLEAN: {"type": "boolean"},
}  # fmt: skip


def json_schema() -> Schema:
    """Return the schema. What it accepts may still be refused by ``check``, which adds up
    reservations and compares rules; what it refuses, ``check`` refuses too."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "tiercache QoS policy",
        **_table(POLICY),
    }


def _table(table: Table) -> Schema:
    schema: Schema = {
        "description": table.meaning,
        "type": "object",
        "properties": {key.name: _key(key) for key in table.keys},
        "additionalProperties": False,
    }
    if required := [key.name for key in table.keys if key.required]:
        schema["required"] = required
    return schema


def _key(key: Key) -> Schema:
    if key.table is None:
        schema = dict(_OF_KIND[key.kind])
        if key.choices:
            schema["enum"] = list(key.choices)
    elif key.kind is Kind.TABLE:
        schema = _table(key.table)
    else:
        several = {"type": "array", "items": _table(key.table)}
        schema = {"anyOf": [_table(key.table), several]} if key.alone else several
    more = f" Default: {key.default}." if key.default else ""
    return schema | {"description": key.meaning + more}


def main(arguments: list[str]) -> None:
    text = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    if arguments:
        Path(arguments[0]).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main(sys.argv[1:])
