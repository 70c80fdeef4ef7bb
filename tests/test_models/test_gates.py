"""A gate passes what it should not as seldom as it says, whatever the scores look like; and writes down why it decided."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkit.errors import ChecksFailedError, ConfigurationError
from mlkit.models import Evidence, LatencyGate, ModelStore, PairedGate, share_alpha
from mlkit.models._intervals import quantile_ranks, share_bounds, student_quantile

ALPHA = 0.05
TRIALS = 1000
# Three standard errors of the measured rate above the promised one.
ALLOWED = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / TRIALS)


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    store = ModelStore(tmp_path_factory.mktemp("store"))
    return store.save("ranker", b"old"), store.save("ranker", b"new")


def rate(draw, versions, *, trials=TRIALS, **settings):
    """Return how often a candidate passes whose scores are drawn with the incumbent's."""
    old, new = versions
    rng = np.random.default_rng(11)
    passed = 0
    for _ in range(trials):
        incumbent, candidate = draw(rng)
        scores = {old.number: incumbent, new.number: candidate}
        gate = PairedGate(
            "score",
            lambda version, s=scores: s[version.number],
            against=old,
            alpha=ALPHA,
            **settings,
        )
        passed += gate(new).passed
    return passed / trials


def normal(shift, n=100):
    def draw(rng):
        common = rng.normal(
            0, 5, n
        )  # far noisier than the difference: examples differ, not the versions
        return common, common + rng.normal(shift, 1, n)

    return draw


def skewed(shift, n=300):
    def draw(rng):
        loss = rng.lognormal(0, 1, n) - math.exp(0.5)
        return np.zeros(n), shift + loss

    return draw


def hits(won, lost, n=400):
    """Draw 0/1 scores: the candidate alone is right with probability *won*, the incumbent alone with *lost*."""

    def draw(rng):
        kind = rng.random(n)
        incumbent = (kind < lost) | (kind > 0.3)
        candidate = ((kind >= lost) & (kind < lost + won)) | (kind > 0.3)
        return incumbent.astype(float), candidate.astype(float)

    return draw


class TestFalsePromotions:
    """Each candidate here is exactly as bad as a candidate may not be."""

    def test_students_interval(self, versions):
        assert rate(normal(0.0), versions) <= ALLOWED
        assert rate(normal(-0.5), versions, margin=0.5) <= ALLOWED

    def test_students_interval_of_skewed_scores(self, versions):
        # The long tail is above, where it makes the bound careful; below it is the bootstrap's work.
        assert rate(skewed(0.0), versions) <= ALLOWED

    def test_the_bootstrap_of_skewed_losses(self, versions):
        settings = {"method": "bootstrap", "n_resamples": 400, "trials": 400}
        allowed = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / 400)
        assert rate(skewed(0.0), versions, **settings) <= allowed
        assert rate(skewed(0.0), versions, higher_is_better=False, **settings) <= allowed

    def test_outcomes_that_are_right_or_wrong(self, versions):
        assert rate(hits(0.05, 0.05), versions) <= ALPHA + 0.01
        assert rate(hits(0.02, 0.02, n=100), versions) <= ALPHA + 0.01
        assert rate(hits(0.03, 0.08), versions, margin=0.05) <= ALPHA + 0.01

    @pytest.mark.parametrize("better", [True, False])
    def test_bounded_scores_of_any_shape(self, versions, better):
        def rare(
            rng,
        ):  # a few examples make nearly all of the mean: the tail that other bounds do not see
            hit = rng.random(150) < 0.03
            return np.full(150, 0.03), hit.astype(float)

        settings = {"bounds": (0.0, 1.0), "method": "bounded", "higher_is_better": better}
        assert rate(rare, versions, trials=400, **settings) <= ALPHA
        assert rate(rare, versions, trials=400, method="t", higher_is_better=False) > ALPHA

    def test_latency(self, versions):
        rng = np.random.default_rng(5)
        old, new = versions
        for draw, limit in (
            (lambda: rng.lognormal(0, 1, 600), math.exp(2.3263478740408408)),
            (lambda: rng.pareto(1.1, 600), 0.01 ** (-1 / 1.1) - 1),
            (lambda: np.where(rng.random(600) < 0.01, np.inf, 1.0), 1e9),
        ):
            gate = LatencyGate("p99", lambda _version, d=draw: d(), limit=limit)
            assert sum(gate(new).passed for _ in range(600)) / 600 <= ALPHA + 0.027
        gate = LatencyGate(
            "p90",
            lambda _version: rng.lognormal(0, 1, 400),
            quantile=0.9,
            against=old,
            max_ratio=1.0,
        )
        assert sum(gate(new).passed for _ in range(400)) / 400 <= ALPHA

    def test_a_gate_that_forgets_the_pairs_would_not_do(self, versions):
        """The test bites: means compared without an interval pass half of the candidates that may not."""
        old, new = versions
        rng = np.random.default_rng(3)
        naive = sum(b.mean() > a.mean() for a, b in (normal(0.0)(rng) for _ in range(400))) / 400
        assert naive > 0.4
        assert old != new


