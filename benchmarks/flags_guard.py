"""How often a guard rolls back a healthy canary, and how soon a faulty one: `python -m benchmarks.flags_guard [--quick]`.

2,000 simulated canaries a scenario: 10 % of the units, 2 % base error rate, 50,000 requests, every rule looking every 100
requests. Ours is computed with NumPy from the same mixtures and windows as `mlkit.flags`, and asserted equal to it, number
by number, on whole canaries of each scenario first. The other rules are short implementations of what their names say.
Writes `benchmarks/results/flags_guard.json` and `docs/images/guard.svg`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mlkit.flags import ErrorRate, Guard, Latency, Mean
from mlkit.flags._evidence import _MAX_BETS, _WHOLE, Case, window_at
from mlkit.flags._question import Bet, Ratio, Split, Trial

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from mlkit.flags._question import Question

SHARE, BASE, LOOK = 0.1, 0.02, 100
GUARD = Guard(ErrorRate(max_ratio=1.0))
SEVERAL = Guard(
    ErrorRate(max_ratio=1.0),
    ErrorRate(max_rate=0.02),
    Latency(max_ratio=1.0, q=0.9),
    Mean("score", max_drop=0.0),
)
FAULTS = (5.0, 2.0, 1.5)
TARGETS = {5.0: 150, 2.0: 750, 1.5: 2_100}
RESULTS = Path(__file__).parent / "results" / "flags_guard.json"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "guard.svg"


class Canary(NamedTuple):
    """Requests in order: whose they are, on which side, and whether they fail."""

    unit: NDArray[np.uint64]
    candidate: NDArray[np.bool_]
    failed: NDArray[np.bool_]


# --- scenarios -----------------------------------------------------------------------------------------------------


def fresh(rng: np.random.Generator, n: int, factor: float = 1.0) -> Canary:
    """Every request is of a new unit."""
    unit = rng.integers(2**63, size=n, dtype=np.uint64)
    candidate = rng.random(n) < SHARE
    failed = rng.random(n) < np.where(candidate, BASE * factor, BASE)
    return Canary(unit, candidate, failed)


def recurring(rng: np.random.Generator, n: int) -> Canary:
    """500 units come back: some make most of the requests, some fail far more often than others."""
    index, candidate, rates, unit = _units(rng, n)
    return Canary(unit, candidate[index], rng.random(n) < rates[index])


def drifting(rng: np.random.Generator, n: int) -> Canary:
    """As before, with a base rate that goes up and down by a factor of ten, and outages of everything."""
    index, candidate, rates, unit = _units(rng, n)
    time = np.arange(n) / n
    rate = rates[index] * 10.0 ** np.sin(2 * np.pi * (3 * time + rng.random()))
    for start in rng.random(4):
        rate[(time > start) & (time < start + 0.004)] = 0.9
    return Canary(unit, candidate[index], rng.random(n) < rate)


def _units(rng: np.random.Generator, n: int) -> tuple[Any, Any, Any, Any]:
    traffic = 1.0 / np.arange(1, 501)
    index = rng.choice(500, size=n, p=traffic / traffic.sum())
    rates = rng.beta(0.2, 0.2 * (1 - BASE) / BASE, size=500)
    unit = rng.integers(2**63, size=500, dtype=np.uint64)[index]
    return index, rng.random(500) < SHARE, rates, unit


# --- ours ----------------------------------------------------------------------------------------------------------


def ours(canary: Canary, *, by_request: bool = False) -> int | None:
    """Return after how many requests the guard rolls back, None if it never does."""
    if by_request:
        canary = canary._replace(unit=np.arange(len(canary.unit), dtype=np.uint64))
    found = [_first(canary, Ratio(1.0, lambda _: 1.0), canary.failed, GUARD.threshold)]
    if not by_request:
        everything = np.ones(len(canary.unit), dtype=bool)
        found.append(_first(canary, Split(), everything, GUARD.split_threshold))
    known = [one for one in found if one is not None]
    return -(-min(known) // LOOK) * LOOK if known else None


def _first(
    canary: Canary, question: Question, asked: NDArray[np.bool_], threshold: float
) -> int | None:
    """Return after which request an e-value reaches its threshold."""
    best = None
    for window in _windows(len(asked)):
        places, logs = _logs(canary, question, asked, window)
        over = np.flatnonzero(logs + math.log(window[2]) >= math.log(threshold))
        if len(over):
            at = int(places[over[0]]) + 1
            best = at if best is None else min(best, at)
    return best


def _logs(
    canary: Canary,
    question: Question,
    asked: NDArray[np.bool_],
    window: tuple[int, int, float, float],
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the requests of a window that settle a bet, and the log e-value after each."""
    start, end, _, keep = window
    places = start + np.flatnonzero(asked[start:end])
    unit = canary.unit[places]
    places = places[np.sort(np.unique(unit, return_index=True)[1])]
    if question.thinned and keep < 1.0:
        low = (canary.unit[places] & np.uint64(0xFFFFFFFF)).astype(np.float64)
        places = places[low < keep * 2.0**32]
    places = places[:_MAX_BETS]
    gains = [question.gains(Bet(side, 1.0, SHARE, 0.0)) for side in (False, True)]
    steps = np.array(gains)[canary.candidate[places].astype(np.intp)]
    logs = np.cumsum(steps, axis=0)
    top = logs.max(axis=1, initial=-np.inf)
    with np.errstate(under="ignore"):
        mixed = np.exp(logs - top[:, None]) @ np.array(question.weights)
    return places, top + np.log(mixed)


