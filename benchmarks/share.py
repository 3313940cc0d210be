"""Where a worker's time goes in a finished run: in the model, in making candidates, elsewhere.

    evomerge run quickstart --out runs/share && python -m benchmarks.share runs/share

Reads the ledger alone. The time of each evaluation on the search split, of a probe as of a whole
candidate, runs from the one before it to its own. ``score`` is the part in which the model answered
and answers were judged, backward passes included; ``instantiate`` the part in which its weights
were made; the rest is the search's and the engine's. The first one of a session, which waits for
the model to load, is left out.

Results go to benchmarks/results/share.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from itertools import pairwise
from pathlib import Path

from evomerge.ledger.store import read_events

RESULT = Path(__file__).parent / "results" / "share.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    scored = [e for e in read_events(options.run) if e.kind in ("scored", "seen")]
    total = {"score": 0.0, "instantiate": 0.0, "elsewhere": 0.0}
    for before, event in pairwise(scored):
        timing = event.timing
        wall = event.time - before.time
        scoring = sum(timing.values()) - timing["instantiate"]
        total["score"] += scoring
        total["instantiate"] += timing["instantiate"]
        total["elsewhere"] += wall - scoring - timing["instantiate"]
    whole = sum(total.values())
    evaluations = len(scored) - 1
    shares = {name: seconds / whole for name, seconds in total.items()}
    for name, seconds in total.items():
        each = 1000 * seconds / evaluations
        print(f"{name:<12} {100 * shares[name]:5.1f} %  {each:8.1f} ms an evaluation")
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    found = {"machine": machine, "run": options.run.name, "evaluations": evaluations}
    RESULT.write_text(json.dumps({**found, "seconds": total, "shares": shares}, indent=1) + "\n")


if __name__ == "__main__":
    main()