class TestPower:
    def test_pairs_find_what_differs_by_a_fraction_of_the_noise(self, versions):
        assert rate(normal(0.5), versions, trials=200) > 0.99
        assert rate(normal(0.0), versions, trials=200, margin=0.5) > 0.99
        assert rate(hits(0.10, 0.02), versions, trials=200) > 0.95
        assert rate(hits(0.02, 0.02, n=2000), versions, trials=100, margin=0.03) > 0.95

    def test_what_is_bounded_is_found_too(self, versions):
        def draw(rng):
            common = rng.beta(2, 2, 1000)
            return common, np.clip(common + rng.normal(0.05, 0.1, 1000), 0, 1)

        settings = {"bounds": (0.0, 1.0), "trials": 50}
        assert rate(draw, versions, margin=0.02, **settings) > 0.95
        assert rate(draw, versions, **settings) > 0.3

    def test_fast_enough_passes(self, versions):
        rng = np.random.default_rng(5)
        old, new = versions
        gate = LatencyGate("p99", lambda _version: rng.lognormal(0, 0.3, 3000), limit=4)
        assert all(gate(new).passed for _ in range(20))
        speed = {old.number: 2.0, new.number: 1.0}
        gate = LatencyGate(
            "p90",
            lambda version: speed[version.number] * rng.lognormal(0, 0.3, 1000),
            quantile=0.9,
            against=old,
            max_ratio=1.0,
        )
        assert all(gate(new).passed for _ in range(20))


