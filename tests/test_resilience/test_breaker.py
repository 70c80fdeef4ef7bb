"""The breaker against a plain model, and the traps that other breakers fall into."""

from __future__ import annotations

import pickle
import sys
import threading

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlkit import telemetry
from mlkit.errors import BreakerOpenError, ConfigurationError
from mlkit.resilience import Breaker, Policy, Retry, seconds
from mlkit.testing import record_events, virtual_time


class ModelOfBreaker:
    """The documented behaviour in the plainest words: lists, no cleverness. A verdict is (failed, slow)."""

    def __init__(self, *, rate, slow_rate, min_calls, window, cooldown, probes, lease):
        self.rate, self.slow_rate, self.min_calls, self.window = rate, slow_rate, min_calls, window
        self.cooldown, self.probes, self.lease = cooldown, probes, lease
        self.to("closed")

    def to(self, state, now=0.0):
        self.state, self.entered = state, now
        self.history, self.live, self.results = [], {}, []

    def acquire(self, now, number):
        if self.state == "open" and now >= self.entered + self.cooldown:
            self.to("half_open", now)
        if self.state == "half_open":
            self.live = {n: end for n, end in self.live.items() if end > now}
            if len(self.live) + len(self.results) < self.probes:
                self.live[number] = now + self.lease
                return True
        return self.state in {"closed", "disabled"}

    def seen(self, now):
        """What is in the window."""
        if isinstance(self.window, int):
            return [verdict for _, verdict in self.history[-self.window :]]
        width = self.window.length / 20
        return [v for at, v in self.history if int(now / width) - int(at / width) < 20]

    def too_many(self, verdicts, n):
        failed = sum(verdict[0] for verdict in verdicts)
        slow = sum(verdict[1] for verdict in verdicts)
        return failed / n >= self.rate or slow / n >= self.slow_rate

    def settle(self, number, verdict, now):
        """The caller drops tickets of other eras."""
        if self.state == "closed" and verdict is not None:
            self.history.append((now, verdict))
            seen = self.seen(now)
            if any(verdict) and len(seen) >= self.min_calls and self.too_many(seen, len(seen)):
                self.to("open", now)
        elif self.state == "half_open" and number in self.live:
            del self.live[number]
            if verdict is not None:
                self.results.append(verdict)
                worst = [*self.results, *[(True, True)] * (self.probes - len(self.results))]
                if self.too_many(self.results, self.probes):
                    self.to("open", now)
                elif not self.too_many(worst, self.probes):
                    self.to("closed", now)


