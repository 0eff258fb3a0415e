"""What the demo prints: drawn with rich on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from tiercache.cli.output import plain_table


class Screen:
    """Standard output. Not thread safe."""

    def __init__(self) -> None:
        # Constant after construction
        self._rich = _console() if sys.stdout.isatty() else None

    def title(self, text: str, line: str) -> None:
        """Print the name of the show."""
        if self._rich is None:
            self._say(f"{text}: {line}")
            return
        from rich.panel import Panel

        self._rich.print(Panel(line, title=f"[bold]{text}[/]", border_style="cyan", expand=False))

    def step(self, number: int, text: str) -> None:
        """Begin a numbered part."""
        if self._rich is None:
            self._say(f"\n[{number}] {text}")
        else:
            self._rich.print(f"\n[bold cyan]{number}[/]  [bold]{text}[/]")

    def note(self, text: str) -> None:
        """Print one line that says what was seen."""
        if self._rich is None:
            self._say(f"    {text}")
        else:
            self._rich.print("   ", text, markup=False, highlight=True)

    def code(self, text: str, language: str) -> None:
        """Print a file or a command as it is."""
        if self._rich is None:
            self._say("\n".join(f"    {line}" for line in text.rstrip().splitlines()))
            return
        from rich.padding import Padding
        from rich.syntax import Syntax

        syntax = Syntax(text.rstrip(), language, background_color="default")
        self._rich.print(Padding(syntax, (0, 0, 0, 4)))

    def tree(self, root: str, lines: Sequence[tuple[int, str]]) -> None:
        """Print names below ``root``, each with its depth from 0 on."""
        if self._rich is None:
            self._say(f"    {root}")
            self._say("\n".join(f"    {'  ' * (depth + 1)}{text}" for depth, text in lines))
            return
        from rich.padding import Padding
        from rich.tree import Tree

        drawn = Tree(root, guide_style="dim")
        branches = [drawn]
        for depth, text in lines:
            del branches[depth + 1 :]
            branches.append(branches[-1].add(text))
        self._rich.print(Padding(drawn, (0, 0, 0, 4)))

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; columns whose first cell begins with a figure are aligned as numbers."""
        right = [column for column, cell in enumerate(rows[0]) if cell[:1].isdigit()]
        if self._rich is None:
            self._say(f"\n{title}")
            self._say("\n".join(plain_table(header, rows, right=right)))
            return
        from rich.table import Table

        drawn = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
        for column, name in enumerate(header):
            drawn.add_column(name, justify="right" if column in right else "left")
        for row in rows:
            drawn.add_row(*row)
        self._rich.print("")
        self._rich.print(drawn)

    def ending(self, text: str, *, good: bool) -> None:
        """Print the verdict."""
        if self._rich is None:
            self._say(f"\n{text}")
        else:
            self._rich.print(f"\n[bold {'green' if good else 'red'}]{text}[/]")

    def _say(self, text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def _console() -> Any:
    from rich.console import Console

    return Console()
