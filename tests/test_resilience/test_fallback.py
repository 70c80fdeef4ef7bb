"""Fallbacks: who answers, what comes out, and what is said about it."""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlkit import telemetry
from mlkit._clock import current
from mlkit.errors import (
    AllTiersFailedError,
    BreakerOpenError,
    ConfigurationError,
    DeadlineExceededError,
    DegradedWarning,
    ResultRejectedError,
)
from mlkit.resilience import (
    Breaker,
    Policy,
    Retry,
    confidence,
    constant,
    deadline,
    fallback,
    finite,
    in_range,
    provenance,
    stale,
    tier,
)
from mlkit.testing import virtual_time
from mlkit.testing._faults import fail, faults, faulty, ok, slow

torch.set_num_threads(1)


def down(*_):
    raise ConnectionError("down")


class TestWhole:
    def test_the_identical_object_comes_back_from_the_first_tier(self):
        answer = object()
        assert fallback(tier(lambda _: answer, name="a"), constant(0))(1) is answer

    def test_the_first_good_answer_wins(self):
        chain = fallback(
            tier(down, name="a"),
            tier(lambda x: math.nan, name="b", accept=finite),
            tier(lambda x: x + 1, name="c"),
            constant(0),
        )
        assert chain(1) == 2
        answer = chain.explain(1)
        assert (answer.value, answer.tier, answer.attempts) == (2, "c", 3)
        assert answer.reason == "a: ConnectionError; b: did not pass finite"
        assert answer.tier_counts == {"c": 1}
        assert answer.rows == ("c",)

    def test_if_nobody_answers_all_errors_come_out(self):
        chain = fallback(
            tier(down, name="a"),
            tier(lambda x: math.nan, accept=finite, name="b"),
            stale(60),
            name="score",
        )
        with pytest.raises(AllTiersFailedError, match="score") as info:
            chain(1)
        kinds = [type(error) for error in info.value.exceptions]
        assert kinds == [ConnectionError, ResultRejectedError, LookupError]
        assert info.value.tiers == ("a", "b", "stale")
        head, *lines = str(info.value).splitlines()
        assert head == "fallback 'score': no tier answered"
        assert [line.split(":")[0] for line in lines] == ["  - a", "  - b", "  - stale"]
        assert info.value.__context__ is None

    def test_tiers_that_fail_alike_can_be_told_apart(self):
        def fail(x):
            raise ValueError(f"boom {x}")

        with pytest.raises(AllTiersFailedError) as info:
            fallback(tier(fail, name="a"), tier(fail, name="b"))(1)
        assert str(info.value).splitlines() == [
            "fallback 'a': no tier answered",
            "  - a: ValueError: boom 1",
            "  - b: ValueError: boom 1",
        ]

    def test_arguments_are_handed_on_untouched(self):
        seen = []

        def second(*args, **kwargs):
            seen.append((args, kwargs))
            return 1

        data = {"rows": [1, 2]}
        fallback(tier(down_kw, name="a"), tier(second, name="b"))(data, k=data)
        assert seen == [((data,), {"k": data})]
        assert seen[0][0][0] is data

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
    def test_base_exceptions_go_out(self, error):
        def work():
            raise error

        with pytest.raises(error):
            fallback(work, constant(1))()

    def test_a_wrong_call_is_no_outage(self):
        def wrong():
            raise ConfigurationError("f(x)", 1, "2")

        with pytest.raises(ConfigurationError):
            fallback(wrong, constant(1))()
        with pytest.raises(ConfigurationError), provenance():
            fallback(wrong, constant(1))()

    def test_an_open_tier_is_skipped_without_a_call(self):
        calls = []

        def failing():
            calls.append(1)
            raise OSError

        breaker = Breaker(min_calls=3, window=3, cooldown=10)
        chain = fallback(tier(failing, policy=Policy(breaker=breaker), name="big"), constant(0))
        with virtual_time() as clock:
            for _ in range(10):
                assert chain() == 0
            assert len(calls) == 3
            assert chain.explain().reason == "big: BreakerOpenError"
            clock.advance(10)
            chain()
            assert len(calls) == 4

    def test_a_dead_tier_has_a_breaker_unless_told_otherwise(self):
        calls = []

        def failing():
            calls.append(1)
            raise OSError

        chain = fallback(failing, constant(0))
        bare = fallback(tier(failing, policy=None), constant(0))
        for _ in range(100):
            chain()
        assert len(calls) == 20
        for _ in range(100):
            bare()
        assert len(calls) == 120

    def test_the_error_of_a_skipped_tier_is_made_when_it_is_needed(self):
        breaker = Breaker(name="big")
        breaker.trip()
        with pytest.raises(AllTiersFailedError) as info:
            fallback(tier(len, policy=Policy(breaker=breaker)))("x")
        assert isinstance(info.value.exceptions[0], BreakerOpenError)
        assert info.value.exceptions[0].retry_after > 0

    def test_after_the_deadline_only_what_takes_no_time_answers(self):
        asked = []

        @faulty("big")
        def big():
            return 1

        chain = fallback(big, tier(lambda: asked.append(1), name="small"), constant(0))
        with virtual_time(), faults({"big": [slow(2.0)]}), deadline(1.0):
            current().sleep(1.0)
            answer = chain.explain()
        assert (answer.value, asked, answer.attempts) == (0, [], 0)
        assert answer.reason == "big: DeadlineExceededError; small: DeadlineExceededError"

    def test_attempts_are_those_of_the_policy(self):
        with virtual_time():
            chain = fallback(tier(down, policy=Policy(retry=3)), constant(0))
            assert chain.explain().attempts == 3

    def test_a_gate_that_breaks_does_not_pass(self):
        chain = fallback(tier(lambda: "x", accept=lambda y: 1 / 0, name="a"), constant(0))
        assert chain() == 0
        assert chain.explain().reason == "a: ZeroDivisionError"

    def test_answers_are_counted_by_tier(self):
        chain = fallback(tier(down, name="a"), constant(0), name="counted-answers")
        for _ in range(3):
            chain()
        values = {
            s.labels: s.value for s in telemetry.collect() if s.name.endswith("answers_total")
        }
        assert values[("fallback", "counted-answers"), ("tier", "constant")] == 3
        assert values[("fallback", "counted-answers"), ("tier", "a")] == 0

    def test_a_failed_tier_keeps_nothing_alive_while_the_next_one_runs(self):
        class Batch:
            pass

        held = []

        def big():
            batch = Batch()
            held.append(weakref.ref(batch))
            raise RuntimeError("out of memory")

        assert fallback(big, tier(lambda: held[0]() is None, name="small"))() is True

    def test_no_cycles_are_left(self, cycles_left_by):
        chain = fallback(tier(down, policy=None), constant(0))
        dead = fallback(tier(down, policy=None))
        gated = fallback(tier(lambda x: math.nan, accept=finite), constant(0))

        def use():
            chain(1), gated(1), chain.explain(1)
            with provenance():
                chain(1)
            try:
                dead(1)
            except AllTiersFailedError:
                pass

        assert cycles_left_by(use) == 0

    def test_cycles_would_be_seen(self, cycles_left_by):
        def use():
            cycle = []
            cycle.append(cycle)

        assert cycles_left_by(use) == 1


