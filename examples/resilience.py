"""Keep answering while the model fails: faults are planned, time is virtual, and every answer says who gave it."""

from __future__ import annotations

import asyncio
import math
from collections import Counter

from mlkit.resilience import (
    Breaker,
    Policy,
    Retry,
    constant,
    fallback,
    finite,
    full_jitter,
    provenance,
    tier,
)
from mlkit.testing import record_events, virtual_time

N_REQUESTS = 200
OUTAGE = range(60, 140)


async def big(n: int) -> float:
    """A model that is slow, then down, then well again; now and then it gives NaN."""
    await asyncio.sleep(0.02)
    if n in OUTAGE:
        raise ConnectionError("model server is gone")
    return math.nan if n % 25 == 0 else math.sqrt(n)


def small(n: int) -> float:
    """A cheap approximation that knows nothing beyond 180."""
    if n > 180:
        raise ValueError("out of domain")
    return n / 10


answer = fallback(
    tier(
        big,
        policy=Policy(
            retry=Retry(2, backoff=full_jitter(0.01, cap=0.1)),
            breaker=Breaker(min_calls=5, window=20, cooldown=0.5, name="big"),
            timeout=0.2,
        ),
        accept=finite,
    ),
    tier(small),
    constant(0.0),
)


async def main() -> None:
    """Send the requests, one every 20 ms of virtual time."""
    tiers: Counter[str | None] = Counter()
    reasons: Counter[str] = Counter()
    for n in range(N_REQUESTS):
        with provenance() as p:
            await answer(n)
        tiers[p.tier] += 1
        reasons[p.reason or "first choice"] += 1
        await asyncio.sleep(0.02)
    print(f"{N_REQUESTS} requests, {sum(tiers.values())} answers: {dict(tiers)}")
    for reason, n in reasons.most_common():
        print(f"  {n:4} {reason}")


if __name__ == "__main__":
    with virtual_time() as clock, record_events("resilience.") as events:
        start = clock.monotonic()
        clock.run(main())
    print("breaker:", " ".join(event.kind.rpartition(".")[2] for event in events))
    print(f"virtual seconds: {clock.monotonic() - start:.1f}")
