"""What a policy adds to a call that works, and to one that does not, against the libraries it replaces."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from mlkit.resilience import Breaker, Policy, Retry, constant, fallback, tier

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.harness import Bench

PEERS: tuple[str, ...] = ("tenacity", "stamina", "pybreaker", "circuitbreaker", "nopanic")

N = 2_000


def run(bench: Bench) -> None:
    """Compare calls that work, calls that fail twice, and calls that are refused."""
    logging.getLogger("stamina").setLevel(logging.ERROR)
    n = N // 10 if bench.quick else N
    _success(bench, n)
    _success_async(bench, n)
    _failure(bench, n // 10)
    _refused(bench, n // 10)
    bench.note(
        "Ratios are to the bare call, a loop of the same length around the undecorated function. "
        "No attempt waits: back-off is zero throughout; stamina calls time.sleep(0) all the same."
    )


def _work(x: int) -> int:
    return x


async def _awork(x: int) -> int:
    return x


def _loop(fn: Callable[[int], int], n: int) -> Callable[[], int]:
    def work() -> int:
        total = 0
        for i in range(n):
            total += fn(i)
        return total

    return work


def _aloop(fn: Callable[[int], Awaitable[int]], n: int) -> Callable[[], int]:
    async def work() -> int:
        total = 0
        for i in range(n):
            total += await fn(i)
        return total

    return lambda: asyncio.run(work())


def _peers(
    bench: Bench, work: str, makers: dict[str, Callable[[], Callable[..., object]]]
) -> dict[str, Callable[..., object]]:
    """Make each peer's function; one that is not installed gets a row with the reason."""
    made = {}
    for name, maker in makers.items():
        try:
            made[name] = maker()
        except ImportError as error:
            bench.skipped(work, name, f"{error.name} is not installed")
    return made


def _success(bench: Bench, n: int) -> None:
    retry = {
        "bare call": lambda: _work,
        "mlkit Policy(retry)": lambda: Policy(retry=3)(_work),
        "nopanic retry": lambda: _nopanic().retry(3)(_work),
        "tenacity": lambda: _tenacity()(_work),
        "stamina": lambda: _stamina()(_work),
    }
    breaker = {
        "bare call": lambda: _work,
        "mlkit Policy(breaker)": lambda: Policy(breaker=Breaker())(_work),
        "circuitbreaker": lambda: _circuitbreaker()(_work),
        "pybreaker": lambda: _pybreaker()(_work),
    }
    stack = {
        "bare call": lambda: _work,
        "mlkit fallback(retry, breaker)": lambda: fallback(
            tier(_work, policy=Policy(retry=3, breaker=Breaker())), constant(0)
        ),
        "mlkit the same, timeout and deadline": lambda: fallback(
            tier(_work, policy=Policy(retry=3, breaker=Breaker(), timeout=1.0, deadline=3.0)),
            constant(0),
        ),
        "nopanic compose": lambda: _nopanic().compose(
            _nopanic().fallback(0), _nopanic().retry(3), _nopanic().circuit_breaker()
        )(_work),
        "tenacity + pybreaker + except": lambda: _handmade(_tenacity()(_pybreaker()(_work))),
        "stamina + circuitbreaker + except": lambda: _handmade(
            _stamina()(_circuitbreaker()(_work))
        ),
    }
    for title, makers in (
        ("success: retry", retry),
        ("success: breaker", breaker),
        ("success: whole stack", stack),
    ):
        made = _peers(bench, title, makers)
        contenders = {name: _loop(fn, n) for name, fn in made.items()}
        bench.compare(title, contenders, baseline="bare call", calls=n)


def _success_async(bench: Bench, n: int) -> None:
    work = "success, async"
    made = _peers(
        bench,
        work,
        {
            "bare await": lambda: _awork,
            "mlkit Policy(retry, breaker)": lambda: Policy(retry=3, breaker=Breaker())(_awork),
            "mlkit fallback(retry, breaker)": lambda: fallback(
                tier(_awork, policy=Policy(retry=3, breaker=Breaker())), constant(0)
            ),
            "asyncio.timeout": lambda: _async_timeout(_awork),
            "mlkit Policy(retry, breaker, timeout)": lambda: Policy(
                retry=3, breaker=Breaker(), timeout=1.0
            )(_awork),
            "tenacity": lambda: _tenacity()(_awork),
            "tenacity + circuitbreaker + asyncio.timeout": lambda: _tenacity()(
                _circuitbreaker()(_async_timeout(_awork))
            ),
            "stamina": lambda: _stamina()(_awork),
        },
    )
    contenders = {name: _aloop(fn, n) for name, fn in made.items()}
    bench.compare(work, contenders, baseline="bare await", calls=n)


