"""The guard with units that come back, with several metrics, and with what several processes saw."""

from __future__ import annotations

import json
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkit.errors import ConfigurationError
from mlkit.flags import ErrorRate, Flags, Guard, Latency, Mean

FLAG = {
    "state": "ENABLED",
    "variants": {"v1": "m:/1", "v2": "m:/2"},
    "defaultVariant": "v1",
}


def started(guard, share=0.5, flag=FLAG, **options):
    model = Flags.from_dict({"flags": {"m": flag}}).model("m", default="v1")
    rollout = model.rollout("v2", steps=[share, 1.0], guard=guard, **options)
    rollout.advance()
    return model, rollout


def e_value(rollout, name):
    return rollout.evidence[f"{name}.e_value"]


# --- units that come back ------------------------------------------------------------------------------------------


def test_a_unit_that_fails_again_and_again_is_one_failure():
    _, rollout = started(Guard(ErrorRate(max_ratio=1.0), ErrorRate(max_rate=0.1)))
    for _ in range(500):
        rollout.observe("v2", ok=False, unit="ann")
    assert rollout.status == "ramping"
    assert rollout.evidence["error_ratio.n_bets"] == rollout.evidence["error_rate.n_bets"] == 1
    assert rollout.evidence["error_ratio.candidate_sum"] == 500
    for n in range(100):
        rollout.observe("v2", ok=False, unit=f"user-{n}")
    assert rollout.status == "rolled_back"


def recurring(rng, n_units=60, n=1_000):
    """Requests of few units: some make most of them, some always fail; candidate and incumbent are the same."""
    weights = [1.0 / (rank + 1) for rank in range(n_units)]
    rates = [rng.betavariate(0.2, 1.0) for _ in range(n_units)]
    for unit in rng.choices(range(n_units), weights, k=n):
        yield unit, rng.random() < rates[unit]


@pytest.mark.parametrize("by_unit", [True, False], ids=["by unit", "by request"])
def test_few_heavy_units_raise_no_false_alarm_if_they_are_known(by_unit):
    """Looking at every request. Without the units the same simulation raises the alarm far more often than alpha."""
    rng, alarms, runs = random.Random("recurring"), 0, 30
    for run in range(runs):
        model, rollout = started(Guard(ErrorRate(max_ratio=1.0), alpha=0.1), seed=f"run {run}")
        side = [model.details(unit).variant for unit in range(60)]
        for unit, failed in recurring(rng):
            rollout.observe(side[unit], ok=not failed, unit=unit if by_unit else None)
        alarms += rollout.status == "rolled_back"
    # At alpha = 0.1 more than 7 of 30 have a probability below 1 %.
    assert alarms <= 7 if by_unit else alarms > 7, alarms


def test_several_metrics_of_units_that_come_back_share_the_alpha():
    rng, alarms, runs = random.Random("several"), 0, 15
    guard = Guard(
        ErrorRate(max_ratio=1.0),
        Latency(max_ratio=1.0, q=0.9),
        Mean("score", max_drop=0.0),
        Mean("score", max_rise=0.0),
        alpha=0.2,
    )
    for run in range(runs):
        model, rollout = started(guard, seed=f"several {run}")
        side = [model.details(unit).variant for unit in range(60)]
        slow = [rng.lognormvariate(0, 1) for _ in range(60)]
        for unit, failed in recurring(rng, n=1_000):
            rollout.observe(
                side[unit],
                ok=not failed,
                latency=slow[unit] * rng.lognormvariate(0, 1),
                unit=unit,
                metrics={"score": rng.random()},
            )
        alarms += rollout.status == "rolled_back"
    assert alarms <= 7  # at alpha = 0.2 more have a probability below 1 %


def test_a_better_candidate_is_never_worse_for_coming_later():
    """A candidate that postpones failures leaves more units that can still fail; that is nothing against it."""
    rng, alarms = random.Random("postponed"), 0
    for run in range(12):
        model, rollout = started(Guard(ErrorRate(max_ratio=1.0), alpha=0.1), seed=f"later {run}")
        side = [model.details(unit).variant for unit in range(200)]
        for n in range(2_000):
            unit = rng.randrange(200)
            rate = 0.0 if side[unit] == "v2" and n < 900 else 0.02
            rollout.observe(side[unit], ok=rng.random() >= rate, unit=unit)
        alarms += rollout.status == "rolled_back"
    assert alarms <= 4  # at alpha = 0.1 more have a probability below 1 %


