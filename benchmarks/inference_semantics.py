"""What each batcher does in the hard cases: `python -m benchmarks.inference_semantics [--docs]`.

Each contender meets each case in a process of its own, with a watchdog. The cells say what was seen, not what was promised.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS
from benchmarks.inference_peers import CONTENDERS, FALLBACK

__all__ = ["CASES", "PATH", "matrix"]

PATH = RESULTS / "inference_semantics.json"
PATIENCE = 3.0  # seconds after which a caller hangs
SIZE, WAIT = 8, 0.005
_open: list[Any] = []  # what is never closed; a manager that nobody names would close itself


class Device:
    """A model that can be held up, and remembers what it was given."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()

    def __call__(self, batch: list[Any]) -> list[Any]:
        self.batches.append(list(batch))
        self.entered.set()
        self.go.wait(30)
        return list(batch)

    @property
    def rows(self) -> list[Any]:
        return [row for batch in self.batches for row in batch]


class Row:
    """A row that can be watched."""


async def _settled(calls: list[Any]) -> list[Any]:
    """Return what became of each call: a result, an error, or "hangs"."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    await asyncio.wait(tasks, timeout=PATIENCE)
    return [_outcome(task) for task in tasks]


def _outcome(task: Any) -> Any:
    if not task.done():
        return "hangs"
    if task.cancelled():
        return asyncio.CancelledError()
    return task.exception() or task.result()


def _summary(outcomes: list[Any], expected: list[Any]) -> str:
    """Say in words what became of some calls that should have given *expected*."""
    kinds: Counter[str] = Counter()
    for outcome, right in zip(outcomes, expected, strict=True):
        if outcome == "hangs":
            kinds["hang"] += 1
        elif outcome == FALLBACK:
            kinds["get the fallback"] += 1
        elif isinstance(outcome, BaseException):
            kinds[type(outcome).__name__] += 1
        else:
            kinds["answered" if outcome == right else "wrong result"] += 1
    if len(kinds) == 1:
        (kind,) = kinds
        return f"all {kind}" if len(outcomes) > 1 else kind
    return ", ".join(f"{n} {kind}" for kind, n in kinds.items())


async def _held(device: Device, submit: Any) -> Any:
    """Let the device be busy with a row; return that row's call."""
    await submit("warm")
    device.go.clear()
    device.entered.clear()
    first = asyncio.ensure_future(submit("first"))
    await asyncio.to_thread(device.entered.wait, PATIENCE)
    return first


async def cancelled(name: str) -> str:
    """One of eight callers is cancelled while its row waits."""
    device = Device()
    async with CONTENDERS[name](device, SIZE, WAIT) as submit:
        first = await _held(device, submit)
        tasks = [asyncio.ensure_future(submit(number)) for number in range(8)]
        await asyncio.sleep(0.05)
        tasks[3].cancel()
        await asyncio.sleep(0)
        device.go.set()
        outcomes = await _settled([first, *tasks])
        del outcomes[4]
        others = _summary(outcomes, ["first", 0, 1, 2, 4, 5, 6, 7])
        ran = "its row runs all the same" if 3 in device.rows else "its row never runs"
        return f"the others: {others}; {ran}"


async def poisoned(name: str) -> str:
    """One of eight rows makes the model raise."""

    def model(batch: list[Any]) -> list[Any]:
        if 3 in batch:
            raise ValueError("row 3")
        return list(batch)

    async with CONTENDERS[name](model, SIZE, WAIT) as submit:
        outcomes = await _settled([submit(number) for number in range(8)])
        del outcomes[3]
        return f"the others: {_summary(outcomes, [0, 1, 2, 4, 5, 6, 7])}"


async def one_error(name: str) -> str:
    """The model raises for all: does each caller get an error of its own?"""

    def model(batch: list[Any]) -> list[Any]:
        raise ValueError(f"all {len(batch)}")

    async with CONTENDERS[name](model, SIZE, WAIT) as submit:
        outcomes = await _settled([submit(number) for number in range(8)])
        if "hangs" in outcomes:
            return _summary(outcomes, [None] * 8)
        return "one object for all" if len(set(map(id, outcomes))) == 1 else "each its own"


