"""The traps again where they are deeper: streams that are read as a whole, windows of time, hedges after a quantile of
what was observed, and breakers that share their state. As in `test_traps`, each check fails on a naive form.
"""

from __future__ import annotations

import asyncio
import random
import threading
from contextlib import suppress
from functools import wraps

import pytest

from mlkit._clock import current, replaced
from mlkit.resilience import (
    Breaker,
    Budget,
    FileStorage,
    Hedge,
    MemoryStorage,
    Policy,
    Retry,
    fallback,
    seconds,
    tier,
)
from mlkit.testing import virtual_time

AGAIN = Retry(3, backoff=0, budget=None)


def catches(check, naive):
    """Assert that *check* fails on the naive form."""
    with pytest.raises(AssertionError):
        check(naive)


def virtually(main):
    with virtual_time(start=0.0, grace=0.0) as clock:
        return clock.run(main())


# --- streams that are read as a whole --------------------------------------------------------------------------------


def breaks_off(after, failures):
    """Return a generator function that gives some items and breaks off, so many times; then it gives four."""
    opened = []

    def stream():
        opened.append(1)
        yield from range(4)[: after if len(opened) <= failures else 4]
        if len(opened) <= failures:
            raise ConnectionError

    return stream


def as_async(stream):
    @wraps(stream)
    async def astream():
        for item in stream():
            yield item

    return astream


def read(guarded):
    """Return the items and whether it failed, of a plain or an async generator function."""
    got = []

    async def main():
        async for item in guarded():
            got.append(item)

    try:
        stream = guarded()
        if hasattr(stream, "__aiter__"):
            virtually(main)
        else:
            got += stream
    except (ConnectionError, ExceptionGroup):
        return got, True
    return got, False


@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize("kind", ["plain", "async"])
def test_trap_16_a_buffer_that_is_filled_again_holds_items_twice(kind, after):
    def check(wrap):
        stream = breaks_off(after, failures=2)
        assert read(wrap(stream)) == ([0, 1, 2, 3], False)

    def ours(stream):
        return Policy(retry=AGAIN, stream="buffer")(as_async(stream) if kind == "async" else stream)

    def naive(stream):
        def guarded():
            items = []
            for _ in range(3):
                with suppress(ConnectionError):
                    items.extend(stream())  # what came before the failure stays
                    break
            yield from items

        return guarded

    check(ours)
    catches(check, naive)


@pytest.mark.parametrize("kind", ["plain", "async"])
@pytest.mark.parametrize("mode", ["open", "buffer"])
def test_trap_18_the_answer_of_one_model_goes_on_with_that_of_another(mode, kind):
    def big():
        yield "The"
        yield "answer"
        raise ConnectionError

    def small():
        yield "Ask again."

    def check(make):
        got, failed = read(make(big, small))
        # A whole answer of one model, or a beginning that is said to be no more than that.
        assert (got, failed) in ((["Ask again."], False), (["The", "answer"], True))
        assert failed == (mode == "open")

    def ours(*streams):
        return fallback(*(as_async(s) if kind == "async" else s for s in streams), stream=mode)

    def goes_on(*streams):
        def guarded():
            for stream in streams:
                try:
                    yield from stream()
                except ConnectionError:
                    continue
                return

        return guarded

    def truncated(*streams):
        def guarded():
            with suppress(ConnectionError):
                yield from streams[0]()

        return guarded

    check(ours)
    catches(check, goes_on)
    catches(check, truncated)


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_trap_17_a_buffered_stream_that_breaks_off_was_counted_as_a_success(kind):
    def check(make):
        breaker = Breaker(min_calls=1, window=1)
        read(make(breaker, breaks_off(2, failures=9)))
        assert breaker.state == "open"

    def ours(breaker, stream):
        wrap = Policy(breaker=breaker, stream="buffer")
        return wrap(as_async(stream) if kind == "async" else stream)

    def opening_counts(breaker, stream):
        def guarded():
            ticket = breaker.acquire()
            opened = stream()
            first = next(opened)
            breaker.settle(ticket, True)
            yield first
            yield from opened

        return guarded

    check(ours)
    catches(check, opening_counts)


# --- windows of time -------------------------------------------------------------------------------------------------