@pytest.mark.parametrize(("factor", "runs", "within"), [(5.0, 9, 150), (2.0, 3, 750)])
def test_a_fault_is_found_within_the_promised_canary_requests(factor, runs, within):
    """10 % of the units, 2 % errors; `python -m benchmarks.flags_guard` is the same 2,000 times."""
    rng, found = random.Random(f"fault {factor}"), []
    for _ in range(runs):
        _, rollout = started(Guard(ErrorRate(max_ratio=1.0)), share=0.1)
        n_canary = 0
        for n in range(50_000):
            candidate = rng.random() < 0.1
            n_canary += candidate
            failed = rng.random() < 0.02 * (factor if candidate else 1.0)
            rollout.observe("v2" if candidate else "v1", ok=not failed, unit=n)
            if rollout.status == "rolled_back":
                break
        found.append(n_canary if rollout.status == "rolled_back" else float("inf"))
    assert statistics.median(found) <= within


# --- metrics -------------------------------------------------------------------------------------------------------


def fed(guard, make, *, n=2_500, share=0.3):
    """Return after how many requests the guard rolls back."""
    _, rollout = started(guard, share)
    rng = random.Random("fed")
    for i in range(n):
        variant = "v2" if rng.random() < share else "v1"
        rollout.observe(variant, ok=True, unit=i, **make(variant == "v2", rng))
        if rollout.status == "rolled_back":
            return i + 1
    return None


def slower(factor):
    def make(candidate, rng):
        return {"latency": rng.lognormvariate(0, 0.3) * (factor if candidate else 1.0)}

    return make


def test_a_quantile_is_held_against_the_incumbents():
    guard = Guard(Latency(max_ratio=1.2, q=0.9))
    assert fed(guard, slower(1.0)) is None
    assert fed(guard, slower(1.2)) is None
    assert fed(guard, slower(2.0)) <= 400
    # Both became slow: that is nobody's fault.
    assert fed(guard, lambda candidate, rng: {"latency": rng.lognormvariate(5, 0.3)}) is None


@pytest.mark.parametrize(
    ("limit", "healthy", "faulty"),
    [
        ({"at_most": 3.0}, 2.9, 3.8),
        ({"at_least": 3.0}, 3.1, 2.2),
        ({"max_rise": 0.5}, 2.9, 4.2),
        ({"max_drop": 0.5}, 2.1, 1.2),
    ],
    ids=str,
)
def test_a_mean_is_bounded_on_either_side(limit, healthy, faulty):
    guard = Guard(Mean("stars", low=1.0, high=5.0, **limit))

    def around(mean):
        def make(candidate, rng):
            centre = mean if candidate else 2.5
            return {"metrics": {"stars": min(5.0, max(1.0, rng.gauss(centre, 0.5)))}}

        return make

    assert fed(guard, around(healthy)) is None
    assert fed(guard, around(faulty)) <= 1_000


def test_a_split_that_was_not_intended_is_found_and_the_intended_one_is_not():
    guard = Guard(ErrorRate(max_rate=0.5))
    _, rollout = started(guard, share=0.3)
    rng = random.Random("split")
    for n in range(3_000):
        rollout.observe("v2" if rng.random() < 0.3 else "v1", ok=True, unit=n)
    assert rollout.status == "ramping"
    _, rollout = started(guard, share=0.3)
    for n in range(3_000):  # half of the candidate's answers get lost
        rollout.observe("v2" if rng.random() < 0.15 else "v1", ok=True, unit=n)
    assert rollout.status == "rolled_back"
    assert rollout.history[-1].reason.startswith("sample_ratio ")
    _, rollout = started(guard, share=0.3)
    for n in range(3_000):  # few units that come back are no mismatch
        rollout.observe("v2" if n % 2 else "v1", ok=True, unit=n % 4)
    assert rollout.status == "ramping"


def test_units_that_a_rule_assigned_are_no_part_of_the_split():
    rule = {"if": [{"==": [{"var": "plan"}, "beta"]}, "v2", None]}
    _, rollout = started(Guard(ErrorRate(max_rate=0.5)), 0.1, {**FLAG, "targeting": rule})
    for n in range(2_000):
        with rollout.serve(n, plan="beta" if n % 2 else "free") as served:
            assert served.variant == "v2" or not n % 2
    assert rollout.status == "ramping"
    assert 800 < rollout.evidence["sample_ratio.n_bets"] <= 1_000


@pytest.mark.parametrize(
    "make",
    [
        lambda: Mean("score"),
        lambda: Mean("score", at_most=0.5, at_least=0.2),
        lambda: Mean("score", at_most=1.0),
        lambda: Mean("score", low=1.0, high=1.0, at_most=1.0),
        lambda: Mean("score", low=float("nan"), at_most=0.5),
        lambda: Mean("score", max_drop=-0.1),
        lambda: Mean("score", max_rise=1.0),
        lambda: Mean("", at_most=0.5),
        lambda: Mean("a b", at_most=0.5),
        lambda: Latency(max_seconds=1.0, max_ratio=1.0),
        lambda: Latency(),
        lambda: Latency(max_ratio=0.9),
        lambda: Latency(max_ratio=1.0, q=0.99999),
        lambda: Guard(),
        lambda: Guard(ErrorRate(max_rate=0.1), alpha=0.0),
    ],
    ids=range(15),
)
def test_wrong_limits_are_refused(make):
    with pytest.raises(ConfigurationError):
        make()


