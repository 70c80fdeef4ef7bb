"""Many clients, one row that only one of them can write at a time: what the way of waiting costs.

The contention model is that of Brooker, "Exponential backoff and jitter" (2015): a client reads a version, writes, and
has to begin again if another has written meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from mlkit._clock import current
from mlkit.resilience import Policy, Retry, full_jitter
from mlkit.testing import virtual_time

if TYPE_CHECKING:
    from collections.abc import Callable

    Backoff = Callable[[int], float]

__all__ = ["WAYS", "Contention", "contention"]

WAYS = ("no jitter", "equal jitter", "decorrelated jitter", "full jitter")


class Contention(NamedTuple):
    """The model: *clients* begin together; each message takes *delay* seconds, give or take a fifth."""

    clients: int = 100
    base: float = 0.01
    cap: float = 2.0
    delay: float = 0.01
    seed: int = 7


class _ConflictError(ConnectionError):
    """Somebody else has written."""


def contention(model: Contention, way: str) -> dict[str, object]:
    """Run one way of waiting until every client has written.

    Returns:
        How many attempts were made, how long it took, the most attempts that began within 10 ms after the first
        second, and the attempts per 100 ms.
    """
    with virtual_time(start=0.0, grace=0.0) as clock:
        return clock.run(_contention(model, way))


async def _contention(model: Contention, way: str) -> dict[str, object]:
    random = Random(model.seed)
    now = current().monotonic
    version, began = 0, []

    async def message() -> None:
        await asyncio.sleep(max(0.0, random.gauss(model.delay, model.delay / 5)))

    async def write() -> None:
        nonlocal version
        began.append(now())
        await message()
        seen = version
        await message()
        if seen != version:
            raise _ConflictError
        version += 1

    async def client() -> None:
        backoff = _backoff(way, model, random)
        await Policy(retry=Retry(100_000, backoff=backoff, budget=None)).call(write)

    await asyncio.gather(*(client() for _ in range(model.clients)))
    fine = Counter(int(at * 100) for at in began if at >= 1.0)
    coarse = Counter(int(at * 10) for at in began)
    return {
        "attempts": len(began),
        "attempts per client": len(began) / model.clients,
        "seconds": now(),
        "most in 10 ms": max(fine.values(), default=0),
        "per 100 ms": [coarse[i] for i in range(max(coarse) + 1)],
    }


def _backoff(way: str, model: Contention, random: Random) -> Backoff:
    """Return one client's way of waiting: ours, or one that is passed as a callable."""

    def ceiling(attempt: int) -> float:
        return min(model.cap, model.base * 2.0 ** min(attempt - 1, 60))

    last = model.base

    def decorrelated(_attempt: int) -> float:
        nonlocal last
        last = min(model.cap, random.uniform(model.base, last * 3))
        return last

    ways: dict[str, Backoff] = {
        "no jitter": ceiling,
        "equal jitter": lambda attempt: ceiling(attempt) / 2 * (1 + random.random()),
        "decorrelated jitter": decorrelated,
        "full jitter": full_jitter(model.base, cap=model.cap, random=random.random),
    }
    return ways[way]