class TestWhatIsWrittenDown:
    def test_the_history_has_all_figures(self, tmp_path):
        store = ModelStore(tmp_path)
        old, new = store.save("ranker", b"old"), store.save("ranker", b"new")
        store.promote("ranker", old)
        rng = np.random.default_rng(0)
        common = rng.random(500)
        scores = {1: common, 2: common + rng.normal(0.05, 0.1, 500)}
        calls = {1: rng.random(400), 2: rng.random(400)}
        checks = share_alpha(
            PairedGate("ndcg", lambda v: scores[v.number], against=old, method="bootstrap", seed=3),
            LatencyGate("p95", lambda v: calls[v.number], limit=1.0, quantile=0.95),
        )
        change = store.promote("ranker", new, checks=checks)
        again = ModelStore(tmp_path).history("ranker")[-1]
        assert again == change
        ndcg, p95 = change.evidence["ndcg"], change.evidence["p95"]
        assert ndcg["passed"] is True
        assert (ndcg["n"], ndcg["alpha"], ndcg["seed"]) == (500, 0.025, 3)
        assert ndcg["method"] == "bootstrap"
        assert ndcg["low"] < ndcg["estimate"] < ndcg["high"]
        assert ndcg["estimate"] == pytest.approx(ndcg["candidate"] - ndcg["incumbent"])
        assert (p95["n"], p95["limit"], p95["quantile"]) == (400, 1.0, 0.95)
        change.evidence["ndcg"]["passed"] = False
        assert store.history("ranker")[-1].evidence["ndcg"]["passed"] is True

    def test_a_refusal_says_the_interval(self, versions, tmp_path):
        store = ModelStore(tmp_path)
        old, new = store.save("ranker", b"old"), store.save("ranker", b"new")
        hit = {1: [1.0, 0.0] * 100, 2: [1.0, 0.0] * 100}
        gate = PairedGate("accuracy", lambda v: hit[v.number], against=old)
        with pytest.raises(ChecksFailedError, match=r"200 examples\); must be above 0") as caught:
            store.promote("ranker", new, checks=[gate])
        assert caught.value.failures.keys() == {"accuracy"}
        change = store.history("ranker")[-1]
        assert (change.kind, change.evidence["accuracy"]["passed"]) == ("refused", False)
        assert change.evidence["accuracy"]["method"] == "exact"

    def test_figures_that_json_cannot_say_are_text(self, tmp_path):
        store = ModelStore(tmp_path)
        version = store.save("ranker", b"")

        def check(_version):
            facts = {"low": -math.inf, "mean": np.float64(0.5), "n": np.int64(3), "x" * 99: None}
            return Evidence(passed=True, why="", facts=facts | {str(i): i for i in range(99)})

        evidence = store.promote("ranker", version, checks=[check]).evidence["check"]
        assert (evidence["low"], evidence["mean"], evidence["n"]) == ("-inf", 0.5, "3")
        assert len(evidence) == 42
        assert ModelStore(tmp_path).history("ranker")[-1].evidence["check"] == evidence

    def test_the_same_seed_says_the_same(self, versions):
        old, new = versions
        scores = {1: np.zeros(200), 2: np.random.default_rng(0).exponential(1, 200) - 0.8}

        def gate(seed):
            return PairedGate(
                "x", lambda v: scores[v.number], against=old, method="bootstrap", seed=seed
            )

        assert gate(1)(new) == gate(1)(new)
        assert gate(1)(new).facts["low"] != gate(2)(new).facts["low"]