def test_figures_that_nobody_asks_for_or_out_of_bounds_are_refused():
    _, rollout = started(Guard(Mean("score", at_most=0.5)))
    for metrics in ({"scrore": 0.1}, {"score": 1.1}, {"score": float("nan")}, {"score": True}):
        with pytest.raises(ConfigurationError):
            rollout.observe("v2", ok=True, metrics=metrics)
    with pytest.raises(ConfigurationError, match="did you mean 'score'"):
        rollout.observe("v2", ok=True, metrics={"scrore": 0.1})
    with pytest.raises(ConfigurationError, match="unit"):
        rollout.observe("v2", ok=True, unit=1.5)
    assert rollout.evidence["score.candidate_n"] == 0


# --- what several processes saw ------------------------------------------------------------------------------------

SEVERAL = Guard(
    ErrorRate(max_ratio=1.0), ErrorRate(max_rate=0.3), Mean("score", at_most=0.6), alpha=1e-9
)
observations = st.lists(
    st.tuples(
        st.booleans(),
        st.booleans(),
        st.one_of(st.none(), st.integers(0, 9)),
        st.sampled_from([0.1, 0.9]),
    ),
    max_size=15,
)


def observe_all(rollout, seen):
    for candidate, ok, unit, score in seen:
        variant = "v2" if candidate else "v1"
        rollout.observe(variant, ok=ok, unit=unit, metrics={"score": score})


@given(one=observations, two=observations)
@settings(max_examples=25)
def test_merged_evidence_is_that_of_one_process(one, two):
    """In any order, and however often; units that both saw count once."""
    _, first = started(SEVERAL)
    _, second = started(SEVERAL)
    _, alone = started(SEVERAL)
    observe_all(first, one)
    # What both saw of a unit may differ; who sees first decides, so give them different units.
    two = [(side, ok, None if unit is None else unit + 100, score) for side, ok, unit, score in two]
    observe_all(second, two)
    observe_all(alone, one + two)
    state = json.loads(json.dumps(second.state()))
    for _ in range(2):
        first.merge(state)
    second.merge(first.state())
    for name in ("error_ratio", "error_rate", "score", "sample_ratio"):
        value = e_value(alone, name)
        assert e_value(first, name) == pytest.approx(value)
        assert e_value(second, name) == pytest.approx(value)
        assert first.evidence[f"{name}.n_bets"] == alone.evidence[f"{name}.n_bets"]
        assert first.evidence[f"{name}.candidate_n"] == alone.evidence[f"{name}.candidate_n"]


def test_a_later_state_replaces_an_earlier_and_a_unit_counts_once():
    _, one = started(SEVERAL)
    _, two = started(SEVERAL)
    one.observe("v2", ok=False, unit="ann")
    two.observe("v2", ok=False, unit="ann")
    two.observe("v2", ok=False)
    one.merge(two.state())
    before = e_value(one, "error_ratio")
    two.observe("v2", ok=False)
    one.merge(two.state())
    one.merge(two.state())
    assert one.evidence["error_ratio.n_bets"] == 1
    assert e_value(one, "error_ratio") > before
    assert e_value(one, "error_ratio") == pytest.approx(e_value(two, "error_ratio"))
    assert one.evidence["error_ratio.candidate_n"] == 4


def test_enough_evidence_from_elsewhere_rolls_back():
    guard = Guard(ErrorRate(max_rate=0.05))
    _, one = started(guard)
    states = []
    for worker in range(4):  # none of them has enough
        _, other = started(guard)
        for n in range(3):
            other.observe("v2", ok=n > 1, unit=f"{worker}-{n}")
        assert other.status == "ramping"
        states.append(other.state())
    for state in states:
        one.merge(state)
    assert one.status == "rolled_back"


def test_what_is_no_state_is_refused():
    _, one = started(SEVERAL)
    _, other = started(Guard(ErrorRate(max_rate=0.3)))
    for wrong in (other.state(), {"guard": repr(SEVERAL)}, {"guard": 3}):
        with pytest.raises(ConfigurationError, match="merge"):
            one.merge(wrong)
    one.merge({})
    _, bare = started(None)
    bare.merge(bare.state())


def test_units_are_not_in_the_state():
    _, rollout = started(Guard(ErrorRate(max_rate=0.5)))
    rollout.observe("v2", ok=False, unit="ann@example.org")
    assert "ann" not in json.dumps(rollout.state())
