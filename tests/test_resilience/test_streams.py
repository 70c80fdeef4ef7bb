"""Generators and async generators under a policy: opened or read as a whole, and never replayed."""

from __future__ import annotations

import asyncio
import gc
import inspect

import pytest

from mlkit._clock import current
from mlkit.errors import BulkheadFullError, ConfigurationError, ResultRejectedError
from mlkit.resilience import Breaker, Policy, Retry, deadline, remaining
from mlkit.testing import virtual_time

AGAIN = Retry(3, backoff=0, budget=None)


def run(main):
    with virtual_time() as clock:
        return clock.run(main())


def breaks_at(at, failures=1):
    """Fails before item *at* so many times, then gives four items."""
    opened = []

    def stream():
        opened.append(1)
        for item in range(4):
            if item == at and len(opened) <= failures:
                raise ConnectionError(f"before item {item}")
            yield item
        return "value"

    async def astream():
        opened.append(1)
        for item in range(4):
            if item == at and len(opened) <= failures:
                raise ConnectionError(f"before item {item}")
            yield item

    return stream, astream, opened


async def collect(stream):
    return [item async for item in stream]


@pytest.mark.parametrize("at", range(4))
def test_buffer_is_all_or_nothing(at):
    stream, _, opened = breaks_at(at)
    assert list(Policy(retry=AGAIN, stream="buffer")(stream)()) == [0, 1, 2, 3]
    assert len(opened) == 2
    _, astream, opened = breaks_at(at)
    assert run(lambda: collect(Policy(retry=AGAIN, stream="buffer")(astream)())) == [0, 1, 2, 3]
    assert len(opened) == 2
    stream, _, _ = breaks_at(at, failures=9)
    got = []
    with pytest.raises(ConnectionError):
        got.extend(Policy(retry=AGAIN, stream="buffer")(stream)())
    assert got == []


@pytest.mark.parametrize("at", range(1, 4))
def test_open_hands_out_what_there_was_and_never_replays(at):
    for mode in ({}, {"stream": "open"}):
        stream, astream, opened = breaks_at(at)
        got = []
        with pytest.raises(ConnectionError):
            got.extend(Policy(retry=AGAIN, **mode)(stream)())
        assert (got, len(opened)) == (list(range(at)), 1)
        opened.clear()
        got = []

        async def main(astream=astream, got=got, mode=mode):
            async for item in Policy(retry=AGAIN, **mode)(astream)():
                got.append(item)

        with pytest.raises(ConnectionError):
            run(main)
        assert (got, len(opened)) == (list(range(at)), 1)


def test_the_mode_is_in_the_repr_and_checked():
    assert repr(Policy(stream="buffer")) == "<Policy: stream('buffer')>"
    assert "stream('open')" in repr(Policy(stream="open", retry=2))
    with pytest.raises(ConfigurationError, match="'open' or 'buffer'"):
        Policy(stream="bufer")


