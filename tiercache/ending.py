"""How a program of ours ends, whatever the interpreter makes of its being taken down."""

from __future__ import annotations

import os
import sys

INTERRUPTED = 130  # 128 + SIGINT, as shells say it

# Their threads call back after the last answer was taken. One that does while the interpreter is
# taken down aborts the process, with all said and done: of programs that end with a request of
# obstore's, every tenth. https://github.com/PyO3/pyo3-async-runtimes/issues/40
_NATIVE = ("obstore", "slatedb")


def end(code: int) -> int:
    """Return ``code`` for ``sys.exit``, or end the process with it at once, where Python would make
    another of it: no ``atexit`` function runs then. Call it last.

    After an interrupt Python ends by the signal, where it had come while a class was being made,
    though it was caught.
    """
    if code == INTERRUPTED or any(name in sys.modules for name in _NATIVE):
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # closed by whoever started the program
                stream.flush()
        os._exit(code)
    return code
