"""The program: its commands by name, each imported when it runs, and the one place where errors
end as a line and an exit code.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperGroup
from typer.main import get_command

from tiercache.cli.exits import ExitCode, exit_code_of
from tiercache.cli.output import out, say, say_error
from tiercache.cli.session import CACHE_DIR, CONFIG, DEBUG
from tiercache.errors import TiercacheError

PROGRAM = "tiercache"

# The base of all errors of usage. typer ships click inside, or depends on it, as its version is;
# only the classes it exports are the same everywhere.
UsageError: Any = typer.BadParameter.__mro__[1]
ClickException: Any = typer.BadParameter.__mro__[2]


@dataclass(frozen=True, slots=True)
class Command:
    """Where a command is implemented ("module:function"), and its line in the help."""

    where: str
    summary: str


AGENT = {
    "run": Command("agent:run", "Serve in the foreground, for systemd and Kubernetes."),
    "start": Command("agent:start", "Start an agent in the background unless one runs."),
    "stop": Command("agent:stop", "Ask the agent to leave, and wait until it has."),
    "status": Command("agent:status", "Say whether an agent runs; exit 3 where none does."),
}
AUTARKY = {
    "check": Command("autarky:check", "Say whether a job would survive an outage."),
}
CONFIGURATION = {
    "show": Command("config:show", "Print the configuration in force."),
    "path": Command("config:path", "Print the files that configuration is read from."),
    "check": Command("config:check", "Check the configuration and say what it is."),
    "schema": Command("config:schema", "Print every key with its type, default and meaning."),
}
METADATA = {
    "export": Command("metadata:export", "Write all records to a file."),
    "import": Command("metadata:import_", "Bring the records of a file into a store."),
    "copy": Command("metadata:copy", "Copy all records of one store into another."),
    "check": Command("metadata:check", "Read every record; find and repair damage."),
    "rebuild": Command("metadata_agent:rebuild", "Learn names anew from the origins."),
    "status": Command("metadata_agent:status", "Show how the agent and its store get along."),
}
QOS = {
    "show": Command("qos_show:show", "Show the policy in force."),
    "top": Command("qos_top:top", "Show who gets how much, who waits, and on what."),
    "explain": Command("qos_show:explain", "Say why an identity gets what it gets of a path."),
    "check": Command("qos:check", "Check a policy file; no agent is needed."),
    "diff": Command("qos:diff", "Show what a policy file would change."),
    "apply": Command("qos_change:apply", "Put a policy into force."),
    "set": Command("qos_change:set_", "Override values of an identity, also for a while."),
    "unset": Command("qos_change:unset", "End overrides of an identity."),
    "calibrate": Command("qos_change:calibrate", "Measure what the node delivers."),
    "audit": Command("qos_audit:audit", "Print who changed what, and who was denied."),
}
QUOTA = {
    "ls": Command("quota:ls", "Show what each identity holds of the cache, and may."),
    "set": Command("quota:set_", "Override bounds of an identity, also for a while."),
    "check": Command("quota:check", "Hold the sums against index and device; repair them."),
}
SNAPSHOT = {
    "create": Command("snapshot:create", "Freeze names and versions below paths."),
    "ls": Command("snapshot:ls", "List the snapshots."),
    "show": Command("snapshot:show", "Show what a snapshot holds."),
    "diff": Command("snapshot:diff", "Compare two snapshots, or one with what there is now."),
    "rm": Command("snapshot:rm", "Forget snapshots."),
    "verify": Command("snapshot:verify", "Read a snapshot and compare its checksums."),
    "export": Command("snapshot:export", "Write a snapshot as a Parquet file."),
}
COMMANDS: dict[str, Command | tuple[str, dict[str, Command]]] = {
    "ls": Command("names:ls", "List directories."),
    "stat": Command("names:stat", "Show what is known of paths."),
    "cat": Command("reading:cat", "Write objects to standard output."),
    "get": Command("reading:get", "Copy an object or a directory to local files."),
    "put": Command("writing:put", "Copy local files to an object or a directory."),
    "rm": Command("writing:rm", "Remove objects at their origin."),
    "du": Command("names:du", "Sum up bytes, objects and cached bytes."),
    "find": Command("names:find", "Find names by pattern, type and size."),
    "prefetch": Command("prefetch:prefetch", "Fetch everything below paths into the cache."),
    "snapshot": ("Freeze, compare and verify datasets.", SNAPSHOT),
    "pin": Command("residency:pin", "Never evict what paths name."),
    "unpin": Command("residency:unpin", "Undo pin."),
    "evict": Command("residency:evict", "Drop cached bytes; the origin is not touched."),
    "invalidate": Command("residency:invalidate", "Forget how fresh names are."),
    "autarky": ("Prepare for outages.", AUTARKY),
    "qos": ("Check, show and change the QoS policy.", QOS),
    "quota": ("Show, set and check what identities hold of the cache.", QUOTA),
    "status": Command("status:status", "Show cache, mounts, origins, jobs and clients."),
    "agent": ("Run, start, stop and watch the agent.", AGENT),
    "mount": Command("mount:mount", "Show the mounts and whether their origins answer."),
    "config": ("Show and check the configuration.", CONFIGURATION),
    "doctor": Command("doctor:doctor", "Check what goes wrong in practice."),
    "metadata": ("Move, check and rebuild the metadata store.", METADATA),
    "fsck": Command("fsck:fsck", "Check the cache directory, byte by byte."),
}


class _ReaderGone(Exception):
    """Standard output is closed. typer would end a BrokenPipeError with 1 by itself."""


class LazyGroup(TyperGroup):
    """A group that imports a command when it is asked for, and prints its help without."""

    entries: ClassVar[dict[str, Command | tuple[str, dict[str, Command]]]] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.entries)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        entry = self.entries.get(cmd_name)
        if entry is None:
            return None
        if cmd_name not in self.commands:
            self.commands[cmd_name] = build_entry(cmd_name, entry)
        return self.commands[cmd_name]

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGone from error

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = [
            (name, entry.summary if isinstance(entry, Command) else entry[0])
            for name, entry in self.entries.items()
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def build_entry(name: str, entry: Command | tuple[str, dict[str, Command]]) -> Any:
    """Return the click command of a table's line."""
    if isinstance(entry, tuple):
        return build_group(name, entry[0], entry[1])
    module, function = entry.where.split(":")
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name)(getattr(import_module(f"tiercache.cli.{module}"), function))
    command: Any = get_command(app)
    command.params.extend(shared_options())
    return command


