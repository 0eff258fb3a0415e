"""Run by test_gate.py: the real gate over hot-read, as it is and with every hit done twice."""

from __future__ import annotations

from benchmarks import gate, registry, results, runner, workload
from benchmarks.gate import Baselines
from benchmarks.lab import Lab
from benchmarks.workload import Workload
from tiercache.client.reader import Reader

SEED = 1


def passed(lab: Lab, one: Workload, baselines: Baselines) -> int:
    """Return the exit status of the gate over one workload."""
    around = results.surroundings(seed=SEED, short=True, when="now", directory=lab.root)
    run = runner.Run(lab=lab, workloads=[one], surroundings=around, baselines=baselines)
    return run.go()


def slow_down() -> None:
    """Let a client read everything twice."""
    once = Reader.read

    def twice(self: Reader, path: str, offset: int = 0, length: int | None = None) -> bytes:
        once(self, path, offset, length)
        return once(self, path, offset, length)

    Reader.read = twice  # type: ignore[method-assign]  # the deliberate regression


def main() -> None:
    registry.load()
    one = workload.read_all()["hot-read"]
    lab = Lab(seed=SEED, short=True)
    try:
        baselines = gate.recorded([[runner.measured(lab, one.shortened())]])
        print(f"as it is: status {passed(lab, one, baselines)}")
        slow_down()
        print(f"twice the work: status {passed(lab, one, baselines)}")
    finally:
        lab.close()


if __name__ == "__main__":
    main()
