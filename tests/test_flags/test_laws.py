"""The laws of flags, for any file, any context, any unit."""

from __future__ import annotations

import json
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlkit.errors import FlagFileError
from mlkit.flags import Flags
from mlkit.testing.strategies import json_values

VARIANTS = {"a": "A", "b": "B", "c": "C"}
names = st.sampled_from(["a", "b", "c", None])
leaves = st.sampled_from([{"var": name} for name in ("plan", "n", "targetingKey", "gone", "$flagd.flagKey", "")]) | st.sampled_from(
    ["pro", "u1", 1, 0, 2.5, True, None, ["pro", "u1"]]
)  # fmt: skip


def _operators(inner):
    pairs = st.lists(st.tuples(names, st.integers(0, 100)).map(list), min_size=1, max_size=4)
    return st.one_of(
        st.tuples(st.sampled_from(["==", "!=", "<", ">=", "in", "starts_with", "+", "/", "%"]), st.tuples(inner, inner)),
        st.tuples(st.sampled_from(["and", "or", "cat", "merge", "max", "missing"]), st.lists(inner, min_size=1, max_size=3)),
        st.tuples(st.sampled_from(["if"]), st.lists(inner, min_size=1, max_size=5)),
        st.tuples(st.sampled_from(["map", "all", "filter", "none"]), st.tuples(inner, inner)),
        st.tuples(st.just("sem_ver"), st.tuples(inner, st.sampled_from(["=", "^"]), inner)),
        st.tuples(st.just("fractional"), pairs),
        st.tuples(st.just("fractional"), st.tuples(inner, pairs).map(lambda both: [both[0], *both[1]])),
    ).map(lambda rule: {rule[0]: list(rule[1])})  # fmt: skip


rules = st.recursive(leaves | names, _operators, max_leaves=12).filter(
    lambda rule: isinstance(rule, dict)
)
units = (
    st.none()
    | st.text(max_size=30)
    | st.integers()
    | st.sampled_from(["u1", "u2", "日本", "\ud800"])
)
contexts = st.dictionaries(
    st.sampled_from(["plan", "n", "self", "unit"]), json_values(max_leaves=5), max_size=3
)
generations = st.sampled_from(["v2", "v3"])


def made(rule, generation="v3", default="c"):
    flag = {"state": "ENABLED", "variants": VARIANTS, "defaultVariant": default, "targeting": rule}
    return Flags.from_dict({"metadata": {"bucketing": generation}, "flags": {"f": flag}})


class Hostile:
    def __eq__(self, other):
        raise RuntimeError("eq")

    def __hash__(self):
        raise RuntimeError("hash")

    def __bool__(self):
        raise RuntimeError("bool")

    __str__ = __repr__ = __iter__ = __len__ = __bool__


@given(document=json_values(max_leaves=40), unit=units, context=contexts)
def test_any_json_is_a_file_or_a_located_refusal(document, unit, context):
    for form in (document, {"flags": document}, {"flags": {"f": document}}, {"flags": {"f": {"state": "ENABLED", "variants": {"a": "A"}, "targeting": document}}}):  # fmt: skip
        if not isinstance(form, dict):
            continue
        try:
            flags = Flags.from_dict(form)
        except FlagFileError:
            continue
        details = flags.str("f", default="default").details(unit, **context)
        assert details.value == "default" or details.variant is not None


@given(rule=rules, unit=units, context=contexts, generation=generations)
def test_evaluation_never_raises_and_repeats_itself(rule, unit, context, generation):
    flags = made(rule, generation)
    flag = flags.str("f", default="default")
    before = json.dumps(context)
    details = flag.details(unit, **context)
    assert details == flag.details(unit, **context)
    assert details.value in {"A", "B", "C", "default"}
    assert (details.error is None) or (details.value == "default" and details.reason == "ERROR")
    assert json.dumps(context) == before
    again = made(rule, generation)
    assert again.digest == flags.digest
    assert again.str("f", default="default").details(unit, **context) == details


@given(rule=rules, generation=generations)
@settings(max_examples=30)
def test_hostile_contexts_never_raise(rule, generation):
    flag = made(rule, generation).str("f", default="default")
    deep: list = []
    for _ in range(5_000):
        deep = [deep]
    for value in (
        Hostile(),
        deep,
        [Hostile()],
        {1: Hostile()},
        10**5_000,
        float("nan"),
        "x" * 10**6,
        b"x",
        object(),
        range(9),
    ):
        for unit in (None, "u1", Hostile(), value):
            assert flag(unit, plan=value, n=value) in {"A", "B", "C", "default"}