class BreakerAgainstModel(RuleBasedStateMachine):
    @initialize(
        rates=st.tuples(
            st.sampled_from([0.1, 0.3, 0.5, 0.75, 1.0]), st.sampled_from([0.1, 0.5, 1.0])
        ),
        window=st.integers(1, 6) | st.sampled_from([seconds(10), seconds(3)]),
        probes=st.integers(1, 4),
        lease=st.sampled_from([None, 1.0, 7.0]),
        data=st.data(),
    )
    def make(self, rates, window, probes, lease, data):
        rate, slow_rate = rates
        self.manager = virtual_time()
        self.clock = self.manager.__enter__()
        min_calls = data.draw(st.integers(1, window if isinstance(window, int) else 6))
        self.breaker = Breaker(
            failure_rate=rate,
            min_calls=min_calls,
            window=window,
            cooldown=5.0,
            probes=probes,
            probe_lease=lease,
            slow=1.0,
            slow_rate=slow_rate,
        )
        self.model = ModelOfBreaker(
            rate=rate,
            slow_rate=slow_rate,
            min_calls=min_calls,
            window=window,
            cooldown=5.0,
            probes=probes,
            lease=lease or 5.0,
        )
        self.era, self.number = 0, 0
        self.tickets = []  # (number, era, ticket)

    def teardown(self):
        if hasattr(self, "manager"):
            self.manager.__exit__(None, None, None)

    def watch(self, act):
        before = self.model.state
        result = act()
        self.era += self.model.state != before
        return result

    @rule()
    def call(self):
        self.number += 1
        now = self.clock.monotonic()
        admitted = self.watch(lambda: self.model.acquire(now, self.number))
        ticket = self.breaker.acquire()
        assert (ticket is not None) == admitted
        if ticket is not None:
            self.tickets.append((self.number, self.era, ticket))

    @precondition(lambda self: self.tickets)
    @rule(
        which=st.integers(0, 50),
        ok=st.sampled_from([True, True, False, False, None]),
        slow=st.sampled_from([False, False, True]),
    )
    def end(self, which, ok, slow):
        number, era, ticket = self.tickets.pop(which % len(self.tickets))
        self.breaker.settle(ticket, ok, duration=1.0 if slow else 0.5)
        if era == self.era:
            now = self.clock.monotonic()
            verdict = None if ok is None else (not ok, slow)
            self.watch(lambda: self.model.settle(number, verdict, now))

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 4.0, 5.0, 30.0]))
    def wait(self, seconds):
        self.clock.advance(seconds)

    @rule()
    def trip(self):
        self.breaker.trip()
        self.era += 1
        self.model.to("open", self.clock.monotonic())

    @rule()
    def reset(self):
        self.breaker.reset()
        self.era += 1
        self.model.to("closed")

    @rule(how=st.sampled_from(["isolate", "disable"]))
    def force(self, how):
        getattr(self.breaker, how)()
        self.era += 1
        self.model.to(how + "d")

    @invariant()
    def same_state(self):
        if hasattr(self, "model"):
            assert self.breaker.state == self.model.state
            stats = self.breaker.stats()
            assert stats.era == self.era
            seen = self.model.seen(self.clock.monotonic()) or self.model.results
            failed, slow = sum(v[0] for v in seen), sum(v[1] for v in seen)
            assert stats[2:5] == (len(seen), failed, slow)


TestBreakerAgainstModel = BreakerAgainstModel.TestCase


def opened(**settings):
    breaker = Breaker(min_calls=1, window=1, cooldown=10.0, **settings)
    breaker.settle(breaker.acquire(), False)
    assert breaker.state == "open"
    return breaker


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("failure_rate", 0),
        ("failure_rate", 1.5),
        ("failure_rate", float("nan")),
        ("failure_rate", True),
        ("min_calls", 0),
        ("min_calls", 2.0),
        ("min_calls", 101),
        ("window", 0),
        ("window", True),
        ("window", 30.0),
        ("slow_rate", 0),
        ("cooldown", 0),
        ("cooldown", float("inf")),
        ("cooldown", "30"),
        ("probes", 0),
        ("probe_lease", -1),
        ("slow", 0),
        ("ignore", "ValueError"),
        ("ignore", (ValueError, KeyboardInterrupt)),
        ("name", ""),
        ("name", 7),
    ],
)
def test_a_wrong_setting_is_named(argument, value):
    with pytest.raises(ConfigurationError, match=rf"Breaker\({argument}=\.\.\.\)"):
        Breaker(**{argument: value})


def test_settle_takes_only_tickets_and_verdicts():
    breaker = Breaker()
    with pytest.raises(ConfigurationError, match="acquire"):
        breaker.settle("ticket", True)
    with pytest.raises(ConfigurationError, match="True, False or None"):
        breaker.settle(breaker.acquire(), 1)


def test_events_tell_each_change_of_state_once():
    with virtual_time() as clock, record_events("resilience.") as events:
        breaker = Breaker(min_calls=2, window=4, cooldown=10.0, name="ranker")
        for _ in range(2):
            breaker.settle(breaker.acquire(), False)
        assert breaker.acquire() is None
        clock.advance(10.0)
        breaker.settle(breaker.acquire(), True)
    assert [(event.kind, event.name) for event in events] == [
        ("resilience.breaker.opened", "ranker"),
        ("resilience.breaker.half_open", "ranker"),
        ("resilience.breaker.closed", "ranker"),
    ]
    assert events[0].fields["failures"] == 2
    assert events[0].fields["calls"] == 2


