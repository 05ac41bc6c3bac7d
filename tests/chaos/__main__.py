"""`python -m tests.chaos`: a long run, by `make chaos`. Ends with 1 when something is violated."""

from __future__ import annotations

import argparse
import random
import signal
import sys
from typing import NoReturn

from tests.chaos.cluster import missing
from tests.chaos.run import run
from tests.chaos.schedule import FAULTS, kinds


def main() -> int:
    """Run, print the table, and say where what was kept is."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--fault", action="append", default=[], help="only kinds that say so")
    parser.add_argument("--keep", action="store_true", help="keep histories and logs")
    given = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if given.seed is None else given.seed
    faults = kinds(given.fault) if given.fault else FAULTS
    if lacking := missing():
        parser.error(f"this needs {', '.join(lacking)}")
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, _interrupted)
    _say(f"seed {seed}")
    try:
        report, kept = run(
            given.minutes * 60, seed, _say, faults=faults, all_once=True, keep=given.keep
        )
    except KeyboardInterrupt:
        _say("nothing is left")
        return 130
    _say(f"\n{report}")
    if kept is not None:
        _say(f"histories, logs and report.json: {kept}")
    return 1 if report.violations else 0


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - this is what it is for


def _interrupted(*_: object) -> NoReturn:
    """End, once: all is taken away then, which takes seconds and shall not be broken off."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    _say("interrupted; taking everything away")
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
