"""The laws that the published simulations show, in smaller models, and that the page shows what was computed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the simulations are no part of the package

from benchmarks.simulations import hedging, jitter, ladder, overload, page  # noqa: E402

PAGE = ROOT / "docs/concepts/resilience-simulations.md"
RESULTS = ROOT / "benchmarks/results/resilience_simulations.json"
SMALL = overload.Overload(workers=2, arrivals=14.0, until=90.0, burst=5)


@pytest.fixture(scope="module")
def runs():
    return {
        name: overload.overload(SMALL, policy) for name, policy in overload.policies(SMALL).items()
    }


def test_without_a_budget_an_overload_outlives_its_cause(runs):
    naive = runs["retry(3), no budget"]
    assert naive["answered before"] > 0.95
    assert naive["answered at the end"] < 0.05
    assert naive["per second"]["queue"][-1] > 3 * naive["per second"]["queue"][30]


def test_with_the_budget_it_ends_and_attempts_stay_in_bounds(runs):
    paid, none = runs["retry(3), budget"], runs["no retry"]
    assert paid["answered at the end"] > 0.95
    assert paid["answered at the end"] >= none["answered at the end"] - 0.05
    assert paid["attempts"] <= (1 + SMALL.ratio) * paid["calls"] + SMALL.burst
    assert runs["retry(3), no budget"]["attempts"] > (1 + SMALL.ratio) * paid["calls"] + SMALL.burst


def test_levels_do_not_multiply():
    calls = 300
    rows = {row["failing"]: row for row in overload.amplification(calls=calls)}
    assert rows[1.0]["a loop at each level"] == 27
    assert rows[1.0]["retry(3), no budget"] == 3
    for row in rows.values():
        assert row["retry(3), budget"] <= 1.1 + 10 / calls
        assert row["answered, retry(3), budget"] >= min(1 - row["failing"], 0.99) - 0.03


def test_full_jitter_spreads_what_no_jitter_clumps():
    model = jitter.Contention(clients=40)
    found = {way: jitter.contention(model, way) for way in jitter.WAYS}
    full, none = found["full jitter"], found["no jitter"]
    assert full["attempts"] < none["attempts"]
    assert full["seconds"] < none["seconds"] / 2
    assert full["most in 10 ms"] < none["most in 10 ms"] / 2


def test_a_hedge_at_p95_cuts_the_tail_for_one_call_in_twenty():
    none, _, p95, learned, p50, poor = hedging.hedging(calls=2_000)
    assert none["p99.9"] > 1.0
    assert p95["p99.9"] < 0.1
    assert learned["p99.9"] < 0.1
    assert 0.03 < p95["extra load"] < 0.07
    assert 0.03 < learned["extra load"] < 0.07
    assert p50["extra load"] > 0.4
    assert poor["extra load"] <= 0.05 + 10 / 2_000 + 1e-9


def test_breakers_spare_the_callers_what_hangs():
    model = ladder.Outage(arrivals=4.0, keys=80)
    with_breakers, without = (ladder.ladder(model, name) for name in ladder.CONTENDERS)
    assert with_breakers["attempts that hung"] < without["attempts that hung"] / 3
    for run in (with_breakers, without):
        assert sum(run[name] for name in ladder.TIERS) == run["answers"]
        courses = run["per second"]
        assert courses["big"][5] > 0
        assert courses["big"][40] == courses["small"][40] == 0
        assert courses["big"][-2] > 0  # and up again


def test_the_same_seed_gives_the_same_course():
    model = ladder.Outage(arrivals=4.0, keys=80, until=40.0)
    assert ladder.ladder(model, ladder.CONTENDERS[0]) == ladder.ladder(model, ladder.CONTENDERS[0])


def test_the_page_shows_the_results_that_lie_beside_it():
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    text = PAGE.read_text(encoding="utf-8")
    assert page.replaced(text, results) == text
