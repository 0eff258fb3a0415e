"""What doctor checks of the QoS policy: that it can be read and kept, and that what it reserves
has an effect on this node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tiercache.cli import session
from tiercache.cli.diagnosis import Finding, Level
from tiercache.cli.exits import ExitCode
from tiercache.errors import TiercacheError

if TYPE_CHECKING:
    from tiercache.policy.qos import Rates
    from tiercache.policy.qos_rules import Policy
    from tiercache.qos_reports import Show
    from tiercache.settings import Settings

WHAT = "QoS policy"
REFUSED = "repair it; tiercache qos check shows every mistake"


def policy(settings: Settings) -> Iterator[Finding]:
    """Look at the policy file that is configured, and at what the running agent keeps to."""
    try:
        told = _told(settings)
    except (TiercacheError, OSError):
        told = None  # an agent that does not answer is a finding of its own
    if settings.qos.policy:
        yield from _file(Path(settings.qos.policy))
    if told is None or not (told.generation or told.error):
        if not settings.qos.policy:
            yield Finding(WHAT, Level.OK, "none: everybody gets what there is")
        return
    if told.error:
        first = told.error.partition("\n")[0]
        yield Finding(WHAT, Level.WARN, f"the agent refuses it: {first}", REFUSED)
    if told.generation:
        yield Finding(
            WHAT, Level.OK, f"generation {told.generation} is in force, from {told.source}"
        )
        yield from _effects(told)


def _told(settings: Settings) -> Show | None:
    from tiercache.qos import Qos

    link = session.running_agent(settings)
    if link is None:
        return None
    try:
        return Qos(lambda: link).show()
    finally:
        link.close()


def _file(path: Path) -> Iterator[Finding]:
    from tiercache.cli.qos import read_policy
    from tiercache.config.qos_policy import check_policy

    try:
        checked = check_policy(read_policy(str(path)), where=str(path))
    except (TiercacheError, OSError) as error:
        yield Finding.of_error(WHAT, error, ExitCode.CONFIG)
        return
    for problem in checked.problems:
        yield Finding(WHAT, Level.FAIL, str(problem), REFUSED, ExitCode.CONFIG)
    for problem in checked.warnings:
        yield Finding(WHAT, Level.WARN, str(problem))
    if checked.policy is not None and not checked.warnings:
        yield Finding(WHAT, Level.OK, f"{path} is valid")


def _effects(told: Show) -> Iterator[Finding]:
    """Warn of shares of a node of which nobody knows what it delivers: they bound nothing."""
    from math import inf

    from tiercache.config.qos_policy import parse_policy

    try:
        parsed = parse_policy(told.text, where=told.source)
    except TiercacheError:  # an agent of another version reads it otherwise
        return
    node: Rates = (
        inf if told.node.read is None else told.node.read,
        inf if told.node.write is None else told.node.write,
        inf if told.node.operations is None else told.node.operations,
    )
    for sentence in without_effect(parsed, node):
        yield Finding(WHAT, Level.WARN, sentence, "tiercache qos calibrate, or say it under [node]")


def without_effect(parsed: Policy, node: Rates) -> Iterator[str]:
    """Yield a sentence for each resource of which shares are reserved and none can be."""
    from math import isinf

    from tiercache.policy.qos import Resource
    from tiercache.policy.qos_rules import Fraction

    for resource in Resource:
        terms = [(rule.name, rule.terms) for rule in parsed.classes]
        terms += [(rule.name, rule.terms) for rule in parsed.identities]
        names = [name for name, said in terms if isinstance(said.share(resource).reserve, Fraction)]
        if names and isinf(node[resource]):
            word = resource.name.lower()
            yield (
                f"what {', '.join(names)} reserve of {word} are shares of a node whose {word} rate "
                "is not known: they reserve nothing"
            )
