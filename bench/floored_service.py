"""mufin-serve that tells its own floor when it is asked: python -m bench.floored_service [flags of mufin-serve].

The floor is what the model calls alone cost (bench/serving_floor.py), here with the very model that serves: two processes
of one program are not equally fast, where the pages of an encoder's weights lie in memory decides up to a third of a lone
title's time for as long as a process lives. A line of standard input asks, a line of standard output answers, both JSON.
Everything else is the service as it is.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

from bench.serving_bundle import TITLE_TOKENS
from bench.serving_floor import CASES, Floor, floor
from mufin.predictor import Predictor, open_predictor
from service.__main__ import serve
from service.bundles import Model, Verify
from service.settings import Settings

_served: list[Predictor] = []


def _open(folder: Path, verify: Verify, threads: int, resident: bool) -> Model:
    predictor = open_predictor(folder, verify, threads, resident=resident)
    _served[:] = [predictor]
    return predictor


def _answer() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        case = next(own for own in CASES if own.name == asked["case"])
        print(json.dumps(floor(Floor(_served[0], TITLE_TOKENS), case, asked["seconds"])), flush=True)


if __name__ == "__main__":
    threading.Thread(target=_answer, daemon=True).start()
    sys.exit(serve(Settings(_cli_parse_args=sys.argv[1:]), _open))
