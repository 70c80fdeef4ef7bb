"""The same seed and virtual clock give the same trace, byte for byte: here, again, and under another hash seed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkit.resilience import Budget, Policy, Retry
from mlkit.testing import virtual_time

SCENARIO = """
import asyncio, json, random, sys
from mlkit import telemetry
from mlkit._clock import current
from mlkit.resilience import (
    Breaker, Budget, Hedge, Policy, Retry, constant, fallback, finite, full_jitter, seconds, stale, tier
)
from mlkit.testing import record_events, virtual_time

def trace(seed):
    draw = random.Random(seed)
    out = []
    with virtual_time() as clock, record_events("resilience.") as events:
        breakers = [
            Breaker(name=f"b{n}", window=seconds(5) if n else 20, min_calls=5, cooldown=2.0, probes=2, slow=0.8, slow_rate=0.6)
            for n in range(2)
        ]
        budget = Budget(0.2, 5)
        policies = [
            Policy(
                retry=Retry(3, backoff=full_jitter(0.1, random=draw.random), budget=budget),
                breaker=breaker, timeout=1.0, deadline=4.0, bulkhead=6,
                hedge=Hedge("p90") if n else None, name=f"p{n}",
            )
            for n, breaker in enumerate(breakers)
        ]

        async def work(n):
            out.append(["start", n, current().monotonic()])
            await current().asleep(draw.random() * 1.4)
            if draw.random() < 0.3:
                raise ConnectionError(n)
            return n if draw.random() < 0.9 else float("nan")

        def stream():
            for n in range(4):
                if draw.random() < 0.2:
                    raise ConnectionError(n)
                yield n

        guarded = [policy(work) for policy in policies]
        whole = Policy(stream="buffer", retry=Retry(4, backoff=0, budget=budget), name="whole")(stream)
        score = fallback(
            *(tier(work, policy=policy, accept=finite, name=policy.name) for policy in policies),
            stale(9.0), constant(0), name="trace",
        )
        rows = fallback(
            tier(lambda x: [v if draw.random() < 0.7 else float("nan") for v in x], accept=finite, name="big"),
            stale(9.0), constant(0.5), per_row=True, name="rows",
        )

        async def client(me):
            for n in range(25):
                await current().asleep(draw.random())
                try:
                    out.append(["answer", await guarded[draw.randrange(2)](100 * me + n)])
                    answer = await score.explain(n)
                    out.append([answer.value, answer.tier, answer.reason, answer.attempts])
                    answer = rows.explain([1.0, float(n), 2.0])
                    out.append([answer.value, answer.rows, answer.reason])
                    out.append(list(whole()))
                except Exception as error:
                    notes = getattr(error, "__notes__", [])
                    out.append([type(error).__name__, str(error), notes, current().monotonic()])

        async def main():
            await asyncio.gather(*(client(n) for n in range(5)))

        clock.run(main())
        out.append(clock.sleeps)
    out += [[event.kind, event.name, event.time, dict(event.fields)] for event in events]
    return json.dumps(out)
"""


def in_subprocess(seed, hash_seed):
    source = str(Path(sys.modules["mlkit"].__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", SCENARIO + "\nprint(trace(int(sys.argv[1])))", str(seed)],
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return done.stdout.strip()


def test_the_trace_is_the_same_byte_for_byte():
    space = {}
    exec(SCENARIO, space)
    first, again, other = space["trace"](7), space["trace"](7), space["trace"](8)
    assert first == again
    assert first != other
    entries = [entry for entry in json.loads(first) if entry]
    kinds = {entry[0] for entry in entries if isinstance(entry[0], str)}
    assert {"start", "answer", "ConnectionError", "DeadlineExceededError"} <= kinds
    tiers = {entry[1] for entry in entries if len(entry) == 4 and isinstance(entry[1], str)}
    assert {"p0", "p1", "stale", "constant"} <= tiers
    assert {"resilience.breaker.opened", "resilience.breaker.closed"} <= kinds
    assert in_subprocess(7, 1) == first
    assert in_subprocess(7, 4242) == first


@given(
    allowed=st.floats(0.01, 5),
    timeout=st.none() | st.floats(0.05, 3),
    works=st.lists(st.floats(0, 2), min_size=1, max_size=8),
    pauses=st.floats(0, 2),
    asked=st.none() | st.floats(0, 3),
)
def test_no_attempt_of_a_coroutine_starts_and_nothing_ends_after_the_deadline(
    allowed, timeout, works, pauses, asked
):
    class Pushed(ConnectionError):
        retry_after = asked

    with virtual_time() as clock:
        start, starts = clock.monotonic(), []

        async def work():
            starts.append(clock.monotonic())
            await clock.asleep(works[len(starts) % len(works)])
            raise Pushed

        budget = Budget(burst=100)
        policy = Policy(
            retry=Retry(20, backoff=pauses, budget=budget), deadline=allowed, timeout=timeout
        )
        with pytest.raises((ConnectionError, TimeoutError)):
            clock.run(policy.call(work))
        assert all(moment < start + allowed for moment in starts)
        assert clock.monotonic() <= start + allowed + 1e-6
