"""qos check: policy files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiercache.cli.exits import ExitCode
from tiercache.cli.names import JSON
from tiercache.cli.output import out, out_json, say

if TYPE_CHECKING:
    from tiercache.policy.qos_checks import Problem

POLICY_FILE = typer.Argument(metavar="FILE", help="The policy file.", show_default=False)


def check(
    file: Annotated[str, POLICY_FILE],
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Check a policy file: every mistake with its line; exit 4 where there is one.

    No agent is needed. What depends on the node or the cache (rates that are "auto", shares) is
    checked again when the policy is applied.
    """
    from tiercache.config.qos_policy import check_policy

    checked = check_policy(read_policy(file), where=file)
    code = ExitCode.CONFIG if checked.problems else ExitCode.OK
    if as_document:
        out_json(
            {
                "file": file,
                "valid": not checked.problems,
                "problems": [_document(problem) for problem in checked.problems],
                "warnings": [_document(problem) for problem in checked.warnings],
            }
        )
        return code
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
    return code


def read_policy(file: str) -> str:
    """Return the text of a policy file. Raises ConfigError."""
    from tiercache.errors import ConfigError

    try:
        return Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8 text", path=file) from None


def _document(problem: Problem) -> dict[str, Any]:
    return {
        "place": problem.place,
        "key": problem.key,
        "cause": problem.cause,
        "remedy": problem.remedy,
    }