def _windows(n: int) -> list[tuple[int, int, float, float]]:
    """Return the windows: first request, end, part of the alpha, and which share of the units is looked at."""
    made = [(0, n, _WHOLE, 1.0)]
    start = 0
    while start < n:
        number, length, end = window_at(start + 1 if start else 0)
        part = (1.0 - _WHOLE) / ((number + 1) * (number + 2))
        made.append((start, min(n, end - 1), part, min(1.0, _MAX_BETS / length)))
        start = end - 1
    return made


def check(canary: Canary) -> None:
    """Assert that this is what `mlkit.flags` computes, at its end and when it first rolls back."""
    case, first = Case(GUARD, "benchmark"), None
    rows = zip(canary.unit.tolist(), canary.candidate.tolist(), canary.failed.tolist(), strict=True)
    for n, (unit, candidate, failed) in enumerate(rows, start=1):
        trial = Trial(candidate, not failed, None, SHARE, unit, {}, ramp=True)
        if case.add(trial) and first is None:
            first = n
    assert (None if first is None else -(-first // LOOK) * LOOK) == ours(canary)
    everything = np.ones(len(canary.unit), dtype=bool)
    for name, question, asked in (
        ("error_ratio", Ratio(1.0, lambda _: 1.0), canary.failed),
        ("sample_ratio", Split(), everything),
    ):
        first_window, *others = _windows(len(asked))
        values = []
        for window in (first_window, others[-1]):
            logs = _logs(canary, question, asked, window)[1]
            values.append(math.log(window[2]) + (float(logs[-1]) if len(logs) else 0.0))
        real = math.log(case.figures()[f"{name}.e_value"])
        assert math.isclose(real, max(values), rel_tol=1e-9, abs_tol=1e-9), (name, real, values)


# --- the others ----------------------------------------------------------------------------------------------------


def z_test(canary: Canary, *, bonferroni: bool = False) -> int | None:
    """Two proportions, one-sided at 5 %, at every look; or at 5 % over all looks."""
    from statistics import NormalDist

    ends = np.arange(LOOK, len(canary.unit) + 1, LOOK) - 1
    level = 0.05 / len(ends) if bonferroni else 0.05
    n = np.cumsum(canary.candidate)[ends].astype(float)
    k = np.cumsum(canary.failed & canary.candidate)[ends].astype(float)
    m, j = ends + 1.0 - n, np.cumsum(canary.failed)[ends] - k
    with np.errstate(all="ignore"):
        pooled = (k + j) / (n + m)
        z = (k / n - j / m) / np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    over = np.flatnonzero(z > NormalDist().inv_cdf(1 - level))
    return int(ends[over[0]]) + 1 if len(over) else None


def threshold(canary: Canary, *, window: int) -> int | None:
    """Measure every so many canary requests; more than 3 measurements of over twice the incumbent's rate fail it."""
    ends = np.flatnonzero(canary.candidate)[window - 1 :: window]
    k = np.diff(np.cumsum(canary.failed & canary.candidate)[ends], prepend=0)
    j = np.diff(np.cumsum(canary.failed & ~canary.candidate)[ends], prepend=0)
    m = np.diff(np.cumsum(~canary.candidate)[ends], prepend=0)
    bad = np.flatnonzero(k / window > 2.0 * j / np.maximum(m, 1))
    return int(ends[bad[3]]) + 1 if len(bad) > 3 else None


RULES: dict[str, Callable[[Canary], int | None]] = {
    "mlkit guard": ours,
    "the same, by request": lambda canary: ours(canary, by_request=True),
    "z-test at every look": z_test,
    "z-test, Bonferroni": lambda canary: z_test(canary, bonferroni=True),
    "2x, failureLimit 3, of 50": lambda canary: threshold(canary, window=50),
    "2x, failureLimit 3, of 500": lambda canary: threshold(canary, window=500),
}


# --- the tables ----------------------------------------------------------------------------------------------------


def simulate(n_runs: int, n: int, seed: int = 7) -> dict[str, Any]:
    """Return how often healthy canaries were rolled back, and how soon faulty ones."""
    healthy: dict[str, dict[str, float]] = {}
    for scenario in (fresh, recurring, drifting):
        name = scenario.__name__
        for run in range(3):
            check(scenario(np.random.default_rng([seed, 1, run]), min(n, 20_000)))
        counts = dict.fromkeys(RULES, 0)
        for run in range(n_runs):
            canary = scenario(np.random.default_rng([seed, 2, run]), n)
            for rule, judge in RULES.items():
                counts[rule] += judge(canary) is not None
        healthy[name] = {rule: count / n_runs for rule, count in counts.items()}
        print(name, healthy[name], flush=True)
    faulty: dict[str, dict[str, dict[str, float]]] = {}
    for factor in FAULTS:
        found: dict[str, list[float]] = {rule: [] for rule in RULES}
        for run in range(n_runs):
            canary = fresh(np.random.default_rng([seed, 3, int(factor * 10), run]), n, factor)
            seen = np.cumsum(canary.candidate)
            for rule, judge in RULES.items():
                at = judge(canary)
                found[rule].append(math.inf if at is None else float(seen[min(at, n) - 1]))
        faulty[f"{factor:g}"] = {rule: _summary(values) for rule, values in found.items()}
        print(factor, faulty[f"{factor:g}"], flush=True)
    return {"healthy": healthy, "faulty": faulty}


def _summary(values: list[float]) -> dict[str, float]:
    median = float(np.median(values))
    missed = sum(map(math.isinf, values)) / len(values)
    return {"median": median if math.isfinite(median) else -1.0, "missed": missed}


def several(n_runs: int, n: int, seed: int = 11) -> float:
    """Return how often a guard of four metrics rolls back healthy canaries of recurring units; the library itself."""
    alarms = 0
    for run in range(n_runs):
        rng = np.random.default_rng([seed, run])
        canary = recurring(rng, n)
        speed = dict(zip(canary.unit.tolist(), rng.lognormal(size=n).tolist(), strict=True))
        noise, scores = rng.lognormal(size=n).tolist(), rng.random(n).tolist()
        case = Case(SEVERAL, "benchmark")
        rows = zip(
            canary.unit.tolist(), canary.candidate.tolist(), canary.failed.tolist(), strict=True
        )
        for i, (unit, candidate, failed) in enumerate(rows):
            latency, score = speed[unit] * noise[i], {"score": scores[i]}
            if case.add(Trial(candidate, not failed, latency, SHARE, unit, score, ramp=True)):
                alarms += 1
                break
    return alarms / n_runs


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw both tables."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "mlkit"  # the same picture has the same bytes
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), sharey=True, layout="constrained")
    rules = list(RULES)
    shades = ["#2a6fbb", "#7fb0e3", "#b9bdc4"]
    names = {
        "fresh": "new units",
        "recurring": "units come back",
        "drifting": "and the rate drifts",
    }
    for i, (scenario, label) in enumerate(names.items()):
        rates = [100 * results["healthy"][scenario][rule] for rule in rules]
        places = np.arange(len(rules)) + (i - 1) * 0.27
        bars = left.barh(places, rates, 0.25, color=shades[i], label=label)
        left.bar_label(bars, [f" {rate:.1f}" for rate in rates], fontsize=7)
    left.axvline(5, color="black", linewidth=0.8)
    left.set_xlim(0, 112)
    left.set_title("healthy canaries rolled back, %; the line is 5 %", fontsize=9, loc="left")
    for i, factor in enumerate(FAULTS):
        rows = [results["faulty"][f"{factor:g}"][rule] for rule in rules]
        places = np.arange(len(rules)) + (i - 1) * 0.27
        widths = [max(row["median"], 10.0) for row in rows]
        bars = right.barh(places, widths, 0.25, color=shades[i], label=f"{factor:g}x the errors")
        texts = [
            f" {row['median']:.0f}"
            + (f", {row['missed']:.0%} missed" if row["missed"] > 0.005 else "")
            if row["median"] > 0
            else " most are missed"
            for row in rows
        ]
        right.bar_label(bars, texts, fontsize=7)
    right.set_xscale("log")
    right.set_xlim(10, 60_000)
    right.set_title("canary requests until a faulty one is, median", fontsize=9, loc="left")
    left.set_yticks(np.arange(len(rules)), rules, fontsize=8)
    left.invert_yaxis()
    for ax, place in ((left, "lower right"), (right, "upper right")):
        ax.legend(fontsize=7, loc=place, frameon=False)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(axis="x", labelsize=7)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    """Simulate, say whether the law holds, and write the results unless it was quick."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flags_guard", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100 canaries, and write nothing")
    parser.add_argument("--draw", action="store_true", help="only draw the committed results")
    options = parser.parse_args()
    if options.draw:
        draw(json.loads(RESULTS.read_text(encoding="utf-8")), PICTURE)
        return 0
    n_runs = 100 if options.quick else 2_000
    results = simulate(n_runs, 50_000)
    results["several"] = several(n_runs, 3_000)
    results["runs"] = n_runs
    print("several metrics at once:", results["several"])
    worst = max(*(row["mlkit guard"] for row in results["healthy"].values()), results["several"])
    medians = {
        factor: results["faulty"][f"{factor:g}"]["mlkit guard"]["median"] for factor in FAULTS
    }
    kept = worst <= 0.05 and all(0 < medians[one] <= TARGETS[one] for one in FAULTS)
    print(
        f"worst false alarm rate {worst:.2%}, medians {medians}: the law {'holds' if kept else 'FAILS'}"
    )
    if not options.quick:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        draw(results, PICTURE)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