@given(
    rule=rules,
    generation=generations,
    many=st.lists(units, max_size=40),
    plans=st.lists(st.sampled_from(["pro", "free", 1, 1.0, True, None, float("nan")]), min_size=1, max_size=3),
)  # fmt: skip
def test_assign_equals_the_scalar_path(rule, generation, many, plans):
    flag = made(rule, generation).str("f", default="default")
    # Enough ordinary units for the vectorised path, with the odd ones among them.
    many = [*many, *(f"user-{i}" for i in range(20)), *("x" * i for i in range(20))]
    column = [plans[i % len(plans)] for i in range(len(many))]
    assignment = flag.assign(many, plan=column)
    assert list(assignment) == [
        flag.details(unit, plan=plan) for unit, plan in zip(many, column, strict=True)
    ]
    assert sum(assignment.counts().values()) == len(assignment) == len(many)
    assert assignment.values == [details.value for details in assignment]
    assert assignment.variants == [details.variant for details in assignment]


@given(
    old=st.integers(1, 99_999), new=st.integers(1, 99_999), seed=st.none() | st.just("wave-1"), generation=generations,
    many=st.lists(st.text(max_size=20), min_size=1, max_size=60),
)  # fmt: skip
def test_raising_a_share_takes_no_unit_away(old, new, seed, generation, many):
    assume(old < new)
    flag = {"state": "ENABLED", "variants": {"v1": "m:1", "v2": "m:2"}, "defaultVariant": "v1"}
    flags = Flags.from_dict({"metadata": {"bucketing": generation}, "flags": {"f": flag}})
    model = flags.model("f", default="v1")
    rollout = model.rollout("v2", steps=[old / 100_000, new / 100_000, 1.0], seed=seed)
    taken: set[str] = set()
    for _ in range(3):
        rollout.advance()
        now = {unit for unit in many if model.details(unit).variant == "v2"}
        assert taken <= now
        taken = now
    assert rollout.status == "full"
    assert taken == {unit for unit in many if unit}  # nobody is no unit
    rollout.rollback("enough")
    assert set(model.assign(many).variants) == {"v1"}


def test_shares_are_what_they_say():
    flags = made({"fractional": [["a", 10], ["b", 30], ["c", 60]]})
    counts = flags.str("f", default="").assign([f"user-{i}" for i in range(50_000)]).counts()
    for name, share in (("a", 0.1), ("b", 0.3), ("c", 0.6)):
        assert abs(counts[name] / 50_000 - share) < 0.01  # more than 4 standard deviations


@given(value=json_values().filter(lambda value: isinstance(value, (list, dict))))
def test_values_cannot_be_changed_into_the_flags(value):
    try:
        flags = Flags.in_memory({"f": value})
    except FlagFileError:
        return  # an integer that JSON text cannot hold
    assume(not flags.problems)
    got = flags.json("f", default={})()

    def same(one, two):
        if isinstance(two, list):
            return isinstance(one, tuple) and len(one) == len(two) and all(map(same, one, two))
        if isinstance(two, dict):
            return (
                isinstance(one, MappingProxyType)
                and one.keys() == two.keys()
                and all(same(one[key], two[key]) for key in two)
            )
        return one == two

    assert same(got, value)


@given(bad=json_values(max_leaves=8), place=st.integers(0, 2), unit=units, context=contexts)
def test_one_bad_flag_changes_no_other_answer(bad, place, unit, context):
    split = {"if": [{"==": [{"var": "plan"}, "pro"]}, "a", {"fractional": [["a", 1], ["b", 1]]}]}
    good = {"state": "ENABLED", "variants": VARIANTS, "defaultVariant": "c"}
    alone = {"f": {**good, "targeting": split}, "g": {**good, "variants": {"c": {"x": [1]}}}}
    keys = [*alone]
    keys.insert(place, "bad")
    together = {key: alone.get(key, bad) for key in keys}
    try:
        one, two = Flags.from_dict({"flags": alone}), Flags.from_dict({"flags": together})
    except FlagFileError:
        return  # not JSON that a file can hold: half a surrogate pair, an integer of 5,000 digits
    for flags in (one, two):
        flags.explain("f", "u1")  # what it may keep must not matter either
    for kind, key, default in (("str", "f", "x"), ("json", "g", {})):
        answers = [
            getattr(flags, kind)(key, default=default).details(unit, **context)
            for flags in (one, two)
        ]
        assert answers[0]._replace(digest="") == answers[1]._replace(digest="")


edits = st.lists(
    st.tuples(st.integers(0, 1_300), st.sampled_from(["on", "off", "gone", "bad", "ruled"])),
    max_size=6,
)


