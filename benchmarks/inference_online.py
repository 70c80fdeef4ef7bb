"""The batcher beside others, on a device that is simulated: a batch of n rows takes 5 ms and 50 us a row.

`python -m benchmarks.inference_online [--quick] [--docs]` measures all of it; with `--docs` it also rewrites the tables and
the picture of `docs/concepts/inference-peers.md`; with `--part cpu` only that part. The device sleeps, as a thread that
waits for a GPU does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import math
import os
import random
import selectors
import statistics
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import RESULTS, Row
from benchmarks.inference_peers import CONTENDERS, FLOOR, OURS, bare, missing
from mlkit.inference._online.gathering import Gathering

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence

    from benchmarks.harness import Bench

PEERS: tuple[str, ...] = ("aiodataloader", "async-batcher", "batched", "batchlet", "bentoml", "ray")
PATH = RESULTS / "inference_online.json"
RAW = "the raw loop"
IDEAL = "ideal server, simulated"
RULE = "mlkit's rule, simulated"

BATCH = 64
WAIT = 0.002
CALLERS = (1, 8, 64, 512)
PARTS = ("closed", "cpu", "idle", "open")
LOADS = (30, 60, 85, 95)  # percent of what the device can do in full batches


def device_seconds(n_rows: int) -> float:
    """Return how long the device takes for a batch."""
    return 0.005 + 50e-6 * n_rows


def device(batch: list[Any]) -> list[Any]:
    """Run a batch on the device."""
    time.sleep(device_seconds(len(batch)))  # noqa: TID251 - the device is not the clock's
    return batch


def nothing(batch: list[Any]) -> list[Any]:
    """Run a batch in no time: what is left is the batcher's own."""
    return batch


CAPACITY = BATCH / device_seconds(BATCH)  # rows a second


def run(bench: Bench) -> None:
    """Measure, and keep the rows in *bench*."""
    names = _present(bench)
    found = measured(names, quick=bench.quick)
    if not bench.quick:
        _save(found)
    for row in rows(found):
        bench.rows.append(row)
    bench.note(
        "online: a simulated device of 5 ms and 50 us a row, batches of up to 64 rows, a wait of 2 ms. The raw loop runs "
        "batches as full as so many callers can make them; 1/ratio is the share of it that a batcher reaches."
    )
    bench.note(
        f"online: the CPU time is the least of many short rounds, the process held to one CPU. The {FLOOR} makes a future "
        "for each row and hands over to a thread and back, and does nothing else; it is the floor of this Python and this "
        "machine."
    )


def measured(
    names: Sequence[str], *, quick: bool, parts: Collection[str] = PARTS
) -> dict[str, Any]:
    """Return the figures of *parts*: of several rounds, in which the contenders take turns."""
    found: dict[str, Any] = {}
    for part in parts:
        if part == "closed":
            found[part] = {
                str(callers): _closed(names, callers, quick=quick) for callers in CALLERS
            }
        elif part == "cpu":
            with one_cpu():
                found[part] = {
                    str(callers): _cpu(names, callers, quick=quick) for callers in CALLERS
                }
        elif part == "idle":
            found[part] = _idle(names, 0.3 if quick else 2.0)
        else:
            found[part] = {str(load): _open(names, load, quick=quick) for load in LOADS}
    return found


def rows(found: dict[str, Any]) -> list[Row]:
    """Return the figures as rows of the benchmark table."""
    table: list[Row] = []
    for callers, times in found["closed"].items():
        work = f"{callers} callers in a closed loop, simulated device"
        table += [
            _row(work, name, "us", seconds, RAW, times[RAW]) for name, seconds in times.items()
        ]
    for callers, times in found["cpu"].items():
        work = f"{callers} callers, no model: CPU time a request"
        table += [
            _row(work, name, "us", seconds, OURS, times[OURS]) for name, seconds in times.items()
        ]
    for load, latencies in found["open"].items():
        for quantile in ("p50", "p99"):
            work = f"Poisson arrivals at {load} % of capacity: {quantile} latency"
            ideal = latencies[IDEAL][quantile]
            table += [
                _row(work, name, "ms", run_[quantile], IDEAL, ideal)
                for name, run_ in latencies.items()
            ]
    return table


def _row(
    work: str,
    name: str,
    unit: str,
    values: Sequence[float],
    *against: Any,
) -> Row:
    """Return a row whose ratio is that of the least values, *against* a name and its own: noise only ever adds."""
    baseline, truth = against
    if math.inf in values:
        note = "fell more than four seconds behind, or left callers without an answer"
        return Row(work, name, "", None, None, None, "", None, note)
    scale = {"us": 1e6, "ms": 1e3}[unit]
    low, middle, high = (
        scale * each for each in (min(values), statistics.median(values), max(values))
    )
    return Row(work, name, unit, low, middle, high, baseline, min(values) / min(truth))