def _failure(bench: Bench, n: int) -> None:
    def flaky() -> Callable[[int], int]:
        """Return a function that fails twice before each success."""
        calls = [0]

        def work(x: int) -> int:
            calls[0] += 1
            if calls[0] % 3:
                raise ConnectionError
            return x

        return work

    def by_hand() -> Callable[[int], int]:
        fn = flaky()

        def work(x: int) -> int:
            for _ in range(2):
                try:
                    return fn(x)
                except ConnectionError:
                    pass
            return fn(x)

        return work

    work = "two failures, then success"
    made = _peers(
        bench,
        work,
        {
            "loop by hand": by_hand,
            "mlkit Policy(retry)": lambda: Policy(retry=Retry(3, backoff=0, budget=None))(flaky()),
            "tenacity, sleep replaced": lambda: _tenacity(sleep=lambda _: None)(flaky()),
            "stamina": lambda: _stamina()(flaky()),
        },
    )
    contenders = {name: _loop(fn, n) for name, fn in made.items()}
    bench.compare(work, contenders, baseline="loop by hand", calls=n)


def _refused(bench: Bench, n: int) -> None:
    def broken(_x: int) -> int:
        raise ConnectionError

    def refusing() -> int:
        raise RuntimeError("open")

    def by_hand(_x: int) -> int:
        try:
            return refusing()
        except RuntimeError:
            return 0

    def opened() -> Breaker:
        breaker = Breaker(cooldown=3_600)
        breaker.trip()
        return breaker

    def trip(guarded: Callable[[int], int]) -> Callable[[int], int]:
        """Open the breaker of *guarded*, then answer 0 for it."""
        call = _handmade(guarded)
        for i in range(10):
            call(i)
        return call

    work = "breaker open, fallback answers"
    made = _peers(
        bench,
        work,
        {
            "raise and except by hand": lambda: by_hand,
            "mlkit fallback": lambda: fallback(
                tier(broken, policy=Policy(breaker=opened())), constant(0)
            ),
            "mlkit Policy + except": lambda: _handmade(Policy(breaker=opened())(broken)),
            "circuitbreaker + except": lambda: trip(_circuitbreaker()(broken)),
            "pybreaker + except": lambda: trip(_pybreaker()(broken)),
        },
    )
    contenders = {name: _loop(fn, n) for name, fn in made.items()}
    bench.compare(work, contenders, baseline="raise and except by hand", calls=n)


def _handmade(fn: Callable[[int], int]) -> Callable[[int], int]:
    def work(x: int) -> int:
        try:
            return fn(x)
        except Exception:
            return 0

    return work


def _async_timeout(fn: Callable[[int], Awaitable[int]]) -> Callable[[int], Awaitable[int]]:
    async def work(x: int) -> int:
        async with asyncio.timeout(1.0):
            return await fn(x)

    return work


def _tenacity(**settings):
    import tenacity

    return tenacity.retry(
        **settings,
        stop=tenacity.stop_after_attempt(3),
        retry=tenacity.retry_if_exception_type(ConnectionError),
        reraise=True,
    )


def _stamina():
    import stamina

    stamina.instrumentation.set_on_retry_hooks([])
    return stamina.retry(on=ConnectionError, attempts=3, wait_initial=0, wait_jitter=0, wait_max=0)


def _pybreaker():
    import pybreaker

    return pybreaker.CircuitBreaker(fail_max=5, reset_timeout=3_600)


def _circuitbreaker():
    import circuitbreaker

    return circuitbreaker.CircuitBreaker(failure_threshold=5, recovery_timeout=3_600)


def _nopanic():
    import nopanic

    return nopanic
