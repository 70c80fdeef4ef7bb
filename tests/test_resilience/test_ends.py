"""What is left when things end: breakers, errors that nobody else is asked after, counts."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator

import pytest

from mlkit.errors import ConfigurationError, ResultRejectedError
from mlkit.resilience import (
    RAISE,
    Breaker,
    Budget,
    Gate,
    Hedge,
    Policy,
    Retry,
    agrees,
    constant,
    fallback,
    finite,
    provenance,
    seconds,
    tier,
)
from mlkit.telemetry import Reader, collect


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Let only reference counts free anything."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Batch(list):
    """Rows that can be seen to be freed."""


def refuses(_batch: object) -> float:
    raise ValueError("no such model")


def takes(_batch: object) -> float:
    return 1.0


POLICIES: dict[str, tuple[Policy, Callable[[object], float], type[Exception]]] = {
    "an error": (Policy(retry=3, on=lambda _error: RAISE), refuses, ValueError),
    "an answer": (Policy(retry=3, verdict=lambda _answer: RAISE), takes, ResultRejectedError),
}


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("what", POLICIES)
@pytest.mark.usefixtures("no_collector")
def test_what_is_raised_for_good_comes_out_and_keeps_nothing(
    what: str,
    traced: bool,
    per_row: bool,
) -> None:
    policy, fn, kind = POLICIES[what]
    chain = fallback(tier(fn, policy=policy, name="big"), constant(0.0), per_row=per_row)

    def use(batch: Batch) -> str:
        try:
            if traced:
                with provenance() as heard:
                    chain(batch)
            else:
                chain(batch)
        except kind:
            return heard.reason if traced else ""
        return "an answer came"

    batch = Batch([1.0, 2.0])
    reference = weakref.ref(batch)
    reason = use(batch)
    del batch
    assert reference() is None
    assert reason == (f"big: {kind.__name__}" if traced else "")


def test_a_breaker_that_opens_between_two_attempts_leads_to_the_next_tier() -> None:
    class Trips(ConnectionError):
        def __str__(self) -> str:
            breaker.trip()  # as another thread might, after it was asked whether there may be a second attempt
            return "trips"

    def big(_x: object) -> float:
        asked.append("big")
        raise Trips

    def small(_x: object) -> float:
        asked.append("small")
        return 2.0

    asked: list[str] = []
    breaker = Breaker(name="between")
    policy = Policy(retry=Retry(3, backoff=0), breaker=breaker)
    assert fallback(tier(big, policy=policy), tier(small))(1) == 2.0
    assert asked == ["big", "small"]


@pytest.mark.usefixtures("no_collector")
def test_what_is_raised_for_good_keeps_nothing_async() -> None:
    async def asked(_batch: object) -> float:
        raise ValueError

    chain = fallback(
        tier(asked, policy=Policy(retry=2, on=lambda _error: RAISE)),
        constant(0.0),
    )

    async def use() -> bool:
        batch = Batch()
        reference = weakref.ref(batch)
        try:
            await chain(batch)
        except ValueError:
            del batch
        return reference() is None

    assert asyncio.run(use())


@pytest.mark.parametrize(
    "make",
    [
        Breaker,
        lambda: Breaker(window=seconds(3)),
        lambda: fallback(max, constant(0)),
        lambda: Policy(retry=3, breaker=Breaker(), hedge=Hedge("p95"), accept=finite).breaker,
    ],
    ids=["breaker", "timed breaker", "fallback", "breaker of a policy"],
)
@pytest.mark.usefixtures("no_collector")
def test_what_nobody_uses_is_freed_at_once(make: Callable[[], object]) -> None:
    reference = weakref.ref(make())
    assert reference() is None


@pytest.mark.parametrize(
    "gate", [agrees(max), finite & agrees(max), ~Gate(lambda _y, _x: True, arguments=True)]
)
def test_a_policy_refuses_a_gate_that_needs_the_arguments(gate: Gate) -> None:
    with pytest.raises(ConfigurationError, match=r"tier\(fn, accept=\.\.\.\)"):
        Policy(accept=gate)
    assert tier(max, accept=gate).accept is gate


def tokens(name: str) -> list[float]:
    wanted = (("budget", name),)
    return [
        sample.value
        for sample in collect()
        if sample.name == "resilience_budget_tokens" and sample.labels == wanted
    ]


def test_the_tokens_of_a_budget_can_be_read() -> None:
    def ends_here(_x: object) -> float:
        raise ConnectionError

    policy = Policy(retry=Retry(3, backoff=0, budget=Budget(burst=5)))
    assert tokens("ends_here") == []
    guarded = policy(ends_here)
    assert tokens("ends_here") == [5.0]
    with pytest.raises(ConnectionError):
        guarded(1)
    assert tokens("ends_here") == [3.0]
    del policy, guarded
    assert tokens("ends_here") == []


def test_a_shared_budget_is_read_by_its_name() -> None:
    budget = Budget(burst=2, name="ends: database")
    Policy(retry=Retry(2, budget=budget))(takes)
    assert budget.spend()
    assert tokens("ends: database") == [1.0]
    assert tokens("takes") == []


def test_the_counts_of_a_fallback_outlive_it() -> None:
    def counted() -> float:
        wanted = ("fallback", "ends"), ("tier", "max")
        return sum(sample.value for sample in reader.read() if sample.labels == wanted)

    reader = Reader()
    chain = fallback(tier(max, name="max", policy=None), constant(0), name="ends")
    for _ in range(3):
        chain(1, 2)
    before = counted()
    chain(1, 2)
    del chain
    assert (before, counted()) == (3, 4)


def test_a_fallback_that_outlives_the_modules_it_needs_ends_silently() -> None:
    code = """
import _thread, mlkit.telemetry
from mlkit.resilience import constant, fallback, tier
chain = fallback(tier(max, policy=None), constant(0))
chain(1, 2)
_thread.kept = [chain, mlkit.telemetry]  # a module that is taken apart after ours
del chain
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
