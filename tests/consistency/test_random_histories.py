"""Random histories of each mode through bad networks: all of them pass their checkers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tiercache.testing.consistency.modes import MODES
from tiercache.testing.consistency.runner import Lab, Plan, summary
from tiercache.testing.object_servers import ObjectServer, S3Server

HISTORIES = int(os.environ.get("TIERCACHE_HISTORIES", "500"))
SEEDS = 2**31


@pytest.mark.slow
@pytest.mark.timeout(600)  # half a minute on two idle cores
@pytest.mark.parametrize("mode", MODES)
def test_random_histories(
    mode: str,
    s3: S3Server,
    new_bucket: Callable[[ObjectServer], str],
    tmp_path: Path,
    seed: int,
) -> None:
    plan = Plan(mode=MODES[mode], first_seed=seed % SEEDS, histories=HISTORIES)
    with Lab(s3, new_bucket(s3), tmp_path, plan) as lab:
        outcomes = lab.run()
    print(summary(mode, outcomes))
    assert outcomes.histories == HISTORIES
    assert not outcomes.bad, summary(mode, outcomes)
    # Of nothing but errors every mode would be true.
    done = outcomes.operations
    assert sum(done[f"{kind} ok"] for kind in ("read", "handle", "stat")) > 2 * HISTORIES
    assert done["write ok"] > HISTORIES / 2
