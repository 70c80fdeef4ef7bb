"""An overload that is over, and retries that keep it alive: work amplification and metastable collapse."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit._clock import current
from mlkit.resilience import Budget, Policy, Retry, full_jitter
from mlkit.testing import virtual_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["LOADS", "Overload", "amplification", "overload", "policies", "recovery"]

LOADS = (0.3, 0.5, 0.7, 0.8)
"""Usual arrivals, as shares of what the server can do."""


class Overload(NamedTuple):
    """The model: a queue in front of some workers, and callers that do not know how long it is.

    A caller gives up after *timeout* seconds; the server does the work all the same, as servers do.
    """

    workers: int = 10
    service: float = 0.1
    arrivals: float = 70.0
    surge: float = 2.0
    begins: float = 20.0
    ends: float = 30.0
    until: float = 120.0
    timeout: float = 1.0
    ratio: float = 0.1
    burst: int = 10
    seed: int = 7


def policies(model: Overload) -> dict[str, Policy]:
    """Return the contenders; only what retries are paid from differs."""
    backoff = full_jitter(0.1, cap=2.0, random=Random(model.seed).random)
    budget = Budget(model.ratio, model.burst)
    return {
        "no retry": Policy(timeout=model.timeout),
        "retry(3), no budget": Policy(
            retry=Retry(3, backoff=backoff, budget=None), timeout=model.timeout
        ),
        "retry(3), budget": Policy(
            retry=Retry(3, backoff=backoff, budget=budget), timeout=model.timeout
        ),
    }


def overload(model: Overload, policy: Policy) -> dict[str, Any]:
    """Run one contender.

    Returns:
        Counts of calls, attempts and answers, and per second of arrival or attempt: calls, attempts, answers in time,
        and the length of the queue.
    """
    with virtual_time(start=0.0, grace=0.0) as clock:
        return clock.run(_overload(model, policy))


async def _overload(model: Overload, policy: Policy) -> dict[str, Any]:
    random = Random(model.seed)
    now = current().monotonic
    queue: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()
    calls: Counter[int] = Counter()
    attempts: Counter[int] = Counter()
    answers: Counter[int] = Counter()
    length: list[int] = []

    async def worker() -> None:
        while True:
            job = await queue.get()
            await asyncio.sleep(model.service)
            if not job.done():
                job.set_result(None)

    async def ask() -> None:
        attempts[int(now())] += 1
        job: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.put_nowait(job)
        await job

    guarded = policy(ask)

    async def call() -> None:
        at = int(now())
        calls[at] += 1
        try:
            await guarded()
        except TimeoutError:
            return
        answers[at] += 1

    async def watch() -> None:
        while True:
            length.append(queue.qsize())
            await asyncio.sleep(1.0)

    background = [asyncio.create_task(worker()) for _ in range(model.workers)]
    background.append(asyncio.create_task(watch()))
    running = set()
    while now() < model.until:
        task = asyncio.create_task(call())
        running.add(task)
        task.add_done_callback(running.discard)
        surge = model.surge if model.begins <= now() < model.ends else 1.0
        await asyncio.sleep(random.expovariate(model.arrivals * surge))
    await asyncio.gather(*running)
    for task in background:
        task.cancel()
    await asyncio.gather(*background, return_exceptions=True)
    seconds = range(int(model.until))
    after = [second for second in seconds if second >= model.until - 20]
    return {
        "calls": calls.total(),
        "attempts": attempts.total(),
        "answers": answers.total(),
        "attempts per call": attempts.total() / calls.total(),
        "answered before": _share(answers, calls, range(int(model.begins))),
        "answered at the end": _share(answers, calls, after),
        "per second": {
            "calls": [calls[second] for second in seconds],
            "attempts": [attempts[second] for second in seconds],
            "answers": [answers[second] for second in seconds],
            "queue": length[: len(seconds)],
        },
    }


def recovery(model: Overload, *, seeds: range) -> list[dict[str, object]]:
    """Return, for each usual load, how long after the surge each contender is well again.

    Args:
        model: The server; its arrivals and seed are replaced.
        seeds: Each is one run.

    Returns:
        A row for each load: seconds from the end of the surge until 19 of 20 calls of five seconds are answered, for each
        seed, or None where that does not come before the end.
    """
    capacity = model.workers / model.service
    rows = []
    for load in LOADS:
        row: dict[str, object] = {"usual load": load}
        for seed in seeds:
            run = model._replace(arrivals=load * capacity, seed=seed)
            for name, policy in policies(run).items():
                course = overload(run, policy)["per second"]
                row.setdefault(name, []).append(_well_again(course, run))  # type: ignore[attr-defined]
        rows.append(row)
    return rows


def _well_again(course: Any, model: Overload) -> int | None:
    ends, until = int(model.ends), int(model.until)
    for second in range(ends, until - 4):
        five = range(second, second + 5)
        calls = sum(course["calls"][at] for at in five)
        if sum(course["answers"][at] for at in five) >= 0.95 * calls:
            return second - ends
    return None


def _share(answers: Counter[int], calls: Counter[int], seconds: Iterable[int]) -> float:
    each = [(answers[second], calls[second]) for second in seconds]
    return sum(answered for answered, _ in each) / sum(called for _, called in each)


def amplification(*, calls: int, levels: int = 3, seed: int = 7) -> list[dict[str, object]]:
    """Return the attempts per call that reach a service which fails with some probability, through *levels* of callers.

    Beside each stands the share of the calls that were answered.

    Args:
        calls: How many calls are made at each probability.
        levels: How many functions call one another, each with three attempts.
        seed: For what fails, and when.
    """
    rows = []
    for share in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0):
        row: dict[str, object] = {"failing": share}
        for name, wrap in (
            ("a loop at each level", _loop),
            ("retry(3), no budget", _policy(None)),
            ("retry(3), budget", _policy("own")),
        ):
            attempts, answered = _attempts(wrap, share, calls, levels, seed)
            row[name] = attempts / calls
            row[f"answered, {name}"] = answered / calls
        rows.append(row)
    return rows


def _attempts(
    wrap: Callable[[Callable[[], None]], Callable[[], None]],
    share: float,
    calls: int,
    levels: int,
    seed: int,
) -> tuple[int, int]:
    random, made, answered = Random(seed), 0, 0

    def service() -> None:
        nonlocal made
        made += 1
        if random.random() < share:
            raise ConnectionError

    guarded: Callable[[], None] = service
    for _ in range(levels):
        guarded = wrap(guarded)
    with virtual_time():
        for _ in range(calls):
            try:
                guarded()
            except ConnectionError:
                continue
            answered += 1
    return made, answered


def _loop(fn: Callable[[], None]) -> Callable[[], None]:
    def retried() -> None:
        for _ in range(2):
            try:
                return fn()
            except ConnectionError:
                continue
        return fn()

    return retried


def _policy(kind: str | None) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def wrap(fn: Callable[[], None]) -> Callable[[], None]:
        return Policy(retry=Retry(3, backoff=0, budget=Budget() if kind else None))(fn)

    return wrap