class Adjusted:
    """A machine whose administrator sets the time."""

    def __init__(self):
        self.seconds, self.offset = 0.0, 1e9

    def monotonic(self):
        return self.seconds

    def time(self):
        return self.seconds + self.offset


class NaiveWindow:
    """Counts the failures of the last ten seconds, three of which open it."""

    def __init__(self):
        self.failures, self.open = [], False

    def now(self):
        return current().monotonic()

    def fail(self):
        now = self.now()
        self.failures = [at for at in self.failures if now - at < 10.0]
        self.failures.append(now)
        self.open = self.open or len(self.failures) >= 3


class OurWindow:
    def __init__(self):
        self.breaker = Breaker(window=seconds(10), min_calls=3, failure_rate=1.0)

    def fail(self):
        self.breaker.settle(self.breaker.acquire(), False)

    @property
    def open(self):
        return self.breaker.state == "open"


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_trap_21_a_window_of_time_goes_by_the_wall_clock(step):
    def forgets(make):
        clock = Adjusted()
        with replaced(clock):
            window = make()
            window.fail()
            window.fail()
            clock.offset += step
            clock.seconds += 11.0
            window.fail()
            assert not window.open, "failures of eleven seconds ago are counted"

    def remembers(make):
        clock = Adjusted()
        with replaced(clock):
            window = make()
            window.fail()
            window.fail()
            clock.offset += step
            clock.seconds += 1.0
            window.fail()
            assert window.open, "failures of a second ago are forgotten"

    class Wall(NaiveWindow):
        def now(self):
            return current().time()

    for check in (forgets, remembers):
        check(OurWindow)
        check(NaiveWindow)
    catches(forgets if step < 0 else remembers, Wall)


def test_trap_21_a_window_is_emptied_as_a_whole():
    """Failures on both sides of a boundary never meet, if a window starts anew instead of sliding."""

    def check(make):
        with virtual_time(start=0.0) as clock:
            window = make()
            for at in (8.0, 9.5, 11.0):
                clock.advance(at - clock.monotonic())
                window.fail()
            assert window.open

    class Tumbling(NaiveWindow):
        began = 0.0

        def fail(self):
            if self.now() - self.began >= 10.0:
                self.began, self.failures = self.now(), []
            super().fail()

    check(OurWindow)
    check(NaiveWindow)
    catches(check, Tumbling)


# --- hedges after a quantile of what was observed --------------------------------------------------------------------


def naive_hedge(*, settle, start=None, notes="winner"):
    """Return a hedge after the 95th percentile of the last 256 durations, done by hand.

    Args:
        settle: Awaited with the tasks that lost.
        start: Seconds to wait as long as nothing is known, or None for no hedge.
        notes: Whose duration is remembered: that of the "winner", from its own start, or of the first attempt.
    """

    def wrap(fn):
        kept = []

        async def timed():
            began = current().monotonic()
            await fn()
            return current().monotonic() - began

        async def guarded():
            seen = sorted(kept[-256:])
            wait = seen[int(0.95 * len(seen))] if len(seen) >= 32 else start
            tasks = [asyncio.create_task(timed())]
            done, _ = await asyncio.wait(tasks, timeout=wait)
            if not done:
                tasks.append(asyncio.create_task(timed()))
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await settle([task for task in tasks if task not in done])
            kept.append(done.pop().result() if notes == "winner" else 1.0)

        return guarded

    return wrap


async def cancel(losers):
    for task in losers:
        task.cancel()
    await asyncio.gather(*losers, return_exceptions=True)


def test_trap_26_a_hedge_learns_from_the_winners_alone_and_hedges_ever_more():
    """Who loses is slow. Leave the slow out, and the quantile of the rest falls, more are hedged, more are left out."""

    def check(wrap):
        async def main():
            draw, attempts, n = random.Random(5), [0], 3_000

            async def work():
                attempts[0] += 1
                await asyncio.sleep(draw.expovariate(100.0))

            guarded = wrap(work)
            for _ in range(n):
                await guarded()
            assert attempts[0] <= 1.08 * n

        virtually(main)

    check(Policy(hedge=Hedge("p95"), retry=Retry(1, budget=None)))
    catches(check, naive_hedge(settle=cancel))


