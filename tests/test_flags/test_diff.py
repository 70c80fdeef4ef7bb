"""What a new file moves: exact where arithmetic tells, a sample elsewhere, and nothing for equal flags."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkit.errors import ConfigurationError
from mlkit.flags import Flags, diff

VARIANTS = {"a": 1, "b": 2, "c": 3}


def made(rule=None, *, key="f", **more):
    flag = {"state": "ENABLED", "variants": VARIANTS, "defaultVariant": "c", **more}
    if rule is not None:
        flag["targeting"] = rule
    return Flags.from_dict({"flags": {key: flag}})


def split(*pairs):
    return {"fractional": [list(pair) for pair in pairs]}


# Weights that add up to a power of two: then every bucket has the same number of hashes.
@st.composite
def even_splits(draw):
    cuts = sorted(draw(st.lists(st.integers(0, 64), min_size=2, max_size=2)))
    names = draw(st.permutations(["a", "b", "c"]))
    weights = [cuts[0], cuts[1] - cuts[0], 64 - cuts[1]]
    return [[name, weight] for name, weight in zip(names, weights, strict=True)]


def cells(pairs):
    return [name for name, weight in pairs for _ in range(weight)]


@given(old=even_splits(), new=even_splits())
def test_a_split_is_counted_over_all_hashes(old, new):
    found = diff(made(split(*old)), made(split(*new)))
    both = list(zip(cells(old), cells(new), strict=True))
    if old == new:
        assert found == ()
        return
    (one,) = found
    assert one.exact
    assert one.n_units == 0
    assert one.flows == {flow: both.count(flow) / 64 for flow in set(both)}
    assert one.moved == sum(a != b for a, b in both) / 64
    fewest = sum(abs(cells(old).count(name) - cells(new).count(name)) for name in "abc")
    assert one.least == pytest.approx(Fraction(fewest, 128))
    assert one.least <= one.moved + 1e-12
    (back,) = diff(made(split(*new)), made(split(*old)))
    assert back.flows == {(b, a): share for (a, b), share in one.flows.items()}


@given(weights=st.lists(st.integers(0, 1000), min_size=2, max_size=3).filter(any))
def test_arithmetic_agrees_with_asking(weights):
    old = made(split(*zip("abc", weights, strict=False)))
    new = made(split(*zip("abc", reversed(weights), strict=False)))
    for one in diff(old, new):
        (asked,) = diff(old, new, units=[f"u{i}" for i in range(1_000)])
        assert not asked.exact
        assert abs(asked.moved - one.moved) < 5 * (0.25 / 1_000) ** 0.5
        for flow, share in asked.flows.items():
            assert abs(one.flows.get(flow, 0.0) - share) < 5 * (0.25 / 1_000) ** 0.5


def test_the_classic_mistake_shows_what_would_have_done():
    old, new = made(split(("a", 10), ("b", 90))), made(split(("b", 90), ("a", 10)))
    (one,) = diff(old, new)
    assert one.moved == pytest.approx(0.2)
    assert one.least == pytest.approx(0.0, abs=1e-9)
    (grown,) = diff(old, made(split(("a", 20), ("b", 80))))
    assert grown.moved == pytest.approx(grown.least) == pytest.approx(0.1)


def test_equal_flags_are_not_told_however_they_are_written():
    rule = {"if": [{"==": [{"var": "plan"}, "pro"]}, "a"]}
    one, two = made(rule), made({"if": [{"==": [{"var": "plan"}, "pro"]}, "a"]})
    assert diff(one, two) == ()
    assert diff(one, one) == ()
    assert diff(Flags.in_memory(), Flags.in_memory()) == ()


def test_the_context_decides_and_what_it_lacks_is_told():
    def gate(weight):
        return made({"if": [{"==": [{"var": "plan"}, "pro"]}, split(("a", weight), ("b", 4))]})

    (one,) = diff(gate(0), gate(4))
    assert (one.moved, one.unknown) == (0.0, ("plan",))
    (one,) = diff(gate(0), gate(4), contexts=[{"plan": "pro"}])
    assert (one.moved, one.unknown, one.exact) == (0.5, (), True)
    (one,) = diff(gate(0), gate(4), contexts=[{"plan": "pro"}, {"plan": "free"}])
    assert one.moved == 0.25
    requests = [{"plan": "pro", "targetingKey": f"u{i}"} for i in range(40)]
    (one,) = diff(gate(0), gate(4), contexts=requests)
    before = gate(0).int("f", default=0)
    after = gate(4).int("f", default=0)
    moved = sum(before(f"u{i}", plan="pro") != after(f"u{i}", plan="pro") for i in range(40))
    assert one.moved == pytest.approx(moved / 40)
    assert one.exact  # of the requests that were given


def test_what_hashes_other_bytes_is_sampled():
    old = made(split(("a", 1), ("b", 1)))
    seeded = made({"fractional": [{"cat": ["wave", {"var": "targetingKey"}]}, ["a", 1], ["b", 1]]})
    (one,) = diff(old, seeded, units=4_000)
    assert not one.exact
    assert one.n_units == 4_000
    assert abs(one.moved - 0.5) < 0.05  # two independent halves
    (one,) = diff(old, made(split(("a", 1), ("b", 1)), metadata={"bucketing": "v2"}))
    assert not one.exact
    assert "bucketing: v3 -> v2" in one.notes
    looks = made({"if": [{"ends_with": [{"var": "targetingKey"}, "7"]}, "a", "b"]})
    (one,) = diff(made({"if": [True, "b"]}), looks, units=1_000)
    assert (one.exact, one.moved) == (False, 0.1)


def test_states_defaults_values_and_kinds():
    base = made()
    (one,) = diff(base, made(state="DISABLED"))
    assert (one.moved, one.flows, one.notes) == (1.0, {("c", None): 1.0}, ("disabled",))
    (one,) = diff(base, made(defaultVariant="a"))
    assert (one.moved, one.notes) == (1.0, ("defaultVariant: 'c' -> 'a'",))
    (one,) = diff(base, made(variants={**VARIANTS, "c": 4}))
    assert (one.moved, one.revalued, one.notes) == (0.0, 1.0, ("variant 'c': 3 -> 4",))
    (one,) = diff(base, made(variants={"c": "three"}))
    assert one.revalued == 1.0
    assert one.notes[0] == "type of the variants: number -> string"
    (one,) = diff(base, made(metadata={"owner": "ann"}))
    assert (one.moved, one.notes) == (0.0, ("metadata 'owner' is new: 'ann'",))


def test_a_models_uri_in_the_metadata_of_the_set_counts():
    def ranked(uri):
        flag = {"state": "ENABLED", "variants": {"v1": "1"}, "defaultVariant": "v1"}
        return Flags.from_dict({"metadata": {"model.v1": uri, "team": uri}, "flags": {"f": flag}})

    (one,) = diff(ranked("models:/a/1"), ranked("models:/a/2"))
    assert one.notes == ("metadata 'model.v1': 'models:/a/1' -> 'models:/a/2'",)


def test_added_removed_and_unreadable():
    (one,) = diff(Flags.in_memory(), made())
    assert (one.change, one.moved, one.flows) == ("added", 1.0, {(None, "c"): 1.0})
    (one,) = diff(made(), Flags.in_memory())
    assert (one.change, one.flows) == ("removed", {("c", None): 1.0})
    broken = Flags.from_dict({"flags": {"f": {"state": "ON"}}})
    (one,) = diff(made(), broken)
    assert (one.change, one.moved) == ("changed", 1.0)
    assert one.notes[0].startswith("cannot be read after: ")
    assert diff(broken, broken) == ()


def test_a_shared_rule_counts():
    def shared(plan):
        document = {"$evaluators": {"paying": {"==": [{"var": "plan"}, plan]}}, "flags": {"f": {
            "state": "ENABLED", "variants": VARIANTS, "defaultVariant": "c",
            "targeting": {"if": [{"$ref": "paying"}, "a"]}}}}  # fmt: skip
        return Flags.from_dict(document)

    (one,) = diff(shared("pro"), shared("team"), contexts={"plan": "pro"})
    assert (one.moved, one.unknown, one.notes) == (1.0, (), ("evaluator 'paying' differs",))


@pytest.mark.parametrize(
    "wrong",
    [
        {"units": 0},
        {"units": "ann"},
        {"units": [""]},
        {"units": []},
        {"contexts": [1]},
        {"contexts": [{"targetingKey": 1}]},
    ],
)
def test_arguments_are_checked(wrong):
    with pytest.raises(ConfigurationError):
        diff(made(), made(), **wrong)
    with pytest.raises(ConfigurationError, match="flags"):
        diff(made(), {"flags": {}})
