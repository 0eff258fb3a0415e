"""``python -m tiercache.cli.document [FILE]``: docs/cli.md, made from the command tree."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from tiercache.cli.exits import BY_CLASS, MEANINGS
from tiercache.cli.program import COMMANDS, PROGRAM, program, shared_options

INTRODUCTION = """\
# The command line

This page is generated: `python -m tiercache.cli.document docs/cli.md`.

`tiercache COMMAND …`; `python -m tiercache` is the same program. Paths are namespace paths, a
directory meaning all below it (`/imagenet/train`), or origin URLs (`s3://bucket/prefix`, `gs://…`,
`az://…`), which are mounted implicitly: they need no configuration. Data goes to standard output,
progress and errors to standard error. An error is one line: `tiercache: PATH: cause (remedy)`.
"""


def document() -> str:
    """Return the whole page."""
    root = program()
    context = typer.Context(root, info_name=PROGRAM)
    parts = [INTRODUCTION, _shared(), _exit_codes()]
    for name in COMMANDS:
        parts += _pages(root.get_command(context, name), name, context)
    return "\n".join(parts)


def _shared() -> str:
    rows = map(_row, shared_options())
    return "\n".join(
        [
            "Every command takes these options, before and after its name:",
            "",
            *_table(("option", "meaning"), rows),
            "",
            "`tiercache --show-completion` prints the completion of the current shell, "
            "`--install-completion` installs it.",
            "",
        ]
    )


def _exit_codes() -> str:
    rows = []
    for code, meaning in MEANINGS.items():
        classes = ", ".join(f"`{kind.__name__}`" for kind, own in BY_CLASS.items() if own is code)
        rows.append((str(int(code)), meaning, classes))
    table = _table(("code", "meaning", "errors"), rows, code=False)
    return "\n".join(
        [
            "## Exit codes",
            "",
            "An error ends with the code of the nearest class here. A command over many items goes "
            "on after a failure and ends with 1, or with the failures' own code where nothing "
            "succeeded.",
            "",
            *table,
            "",
        ]
    )


def _pages(command: Any, name: str, parent: Any) -> Iterator[str]:
    context = typer.Context(command, info_name=name, parent=parent)
    subcommands = command.list_commands(context) if hasattr(command, "list_commands") else []
    if not subcommands:
        yield _page(command, context)
        return
    for sub in subcommands:
        yield from _pages(command.get_command(context, sub), sub, context)


def _page(command: Any, context: Any) -> str:
    shared = {option.name for option in shared_options()} | {"help"}
    parameters = [p for p in command.get_params(context) if p.name not in shared]
    arguments = [p for p in parameters if p.param_type_name == "argument"]
    usage = " ".join([context.command_path, "[OPTIONS]", *map(_argument, arguments)])
    lines = [f"## {context.command_path}", "", f"    {usage}", ""]
    lines += [inspect.cleandoc(command.help or ""), ""]
    if parameters:
        lines += [*_table(("argument or option", "meaning"), map(_row, parameters)), ""]
    return "\n".join(lines)


def _argument(parameter: Any) -> str:
    text = parameter.metavar + ("..." if parameter.nargs == -1 else "")
    return text if parameter.required else f"[{text}]"


def _row(parameter: Any) -> tuple[str, str]:
    """Return how a parameter is written and what it means, from what every typer knows of it."""
    if parameter.param_type_name == "argument":
        return _argument(parameter), parameter.help
    names = ", ".join(sorted(parameter.opts, key=len))
    if parameter.secondary_opts:
        names += f" / {', '.join(parameter.secondary_opts)}"
    if not parameter.is_flag:
        names += f" {parameter.metavar}"
    default = parameter.default
    if isinstance(default, Enum):
        default = default.value
    if default in (None, "", (), []) or isinstance(default, bool):
        return names, parameter.help
    return names, f"{parameter.help} Default: {default}."


def _table(header: tuple[str, ...], rows: Iterable[Any], *, code: bool = True) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for first, *rest in rows:
        cells = [f"`{first}`" if code else first, *(" ".join(cell.split()) for cell in rest)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def main(arguments: list[str]) -> None:
    if arguments:
        Path(arguments[0]).write_text(document(), encoding="utf-8")
    else:
        sys.stdout.write(document())


if __name__ == "__main__":
    main(sys.argv[1:])
