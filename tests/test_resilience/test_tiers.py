"""Tiers: switches, streams, fallbacks inside fallbacks, methods, copies."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import copy
import inspect
import math
import pickle
import threading
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlkit import telemetry
from mlkit.errors import AllTiersFailedError, ConfigurationError, RejectedError
from mlkit.flags import Flags
from mlkit.resilience import (
    Breaker,
    Gate,
    Policy,
    agrees,
    confidence,
    constant,
    fallback,
    finite,
    in_range,
    provenance,
    stale,
    tier,
)

torch.set_num_threads(1)


def down(*_, **__):
    raise ConnectionError("down")


def same(x):
    return x


class TestSwitch:
    def test_a_flag_is_a_kill_switch(self):
        flags = Flags.from_dict(
            {
                "flags": {
                    "big-model": {
                        "state": "ENABLED",
                        "variants": {"on": True, "off": False},
                        "defaultVariant": "on",
                    }
                }
            }
        )
        on = flags.bool("big-model", default=True)
        chain = fallback(tier(same, when=on, name="big"), constant(0))
        assert chain(3) == 3
        with flags.override({"big-model": False}):
            assert chain(3) == 0
            assert chain.explain(3).reason == "big: switched off by big-model"
        assert chain(3) == 3

    def test_with_and_without_arguments(self):
        asked = []

        def short(x):
            asked.append(x)
            return len(x) < 3

        chain = fallback(tier(len, when=short, name="a"), constant(-1))
        assert [chain("ab"), chain("abc")] == [2, -1]
        assert asked == ["ab", "abc"]
        assert fallback(tier(len, when=lambda: False, name="a"), constant(-1))("ab") == -1
        assert fallback(tier(len, when=lambda *a: not a, name="a"), constant(-1))("ab") == 2

    def test_a_tier_that_is_off_makes_no_verdict(self):
        breaker = Breaker(min_calls=1, window=1)
        chain = fallback(
            tier(down, policy=Policy(breaker=breaker), when=lambda: False, name="a"), constant(0)
        )
        for _ in range(5):
            chain(1)
        assert breaker.state == "closed"

    def test_a_switch_that_breaks_is_a_tier_that_does_not_answer(self):
        chain = fallback(tier(same, when=lambda: 1 / 0, name="a"), constant(0))
        assert chain(1) == 0
        assert chain.explain(1).reason == "a: ZeroDivisionError"

    def test_it_says_yes_or_no(self):
        with pytest.raises(ConfigurationError, match="a bool from it"):
            fallback(tier(same, when=lambda: "yes", name="a"), constant(0))(1)

    def test_if_all_are_off_the_error_says_so(self):
        def closed_for_today():
            return False

        with pytest.raises(AllTiersFailedError) as info:
            fallback(tier(same, when=closed_for_today))(1)
        assert "switched off by closed_for_today" in str(info.value)
        assert isinstance(info.value.exceptions[0], RejectedError)

    def test_rows(self):
        seen = []

        def few(x):
            seen.append(list(x))
            return len(x) < 2

        chain = fallback(
            tier(lambda x: [v if v < 2 else math.nan for v in x], accept=finite, name="a"),
            tier(lambda x: [0.5] * len(x), when=few, name="b"),
            constant(9.0),
            per_row=True,
        )
        assert chain([1, 2]) == [1, 0.5]
        assert chain([1, 2, 3]) == [1, 9.0, 9.0]
        assert seen == [[2], [2, 3]]

    def test_repr(self):
        def enabled():
            return True

        assert repr(tier(same, when=enabled)) == "<Tier 'same': function, when=enabled>"


def items(*values, fails=False):
    def stream(*_args, **_kwargs):
        yield from values
        if fails:
            raise ConnectionError("cut off")

    return stream


def aitems(*values, fails=False):
    async def stream(*_args, **_kwargs):
        for value in values:
            await asyncio.sleep(0)
            yield value
        if fails:
            raise ConnectionError("cut off")

    return stream


async def alist(stream):
    return [item async for item in stream]


def read(stream):
    return asyncio.run(alist(stream)) if hasattr(stream, "__aiter__") else list(stream)


@pytest.mark.parametrize("make", [items, aitems], ids=["sync", "async"])
class TestStreams:
    def test_open_decides_before_the_first_item(self, make):
        chain = fallback(
            tier(make(fails=True), name="dead"), tier(make(1, 2), name="big"), constant("sorry")
        )
        assert read(chain()) == [1, 2]
        assert repr(chain) == "<Fallback 'dead': dead > big > constant, stream('open')>"

    def test_open_raises_what_fails_later_and_replays_nothing(self, make):
        asked = []

        def second():
            asked.append(1)
            return [9]

        chain = fallback(tier(make(1, 2, fails=True), name="big"), tier(second, name="small"))
        got = []

        def use():
            for item in chain():
                got.append(item)

        async def ause():
            async for item in chain():
                got.append(item)

        with pytest.raises(ConnectionError, match="cut off"):
            use() if make is items else asyncio.run(ause())
        assert got == [1, 2]
        assert asked == []

    def test_buffer_is_all_or_nothing(self, make):
        chain = fallback(
            tier(make(1, 2, fails=True), name="big"),
            tier(make(7, 8), name="small"),
            stream="buffer",
        )
        assert read(chain()) == [7, 8]
        assert "stream('buffer')" in repr(chain)
        with provenance() as p:
            read(chain())
        assert (p.tier, p.reason, p.attempts) == ("small", "big: ConnectionError", 2)

    def test_a_stream_that_breaks_off_in_a_buffer_is_a_failure_for_the_breaker(self, make):
        breaker = Breaker(min_calls=4, window=8, failure_rate=0.5)
        chain = fallback(
            tier(make(1, fails=True), policy=Policy(breaker=breaker), name="big"),
            constant(0),
            stream="buffer",
        )
        for _ in range(8):
            assert read(chain()) == [0]
        assert breaker.state == "open"

    def test_gates_judge_the_first_item_or_all_of_them(self, make):
        asked = []

        def gate(seen):
            asked.append(seen)
            return False

        for mode in ("open", "buffer"):
            chain = fallback(
                tier(make(1, 2), accept=gate, name="a"), tier(make(3), name="b"), stream=mode
            )
            assert read(chain()) == [3]
        assert asked == [1, [1, 2]]

    def test_no_items_are_an_answer(self, make):
        never = tier(make(), accept=lambda _: False, name="a")
        assert read(fallback(never, constant(1))()) == []
        assert read(fallback(never, constant(1), stream="buffer")()) == [1]

    def test_nobody_answers(self, make):
        chain = fallback(tier(make(fails=True), name="a"), tier(make(fails=True), name="b"))
        stream = chain()
        with pytest.raises(AllTiersFailedError) as info:
            read(stream)
        assert info.value.tiers == ("a", "b")

    def test_tiers_of_other_kinds(self, make):
        assert read(
            fallback(tier(make(fails=True), name="a"), tier(lambda: iter("xy"), name="b"))()
        ) == ["x", "y"]
        assert read(fallback(tier(make(fails=True), name="a"), constant([1, 2]))()) == [[1, 2]]
        for wrong in ("text", 3):
            with pytest.raises(ConfigurationError, match="a list or iterator of items"):
                read(
                    fallback(
                        tier(make(fails=True), name="a"), tier(lambda wrong=wrong: wrong, name="b")
                    )()
                )

    def test_nothing_runs_before_it_is_read(self, make):
        ran = []

        def gen():
            ran.append(1)
            yield 1

        async def agen():
            ran.append(1)
            yield 1

        stream = fallback(gen if make is items else agen, constant(0))()
        assert ran == []
        assert read(stream) == [1]

    def test_provenance_says_who_streams(self, make):
        chain = fallback(tier(make(fails=True), name="big"), tier(make(1), name="small"), name="s")
        with provenance() as p:
            assert read(chain()) == [1]
        assert (p.tier, p.reason, p.answers) == ("small", "big: ConnectionError", 1)
        with pytest.raises(ConfigurationError, match="with provenance"):
            chain.explain()

    def test_an_early_end_closes_the_source_and_is_no_failure(self, make):
        ended, breaker = [], Breaker(min_calls=1, window=1)

        def gen():
            try:
                yield 1
                yield 2
            finally:
                ended.append(1)

        async def agen():
            try:
                yield 1
                yield 2
            finally:
                ended.append(1)

        chain = fallback(
            tier(gen if make is items else agen, policy=Policy(breaker=breaker)), constant(0)
        )

        async def first():
            stream = chain()
            item = await anext(stream)
            await stream.aclose()
            return item

        if make is items:
            stream = chain()
            assert next(stream) == 1
            stream.close()
        else:
            assert asyncio.run(first()) == 1
        assert ended == [1]
        assert breaker.state == "closed"

    def test_a_rejected_stream_is_closed(self, make):
        ended = []

        def gen():
            try:
                yield 1
            finally:
                ended.append(1)

        async def agen():
            try:
                yield 1
            finally:
                ended.append(1)

        for gate in (lambda _: False, lambda _: 1 / 0):
            source = tier(gen if make is items else agen, accept=gate, name="a")
            assert read(fallback(source, constant(0))()) == [0]
        assert ended == [1, 1]

    def test_streams_are_counted(self, make):
        chain = fallback(
            tier(make(fails=True), name="a"), constant(0), name=f"counted-{make.__name__}"
        )
        read(chain())
        found = {
            s.labels: s.value for s in telemetry.collect() if s.name == "resilience_answers_total"
        }
        assert found[("fallback", chain.name), ("tier", "constant")] == 1


@pytest.mark.parametrize("make", [items, aitems], ids=["sync", "async"])
def test_a_stream_fallback_can_be_a_tier(make):
    inner = fallback(tier(make(fails=True), name="a"), tier(make(1, 2), name="b"), name="inner")
    outer = fallback(tier(make(fails=True), name="first"), tier(inner, name="second"))
    with provenance() as p:
        assert read(outer()) == [1, 2]
    assert p.path() == ("second", "b")
    alone = fallback(tier(inner, name="only"))
    assert alone.stream == "open"
    assert read(alone()) == [1, 2]


def test_a_bound_fallback_can_be_a_tier():
    class Model:
        async def big(self, x):
            return x + 1

        def words(self, x):
            yield x

        score = fallback(big, name="score")
        say = fallback(words, name="say")

    model = Model()
    outer = fallback(tier(model.score, name="m"), constant(0))
    assert outer.is_async
    assert asyncio.run(outer(1)) == 2
    assert read(fallback(tier(model.say, name="m"))(3)) == [3]


def test_values_are_sent_to_the_generator_that_answers():
    def echo():
        got = yield "first"
        while got != "stop":
            got = yield got
        return "done"

    def outer(chain):
        return (yield from chain())

    chain = fallback(echo, constant(0))
    stream = outer(chain)
    assert [next(stream), stream.send("a")] == ["first", "a"]
    with pytest.raises(StopIteration) as info:
        stream.send("stop")
    assert info.value.value == "done"


def test_plain_and_async_generators_in_one_fallback():
    chain = fallback(tier(items(fails=True), name="a"), tier(aitems(1, 2), name="b"))
    assert chain.is_async
    assert asyncio.run(alist(chain())) == [1, 2]
    chain = fallback(tier(aitems(fails=True), name="a"), tier(items(1, 2), name="b"))
    assert asyncio.run(alist(chain())) == [1, 2]

    async def late():
        return [5, 6]

    chain = fallback(tier(items(fails=True), name="a"), tier(late, name="b"))
    assert asyncio.run(alist(chain())) == [5, 6]


class TestInside:
    def test_the_trace_is_a_tree(self):
        inner = fallback(tier(down, name="big"), tier(same, name="small"), name="inner")
        outer = fallback(tier(inner, name="model"), constant(0), name="outer")
        with provenance() as p:
            assert outer(5) == 5
        (trace,) = p.traces
        assert (trace.fallback, trace.tier, trace.reason) == ("outer", "model", "")
        (below,) = trace.inner["model"]
        assert (below.fallback, below.tier, below.reason) == (
            "inner",
            "small",
            "big: ConnectionError",
        )
        assert p.path() == ("model", "small")
        assert p.tier_counts == {"model": 1}
        assert outer.explain(5).inner == trace.inner

    def test_paths_of_rows(self):
        """Inner and outer are asked for fewer and fewer rows; each path is that of the row."""

        def level(bound):
            return lambda x: [v if v < bound else math.nan for v in x]

        inner = fallback(
            tier(level(4), accept=finite, name="c"),
            tier(level(6), name="d"),
            name="inner",
            per_row=True,
        )
        outer = fallback(
            tier(level(2), accept=finite, name="a"),
            tier(inner, accept=finite, name="b"),
            constant(-1.0, name="e"),
            per_row=True,
        )
        answer = outer.explain([7, 1, 5, 3, 0, 2])
        assert answer.value == [-1.0, 1, 5, 3, 0, 2]
        assert [answer.path(i) for i in range(6)] == [
            ("e",),
            ("a",),
            ("b", "d"),
            ("b", "c"),
            ("a",),
            ("b", "c"),
        ]
        assert [answer.why(i) for i in (0, 1, 2)] == [
            "a: did not pass finite (4 of 6 rows); b: did not pass finite (1 of 4 rows)",
            "",
            "a: did not pass finite (4 of 6 rows)",
        ]
        (below,) = answer.inner["b"]
        assert sum(below.tier_counts.values()) == 4
        assert sum(answer.tier_counts.values()) == 6

    def test_one_that_is_called_by_a_tier(self):
        inner = fallback(tier(down, name="x"), constant(1), name="inner")

        def work(v):
            return inner(v) + inner(v)

        outer = fallback(tier(work, policy=Policy(retry=2)), constant(0))
        answer = outer.explain(3)
        assert answer.path() == ("work",)
        assert [trace.tier for trace in answer.inner["work"]] == ["constant", "constant"]

    def test_one_that_fails_inside(self):
        inner = fallback(tier(down, name="x"), name="inner")
        answer = fallback(tier(inner, name="model"), constant(0)).explain(3)
        assert answer.reason == "model: AllTiersFailedError"
        assert answer.inner["model"][0].tier is None
        assert answer.inner["model"][0].reason == "x: ConnectionError"

    @given(st.lists(st.integers(0, 3), min_size=1, max_size=6))
    def test_counts_add_up_at_every_depth(self, rows):
        def build(depth):
            first = tier(
                lambda x: [v if v >= depth else math.nan for v in x],
                accept=finite,
                name=f"t{depth}",
            )
            if depth == 0:
                return fallback(first, name="d0", per_row=True)
            return fallback(
                first, tier(build(depth - 1), name=f"down{depth}"), name=f"d{depth}", per_row=True
            )

        answer = build(3).explain(rows)
        assert answer.value == rows
        trace, asked = answer.trace, len(rows)
        while True:
            assert sum(trace.tier_counts.values()) == asked
            assert len(trace.rows) == asked
            if not trace.inner:
                break
            asked = trace.tier_counts[trace.tiers[1]]
            ((trace,),) = trace.inner.values()
        for i, v in enumerate(rows):
            assert answer.path(i)[-1] == f"t{v}"

    def test_gather_and_task_groups(self):
        async def big(x):
            await asyncio.sleep(0)
            if x % 2:
                raise ConnectionError
            return x

        inner = fallback(tier(big, policy=None), tier(same, name="small"), name="inner")

        async def both(x):
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(inner(x + i)) for i in range(2)]
            return [task.result() for task in tasks]

        outer = fallback(tier(both, policy=None), constant(None))

        async def main():
            with provenance() as p:
                await asyncio.gather(*(outer(x) for x in range(10)))
            return p

        p = asyncio.run(main())
        assert p.tier_counts == {"both": 10}
        for trace in p.traces:
            assert sorted(below.tier for below in trace.inner["both"]) == ["big", "small"]

    def test_an_executor_with_a_copied_context(self):
        chain = fallback(tier(lambda x: x if x % 3 else 1 / 0, policy=None, name="a"), constant(0))
        with provenance() as p, concurrent.futures.ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(contextvars.copy_context().run, chain, x) for x in range(30)]
            assert [job.result() for job in jobs] == [x if x % 3 else 0 for x in range(30)]
        assert p.tier_counts == {"a": 20, "constant": 10}
        with concurrent.futures.ThreadPoolExecutor(1) as pool:  # without one, nobody listens
            with provenance() as p:
                pool.submit(chain, 1).result()
            assert p.answers == 0

    def test_threads_that_share_a_fallback_do_not_share_a_trace(self):
        inner = fallback(
            tier(lambda x: x if x > 0 else 1 / 0, policy=None, name="i"), constant(0), name="inner"
        )
        outer = fallback(tier(inner, name="o", policy=None), constant(1))
        wrong, barrier = [], threading.Barrier(6)

        def work(x):
            barrier.wait(60)
            for _ in range(100):
                answer = outer.explain(x)
                if answer.path() != ("o", "i" if x else "constant") or len(answer.inner["o"]) != 1:
                    wrong.append(answer)

        threads = [threading.Thread(target=work, args=(n % 2,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert wrong == []

    def test_traces_pickle_and_are_equal(self):
        inner = fallback(tier(down, name="x"), constant([1]), name="inner")
        answer = fallback(tier(inner, name="m"), per_row=False).explain(1)
        again = pickle.loads(pickle.dumps(answer))
        assert again == answer
        assert again.path() == ("m", "constant")
        assert len({again.trace, answer.trace}) == 1
        with pytest.raises(AttributeError):
            answer.trace.attempts = 3


def scale(x, by=2):
    """Double."""
    return x * by


async def ascale(x):
    return x * 2


class TestObject:
    def test_pickles(self):
        chain = fallback(
            tier(scale, accept=finite & in_range(0, 10) | ~confidence(0.5, margin=0.1)),
            stale(60, maxsize=3),
            constant({"a": 1}),
            name="chain",
        )
        again = pickle.loads(pickle.dumps(chain))
        assert repr(again) == repr(chain)
        assert again(3) == 6
        assert [one.accept for one in again.tiers] == [one.accept for one in chain.tiers]
        assert again.tiers[0].breaker is not chain.tiers[0].breaker
        rows = pickle.loads(pickle.dumps(fallback(scale, per_row=("x",))))
        assert rows.per_row == ("x",)
        assert copy.deepcopy(chain)(3) == 6

    def test_a_breaker_that_two_tiers_share_is_one_in_the_copy(self):
        breaker = Breaker(name="both")
        policy = Policy(breaker=breaker)
        chain = fallback(tier(scale, policy=policy, name="a"), tier(scale, policy=policy, name="b"))
        again = pickle.loads(pickle.dumps(chain))
        assert again.tiers[0].breaker is again.tiers[1].breaker

    def test_hash_signature_and_doc(self):
        chain = fallback(scale, constant(0))
        assert len({chain, chain}) == 1
        assert list(inspect.signature(chain).parameters) == ["x", "by"]

    def test_it_is_a_method_in_a_class(self):
        class Model:
            def __init__(self, bias):
                self.bias = bias

            def big(self, x):
                if x < 0:
                    raise ConnectionError
                return x + self.bias

            async def abig(self, x):
                return x + self.bias

            def stream(self, x):
                yield x + self.bias

            score = fallback(big, tier(lambda self, x: self.bias, name="small"))
            ascore = fallback(abig)
            tokens = fallback(stream, constant("none"))

        one, other = Model(1), Model(2)
        assert [one.score(1), other.score(1), one.score(-1), other.score(x=-1)] == [2, 3, 1, 2]
        assert one.score.explain(-1).tier == "small"
        assert one.score == one.score
        assert one.score != other.score
        assert len({one.score, one.score, other.score}) == 2
        assert Model.score(one, 1) == 2
        assert asyncio.run(one.ascore(1)) == 2
        assert list(one.tokens(1)) == [2]
        assert one.score.__self__ is one
        assert "score" not in repr(one.score) or "Model" in repr(one.score)
        with provenance() as p:
            one.score(1)
        assert p.tier == "big"


class TestUnknown:
    """What cannot be known does not pass, and neither does its opposite."""

    @pytest.mark.parametrize("gate", [in_range(0, 1), confidence(0.5)], ids=repr)
    def test_of_nan_nothing_is_known(self, gate):
        for answer in (math.nan, np.float64("nan"), torch.tensor(math.nan), [math.nan]):
            assert not gate(answer)
            assert not (~gate)(answer)
        rows = np.array([[0.7, 0.3], [math.nan, 0.5]])
        assert gate.mask(rows, 2).tolist() == [True, False]
        assert (~gate).mask(rows, 2).tolist() == [False, False]

    def test_what_is_known_of_others_decides(self):
        unknown, yes, no = (Gate(lambda _, v=v: v, name=str(v)) for v in (None, True, False))
        for one, other, both, either in (
            (unknown, yes, None, True),
            (unknown, no, False, None),
            (unknown, unknown, None, None),
            (yes, no, False, True),
            (yes, yes, True, True),
            (no, no, False, False),
        ):
            for a, b in ((one, other), (other, one)):
                assert (a & b)(1) is (both is True)
                assert (~(a & b))(1) is (both is False)
                assert (a | b)(1) is (either is True)
                assert (~(a | b))(1) is (either is False)
                assert (a & b).mask([1, 2], 2).tolist() == [both is True] * 2
                assert (~(a & b)).mask([1, 2], 2).tolist() == [both is False] * 2
                assert (a | b).mask([1, 2], 2).tolist() == [either is True] * 2
                assert (~(a | b)).mask([1, 2], 2).tolist() == [either is False] * 2

    def test_a_list_may_say_so_for_each_row(self):
        gate = Gate(lambda y: [True, None, False], name="g")
        assert gate.mask([1, 2, 3], 3).tolist() == [True, False, False]
        assert (~gate).mask([1, 2, 3], 3).tolist() == [False, False, True]
        assert not gate([1, 2, 3])
        assert (~gate)([1, 2, 3])


class TestAgrees:
    def test_within_a_tolerance(self):
        chain = fallback(
            tier(lambda x: 2.0 * x, accept=agrees(lambda x: x + 1.0, atol=0.5)), constant(-1.0)
        )
        assert [chain(1.0), chain(1.4), chain(3.0)] == [2.0, 2.8, -1.0]
        assert agrees(lambda x: x, rtol=0.1)(1.05, 1.0)
        assert not agrees(lambda x: x, rtol=0.1)(1.2, 1.0)
        assert agrees(lambda x: math.inf)(math.inf, 1.0)

    def test_row_by_row_with_the_rows_of_the_tier(self):
        asked = []

        def other(x):
            asked.append(x.tolist())
            return np.where(x > 2, x + 1, x)

        chain = fallback(
            tier(lambda x: np.where(x == 0, np.nan, x), accept=finite, name="a"),
            tier(lambda x: np.full(len(x), 7.0), accept=agrees(other), name="b"),
            constant(9.0),
            per_row=True,
        )
        assert chain(np.array([0.0, 1.0, 3.0])).tolist() == [9.0, 1.0, 3.0]
        assert asked == [[0.0]]

    @pytest.mark.parametrize("make", [np.array, torch.tensor, list], ids=["numpy", "torch", "list"])
    def test_labels(self, make):
        small = agrees(
            lambda x: make([[0.2, 0.8], [0.6, 0.4]]), by=lambda p: [row[0] < row[1] for row in p]
        )
        assert small.mask(make([[0.1, 0.9], [0.1, 0.9]]), 2, None).tolist() == [True, False]
        text = agrees(lambda x: ["cat", "dog"])
        assert text.mask(["cat", "cat"], 2, None).tolist() == [True, False]
        assert not agrees(lambda: np.uint8(3), atol=1)(np.uint8(1))
        assert agrees(lambda: np.array([2, 3], np.uint8), atol=1)(np.array([3, 2], np.uint8))
        assert agrees(lambda: "cat")("cat")
        assert not agrees(lambda: "cat")("dog")

    def test_if_the_other_fails_nothing_is_known(self):
        for gate in (agrees(down), agrees(lambda *_: math.nan)):
            assert not gate(1.0, 1.0)
            assert not (~gate)(1.0, 1.0)
            assert (gate | finite)(1.0, 1.0)
        assert agrees(down).mask([1.0], 1, [1]).tolist() == [False]

    def test_it_is_asked_last(self):
        asked = []

        def other(x):
            asked.append(x)
            return x

        gate = agrees(other) & (lambda _: True) & finite
        assert repr(gate) == "agrees(other) & <lambda> & finite"
        assert not gate(math.nan, 1)
        assert not gate.mask([math.nan], 1, [1]).any()
        assert asked == []
        assert gate(1.0, 1.0)
        assert (agrees(other) | finite)(1.0, 5)
        assert asked == [1.0]

    def test_where_no_arguments_come_it_says_so(self):
        with pytest.raises(ConfigurationError, match="give the gate to a tier"):
            agrees(scale)(2.0)

    def test_shapes_that_differ_are_a_mistake(self):
        with pytest.raises(ConfigurationError, match="by=lambda"):
            agrees(lambda x: np.zeros(3))(np.zeros(2), 1)

    def test_wrong_use(self):
        for make in (
            lambda: agrees(3),
            lambda: agrees(ascale),
            lambda: agrees(scale, by=3),
            lambda: agrees(scale, atol=-1),
            lambda: agrees(scale, rtol=math.nan),
            lambda: confidence(0.5, margin=2),
            lambda: Gate(len, arguments=1),
        ):
            with pytest.raises(ConfigurationError):
                make()


@pytest.mark.parametrize("make", [np.array, torch.tensor, list], ids=["numpy", "torch", "list"])
def test_margin(make):
    rows = make([[0.5, 0.3, 0.2], [0.45, 0.4, 0.15], [0.3, 0.3, 0.4]])
    gate = confidence(0.4, margin=0.15)
    assert gate.mask(rows, 3).tolist() == [True, False, False]
    assert gate(rows[0])
    assert not gate(rows[1])
    with pytest.raises(ConfigurationError, match="two classes"):
        gate(make([1.0]))
    assert repr(gate) == "confidence(0.4, margin=0.15)"


def test_gates_are_equal_if_they_are_made_alike():
    assert finite & in_range(0, 1) == finite & in_range(0, 1)
    assert finite & in_range(0, 1) != finite | in_range(0, 1)
    assert len({in_range(0, 1), in_range(0, 1), in_range(0, 2), ~in_range(0, 1)}) == 3
    assert Policy(accept=finite) == pickle.loads(pickle.dumps(Policy(accept=finite)))


def test_a_callable_on_the_left():
    gate = (lambda y: y > 1) & finite
    assert [gate(2.0), gate(1.0)] == [True, False]
    assert ((lambda y: y > 1) | finite)(1.0)


class Batch(list):
    """Rows that can be referred to weakly."""


CALLS = {
    "first tier": lambda: fallback(tier(same, name="a"), constant(0)),
    "second tier": lambda: fallback(tier(down, policy=None), tier(lambda x: 1, name="b")),
    "nobody": lambda: fallback(tier(down, policy=None)),
    "rejected": lambda: fallback(tier(lambda x: math.nan, accept=finite), constant(0)),
    "explained": lambda: fallback(tier(down, policy=None), constant(0)).explain,
    "nested": lambda: (
        fallback(
            tier(fallback(tier(down, policy=None), name="in"), name="out", policy=None), constant(0)
        ).explain
    ),
    "rows": lambda: fallback(
        tier(lambda x: [1.0, math.nan], accept=finite), constant(0.0), per_row=True
    ),
    "rows, nobody": lambda: fallback(
        tier(lambda x: [1.0, math.nan], accept=finite), tier(down, policy=None), per_row=True
    ),
    "rows that do not fit": lambda: fallback(
        tier(lambda x: np.array([1.0, math.nan]), accept=finite),
        tier(lambda x: np.zeros((1, 2)), name="b"),
        constant(0.0),
        per_row=True,
    ),
    "kept": lambda: fallback(tier(lambda x: [1, 2], name="a"), stale(60), per_row=True),
    "stream": lambda: lambda x: list(fallback(tier(items(1, 2), policy=None), constant(0))(x)),
    "stream that breaks off": lambda: (
        lambda x: list(fallback(tier(items(1, fails=True), policy=None), constant(0))(x))
    ),
    "buffer": lambda: (
        lambda x: list(
            fallback(tier(items(1, fails=True), policy=None), constant(0), stream="buffer")(x)
        )
    ),
    "breaker open": lambda: open_chain(),
}


def open_chain():
    breaker = Breaker()
    breaker.trip()
    return fallback(tier(down, policy=Policy(breaker=breaker)), constant(0))


@pytest.mark.parametrize("how", sorted(CALLS))
def test_arguments_are_freed_at_once_and_no_cycle_is_left(how, cycles_left_by):
    call, refs = CALLS[how](), []

    def use():
        batch = Batch([1.0, 2.0])
        refs.append(weakref.ref(batch))
        with contextlib.suppress(AllTiersFailedError, ConnectionError):
            call(batch)
        del batch
        assert refs[-1]() is None

    assert cycles_left_by(use) == 0


@pytest.mark.parametrize("per_row", [False, True])
def test_a_wrong_call_is_heard_of_and_goes_out(per_row):
    def wrong(x):
        raise ConfigurationError("f(x)", x, "another")

    with provenance() as p, pytest.raises(ConfigurationError):
        fallback(wrong, constant(1), per_row=per_row)([1])
    assert (p.answers, p.tier, p.tier_counts) == (1, None, {})


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
@pytest.mark.parametrize("per_row", [False, True])
def test_what_is_no_exception_goes_out_and_is_no_answer(error, per_row):
    def stopped(x):
        raise error

    async def astopped(x):
        raise error

    breaker = Breaker(min_calls=1, window=1)
    chain = fallback(tier(stopped, policy=Policy(breaker=breaker)), constant(1), per_row=per_row)
    with provenance() as p, pytest.raises(error):
        chain([1])
    with pytest.raises(error):
        chain([1])
    assert (p.answers, breaker.state) == (0, "closed")
    if error is asyncio.CancelledError:

        async def main():
            with pytest.raises(error):
                await fallback(astopped, constant(1), per_row=per_row)([1])

        asyncio.run(main())
