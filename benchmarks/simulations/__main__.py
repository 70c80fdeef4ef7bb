"""Run the simulations of resilience: `python -m benchmarks.simulations [--quick] [--docs]`."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS
from benchmarks.simulations import hedging, jitter, ladder, overload

PATH = RESULTS / "resilience_simulations.json"


def main() -> int:
    """Run them, print their tables, write their results; the same every time."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulations", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small models, and write no results")
    parser.add_argument(
        "--docs", action="store_true", help="also rewrite the page and its pictures"
    )
    options = parser.parse_args()
    from benchmarks.simulations.page import publish, tables

    results = simulated(quick=options.quick)
    print(tables(results))
    if not options.quick:
        PATH.write_text(json.dumps(_rounded(results), indent=None) + "\n", encoding="utf-8")
    if options.docs:
        publish(json.loads(PATH.read_text(encoding="utf-8")), Path(__file__).parents[2] / "docs")
    return 0


def simulated(*, quick: bool) -> dict[str, Any]:
    """Return the results of every simulation; *quick* ones are a tenth of the size."""
    model = overload.Overload()
    if quick:
        model = overload.Overload(workers=2, arrivals=14.0, until=90.0, burst=5)
    outage = ladder.Outage(arrivals=4.0, keys=80) if quick else ladder.Outage()
    seeds = range(2 if quick else 10)
    return {
        "overload": {
            name: overload.overload(model, policy)
            for name, policy in overload.policies(model).items()
        },
        "overload model": model._asdict(),
        "recovery": overload.recovery(
            overload.Overload(workers=2 if quick else 4, until=90.0), seeds=range(1 if quick else 5)
        ),
        "amplification": overload.amplification(calls=300 if quick else 5_000),
        "jitter": {
            way: _averaged(
                [
                    jitter.contention(
                        jitter.Contention(clients=40 if quick else 100, seed=seed), way
                    )
                    for seed in seeds
                ]
            )
            for way in jitter.WAYS
        },
        "hedging": hedging.hedging(calls=2_000 if quick else 50_000),
        "ladder": {name: ladder.ladder(outage, name) for name in ladder.CONTENDERS},
    }


def _averaged(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the means of several seeds, and the course of the first."""
    return {
        key: value if isinstance(value, list) else statistics.mean(run[key] for run in runs)
        for key, value in runs[0].items()
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
