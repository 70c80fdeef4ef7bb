"""A slow attempt gets company; the first answer wins and nobody is left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from asyncio import Task
    from collections.abc import Callable, Coroutine

    from mlkit.resilience._policy import Policy

__all__ = ["hedged"]

_R = TypeVar("_R")


async def hedged(policy: Policy, attempt: Callable[[], Coroutine[Any, Any, _R]]) -> _R:
    """Return the first answer of *attempt*, started again while none has come.

    If all attempts that were started fail, the last error is raised. Losers are cancelled and awaited.
    """
    import asyncio

    hedge = policy.hedge
    assert hedge is not None  # noqa: S101 - for the type checker: only called with one
    left = hedge.extra
    running: set[Task[_R]] = {asyncio.create_task(attempt())}
    try:
        while True:
            done, running = await asyncio.wait(
                running,
                timeout=hedge.after if left else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            answered = [task for task in done if task.cancelled() or task.exception() is None]
            if answered or not running:
                return (answered or list(done))[0].result()
            if not done:
                if _paid(policy):
                    left -= 1
                    running.add(asyncio.create_task(attempt()))
                else:
                    left = 0
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _paid(policy: Policy) -> bool:
    budget = None if policy.retry is None else policy.retry.budget
    return budget is None or budget.spend()