@contextlib.contextmanager
def one_cpu() -> Iterator[None]:
    """Hold this thread, and those that it starts, to one CPU.

    What it costs to wake a thread on another one belongs to the machine: where it is shared, 10 to 100 us, by the hour.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


# --- closed loop ---------------------------------------------------------------------------------------------------


def _closed(names: Sequence[str], callers: int, *, quick: bool) -> dict[str, list[float]]:
    """Return the seconds a row, of each contender in each round."""
    size = min(callers, BATCH)
    each = max(3 if quick else 12, (6 if quick else 30) * size // callers)  # rows of one caller
    times: dict[str, list[float]] = {name: [] for name in (RAW, *names)}
    for _ in range(2 if quick else 5):
        times[RAW].append(_raw(size, each * callers // size))
        for name in names:
            times[name].append(_timed(name, device, callers, each, time.perf_counter))
    return times


def _cpu(names: Sequence[str], callers: int, *, quick: bool) -> dict[str, list[float]]:
    """Return the CPU seconds a row, of each contender in each round."""
    # Many short rounds: on a busy machine one of them meets a quiet moment.
    each = max(4, (1_000 if callers > 1 else 300) // callers)
    times: dict[str, list[float]] = {name: [] for name in (FLOOR, *names)}
    for _ in range(2 if quick else 40):
        for name in (FLOOR, *names):
            # "batched" waits for its timeout each time when it has a single caller.
            few = min(each, 200) if callers == 1 and name == "batched" else each
            times[name].append(_timed(name, nothing, callers, few, time.process_time))
    return times


def _timed(
    name: str,
    model: Callable[[list[Any]], list[Any]],
    callers: int,
    each: int,
    clock: Callable[[], float],
) -> float:
    """Return the seconds a row; infinite if some callers never have their answers."""
    try:
        return float(_in_loop(_closed_loop(name, model, callers, each, clock)))
    except TimeoutError:
        return math.inf


def _raw(size: int, n_batches: int) -> float:
    batch = list(range(size))
    start = time.perf_counter()
    for _ in range(n_batches):
        device(batch)
    return (time.perf_counter() - start) / n_batches / size


async def _closed_loop(
    name: str,
    model: Callable[[list[Any]], list[Any]],
    callers: int,
    each: int,
    clock: Callable[[], float],
) -> float:
    contender = bare if name == FLOOR else CONTENDERS[name]
    async with contender(model, BATCH, WAIT) as submit:

        async def caller(number: int, n_rows: int) -> None:
            for place in range(n_rows):
                row = number * each + place
                if await submit(row) != row:
                    raise AssertionError(f"{name} mixed up its rows")

        async def all_of_them(n_rows: int) -> None:
            await asyncio.gather(*[caller(number, n_rows) for number in range(callers)])

        await asyncio.wait_for(
            all_of_them(16 if callers == 1 else 2), 30
        )  # BentoML learns on the first eleven batches
        start = clock()
        await asyncio.wait_for(all_of_them(each), 60)
        return (clock() - start) / (each * callers)


def _idle(names: Sequence[str], seconds: float) -> dict[str, float]:
    """Return the share of a CPU that each takes while nobody calls."""

    async def wait(name: str) -> float:
        async with CONTENDERS[name](nothing, BATCH, WAIT) as submit:
            await asyncio.gather(*[submit(number) for number in range(100)])
            await asyncio.sleep(0.1)
            start = time.process_time()
            await asyncio.sleep(seconds)
            return (time.process_time() - start) / seconds

    return {name: _in_loop(wait(name)) for name in names}


# --- open loop -----------------------------------------------------------------------------------------------------


def _open(names: Sequence[str], load: int, *, quick: bool) -> dict[str, dict[str, list[float]]]:
    """Return the latency quantiles of each contender in each round, on the same arrivals, and the ideal server's."""
    seconds = 0.5 if quick else 2.0
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(1 if quick else 2):
        due = _arrivals(load, seconds, seed)
        for name in (IDEAL, RULE, *names):
            if name in (IDEAL, RULE):
                latencies = _ideal(due) if name == IDEAL else _by_rule(due)
            else:
                try:
                    latencies = _in_loop(_serve_arrivals(name, due))
                except TimeoutError:
                    latencies = [math.inf]
            latencies.sort()
            quantiles = found.setdefault(name, {"p50": [], "p99": []})
            for quantile, share in (("p50", 0.50), ("p99", 0.99)):
                quantiles[quantile].append(latencies[int(share * (len(latencies) - 1))])
    return found


def _arrivals(load: int, seconds: float, seed: int) -> list[float]:
    generator = random.Random(seed)
    due: list[float] = []
    now = 0.0
    while True:
        now += generator.expovariate(CAPACITY * load / 100)
        if now > seconds:
            return due
        due.append(now)


