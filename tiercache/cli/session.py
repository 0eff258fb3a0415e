"""From the options that every command takes to settings, a namespace or a running agent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from tiercache.cli.output import Tally

if TYPE_CHECKING:
    from tiercache.client.link import Link
    from tiercache.config.loading import LoadedConfig
    from tiercache.namespace import Namespace
    from tiercache.settings import Settings

T = TypeVar("T")

CONFIG = "tiercache.config"
CACHE_DIR = "tiercache.cache_dir"
DEBUG = "tiercache.debug"

# Until an agent has greeted who only looks. A busy one takes some tenths.
GREETING_S = 5.0


def loaded_config(ctx: typer.Context, **overrides: Any) -> LoadedConfig:
    """Return the configuration in force, with where each value came from. Raises ConfigError."""
    from tiercache.config.loading import load

    given = {"cache.dir": ctx.meta.get(CACHE_DIR), **overrides}
    return load(
        ctx.meta.get(CONFIG),
        overrides={key: value for key, value in given.items() if value is not None},
    )


def settings(ctx: typer.Context) -> Settings:
    return loaded_config(ctx).settings


@contextmanager
def namespace(ctx: typer.Context) -> Iterator[Namespace]:
    """Open the namespace, starting an agent where there is none, and close it in the end."""
    from tiercache.namespace import Namespace

    with Namespace(settings(ctx)) as opened:
        yield opened


def debug(ctx: typer.Context) -> bool:
    return bool(ctx.meta.get(DEBUG))


def tally(ctx: typer.Context) -> Tally:
    return Tally(debug=debug(ctx))


def running_agent(settings: Settings) -> Link | None:
    """Return a link to the agent of this cache directory, None where none runs; starts none.

    It greets without mounts and takes what it finds, so that it also reaches an agent of another
    configuration. The caller closes it. Raises FormatError for an agent of another wire version,
    AgentUnavailable for one that does not answer.
    """
    from tiercache.client.link import Link
    from tiercache.compose import cache_directory
    from tiercache.errors import AgentUnavailable

    def none() -> None:
        raise AgentUnavailable("no agent runs", path=settings.cache.dir)

    link = Link(
        socket_path=cache_directory(settings).socket,
        mounts=(),
        profiles=(),
        start_agent=none,
        accept=lambda welcome: None,
    )
    if link.is_wedged(within_s=GREETING_S):
        link.close()
        raise AgentUnavailable(
            f"an agent serves the directory and has not answered for {GREETING_S:g} s",
            path=settings.cache.dir,
            remedy="it is stopped or wedged: kill it (agent.lock has its number), the next use "
            "starts another",
        )
    try:
        link.ensure()
    except AgentUnavailable:
        link.close()
        return None
    return link


def checked_paths(paths: Sequence[str]) -> list[str]:
    """Return namespace paths, origin URLs and paths in snapshots; anything else is a usage
    error."""
    from tiercache.policy import snapshots

    for path in paths:
        if not path.startswith("/") and "://" not in path and not snapshots.split(path):
            raise typer.BadParameter(
                f"{path!r} is neither a namespace path nor an origin URL: write /{path}, or "
                "scheme://bucket/key"
            )
    return list(paths)


def bytes_option(text: str, option: str) -> int:
    """Return the bytes that an option's "10GiB" stands for; anything else is a usage error."""
    from tiercache.units import parse_bytes

    return _parsed(parse_bytes, text, option)


def duration_option(text: str, option: str) -> float:
    """Return the seconds that an option's "1h" stands for; anything else is a usage error."""
    from tiercache.units import parse_duration

    return _parsed(parse_duration, text, option)


def _parsed(parse: Callable[[str], T], text: str, option: str) -> T:
    from tiercache.errors import ConfigError

    try:
        return parse(text)
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