class TestRefusals:
    def gate(self, versions, candidate, incumbent=None, **settings):
        scores = {1: np.zeros(len(candidate)) if incumbent is None else incumbent, 2: candidate}
        return PairedGate("x", lambda v: scores[v.number], against=versions[0], **settings)

    def test_too_few_examples(self, versions):
        found = self.gate(versions, np.ones(99))(versions[1])
        assert not found.passed
        assert "99 examples; at least 100" in found.why

    def test_scores_that_are_not_finite(self, versions):
        found = self.gate(versions, np.r_[np.ones(199), np.nan])(versions[1])
        assert not found.passed
        assert "1 of 200 scores are not finite" in found.why

    def test_a_version_is_not_better_than_itself(self, versions):
        same = np.random.default_rng(0).random(500)
        for method in ("t", "bootstrap"):
            assert not self.gate(versions, same, same, method=method)(versions[1]).passed
        assert not self.gate(versions, np.ones(500), np.ones(500))(versions[1]).passed
        assert self.gate(versions, same, same, margin=0.01)(versions[1]).passed

    def test_too_few_calls_for_a_bound(self, versions):
        gate = LatencyGate("p99", lambda _version: np.zeros(298), limit=1.0)
        assert not gate(versions[1]).passed
        assert gate(versions[1]).facts["high"] == math.inf
        assert LatencyGate("p99", lambda _version: np.zeros(299), limit=1.0)(versions[1]).passed
        assert not LatencyGate("p99", lambda _version: [], limit=1.0)(versions[1]).passed

    @pytest.mark.parametrize(
        ("candidate", "settings", "said"),
        [
            (np.ones((10, 10)), {}, "one axis"),
            (np.full(100, 0.5), {"method": "exact"}, "0 or 1"),
            (np.full(100, 1.5), {"bounds": (0, 1)}, "scores in"),
        ],
    )
    def test_scores_that_are_no_scores(self, versions, candidate, settings, said):
        with pytest.raises(ConfigurationError, match=said):
            self.gate(versions, candidate, np.zeros(100), **settings)(versions[1])
        scores = {1: np.zeros(3), 2: np.zeros(4)}
        with pytest.raises(ConfigurationError, match="4 and 3 scores"):
            PairedGate("x", lambda v: scores[v.number], against=versions[0])(versions[1])

    def test_wrong_arguments(self, versions):
        old, _ = versions
        for settings in (
            {"alpha": 0.5}, {"alpha": 0}, {"alpha": True}, {"margin": -1}, {"margin": math.nan},
            {"min_examples": 1}, {"method": "wilcoxon"}, {"n_resamples": 10}, {"seed": -1},
            {"against": "ranker@1"}, {"method": "bounded"}, {"bounds": (1, 0)}, {"bounds": 3},
        ):  # fmt: skip
            with pytest.raises(
                ConfigurationError, match=next(iter(settings)).replace("method", "(method|bounds)")
            ):
                PairedGate("x", len, **{"against": old, **settings})
        for settings in (
            {}, {"limit": 1, "max_ratio": 1}, {"max_ratio": 1}, {"limit": 1, "against": old},
            {"limit": 1, "quantile": 1.0}, {"limit": -1},
        ):  # fmt: skip
            with pytest.raises(ConfigurationError):
                LatencyGate("x", len, **settings)
        with pytest.raises(ConfigurationError, match="PairedGates"):
            share_alpha()

    def test_gates_travel(self, versions):
        gate = pickle.loads(pickle.dumps(PairedGate("x", len, against=versions[0], alpha=0.01)))
        assert (gate.name, gate.alpha, gate.against) == ("x", 0.01, versions[0])


class TestIntervals:
    """Against the definitions, counted term by term."""

    @given(st.data())
    def test_bounds_of_a_share(self, data):
        n = data.draw(st.integers(1, 60))
        k, alpha = data.draw(st.integers(0, n)), data.draw(st.sampled_from([0.01, 0.05, 0.2]))
        low, high = share_bounds(k, n, alpha)

        def at_least(p):
            return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))

        assert low == 0 if k == 0 else at_least(low) == pytest.approx(alpha, abs=1e-9)
        at_most = 1 - at_least(high) + math.comb(n, k) * high**k * (1 - high) ** (n - k)
        assert high == 1 if k == n else at_most == pytest.approx(alpha, abs=1e-9)

    @given(st.integers(1, 400), st.sampled_from([0.5, 0.9, 0.99]), st.sampled_from([0.01, 0.05]))
    def test_ranks_of_a_quantile(self, n, quantile, alpha):
        below = [math.comb(n, i) * quantile**i * (1 - quantile) ** (n - i) for i in range(n + 1)]
        reached = [sum(below[:rank]) for rank in range(1, n + 1)]  # of the rank-th value
        low = max((i + 1 for i, p in enumerate(reached) if p <= alpha - 1e-12), default=None)
        high = next((i + 1 for i, p in enumerate(reached) if p >= 1 - alpha + 1e-12), None)
        assert quantile_ranks(n, quantile, alpha) == (low, high)

    def test_students_quantiles(self):
        # Closed forms for 1 and 2 degrees of freedom; the normal distribution for many.
        assert student_quantile(0.95, 1) == pytest.approx(math.tan(math.pi * 0.45))
        assert student_quantile(0.95, 2) == pytest.approx(0.9 * math.sqrt(2 / (1 - 0.9**2)))
        assert student_quantile(0.975, 10**6) == pytest.approx(1.959966, abs=1e-5)