def _ideal(due: Sequence[float]) -> list[float]:
    """Return the latencies of a server that takes what waits as soon as it is free, and spends no time of its own."""
    latencies: list[float] = []
    free, first = 0.0, 0
    while first < len(due):
        start = max(free, due[first])
        last = first
        while last < len(due) and last - first < BATCH and due[last] <= start:
            last += 1
        free = start + device_seconds(last - first)
        latencies += [free - at for at in due[first:last]]
        first = last
    return latencies


def _by_rule(due: Sequence[float]) -> list[float]:
    """Return the latencies of a server that dispatches by our rule and spends 0.1 ms a batch, each row in a loop turn of its own.

    What is above the ideal server's is the price of the rule; what a measured batcher has above this, that of the machine.
    """
    rule, loop, turns = Gathering(BATCH, WAIT), "loop", 2 * 30e-6
    latencies: list[float] = []
    arrivals = deque(due)
    waiting: deque[float] = deque()
    settles = math.inf

    def come(until: float, *, free: bool) -> None:
        nonlocal settles
        while arrivals and arrivals[0] <= until:
            waiting.append(arrivals.popleft())
            rule.arrived(waiting[-1])
            if free and loop not in rule.unsettled:
                rule.unsettled.add(loop)
                settles = waiting[-1] + turns
        if settles <= until:
            rule.settled(loop)
            settles = math.inf

    now = 0.0
    while arrivals or waiting:
        now = now if waiting else max(now, arrivals[0])
        come(now, free=True)
        while not rule.complete(len(waiting)) and (left := rule.seconds_left(now)) > 0:
            now = min(now + left, settles, arrivals[0] if arrivals else math.inf)
            come(now, free=True)
        batch = [waiting.popleft() for _ in range(min(BATCH, len(waiting)))]
        rule.sealed(len(batch), now)
        now += device_seconds(len(batch)) + 1e-4
        come(now, free=False)
        latencies += [now - at for at in batch]
        rule.answered(len(waiting), len(batch), {loop})
        settles = now + turns
    return latencies


async def _serve_arrivals(name: str, due: Sequence[float]) -> list[float]:
    async with CONTENDERS[name](device, BATCH, WAIT) as submit:
        await asyncio.gather(*[submit(number) for number in range(16)])
        for number in range(16):
            await submit(number)
        latencies: list[float] = []
        loop, over = asyncio.get_running_loop(), asyncio.Event()

        async def caller(number: int, at: float) -> None:
            await submit(number)
            latencies.append(loop.time() - at)
            if len(latencies) == len(due):
                over.set()

        # What the contenders before have left is not to be collected in the middle of this one.
        gc.collect()
        gc.freeze()
        start = loop.time() + 0.01
        tasks = []
        for number, after in enumerate(due):
            if (left := start + after - loop.time()) > 0:
                await asyncio.sleep(left)
            tasks.append(loop.create_task(caller(number, start + after)))
        # Who is more than four seconds behind has lost; waiting for it would only take long. Not for each task: to
        # begin that takes the loop long enough to be seen in the latencies.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), 4)
        late = [task for task in tasks if not task.done()]
        for task in late:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        if len(latencies) < len(due):
            raise TimeoutError
        return latencies


def _in_loop(main: Awaitable[Any]) -> Any:
    """Run *main* in a loop whose timers are exact to the microsecond; epoll's are to the millisecond."""

    def make() -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(selectors.SelectSelector())

    with asyncio.Runner(loop_factory=make) as runner:
        return runner.run(main)  # type: ignore[arg-type]


def _present(bench: Bench | None) -> list[str]:
    names = []
    for name in CONTENDERS:
        reason = missing(name)
        if not reason:
            names.append(name)
        elif bench is not None:
            bench.skipped("online", name, reason)
        else:
            print(f"not run: {name}: {reason}")
    return names


def _save(found: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    PATH.write_text(json.dumps(_rounded(found)) + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value


def main() -> int:
    """Measure, print the tables, write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference_online")
    parser.add_argument("--quick", action="store_true", help="few rounds, and write no results")
    parser.add_argument("--docs", action="store_true", help="also rewrite the page and its picture")
    parser.add_argument(
        "--only", action="append", help="measure this contender alone; write no results"
    )
    parser.add_argument(
        "--part", action="append", choices=PARTS, help="measure this anew, keep the others' results"
    )
    options = parser.parse_args()
    from benchmarks.inference_page import publish, tables

    kept = json.loads(PATH.read_text(encoding="utf-8")) if options.part else {}
    names = options.only or _present(None)
    found = kept | measured(names, quick=options.quick, parts=options.part or PARTS)
    print(tables(found))
    if not options.quick and not options.only:
        _save(found)
    if options.docs:
        publish(Path(__file__).parents[1] / "docs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
