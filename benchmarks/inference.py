"""Batching against the bare calls and against other batchers, on the same model and the same rows.

The baseline of each table is the physical one: direct calls on full batches, made by hand.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import inference_offline
from benchmarks.inference_offline import network, same
from mlkit.inference import Batcher

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness import Bench

PEERS: tuple[str, ...] = ("batched", "async-batcher", *inference_offline.PEERS)

BATCH = 32
WAIT = 0.002


def run(bench: Bench) -> None:
    """Measure offline and online."""
    inference_offline.run(bench)
    model = network()
    n = 640 if bench.quick else 3200
    rows = list(np.random.default_rng(0).standard_normal((n, 512), dtype=np.float32))
    for callers in (1, 8, 64):
        some = rows[: n // 4] if callers == 1 else rows
        _online(bench, f"{callers} concurrent callers of a network", model, some, callers)
    _online(bench, "64 concurrent callers, no model (overhead)", lambda batch: batch, rows, 64)
    bench.note(
        "online: an asyncio caller sends its next row when it has its answer. The baseline has all rows at hand and calls "
        "on batches as full as that many callers can make them; time per row. Each run includes starting and closing."
    )


def _online(
    bench: Bench, work: str, model: Callable[[Any], Any], rows: list[Any], callers: int
) -> None:
    size = min(callers, BATCH)

    def direct() -> list[Any]:
        results: list[Any] = []
        for start in range(0, len(rows), size):
            results.extend(model(np.stack(rows[start : start + size])))
        return results

    def ours() -> list[Any]:
        results: list[Any] = []

        async def main() -> None:
            async with Batcher(model, max_batch_size=BATCH, max_wait=WAIT) as batcher:
                await _closed_loop(batcher.submit, rows, callers, results)

        asyncio.run(
            main()
        )  # no result: asyncio.run would spend 40 ms on the repr of one this large
        return results

    contenders: dict[str, Callable[[], object]] = {
        "direct calls on full batches": direct,
        "mlkit Batcher": ours,
    }
    if callers > 1:
        contenders["row by row"] = lambda: [model(row[None])[0] for row in rows]
    peers = {"batched": _batched, "async-batcher": _async_batcher}
    for name, peer in peers.items():
        try:
            contenders[name] = peer(model, rows, callers)
        except ImportError as error:
            bench.skipped(work, name, str(error))
    bench.compare(
        work,
        contenders,
        baseline="direct calls on full batches",
        calls=len(rows),
        equal=same,
        rounds=3 if bench.quick else 7,
    )


async def _closed_loop(
    submit: Callable[[Any], Any], rows: list[Any], callers: int, results: list[Any]
) -> None:
    results.extend([None] * len(rows))

    async def caller(first: int) -> None:
        for index in range(first, len(rows), callers):
            results[index] = await submit(rows[index])

    await asyncio.gather(*[caller(first) for first in range(callers)])


def _batched(model: Callable[[Any], Any], rows: list[Any], callers: int) -> Callable[[], list[Any]]:
    from batched import aio

    def peer() -> list[Any]:
        results: list[Any] = []

        async def main() -> None:
            @aio.dynamically(batch_size=BATCH, timeout_ms=WAIT * 1000)
            def batched_model(batch: list[Any]) -> list[Any]:
                return list(model(np.stack(batch)))

            await _closed_loop(batched_model, rows, callers, results)

        asyncio.run(main())
        return results

    return peer


def _async_batcher(
    model: Callable[[Any], Any], rows: list[Any], callers: int
) -> Callable[[], list[Any]]:
    from async_batcher.batcher import AsyncBatcher

    class Peer(AsyncBatcher[Any, Any]):  # type: ignore[misc]
        def process_batch(
            self, batch: list[Any]
        ) -> list[Any]:  # a plain function: its executor runs it
            return list(model(np.stack(batch)))

    def peer() -> list[Any]:
        results: list[Any] = []

        async def main() -> None:
            batcher = Peer(max_batch_size=BATCH, max_queue_time=WAIT)
            await _closed_loop(lambda row: batcher.process(item=row), rows, callers, results)
            await batcher.stop(force=True)  # a gentle stop waits for a second

        asyncio.run(main())
        return results

    return peer
