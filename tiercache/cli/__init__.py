"""The command line. ``tiercache --help`` must stay under 150 ms, so everything is imported late:
a command's module when the command runs, rich when something is drawn.
"""

from __future__ import annotations

import sys

from tiercache.ending import end


def main() -> int:
    """Run the command line of this process and return its exit status."""
    from tiercache.cli.program import run

    return end(run(sys.argv[1:]))
