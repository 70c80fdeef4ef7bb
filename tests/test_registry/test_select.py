"""Choosing a strategy, and the reasons."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkit.errors import ConfigurationError, NoCandidateError, UnknownNameError
from mlkit.registry import Registry
from mlkit.testing import record_events


def registry(**options: dict[str, Any]) -> Registry[Any]:
    reg: Registry[Any] = Registry("strategies")
    for name, given_options in options.items():
        reg.register(name, **given_options)(lambda name=name: name)
    return reg


def test_the_highest_that_accepts_wins_and_the_others_have_reasons():
    reg = registry(
        fused={"priority": 20, "when": lambda c: c["device"] == "cuda" or "needs CUDA"},
        picky={"priority": 15, "when": lambda c: False},
        plain={"priority": 10},
        also={"priority": 10},
        slow={"priority": -1},
    )
    choice = reg.select({"device": "cpu"})
    assert choice.entry.name == "also"
    assert dict(choice.rejected) == {
        "fused": "needs CUDA",
        "picky": "declined without a reason",
        "plain": "'also' of the same priority comes first by name",
        "slow": "outranked by 'also' (priority -1 < 10)",
    }
    assert choice.factory() == "also"
    assert reg.create(choice.entry.ref) == "also"
    assert reg.select({"device": "cuda"}).entry.name == "fused"
    assert "also@1" in repr(choice)
    with pytest.raises(AttributeError, match="immutable"):
        choice.entry = None  # type: ignore[misc, assignment]


def test_preference_comes_first_but_must_accept():
    reg = registry(
        fast={"priority": 9},
        slow={},
        never={"when": lambda c: "never"},
        old={"deprecated": "use fast"},
    )
    assert reg.select(None, prefer=["never", "slow"]).entry.name == "slow"
    assert reg.select(None, prefer=["slow"]).rejected["fast"] == "'slow' is preferred"
    assert "old" not in reg.select(None).rejected
    assert reg.select(None, prefer=["old"]).entry.name == "old"
    with pytest.raises(UnknownNameError, match="did you mean 'fast'"):
        reg.select(None, prefer=["fsat"])
    with pytest.raises(ConfigurationError):
        reg.select(None, prefer="fast")


def test_only_true_means_yes():
    for answer, accepted in [(True, True), (np.True_, True), (np.False_, False), (1, False), ("yes", False), ("", False),
                             (None, False), ([1], False), (object(), False)]:  # fmt: skip
        reg = registry(a={"priority": 1, "when": lambda c, answer=answer: answer}, b={})
        choice = reg.select(None)
        assert (choice.entry.name == "a") is accepted, answer
        if not accepted:
            assert choice.rejected["a"]


def test_a_broken_predicate_is_a_refusal_and_an_event():
    reg = registry(a={"priority": 1, "when": lambda c: c["missing"]}, b={})
    with record_events() as events:
        choice = reg.select({"secret": 1})
    assert choice.entry.name == "b"
    assert "KeyError" in choice.rejected["a"]
    assert [(e.kind, e.name, dict(e.fields)) for e in events] == [
        ("registry.predicate.failed", "strategies", {"entry": "a@1", "error": "KeyError"})
    ]


def test_when_none_accepts_every_reason_is_given():
    reg = registry(a={"when": lambda c: "too big"}, b={"when": lambda c: "too small"})
    with pytest.raises(NoCandidateError) as caught:
        reg.select(None)
    assert caught.value.rejected == {"a": "too big", "b": "too small"}
    assert pickle.loads(pickle.dumps(caught.value)).rejected == caught.value.rejected
    with pytest.raises(NoCandidateError, match="nothing is registered"):
        registry().select(None)


def test_selecting_imports_nothing(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lazy_strategy.py").write_text("def run(): return 'ran'\n")
    reg: Registry[Any] = Registry("lazy")
    reg.lazy("s", "lazy_strategy:run", when=lambda c: True)
    choice = reg.select(None)
    assert "lazy_strategy" not in sys.modules
    assert choice.factory() == "ran"
    sys.modules.pop("lazy_strategy")


@given(
    st.dictionaries(
        st.sampled_from("abcdefgh"), st.tuples(st.integers(-2, 2), st.booleans()), min_size=1
    ),
    st.lists(st.sampled_from("abcdefgh"), unique=True),
)
def test_it_equals_the_obvious_rule(entries, wishes):
    reg = registry(
        **{
            n: {"priority": p, "when": lambda c, ok=ok: ok or "no"}
            for n, (p, ok) in entries.items()
        }
    )
    prefer = [name for name in wishes if name in entries]
    accepted = [name for name, (_, ok) in entries.items() if ok]
    rank = lambda name: (prefer.index(name) if name in prefer else 99, -entries[name][0], name)
    if not accepted:
        with pytest.raises(NoCandidateError):
            reg.select(None, prefer=prefer)
        return
    choice = reg.select(None, prefer=prefer)
    assert choice.entry.name == min(accepted, key=rank)
    assert set(choice.rejected) == set(entries) - {choice.entry.name}


def test_a_preferred_version_takes_part_as_that_version():
    reg: Registry[Any] = Registry("strategies")
    for version in (1, 2):
        reg.register("a", version=version)(lambda version=version: version)
    reg.register("b")(lambda: "b")
    assert reg.select(None).entry.ref == "a@2"
    assert reg.select(None, prefer=["a@1"]).factory() == 1
    assert reg.select(None, prefer=["b", "a@1"]).entry.ref == "b@1"
    assert reg.select(None, prefer=["a@1", "b", "a@2"]).entry.ref == "a@1"


def test_a_deprecated_choice_warns_where_its_factory_is_asked_for():
    reg = registry(old={"deprecated": "use new"})
    choice = reg.select(None, prefer=["old"])
    with pytest.warns(FutureWarning, match="use new") as caught:
        assert choice.factory() == "old"
    assert [warning.filename for warning in caught] == [__file__]


def test_what_is_registered_after_a_choice_takes_part_in_the_next():
    reg = registry(plain={})
    assert reg.select(None).entry.ref == "plain@1"
    reg.register("better", priority=1)(lambda: "better")
    assert reg.select(None).entry.ref == "better@1"
    reg.register("better", version=2, priority=2)(lambda: "best")
    assert reg.select(None).entry.ref == "better@2"
    reg.register("better", version=2, deprecated="use plain", replace=True)(lambda: "worse")
    assert reg.select(None).entry.ref == "better@1"
    reg.register("new")(lambda: "new")
    assert [*reg.select(None).rejected] == ["new", "plain"]
