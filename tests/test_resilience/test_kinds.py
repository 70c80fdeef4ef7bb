"""One policy, every kind of callable: the same plan of faults comes to the same answer, attempts, pauses and verdicts."""

from __future__ import annotations

import asyncio
import functools
import gc
import pickle
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkit.errors import MlkitError
from mlkit.resilience import (
    FALL,
    RAISE,
    RETRY,
    Breaker,
    Budget,
    Policy,
    Retry,
    constant,
    fallback,
    finite,
    tier,
)
from mlkit.testing import fail, faults, faulty, ok, slow, value, virtual_time


class Pushed(ConnectionError):
    retry_after = 0.7


NAN = float("nan")
outcomes = st.lists(
    st.sampled_from(
        [
            ok,
            fail(ConnectionError),
            fail(Pushed),
            fail(ValueError),
            fail(LookupError),
            slow(0.3),
            slow(1.2),
            value(NAN),
        ]
    ),
    max_size=12,
)
settings = st.fixed_dictionaries(
    {},
    optional={
        "retry": st.builds(
            lambda n, pause, burst: (n, pause, burst),
            st.integers(1, 4),
            st.sampled_from([0, 0.5]),
            st.sampled_from([None, 0, 3]),
        ),
        "breaker": st.booleans(),
        "timeout": st.sampled_from([0.5, 2.0]),
        "deadline": st.sampled_from([1.0, 5.0]),
        "bulkhead": st.just(2),
        "rate": st.sampled_from([1.0, 100.0]),
        "on": st.sampled_from([ConnectionError, (ValueError, LookupError), "verdict"]),
        "accept": st.just(finite),
        "verdict": st.booleans(),
    },
)


def verdict_of(error):
    verdicts = {LookupError: RETRY.after(0.2), ValueError: RAISE, Pushed: FALL}
    return verdicts.get(type(error), isinstance(error, ConnectionError))


def judged(answer):
    return RETRY.after(0.1) if answer != answer else None  # noqa: PLR0124 - NaN


def policy_of(given):
    made = dict(given)
    if "retry" in made:
        n, pause, burst = made["retry"]
        budget = None if burst is None else Budget(0.1, burst)
        made["retry"] = Retry(n, backoff=pause, budget=budget)
    if made.pop("breaker", False):
        made["breaker"] = Breaker(
            min_calls=2, window=4, cooldown=3.0, ignore=LookupError, slow=1.0, slow_rate=0.9
        )
    if made.get("on") == "verdict":
        made["on"] = verdict_of
    if made.pop("verdict", False):
        made["verdict"] = judged
    return Policy(**made, name="kinds")


@faulty("site")
def plain(x):
    return x


@faulty("site")
async def coroutine(x):
    return x


@faulty("site")
def generator(x):
    return (yield x)


@faulty("site")
async def async_generator(x):
    yield x


class Model:
    plain = plain
    coroutine = coroutine

    def method(self, x):
        return plain(x)

    async def __call__(self, x):
        return await coroutine(x)


def called(policy):
    return lambda x: policy.call(plain, x)


def as_method(policy):
    class Guarded:
        method = policy(Model.method)

    return Guarded().method


SYNC = {
    "def": lambda policy: policy(plain),
    "call": called,
    "method": as_method,
    "partial": lambda policy: policy(functools.partial(plain, 1.0)),
    "lambda": lambda policy: policy(lambda x: plain(x)),
}
ASYNC = {
    "async def": lambda policy: policy(coroutine),
    "call": lambda policy: lambda x: policy.call(coroutine, x),
    "object": lambda policy: policy(Model()),
}


def seen(clock, policy, ask):
    """Return what five calls, some seconds apart, come to."""
    told = []
    for pause in (0.0, 0.1, 0.0, 4.0, 0.1):
        clock.advance(pause)
        began, slept = clock.monotonic(), len(clock.sleeps)
        try:
            answer = ask()
        except Exception as error:
            answer = type(error).__name__
            if not isinstance(error, MlkitError):
                answer += f" {error} {getattr(error, '__notes__', [])}"
        told.append((repr(answer), round(clock.monotonic() - began, 6), clock.sleeps[slept:]))
    breaker = policy.breaker
    return (
        told,
        breaker and breaker.stats()[:5],
        policy.retry and policy.retry.budget and (policy.retry.budget.tokens),
    )