def build_group(
    name: str,
    text: str,
    entries: dict[str, Any],
    *,
    is_root: bool = False,
) -> Any:
    """Return a group with the shared options; the root has those of the program too."""

    class Group(LazyGroup):
        pass

    Group.entries = entries
    app = typer.Typer(
        name=name,
        cls=Group,
        help=text,
        no_args_is_help=True,
        add_completion=is_root,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_root if is_root else _nothing)
    group: Any = get_command(app)
    group.params.extend(shared_options())
    return group


def _nothing() -> None:
    pass


def _say_version(wanted: bool) -> None:
    if wanted:
        from tiercache.version import __version__

        out(f"{PROGRAM} {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and exit.",
            is_eager=True,
            expose_value=False,
            callback=_say_version,
        ),
    ] = False,
) -> None:
    """The options of the program alone."""


def _keep(ctx: typer.Context, param: typer.CallbackParam, value: Any) -> None:
    """Remember an option for the whole command line: the innermost place it is given at wins."""
    key = {"config": CONFIG, "cache_dir": CACHE_DIR, "debug": DEBUG}[str(param.name)]
    if value:
        ctx.meta[key] = value


def _shared(
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="Read this configuration file and no other.",
            expose_value=False,
            callback=_keep,
        ),
    ] = None,
    cache_dir: Annotated[
        str | None,
        typer.Option(
            "--cache-dir",
            metavar="DIR",
            help="Use the cache in this directory.",
            expose_value=False,
            callback=_keep,
        ),
    ] = None,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help="Print tracebacks of errors.", expose_value=False, callback=_keep
        ),
    ] = False,
) -> None:
    """The options that every command takes, before and after its name."""


@cache
def shared_options() -> tuple[Any, ...]:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(_shared)
    command: Any = get_command(app)
    return tuple(command.params)


def program() -> Any:
    """Return the whole command tree."""
    text = (
        "NVMe as the near tier of S3, Google Cloud Storage and Azure Blob.\n\n"
        "Paths are namespace paths (/imagenet/train; a directory means all below it) or origin "
        "URLs (s3://bucket/prefix, gs://…, az://…), which need no configuration."
    )
    return build_group(PROGRAM, text, COMMANDS, is_root=True)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors end here, as one line."""
    for stream in (sys.stdout, sys.stderr):
        # A name that is not unicode must not end the command that prints it.
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    try:
        code = _run(list(arguments))
        sys.stdout.flush()
    except (BrokenPipeError, _ReaderGone):
        _forget_stdout()
        return ExitCode.OK
    return code


def _run(arguments: list[str]) -> int:
    debug = "--debug" in arguments
    try:
        result = program()(arguments, prog_name=PROGRAM, standalone_mode=False)
        return int(result or 0)
    except (BrokenPipeError, _ReaderGone):
        raise
    except UsageError as error:
        _say_usage(error)
        return ExitCode.USAGE
    except ClickException as error:
        say(f"{PROGRAM}: {error.format_message()}")
        return ExitCode.USAGE
    except (KeyboardInterrupt, typer.Abort):
        say(f"{PROGRAM}: interrupted")
        return ExitCode.INTERRUPTED
    except (TiercacheError, OSError) as error:
        say_error(error, debug=debug)
        return exit_code_of(type(error))
    except Exception as error:  # main()'s top: a bug of ours ends as a line and a code too
        say_error(error, debug=debug)
        say(f"{PROGRAM}: this is a bug ({type(error).__name__}); --debug prints where")
        return ExitCode.FAILED


def _say_usage(error: Any) -> None:
    if type(error).__name__ == "NoArgsIsHelpError":
        say(error.ctx.get_help())
        return
    say(f"{PROGRAM}: {error.format_message()}")
    if error.ctx is not None:
        say(f"Try '{error.ctx.command_path} --help'.")


def _forget_stdout() -> None:
    """Whoever read us has gone: end quietly, also when the interpreter flushes."""
    null = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError):
        os.dup2(null, sys.stdout.fileno())
    os.close(null)