def test_a_hung_probe_does_not_wedge_it():
    with virtual_time() as clock:
        breaker = opened(probe_lease=3.0)
        clock.advance(10.0)
        hung = breaker.acquire()
        assert hung is not None
        assert breaker.acquire() is None
        assert breaker.stats().retry_after == pytest.approx(3.0)
        clock.advance(3.0)
        second = breaker.acquire()
        assert second is not None
        breaker.settle(hung, False)  # its permit was given to another: no verdict
        assert breaker.state == "half_open"
        breaker.settle(second, True)
        assert breaker.state == "closed"


def test_looking_changes_nothing():
    with virtual_time() as clock:
        breaker = opened(probe_lease=3.0)
        clock.advance(10.0)
        probe = breaker.acquire()
        clock.advance(3.0)
        assert breaker.stats().retry_after is None
        assert breaker.blocked() is None
        breaker.settle(probe, True)  # late, but nobody else had asked
        assert breaker.state == "closed"


def test_a_stale_probe_of_an_earlier_half_open_era_decides_nothing():
    with virtual_time() as clock:
        breaker = opened(probes=2, failure_rate=0.5)
        clock.advance(10.0)
        early, other = breaker.acquire(), breaker.acquire()
        breaker.settle(other, False)
        assert breaker.state == "open"
        clock.advance(10.0)
        assert breaker.acquire() is not None
        breaker.settle(early, True)
        assert breaker.stats().calls == 0
        assert breaker.state == "half_open"


def test_a_late_success_of_a_closed_era_does_not_close_it():
    with virtual_time():
        breaker = Breaker(min_calls=1, window=1)
        late = breaker.acquire()
        breaker.settle(breaker.acquire(), False)
        breaker.settle(late, True)
        assert breaker.state == "open"


def test_a_late_failure_of_a_closed_era_does_not_open_it_again():
    with virtual_time() as clock:
        breaker = Breaker(min_calls=1, window=1, cooldown=10.0)
        late = breaker.acquire()
        breaker.settle(breaker.acquire(), False)
        clock.advance(9.0)
        breaker.settle(late, False)
        assert breaker.stats().era == 1
        clock.advance(1.0)
        assert breaker.acquire() is not None


