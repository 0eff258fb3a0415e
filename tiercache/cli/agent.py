"""agent run, start, stop, status."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiercache.cli import session
from tiercache.cli.exits import ExitCode
from tiercache.cli.names import JSON
from tiercache.cli.output import out, out_json, say
from tiercache.errors import AgentUnavailable

if TYPE_CHECKING:
    from tiercache.settings import Settings

# The agent flushes its index and waits for no reader: seconds are plenty.
STOP_TIMEOUT_S = 60.0
POLL_S = 0.02


class LogFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


def run(
    ctx: typer.Context,
    idle_timeout: Annotated[
        str, typer.Option(metavar="TIME", help="Leave after so long without clients; 0 is never.")
    ] = "0",
    log_format: Annotated[
        LogFormat, typer.Option(metavar="text|json", help="How log lines look.")
    ] = LogFormat.TEXT,
    log_level: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")
    ] = None,
) -> int:
    """Serve this cache directory in the foreground until SIGTERM. Logs go to standard error."""
    import msgspec

    from tiercache.compose import run_agent
    from tiercache.units import parse_duration

    settings = session.loaded_config(ctx, **{"agent.log_level": log_level}).settings
    # What is configured is for agents that nobody started on purpose.
    agent = msgspec.structs.replace(settings.agent, idle_timeout_s=parse_duration(idle_timeout))
    settings = msgspec.structs.replace(settings, agent=agent)
    _refuse_where_one_runs(settings)
    if log_format is LogFormat.JSON:
        from tiercache.cli.json_logs import log_as_json

        log_as_json(settings.agent.log_level)
    return run_agent(settings, announce=False)


def _refuse_where_one_runs(settings: Settings) -> None:
    link = session.running_agent(settings)
    if link is None:
        return
    pid = link.welcome.agent_pid if link.welcome else 0
    link.close()
    raise AgentUnavailable(
        f"another agent serves the directory already, process {pid}",
        path=settings.cache.dir,
        remedy="tiercache agent stop, or name another --cache-dir",
    )


def start(ctx: typer.Context, as_document: Annotated[bool, JSON] = False) -> int:
    """Start an agent in the background unless one runs, and print its process id.

    It leaves when it is idle, as agent.idle_timeout says.
    """
    with session.namespace(ctx) as namespace:
        welcome = namespace.client.link.welcome
        assert welcome is not None
    if as_document:
        out_json({"pid": welcome.agent_pid, "version": welcome.agent_version})
    else:
        out(str(welcome.agent_pid))
    return ExitCode.OK


def stop(ctx: typer.Context) -> int:
    """Ask the agent to leave and wait until the directory is free. None running is fine."""
    from tiercache import wire

    settings = session.settings(ctx)
    link = session.running_agent(settings)
    if link is None:
        say(f"no agent runs in {settings.cache.dir}")
        return ExitCode.OK
    pid = link.welcome.agent_pid if link.welcome else 0
    link.request(wire.Shutdown(), wire.Done)
    link.close()
    _wait_until_free(settings)
    say(f"the agent, process {pid}, has left {settings.cache.dir}")
    return ExitCode.OK


def _wait_until_free(settings: Settings) -> None:
    """Return when nobody holds the agent's lock. Raises AgentUnavailable after a minute."""
    import os

    from tiercache.compose import cache_directory

    directory = cache_directory(settings)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while True:
        lock_fd = directory.lock()
        if lock_fd is not None:
            os.close(lock_fd)
            return
        if time.monotonic() > deadline:
            raise AgentUnavailable(
                "the agent does not leave", path=settings.cache.dir, remedy="see agent.log there"
            )
        time.sleep(POLL_S)


def status(ctx: typer.Context, as_document: Annotated[bool, JSON] = False) -> int:
    """Say whether an agent serves this cache directory; exit 3 where none does."""
    settings = session.settings(ctx)
    link = session.running_agent(settings)
    document: dict[str, Any] = {"running": link is not None, "cache_dir": settings.cache.dir}
    if link is not None:
        assert link.welcome is not None
        document |= {"pid": link.welcome.agent_pid, "version": link.welcome.agent_version}
        link.close()
    if as_document:
        out_json(document)
    elif link is None:
        out(f"no agent runs in {settings.cache.dir}")
    else:
        out(f"process {document['pid']}, version {document['version']}, in {settings.cache.dir}")
    return ExitCode.OK if link is not None else ExitCode.NOT_FOUND
