"""Batching against the bare calls and against other batchers, on the same model and the same rows.

The baseline of each table is the physical one: direct calls on full batches, made by hand.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from mlkit.inference import Batcher, map_batches

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness import Bench

PEERS: tuple[str, ...] = ("batched", "async-batcher")

BATCH = 32
WAIT = 0.002


def run(bench: Bench) -> None:
    """Measure offline and online."""
    model = _network()
    n = 640 if bench.quick else 3200
    rows = list(np.random.default_rng(0).standard_normal((n, 512), dtype=np.float32))
    wall, bench.clock = bench.clock, time.thread_time
    _offline(bench, "map rows through a network", model, rows)
    _offline(bench, "map rows through a sum (overhead)", lambda batch: batch.sum(axis=1), rows)
    _kept(bench, "map rows through a network and keep the results", model, rows)
    _per_row(bench, rows)
    bench.clock = wall
    _waiting(bench, model, rows)
    for callers in (1, 8, 64):
        some = rows[: n // 4] if callers == 1 else rows
        _online(bench, f"{callers} concurrent callers of a network", model, some, callers)
    _online(bench, "64 concurrent callers, no model (overhead)", lambda batch: batch, rows, 64)
    bench.note(
        "offline: CPU time of the thread per row, but for the rows that come slowly: elapsed time."
    )
    bench.note(
        "online: an asyncio caller sends its next row when it has its answer. The baseline has all rows at hand and calls "
        "on batches as full as that many callers can make them; time per row. Each run includes starting and closing."
    )


def _network() -> Callable[[Any], Any]:
    """A multi-layer perceptron on one core; each batcher gives it an array or a list of rows."""
    import torch

    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Linear(512, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 256)
    ).eval()

    def network(batch: Any) -> Any:
        # Set in whichever thread runs it: otherwise the comparison would be of threads, not of batching.
        torch.set_num_threads(1)
        with torch.inference_mode():
            return layers(torch.from_numpy(np.asarray(batch))).numpy()

    return network


def _same(got: object, truth: object) -> bool:
    a, b = np.asarray(got), np.asarray(truth)
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-3, atol=1e-4))


def _offline(bench: Bench, work: str, model: Callable[[Any], Any], rows: list[Any]) -> None:
    def loop() -> list[Any]:
        results: list[Any] = []
        for start in range(0, len(rows), BATCH):
            results.extend(model(np.stack(rows[start : start + BATCH])))
        return results

    def one_by_one() -> list[Any]:
        return [model(row[None])[0] for row in rows]

    def ours() -> list[Any]:
        return list(map_batches(model, rows, batch_size=BATCH))

    def fixed() -> list[Any]:
        return list(map_batches(model, rows, batch_size=BATCH, buckets=[BATCH]))

    def loader() -> list[Any]:
        from torch.utils.data import DataLoader

        results: list[Any] = []
        for batch in DataLoader(rows, batch_size=BATCH):  # type: ignore[arg-type]
            results.extend(model(batch.numpy()))
        return results

    bench.compare(
        work,
        {
            "np.stack and a loop": loop,
            "mlkit map_batches": ours,
            "mlkit map_batches, buckets": fixed,
            "torch DataLoader and a loop": loader,
            "row by row": one_by_one,
        },
        baseline="np.stack and a loop",
        calls=len(rows),
        equal=_same,
        rounds=3 if bench.quick else 9,
    )


def _kept(bench: Bench, work: str, model: Callable[[Any], Any], rows: list[Any]) -> None:
    """What a checkpoint costs, and what reading it back costs."""
    from itertools import count
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        numbers = count()

        def job(path: str | None) -> list[Any]:
            return list(map_batches(model, rows, batch_size=BATCH, checkpoint=path))

        def by_hand() -> list[Any]:
            results: list[Any] = []
            for start in range(0, len(rows), BATCH):
                batch = model(np.stack(rows[start : start + BATCH]))
                np.save(f"{folder}/by-hand-{start}.npy", batch)
                results.extend(batch)
            return results

        job(f"{folder}/done")
        bench.compare(
            work,
            {
                "mlkit map_batches, nothing kept": lambda: job(None),
                "mlkit checkpoint": lambda: job(f"{folder}/{next(numbers)}"),
                "np.save of each batch and a loop": by_hand,
                "mlkit, all read back": lambda: job(f"{folder}/done"),
            },
            baseline="mlkit map_batches, nothing kept",
            calls=len(rows),
            equal=_same,
            rounds=3 if bench.quick else 9,
        )


def _waiting(bench: Bench, model: Callable[[Any], Any], rows: list[Any]) -> None:
    """Rows that take as long to come as the model takes for them."""
    from mlkit._clock import SYSTEM

    start = time.perf_counter()
    for at in range(0, len(rows), BATCH):
        model(np.stack(rows[at : at + BATCH]))
    pause = (time.perf_counter() - start) / len(rows) * BATCH

    def slow() -> Any:
        for place, row in enumerate(rows):
            if not place % BATCH:
                SYSTEM.sleep(pause)
            yield row

    def job(prefetch: int) -> list[Any]:
        return list(map_batches(model, slow(), batch_size=BATCH, prefetch=prefetch))

    bench.compare(
        "rows that come as slowly as the model runs",
        {"mlkit map_batches": lambda: job(0), "mlkit prefetch=1": lambda: job(1)},
        baseline="mlkit map_batches",
        calls=len(rows),
        equal=_same,
        rounds=3 if bench.quick else 9,
    )


def _per_row(bench: Bench, rows: list[Any]) -> None:
    """A function of one row, by hand and lifted."""
    import torch

    from mlkit.inference import vectorize

    tensors = [torch.from_numpy(row) for row in rows]
    weight = torch.from_numpy(np.stack(rows[:64]))

    def score(row: Any) -> Any:
        return (weight @ row).softmax(0).amax() + row.abs().mean()

    lifted = vectorize(score)
    bench.compare(
        "a function of one row, on tensors",
        {
            "a loop": lambda: [score(row) for row in tensors],
            "mlkit vectorize": lambda: list(map_batches(lifted, tensors, batch_size=BATCH)),
        },
        baseline="a loop",
        calls=len(rows),
        equal=_same,
        rounds=3 if bench.quick else 9,
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
        equal=_same,
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
