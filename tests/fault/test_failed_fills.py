"""A fill that fails, fails alone."""

from __future__ import annotations

import asyncio

from tiercache.agent.fill import Filler
from tiercache.errors import OriginUnavailable, StaleHandle


async def test_errors_that_name_each_other_do_not_hold_the_agent() -> None:
    """As of two fills that share a look-up: its error is raised again while one that it caused is
    handled."""
    shared, caused = OriginUnavailable("no answer"), StaleHandle("replaced")
    caused.__cause__ = shared
    shared.__context__ = caused

    async def fail() -> None:
        raise shared

    task = asyncio.ensure_future(fail())
    await asyncio.wait({task})
    filler = Filler.__new__(Filler)
    filler._tasks = set()
    filler._done(task)