def down_kw(*_, **__):
    raise ConnectionError


class TestProvenance:
    def test_it_names_the_tier_the_caller_sees(self):
        inner = fallback(tier(down, name="inner-big"), tier(lambda x: x, name="inner-small"))
        outer = fallback(tier(inner, name="outer"), constant(0))
        with provenance() as p:
            assert outer(5) == 5
        assert (p.tier, p.answers, p.tier_counts) == ("outer", 1, {"outer": 1})

    def test_nothing_is_recorded_outside_and_inner_blocks_take_theirs(self):
        chain = fallback(lambda: 1, constant(0))
        with provenance() as outer:
            chain()
            with provenance() as inner:
                chain()
            chain()
        chain()
        assert (outer.answers, inner.answers) == (2, 1)

    def test_a_failed_chain_is_recorded_with_its_reasons(self):
        with provenance() as p, pytest.raises(AllTiersFailedError):
            fallback(tier(down, name="a"))()
        assert (p.tier, p.reason, p.tier_counts) == (None, "a: ConnectionError", {})

    def test_data_never_appears_in_a_reason(self):
        def patient(x):
            raise ValueError(f"bad row {x}")

        chain = fallback(patient, constant(0))
        assert "4711" not in chain.explain("4711").reason

    def test_each_thread_has_its_own_and_a_copied_context_shares(self):
        chain = fallback(tier(lambda x: x, accept=in_range(0, 9), name="a"), constant(-1))
        results, barrier = [], threading.Barrier(8)

        def own(n):
            barrier.wait(60)
            for _ in range(50):
                with provenance() as p:
                    chain(n)
                results.append((n, p.tier))

        threads = [threading.Thread(target=own, args=(5 * n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert all(seen == ("a" if n <= 9 else "constant") for n, seen in results)
        with provenance() as shared:
            contexts = [contextvars.copy_context() for _ in range(8)]
            threads = [threading.Thread(target=c.run, args=(chain, 20)) for c in contexts]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        assert shared.tier_counts == {"constant": 8}


class TestAsync:
    def test_fifty_requests_with_faults_each_know_their_tier(self):
        @faulty("mlp")
        async def mlp(x):
            await current().asleep(0.01)
            return x

        def centroid(x):
            return -x

        chain = fallback(
            tier(mlp, policy=Policy(timeout=0.5, breaker=Breaker(min_calls=50)), name="mlp"),
            tier(centroid, name="centroid"),
        )
        plan = [ok, fail(ConnectionError), slow(2.0), ok, ok] * 10

        async def request(x):
            with provenance() as p:
                answer = await chain(x)
            return x, answer, p.tier, p.reason

        async def main():
            return await asyncio.gather(*(request(x) for x in range(1, 51)))

        with virtual_time() as clock, faults({"mlp": plan}) as used:
            results = clock.run(main())
        assert used.unused == {}
        for number, (x, answer, who, why) in enumerate(results):
            expected = [
                (x, "mlp", ""),
                (-x, "centroid", "mlp: ConnectionError"),
                (-x, "centroid", "mlp: DeadlineExceededError"),
                (x, "mlp", ""),
                (x, "mlp", ""),
            ][number % 5]
            assert (answer, who, why) == expected

    def test_explain_is_awaited(self):
        async def big(x):
            raise OSError

        chain = fallback(big, constant(1))
        assert chain.is_async
        answer = asyncio.run(chain.explain(3))
        assert (answer.value, answer.tier, answer.attempts) == (1, "constant", 1)
        assert asyncio.run(chain(3)) == 1

    def test_one_record_serves_gather(self):
        async def work(x):
            await asyncio.sleep(0)
            if x % 2:
                raise OSError
            return x

        chain = fallback(tier(work, policy=None), constant(-1))

        async def main():
            with provenance() as p:
                await asyncio.gather(*(chain(x) for x in range(20)))
            return p

        p = asyncio.run(main())
        assert (p.tier_counts, p.answers) == ({"work": 10, "constant": 10}, 20)

    def test_cancellation_goes_out(self):
        async def hang():
            await asyncio.sleep(100)

        async def main(clock):
            task = asyncio.create_task(fallback(hang, constant(1))())
            await current().asleep(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        with virtual_time() as clock:
            clock.run(main(clock))

    def test_an_async_fallback_can_be_a_tier_and_be_decorated(self):
        async def big(x):
            return x

        inner = fallback(big, constant(0))
        outer = fallback(tier(inner, name="inner"), constant(1))
        assert outer.is_async
        assert asyncio.run(outer(7)) == 7
        assert asyncio.run(Policy(timeout=5)(inner)(7)) == 7

    def test_a_worker_that_shares_its_error_is_left_alone(self):
        """Its frame is in the traceback, suspended: clearing it would close the worker."""

        async def main():
            queue = asyncio.Queue()

            async def worker():
                while True:
                    future = await queue.get()
                    try:
                        raise OSError("bad batch")
                    except OSError as error:
                        future.set_exception(error)

            running = asyncio.create_task(worker())

            async def submit():
                future = asyncio.get_running_loop().create_future()
                queue.put_nowait(future)
                return await future

            chain = fallback(tier(submit, policy=None), constant(0))
            for _ in range(3):
                assert await asyncio.wait_for(chain(), 60) == 0
            assert not running.done()
            running.cancel()

        asyncio.run(main())


def as_numpy(x):
    return np.asarray(x, dtype=np.float64)


containers = {
    "numpy32": (lambda v: np.array(v, dtype=np.float32)),
    "numpy64": (lambda v: np.array(v, dtype=np.float64)),
    "torch32": (lambda v: torch.tensor(v, dtype=torch.float32)),
    "torch16": (lambda v: torch.tensor(v, dtype=torch.bfloat16)),
    "list": list,
}


class TestPerRow:
    @given(
        rows=st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), max_size=12),
        kind=st.sampled_from(sorted(containers)),
        raised=st.booleans(),
    )
    def test_only_rejected_rows_go_down_and_come_back_in_place(self, rows, kind, raised):
        """Rows 0 pass the first tier, 1 the second, 2 the third; 3 gets the constant."""
        make, seen = containers[kind], []

        def level(bound, offset):
            def answer(x):
                values = [float(v) for v in x]
                seen.append(values)
                if offset == 10 and raised:
                    raise RuntimeError
                return make([v + offset if v <= bound else math.nan for v in values])

            return answer

        chain = fallback(
            tier(level(0, 10), accept=finite, name="a", policy=None),
            tier(level(1, 20), accept=finite, name="b", policy=None),
            tier(level(2, 30), accept=finite, name="c", policy=None),
            constant(40.0, name="d"),
            per_row=True,
        )
        x = make(rows)
        answer = chain.explain(x)
        start = 1 if raised else 0
        level_of = [max(int(v), start) for v in rows]
        expected = [
            40.0 if at == 3 else v + 10 * (at + 1) for v, at in zip(rows, level_of, strict=True)
        ]
        assert [float(v) for v in answer.value] == expected
        assert type(answer.value) is type(x)
        if kind != "list":
            assert answer.value.dtype == x.dtype
        assert list(answer.rows) == ["abcd"[at] for at in level_of]
        assert sum(answer.tier_counts.values()) == len(rows)
        assert [float(v) for v in x] == rows  # the caller's batch is untouched
        assert seen[0] == rows
        if len(seen) > 1 + raised:
            assert seen[1 + raised] == [
                v for v, at in zip(rows, level_of, strict=True) if at > start
            ]

    def test_the_identical_object_comes_back_if_every_row_is_good(self):
        answer = np.ones((3, 2))
        chain = fallback(tier(lambda x: answer, accept=finite), constant(0.0), per_row=True)
        assert chain(np.zeros(3)) is answer

    def test_no_tiers_answer_is_changed(self):
        answer = np.array([1.0, math.nan])
        chain = fallback(tier(lambda x: answer, accept=finite), constant(0.0), per_row=True)
        assert chain([1, 2]).tolist() == [1.0, 0.0]
        assert math.isnan(answer[1])

    def test_a_rejected_row_is_never_returned(self):
        chain = fallback(
            tier(lambda x: np.array([1.0, math.nan]), accept=finite, name="a"),
            tier(lambda x: np.full(len(x), math.inf), accept=finite, name="b"),
            per_row=True,
        )
        with pytest.raises(AllTiersFailedError) as info:
            chain(np.zeros(2))
        assert len(info.value.exceptions) == 2

    def test_probabilities_and_other_arguments(self):
        seen = []

        def small(x, scale, *, extra):
            seen.append((x.shape, scale, extra))
            return np.tile([0.1, 0.9], (len(x), 1))

        chain = fallback(
            tier(
                lambda x, scale, *, extra: np.array([[0.9, 0.1], [0.5, 0.5]]),
                accept=finite & confidence(0.6),
                name="big",
            ),
            tier(small, name="small"),
            per_row=True,
        )
        x = np.zeros((2, 4))
        answer = chain.explain(x, 2, extra="e")
        assert answer.value.tolist() == [[0.9, 0.1], [0.1, 0.9]]
        assert answer.reason == "big: did not pass finite & confidence(0.6) (1 of 2 rows)"
        assert seen == [((1, 4), 2, "e")]

    @pytest.mark.parametrize(
        "second",
        [
            lambda x: np.zeros((len(x), 3)),
            lambda x: np.zeros(len(x) + 1),
            lambda x: np.zeros(len(x), dtype=complex),
        ],
        ids=["shape", "number", "dtype"],
    )
    def test_rows_that_do_not_fit_are_no_answer(self, second):
        chain = fallback(
            tier(lambda x: np.array([1.0, math.nan]), accept=finite, name="a"),
            tier(second, name="b"),
            constant(7.0),
            per_row=True,
        )
        answer = chain.explain(np.zeros(2))
        assert answer.value.tolist() == [1.0, 7.0]
        assert "b: RowsMismatchError" in answer.reason

    def test_tiers_may_answer_in_other_containers(self):
        chain = fallback(
            tier(lambda x: torch.tensor([1.0, math.nan, math.nan]), accept=finite, name="a"),
            tier(lambda x: np.array([math.nan, 2.0]), accept=finite, name="b"),
            tier(lambda x: [3.0], name="c"),
            per_row=True,
        )
        answer = chain(torch.zeros(3))
        assert answer.tolist() == [1.0, 3.0, 2.0]
        assert answer.dtype == torch.float32

    def test_integer_answers_take_no_fractions(self):
        chain = fallback(
            tier(lambda x: np.array([1, 99]), accept=in_range(0, 9), name="labels"),
            constant(0.5),
            per_row=True,
        )
        with pytest.raises(AllTiersFailedError, match="no tier answered 1 of 2 rows"):
            chain(np.zeros(2))

    def test_a_constant_row_is_spread(self):
        prior = np.array([0.2, 0.8])
        chain = fallback(tier(down), constant(prior), per_row=True)
        answer = chain(np.zeros((3, 5)))
        assert answer.shape == (3, 2)
        answer[0] = 9
        assert prior.tolist() == [0.2, 0.8]

    def test_a_batch_without_rows(self):
        chain = fallback(tier(lambda x: x, accept=finite), constant(0.0), per_row=True)
        assert chain(np.zeros((0, 3))).shape == (0, 3)

    @pytest.mark.parametrize(
        "batch", ["text", 3, {"a": 1}, {}, np.float64(3), ([1], [1, 2]), {"a": [1], "b": [[]] * 3}]
    )
    def test_what_has_no_rows_is_refused(self, batch):
        with pytest.raises(ConfigurationError, match="the batch of a fallback with per_row"):
            fallback(tier(lambda x: [1]), constant(0), per_row=True)(batch)

    def test_it_needs_a_batch_and_tiers_that_return_rows(self):
        with pytest.raises(ConfigurationError):
            fallback(lambda: 1, per_row=True)()
        with pytest.raises(ConfigurationError, match="answer of"):
            fallback(lambda x: 3, constant(0), per_row=True)([1])

    def test_async(self):
        async def big(x):
            return [v if v < 2 else math.nan for v in x]

        chain = fallback(tier(big, accept=finite), constant(0.0), per_row=True)
        assert asyncio.run(chain([1.0, 5.0])) == [1.0, 0.0]

    def test_rows_are_counted(self):
        chain = fallback(
            tier(lambda x: [math.nan, 1.0, 1.0], accept=finite, name="a"),
            constant(0.0),
            per_row=True,
            name="counted-rows",
        )
        chain([1, 2, 3])
        values = {
            s.labels: s.value for s in telemetry.collect() if s.name.endswith("answers_total")
        }
        assert values[("fallback", "counted-rows"), ("tier", "a")] == 2
        assert values[("fallback", "counted-rows"), ("tier", "constant")] == 1


class TestStale:
    def chain(self, source, max_age=60.0, **settings):
        def live(*args, **kwargs):
            return source(*args, **kwargs)

        return fallback(tier(live, policy=None), stale(max_age, **settings), constant("none"))

    def test_the_last_good_answer_for_the_same_arguments_until_it_is_too_old(self):
        state = {"up": True, "n": 0}

        def source(key, *, lang="en"):
            if not state["up"]:
                raise OSError
            state["n"] += 1
            return f"{key}-{lang}-{state['n']}"

        with virtual_time() as clock:
            chain = self.chain(source)
            assert [chain("a"), chain("a"), chain("b", lang="de")] == ["a-en-1", "a-en-2", "b-de-3"]
            state["up"] = False
            assert chain("a") == "a-en-2"
            assert chain.explain("a").tier == "stale"
            assert chain("b") == "none"
            clock.advance(60)
            assert chain("b", lang="de") == "b-de-3"
            clock.advance(0.1)
            assert chain("a") == "none"

    def test_what_the_tiers_below_gave_is_not_kept(self):
        chain = self.chain(down)
        assert [chain(1), chain(1)] == ["none", "none"]

    def test_the_least_recently_used_goes_first(self):
        state = {"up": True}

        def source(x):
            if not state["up"]:
                raise OSError
            return x

        chain = self.chain(source, maxsize=2)
        chain(1), chain(2)
        state["up"] = False
        assert chain(1) == 1
        state["up"] = True
        chain(3)
        state["up"] = False
        assert [chain(1), chain(2), chain(3)] == [1, "none", 3]

    def test_arrays_are_found_by_content_and_kept_as_copies(self):
        state = {"up": True}

        def source(x):
            if not state["up"]:
                raise OSError
            return x * 2

        for make in (np.array, torch.tensor):
            state["up"] = True
            chain = self.chain(source)
            first = chain(make([1.0, 2.0]))
            first[:] = 0
            state["up"] = False
            again = chain(make([1.0, 2.0]))
            assert again.tolist() == [2.0, 4.0]
            again[:] = 0
            assert chain(make([1.0, 2.0])).tolist() == [2.0, 4.0]
            assert isinstance(chain(make([1.0, 3.0])), str)

    def test_a_kept_tensor_keeps_no_graph(self):
        state = {"up": True}

        def source(x):
            if not state["up"]:
                raise OSError
            return torch.ones(2, requires_grad=True) * 2

        chain = self.chain(source)
        assert chain(1).requires_grad
        state["up"] = False
        assert not chain(1).requires_grad

    def test_arguments_are_not_kept_alive(self):
        class Row(list):
            pass

        chain, row = self.chain(len), Row([1])
        ref = weakref.ref(row)
        chain(row)
        del row
        assert ref() is None

    def test_arguments_without_a_digest_are_said_once(self):
        chain = self.chain(lambda x: 1)
        with pytest.warns(DegradedWarning, match=r"stale\(key=\.\.\.\)"):
            assert chain(object()) == 1
        assert chain(object()) == 1
        keyed = self.chain(lambda x: 1, key=id)
        assert keyed(object()) == 1

    def test_two_fallbacks_do_not_share(self):
        step, state = stale(60), {"up": True}

        def source(x):
            if not state["up"]:
                raise OSError
            return x

        one = fallback(tier(source, policy=None), step, constant("none"))
        other = fallback(tier(source, policy=None), step, constant("none"))
        one(1)
        state["up"] = False
        assert (one(1), other(1)) == (1, "none")

    @pytest.mark.parametrize("kind", sorted(containers))
    def test_rows_are_kept_and_found_one_by_one(self, kind):
        make, state = containers[kind], {"up": True}

        def source(x):
            if not state["up"]:
                raise OSError
            return make([float(v) + 10 if v < 3 else math.nan for v in x])

        chain = fallback(
            tier(source, accept=finite, policy=None, name="live"),
            stale(60),
            constant(-1.0),
            per_row=True,
        )
        assert [float(v) for v in chain(make([1.0, 2.0, 3.0]))] == [11, 12, -1]
        state["up"] = False
        x = make([5.0, 2.0, 3.0, 1.0])
        answer = chain.explain(x)
        assert [float(v) for v in answer.value] == [-1, 12, -1, 11]
        assert type(answer.value) is type(x)
        assert answer.rows == ("constant", "stale", "constant", "stale")


class TestWrongUse:
    def test_fallback(self):
        for make in (
            lambda: fallback(),
            lambda: fallback(stale(1)),
        ):
            with pytest.raises((ConfigurationError, TypeError)):
                make()
        with pytest.raises(ConfigurationError, match="different names"):
            fallback(len, len)
        with pytest.raises(ConfigurationError, match="per_row"):
            fallback(len, per_row=1)
        with pytest.raises(ConfigurationError, match="callable"):
            fallback(len, 0.5)
        with pytest.raises(ConfigurationError, match="name"):
            fallback(len, name="")

    def test_tiers(self):
        def stream():
            yield 1

        async def astream():
            yield 1

        for make in (
            lambda: tier(3),
            lambda: tier(tier(len)),
            lambda: tier(len, when=True),
            lambda: tier(len, when=stream),
            lambda: constant(stream),
            lambda: fallback(stream, per_row=True),
            lambda: fallback(astream, stale(1)),
            lambda: fallback(stream, stream="resume"),
            lambda: fallback(len, stream="open"),
            lambda: fallback(len, per_row=()),
            lambda: fallback(lambda x: x, per_row=["y"]),
            lambda: tier(len, policy=3),
            lambda: tier(len, accept=3),
            lambda: tier(len, name=3),
            lambda: stale(0),
            lambda: stale(math.nan),
            lambda: stale(1, maxsize=0),
            lambda: stale(1, key="id"),
            lambda: constant(1, name=""),
        ):
            with pytest.raises(ConfigurationError):
                make()

    def test_a_coroutine_from_a_def_is_refused(self):
        async def work():
            return 1

        with pytest.raises(ConfigurationError, match="async def"):
            fallback(lambda: work(), constant(0))()


def test_names_come_from_the_policy_or_the_function():
    assert tier(len, policy=Policy(name="p")).name == "p"
    assert tier(len).name == "len"
    chain = fallback(tier(len, name="a"), constant(1), name="chain")
    assert repr(chain) == "<Fallback 'chain': a > constant>"
    with pytest.raises(DeadlineExceededError, match="len"), deadline(0):
        Policy(retry=Retry(2)).call(len, "")


def test_fallbacks_in_a_fallback_have_their_own_names():
    def one(name):
        return fallback(down, constant(1), name=name)

    assert [step.name for step in fallback(one("near"), one("far")).tiers] == ["near", "far"]


def test_an_error_with_a_field_of_that_name_is_no_group():
    class SchemaError(Exception):
        exceptions = ("column a",)

    def fails():
        raise SchemaError

    assert fallback(fails, constant(1))() == 1


def test_a_record_in_use_is_not_entered_again():
    record = provenance()
    with record, pytest.raises(ConfigurationError, match="make one for each"):
        record.__enter__()
    with provenance() as outer:
        pass
    fallback(constant(1))()
    assert outer.answers == 0


class TestRowsThatNeedRoom:
    def ask(self, first, second):
        return fallback(
            tier(lambda _x: first, name="first", accept=lambda _y: np.array([True, False])),
            tier(lambda _x: second, name="second"),
            per_row=True,
        )(np.zeros(2))

    def test_text_grows(self):
        first = np.array(["cat", "dog"])
        answer = self.ask(first, np.array(["elephant"]))
        assert answer.tolist() == ["cat", "elephant"]
        assert first.tolist() == ["cat", "dog"]

    @pytest.mark.parametrize(
        ("dtype", "value"), [("int8", 300), ("int8", -129), ("float16", 1e6), ("float16", 70_000)]
    )
    @pytest.mark.parametrize("library", ["numpy", "torch"])
    def test_a_number_never_becomes_another(self, dtype, value, library):
        first, second = np.ones(2, dtype=dtype), np.array([value])
        if library == "torch":
            first, second = torch.from_numpy(first), torch.from_numpy(second)
        with pytest.raises(AllTiersFailedError) as info:
            self.ask(first, second)
        assert isinstance(info.value.exceptions[1], ValueError)

    @pytest.mark.parametrize("value", [np.inf, np.nan, 0.1])
    def test_rounded_and_not_finite_is_what_it_was(self, value):
        answer = self.ask(np.ones(2, dtype=np.float16), np.array([value]))
        np.testing.assert_array_equal(answer, np.array([1, value], dtype=np.float16))


def test_kept_rows_of_several_shapes_are_no_answer():
    state = {"up": True}

    def live(x):
        if not state["up"]:
            raise ConnectionError
        return np.ones((len(x), int(x[0])))

    score = fallback(tier(live, policy=None), stale(60), constant(0.5), per_row=True)
    score(np.array([2]))
    score(np.array([3]))
    state["up"] = False
    assert score(np.array([2, 3])).tolist() == [0.5, 0.5]


def test_a_key_without_a_hash_costs_only_the_keeping():
    cached = fallback(tier(lambda x: x, name="live"), stale(60, key=lambda x: [x]))
    with pytest.warns(DegradedWarning, match="unhashable"):
        assert cached(3) == 3
