"""What commands print: data on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tiercache.cli.exits import ExitCode, exit_code_of, exit_code_of_many
from tiercache.errors import TiercacheError


def out(text: str) -> None:
    """Print one line of data."""
    sys.stdout.write(text + "\n")


def out_json(document: Any) -> None:
    """Print one JSON document; of structures their fields. It is ASCII whatever names hold."""
    json.dump(document, sys.stdout, indent=2, default=fields)
    sys.stdout.write("\n")


def fields(structure: object) -> Any:
    """Return what JSON has for a structure."""
    from msgspec import to_builtins

    return to_builtins(structure)


def say(text: str) -> None:
    """Print one line for the user, not for a program."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def on_terminal() -> bool:
    return sys.stdout.isatty()


def error_line(error: BaseException) -> str:
    """Return "tiercache: PATH: cause (remedy)", in one line."""
    if isinstance(error, TiercacheError):
        text = str(error)
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = str(error) or type(error).__name__
    return "tiercache: " + " ".join(text.split("\n"))


def say_error(error: BaseException, *, debug: bool) -> None:
    if debug:
        say("".join(traceback.format_exception(error)).rstrip())
    say(error_line(error))


class Tally:
    """Outcomes of a command over many items: a failure is printed and the next item goes on."""

    def __init__(self, *, debug: bool) -> None:
        self._debug = debug
        self._failures: list[ExitCode] = []
        self.succeeded = 0

    @contextmanager
    def item(self) -> Iterator[None]:
        """Count what happens inside. A closed standard output ends everything."""
        try:
            yield
        except BrokenPipeError:
            raise
        except (TiercacheError, OSError) as error:
            self.fail(error)
        else:
            self.succeeded += 1

    def fail(self, error: BaseException) -> None:
        self._failures.append(exit_code_of(type(error)))
        say_error(error, debug=self._debug)

    @property
    def failed(self) -> int:
        return len(self._failures)

    @property
    def code(self) -> ExitCode:
        return exit_code_of_many(self._failures, succeeded=self.succeeded)


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()
) -> None:
    """Print a table: drawn on a terminal, columns of plain text otherwise. ``right`` names the
    columns that hold numbers."""
    if not on_terminal():
        for line in plain_table(header, rows, right=right):
            out(line)
        return
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(header):
        justify: Any = "right" if number in right else "left"
        drawn.add_column(name, justify=justify, overflow="fold")
    for row in rows:
        drawn.add_row(*(cell.replace("[", r"\[") for cell in row))
    Console(highlight=False).print(drawn)


def plain_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()
) -> list[str]:
    """Return the lines of a table, two spaces between columns."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
