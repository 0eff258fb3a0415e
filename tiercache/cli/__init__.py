"""The command line. ``tiercache --help`` must stay under 150 ms, so everything is imported late:
a command's module when the command runs, rich when something is drawn.
"""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Run the command line of this process and return its exit status."""
    from tiercache.cli.program import run

    code = run(sys.argv[1:])
    if "slatedb" in sys.modules:
        # Its threads may still call back; one that does while the interpreter is taken down aborts
        # the process (seen once in a run of the whole suite), with all said and done.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