def test_trap_26_a_quantile_from_good_times_doubles_the_load_of_bad_ones():
    def check(wrap):
        async def main():
            slow, attempts = [0.01], [0]

            async def work():
                attempts[0] += 1
                await asyncio.sleep(slow[0])

            guarded = wrap(work)
            for _ in range(64):
                await guarded()
            attempts[0], slow[0] = 0, 1.0
            for _ in range(100):
                await guarded()
            assert attempts[0] <= 1.1 * 100 + 10

        virtually(main)

    check(Policy(hedge=Hedge("p95")))
    check(Policy(hedge=Hedge("p95"), retry=Retry(1, budget=Budget(0.0, 5))))
    catches(check, naive_hedge(settle=cancel, notes="first"))


@pytest.mark.parametrize("moment", [0.5, 5.0])
def test_trap_26_a_caller_that_is_cancelled_leaves_nobody_behind(moment):
    """Before the hedge has started, and after; once a quantile is known."""

    def check(wrap):
        async def main():
            slow = [1.0]

            async def work():
                await asyncio.sleep(slow[0])

            guarded = wrap(work)
            for _ in range(40):
                await guarded()
            slow[0] = 3600.0
            task = asyncio.create_task(guarded())
            await asyncio.sleep(moment)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            left = asyncio.all_tasks() - {asyncio.current_task()}
            try:
                assert not left
            finally:
                await cancel(left)

        virtually(main)

    check(Policy(hedge=Hedge("p95")))
    catches(check, naive_hedge(settle=cancel))


def test_trap_26_losers_are_cancelled_and_not_awaited():
    """A connection that is given back while the loser still writes to it."""

    def check(wrap):
        async def main():
            running, slow = [0], [0.01]

            async def work():
                running[0] += 1
                try:
                    await asyncio.sleep(slow[0])
                    slow[0] = 0.01
                finally:
                    try:
                        await asyncio.sleep(0.1)  # says goodbye
                    finally:
                        running[0] -= 1

            guarded = wrap(work)
            for _ in range(40):
                await guarded()
            slow[0] = 1.0
            await guarded()
            try:
                assert running == [0]
            finally:
                await cancel(asyncio.all_tasks() - {asyncio.current_task()})

        virtually(main)

    async def only_cancel(losers):
        for task in losers:
            task.cancel()

    check(Policy(hedge=Hedge("p95")))
    catches(check, naive_hedge(settle=only_cancel))


# --- breakers that share their state ---------------------------------------------------------------------------------


class StoredBreaker:
    """The state in a store, and everything else in the object: what each test breaks is a method of a subclass."""

    cooldown = 10.0

    def __init__(self, store):
        self.store = store
        self.store.setdefault("state", ("closed", 0.0))
        self.lock, self.permits = threading.Lock(), 1

    def trip(self):
        self.store["state"] = ("open", current().monotonic() + self.cooldown)

    def acquire(self):
        state, until = self.store["state"]
        if state == "closed":
            return "ticket"
        if current().monotonic() < until:
            return None
        with self.lock:
            admitted, self.permits = self.permits > 0, 0
        return "ticket" if admitted else None

    def settle(self, ticket, ok):
        if ok:
            self.store["state"] = ("closed", 0.0)
        else:
            self.trip()


@pytest.fixture(params=["memory", "file"])
def sharing(request, tmp_path):
    """Return what makes breakers of one state, on each storage that we ship."""
    storage = MemoryStorage() if request.param == "memory" else FileStorage(tmp_path, refresh=0)

    def make(**settings):
        return Breaker(
            name="shared", min_calls=1, window=1, cooldown=10.0, storage=storage, **settings
        )

    return make


def stored(kind):
    """Return what makes naive breakers of one store."""
    store = {}
    return lambda: kind(store)


def test_trap_24_one_that_is_made_later_resets_what_is_stored(sharing):
    def check(make):
        with virtual_time():
            first = make()
            first.trip()
            second = make()
            assert second.acquire() is None
            assert first.acquire() is None

    class Resets(StoredBreaker):
        def __init__(self, store):
            super().__init__(store)
            store["state"] = ("closed", 0.0)

    check(sharing)
    check(stored(StoredBreaker))
    catches(check, stored(Resets))


