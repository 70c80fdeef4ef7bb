"""What is run again when memory runs out, what is alive then, and how much a long job holds.

Counts, not times: a device is stood in for by a function that raises `torch.OutOfMemoryError` beyond a number of entries.
"""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import Row
from mlkit.inference import map_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.harness import Bench

OURS = "mlkit map_batches(batch_size='auto')"
START = 1024  # rows that are tried first


class Device:
    """A function on padded rows with room for so many entries, which keeps count."""

    def __init__(self, room: Callable[[int], int]) -> None:
        self.room = room
        self.calls = self.failed = self.rows = 0
        self.scratch: weakref.WeakSet[Any] = weakref.WeakSet()
        self.alive: list[int] = []

    def __call__(self, values: Any) -> Any:
        import torch

        hidden = values * 2
        if values.numel() > self.room(self.rows):
            self.failed += 1
            self.scratch.add(values)
            self.scratch.add(hidden)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.calls += 1
        self.rows += len(values)
        return hidden.sum(1) / 2

    def clear(self, *_: object, **__: object) -> None:
        """Stand in for emptying the device's cache: what is alive then cannot be given back."""
        self.alive.append(len(self.scratch))


def run(bench: Bench) -> None:
    """Count."""
    _out_of_memory(bench)
    _high_water(bench)


def _out_of_memory(bench: Bench) -> None:
    equal = [4] * 2000
    mixed = [4] * 2000 + [1000] * 8 + [4] * 2000
    contenders: dict[str, Callable[[Device, list[int]], list[float]]] = {
        OURS: _ours,
        "accelerate find_executable_batch_size": _accelerate(halving=False),
        "accelerate, halving": _accelerate(halving=True),
    }
    works: dict[str, tuple[list[int], Callable[[int], int]]] = {
        "2,000 equal rows, 100 fit at once": (equal, lambda _: 400),
        "4,000 short rows, 8 long ones in their middle": (mixed, lambda _: 5000),
        "memory gets short at 80 % of 8,000 rows": (
            equal * 4,
            lambda done: 400 if done > 6400 else 10**9,
        ),
    }
    for work, (lengths, room) in works.items():
        fewest = 0
        for name, contender in contenders.items():
            device = Device(room)
            try:
                got = contender(device, lengths)
            except ImportError as error:
                bench.skipped(work, name, str(error))
                continue
            if got != [float(n) for n in lengths]:
                raise AssertionError(f"{name}: other results")
            calls = device.calls + device.failed
            fewest = fewest or calls
            counts = {
                "rows run per row": (device.rows / len(lengths), "each row once", 1.0),
                "calls, those that failed too": (calls, OURS, fewest),
                "failed tensors alive when the cache is cleared": (
                    max(device.alive, default=0),
                    "none",
                    1.0,
                ),
            }
            for count, (value, baseline, least) in counts.items():
                row = Row(
                    f"{work}: {count}", name, "", value, value, value, baseline, value / least
                )
                bench.rows.append(row)
    bench.note(
        "out of memory: a stand-in for a device that raises torch.OutOfMemoryError; accelerate begins with 1,024 rows, "
        "mlkit finds its own batches."
    )


def _ours(device: Device, lengths: list[int]) -> list[float]:
    import torch

    plain = torch.cuda.is_initialized, torch.cuda.empty_cache
    torch.cuda.is_initialized, torch.cuda.empty_cache = (lambda: True), device.clear
    try:
        rows = [torch.ones(n) for n in lengths]
        results = map_batches(lambda batch: device(batch.values), rows, batch_size="auto", pad=0)
        return [float(one) for one in results]
    finally:
        torch.cuda.is_initialized, torch.cuda.empty_cache = plain


def _accelerate(*, halving: bool) -> Callable[[Device, list[int]], list[float]]:
    def contender(device: Device, lengths: list[int]) -> list[float]:
        import torch
        from accelerate.utils import memory

        def job(batch_size: int) -> list[float]:
            results: list[float] = []
            for start in range(0, len(lengths), batch_size):
                some = [torch.ones(n) for n in lengths[start : start + batch_size]]
                results.extend(
                    device(torch.nn.utils.rnn.pad_sequence(some, batch_first=True)).tolist()
                )
            return results

        plain, memory.clear_device_cache = memory.clear_device_cache, _cleared(device)
        try:
            smaller = _halving() if halving else None
            found = memory.find_executable_batch_size(
                job, starting_batch_size=START, reduce_batch_size_fn=smaller
            )
            return found()
        finally:
            memory.clear_device_cache = plain

    return contender


def _cleared(device: Device) -> Callable[..., None]:
    def clear(garbage_collection: bool = False) -> None:  # noqa: FBT001, FBT002 - as accelerate's own
        if garbage_collection:
            gc.collect()
        device.clear()

    return clear


def _halving() -> Callable[[], int]:
    size = START

    def smaller() -> int:
        nonlocal size
        size //= 2
        return size

    return smaller


def _high_water(bench: Bench) -> None:
    short, long = (2_000, 8_000) if bench.quick else (10_000, 80_000)

    def rows(n: int) -> Iterator[Any]:
        draw = np.random.default_rng(0)
        for _ in range(n):
            yield draw.random(int(draw.integers(64, 193)))  # 1 KiB on average

    def total(batch: Any) -> Any:
        return batch.values.sum(axis=1)

    def peak(work: Callable[[], object]) -> float:
        gc.collect()
        tracemalloc.start()
        try:
            work()
            return tracemalloc.get_traced_memory()[1] / 2**20
        finally:
            tracemalloc.stop()

    def drained(n: int, **options: Any) -> Callable[[], object]:
        return lambda: sum(1 for _ in map_batches(total, rows(n), pad=0, **options))

    contenders: dict[str, dict[str, Any]] = {
        "mlkit map_batches(batch_size=32)": {"batch_size": 32},
        "mlkit map_batches(batch_size=32, prefetch=2)": {"batch_size": 32, "prefetch": 2},
        "mlkit map_batches(batch_size=32, window=4096)": {"batch_size": 32, "window": 4096},
    }
    for n in (short, long):
        work = f"the most memory held, {n:,} rows of 1 KiB from a generator"
        for name, options in contenders.items():
            value = peak(drained(n, **options))
            bench.rows.append(
                Row(work, name, "MiB", value, value, value, "all rows in a list", None)
            )
        everything = peak(lambda n=n: list(rows(n)))  # type: ignore[misc]
        bench.rows.append(
            Row(
                work,
                "all rows in a list",
                "MiB",
                everything,
                everything,
                everything,
                "all rows in a list",
                1.0,
            )
        )
        bench.rows[-4:] = [
            row._replace(ratio=(row.median or 0.0) / everything) for row in bench.rows[-4:]
        ]
