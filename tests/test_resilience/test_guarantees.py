"""What the block promises, sentence by sentence, where a promise spans the whole block rather than one part of it.

| promise | held by |
| --- | --- |
| at most n probes an era; stale tickets ignored; a hung probe's lease expires | `test_breaker` (state machine against a plain model), `test_hammers` (32 threads), `test_storage` (processes) |
| cancellation and `BaseException`: no verdict, never caught, never retried | `TestOtherExceptions` here, in every kind of callable |
| an outer cancellation is never lost | `TestCancelled` here, at any moment; `test_time_limits` (ties with time limits, hedges) |
| attempts <= (1 + ratio) x calls + burst | `TestAttempts` here; `test_policy` (properties), `test_hammers` (threads), `test_time_limits` (hedges) |
| no attempt starts and no sleep ends after the deadline | `TestDeadline` here; `test_policy`, `test_determinism` (properties) |
| no lock is held in user code; listeners neither break nor deadlock a call | `TestLocks` here, at every place where user code runs; `test_hammers` |
| same seed and virtual clock, same trace | `test_determinism`, also in other processes |
| row counts add up, a rejected row is never returned | `TestLadder` here (state machine); `test_rows`, `test_tiers` (properties) |
| the identical object from the first tier | `TestIdentity` here, in every kind of callable; `test_rows` |
| arguments freed at once, no cyclic garbage | `test_hammers`, `test_policy`, `test_tiers` |
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import threading
import warnings
from collections import Counter
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from mlkit import telemetry
from mlkit._clock import current
from mlkit.errors import AllTiersFailedError, RejectedError
from mlkit.resilience import (
    Breaker,
    Budget,
    Hedge,
    Policy,
    Retry,
    agrees,
    constant,
    deadline,
    fallback,
    finite,
    stale,
    tier,
)
from mlkit.testing import virtual_time


def virtually(main):
    with virtual_time(start=0.0, grace=0.0) as clock:
        return clock.run(main())


# --- every kind of callable ------------------------------------------------------------------------------------------


def as_function(work):
    return lambda: work()


def as_coroutine(work):
    async def coroutine():
        await current().asleep(0)
        return work()

    return coroutine


def as_generator(work):
    def generator():
        yield work()

    return generator


def as_async_generator(work):
    async def async_generator():
        await current().asleep(0)
        yield work()

    return async_generator


KINDS = (as_function, as_coroutine, as_generator, as_async_generator)


def ask(guarded, run=virtually):
    """Call what may be of any kind; return its answer, or its only item."""
    answer = guarded()

    async def awaited():
        return await answer

    async def first():
        (item,) = [item async for item in answer]
        return item

    if hasattr(answer, "__anext__"):
        return run(first)
    if hasattr(answer, "__await__"):
        return run(awaited)
    return next(iter(answer)) if hasattr(answer, "__next__") else answer


def fully(breaker, **settings):
    return Policy(
        retry=Retry(3, backoff=0, budget=None), breaker=breaker, timeout=5.0, deadline=60.0, bulkhead=2, rate=1e9,
        on=lambda error: True, **settings,
    )  # fmt: skip


def in_policy(breaker):
    return fully(breaker)


def in_buffer(breaker):
    return fully(breaker, stream="buffer")


def in_hedge(breaker):
    def wrap(fn):
        if asyncio.iscoroutinefunction(fn):
            return fully(breaker, hedge=Hedge(1.0, extra=2))(fn)
        return fully(breaker)(fn)

    return wrap


def in_fallback(breaker):
    return lambda fn: fallback(
        tier(fn, policy=fully(breaker), accept=lambda answer: True),
        tier(lambda: "lower", policy=None, name="lower"),
        constant("never"),
    )


def in_nested_fallback(breaker):
    def wrap(fn):
        inner = in_fallback(breaker)(fn)
        return fallback(tier(inner, policy=Policy(retry=2), name="inner"), constant("never"))

    return wrap


WAYS = (in_policy, in_buffer, in_hedge, in_fallback, in_nested_fallback)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=[kind.__name__ for kind in KINDS])
every_way = pytest.mark.parametrize("way", WAYS, ids=[way.__name__ for way in WAYS])


class Stop(BaseException):
    """Somebody else's, such as a web framework's abort."""


class TestOtherExceptions:
    @every_kind
    @every_way
    @pytest.mark.parametrize("kind_of_error", [Stop, asyncio.CancelledError, SystemExit])
    def test_they_go_out_as_they_are_and_are_no_verdict(self, way, kind, kind_of_error):
        breaker = Breaker(min_calls=1, window=1)
        error, calls = kind_of_error("out"), []

        def work():
            calls.append(1)
            raise error

        guarded = way(breaker)(kind(work))
        with pytest.raises(kind_of_error) as info:
            ask(guarded)
        if kind_of_error is not asyncio.CancelledError:  # asyncio makes its own on the way out
            assert info.value is error
        assert not getattr(error, "__notes__", [])
        assert len(calls) == 1
        assert breaker.stats()[:3] == ("closed", 0, 0)

    @every_kind
    @every_way
    def test_a_probe_that_ends_so_gives_its_permit_back(self, way, kind):
        errors = [Stop()]

        def work():
            if errors:
                raise errors.pop()
            return "well"

        with virtual_time() as clock:
            breaker = Breaker(min_calls=1, window=1, cooldown=10.0)
            guarded = way(breaker)(kind(work))
            breaker.trip()
            clock.advance(10.0)
            with pytest.raises(Stop):
                ask(guarded, lambda main: clock.run(main()))
            assert breaker.state == "half_open"
            assert ask(guarded, lambda main: clock.run(main())) == "well"
            assert breaker.state == "closed"


class TestIdentity:
    @every_kind
    @every_way
    def test_the_identical_object_comes_back(self, way, kind):
        answer = [1.0]
        assert ask(way(Breaker())(kind(lambda: answer))) is answer

    @pytest.mark.parametrize("per_row", [False, True])
    def test_also_of_a_batch_and_with_everything_below(self, per_row):
        def big(x):
            return answer

        answer = np.ones(3)
        score = fallback(
            tier(big, policy=fully(Breaker()), accept=finite & agrees(lambda x: np.ones(3))),
            tier(lambda x: x, name="small"),
            stale(600),
            constant(0.0),
            per_row=per_row,
        )
        assert score(np.zeros(3)) is answer
        assert score.explain(np.zeros(3)).value is answer


# --- cancellation ----------------------------------------------------------------------------------------------------


steps = st.lists(
    st.tuples(st.floats(0.1, 4.0), st.sampled_from(["answer", "nan", "error", "cleans up"])),
    min_size=12,
    max_size=12,
)


class TestCancelled:
    @given(steps=steps, at=st.floats(0.05, 30.0), hedge=st.booleans())
    def test_at_any_moment_it_goes_out_at_once_and_leaves_nothing(self, steps, at, hedge):
        """Through a fallback of tiers with everything, whatever the tiers are doing."""

        async def main():
            plan, running = iter(itertools.cycle(steps)), [0]

            async def work():
                after, how = next(plan)
                running[0] += 1
                try:
                    await current().asleep(after)
                    if how == "error":
                        raise ConnectionError
                    return math.nan if how == "nan" else 1.0
                finally:
                    try:
                        if how == "cleans up":
                            await current().asleep(0.2)
                    finally:
                        running[0] -= 1

            def guard():
                return Policy(
                    retry=Retry(2, backoff=0.3), timeout=2.5, bulkhead=1, hedge=Hedge(1.0) if hedge else None,
                    breaker=Breaker(min_calls=100, window=100),
                )  # fmt: skip

            policies = [guard(), guard()]
            score = fallback(
                *(
                    tier(work, policy=policy, accept=finite, name=str(n))
                    for n, policy in enumerate(policies)
                ),
                constant(0.0),
            )
            task = asyncio.create_task(score())
            await current().asleep(at)
            over = task.done()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            assert task.cancelled() == (not over)
            # The cleanup of the attempts that were under way, and nothing else, takes time: first that of the attempt in
            # the caller's own task, which is where the cancellation arrives, then that of the one beside it.
            assert current().monotonic() <= at + (0.4 if hedge else 0.2) + 1e-6
            assert running == [0]
            assert asyncio.all_tasks() == {asyncio.current_task()}
            for policy in policies:  # the places in the bulkheads are free
                assert await policy.call(asyncio.sleep, 0, "free") == "free"

        virtually(main)


# --- attempts and time -----------------------------------------------------------------------------------------------


def nested(work, budgets, **settings):
    for budget in budgets:
        work = Policy(retry=Retry(4, backoff=0, budget=budget), **settings)(work)
    return work


def attempts_of(levels, share, calls, seed):
    """Return how many attempts were made at the bottom of nested policies by calls that fail so often."""
    draw, made = random.Random(seed).random, [0]

    def work():
        made[0] += 1
        if draw() < share:
            raise ConnectionError

    guarded = nested(work, levels)
    for n in range(1, calls + 1):
        with suppress(ConnectionError):
            guarded()
        yield n, made[0]


class TestAttempts:
    @given(
        share=st.floats(0, 1),
        ratio=st.sampled_from([0.0, 0.1, 0.5]),
        burst=st.integers(0, 5),
        seed=st.integers(0, 99),
    )
    def test_are_bounded_by_calls(self, share, ratio, burst, seed):
        for n, made in attempts_of([Budget(ratio, burst)], share, 60, seed):
            assert made <= (1 + ratio) * n + burst + 1e-9

    @given(
        levels=st.lists(
            st.sampled_from([ConnectionError, TimeoutError, Exception]), min_size=1, max_size=4
        ),
        fails=st.floats(0, 1),
        seed=st.integers(0, 99),
        kind=st.sampled_from([as_function, as_coroutine]),
    )
    def test_of_one_budget_whatever_each_level_retries(self, levels, fails, seed, kind):
        draw, made, budget = random.Random(seed).random, [0], Budget(0.1, 3)

        def work():
            made[0] += 1
            if draw() < fails:
                raise ConnectionError if draw() < 0.5 else TimeoutError

        guarded = kind(work)
        for on in levels:
            guarded = Policy(retry=Retry(4, backoff=0, budget=budget), on=on)(guarded)

        async def main():
            for n in range(1, 81):
                with suppress(OSError):
                    answer = guarded()
                    if answer is not None:
                        await answer
                assert made[0] <= 1.1 * n + 3 + 1e-9

        virtually(main)

    @pytest.mark.parametrize(
        ("budgets", "share"),
        [
            ("one", 1.0),
            ("one", 0.3),
            ("each", 0.3),
            ("each", 1.0),
        ],
    )
    def test_are_bounded_by_calls_through_three_levels(self, budgets, share):
        shared = Budget(0.1, 10)
        levels = [shared if budgets == "one" else Budget(0.1, 10) for _ in range(3)]
        for n, made in attempts_of(levels, share, 1_000, 7):
            assert made <= 1.1 * n + 10 + 1e-9


class TestDeadline:
    @given(
        allowed=st.floats(0.2, 4.0),
        works=st.lists(st.floats(0.05, 2.0), min_size=6, max_size=6),
        pause=st.floats(0, 1.5),
        hedge=st.none() | st.floats(0.1, 1.0),
        outer=st.booleans(),
    )
    def test_through_fallbacks_hedges_and_nested_retries(self, allowed, works, pause, hedge, outer):
        starts, ends = [], []

        async def work():
            starts.append(current().monotonic())
            try:
                await current().asleep(works[len(starts) % 6])
            finally:
                ends.append(current().monotonic())
            raise ConnectionError

        def guard(**settings):
            return Policy(retry=Retry(5, backoff=pause, budget=Budget(burst=50)), **settings)

        async def main():
            inner = guard(hedge=hedge and Hedge(hedge, extra=2))(work)
            score = fallback(
                tier(guard(timeout=1.0)(inner), policy=guard(), name="big"),
                tier(work, policy=guard(), name="small"),
            )
            with suppress(AllTiersFailedError, TimeoutError, ConnectionError):
                if outer:
                    with deadline(allowed):
                        await score()
                else:
                    await Policy(deadline=allowed).call(score)
            assert starts
            assert all(at < allowed for at in starts)
            assert all(at <= allowed + 1e-6 for at in ends)
            assert current().monotonic() <= allowed + 1e-6
            assert asyncio.all_tasks() == {asyncio.current_task()}

        virtually(main)


# --- locks -----------------------------------------------------------------------------------------------------------


class Elsewhere:
    """Uses, in another thread, everything that a call uses, while user code of that call runs.

    A lock that is held around user code would keep that thread waiting: it is given up on after a while, and the place
    is named.
    """

    def __init__(self, patience=60.0):
        self.places, self.blocked, self.busy = Counter(), [], threading.local()
        self.actions, self.patience = [], patience

    def __call__(self, place):
        # Not in the other thread or what it calls; and whoever tries a swap again shall succeed some time.
        if getattr(self.busy, "now", False) or self.places[place] == 3:
            return
        self.places[place] += 1
        done = threading.Event()

        def act():
            self.busy.now = True
            for action in self.actions:
                with suppress(Exception):
                    action()
            done.set()

        threading.Thread(target=act, daemon=True).start()
        if not done.wait(self.patience):
            self.blocked.append(place)


class TestLocks:
    def test_one_would_be_seen(self):
        lock, elsewhere = threading.Lock(), Elsewhere(patience=0.05)

        def counted():
            with lock:
                pass

        elsewhere.actions = [counted]
        elsewhere("outside")
        with lock:
            elsewhere("inside")
        assert elsewhere.blocked == ["inside"]

    @pytest.mark.parametrize("per_row", [False, True])
    def test_none_is_held_wherever_user_code_runs(self, per_row):
        elsewhere = Elsewhere()

        def at(place, answer):
            def code(*_args, **_kwargs):
                elsewhere(place)
                return answer

            return code

        class Storage:
            refresh = 0.0
            record = None

            def read(self, name):
                elsewhere("storage.read")
                return self.record

            def swap(self, name, old, new):
                elsewhere("storage.swap")
                if self.record != old:
                    return False
                self.record = new
                return True

        class Batch(list):
            def __deepcopy__(self, memo):
                elsewhere("copy")
                return self

        good = [True]

        def big(x):
            elsewhere("function")
            if good[0]:
                return Batch(x)
            raise ConnectionError

        budget = Budget()
        breaker = Breaker(name="b", min_calls=1, window=1, cooldown=1e-9, storage=Storage())
        policy = Policy(
            breaker=breaker, bulkhead=100, rate=1e9, deadline=60.0, on=at("on", answer=True), verdict=at("verdict", None),
            accept=at("accept", answer=True),
            retry=Retry(3, backoff=at("backoff", 0.0), stop=at("stop", answer=False), budget=budget),
        )  # fmt: skip
        score = fallback(
            tier(big, policy=policy, accept=at("gate", answer=True), when=at("when", answer=True)),
            stale(600, key=at("key", "same")),
            constant(at("constant", 0.0)),
            per_row=per_row,
            name="locks",
        )
        elsewhere.actions = [
            breaker.stats, breaker.trip, breaker.reset, breaker.acquire, telemetry.collect, budget.earn, budget.spend,
            lambda: policy.call(int), lambda: score([1.0]), lambda: score.explain([1.0]), lambda: Budget(name="locks"),
        ]  # fmt: skip

        def heard(event):
            elsewhere("listener")

        class Source:
            def samples(self):
                elsewhere("source of samples")
                return ()

        source = Source()
        telemetry.register(source)
        with telemetry.listen(heard), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for works in (True, False, True):
                good[0] = works
                for _ in range(3):
                    breaker.reset()
                    assert len(score([1.0, 2.0])) == 2 if works else True
                    with suppress(RejectedError, AllTiersFailedError):
                        score([1.0, 2.0])
            telemetry.collect()
        assert elsewhere.blocked == []
        assert elsewhere.places.keys() >= {
            "function", "on", "verdict", "accept", "backoff", "stop", "gate", "when", "key", "storage.read",
            "storage.swap", "listener", "source of samples",
        }  # fmt: skip

    def test_listeners_change_nothing(self):
        """A chain under faults answers alike, whoever listens and whatever they do."""

        def course():
            draw = random.Random(3).random
            with virtual_time() as clock:
                breaker = Breaker(min_calls=2, window=4, cooldown=1.0)

                def big(x):
                    clock.advance(0.1)
                    if draw() < 0.4:
                        raise ConnectionError
                    return math.nan if draw() < 0.2 else x

                score = fallback(
                    tier(big, policy=Policy(retry=2, breaker=breaker), accept=finite),
                    constant(0),
                    name="listened",
                )
                answers = []
                for x in range(200):
                    clock.advance(0.2)
                    answers.append(score.explain(x))
            return [(one.value, one.tier, one.reason, one.attempts) for one in answers]

        def raises(event):
            raise RuntimeError("no disk")

        def asks(event):
            course()  # deep inside of a call, another hundred

        alone, heard = course(), []
        for listener in (heard.append, raises):
            with (
                telemetry.listen(listener, scope="context"),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")
                assert course() == alone
        assert {"resilience.breaker.opened", "resilience.breaker.closed"} <= {e.kind for e in heard}
        once = iter([asks])
        with telemetry.listen(lambda event: next(once, str)(event), scope="context"):
            assert course() == alone


# --- rows over time --------------------------------------------------------------------------------------------------


class Ladder(RuleBasedStateMachine):
    """Models go down, give NaN and come back while time passes: a fallback by rows against a plain model of it."""

    @initialize(max_age=st.sampled_from([5.0, 60.0]), retries=st.integers(1, 2))
    def make(self, max_age, retries):
        self.manager = virtual_time(start=0.0)
        self.clock = self.manager.__enter__()
        self.max_age, self.attempts = max_age, retries
        self.up = {"big": True, "small": True}
        self.bad = {"big": set(), "small": set()}
        self.until = {"big": 0.0, "small": 0.0}  # when the breakers let a probe through
        self.open = {"big": False, "small": False}
        self.kept = {}
        self.asked = {"big": [], "small": []}
        self.score = fallback(
            *(self.tier_of(name, factor) for name, factor in (("big", 1.0), ("small", 10.0))),
            stale(max_age, key=float),
            constant(-1.0),
            per_row=True,
        )

    def tier_of(self, name, factor):
        def answer(x):
            self.asked[name].append(x.tolist())
            if not self.up[name]:
                raise ConnectionError
            bad = np.isin(x, sorted(self.bad[name]))
            return np.where(bad, np.nan, x * factor)

        policy = Policy(
            retry=Retry(self.attempts, backoff=0, budget=None),
            breaker=Breaker(min_calls=1, window=1, cooldown=10.0),
        )
        return tier(answer, policy=policy, accept=finite, name=name)

    def teardown(self):
        if hasattr(self, "manager"):
            self.manager.__exit__(None, None, None)

    @rule(name=st.sampled_from(["big", "small"]), up=st.booleans())
    def switch(self, name, up):
        self.up[name] = up

    @rule(name=st.sampled_from(["big", "small"]), rows=st.sets(st.integers(0, 7)))
    def spoil(self, name, rows):
        self.bad[name] = set(map(float, rows))

    @rule(seconds=st.sampled_from([0.5, 4.0, 10.0, 61.0]))
    def wait(self, seconds):
        self.clock.advance(seconds)

    @rule(rows=st.lists(st.integers(0, 7), min_size=1, max_size=6))
    def ask(self, rows):
        now, left = self.clock.monotonic(), list(enumerate(map(float, rows)))
        told, values, asked = [None] * len(rows), [None] * len(rows), {"big": 0, "small": 0}
        for name, factor in (("big", 1.0), ("small", 10.0)):
            if not left or (self.open[name] and now < self.until[name]):
                continue
            if not self.up[name]:
                # A failure opens it; the next attempt of the same call would find it open.
                asked[name] = 1
                self.open[name], self.until[name] = True, now + 10.0
                continue
            asked[name] = 1
            self.open[name] = False
            for at, x in left:
                if x not in self.bad[name]:
                    told[at], values[at] = name, x * factor
                    self.kept[x] = now, x * factor
            left = [(at, x) for at, x in left if told[at] is None]
        for at, x in left:
            if x in self.kept and now - self.kept[x][0] <= self.max_age:
                told[at], values[at] = "stale", self.kept[x][1]
            else:
                told[at], values[at] = "constant", -1.0
        for calls in self.asked.values():
            calls.clear()
        answer = self.score.explain(np.array(rows, dtype=float))
        assert list(answer.rows) == told
        assert answer.value.tolist() == values
        assert sum(answer.tier_counts.values()) == len(rows)
        assert {name: len(calls) for name, calls in self.asked.items()} == asked


Ladder.TestCase.settings = settings(stateful_step_count=25)
TestLadder = Ladder.TestCase
