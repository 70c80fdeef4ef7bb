"""Every `wait_*` and `stop_*` object of tenacity, against tenacity itself: the same attempts and the same pauses."""

from __future__ import annotations

import random
import threading
from unittest import mock

import pytest
import tenacity
from tenacity import (
    stop_after_attempt,
    stop_after_delay,
    stop_before_delay,
    stop_never,
    stop_when_event_set,
    wait_chain,
    wait_combine,
    wait_exception,
    wait_exponential,
    wait_exponential_jitter,
    wait_fixed,
    wait_full_jitter,
    wait_incrementing,
    wait_none,
    wait_random,
    wait_random_exponential,
)

from mlkit.errors import ConfigurationError
from mlkit.resilience import Policy, Retry, full_jitter
from mlkit.testing import virtual_time

WAITS = {
    "wait_none": wait_none(),
    "wait_fixed": wait_fixed(2),
    "wait_random": wait_random(1, 2),
    "wait_incrementing": wait_incrementing(1, 2, 4),
    "wait_exponential": wait_exponential(1, 10, min=2),
    "wait_random_exponential": wait_random_exponential(1, 10),
    "wait_full_jitter": wait_full_jitter(1, 10),
    "wait_exponential_jitter": wait_exponential_jitter(1, 10),
    "wait_chain": wait_chain(wait_fixed(1), wait_fixed(3)),
    "wait_combine": wait_combine(wait_fixed(1), wait_random(0, 1)),
    "wait_fixed + wait_random": wait_fixed(1) + wait_random(0, 1),
    "sum": sum([wait_fixed(1), wait_fixed(2)]),
    "wait_exception": wait_exception(lambda error: float(len(str(error)))),
    "wait_fixed + wait_exception": wait_fixed(1) + wait_exception(lambda error: error.args[0]),
}


def raised_event():
    event = threading.Event()
    event.set()
    return event


STOPS = {
    "stop_never": stop_never,
    "stop_after_attempt": stop_after_attempt(3),
    "stop_after_delay": stop_after_delay(5),
    "stop_before_delay": stop_before_delay(5),
    "stop_when_event_set": stop_when_event_set(threading.Event()),
    "stop_when_event_set, raised": stop_when_event_set(raised_event()),
    "stop_any": tenacity.stop_any(stop_after_attempt(2), stop_never),
    "stop_all": tenacity.stop_all(stop_after_attempt(2), stop_after_delay(5)),
    "|": stop_after_attempt(4) | stop_after_delay(3),
    "&": stop_after_attempt(2) & stop_before_delay(3),
}


class Down:
    """Fails for ever, differently each time, and takes a while."""

    def __init__(self, advance):
        self.calls, self.advance = 0, advance

    def __call__(self):
        self.calls += 1
        self.advance(0.25)
        raise ConnectionError(self.calls)


def with_tenacity(wait, stop, seed):
    """Return the attempts and pauses of tenacity, in a time of its own."""
    now, pauses = [0.0], []

    def advance(seconds):
        now[0] += seconds

    def sleep(seconds):
        if seconds:  # we do not go to sleep for nothing
            pauses.append(seconds)
        advance(seconds)

    def monotonic():
        return now[0]

    down = Down(advance)
    retrying = tenacity.Retrying(
        wait=wait, stop=stop_after_attempt(8) | stop, sleep=sleep, reraise=True
    )
    random.seed(seed)
    with mock.patch("time.monotonic", monotonic), pytest.raises(ConnectionError):
        retrying(down)
    return down.calls, pauses


def with_mlkit(wait, stop, seed):
    with virtual_time(start=0.0) as clock:
        down = Down(clock.advance)
        policy = Policy(retry=Retry(8, backoff=wait, stop=stop, budget=None))
        random.seed(seed)
        with pytest.raises(ConnectionError):
            policy.call(down)
        return down.calls, clock.sleeps


@pytest.mark.parametrize("name", WAITS)
def test_it_waits_as_tenacity_does(name):
    ours, theirs = (run(WAITS[name], stop_never, 7) for run in (with_mlkit, with_tenacity))
    assert ours == (theirs[0], pytest.approx(theirs[1]))


@pytest.mark.parametrize("name", STOPS)
def test_it_stops_as_tenacity_does(name):
    ours, theirs = (run(wait_fixed(1), STOPS[name], 7) for run in (with_mlkit, with_tenacity))
    assert ours == (theirs[0], pytest.approx(theirs[1]))


PLAIN = {
    "wait_none": (wait_none(), 0),
    "wait_fixed": (wait_fixed(2), 2),
    "wait_random": (wait_random(1, 2), lambda made: random.uniform(1, 2)),
    "wait_incrementing": (wait_incrementing(1, 2), lambda made: 1 + 2 * (made - 1)),
    "wait_exponential": (
        wait_exponential(0.5, 10),
        lambda made: min(10, 0.5 * 2.0 ** min(made - 1, 60)),
    ),
    "wait_random_exponential": (
        wait_random_exponential(0.5, 10),
        full_jitter(0.5, cap=10, random=random.random),
    ),
    "wait_chain": (
        wait_chain(wait_fixed(1), wait_fixed(3)),
        lambda made: [1, 3][min(made, 2) - 1],
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_what_the_docs_put_in_its_place_is_the_same(name):
    theirs, plain = PLAIN[name]
    assert with_mlkit(plain, stop_never, 7) == (
        8,
        pytest.approx(with_tenacity(theirs, stop_never, 7)[1]),
    )


@pytest.mark.parametrize("allowed", [0.5, 2.0, 3.9, 5.1])
def test_a_deadline_is_stop_before_delay(allowed):
    calls, _ = with_tenacity(wait_fixed(1), stop_before_delay(allowed), 7)
    with virtual_time(start=0.0) as clock:
        down = Down(clock.advance)
        with pytest.raises(ConnectionError):
            Policy(retry=Retry(8, backoff=1, budget=None), deadline=allowed).call(down)
    assert down.calls == calls


def test_one_in_the_place_of_another_is_refused_at_once():
    for wrong in (
        lambda: Retry(backoff=stop_after_attempt(3)),
        lambda: Retry(stop=wait_fixed(1)),
        lambda: Policy(on=tenacity.retry_if_exception_type(OSError)),
    ):
        with pytest.raises(ConfigurationError, match="tenacity"):
            wrong()


def test_none_is_forgotten():
    """A version of tenacity with another one says so here."""
    given = {
        name
        for name in dir(tenacity)
        if name.startswith(("wait_", "stop_")) and callable(getattr(tenacity, name))
    }
    assert given <= {*WAITS, *STOPS}