async def base_exception(name: str) -> str:
    """The model raises `CancelledError`; then comes another row."""
    failing = [True]

    def model(batch: list[Any]) -> list[Any]:
        if failing[0]:
            raise asyncio.CancelledError
        return list(batch)

    async with CONTENDERS[name](model, SIZE, WAIT) as submit:
        first = _summary(await _settled([submit(number) for number in range(4)]), [0, 1, 2, 3])
        failing[0] = False
        return f"{first}; the next row: {_summary(await _settled([submit(9)]), [9])}"


async def short(name: str) -> str:
    """The model returns one result too few."""
    async with CONTENDERS[name](lambda batch: list(batch)[:-1], SIZE, WAIT) as submit:
        return _summary(await _settled([submit(number) for number in range(8)]), list(range(8)))


async def closed(name: str) -> str:
    """It is closed while eight rows wait."""
    device = Device()
    manager = CONTENDERS[name](device, SIZE, WAIT)
    submit = await manager.__aenter__()
    first = await _held(device, submit)
    tasks = [asyncio.ensure_future(submit(number)) for number in range(8)]
    await asyncio.sleep(0.05)
    closing = asyncio.ensure_future(manager.__aexit__(None, None, None))
    await asyncio.sleep(0.05)
    device.go.set()
    outcomes = await _settled([first, *tasks])
    await asyncio.wait([closing], timeout=1)
    return _summary(outcomes, ["first", *range(8)])


def _in_a_loop(main: Any) -> Any:
    """Run *main* in a loop of its own; unlike `asyncio.run` this does not close what is still open."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()


def second_loop(name: str) -> str:
    """It is used from a second event loop, after the first one has ended."""

    async def begin() -> Any:
        _open.append(CONTENDERS[name](Device(), SIZE, WAIT))
        submit = await _open[-1].__aenter__()
        await submit(1)
        return submit

    async def again(submit: Any) -> str:
        return _summary(await _settled([submit(number) for number in range(4)]), [0, 1, 2, 3])

    return str(_in_a_loop(again(_in_a_loop(begin()))))


def several_loops(name: str) -> str:
    """Four threads, each with an event loop of its own, use it at once."""
    device = Device()

    async def begin() -> Any:
        _open.append(CONTENDERS[name](device, SIZE, WAIT))
        return await _open[-1].__aenter__()

    submit = _in_a_loop(begin())

    def thread(number: int) -> Any:
        async def main() -> Any:
            return (await _settled([submit(number)]))[0]

        return _in_a_loop(main())

    with ThreadPoolExecutor(4) as threads:
        return _summary(list(threads.map(thread, range(4))), [0, 1, 2, 3])


async def deadline(name: str) -> str:
    """A caller waits 50 ms for a row, while the device is busy for longer."""
    device = Device()
    async with CONTENDERS[name](device, SIZE, WAIT) as submit:
        first = await _held(device, submit)
        start = time.perf_counter()
        (outcome,) = await _settled([asyncio.wait_for(submit(3), 0.05)])
        took = time.perf_counter() - start
        device.go.set()
        await _settled([first])
        after = _summary(await _settled([submit(number) for number in range(4, 8)]), [4, 5, 6, 7])
        ran = "its row runs all the same" if 3 in device.rows else "its row never runs"
        late = "" if took < 1 else f" after {took:.1f} s"
        told = type(outcome).__name__ if isinstance(outcome, BaseException) else outcome
        return f"{told}{late}; {ran}; who comes after: {after}"


async def backpressure(name: str) -> str:
    """A thousand rows come while the device is busy; a bound of 16 was asked for, where there is one."""
    device = Device()
    async with CONTENDERS[name](device, SIZE, WAIT, 16) as submit:
        first = await _held(device, submit)
        tasks = [asyncio.ensure_future(submit(number)) for number in range(1000)]
        await asyncio.sleep(0.2)
        refused = [
            task for task in tasks if task.done() and not task.cancelled() and task.exception()
        ]
        device.go.set()
        await _settled([first])
        await asyncio.wait(tasks, timeout=PATIENCE)
        if not refused:
            return "all 1,000 wait"
        after = getattr(refused[-1].exception(), "retry_after", None)
        says = "" if after is None else ", with an estimate of when to come again"
        return f"{len(refused)} refused at once: {type(refused[0].exception()).__name__}{says}"


async def late_binding(name: str) -> str:
    """Eight rows come one by one, while the device is busy: in how many batches do they run?"""
    device = Device()
    async with CONTENDERS[name](device, SIZE, WAIT) as submit:
        first = await _held(device, submit)
        before = len(device.batches)
        tasks = []
        for number in range(8):
            tasks.append(asyncio.ensure_future(submit(number)))
            await asyncio.sleep(0.02)
        device.go.set()
        outcomes = await _settled([first, *tasks])
        n_batches = len(device.batches) - before
        return f"{n_batches} batch{'es'[: 2 * (n_batches > 1)]}, {_summary(outcomes, ['first', *range(8)])}"


async def retention(name: str) -> str:
    """All callers have their results and let go of them: what is left of the rows?"""

    def model(batch: list[Any]) -> list[Any]:
        return list(batch)

    async with CONTENDERS[name](model, SIZE, WAIT) as submit:
        rows: list[Any] = [Row() for _ in range(8)]
        watched = [weakref.ref(row) for row in rows]
        tasks = [asyncio.ensure_future(submit(row)) for row in rows]
        await asyncio.wait(tasks, timeout=PATIENCE)
        del rows, tasks
        await asyncio.sleep(0.1)
        gc.collect()
        alive = sum(ref() is not None for ref in watched)
        return "nothing" if not alive else f"{alive} of 8 rows stay in memory"


async def full_batch(name: str) -> str:
    """With a wait of half a second, a full batch comes: how long does it take?"""
    async with CONTENDERS[name](Device(), SIZE, 0.5) as submit:
        start = time.perf_counter()
        outcomes = await _settled([submit(number) for number in range(8)])
        took = time.perf_counter() - start
        when = "goes at once" if took < 0.2 else f"after {took:.1f} s"
        return f"{when}, {_summary(outcomes, list(range(8)))}"


CASES: dict[str, Any] = {
    "a caller is cancelled while its row waits": cancelled,
    "one row breaks the model": poisoned,
    "the model raises for all": one_error,
    "the model raises CancelledError": base_exception,
    "one result too few": short,
    "closed while rows wait": closed,
    "a second event loop, later": second_loop,
    "four event loops at once": several_loops,
    "a caller gives up after 50 ms": deadline,
    "1,000 rows at once": backpressure,
    "rows come while the device is busy": late_binding,
    "a full batch, long wait": full_batch,
    "what stays in memory": retention,
}


def matrix(found: dict[str, dict[str, str]]) -> str:
    """Return what was seen as a Markdown table, a row for each case."""
    names = list(found)
    head = f"| case | {' | '.join(names)} |\n|{' --- |' * (len(names) + 1)}"
    body = [
        f"| {case} | {' | '.join(found[name].get(case, '') for name in names)} |" for case in CASES
    ]
    return "\n".join([head, *body])


def _meet(name: str, case: str) -> str:
    """Return what *name* does in *case*, from a process of its own."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "benchmarks.inference_semantics",
        "--one",
        name,
        case,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    except subprocess.TimeoutExpired:
        return "the process hangs"
    seen = [line[6:] for line in done.stdout.splitlines() if line.startswith("seen: ")]
    if seen:
        return seen[-1]
    return (done.stderr.strip().splitlines() or ["the process died"])[-1][:100]


