"""Rollouts: steps, evidence, taking back; and the guard's promise, simulated."""

from __future__ import annotations

import json
import pickle
import random
import statistics
import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mlkit.errors import ConfigurationError, FlagFileError
from mlkit.flags import ErrorRate, Flags, Guard, Latency
from mlkit.telemetry import listen
from mlkit.testing import record_events, virtual_time

FLAG = {
    "state": "ENABLED",
    "variants": {"v1": "m:/1", "v2": "m:/2", "v3": "m:/3"},
    "defaultVariant": "v1",
}
USERS = [f"user-{i}" for i in range(400)]


def made(guard=None, flag=FLAG, **options):
    flags = Flags.from_dict({"flags": {"m": flag, "other": FLAG}})
    model = flags.model("m", default="v1")
    return flags, model, model.rollout("v2", guard=guard, **{"steps": [0.1, 0.5, 1.0], **options})


def share_of(model, variant="v2"):
    return model.assign(USERS).counts().get(variant, 0) / len(USERS)


def test_it_does_nothing_until_advanced_then_ramps():
    flags, model, rollout = made()
    before = flags.digest
    assert (rollout.status, rollout.share, share_of(model)) == ("ready", 0.0, 0.0)
    assert model.rollout("v2").status == "ready"  # nothing was under way
    assert flags.digest == before
    shares = []
    for _ in range(3):
        decision = rollout.advance()
        assert decision.action == "advanced"
        assert decision.digest == flags.digest
        shares.append(share_of(model))
    assert [decision.share for decision in rollout.history] == [0.1, 0.5, 1.0]
    assert shares == sorted(shares)
    assert 0.05 < shares[0] < 0.15
    assert shares[2] == 1.0
    assert rollout.status == "full"
    assert rollout.advance().action == "held"
    assert len(rollout.history) == 3
    assert flags.model("other", default="v1")("user-1") == "m:/1"


def test_a_step_lasts_as_long_as_it_must():
    with virtual_time() as clock:
        _, _, rollout = made(min_step=60)
        assert rollout.advance().action == "advanced"
        assert "0 s of 60 s" in rollout.advance().reason
        clock.advance(60)
        assert rollout.advance().share == 0.5


def test_the_guard_takes_it_back_with_the_evidence():
    flags, model, rollout = made(Guard(ErrorRate(max_rate=0.05), alpha=0.01))
    rollout.advance()
    with record_events("flags.") as events:
        n = 0
        while rollout.status == "ramping":
            n += 1
            details = model.details(f"u{n}")
            rollout.observe(details.variant, ok=details.variant == "v1")
    assert n < 200
    assert (rollout.status, rollout.share, share_of(model)) == ("rolled_back", 0.0, 0.0)
    (event,) = [event for event in events if event.kind == "flags.rollout.rolled_back"]
    last = rollout.history[-1]
    assert last.action == "rolled_back"
    assert event.fields["error_rate.e_value"] == last.evidence["error_rate.e_value"] >= 100
    assert last.evidence["error_rate.candidate_sum"] == last.evidence["error_rate.candidate_n"] > 0
    assert event.fields["digest"] == last.digest == flags.digest
    rollout.observe("v2", ok=True)
    assert "rolled_back" in rollout.advance().reason
    assert rollout.rollback("again").action == "held"
    assert len(rollout.history) == 2


def test_rules_stay_and_a_rollback_takes_the_candidate_from_them_too():
    flag = {
        **FLAG,
        "targeting": {
            "if": [
                {"==": [{"var": "plan"}, "beta"]},
                "v2",
                {"==": [{"var": "plan"}, "three"]},
                "v3",
                None,
            ]
        },
    }
    _, model, rollout = made(flag=flag)
    assert model.details("u", plan="beta").variant == "v2"
    rollout.advance()
    assert model.details("u", plan="three").variant == "v3"
    assert 0.05 < share_of(model) < 0.15
    rollout.rollback("by hand")
    assert [model.details("u", plan=plan).variant for plan in ("beta", "three", "x")] == [
        "v1",
        "v3",
        "v1",
    ]


def test_the_default_becomes_the_incumbent():
    flags = Flags.from_dict({"flags": {"m": {**FLAG, "defaultVariant": "v2"}}})
    model = flags.model("m", default="v1")
    rollout = model.rollout("v2", steps=[0.5], incumbent="v1")
    rollout.advance()
    assert set(model.assign(USERS).counts()) == {"v1", "v2"}
    assert model.details(None).variant == "v1"
    rollout.rollback("no")
    assert share_of(model) == 0


