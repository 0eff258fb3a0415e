"""``python -m tiercache`` is the ``tiercache`` command."""

from __future__ import annotations

import sys

from tiercache.cli import main

if __name__ == "__main__":
    sys.exit(main())
