"""Score rows offline, then answer single callers online with the same model, and show that nothing is lost.

Run it: `python examples/inference.py`
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np

from mlkit.errors import RowError
from mlkit.inference import Batcher, map_batches

if TYPE_CHECKING:
    from collections.abc import Iterator

rng = np.random.default_rng(7)
WEIGHTS = rng.normal(size=(8, 3))


def model(batch: dict) -> dict:
    """Take `{"id": [...], "x": (n, 8)}`, return a label and its score for each row."""
    if np.isnan(batch["x"]).any():
        raise ValueError("NaN in the features")
    logits = batch["x"] @ WEIGHTS
    return {"id": batch["id"], "label": logits.argmax(axis=1), "score": logits.max(axis=1)}


def patients(n: int) -> Iterator[dict]:
    """Yield rows one at a time; the 70th is broken."""
    for i in range(n):
        x = rng.normal(size=8)
        if i == 70:
            x[3] = np.nan
        yield {"id": f"patient-{i}", "x": x}


def offline() -> None:
    results = list(map_batches(model, patients(200), batch_size=32, on_error="return"))
    broken = [result for result in results if isinstance(result, RowError)]
    print(f"offline: {len(results) - len(broken)} results, {len(broken)} bad row: {broken[0]}")


async def online() -> None:
    rows = list(patients(200))
    async with Batcher(model, max_batch_size=32, max_wait=0.002, buckets=[32]) as batcher:
        answers = await asyncio.gather(
            *[batcher.submit(row) for row in rows], return_exceptions=True
        )
        again = await batcher.submit(rows[0])  # alone this time, at the same shape
        stats = batcher.stats()
    failed = [answer for answer in answers if isinstance(answer, Exception)]
    mine = all(
        answer["id"] == row["id"]
        for row, answer in zip(rows, answers, strict=True)
        if isinstance(answer, dict)
    )
    print(f"online: {stats.n_done} answers, {len(failed)} error: {failed[0]!r}")
    print(f"every caller got its own row: {mine}")
    print(f"same bits alone and in company: {again['score'] == answers[0]['score']}")
    print(f"batches by size: {dict(stats.batch_sizes)}, mean {stats.mean_batch_size:.1f}")


if __name__ == "__main__":
    offline()
    asyncio.run(online())
