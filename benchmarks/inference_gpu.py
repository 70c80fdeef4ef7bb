"""What only a CUDA device can show: placement, copies beside compute, graphs, real memory exhaustion, throughput.

Run it there: `PYTHONPATH=src:. python -m benchmarks.inference_gpu`. It needs torch and numpy, and fails loudly. The figures
go to `benchmarks/results/inference_gpu.json`, with the name of the device. There is no such file in the repository yet:
nothing here has run since prefetch, autocast, graphs and lanes were written.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mlkit.errors import RowError
from mlkit.inference import Batcher, map_batches
from mlkit.telemetry import listen

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH, BATCH = 1024, 64


def main() -> None:
    """Check, then measure."""
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: nothing was checked")
    torch.backends.cuda.matmul.allow_tf32 = False
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.GELU(), torch.nn.Linear(4 * WIDTH, 256)
    )
    model.cuda().eval()
    rows = list(np.random.default_rng(0).standard_normal((4096, WIDTH), dtype=np.float32))
    check_equality(model, rows)
    check_placement(rows)
    check_out_of_memory(rows)
    check_release()
    check_modes(model, rows)
    check_planning()
    check_exact(model, rows)
    measure(model, rows)
    print("all checks passed")


def raw_loop(model: Any, rows: list[Any], *, pinned: bool) -> list[Any]:
    """The loop a careful person would write."""
    results: list[Any] = []
    with torch.inference_mode():
        for start in range(0, len(rows), BATCH):
            batch = torch.from_numpy(np.stack(rows[start : start + BATCH]))
            batch = batch.pin_memory().cuda(non_blocking=True) if pinned else batch.cuda()
            results.extend(model(batch).cpu().numpy())
    return results


def check_equality(model: Any, rows: list[Any]) -> None:
    truth = np.stack(raw_loop(model, rows, pinned=False))
    offline = list(map_batches(model, rows, batch_size=BATCH))
    assert all(type(row) is np.ndarray for row in offline)
    assert np.array_equal(np.stack(offline), truth), "map_batches differs from the loop"
    fixed = serve(model, rows, buckets=[BATCH])
    assert np.array_equal(np.stack(fixed), truth), "Batcher at one shape differs from the loop"
    free = np.stack(serve(model, rows, buckets=None))
    print(f"equality: bits equal; without buckets max |diff| {np.abs(free - truth).max():.1e}")

    tensors = [torch.from_numpy(row) for row in rows[:100]]
    back = list(map_batches(model, tensors, batch_size=BATCH, buckets=[BATCH]))
    assert {row.device.type for row in back} == {"cpu"}, "CPU tensors must be answered on the CPU"
    assert np.array_equal(torch.stack(back).numpy(), truth[:100])
    there = list(map_batches(model, [row.cuda() for row in tensors], batch_size=BATCH))
    assert {row.device.type for row in there} == {"cuda"}, "CUDA rows must be answered there"


def serve(model: Any, rows: list[Any], *, buckets: list[int] | None) -> list[Any]:
    results: list[Any] = [None] * len(rows)

    async def serve_all() -> None:

        async def caller(first: int) -> None:
            for index in range(first, len(rows), BATCH):
                results[index] = await batcher.submit(rows[index])

        async with Batcher(model, max_batch_size=BATCH, buckets=buckets) as batcher:
            await asyncio.gather(*[caller(first) for first in range(BATCH)])

    asyncio.run(serve_all())  # no result: asyncio.run would spend long on the repr of a large one
    return results


def check_placement(rows: list[Any]) -> None:
    seen: set[tuple[str, bool]] = set()
    copies: list[tuple[bool, bool]] = []
    to = torch.Tensor.to

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        copies.append((self.is_pinned(), bool(kwargs.get("non_blocking"))))
        return to(self, *args, **kwargs)

    def model(batch: Any) -> Any:
        seen.add((batch["x"].device.type, isinstance(batch["id"], list)))
        return {"sum": batch["x"].sum(dim=1), "id": batch["id"]}

    records = [{"x": row, "id": str(index)} for index, row in enumerate(rows[:256])]
    torch.Tensor.to = watched  # type: ignore[method-assign]
    try:
        results = list(map_batches(model, records, batch_size=BATCH, device="cuda"))
    finally:
        torch.Tensor.to = to  # type: ignore[method-assign]
    assert seen == {("cuda", True)}
    assert copies == [(True, True)] * 4, f"not pinned and non-blocking: {copies}"
    assert all(
        result["id"] == record["id"] for result, record in zip(results, records, strict=True)
    )
    assert isinstance(results[0]["sum"], np.generic | np.ndarray)
    print("placement: pinned and non-blocking, results back as arrays")


def check_out_of_memory(rows: list[Any]) -> None:
    free, _ = torch.cuda.mem_get_info()
    per_row = free // 20  # 64 rows do not fit, 16 do

    executed: list[int] = []
    before: list[int] = []

    def hungry(batch: Any) -> Any:
        torch.cuda.synchronize()
        before.append(torch.cuda.memory_allocated())
        scratch = torch.empty(len(batch) * per_row, dtype=torch.uint8, device="cuda")
        scratch[:1] = 1
        executed.append(len(batch))
        return batch.sum(dim=1) + scratch[0] - 1

    events: list[Any] = []
    with listen(events.append):
        results = list(map_batches(hungry, rows[:512], batch_size=BATCH, device="cuda"))
    assert np.allclose(results, np.stack(rows[:512]).sum(axis=1), atol=1e-2)
    assert sum(executed) == 512, "a row ran twice"
    limits = [event.fields["limit"] for event in events]
    assert limits[:2] == [32, 16], limits
    spread = max(before) - min(before)
    assert spread < per_row, f"{spread} bytes of a failed attempt were alive in the next one"
    print(f"out of memory: limits {limits}, each row executed once, largest batch {max(executed)}")

    def huge(batch: Any) -> Any:
        if (batch[:, 0] == 7).any():
            return torch.empty(2 * torch.cuda.mem_get_info()[1], dtype=torch.uint8, device="cuda")
        return batch.sum(dim=1)

    some = [row.copy() for row in rows[:128]]
    some[99][0] = 7
    returned = list(map_batches(huge, some, batch_size=BATCH, device="cuda", on_error="return"))
    bad = [index for index, result in enumerate(returned) if isinstance(result, RowError)]
    assert bad == [99], bad
    cause = returned[99].__cause__
    assert isinstance(cause, torch.OutOfMemoryError)
    print("out of memory: the row that is too big alone is named:", str(returned[99])[:60])


def check_release() -> None:
    """After a burst an idle batcher holds no device memory."""
    with Batcher(lambda batch: batch * 2, device="cuda") as batcher:
        base = torch.cuda.memory_allocated()
        batcher.call(torch.ones(1 << 20))
        torch.cuda.synchronize()
        threading.Event().wait(0.05)  # until the device thread is back in its queue
        left = torch.cuda.memory_allocated() - base
        assert left == 0, f"{left} bytes stay on the device"
    print("release: 0 bytes stay on the device")


def check_modes(model: Any, rows: list[Any]) -> None:
    truth = np.stack(list(map_batches(model, rows, batch_size=BATCH)))
    ahead = np.stack(list(map_batches(model, rows, batch_size=BATCH, prefetch=2)))
    assert np.array_equal(ahead, truth), "batches copied beside the compute differ"
    replayed = list(map_batches(model, rows, batch_size=BATCH, graphs=True, buckets=[BATCH]))
    assert np.allclose(np.stack(replayed), truth, rtol=1e-4, atol=1e-5)
    both = {"graphs": True, "buckets": [BATCH], "prefetch": 2}
    replayed = list(map_batches(model, rows, batch_size=BATCH, **both))  # type: ignore[call-overload]
    assert np.allclose(np.stack(replayed), truth, rtol=1e-4, atol=1e-5)
    half = np.stack(list(map_batches(model, rows, batch_size=BATCH, autocast="bfloat16")))
    assert np.allclose(half, truth, rtol=0.1, atol=0.1)
    assert not np.array_equal(half, truth)
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    lanes = devices if len(devices) > 1 else ["cuda:0", "cuda:0"]
    spread = np.stack(list(map_batches(model, rows, batch_size=BATCH, device=lanes)))
    assert np.allclose(spread, truth, rtol=1e-4, atol=1e-5)
    print(f"modes: prefetch, graphs, autocast and {lanes} agree with the plain call")


def check_planning() -> None:
    """Rows of different lengths: batches follow what the device is measured to cost, and what fits."""
    draw = np.random.default_rng(0)
    lengths = np.clip(np.exp(draw.normal(4.0, 1.0, 20_000)), 1, 1024).astype(int).tolist()
    rows = [torch.ones(n) for n in lengths]
    shapes: list[tuple[int, int]] = []
    free, _ = torch.cuda.mem_get_info()

    def model(batch: Any) -> Any:
        shapes.append(tuple(batch.values.shape))
        torch.empty(batch.values.numel() * (free // 400_000), dtype=torch.uint8, device="cuda")
        return batch.values.sum(1)

    got = list(map_batches(model, rows, batch_size="auto", pad=0, device="cuda"))
    assert [int(one) for one in got] == lengths
    print(
        f"planning: {len(shapes)} calls, {sum(n * w for n, w in shapes) / sum(lengths):.2f} filled"
    )


def check_exact(model: Any, rows: list[Any]) -> None:
    together = list(map_batches(model, rows[:100], batch_size=BATCH, exact=True))
    alone = [next(map_batches(model, [row], batch_size=BATCH, exact=True)) for row in rows[:100]]
    assert all(map(np.array_equal, together, alone)), "exact: bits depend on company"
    print("exact: 100 rows have the same bits together and alone")


def measure(model: Any, rows: list[Any]) -> None:
    contenders: dict[str, Callable[[], object]] = {
        "raw loop": lambda: raw_loop(model, rows, pinned=False),
        "raw loop, pinned": lambda: raw_loop(model, rows, pinned=True),
        "map_batches": lambda: list(map_batches(model, rows, batch_size=BATCH)),
        "map_batches, prefetch=2": lambda: list(
            map_batches(model, rows, batch_size=BATCH, prefetch=2)
        ),
        "map_batches, graphs": lambda: list(
            map_batches(model, rows, batch_size=BATCH, graphs=True, buckets=[BATCH])
        ),
        "map_batches, bfloat16": lambda: list(
            map_batches(model, rows, batch_size=BATCH, autocast="bfloat16")
        ),
        "Batcher, 64 callers": lambda: serve(model, rows, buckets=None),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(7):
        for name, contender in contenders.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            contender()
            torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    kept = []
    for name, times in seconds.items():
        ratio = statistics.median(
            a / b for a, b in zip(seconds["raw loop"], times, strict=True)
        )  # of throughputs
        middle = statistics.median(times)
        kept.append({"contender": name, "us": middle / len(rows) * 1e6, "rate": ratio})
        print(f"{name:24} {middle / len(rows) * 1e6:7.2f} us/row  {ratio:.2f}x the raw loop's rate")
    content = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": kept}
    path = Path(__file__).parent / "results" / "inference_gpu.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
