"""Two models die and come back: who answers meanwhile, and how long a caller waits for it."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import NamedTuple

from mlkit._clock import current
from mlkit.resilience import Breaker, Policy, constant, fallback, stale, tier
from mlkit.testing import virtual_time

__all__ = ["CONTENDERS", "TIERS", "Outage", "ladder"]

TIERS = ("big", "small", "stale", "constant")
CONTENDERS = ("a breaker for each tier", "no breaker")


class Outage(NamedTuple):
    """The model: *big* hangs from 20 s on, *small* from 30 s on; they come back after 60 s and 50 s."""

    arrivals: float = 20.0
    keys: int = 400
    timeout: float = 0.5
    cooldown: float = 5.0
    until: float = 90.0
    seed: int = 7


def ladder(model: Outage, contender: str) -> dict[str, object]:
    """Run one contender.

    Returns:
        Answers per tier and second, quantiles of the time to an answer, and attempts at models that hung.
    """
    with virtual_time(start=0.0, grace=0.0) as clock:
        return clock.run(_ladder(model, guarded=contender == CONTENDERS[0]))


async def _ladder(model: Outage, *, guarded: bool) -> dict[str, object]:
    random = Random(model.seed)
    now = current().monotonic
    hung = Counter[str]()

    async def work(name: str, down: tuple[float, float], seconds: float) -> float:
        if down[0] <= now() < down[1]:
            hung[name] += 1
            await asyncio.sleep(60.0)
        await asyncio.sleep(seconds)
        return 1.0

    async def big(_key: int) -> float:
        return await work("big", (20.0, 60.0), 0.05)

    async def small(_key: int) -> float:
        return await work("small", (30.0, 50.0), 0.01)

    def policy() -> Policy:
        breaker = Breaker(min_calls=5, window=20, cooldown=model.cooldown) if guarded else None
        return Policy(timeout=model.timeout, breaker=breaker)

    score = fallback(
        tier(big, policy=policy()), tier(small, policy=policy()), stale(30.0), constant(0.5)
    )
    answers = {name: Counter[int]() for name in TIERS}
    waits: list[float] = []

    async def call() -> None:
        began = now()
        answer = await score.explain(random.randrange(model.keys))
        answers[str(answer.tier)][int(began)] += 1
        waits.append(now() - began)

    running = set()
    while now() < model.until:
        task = asyncio.create_task(call())
        running.add(task)
        task.add_done_callback(running.discard)
        await asyncio.sleep(random.expovariate(model.arrivals))
    await asyncio.gather(*running)
    waits.sort()
    return {
        "answers": len(waits),
        **{name: answers[name].total() for name in TIERS},
        "p50": waits[len(waits) // 2],
        "p99": waits[int(0.99 * len(waits))],
        "attempts that hung": hung.total(),
        "per second": {
            name: [answers[name][second] for second in range(int(model.until))] for name in TIERS
        },
    }