def course(given, plan, make, kind):
    policy = policy_of(given)
    with virtual_time(start=0.0, grace=0.0) as clock, faults({"site": plan}) as drawn:
        guarded = make(policy)
        args = () if kind == "partial" else (1.0,)

        async def awaited():
            return await guarded(*args)

        async def first():
            (item,) = [item async for item in guarded(*args)]
            return item

        ask = {
            "async def": lambda: clock.run(awaited()),
            "generator": lambda: next(guarded(*args)),
            "async generator": lambda: clock.run(first()),
        }.get(kind, lambda: guarded(*args))
        return seen(clock, policy, ask), drawn.calls


@given(given=settings, plan=outcomes)
def test_functions_of_every_shape_are_guarded_alike(given, plan):
    courses = {kind: course(given, plan, make, kind) for kind, make in SYNC.items()}
    for kind, one in courses.items():
        assert one == courses["def"], kind


@given(given=settings, plan=outcomes)
def test_coroutines_of_every_shape_are_guarded_alike(given, plan):
    courses = {kind: course(given, plan, make, "async def") for kind, make in ASYNC.items()}
    for kind, one in courses.items():
        assert one == courses["async def"], kind


def opened(given):
    """Leave out what judges answers: a stream that is opened has none yet."""
    return {name: value for name, value in given.items() if name not in {"accept", "verdict"}}


def items_of(plan):
    return [value([NAN]) if one.replaces and "value" in repr(one) else one for one in plan]


@given(given=settings.map(opened), plan=outcomes)
def test_an_async_stream_is_opened_as_a_coroutine_is_awaited(given, plan):
    stream = course(
        given, items_of(plan), lambda policy: policy(async_generator), "async generator"
    )
    assert stream == course(given, plan, ASYNC["async def"], "async def")


@given(given=settings.map(opened), plan=outcomes)
def test_a_stream_is_opened_as_a_function_is_called(given, plan):
    stream = course(given, items_of(plan), lambda policy: policy(generator), "generator")
    assert stream == course(given, plan, SYNC["def"], "def")


@given(given=settings, plan=outcomes)
def test_a_coroutine_comes_to_what_a_function_comes_to(given, plan):
    """But for what is late: it is cut off, where a function's answer is given out."""
    plan = [one for one in plan if repr(one) != "slow(1.2)"]
    if {"timeout", "deadline"} & given.keys():
        plan = [one for one in plan if not one.pause]
    whole = course(given, plan, SYNC["def"], "def")
    assert course(given, plan, ASYNC["async def"], "async def") == whole


@given(plan=outcomes)
def test_a_fallback_of_coroutines_answers_as_one_of_functions(plan):
    plan = [one for one in plan if not one.pause]

    def answers(kind):
        with virtual_time(start=0.0) as clock, faults({"site": plan}):
            policy = policy_of({"retry": (2, 0, 3), "breaker": True})
            score = fallback(
                tier(kind, policy=policy, accept=finite, name="big"), constant(0.0), name="kinds"
            )

            async def awaited():
                return await score.explain(1.0)

            told = []
            for _ in range(8):
                clock.advance(0.6)
                found = clock.run(awaited()) if score.is_async else score.explain(1.0)
                told.append((found.value, found.tier, found.reason, found.attempts))
            return told, policy.breaker.stats()[:5]

    assert answers(coroutine) == answers(plain)


@pytest.mark.parametrize("kind", [plain, coroutine, generator, async_generator])
def test_what_is_decorated_keeps_its_kind(kind):
    import inspect

    guarded = Policy(retry=2)(kind)
    for is_one in (
        inspect.iscoroutinefunction,
        inspect.isgeneratorfunction,
        inspect.isasyncgenfunction,
    ):
        assert is_one(guarded) == is_one(kind)
    assert inspect.signature(guarded) == inspect.signature(kind)


@pytest.mark.parametrize("bound", [False, True])
def test_a_framework_sees_that_an_async_fallback_is_to_be_awaited(bound):
    from starlette.background import BackgroundTask

    asked = []

    class Models:
        async def big(self, x):
            asked.append(x)

        score = fallback(tier(big), constant(0))

    async def big(x):
        asked.append(x)

    score = Models().score if bound else fallback(tier(big), constant(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "was never awaited"
        asyncio.run(BackgroundTask(score, 3)())
        gc.collect()
    assert asked == [3]


@pytest.mark.parametrize("what", ["retry", "policy"])
def test_equal_settings_are_equal(what):
    def make():
        return Retry(3, backoff=0.5) if what == "retry" else Policy(retry=3, timeout=1.0)

    assert make() == make()
    assert hash(make()) == hash(make())
    assert pickle.loads(pickle.dumps(make())) == make()
    assert len({make(), make()}) == 1