def _one(name: str, case: str) -> None:
    """Meet one case in this process, and end it whatever still runs."""
    import os

    found = CASES[case]
    try:
        seen = asyncio.run(found(name)) if asyncio.iscoroutinefunction(found) else found(name)
    except BaseException as error:
        seen = f"raises {type(error).__name__}"
    print(f"seen: {seen}", flush=True)
    os._exit(0)


def main() -> int:
    """Meet all cases, print the matrix, keep it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference_semantics")
    parser.add_argument(
        "--one", nargs=2, metavar=("NAME", "CASE"), help="one case, in this process"
    )
    parser.add_argument(
        "--only", action="append", help="this contender; keeps what is known of others"
    )
    parser.add_argument("--docs", action="store_true", help="also rewrite the page")
    options = parser.parse_args()
    if options.one:
        _one(*options.one)
    known = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() and options.only else {}
    with ThreadPoolExecutor(2) as pool:
        for name in options.only or CONTENDERS:
            meetings = [pool.submit(_meet, name, case) for case in CASES]
            known[name] = {
                case: meeting.result() for case, meeting in zip(CASES, meetings, strict=True)
            }
            print(name, json.dumps(known[name], indent=1), flush=True)
    PATH.write_text(
        json.dumps({name: known[name] for name in CONTENDERS if name in known}, indent=1) + "\n"
    )
    if options.docs:
        from benchmarks.inference_page import publish

        publish(Path(__file__).parents[1] / "docs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
