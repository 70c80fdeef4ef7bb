"""Offline batching against hand-written loops and against other libraries, on the same model and the same rows.

The baseline of each table is the physical one: direct calls on full batches, made by hand.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import inference_memory, inference_plans, inference_texts
from mlkit.inference import map_batches

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness import Bench

PEERS: tuple[str, ...] = ("sentence-transformers", "transformers", "accelerate")

BATCH = 32


def run(bench: Bench) -> None:
    """Measure everything offline."""
    model = network()
    n = 640 if bench.quick else 3200
    rows = list(np.random.default_rng(0).standard_normal((n, 512), dtype=np.float32))
    wall, bench.clock = bench.clock, time.thread_time
    _offline(bench, "map rows through a network", model, rows)
    _offline(bench, "map rows through a sum (overhead)", lambda batch: batch.sum(axis=1), rows)
    _planned(bench, 1024 if bench.quick else 4096)
    _exactly(bench, rows)
    _kept(bench, "map rows through a network and keep the results", model, rows)
    _per_row(bench, rows)
    bench.clock = wall
    _waiting(bench, model, rows)
    inference_memory.run(bench)
    inference_texts.run(bench)
    inference_plans.run(bench)
    bench.note(
        "offline: CPU time of the thread per row, but for the rows that come slowly: elapsed time."
    )


def network() -> Callable[[Any], Any]:
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


def same(got: object, truth: object) -> bool:
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
        equal=same,
        rounds=3 if bench.quick else 9,
    )


def _planned(bench: Bench, n: int) -> None:
    """Rows of several lengths through a sum: what planning costs beside sorting and padding by hand."""
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(3.3, 0.8, n).astype(int), 1, 256)
    rows = [draw.integers(1, 1000, length) for length in lengths]

    def model(values: Any) -> Any:
        return values.sum(axis=1)

    def padded(batch: Any) -> Any:
        return model(batch.values)

    def by_hand(window: int) -> list[Any]:
        results: list[Any] = []
        for start in range(0, len(rows), window):
            some = rows[start : start + window]
            sizes = [len(row) for row in some]
            order = sorted(range(len(some)), key=sizes.__getitem__)
            found: list[Any] = [None] * len(some)
            part: list[int] = []
            for place in [*order, None]:
                if part and (place is None or sizes[place] * (len(part) + 1) > 4096):
                    values = np.zeros((len(part), sizes[part[-1]]), np.int64)
                    for row, index in enumerate(part):
                        values[row, : sizes[index]] = some[index]
                    for index, result in zip(part, model(values), strict=True):
                        found[index] = result
                    part = []
                if place is not None:
                    part.append(place)
            results.extend(found)
        return results

    def ours(window: int) -> list[Any]:
        return list(map_batches(padded, rows, batch_size="auto", pad=0, window=window))

    for window in (4096, 128):
        ours(window)  # what batches cost is known from here on
        bench.compare(
            f"plan rows of several lengths through a sum, window of {window:,} (overhead)",
            {
                "sort, pad and a loop": lambda window=window: by_hand(window),
                "mlkit map_batches(batch_size='auto')": lambda window=window: ours(window),
            },
            baseline="sort, pad and a loop",
            calls=len(rows),
            equal=same,
            rounds=3 if bench.quick else 15,
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
            equal=same,
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
        equal=same,
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
        equal=same,
        rounds=3 if bench.quick else 9,
    )


def _exactly(bench: Bench, rows: list[Any]) -> None:
    """What it costs that a row's bits do not depend on its company."""
    import torch

    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Linear(512, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 256)
    ).eval()

    def job(some: list[Any], **options: Any) -> list[Any]:
        return list(map_batches(layers, some, batch_size=BATCH, **options))

    for work, some, calls in (
        ("full batches, the same bits in any company", rows, len(rows)),
        ("16 rows where 32 fit, the same bits in any company", rows[:16], 16),
    ):
        bench.compare(
            work,
            {
                "mlkit map_batches": lambda some=some: job(some),
                "mlkit map_batches(exact=True)": lambda some=some: job(some, exact=True),
                "mlkit map_batches(batch_size=1)": lambda some=some: [
                    one for row in some for one in map_batches(layers, [row])
                ],
            },
            baseline="mlkit map_batches",
            calls=calls,
            equal=same,
            rounds=3 if bench.quick else 9,
        )
