"""Serving under a rollout: models, the fallback to the incumbent, shadow runs, and going back at once."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings

import pytest

from mlkit.errors import ConfigurationError, DegradedWarning
from mlkit.flags import ErrorRate, Flags, Guard, Latency, Mean
from mlkit.telemetry import collect
from mlkit.testing import record_events, virtual_time

FLAG = {
    "state": "ENABLED",
    "variants": {"v1": "m:/1", "v2": "m:/2"},
    "defaultVariant": "v1",
}


class Shelf:
    """Models that can fail and be given up."""

    def __init__(self, *broken):
        self.broken, self.loaded, self.unloaded = set(broken), [], []

    def load(self, uri):
        self.loaded.append(uri)
        if uri in self.broken:
            raise OSError(uri)
        return lambda x: f"{uri} says {x}"

    def unload(self, model):
        self.unloaded.append(model("bye"))


def made(share=1.0, flag=FLAG, **options):
    flags = Flags.from_dict({"flags": {"m": flag}})
    model = flags.model("m", default="v1")
    steps = [share] if share == 1.0 else [share, 1.0]
    rollout = model.rollout("v2", steps=steps, **options)
    return flags, rollout


def ask(rollout, unit="ann"):
    with rollout.serve(unit) as served:
        return served.run(lambda model: model("hello"))


def test_the_model_of_the_variant_serves_and_is_loaded_once():
    shelf = Shelf()
    _, rollout = made(load=shelf.load)
    assert [ask(rollout), ask(rollout, 7)] == ["m:/1 says hello"] * 2
    rollout.advance()
    assert [ask(rollout), ask(rollout, 7)] == ["m:/2 says hello"] * 2
    assert shelf.loaded == ["m:/1", "m:/2"]
    with rollout.serve("ann") as served:
        assert (served.variant, served.model("x")) == ("v2", "m:/2 says x")


def test_nothing_is_loaded_that_nobody_asked_for():
    shelf = Shelf()
    _, rollout = made(load=shelf.load)
    with rollout.serve("ann") as served:
        assert served.details.value == "m:/1"
    assert shelf.loaded == []
    _, bare = made()
    with bare.serve("ann") as served:
        assert served.model == "m:/1"


def test_threads_that_need_a_model_at_once_load_it_once():
    shelf, barrier, answers = Shelf(), threading.Barrier(6), []

    def load(uri):
        time.sleep(0.02)
        return shelf.load(uri)

    _, rollout = made(load=load)

    def work():
        barrier.wait()
        answers.append(ask(rollout))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["m:/1 says hello"] * 6
    assert shelf.loaded == ["m:/1"]


def test_a_load_that_was_interrupted_leaves_no_model_and_is_tried_again():
    begun, go_on = threading.Event(), threading.Event()
    loads = []

    def load(uri):
        loads.append(uri)
        if len(loads) == 1:
            begun.set()
            go_on.wait(60)
            raise KeyboardInterrupt
        return f"model {uri}"

    _, rollout = made(load=load)

    def first():
        with pytest.raises(KeyboardInterrupt):
            rollout.models.take("m:/1")

    def second():
        begun.wait(60)
        taken.append(rollout.models.take("m:/1"))

    taken = []
    threads = [threading.Thread(target=one) for one in (first, second)]
    for thread in threads:
        thread.start()
    begun.wait(60)
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert taken == ["model m:/1"]
    assert rollout.models.take("m:/1") == "model m:/1"
    assert loads == ["m:/1", "m:/1"]


@pytest.mark.parametrize("where", ["load", "call"])
def test_a_candidate_that_fails_is_a_failure_and_the_incumbent_answers_once(where):
    shelf = Shelf(*(["m:/2"] if where == "load" else []))
    calls = []

    def call(model):
        answer = model("hello")
        calls.append(answer)
        if where == "call" and answer.startswith("m:/2"):
            raise ZeroDivisionError
        return answer

    _, rollout = made(load=shelf.load, guard=Guard(ErrorRate(max_rate=0.05)))
    rollout.advance()
    for n in range(20):
        with rollout.serve(n) as served:
            assert served.run(call) == "m:/1 says hello"
        if rollout.status == "rolled_back":
            break
    assert rollout.status == "rolled_back"
    last = rollout.history[-1]
    assert last.evidence["error_rate.candidate_sum"] == last.evidence["error_rate.candidate_n"]
    assert len(calls) == (n + 1) * (2 if where == "call" else 1)
    assert sample("flags_fallbacks_total") >= n + 1


def sample(name):
    return sum(one.value for one in collect() if one.name == name and ("flag", "m") in one.labels)


def test_an_incumbent_that_fails_too_is_the_callers_to_know():
    shelf = Shelf("m:/1", "m:/2")
    _, rollout = made(0.5, load=shelf.load, guard=Guard(ErrorRate(max_ratio=1.0)))
    rollout.advance()
    for n in range(10):
        with pytest.raises(OSError, match="m:/1"):
            ask(rollout, n)
    figures = rollout.evidence
    assert figures["error_ratio.candidate_sum"] + figures["error_ratio.incumbent_sum"] == 10
    assert shelf.loaded.count("m:/1") == 10  # a failed load is tried again


def test_an_error_in_the_block_is_a_failure_and_comes_through():
    _, rollout = made(guard=Guard(ErrorRate(max_rate=0.5)))
    rollout.advance()
    with pytest.raises(LookupError), rollout.serve("ann"):
        raise LookupError
    with pytest.raises(KeyboardInterrupt), rollout.serve("bob"):
        raise KeyboardInterrupt
    assert rollout.evidence["error_rate.candidate_sum"] == 1
    assert rollout.evidence["error_rate.candidate_n"] == 1


def test_the_time_is_measured_without_loading_and_figures_are_taken():
    with virtual_time() as clock:

        def load(uri):
            clock.advance(60)
            return uri

        guard = Guard(Latency(max_seconds=1.0, q=0.5), Mean("score", at_most=0.9))
        _, rollout = made(load=load, guard=guard)
        rollout.advance()
        for unit, took in enumerate((0.5, 2.0)):
            with rollout.serve(unit) as served:
                assert served.model == "m:/2"
                clock.advance(took)
                served.metrics["score"] = 0.25
    assert rollout.evidence["latency.candidate_n"] == 2
    assert rollout.evidence["latency.candidate_sum"] == 1
    assert rollout.evidence["score.candidate_sum"] == 0.5


def test_the_candidates_model_is_kept_until_it_is_drained():
    shelf = Shelf()
    _, rollout = made(load=shelf.load, unload=shelf.unload)
    ask(rollout)
    rollout.advance()
    with rollout.serve("ann") as served:
        model = served.model
        rollout.rollback("no")
        assert shelf.unloaded == []
        assert model("still") == "m:/2 says still"
        assert ask(rollout) == "m:/1 says hello"  # already loaded: going back costs no load
    assert shelf.unloaded == ["m:/2 says bye"]
    assert shelf.loaded == ["m:/1", "m:/2"]
    rollout.close()
    rollout.close()
    assert shelf.unloaded == ["m:/2 says bye", "m:/1 says bye"]


def test_a_model_that_cannot_be_given_up_disturbs_nobody():
    def unload(model):
        raise RuntimeError("stuck")

    _, rollout = made(load=str, unload=unload)
    rollout.advance()
    ask_uri = rollout.serve("ann")
    with ask_uri as served:
        assert served.model == "m:/2"
    with pytest.warns(DegradedWarning, match="stuck"):
        assert rollout.rollback("no").action == "rolled_back"


def test_a_variant_that_is_neither_is_served_and_counts_for_nothing():
    flag = {
        **FLAG,
        "variants": {**FLAG["variants"], "v3": "m:/3"},
        "targeting": {"if": [{"==": [{"var": "plan"}, "three"]}, "v3", None]},
    }
    _, rollout = made(flag=flag, guard=Guard(ErrorRate(max_rate=0.5)))
    rollout.advance()
    with rollout.serve("ann", plan="three") as served:
        assert served.run(str) == "m:/3"
    assert rollout.evidence["error_rate.candidate_n"] == 0


def test_going_back_comes_before_every_file_and_model(tmp_path, monkeypatch):
    """Callers have the incumbent before anything is written or unloaded, which may take any time."""
    seen = []

    def watch(what):
        def watched(*args, **kwargs):
            if begun:
                seen.append((what.__name__, handle("ann")))
            return what(*args, **kwargs)

        return watched

    begun = []
    flags, rollout = made(load=Shelf().load, unload=watch(str), folder=tmp_path)
    handle = flags.str("m", default="v1")
    rollout.advance()
    ask(rollout)
    monkeypatch.setattr(os, "write", watch(os.write))
    monkeypatch.setattr(os, "replace", watch(os.replace))
    begun.append(True)
    rollout.rollback("now")
    assert {name for name, _ in seen} == {"str", "write", "replace"}
    assert {answer for _, answer in seen} == {"m:/1"}


def test_going_back_costs_the_same_in_a_document_of_any_size():
    """Under a millisecond, as the benchmarks show; counted here, for a clock would measure the machine."""

    def n_calls(n_others):
        others = {f"other-{n}": FLAG for n in range(n_others)}
        flags = Flags.from_dict({"flags": {"m": FLAG, **others}})
        rollout = flags.model("m", default="v1").rollout("v2", steps=[1.0])
        rollout.advance()
        calls = [0]

        def count(frame, event, what):
            calls[0] += event in {"call", "c_call"}

        sys.setprofile(count)
        try:
            rollout.rollback("now")
        finally:
            sys.setprofile(None)
        return calls[0]

    n_calls(1)  # what is imported once
    few, many = n_calls(1), n_calls(1000)
    assert many < few + 50 < 1000


# --- shadow runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("compare", "n_different"),
    [(None, 10), (lambda one, other: one[4:] == other[4:], 0)],
    ids=["equal", "own"],
)
def test_shadow_runs_come_after_the_answer_on_their_share(compare, n_different):
    shelf = Shelf()
    _, rollout = made(load=shelf.load, shadow=0.25, compare=compare)
    for n in range(40):
        assert ask(rollout, n) == "m:/1 says hello"
        rollout.close()  # waits for the thread, so that none is dropped
    report = rollout.shadowing
    assert (report.n, report.n_failed, report.n_different, report.n_dropped) == (
        10,
        0,
        n_different,
        0,
    )
    assert report.seconds >= 0
    rollout.advance()
    ask(rollout)
    rollout.close()
    assert rollout.shadowing.n == 10  # the candidate itself serves


def test_a_shadow_that_fails_hangs_or_differs_harms_nobody():
    gate, began = threading.Event(), threading.Event()

    def call(model):
        if model == "m:/2":
            began.set()
            gate.wait(60)
            raise ValueError("secret text")
        return model

    _, rollout = made(shadow=1.0, guard=Guard(ErrorRate(max_rate=0.01)))
    with record_events("flags.shadow") as events:
        for n in range(40):
            with rollout.serve(n) as served:
                assert served.run(call) == "m:/1"
            began.wait(60)
        assert rollout.shadowing.n_dropped >= 20
        gate.set()
        rollout.close()
    report = rollout.shadowing
    assert report.n == report.n_failed == 40 - report.n_dropped
    assert rollout.status == "ready"
    assert all("secret" not in str(event.fields) for event in events)


def test_a_shadow_that_would_exit_is_one_that_fails():
    def call(model):
        if model == "m:/2":
            raise SystemExit(2)
        return model

    _, rollout = made(shadow=1.0)
    for user in range(3):
        with rollout.serve(user) as served:
            assert served.run(call) == "m:/1"
    rollout.close()  # waits for all of them
    assert (rollout.shadowing.n, rollout.shadowing.n_failed) == (3, 3)


def test_results_are_compared_in_every_element():
    import numpy as np

    answers = {"m:/1": np.array([1.0, 2.0]), "m:/2": np.array([1.0, 2.0])}
    _, rollout = made(shadow=1.0)
    for _ in range(2):
        with rollout.serve("ann") as served:
            served.run(answers.__getitem__)
        rollout.close()
        answers["m:/2"] = np.array([1.0, 3.0])
    assert (rollout.shadowing.n, rollout.shadowing.n_different) == (2, 1)


def test_a_rolled_back_candidate_has_no_shadow():
    _, rollout = made(shadow=1.0)
    rollout.advance()
    rollout.rollback("no")
    with rollout.serve("ann") as served:
        served.run(str)
    rollout.close()
    assert rollout.shadowing.n == 0


@pytest.mark.parametrize(
    "options",
    [{"load": 3}, {"unload": "x"}, {"compare": 1}, {"shadow": 1.5}, {"shadow": True}, {"folder": 3}, {"audit": "x"}],
    ids=str,
)  # fmt: skip
def test_wrong_arguments_are_refused(options):
    with pytest.raises(ConfigurationError):
        made(**options)


def test_no_warning_comes_from_serving():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, rollout = made(0.5, load=str, shadow=1.0, guard=Guard(ErrorRate(max_ratio=1.0)))
        rollout.advance()
        for n in range(50):
            with rollout.serve(n) as served:
                served.run(str)
        rollout.close()
