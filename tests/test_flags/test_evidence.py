"""The guard's evidence, exactly: what it is worth on average under the null, and at the ends of its arguments."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkit.flags import ErrorRate, Flags, Guard, Latency, Mean
from mlkit.flags._evidence import Case, together
from mlkit.flags._question import Trial

FLAG = {
    "state": "ENABLED",
    "variants": {"v1": "m:/1", "v2": "m:/2"},
    "defaultVariant": "v1",
}


def started(*metrics, share=0.5, alpha=1e-12):
    rollout = (
        Flags.from_dict({"flags": {"m": FLAG}})
        .model("m", default="v1")
        .rollout("v2", steps=[share, 1.0], guard=Guard(*metrics, alpha=alpha))
    )
    rollout.advance()
    return rollout


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.9])
def test_the_evidence_is_worth_one_on_average_at_the_limit_and_less_below(rate):
    at_limit = below = 0.0
    for outcomes in itertools.product([True, False], repeat=6):
        rollout = started(ErrorRate(max_rate=rate), Latency(max_seconds=1.0, q=1 - rate))
        for bad in outcomes:
            rollout.observe("v2", ok=not bad, latency=2.0 if bad else 0.5)
        evidence, n_bad = rollout.evidence, sum(outcomes)
        assert evidence["latency.e_value"] == pytest.approx(evidence["error_rate.e_value"])
        value = evidence["error_rate.e_value"]
        at_limit += value * rate**n_bad * (1 - rate) ** (6 - n_bad)
        below += value * (rate / 2) ** n_bad * (1 - rate / 2) ** (6 - n_bad)
    # What is missing is kept for the recent windows.
    assert at_limit == pytest.approx(0.8)
    assert below < 0.8


@pytest.mark.parametrize(("ratio", "share"), [(1.0, 0.5), (1.5, 0.01), (4.0, 0.9)])
def test_the_evidence_of_a_ratio_is_worth_one_on_average_too(ratio, share):
    whose = ratio * share / (ratio * share + 1 - share)  # of a failing request
    total = 0.0
    for failed in itertools.product(["v2", "v1"], repeat=6):
        rollout = started(ErrorRate(max_ratio=ratio), share=share)
        for variant in failed:
            rollout.observe(variant, ok=False)
        n = failed.count("v2")
        total += rollout.evidence["error_ratio.e_value"] * whose**n * (1 - whose) ** (6 - n)
    assert total == pytest.approx(0.8)


def test_a_ratio_counts_with_the_share_that_is_served():
    rollout = started(ErrorRate(max_ratio=1.0), share=0.000_015)  # served as 2 / 100,000
    other = started(ErrorRate(max_ratio=1.0), share=0.000_02)
    for each in (rollout, other):
        each.observe("v2", ok=False)
    assert rollout.evidence["error_ratio.e_value"] == other.evidence["error_ratio.e_value"]


@pytest.mark.parametrize(
    "metric",
    [
        ErrorRate(max_rate=1 - 1e-16),
        ErrorRate(max_rate=5e-324),
        Latency(max_seconds=1.0, q=1e-17),
        Latency(max_seconds=1.0, q=1 - 1e-16),
        ErrorRate(max_ratio=1e15),
        ErrorRate(max_ratio=1e308),
    ],
    ids=repr,
)
def test_no_limit_is_too_near_its_end(metric):
    rollout = started(metric, share=0.99, alpha=1e-300)
    for n in range(40):
        rollout.observe("v2" if n % 2 else "v1", ok=n % 3 == 0, latency=2.0)
    (value,) = [rollout.evidence[f"{metric.name}.e_value"]]
    assert math.isfinite(value)
    assert value >= 0


def test_metrics_of_one_name_have_figures_of_their_own():
    rollout = started(ErrorRate(max_rate=0.1), ErrorRate(max_rate=0.2), alpha=0.05)
    rollout.observe("v2", ok=True)
    evidence = rollout.evidence
    assert (evidence["error_rate.limit"], evidence["error_rate_2.limit"]) == (0.1, 0.2)
    # A twentieth of alpha is for the sample ratio.
    assert (
        evidence["error_rate.threshold"]
        == evidence["error_rate_2.threshold"]
        == pytest.approx(2 / 0.0475)
    )


@given(
    crowd=st.lists(
        st.lists(
            st.tuples(
                st.booleans(), st.booleans(), st.none() | st.integers(0, 12), st.floats(0, 1)
            ),
            max_size=15,
        ),
        min_size=1,
        max_size=3,
    ),
    begun=st.sampled_from([0, 990]),
)
@settings(max_examples=25)
def test_states_put_together_are_worth_what_they_were(crowd, begun):
    guard = Guard(ErrorRate(max_ratio=1.5), ErrorRate(max_rate=0.1), Mean("score", max_drop=0.1))
    states = []
    for index, trials in enumerate(crowd):
        case = Case(guard, f"process-{index}")
        for _ in range(begun * (index % 2)):  # some are in a later window than others
            case.add(Trial(False, True, None, 0.5, None, {}, True))
        for candidate, ok, unit, score in trials:
            case.add(Trial(candidate, ok, None, 0.5, unit, {"score": score}, True))
        states.append(case.state())
    one, other, twice = (Case(guard, "reader") for _ in range(3))
    for state in states:
        one.merge(state)
    small = together(states)
    for state in small:
        other.merge(state)
    for state in (*states, *small):  # who has seen them already
        twice.merge(state)
    assert other.figures() == pytest.approx(one.figures())
    assert twice.figures() == pytest.approx(one.figures())
    assert together(small) == small
