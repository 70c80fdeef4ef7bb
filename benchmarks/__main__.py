"""Run the benchmarks: `python -m benchmarks [BLOCK ...] [--quick] [--docs]`."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from benchmarks.harness import Bench

BLOCKS = ("registry", "repro", "inference", "resilience", "flags", "tracking", "models")


def main() -> int:
    """Run the blocks that were asked for, print their tables, write their results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("block", nargs="*", help=f"which ones; all by default: {', '.join(BLOCKS)}")
    parser.add_argument("--quick", action="store_true", help="few rounds, and write no results")
    parser.add_argument(
        "--docs", action="store_true", help="also rewrite docs/benchmarks.md and the README's chart"
    )
    options = parser.parse_args()
    if unknown := set(options.block) - set(BLOCKS):
        parser.error(f"unknown block {', '.join(sorted(unknown))}; choose from {', '.join(BLOCKS)}")
    for block in options.block or BLOCKS:
        bench = Bench(block, quick=options.quick)
        import_module(f"benchmarks.{block}").run(bench)
        print(f"## {block}\n\n{bench.table()}\n", flush=True)
        if not options.quick:
            bench.save()
    if options.docs:
        from benchmarks.publish import publish

        publish(BLOCKS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
