"""qos check, diff: policy files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiercache.cli.exits import ExitCode
from tiercache.cli.names import JSON
from tiercache.cli.output import out, out_json, say

if TYPE_CHECKING:
    from tiercache.config.qos_policy import Checked
    from tiercache.policy.qos_checks import Problem
    from tiercache.policy.qos_rules import Policy

POLICY_FILE = typer.Argument(metavar="FILE", help="The policy file.")
OTHER_FILE = typer.Argument(metavar="FILE2", help="Another policy file.")
CHECKED_FILE = typer.Argument(metavar="FILE", help="The policy file; - is standard input.")
SCHEMA = typer.Option("--schema", help="Print the JSON Schema of policy files instead.")


def check(
    file: Annotated[str | None, CHECKED_FILE] = None,
    schema: Annotated[bool, SCHEMA] = False,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Check a policy file: every mistake with its line; exit 4 where there is one.

    No agent is needed. What depends on the node or the cache (rates that are "auto", shares of the
    cache) is checked again when the policy is applied.
    """
    if schema:
        from tiercache.config.qos_json_schema import json_schema

        out_json(json_schema())
        return ExitCode.OK
    if file is None:
        raise typer.BadParameter("name the policy file", param_hint="FILE")
    from tiercache.config.qos_policy import check_policy

    checked = check_policy(read_policy(file), where=file)
    if as_document:
        out_json(_checked_document(file, checked))
    else:
        _print_checked(checked)
    return ExitCode.CONFIG if checked.problems else ExitCode.OK


def _print_checked(checked: Checked) -> None:
    for problem in checked.problems:
        say(f"tiercache: {problem}")
    for problem in checked.warnings:
        say(f"warning: {problem}")
    if checked.policy is not None:
        policy = checked.policy
        out(
            f"the policy is valid: {len(policy.identities)} identities in "
            f"{len(policy.classes)} classes, {len(policy.rules)} rules, "
            f"{len(policy.backends)} backends"
        )


def _checked_document(file: str, checked: Checked) -> dict[str, Any]:
    from tiercache.config.qos_document import policy_document

    return {
        "file": file,
        "valid": not checked.problems,
        "policy": policy_document(checked.policy) if checked.policy else None,
        "problems": [_document(problem) for problem in checked.problems],
        "warnings": [_document(problem) for problem in checked.warnings],
    }


def diff(
    ctx: typer.Context,
    file: Annotated[str, POLICY_FILE],
    other: Annotated[str | None, OTHER_FILE] = None,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Show what FILE2 changes of FILE; with FILE alone, what it would change of the policy in force
    (which an agent must be running for). Ends with 1 where they differ."""
    from tiercache.config.qos_document import diff_policies
    from tiercache.config.qos_policy import parse_policy

    new = parse_policy(read_policy(other or file), where=other or file)
    old = _in_force(ctx) if other is None else parse_policy(read_policy(file), where=file)
    changes = diff_policies(old, new)
    if as_document:
        out_json([{"key": one.key, "old": one.old, "new": one.new} for one in changes])
    else:
        for line in map(str, changes):
            out(line)
        say(f"{len(changes)} change{'' if len(changes) == 1 else 's'}")
    return ExitCode.FAILED if changes else ExitCode.OK


def _in_force(ctx: typer.Context) -> Policy:
    """Return the policy that the running agent keeps to; an empty one where it keeps to none."""
    from tiercache.cli.qos_session import running_qos
    from tiercache.config.qos_policy import parse_policy
    from tiercache.policy.qos_rules import Policy

    with running_qos(ctx) as qos:
        show = qos.show()
    return parse_policy(show.text, where=show.source) if show.generation else Policy()


def read_policy(file: str) -> str:
    """Return the text of a policy file. Raises ConfigError."""
    from tiercache.errors import ConfigError

    try:
        return (sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()).decode()
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8 text", path=file) from None


def _document(problem: Problem) -> dict[str, Any]:
    return {
        "place": problem.place,
        "key": problem.key,
        "cause": problem.cause,
        "remedy": problem.remedy,
    }
