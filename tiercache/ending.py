"""How a program of ours ends that has used libraries with threads of their own."""

from __future__ import annotations

import os
import sys

# Their threads call back after the last answer was taken. One that does while the interpreter is
# taken down aborts the process, with all said and done: of programs that end with a request of
# obstore's, every tenth. https://github.com/PyO3/pyo3-async-runtimes/issues/40
_NATIVE = ("obstore", "slatedb")


def end(code: int) -> int:
    """Return ``code`` for ``sys.exit``, or end the process with it at once, where taking the
    interpreter down could abort it: no ``atexit`` function runs then. Call it last."""
    if any(name in sys.modules for name in _NATIVE):
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # closed by whoever started the program
                stream.flush()
        os._exit(code)
    return code
