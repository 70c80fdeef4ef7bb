"""What a policy adds to a call that works, and to one that does not, against the libraries it replaces.

Each row is checked to give the same answers before it is timed. Peers that lack a layer are shown with what they have.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

from mlkit.resilience import (
    Breaker,
    Hedge,
    Policy,
    Retry,
    constant,
    fallback,
    finite,
    provenance,
    tier,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.harness import Bench

PEERS: tuple[str, ...] = (
    "tenacity", "stamina", "backoff", "pybreaker", "circuitbreaker", "purgatory", "nopanic", "interlock-cb",
    "langchain-core",
)  # fmt: skip

# Short blocks and many turns: on a busy machine the least and the median of them say what a call costs.
N, ROUNDS = 400, 51

# What is aimed at: microseconds added to the bare call, by work and contender.
TARGETS = {
    ("success: whole stack", "mlkit fallback(retry, breaker)"): 0.4,
    ("success: whole stack", "mlkit the same, slow-call, deadline, gate"): 0.8,
    ("success, async", "mlkit Policy(retry, breaker, timeout)"): 2.0,
    ("success, async", "mlkit fallback(retry, breaker, timeout)"): 2.0,
    ("async hedge, the first attempt wins", "mlkit Policy(hedge)"): 3.0,
    ("breaker open, fallback answers", "mlkit fallback"): 0.5,
    ("two failures, then success, no wait", "mlkit Policy(retry)"): 4.0,
}


def run(bench: Bench) -> None:
    """Compare calls that work, calls that fail twice, calls that are refused, and what they leave in memory."""
    logging.getLogger("stamina").setLevel(logging.ERROR)
    n = N // 2 if bench.quick else N
    _success(bench, n)
    _success_async(bench, n)
    _hedge(bench, n)
    _failure(bench, n // 10)
    _failure_async(bench, n // 10)
    _refused(bench, n // 10)
    bench.note(
        "Ratios are to the bare call, a loop of the same length around the undecorated function. "
        "No attempt waits: back-off is zero throughout; stamina calls time.sleep(0) all the same, nopanic and "
        "backoff, too."
    )
    _targets(bench)
    _memory(bench)


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

    runner = asyncio.Runner()  # one loop for all rounds: making one is not what is measured
    return lambda: runner.run(work())


def _compare(
    bench: Bench,
    work: str,
    makers: dict[str, Callable[[], Callable[..., object]]],
    n: int,
    loop: Callable[..., Callable[[], int]] = _loop,
) -> None:
    """Time what can be made; a peer that is not installed gets a row with the reason."""
    made = {}
    for name, maker in makers.items():
        try:
            made[name] = loop(maker(), n)
        except ImportError as error:
            bench.skipped(work, name, f"{error.name} is not installed")
    rounds = None if bench.quick else ROUNDS
    bench.compare(work, made, baseline=next(iter(makers)), calls=n, rounds=rounds)


def _success(bench: Bench, n: int) -> None:
    _compare(
        bench,
        "success: whole stack",
        {
            "bare call": lambda: _work,
            "a plain wrapper": lambda: _wrapper(_work),
            "mlkit fallback(retry, breaker)": lambda: _stack(_work),
            "mlkit the same, slow-call, deadline, gate": lambda: _stack(
                _work, slow=1.0, deadline=3.0, accept=finite
            ),
            "mlkit the same, and read provenance": lambda: _explained(
                _stack(_work, slow=1.0, deadline=3.0, accept=finite)
            ),
            "nopanic": lambda: _nopanic_stack()(_work),
            "interlock-cb": lambda: _interlock(_work),
            "tenacity + pybreaker + except": lambda: _handmade(_tenacity()(_pybreaker()(_work))),
            "stamina + circuitbreaker + except": lambda: _handmade(
                _stamina()(_circuitbreaker()(_work))
            ),
            "langchain with_fallbacks, no breaker": lambda: _langchain(_work),
        },
        n,
    )
    _compare(
        bench,
        "success: retry",
        {
            "bare call": lambda: _work,
            "mlkit Policy(retry)": lambda: Policy(retry=3)(_work),
            "nopanic": lambda: _nopanic().retry(3)(_work),
            "backoff": lambda: _backoff()(_work),
            "tenacity": lambda: _tenacity()(_work),
            "stamina": lambda: _stamina()(_work),
        },
        n,
    )
    _compare(
        bench,
        "success: breaker",
        {
            "bare call": lambda: _work,
            "mlkit Policy(breaker)": lambda: Policy(breaker=Breaker())(_work),
            "circuitbreaker": lambda: _circuitbreaker()(_work),
            "purgatory": lambda: _purgatory(_work),
            "nopanic": lambda: _nopanic().circuit_breaker()(_work),
            "pybreaker": lambda: _pybreaker()(_work),
        },
        n,
    )


def _success_async(bench: Bench, n: int) -> None:
    _compare(
        bench,
        "success, async",
        {
            "bare await": lambda: _awork,
            "mlkit fallback(retry, breaker)": lambda: _stack(_awork),
            "mlkit Policy(retry, breaker, timeout)": lambda: Policy(
                retry=3, breaker=Breaker(), timeout=1.0
            )(_awork),
            "mlkit fallback(retry, breaker, timeout)": lambda: _stack(_awork, timeout=1.0),
            "asyncio.timeout": lambda: _async_timeout(_awork),
            "nopanic, with timeout": lambda: _nopanic_stack(_nopanic().timeout(1.0))(_awork),
            "tenacity + circuitbreaker + asyncio.timeout": lambda: _tenacity()(
                _circuitbreaker()(_async_timeout(_awork))
            ),
            "tenacity": lambda: _tenacity()(_awork),
            "stamina": lambda: _stamina()(_awork),
            "backoff": lambda: _backoff()(_awork),
        },
        n,
        _aloop,
    )


def _hedge(bench: Bench, n: int) -> None:
    _compare(
        bench,
        "async hedge, the first attempt wins",
        {
            "bare await": lambda: _awork,
            "mlkit Policy(hedge)": lambda: Policy(hedge=Hedge(1.0))(_awork),
            "nopanic": lambda: _nopanic().hedge(delay=1.0)(_awork),
            "asyncio.wait by hand": lambda: _hedged_by_hand(_awork),
        },
        n,
        _aloop,
    )


def _flaky() -> Callable[[int], int]:
    """Return a function that fails twice before each success."""
    calls = [0]

    def work(x: int) -> int:
        calls[0] += 1
        if calls[0] % 3:
            raise ConnectionError
        return x

    return work


def _flaky_async() -> Callable[[int], Awaitable[int]]:
    flaky = _flaky()

    async def work(x: int) -> int:
        return flaky(x)

    return work


def _failure(bench: Bench, n: int) -> None:
    def by_hand() -> Callable[[int], int]:
        fn = _flaky()

        def work(x: int) -> int:
            for _ in range(2):
                with suppress(ConnectionError):
                    return fn(x)
            return fn(x)

        return work

    _compare(
        bench,
        "two failures, then success, no wait",
        {
            "loop by hand": by_hand,
            "mlkit Policy(retry)": lambda: _three()(_flaky()),
            "tenacity, sleep replaced": lambda: _tenacity(sleep=lambda _: None)(_flaky()),
            "nopanic": lambda: _nopanic_retry()(_flaky()),
            "backoff": lambda: _backoff()(_flaky()),
            "stamina": lambda: _stamina()(_flaky()),
        },
        n,
    )


def _failure_async(bench: Bench, n: int) -> None:
    def by_hand() -> Callable[[int], Awaitable[int]]:
        fn = _flaky_async()

        async def work(x: int) -> int:
            for _ in range(2):
                with suppress(ConnectionError):
                    return await fn(x)
                await asyncio.sleep(0)
            return await fn(x)

        return work

    _compare(
        bench,
        "two failures, then success, no wait, async",
        {
            "loop by hand": by_hand,
            "mlkit Policy(retry)": lambda: _three()(_flaky_async()),
            "nopanic": lambda: _nopanic_retry()(_flaky_async()),
            "tenacity": lambda: _tenacity()(_flaky_async()),
            "stamina": lambda: _stamina()(_flaky_async()),
        },
        n,
        _aloop,
    )


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
        for i in range(30):
            call(i)
        return call

    _compare(
        bench,
        "breaker open, fallback answers",
        {
            "raise and except by hand": lambda: by_hand,
            "mlkit fallback": lambda: fallback(
                tier(broken, policy=Policy(breaker=opened())), constant(0)
            ),
            "mlkit Policy + except": lambda: _handmade(Policy(breaker=opened())(broken)),
            "circuitbreaker + except": lambda: trip(_circuitbreaker()(broken)),
            "pybreaker + except": lambda: trip(_pybreaker()(broken)),
            "purgatory + except": lambda: trip(_purgatory(broken)),
            "nopanic fallback": lambda: trip(
                _nopanic().compose(_nopanic().fallback(0), _nopanic().circuit_breaker())(broken)
            ),
        },
        n,
    )


def _targets(bench: Bench) -> None:
    """Say for each target what was measured beside it."""
    said = []
    for (work, contender), target in TARGETS.items():
        rows = {row.contender: row for row in bench.rows if row.work == work}
        row = rows.get(contender)
        if row is None or row.median is None or row.min is None:
            continue
        base = rows[row.baseline]
        # What is caught and answered by hand is part of the work where a call is refused.
        whole = "open" in work
        least = row.min - (0.0 if whole else base.min or 0.0)
        usual = row.median - (0.0 if whole else base.median or 0.0)
        said.append(f"{contender} ({work}): {least:.2f} to {usual:.2f} us, target {target:g}")
    bench.note(f"Added, by the least and by the median, beside the target: {'; '.join(said)}.")


class _Batch:
    """What a call must not keep alive."""


def _memory(bench: Bench) -> None:
    """Count what 1,000 calls leave to the cyclic collector, and whether a failed call keeps its argument."""

    def down(_batch: object) -> int:
        raise ConnectionError

    makers: dict[str, Callable[[Callable[..., int]], Callable[..., int]]] = {
        "mlkit": lambda fn: _three(breaker=Breaker(min_calls=100_000, window=100_000))(fn),
        "nopanic": lambda fn: _nopanic_retry()(fn),
        "tenacity": lambda fn: _tenacity(sleep=lambda _: None)(fn),
        "backoff": lambda fn: _backoff()(fn),
        "stamina": lambda fn: _stamina()(fn),
    }
    calls = 100 if bench.quick else 1_000
    said = []
    for name, make in makers.items():
        try:
            good, bad = make(_work), make(down)
        except ImportError:
            continue
        freed = _freed(bad)
        said.append(
            f"{name} {_garbage(good, calls)} and {_garbage(bad, calls)}{'' if freed else ', argument kept'}"
        )
    bench.note(
        f"Objects left to the cyclic collector by {calls:,} calls that succeed, and by {calls:,} that fail three times: "
        f"{'; '.join(said)}."
    )


def _garbage(fn: Callable[..., int], calls: int) -> int:
    def use() -> None:
        for _ in range(calls):
            with suppress(ConnectionError):
                fn(1)

    use()
    gc.collect()
    gc.disable()
    try:
        use()
        return gc.collect()
    finally:
        gc.enable()


def _freed(fn: Callable[..., int]) -> bool:
    gc.collect()
    gc.disable()
    try:
        batch = _Batch()
        reference = weakref.ref(batch)
        with suppress(ConnectionError):
            fn(batch)
        del batch
        return reference() is None
    finally:
        gc.enable()


def _stack(fn, *, slow=None, timeout=None, deadline=None, accept=None):
    policy = Policy(retry=3, breaker=Breaker(slow=slow), timeout=timeout, deadline=deadline)
    return fallback(tier(fn, policy=policy, accept=accept), constant(0))


def _three(**settings):
    return Policy(retry=Retry(3, backoff=0, budget=None), **settings)


def _explained(fn: Callable[[int], int]) -> Callable[[int], int]:
    def work(x: int) -> int:
        with provenance():
            return fn(x)

    return work


def _wrapper(fn: Callable[..., int]) -> Callable[..., int]:
    def work(*args: int, **kwargs: int) -> int:
        return fn(*args, **kwargs)

    return work


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


def _hedged_by_hand(fn: Callable[[int], Awaitable[int]]) -> Callable[[int], Awaitable[int]]:
    async def work(x: int) -> int:
        tasks = {asyncio.ensure_future(fn(x))}
        try:
            done, _ = await asyncio.wait(tasks, timeout=1.0)
            if not done:
                tasks.add(asyncio.ensure_future(fn(x)))
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

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


def _backoff():
    import backoff

    logging.getLogger("backoff").setLevel(logging.CRITICAL)
    return backoff.on_exception(
        backoff.constant, ConnectionError, max_tries=3, interval=0, jitter=None
    )


def _pybreaker():
    import pybreaker

    return pybreaker.CircuitBreaker(fail_max=5, reset_timeout=3_600)


def _circuitbreaker():
    import circuitbreaker

    return circuitbreaker.CircuitBreaker(failure_threshold=5, recovery_timeout=3_600)


def _purgatory(fn):
    import purgatory

    factory = purgatory.SyncCircuitBreakerFactory(default_threshold=5, default_ttl=3_600)
    return factory("bench")(fn)


def _nopanic():
    import nopanic

    return nopanic


def _nopanic_retry():
    return _nopanic().retry(3, on=ConnectionError, backoff=0)


def _nopanic_stack(*inner):
    nopanic = _nopanic()
    return nopanic.compose(nopanic.fallback(0), nopanic.retry(3), nopanic.circuit_breaker(), *inner)


def _interlock(fn):
    import interlock
    from interlock.integrations.tenacity import RetryStrategy

    return interlock.Pipeline(
        interlock.FallbackStrategy(lambda _error: 0),
        RetryStrategy(attempts=3),
        interlock.CircuitBreakerStrategy(interlock.CircuitBreaker(name="bench")),
    )(fn)


def _langchain(fn):
    from langchain_core.runnables import RunnableLambda

    return RunnableLambda(fn).with_fallbacks([RunnableLambda(lambda _: 0)]).invoke
