"""What the batches of a plan cost, each priced beside a batch of reference.

A shared machine changes its pace within seconds, and a run of ten seconds meets several paces. Here each batch that a
contender has made runs once more between two runs of one small batch, and its price is how many of these it is worth:
`python -m benchmarks.inference_plans`, which leaves the other results of `inference` as they are.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import Bench, Row
from benchmarks.inference_texts import LONGEST, Embedder, Texts, alone, paragraphs
from mlkit.inference._offline.cost import fit
from mlkit.inference._offline.plan import cut

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

REFERENCE = (4, 46)  # rows and entries of a row
LENGTHS = (3, 6, 12, 24, 48, 96, 160, LONGEST)
ROWS = (1, 4, 8, 16, 32, 64)
WORK = "the batches for {n} paragraphs through MiniLM-L6, priced one by one"
LIMIT = "padding-free limit"
Shape = tuple[int, int]


def run(bench: Bench) -> None:
    """Price what each contender makes of real texts."""
    alone(bench, WORK.format(n=1024), _prices)


class Watched(Embedder):
    """Notes the shape and the seconds of each batch."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.shapes: list[Shape] = []
        self.seconds = 0.0

    def embed(self, batch: Any) -> Any:
        start = time.process_time()
        try:
            return super().embed(batch)
        finally:
            self.seconds += time.process_time() - start
            self.shapes.append(tuple(batch.values.shape))

    def made_by(self, contender: Callable[[], object]) -> tuple[list[Shape], float]:
        """Return the batches that *contender* makes, and its time for each second of the model's."""
        self.shapes, self.seconds = [], 0.0
        gc.collect()
        start = time.process_time()
        contender()
        return self.shapes, (time.process_time() - start) / self.seconds

    def price(self, shape: Shape) -> float:
        """Return how many batches of reference one of *shape* is worth."""
        before, seconds, after = map(self._seconds, (REFERENCE, shape, REFERENCE))
        return 2 * seconds / (before + after)

    def _seconds(self, shape: Shape) -> float:
        from torch import full, int64

        from mlkit.inference import Padded

        n, length = shape
        batch = Padded(full(shape, 2000), full((n,), length, dtype=int64))
        start = time.process_time()
        super().embed(batch)
        return time.process_time() - start


def _prices(bench: Bench, folder: Path) -> None:
    embedder = Watched(folder)
    texts = paragraphs(embedder, 96 if bench.quick else 1024)
    work, n = WORK.format(n=len(texts.texts)), len(texts.texts)
    contenders: dict[str, Callable[[], object]] = {
        "mlkit map_batches(batch_size='auto'), window of 4,096": lambda: embedder.ours(texts, 4096),
        "mlkit map_batches(batch_size='auto'), window of 128": lambda: embedder.ours(texts, 128),
        "token budget 1024, sorted": lambda: embedder.by_budget(texts, ordered=True),
        "32 rows, sorted": lambda: embedder.by_rows(texts, ordered=True),
    }
    seen: dict[Shape, list[float]] = defaultdict(list)
    prices: dict[str, list[float]] = defaultdict(list)
    for _ in range(1 if bench.quick else 3):
        for length in LENGTHS:
            for rows in ROWS:
                if rows == 1 or rows * length <= 2048:
                    seen[rows, length] += [embedder.price((rows, length)) for _ in range(4)]
        for name, contender in contenders.items():
            shapes, share = embedder.made_by(contender)
            prices[name].append(sum(map(embedder.price, shapes)) * share)
        for name, window in {"all": n, "each 128": 128}.items():
            shapes = _best(texts.lengths, window, seen)
            prices[f"the best partition of {name}"].append(sum(map(embedder.price, shapes)))
    limit = _limit(texts, seen)
    bench.rows.append(Row(work, LIMIT, "ref", limit / n, limit / n, limit / n, LIMIT, 1.0))
    for name, some in prices.items():
        low, middle, high = min(some), statistics.median(some), max(some)
        bench.rows.append(
            Row(work, name, "ref", low / n, middle / n, high / n, LIMIT, middle / limit)
        )
    bench.note(
        "MiniLM, priced: CPU time per text, in runs of a batch of 4 texts with 46 tokens, which runs before and after each "
        "batch that is priced. What a contender does around the model is added, tokenizing included (a hundredth); the limit "
        "and the best partitions, which are computed from all prices, have nothing around them."
    )


def _median(seen: dict[Shape, list[float]]) -> dict[Shape, float]:
    return {shape: statistics.median(some) for shape, some in seen.items()}


def _limit(texts: Texts, seen: dict[Shape, list[float]]) -> float:
    """Return what the texts cost if each runs at its own length, in a batch as large as is best for it."""
    prices = _median(seen)
    least = [min(price / n for (n, at), price in prices.items() if at == to) for to in LENGTHS]
    return float(np.interp(texts.lengths, LENGTHS, least).sum())


def _best(lengths: Sequence[int], window: int, seen: dict[Shape, list[float]]) -> list[Shape]:
    """Return the batches of the cheapest partition of each *window* of texts."""
    cost = fit([(*shape, price) for shape, price in _median(seen).items()])
    assert cost is not None
    shapes: list[Shape] = []
    for start in range(0, len(lengths), window):
        some = sorted(lengths[start : start + window])
        end = 0
        for n in cut(some, cost, max_rows=4096, cap=1 << 30):
            end += n
            shapes.append((n, some[end - 1]))
    return shapes


def main() -> int:
    """Price the batches, and put the rows in the place of the former ones."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference_plans")
    parser.add_argument("--quick", action="store_true", help="few texts, and write no results")
    options = parser.parse_args()
    bench = Bench("inference", quick=options.quick)
    run(bench)
    print(bench.table())
    if not options.quick:
        bench.save(keep=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
