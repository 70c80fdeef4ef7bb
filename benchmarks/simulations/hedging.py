"""One call in a hundred is very slow: what a second attempt after a while does to the tail, and what it costs.

The latencies are those of Dean and Barroso, "The Tail at Scale" (2013): a server that usually answers in 10 ms and one
time in a hundred takes a second or more.
"""

from __future__ import annotations

import asyncio
from random import Random

from mlkit._clock import current
from mlkit.resilience import Budget, Hedge, Policy, Retry
from mlkit.testing import virtual_time

__all__ = ["SHARES", "hedging"]

SHARES = [10 ** (-exponent / 10) for exponent in range(36)]
"""Of which the latency is in `curve`: so many calls are slower."""


def hedging(*, calls: int, seed: int = 7) -> list[dict[str, object]]:
    """Return a row for no hedge, for hedges at three quantiles, for a learned one, and for one that the budget cuts.

    Args:
        calls: How many calls each contender makes, one after another.
        seed: For the latencies.
    """
    alone = _latencies(Policy(), calls, seed)[0]
    p50, p95, p99 = (_quantile(alone, q) for q in (0.5, 0.95, 0.99))
    contenders = {
        "no hedge": Policy(),
        f"after {1000 * p99:.1f} ms (p99)": Policy(hedge=Hedge(p99)),
        f"after {1000 * p95:.1f} ms (p95)": Policy(hedge=Hedge(p95)),
        'Hedge("p95"), learned': Policy(hedge=Hedge("p95")),
        f"after {1000 * p50:.1f} ms (p50)": Policy(hedge=Hedge(p50), retry=Retry(1, budget=None)),
        f"after {1000 * p50:.1f} ms (p50), budget of 5 %": Policy(
            hedge=Hedge(p50), retry=Retry(1, budget=Budget(0.05, 10))
        ),
    }
    rows = []
    for name, policy in contenders.items():
        latencies, attempts = _latencies(policy, calls, seed)
        slow = sum(latency > 0.5 for latency in latencies) / calls
        rows.append(
            {
                "hedge": name,
                **{f"p{100 * q:g}": _quantile(latencies, q) for q in (0.5, 0.95, 0.99, 0.999)},
                "extra load": attempts / calls - 1,
                "one of 100 over 0.5 s": 1 - (1 - slow) ** 100,
                "curve": [_quantile(latencies, 1 - share) for share in SHARES],
            }
        )
    return rows


def _latencies(policy: Policy, calls: int, seed: int) -> tuple[list[float], int]:
    with virtual_time(start=0.0, grace=0.0) as clock:
        return clock.run(_run(policy, calls, seed))


async def _run(policy: Policy, calls: int, seed: int) -> tuple[list[float], int]:
    random, attempts = Random(seed), 0
    now = current().monotonic

    async def ask() -> None:
        nonlocal attempts
        attempts += 1
        slow = random.random() < 0.01
        await asyncio.sleep(
            random.uniform(1.0, 2.0) if slow else 0.01 * random.lognormvariate(0, 0.3)
        )

    guarded = policy(ask)
    latencies = []
    for _ in range(calls):
        began = now()
        await guarded()
        latencies.append(now() - began)
    return latencies, attempts


def _quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]
