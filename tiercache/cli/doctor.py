"""doctor: check what goes wrong in practice, and say the remedy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from tiercache.cli import session
from tiercache.cli.diagnosis import Finding, Level
from tiercache.cli.exits import ExitCode, exit_code_of
from tiercache.cli.names import JSON
from tiercache.cli.output import on_terminal, out, out_json
from tiercache.errors import FormatError, TiercacheError

if TYPE_CHECKING:
    from tiercache.settings import Settings

COLOURS = {Level.OK: "32", Level.WARN: "33", Level.FAIL: "31"}


def doctor(
    ctx: typer.Context,
    network: Annotated[
        bool, typer.Option("--network/--no-network", help="Ask origins whether they answer.")
    ] = True,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Check configuration, cache directory, agent, QoS policy, metadata store, credentials,
    origins and clock.

    Exit 0 where nothing failed, 4 for configuration or credentials, 5 where an origin cannot be
    reached, 1 for anything else.
    """
    findings: list[Finding] = []
    for finding in _findings(ctx, network=network):
        findings.append(finding)
        if not as_document:
            _print(finding)
    if as_document:
        out_json([finding.as_json() for finding in findings])
    codes = {finding.code for finding in findings if finding.level is Level.FAIL}
    order = (ExitCode.CONFIG, ExitCode.UNREACHABLE, ExitCode.FAILED)
    return next((code for code in order if code in codes), ExitCode.OK)


def _findings(ctx: typer.Context, *, network: bool) -> Iterable[Finding]:
    from tiercache.cli import diagnosis, diagnosis_metadata, diagnosis_origins, diagnosis_qos

    yield from diagnosis.versions()
    try:
        loaded = session.loaded_config(ctx)
    except TiercacheError as error:
        yield Finding.of_error("configuration", error, ExitCode.CONFIG)
        return
    files = ", ".join(loaded.files) or "no file, defaults and environment"
    yield Finding("configuration", Level.OK, files)
    settings = loaded.settings
    yield from diagnosis.cache_directory(settings)
    yield from diagnosis.limits()
    yield from _agent(settings)
    yield from diagnosis_qos.policy(settings)
    yield from diagnosis_metadata.metadata_store(settings, network=network)
    yield from diagnosis_origins.credentials(settings)
    if network:
        yield from diagnosis_origins.origins(settings)
        yield from diagnosis_origins.clocks(settings)


def _agent(settings: Settings) -> Iterable[Finding]:
    from tiercache.version import __version__

    try:
        link = session.running_agent(settings)
    except (FormatError, OSError) as error:
        yield Finding.of_error("agent", error, exit_code_of(type(error)))
        return
    if link is None:
        yield Finding("agent", Level.OK, "none runs; the first use starts one")
        return
    welcome = link.welcome
    link.close()
    assert welcome is not None
    text = f"process {welcome.agent_pid}, version {welcome.agent_version}"
    if welcome.agent_version == __version__:
        yield Finding("agent", Level.OK, text)
    else:
        yield Finding(
            "agent", Level.WARN, f"{text}, but this is {__version__}", "tiercache agent stop"
        )


def _print(finding: Finding) -> None:
    word = str(finding.level)
    if on_terminal():
        word = f"\x1b[{COLOURS[finding.level]}m{word:<4}\x1b[0m"
    remedy = f" ({finding.remedy})" if finding.remedy else ""
    out(f"{word:<4}  {finding.what}: {finding.text}{remedy}")