def test_kill_gives_everybody_the_code_default():
    _, model, rollout = made()
    rollout.advance()
    rollout.rollback("first")
    assert rollout.kill("bad data").action == "killed"
    assert model.details("u")[:3] == ("m:/1", "v1", "DISABLED")
    assert (rollout.status, rollout.kill("again").action, rollout.rollback("late").action) == (
        "killed",
        "held",
        "held",
    )


def test_a_reload_keeps_the_rollout_and_a_disabled_flag_wins(tmp_path):
    path = tmp_path / "flags.json"
    path.write_text(json.dumps({"flags": {"m": FLAG}}))
    flags = Flags.from_file(path)
    model = flags.model("m", default="v1")
    rollout = model.rollout("v2", steps=[0.5, 1.0])
    rollout.advance()
    before = model.assign(USERS).variants
    path.write_text(
        json.dumps({"flags": {"m": {**FLAG, "metadata": {"owner": "ranking"}}, "new": FLAG}})
    )
    assert flags.reload().added == ("new",)
    assert model.assign(USERS).variants == before
    path.write_text(json.dumps({"flags": {"m": {**FLAG, "state": "DISABLED"}}}))
    flags.reload()
    assert share_of(model) == 0
    path.write_text(json.dumps({"flags": {"m": {**FLAG, "variants": {"v1": "m:/1"}}}}))
    with record_events("flags.rollout.unusable") as events:
        flags.reload()
    assert len(events) == 1
    assert share_of(model) == 0
    path.write_text(json.dumps({"flags": {"m": FLAG}}))
    flags.reload()
    assert model.assign(USERS).variants == before


@pytest.mark.parametrize("seed", [None, "wave"])
@pytest.mark.parametrize(
    "targeting", [None, {"if": [{"==": [{"var": "plan"}, "beta"]}, "v2", None]}]
)
def test_saved_it_is_the_same_for_another_process(tmp_path, targeting, seed):
    path = tmp_path / "flags.json"
    flag = FLAG if targeting is None else {**FLAG, "targeting": targeting}
    path.write_text(json.dumps({"$schema": "x", "flags": {"m": flag, "other": FLAG}}))
    flags = Flags.from_file(path)
    rollout = flags.model("m", default="v1").rollout("v2", steps=[0.25, 1.0], seed=seed)
    rollout.advance()
    rollout.save()
    assert flags.reload() is None  # what is in force is what was saved
    other = Flags.from_file(path)
    model = other.model("m", default="v1")
    assert other.digest == flags.digest
    assert model.assign(USERS).variants == flags.model("m", default="v1").assign(USERS).variants
    resumed = model.rollout("v2", steps=[0.25, 1.0], seed=seed)
    assert (resumed.status, resumed.share) == ("ramping", 0.25)
    assert other.digest == flags.digest
    resumed.rollback("over there")
    resumed.save()
    flags.reload()
    assert json.loads(path.read_text())["$schema"] == "x"
    third = Flags.from_file(path).model("m", default="v1")
    assert third.details("u", plan="beta").variant == "v1"
    assert third.rollout("v2").status == "rolled_back"
    assert [file.name for file in tmp_path.iterdir()] == ["flags.json"]


@pytest.mark.parametrize("end", ["advance", "rollback", "kill"])
@pytest.mark.parametrize("seed", [None, "wave"])
@pytest.mark.parametrize(
    "rewritten",
    [
        {"if": [{"==": [{"var": "plan"}, "pro"]}, "v3"]},
        {"if": [{"==": [{"var": "plan"}, "pro"]}, "v3", "v1"]},
        {"or": [{"if": [{"==": [{"var": "plan"}, "pro"]}, "v3"]}, {"var": "group"}]},
    ],
)
def test_a_rule_that_was_rewritten_while_it_ramped_stays(tmp_path, rewritten, seed, end):
    path = tmp_path / "flags.json"
    path.write_text(json.dumps({"flags": {"m": FLAG}}))
    rollout = Flags.from_file(path).model("m", default="v1").rollout("v2", seed=seed)
    getattr(rollout, end)(*([] if end == "advance" else ["why"]))
    rollout.save()
    document = json.loads(path.read_text())
    document["flags"]["m"] |= {"targeting": rewritten}  # in the file, in haste: the marks stay
    path.write_text(json.dumps(document))
    flags = Flags.from_file(path)
    model = flags.model("m", default="v1")
    resumed = model.rollout("v2", seed=seed)
    assert resumed.status == rollout.status
    if end != "kill":
        assert model.details("ann", plan="pro").variant == "v3"
    resumed.kill("the variant that was brought in is gone for good")
    resumed.save()
    saved = json.loads(path.read_text())["flags"]["m"]
    assert saved["targeting"] == rewritten