def test_trap_24_a_rejection_writes_the_time_of_opening_again(sharing):
    """Then it stays open for as long as anybody asks."""

    def check(make):
        with virtual_time() as clock:
            first, second = make(), make()
            first.trip()
            for _ in range(10):
                assert second.acquire() is None
                clock.advance(1.0)
            assert second.acquire() is not None

    class Rewrites(StoredBreaker):
        def acquire(self):
            ticket = super().acquire()
            if ticket is None:
                self.trip()
            return ticket

    check(sharing)
    check(stored(StoredBreaker))
    catches(check, stored(Rewrites))


def test_trap_24_a_second_failure_writes_the_time_of_opening_again(sharing):
    """A call that was under way when another process opened it fails as well, and is a verdict on the era before."""

    def check(make):
        with virtual_time() as clock:
            first, second = make(), make()
            late = second.acquire()
            first.settle(first.acquire(), False)
            clock.advance(9.0)
            assert second.acquire() is None
            second.settle(late, False)
            clock.advance(1.0)
            assert first.acquire() is not None

    check(sharing)
    catches(check, stored(StoredBreaker))


def test_trap_24_each_process_has_a_lock_and_probes_of_its_own(sharing):
    def check(make):
        with virtual_time() as clock:
            breakers = [make() for _ in range(4)]
            breakers[0].trip()
            clock.advance(10.0)
            probes = [breaker.acquire() for breaker in breakers]
            assert sum(probe is not None for probe in probes) == 1

    check(sharing)
    catches(check, stored(StoredBreaker))


def test_trap_24_the_probe_of_a_process_that_died_wedges_all_others(sharing):
    def check(make):
        with virtual_time() as clock:
            first, second = make(), make()
            first.trip()
            clock.advance(10.0)
            assert first.acquire() is not None
            del first  # was killed; nobody settles its probe
            clock.advance(10.0)
            assert second.acquire() is not None

    class Stored(StoredBreaker):
        """Permits are stored as well, without an end."""

        def acquire(self):
            state, until = self.store["state"]
            if state == "open" and current().monotonic() >= until:
                self.store["state"] = ("half_open", 0.0)
                return "ticket"
            return "ticket" if state == "closed" else None

    check(sharing)
    catches(check, stored(Stored))


def test_trap_24_a_store_that_is_down_takes_the_service_with_it():
    def check(make):
        down = [False]

        class Store(dict):
            def __getitem__(self, key):
                if down[0]:
                    raise ConnectionError("no store")
                return super().__getitem__(key)

        class Storage:
            refresh = 0.0

            def __init__(self):
                self.store = Store()

            def read(self, name):
                return self.store[name] if name in self.store else None

            def swap(self, name, old, new):
                if self.read(name) != old:
                    return False
                self.store[name] = new
                return True

        guarded = make(Storage())
        down[0] = True
        try:
            assert guarded() == "answer"
        except ConnectionError as error:
            raise AssertionError(error) from error

    def ours(storage):
        breaker = Breaker(name="shared", storage=storage)
        breaker.reset()
        return fallback(tier(lambda: "answer", policy=Policy(breaker=breaker)))

    def naive(storage):
        breaker = StoredBreaker(storage.store)

        def guarded():
            return "answer" if breaker.acquire() else None

        return guarded

    check(ours)
    catches(check, naive)


def test_trap_01_a_lock_is_held_while_the_store_is_asked():
    """A slow store must not make calls wait for one another."""

    def check(make, patience=60.0):
        inside = threading.Barrier(4)

        class Slow(dict):
            def get(self, key, default=None):
                with suppress(threading.BrokenBarrierError):
                    inside.wait(patience)
                return super().get(key, default)

        acquire = make(Slow())
        threads = [threading.Thread(target=acquire, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not inside.broken, "they asked the store one after another"

    def ours(store):
        class Storage:
            refresh = 0.0

            def read(self, name):
                return store.get(name)

            def swap(self, name, old, new):
                return True

        return Breaker(name="shared", storage=Storage()).acquire

    def naive(store):
        lock = threading.Lock()

        def acquire():
            with lock:
                return store.get("state")

        return acquire

    check(ours)
    catches(lambda naive: check(naive, patience=0.5), naive)