def test_the_value_of_a_buffered_generator_stays():
    stream, _, _ = breaks_at(9)

    def outer():
        return (yield from Policy(stream="buffer")(stream)())

    got = outer()
    assert [next(got) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(StopIteration, match="value"):
        next(got)


def test_a_whole_stream_can_be_judged():
    stream, _, _ = breaks_at(9)
    short = Policy(stream="buffer", accept=lambda opened: len(opened.items) < 3)(stream)
    with pytest.raises(ResultRejectedError):
        list(short())


def test_a_failure_midway_is_one_more_verdict_and_an_early_break_is_none():
    breaker = Breaker(min_calls=100)
    stream, _, _ = breaks_at(2, failures=99)
    guarded = Policy(breaker=breaker)(stream)
    next(guarded())
    assert breaker.stats()[2:4] == (1, 0)
    for item in guarded():
        if item:
            break
    assert breaker.stats()[2:4] == (2, 0)
    with pytest.raises(ConnectionError):
        list(guarded())
    assert breaker.stats()[2:4] == (4, 1)


def test_a_bulkhead_counts_streams_while_they_are_read():
    policy = Policy(bulkhead=1)

    @policy
    def stream(n):
        yield from range(n)

    unstarted = stream(3)
    one = stream(3)
    assert next(one) == 0
    with pytest.raises(BulkheadFullError):
        next(stream(3))
    assert list(one) == [1, 2]
    two = stream(3)
    next(two)
    two.close()
    three = stream(3)
    next(three)
    with pytest.raises(ZeroDivisionError):
        three.throw(ZeroDivisionError)
    four = stream(3)
    next(four)
    del four  # nobody closed it
    gc.collect()
    assert list(stream(0)) == []
    assert next(unstarted) == 0


def test_a_bulkhead_counts_async_streams_while_they_are_read():
    policy = Policy(bulkhead=1)

    @policy
    async def stream(n):
        for item in range(n):
            yield item
            await asyncio.sleep(0)

    async def main():
        one = stream(3)
        assert await anext(one) == 0
        with pytest.raises(BulkheadFullError):
            await anext(stream(3))
        assert [item async for item in one] == [1, 2]
        two = stream(3)
        await anext(two)
        await two.aclose()
        assert [item async for item in stream(2)] == [0, 1]
        three = stream(3)
        await anext(three)
        with pytest.raises(ZeroDivisionError):
            await three.athrow(ZeroDivisionError)
        assert [item async for item in stream(2)] == [0, 1]

    run(main)


def test_an_opening_that_fails_gives_its_place_back():
    stream, _, _ = breaks_at(0, failures=5)
    guarded = Policy(bulkhead=1)(stream)
    for _ in range(5):
        with pytest.raises(ConnectionError):
            next(guarded())
    assert list(guarded()) == [0, 1, 2, 3]


def test_send_throw_and_close_reach_an_async_stream():
    log = []

    @Policy(retry=2)
    async def echo():
        heard = None
        try:
            while True:
                try:
                    heard = yield heard
                except KeyError as error:
                    heard = repr(error)
        finally:
            await asyncio.sleep(0)
            log.append("closed")

    async def main():
        stream = echo()
        assert inspect.isasyncgen(stream)
        assert await anext(stream) is None
        assert await stream.asend("a") == "a"
        assert await stream.athrow(KeyError("k")) == "KeyError('k')"
        assert await stream.asend("b") == "b"
        await stream.aclose()
        assert log == ["closed"]
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        other = echo()
        await anext(other)
        with pytest.raises(ZeroDivisionError):
            await other.athrow(ZeroDivisionError())
        assert log == ["closed"] * 2

    run(main)


def test_what_is_sent_to_a_buffered_stream_is_refused_not_lost():
    stream, astream, _ = breaks_at(9)
    made = Policy(stream="buffer")(stream)()
    next(made)
    with pytest.raises(ConfigurationError, match="stream='open' lets it hear"):
        made.send("x")

    async def main():
        made = Policy(stream="buffer")(astream)()
        await anext(made)
        with pytest.raises(ConfigurationError, match="stream='open' lets it hear"):
            await made.asend("x")

    run(main)


def test_a_cancelled_reader_closes_the_stream_and_is_no_verdict():
    closed = []
    breaker = Breaker(min_calls=1, window=5)

    @Policy(breaker=breaker, bulkhead=1)
    async def stream():
        try:
            yield 1
            await current().asleep(100)
        finally:
            closed.append(1)

    async def read():
        async for _ in stream():
            pass

    async def main():
        for _ in range(2):
            task = asyncio.create_task(read())
            await current().asleep(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert closed == [1, 1]
        assert breaker.stats()[2:4] == (2, 0)

    run(main)


def test_the_deadline_of_the_opening_ends_with_it():
    @Policy(timeout=1.0)
    def stream():
        yield remaining()
        yield remaining()

    with virtual_time() as clock:
        got = stream()
        assert next(got) == 1.0
        clock.advance(50)
        with deadline(3.0):
            assert next(got) == 3.0


def test_arguments_are_not_kept_by_a_stream_that_is_being_read():
    import weakref

    class Batch(list):
        pass

    @Policy(bulkhead=2, retry=2)
    def stream(batch):
        del batch
        yield 1
        yield 2

    batch = Batch()
    ref = weakref.ref(batch)
    got = stream(batch)
    next(got)
    del batch
    assert ref() is None
    got.close()