def test_saving_through_a_link_keeps_the_link(tmp_path):
    real, link = tmp_path / "real.json", tmp_path / "flags.json"
    real.write_text(json.dumps({"flags": {"m": FLAG}}))
    link.symlink_to(real)
    rollout = Flags.from_file(link).model("m", default="v1").rollout("v2")
    rollout.advance()
    rollout.save()
    assert link.is_symlink()
    assert "rollout.share" in real.read_text()


def test_nothing_to_save_to():
    _, _, rollout = made()
    rollout.advance()
    with pytest.raises(FlagFileError, match="no file"):
        rollout.save()


@pytest.mark.parametrize(
    "options",
    [
        {"candidate": "v9"}, {"candidate": "v1"}, {"candidate": None}, {"incumbent": "v9"}, {"steps": []}, {"steps": [0.5, 0.5]},
        {"steps": [0.5, 0.1]}, {"steps": [0]}, {"steps": [1.5]}, {"steps": [float("nan")]}, {"steps": [True]}, {"steps": 3},
        {"steps": [1e-9]}, {"min_step": -1}, {"min_step": float("nan")}, {"min_step": True}, {"guard": 0.05}, {"seed": ""}, {"seed": 3},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_rollouts_are_refused(options):
    flags = Flags.from_dict({"flags": {"m": FLAG}})
    with pytest.raises(ConfigurationError):
        flags.model("m", default="v1").rollout(**{"candidate": "v2", "steps": [1.0], **options})
    assert flags.digest == Flags.from_dict({"flags": {"m": FLAG}}).digest


def test_wrong_observations_are_refused():
    _, model, rollout = made(Guard(ErrorRate(max_rate=0.5), Latency(max_seconds=1.0)))
    rollout.advance()
    for wrong in (
        {"ok": 1},
        {"ok": None},
        {"ok": True, "latency": -1},
        {"ok": True, "latency": float("nan")},
    ):
        with pytest.raises(ConfigurationError):
            rollout.observe("v2", **wrong)
    with pytest.raises(ConfigurationError, match="did you mean"):
        rollout.observe("v22", ok=True)
    rollout.observe("v3", ok=False)
    rollout.observe(None, ok=False)
    assert rollout.evidence["error_rate.candidate_n"] == 0
    with pytest.raises(ConfigurationError, match="under way"):
        model.rollout("v3")
    with pytest.raises(ConfigurationError):
        rollout.rollback("")
    with pytest.raises(ConfigurationError, match="can be read"):
        Flags.in_memory({}).model("m", default="v1").rollout("v2")


def test_a_slow_candidate_is_taken_back():
    _, _, rollout = made(Guard(ErrorRate(max_rate=0.5), Latency(max_seconds=0.2, q=0.9)))
    rollout.advance()
    for _ in range(60):
        rollout.observe("v2", ok=True)  # not measured: no evidence either way
    for n in range(60):
        rollout.observe("v2", ok=True, latency=0.5 if n % 2 else 0.1)
    assert rollout.status == "rolled_back"
    assert rollout.history[-1].evidence["latency.candidate_n"] < 60
    assert rollout.history[-1].evidence["latency.e_value"] >= 40


def test_observations_from_many_threads_roll_back_once():
    _, _, rollout = made(Guard(ErrorRate(max_rate=0.05)))
    rollout.advance()
    barrier = threading.Barrier(4)

    def work():
        barrier.wait()
        for _ in range(200):
            rollout.observe("v2", ok=False)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [decision.action for decision in rollout.history] == ["advanced", "rolled_back"]


def test_guards_pickle_and_serve_several_rollouts():
    guard = pickle.loads(
        pickle.dumps(Guard(ErrorRate(max_ratio=1.5), Latency(max_seconds=1.0), alpha=0.01))
    )
    assert (
        repr(guard)
        == "Guard(ErrorRate(max_ratio=1.5), Latency(max_seconds=1.0, q=0.95), alpha=0.01)"
    )
    (_, _, one), (_, _, two) = made(guard), made(guard)
    one.advance()
    two.advance()
    for _ in range(50):
        one.observe("v2", ok=False, latency=2.0)
    assert (one.status, two.status) == ("rolled_back", "ramping")
    assert two.evidence["latency.candidate_n"] == 0


# --- whatever a handle gives may be observed ---------------------------------------------------------------------


def test_what_a_handle_gives_in_trouble_can_be_observed():
    flags = Flags.from_dict({"flags": {"m": FLAG}})
    one, two = flags.model("m", default="m:/fallback"), flags.model("m", default="v0")
    rollout = one.rollout("v2", guard=Guard(ErrorRate(max_rate=0.1)))
    rollout.advance()
    with flags.override({"m": "file:///tmp/m"}):
        rollout.observe(one.details("u").variant, ok=True)
    served = one.details("u").variant
    flags.replace({"flags": {"m": {**FLAG, "variants": {"v1": "m:/1", "v2": "m:/2"}}}})
    rollout.observe("v3", ok=True)  # decided before the reload
    rollout.observe(served, ok=True)
    rollout.kill("bad data")
    for model, variant in ((one, "m:/fallback"), (two, "v0")):
        details = model.details("u")
        assert (details.variant, details.reason) == (variant, "DISABLED")
        rollout.observe(details.variant, ok=True)
    flags.replace({"flags": {}})
    rollout.observe(one.details("u").variant, ok=True)


@pytest.mark.parametrize("wrong", [["v2"], 3, b"v2", {"variant": "v2"}], ids=repr)
def test_what_is_no_name_is_refused_as_such(wrong):
    _, _, rollout = made(Guard(ErrorRate(max_rate=0.5)))
    with pytest.raises(ConfigurationError, match="variant"):
        rollout.observe(wrong, ok=True)
    with pytest.raises(ConfigurationError, match="latency"):
        rollout.observe("v2", ok=True, latency=True)


# --- several rollouts of one flag --------------------------------------------------------------------------------


def test_only_one_of_two_ready_rollouts_starts():
    _, model, one = made()
    two = model.rollout("v3", steps=[0.5, 1.0])
    one.advance()
    taken = model.assign(USERS).variants
    for decision in (two.advance(), two.rollback("no")):
        assert decision.action == "held"
        assert "'v2' is under way" in decision.reason
    assert (two.status, two.history, model.assign(USERS).variants) == ("ready", (), taken)
    one.rollback("done")
    assert two.advance().action == "advanced"
    assert set(model.assign(USERS).counts()) == {"v1", "v3"}


def test_of_rollouts_that_start_at_once_one_does():
    _, model, _ = made()
    rollouts = [model.rollout(name, steps=[0.5, 1.0]) for name in ("v2", "v3") * 4]
    barrier = threading.Barrier(len(rollouts))

    def work(rollout):
        barrier.wait()
        rollout.advance()

    threads = [threading.Thread(target=work, args=(rollout,)) for rollout in rollouts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (started,) = [rollout for rollout in rollouts if rollout.status == "ramping"]
    assert share_of(model, started.candidate) > 0
    assert share_of(model, {"v2": "v3", "v3": "v2"}[started.candidate]) == 0


def test_the_next_rollout_starts_from_the_version_that_serves(tmp_path):
    path = tmp_path / "flags.json"
    path.write_text(json.dumps({"flags": {"m": FLAG}}))
    flags = Flags.from_file(path)
    model = flags.model("m", default="v1")
    one = model.rollout("v2", steps=[1.0])
    one.advance()
    one.save()
    for there in (flags, Flags.from_file(path)):  # in memory, and from the file
        handle = there.model("m", default="v1")
        two = handle.rollout("v3", steps=[0.5, 1.0])
        assert two.incumbent == "v2"
        two.advance()
        assert set(handle.assign(USERS).counts()) == {"v2", "v3"}
    assert "taken its place" in one.rollback("late").reason
    assert set(model.assign(USERS).counts()) == {"v2", "v3"}
    assert one.kill("all of it").action == "killed"
    assert model.details("u").reason == "DISABLED"


def test_a_rollout_under_way_in_the_file_is_under_way(tmp_path):
    path = tmp_path / "flags.json"
    path.write_text(json.dumps({"flags": {"m": FLAG}}))
    rollout = Flags.from_file(path).model("m", default="v1").rollout("v2", steps=[0.5, 1.0])
    rollout.advance()
    rollout.save()
    model = Flags.from_file(path).model("m", default="v1")
    with pytest.raises(ConfigurationError, match=r"'v2' is at 0\.5"):
        model.rollout("v3")
    assert model.rollout("v2", steps=[0.5, 1.0]).share == 0.5


def test_a_killed_flag_stays_so_whatever_variants_the_file_has():
    flags, model, rollout = made()
    rollout.advance()
    rollout.kill("bad data")
    for gone in ("v2", "v1"):
        left = {name: uri for name, uri in FLAG["variants"].items() if name != gone}
        flags.replace({"flags": {"m": {**FLAG, "variants": left, "defaultVariant": "v3"}}})
        assert model.details("u").reason == "DISABLED"


# --- what others do meanwhile ------------------------------------------------------------------------------------


def test_a_listener_that_rolls_back_finds_the_record_in_order():
    flags, _, rollout = made()
    flags.on_change(lambda change: rollout.rollback("not on my watch"))
    assert rollout.advance().share == 0.1
    one, two = rollout.history
    assert [(decision.action, decision.share) for decision in (one, two)] == [
        ("advanced", 0.1),
        ("rolled_back", 0.0),
    ]
    assert one.digest != two.digest == flags.digest


def test_a_listener_may_use_the_flags_when_a_rollout_cannot_be_applied():
    flags, _, rollout = made()
    rollout.advance()
    reloaded = []

    def work():
        back = {"flags": {"m": FLAG}}
        with listen(lambda _: reloaded.append(flags.replace(back)), scope="context"):
            flags.replace({"flags": {"m": {**FLAG, "variants": {"v1": "m:/1"}}}})

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert reloaded


def test_saving_keeps_the_mode_and_says_when_the_flag_is_gone(tmp_path):
    path = tmp_path / "flags.json"
    path.write_text(json.dumps({"flags": {"m": FLAG}}))
    path.chmod(0o600)
    flags = Flags.from_file(path)
    rollout = flags.model("m", default="v1").rollout("v2")
    rollout.advance()
    rollout.save()
    assert path.stat().st_mode & 0o777 == 0o600
    flags.replace({"flags": {}})
    with pytest.raises(FlagFileError, match="no longer there"):
        rollout.save()


def test_the_digest_names_the_models_that_the_set_gives():
    digests = {}
    for uri in ("x:/1", "x:/2", "x:/1"):
        flags = Flags.from_dict({"flags": {"m": FLAG}, "metadata": {"model.v1": uri}})
        assert flags.model("m", default="v1")() == uri
        assert digests.setdefault(uri, flags.digest) == flags.digest
    assert len(set(digests.values())) == 2


# --- the guard's promise -----------------------------------------------------------------------------------------


def simulate(guard, rng, *, share, candidate, incumbent, n, seconds=None):
    """Return after how many requests a canary is rolled back, None if it is not, looking after every one."""
    _, _, rollout = made(guard, steps=[share, 1.0])
    rollout.advance()
    for i in range(n):
        taken = rng.random() < share
        rate = (candidate(i) if callable(candidate) else candidate) if taken else incumbent
        latency = None if seconds is None else seconds(rng)
        rollout.observe("v2" if taken else "v1", ok=rng.random() >= rate, latency=latency)
        if rollout.status == "rolled_back":
            return i + 1
    return None


NULLS = {
    "rate at the limit": (Guard(ErrorRate(max_rate=0.1), alpha=0.1), {"share": 0.9, "candidate": 0.1, "incumbent": 0.9}),
    "rate changing below": (
        Guard(ErrorRate(max_rate=0.2), alpha=0.1),
        {"share": 0.9, "candidate": lambda i: 0.0 if i < 100 else 0.2, "incumbent": 0.2},
    ),
    "equal rates": (Guard(ErrorRate(max_ratio=1.0), alpha=0.1), {"share": 0.5, "candidate": 0.3, "incumbent": 0.3}),
    "ratio at the limit": (Guard(ErrorRate(max_ratio=2.0), alpha=0.1), {"share": 0.2, "candidate": 0.4, "incumbent": 0.2}),
    "several metrics": (
        Guard(ErrorRate(max_rate=0.2), ErrorRate(max_ratio=1.0), Latency(max_seconds=0.9, q=0.9), alpha=0.1),
        {"share": 0.5, "candidate": 0.2, "incumbent": 0.2, "seconds": lambda rng: rng.random()},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NULLS)
def test_a_healthy_candidate_is_rarely_rolled_back_however_often_one_looks(name):
    guard, options = NULLS[name]
    rng = random.Random(f"null {name}")
    runs = 40
    alarms = sum(simulate(guard, rng, n=300, **options) is not None for _ in range(runs))
    # At the limit of alpha = 0.1 more than 9 of 40 have a probability below 1 %.
    assert alarms <= 9


def test_a_test_that_peeks_would_fail_the_same_simulation():
    """The simulation can tell: a z-test after every request raises the alarm far more often than 10 %."""
    rng = random.Random("peeking")
    alarms = 0
    for _ in range(150):
        errors = 0
        for n in range(1, 301):
            errors += rng.random() < 0.1
            if n >= 20 and (errors - 0.1 * n) > 1.2816 * (n * 0.09) ** 0.5:
                alarms += 1
                break
    assert alarms > 40


@pytest.mark.parametrize(("factor", "within"), [(5, 90), (10, 40), (25, 15)])
def test_a_fault_is_found_soon(factor, within):
    rng = random.Random(f"fault {factor}")
    guard = Guard(ErrorRate(max_rate=0.02))
    found = [
        simulate(guard, rng, share=0.999, candidate=0.02 * factor, incumbent=0.0, n=2_000)
        for _ in range(15)
    ]
    assert None not in found
    assert statistics.median(found) <= within


def test_a_worse_candidate_is_found_against_the_incumbent():
    rng = random.Random("ratio")
    guard = Guard(ErrorRate(max_ratio=1.1))
    found = [
        simulate(guard, rng, share=0.5, candidate=0.5, incumbent=0.05, n=2_000) for _ in range(10)
    ]
    assert None not in found
    assert statistics.median(found) <= 120


def test_a_fault_that_comes_late_is_found_soon_too():
    rng = random.Random("late")
    guard = Guard(ErrorRate(max_rate=0.05))
    found = [
        simulate(
            guard,
            rng,
            share=0.999,
            candidate=lambda i: 0.01 if i < 1_500 else 0.8,
            incumbent=0.0,
            n=2_000,
        )
        for _ in range(5)
    ]
    assert None not in found
    assert max(found) <= 1_500 + 100


class Ramp(RuleBasedStateMachine):
    """Any order of calls, against a plain model of status and step."""

    STEPS = (0.2, 0.6, 1.0)

    def __init__(self):
        super().__init__()
        self.flags, self.model, self.rollout = made(
            Guard(ErrorRate(max_rate=0.2)), steps=self.STEPS
        )
        self.status, self.step, self.n = "ready", -1, 0
        self.taken = set()

    @rule()
    def advance(self):
        decision = self.rollout.advance()
        if self.status in {"ready", "ramping"}:
            self.step += 1
            self.status = "full" if self.step == 2 else "ramping"
            assert decision.action == "advanced"
            self.n += 1
        else:
            assert decision.action == "held"

    @rule(good=st.integers(0, 20))
    def healthy(self, good):
        for _ in range(good):
            self.rollout.observe("v2", ok=True)

    @precondition(lambda self: self.status not in {"rolled_back", "killed"})
    @rule()
    def faulty(self):
        for _ in range(200):
            self.rollout.observe("v2", ok=False)
        self.status = "rolled_back"
        self.n += 1

    @rule()
    def rollback(self):
        self.rollout.rollback("by hand")
        if self.status not in {"rolled_back", "killed"}:
            self.status = "rolled_back"
            self.n += 1

    @rule()
    def kill(self):
        self.rollout.kill("by hand")
        self.n += self.status != "killed"
        self.status = "killed"

    @rule(value=st.integers(0, 3))
    def reload(self, value):
        self.flags.replace({"flags": {"m": FLAG, "other": {**FLAG, "metadata": {"n": value}}}})

    @invariant()
    def agrees(self):
        rollout = self.rollout
        assert rollout.status == self.status
        live = self.status in {"ramping", "full"}
        assert rollout.share == (self.STEPS[self.step] if live else 0.0)
        assert len(rollout.history) == self.n
        now = {user for user in USERS[:60] if self.model.details(user).variant == "v2"}
        assert self.taken <= now or not live
        assert live or not now
        self.taken = now if live else set()


TestRamp = Ramp.TestCase
TestRamp.settings = settings(max_examples=20, stateful_step_count=12, deadline=None)
