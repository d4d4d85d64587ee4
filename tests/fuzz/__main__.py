"""python -m tests.fuzz [urls|images ...] --cases N --seed S: mutated inputs until one breaks the rules."""

from __future__ import annotations

import argparse
import faulthandler
import time

from tests.fuzz import TARGETS

_HANG_SECONDS = 120
_BLOCK = 1000


def main() -> None:
    """Run the targets; a failure ends with the traceback and the seed that leads to it again."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="all, when none is named")
    parser.add_argument("--cases", type=int, default=100_000, help="of each target")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    for name in chosen.targets or TARGETS:
        began, passed = time.monotonic(), 0
        for block, done in enumerate(range(0, chosen.cases, _BLOCK)):
            # A block that hangs is ended with everybody's traceback.
            faulthandler.dump_traceback_later(_HANG_SECONDS, exit=True)
            seed = chosen.seed * 1_000_003 + block
            try:
                passed += TARGETS[name](min(_BLOCK, chosen.cases - done), seed)
            except BaseException:
                print(f"{name}: failed in the {_BLOCK} cases of seed {seed}")
                raise
        faulthandler.cancel_dump_traceback_later()
        print(f"{name}: {chosen.cases} cases, {passed} passed as good, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
