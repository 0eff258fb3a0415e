"""Make histories by hand, or repeat one: ``python -m tiercache.testing.consistency --mode eventual
--seed 4711``. Prints what is wrong and exits with 1 if anything is."""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import uuid
from pathlib import Path

from tiercache.testing.consistency.modes import MODES
from tiercache.testing.consistency.runner import Lab, Plan, summary
from tiercache.testing.emulators import SeaweedS3


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tiercache.testing.consistency",
        description="Make histories of one mode through bad networks, and check them.",
    )
    parser.add_argument("--mode", choices=sorted(MODES), required=True)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--histories", type=int, default=1, help="seeds, from --seed on")
    parser.add_argument("--copies", type=int, default=1, help="how often each seed is run")
    parser.add_argument("--at-once", type=int, default=32, help="histories at a time")
    parser.add_argument("--calm", action="store_true", help="no partitions of whole sites")
    parser.add_argument("--embedded", action="store_true", help="all in this process")
    options = parser.parse_args(arguments)
    plan = Plan(
        mode=MODES[options.mode],
        first_seed=options.seed,
        histories=options.histories,
        copies=options.copies,
        at_once=options.at_once,
        storms=not options.calm,
    )
    with SeaweedS3() as server, tempfile.TemporaryDirectory(prefix="tiercache-") as directory:
        os.environ.update(server.env)
        bucket = server.make_bucket(f"histories-{uuid.uuid4().hex[:12]}")
        with Lab(server, bucket, Path(directory), plan, embedded=options.embedded) as lab:
            outcomes = lab.run()
    print(summary(options.mode, outcomes))
    return 1 if outcomes.bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
