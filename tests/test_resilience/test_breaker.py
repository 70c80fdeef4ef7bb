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
from mlkit.resilience import Breaker, Policy
from mlkit.testing import record_events, virtual_time


class ModelOfBreaker:
    """The documented behaviour in the plainest words: lists, no cleverness."""

    def __init__(self, *, rate, min_calls, window, cooldown, probes, lease):
        self.rate, self.min_calls, self.window = rate, min_calls, window
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
        return self.state == "closed"

    def settle(self, number, verdict, now):
        """The caller drops tickets of other eras."""
        if self.state == "closed" and verdict is not None:
            self.history = [*self.history, verdict][-self.window :]
            bad = self.history.count(False)
            if (
                not verdict
                and len(self.history) >= self.min_calls
                and bad / len(self.history) >= self.rate
            ):
                self.to("open", now)
        elif self.state == "half_open" and number in self.live:
            del self.live[number]
            if verdict is not None:
                self.results.append(verdict)
                worst = self.results.count(False) + self.probes - len(self.results)
                if self.results.count(False) / self.probes >= self.rate:
                    self.to("open", now)
                elif worst / self.probes < self.rate:
                    self.to("closed", now)


class BreakerAgainstModel(RuleBasedStateMachine):
    @initialize(
        rate=st.sampled_from([0.1, 0.3, 0.5, 0.75, 1.0]),
        window=st.integers(1, 6),
        probes=st.integers(1, 4),
        lease=st.sampled_from([None, 1.0, 7.0]),
        data=st.data(),
    )
    def make(self, rate, window, probes, lease, data):
        self.manager = virtual_time()
        self.clock = self.manager.__enter__()
        min_calls = data.draw(st.integers(1, window))
        self.breaker = Breaker(
            failure_rate=rate,
            min_calls=min_calls,
            window=window,
            cooldown=5.0,
            probes=probes,
            probe_lease=lease,
        )
        self.model = ModelOfBreaker(
            rate=rate,
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
    @rule(which=st.integers(0, 50), verdict=st.sampled_from([True, True, False, False, None]))
    def end(self, which, verdict):
        number, era, ticket = self.tickets.pop(which % len(self.tickets))
        self.breaker.settle(ticket, verdict)
        if era == self.era:
            now = self.clock.monotonic()
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

    @invariant()
    def same_state(self):
        if hasattr(self, "model"):
            assert self.breaker.state == self.model.state
            stats = self.breaker.stats()
            assert stats.era == self.era
            history = self.model.history or self.model.results
            assert (stats.calls, stats.failures) == (len(history), history.count(False))


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
    inside = threading.Barrier(8, timeout=30)
    guarded = Policy(breaker=Breaker(slow=60.0))(lambda: inside.wait())
    threads = [threading.Thread(target=guarded) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert not inside.broken


def test_no_verdict_is_lost_between_threads():
    breaker = Breaker(window=10_000, min_calls=10_000)
    barrier = threading.Barrier(8)

    def call():
        barrier.wait(30)
        for n in range(500):
            breaker.settle(breaker.acquire(), n % 4 != 0)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
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
                    barrier.wait(30)
                    for _ in range(20):
                        ticket = breaker.acquire()
                        if ticket is not None:
                            tickets.append(ticket)

                threads = [clock.thread(ask) for _ in range(8)]
                for thread in threads:
                    thread.join(30)
                assert len(tickets) == 3
                assert len(set(map(id, tickets))) == 3
    finally:
        sys.setswitchinterval(interval)
