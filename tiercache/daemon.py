"""``python -m tiercache.daemon``: the agent's process, as ``connect()`` starts it.

Reads its settings as JSON from standard input, announces itself with one line on standard output,
logs to standard error. ``tiercache agent run`` is the same in the foreground.
"""

from __future__ import annotations

import sys

import msgspec

from tiercache.compose import run_agent
from tiercache.ending import end
from tiercache.settings import Settings


def main() -> int:
    settings = msgspec.json.decode(sys.stdin.buffer.read(), type=Settings)
    return end(run_agent(settings))


if __name__ == "__main__":
    sys.exit(main())
