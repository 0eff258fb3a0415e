"""A test that runs as root can be another user, in a child."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")


def run_as_nobody(function: Callable[[], str]) -> str:
    """Run in a forked child of another user and return what it says, or the error it raised."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        said = "the child failed"
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            said = function()
        except Exception as error:
            said = repr(error)
            raise
        finally:
            os.write(theirs, said.encode())
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said