@pytest.mark.parametrize("ended", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_probe_that_ends_in_a_base_exception_is_no_verdict(ended):
    with virtual_time() as clock:
        breaker = opened()
        clock.advance(10.0)

        def probe():
            raise ended

        with pytest.raises(ended):
            Policy(breaker=breaker).call(probe)
        assert breaker.state == "half_open"
        assert Policy(breaker=breaker).call(lambda: 7) == 7
        assert breaker.state == "closed"


def test_ignored_errors_are_no_verdict():
    breaker = Breaker(min_calls=1, window=1, ignore=ValueError)
    with pytest.raises(ValueError):
        Policy(breaker=breaker).call(int, "x")
    assert breaker.state == "closed"
    with pytest.raises(TypeError):
        Policy(breaker=breaker).call(int, None)
    assert breaker.state == "open"


def test_a_slow_success_counts_as_a_failure():
    with virtual_time() as clock:
        breaker = Breaker(min_calls=2, window=2, slow=1.0)
        policy = Policy(breaker=breaker)
        policy.call(clock.sleep, 0.5)
        assert breaker.stats().slow == 0
        policy.call(clock.sleep, 1.0)
        assert breaker.state == "open"


def test_rejections_are_fresh_errors_with_a_time_to_come_back():
    with virtual_time() as clock:
        breaker = opened(name="ranker")
        clock.advance(4.0)
        errors = []
        for _ in range(50):
            with pytest.raises(BreakerOpenError, match="ranker") as info:
                Policy(breaker=breaker).call(lambda: 1)
            errors.append(info.value)
        assert errors[0].retry_after == pytest.approx(6.0)
        assert len({id(error) for error in errors}) == 50
        depth, trace = 0, errors[-1].__traceback__
        while trace is not None:
            depth, trace = depth + 1, trace.tb_next
        assert depth < 10
        again = pickle.loads(pickle.dumps(errors[0]))
        assert again.retry_after == pytest.approx(6.0)


def test_an_inner_rejection_is_no_failure_of_the_outer_breaker():
    outer = Breaker(min_calls=1, window=1)
    with virtual_time():
        inner = Policy(breaker=opened())(lambda: 1)
        with pytest.raises(BreakerOpenError):
            Policy(breaker=outer).call(inner)
    assert outer.state == "closed"


def test_a_breaker_is_shared_by_passing_it_and_takes_the_first_name():
    breaker = Breaker(min_calls=2, window=2)

    def failing():
        raise OSError

    one, other = Policy(breaker=breaker)(failing), Policy(breaker=breaker)(failing)
    for call in (one, other):
        with pytest.raises(OSError):
            call()
    assert breaker.state == "open"
    assert breaker.name == "failing"


def test_a_pickled_breaker_is_fresh():
    copy = pickle.loads(pickle.dumps(opened(name="ranker", ignore=(ValueError,))))
    assert (copy.state, copy.name) == ("closed", "ranker")
    assert copy.stats().calls == 0


def test_it_reports_its_state_when_asked():
    breaker = opened(name="asked-for-its-state")
    samples = {
        sample.labels: sample.value
        for sample in telemetry.collect()
        if sample.name == "resilience_breaker_state"
    }
    assert samples[("breaker", "asked-for-its-state"),] == 2.0
    breaker.reset()


def test_a_listener_may_use_the_breaker_it_hears_about():
    breaker = Breaker(min_calls=1, window=1)
    seen = []
    with telemetry.listen(lambda event: seen.append(breaker.stats().state), scope="context"):
        breaker.settle(breaker.acquire(), False)
    assert seen == ["open"]


def test_user_code_runs_in_parallel_through_one_breaker():
    """pybreaker holds its lock during the call (issues 3 and 55)."""
    inside = threading.Barrier(8, timeout=60)
    guarded = Policy(breaker=Breaker(slow=60.0))(lambda: inside.wait())
    threads = [threading.Thread(target=guarded) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not inside.broken


def test_no_verdict_is_lost_between_threads():
    breaker = Breaker(window=10_000, min_calls=10_000)
    barrier = threading.Barrier(8)

    def call():
        barrier.wait(60)
        for n in range(500):
            breaker.settle(breaker.acquire(), n % 4 != 0)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (breaker.stats().calls, breaker.stats().failures) == (4000, 1000)


def test_at_most_n_probes_are_admitted_whoever_asks():
    """Under a switch at every chance; circuitbreaker, hyx and others admit everybody."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            with virtual_time() as clock:
                breaker = opened(probes=3)
                clock.advance(10.0)
                barrier, tickets = threading.Barrier(8), []

                def ask():
                    barrier.wait(60)
                    for _ in range(20):
                        ticket = breaker.acquire()
                        if ticket is not None:
                            tickets.append(ticket)

                threads = [clock.thread(ask) for _ in range(8)]
                for thread in threads:
                    thread.join(60)
                assert len(tickets) == 3
                assert len(set(map(id, tickets))) == 3
    finally:
        sys.setswitchinterval(interval)


def test_a_window_in_seconds_forgets_and_a_count_does_not():
    with virtual_time() as clock:
        timed = Breaker(window=seconds(10), min_calls=4)
        counted = Breaker(window=10, min_calls=4)
        for breaker in (timed, counted):
            for _ in range(3):
                breaker.settle(breaker.acquire(), False)
        clock.advance(9.4)
        assert timed.stats().failures == 3
        clock.advance(0.7)
        assert timed.stats().failures == 0
        for breaker in (timed, counted):
            breaker.settle(breaker.acquire(), False)
        assert (timed.state, counted.state) == ("closed", "open")
        with pytest.raises(ConfigurationError, match=r"seconds\(length\)"):
            seconds(0)


def test_a_window_in_seconds_holds_few_counters_however_long_it_runs():
    with virtual_time() as clock:
        breaker = Breaker(window=seconds(1))
        for _ in range(5_000):
            breaker.settle(breaker.acquire(), True)
            clock.advance(0.01)
        assert len(breaker.acquire()._cells) < 60
        assert 94 <= breaker.stats().calls <= 101


def test_no_verdict_is_lost_between_threads_in_a_window_in_seconds():
    breaker = Breaker(window=seconds(600), min_calls=10**6)
    barrier = threading.Barrier(8)

    def call():
        barrier.wait(60)
        for n in range(500):
            breaker.settle(breaker.acquire(), n % 4 != 0)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert breaker.stats()[2:4] == (4000, 1000)


def test_slow_calls_have_a_share_of_their_own():
    with virtual_time() as clock, record_events("resilience.") as events:
        breaker = Breaker(min_calls=4, window=4, slow=1.0, slow_rate=0.75, failure_rate=0.5)
        policy = Policy(breaker=breaker)

        def work(pause, error=None):
            clock.sleep(pause)
            if error is not None:
                raise error

        for pause in (2.0, 0.1, 2.0):
            policy.call(work, pause)
        with pytest.raises(ConnectionError):
            policy.call(work, 0.1, ConnectionError())
        assert breaker.stats()[2:5] == (
            4,
            1,
            2,
        )  # half of them slow, a quarter failed: neither is enough
        assert breaker.state == "closed"
        with pytest.raises(ConnectionError):
            policy.call(work, 2.0, ConnectionError())  # slow and failed
        assert breaker.state == "open"
    assert events[0].fields["reason"] == "failure_rate"
    with virtual_time() as clock, record_events("resilience.") as events:
        breaker = Breaker(min_calls=2, window=4, slow=1.0, slow_rate=1.0)
        for _ in range(2):
            Policy(breaker=breaker).call(clock.sleep, 1.0)
        assert (breaker.state, events[0].fields["reason"]) == ("open", "slow_rate")


def test_isolated_it_refuses_until_it_is_reset_and_disabled_it_admits_all():
    with virtual_time() as clock:
        breaker = Breaker(min_calls=1, window=1, name="b")
        policy = Policy(breaker=breaker, retry=Retry(2, backoff=0))
        breaker.isolate()
        clock.advance(1e6)
        with pytest.raises(BreakerOpenError, match=r"^b: the breaker is open$") as info:
            policy.call(int)
        assert info.value.retry_after is None
        assert breaker.stats().retry_after == float("inf")
        breaker.disable()
        for _ in range(3):
            with pytest.raises(ConnectionError):
                policy.call(_fails)
        assert breaker.stats()[:3] == ("disabled", 2, 0)
        breaker.reset()
        with pytest.raises(ConnectionError):
            policy.call(_fails)
        assert breaker.state == "open"


def _fails():
    raise ConnectionError


def test_a_probe_that_hangs_is_replaced_while_calls_of_a_policy_go_on():
    with virtual_time() as clock:
        breaker = opened(probe_lease=3.0)
        clock.advance(10.0)
        policy, log = Policy(breaker=breaker), []

        def hung():
            clock.advance(5.0)
            log.append(policy.call(lambda: "meanwhile"))
            return "late"

        assert policy.call(hung) == "late"
        assert (log, breaker.state) == (["meanwhile"], "closed")