@given(reloads=st.lists(edits, min_size=1, max_size=4))
@settings(max_examples=8)
def test_flags_that_were_reloaded_are_those_of_a_fresh_load(reloads, tmp_path_factory):
    """Whatever a reload takes over from the one before: more flags than are hashed at once, edited anywhere."""
    path = tmp_path_factory.mktemp("flags") / "flags.json"
    plain = {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "on"}
    flags = {f"f{i}": plain for i in range(1_200)}
    path.write_text(json.dumps({"flags": flags}))
    followed = Flags.from_file(path)
    for index, edit in enumerate(reloads):
        for number, what in edit:
            flags[f"f{number}"] = {
                **plain,
                "defaultVariant": what if what in plain["variants"] else "on",
            }
            if what == "gone":
                del flags[f"f{number}"]
            elif what == "bad":
                flags[f"f{number}"] = {**plain, "state": number}
            elif what == "ruled":
                flags[f"f{number}"] = {
                    **plain,
                    "targeting": {"if": [{"==": [{"var": "n"}, number]}, "off"]},
                }
        path.write_text(json.dumps({"flags": flags}, indent=index % 2 or None))
        followed.reload()
    for key in [key for key, flag in flags.items() if flag["state"] != "ENABLED"]:
        del flags[key]  # a fresh load has no last good one of these
    path.write_text(json.dumps({"flags": flags}))
    followed.reload()
    fresh = Flags.from_file(path)
    assert followed.digest == fresh.digest
    assert followed.problems == fresh.problems == ()
    for number in {number for edit in reloads for number, _ in edit}:
        one, two = (each.bool(f"f{number}", default=False) for each in (followed, fresh))
        assert one.details("u", n=number) == two.details("u", n=number)


comparisons = st.one_of(
    st.tuples(st.sampled_from(["==", "===", "!=", "!=="]), st.sampled_from(["plan", "n"]), st.sampled_from(["pro", "1", ""])),
    st.tuples(st.sampled_from(["<", "<=", ">", ">="]), st.sampled_from(["plan", "n"]), st.sampled_from([1, 2.5])),
    st.tuples(st.just("in"), st.sampled_from(["plan", "n"]), st.sampled_from([["pro", "1"], []])),
).map(lambda each: {each[0]: [{"var": each[1]}, each[2]]})  # fmt: skip
# What is no comparison: a part that stays a function, and one whose value is no truth.
others = st.sampled_from(
    [True, False, {"sem_ver": [{"var": "plan"}, "=", "1.0.0"]}, {"var": "n"}, []]
)
parts = st.integers(0, 4).flatmap(lambda number: others if number == 0 else comparisons)
conditions = st.recursive(
    parts,
    lambda inner: st.tuples(st.sampled_from(["and", "or", "!", "if"]), st.lists(inner, min_size=1, max_size=3)).map(
        lambda each: {each[0]: each[1][:1] if each[0] == "!" else each[1]}
    ),
    max_leaves=5,
)  # fmt: skip
VALUES = ["pro", "1", "", "free", "1.0.0", 0, 1, 1.0, 2.5, 3, True, None, float("nan"), [1]]


def decided_by_both(condition, context):
    """Return the answer of a rule that is put together, and of closures, one inside the other: the slow model."""
    rule = {"if": [condition, "a", "b"]}
    together = made(rule).str("f", default="x")(**context)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlkit.flags._logic._FUSED", frozenset())
        return together, made(rule).str("f", default="x")(**context)


@given(
    condition=conditions,
    plan=st.sampled_from(VALUES),
    n=st.sampled_from(VALUES),
    both=st.booleans(),
)
def test_what_is_put_together_decides_like_its_parts(condition, plan, n, both):
    together, apart = decided_by_both(condition, {"plan": plan, "n": n} if both else {"plan": plan})
    assert together == apart


@pytest.mark.parametrize("name", ["==", "===", "!=", "!==", "<", "<=", ">", ">=", "in"])
def test_each_comparison_that_is_put_together(name):
    constants = [["pro", "1"], []] if name == "in" else [1, 2.5] if name[0] in "<>" else ["pro", ""]
    for constant in constants:
        for value in VALUES:
            together, apart = decided_by_both({name: [{"var": "n"}, constant]}, {"n": value})
            assert together == apart, (constant, value)


def test_numpy_units_and_columns():
    flags = made({"if": [{"==": [{"var": "n"}, 1]}, {"fractional": [["a", 1], ["b", 1]]}]})
    flag = flags.str("f", default="x")
    ids, column = np.arange(100), np.arange(100) % 2
    expected = [flag.details(int(i), n=int(n)) for i, n in zip(ids, column, strict=True)]
    assert list(flag.assign(ids, n=column)) == expected
    assert flag.assign(ids.astype(str), n=column.tolist()).values == [
        details.value for details in expected
    ]
    assert (
        flag(np.int64(7), n=np.int32(1)) == flag("7", n=1) == flag(np.str_("7"), n=np.float64(1.0))
    )
    assert flag.assign([], n=[]).counts() == {}
    assert flag.details(np.bool_(True)).error == flag.details(True).error == "INVALID_CONTEXT"


@pytest.mark.parametrize("key", ["x" * n for n in (0, 1, 22, 23, 24, 25, 254, 255, 256, 257)])
def test_lengths_at_which_the_encoding_changes(key):
    flag = made({"fractional": [["a", 1], ["b", 1]]}).str("f", default="x")
    ids = [key + "é"[: len(key) % 2]] * 20
    assert set(flag.assign(ids).values) == {flag(ids[0])}
