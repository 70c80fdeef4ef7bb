"""Assigning from any container is the same as one call per row, bit for bit."""

from __future__ import annotations

import datetime as dt
import random

import mmh3
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkit.errors import ConfigurationError
from mlkit.flags import Flags
from mlkit.flags._murmur import hash_words

VARIANTS = {"a": "A", "b": "B", "c": "C"}
SPLIT = {"fractional": [["a", 3], ["b", 2], ["c", 5]]}
PRO = {"==": [{"var": "plan"}, "pro"]}
RULES = [
    SPLIT,
    {"if": [PRO, SPLIT, "c"]},
    {"if": [PRO, {"if": [{">": [{"var": "n"}, 2]}, SPLIT]}, {"!": [{"var": "n"}]}, "a", "b"]},
    {"if": [{"missing": ["plan"]}, "a", {"fractional": [{"cat": ["s", {"var": "targetingKey"}]}, ["a", 1], ["b", 2]]}]},
    {"if": [{"ends_with": [{"var": "targetingKey"}, "a"]}, "a", {"in": [{"var": "plan"}, ["pro", "日本"]]}, SPLIT]},
    {"fractional": [{"var": "plan"}, ["a", 1], ["b", 1]]},
    {"var": {"var": "plan"}},
    {"if": [{"==": [{"cat": [{"var": ""}]}, "x"]}, "a", "b"]},
]  # fmt: skip


def made(rule, generation="v3"):
    flag = {"state": "ENABLED", "variants": VARIANTS, "defaultVariant": "c", "targeting": rule}
    return Flags.from_dict({"metadata": {"bucketing": generation}, "flags": {"f": flag}}).str(
        "f", default="default"
    )


class Exporter:
    """What speaks Arrow's C stream and nothing else."""

    def __init__(self, values):
        self._array = pa.chunked_array([pa.array(values)])

    def __arrow_c_stream__(self, requested_schema=None):
        return self._array.__arrow_c_stream__(requested_schema)

    def __len__(self):
        return len(self._array)

    def __iter__(self):
        raise AssertionError


def chunked(values):
    middle = len(values) // 2
    kind = pa.array(values).type
    return pa.chunked_array([pa.array(values[:middle], kind), pa.array(values[middle:], kind)])


def masked(values):
    known = [value for value in values if value is not None]
    filler = known[0] if known else ""
    return np.ma.MaskedArray(
        np.array([filler if value is None else value for value in values]),
        mask=[value is None for value in values],
    )


ANY = {
    "object array": lambda values: np.array([*values, None], dtype=object)[:-1],
    "series": pd.Series,
    "object series": lambda values: pd.Series(values, dtype=object),
    "category": lambda values: pd.Series(values).astype("category"),
    "arrow": pa.array,
    "arrow slice": lambda values: pa.array([values[0], *values, None])[1:-1],
    "chunked": chunked,
    "dictionary": lambda values: pa.array(values).dictionary_encode(),
    "exporter": Exporter,
    "generator": iter,
}
TEXTS = {
    **ANY,
    "string": lambda values: pd.Series(values, dtype="string"),
    "python string": lambda values: pd.Series(values, dtype=pd.StringDtype("python")),
    "index": lambda values: pd.Index(values),
    "large": lambda values: pa.array(values, pa.large_string()),
    "view": lambda values: pa.array(values, pa.string_view()),
    "masked": masked,
}
NUMBERS = {**ANY, "Int64": lambda values: pd.Series(values, dtype="Int64"), "masked": masked}
FULL = {"array": np.array, "tuple": tuple, "list": list}  # no nulls

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9)
plans = st.none() | st.sampled_from(["pro", "free", "日本", ""]) | texts


@given(
    rule=st.sampled_from(RULES),
    generation=st.sampled_from(["v2", "v3"]),
    rows=st.lists(
        st.tuples(st.none() | texts, plans, st.none() | st.integers(-3, 9)), min_size=1, max_size=8
    ),
    data=st.data(),
)
@settings(max_examples=30)
def test_every_container_gives_what_calls_give(rule, generation, rows, data):
    flag = made(rule, generation)
    # Enough ordinary rows for the vectorised path beside the odd ones.
    rows = [*rows, *((f"user-{i}", "pro" if i % 3 else None, i % 4) for i in range(40))]
    random.Random(7).shuffle(rows)
    units, plan, n = (list(column) for column in zip(*rows, strict=True))
    how = [data.draw(st.sampled_from(sorted(known))) for known in (TEXTS, TEXTS, NUMBERS)]
    held = [TEXTS[how[0]](units), TEXTS[how[1]](plan), NUMBERS[how[2]](n)]
    expected = [flag.details(unit, **_there(plan=p, n=m)) for unit, p, m in rows]
    assert list(flag.assign(held[0], plan=held[1], n=held[2])) == expected
    frame = pd.DataFrame({"plan": plan, "n": n, "unread": range(len(n))})
    assert list(flag.assign(units, frame)) == expected
    table = pa.table({"plan": pa.array(plan), "n": pa.array(n)})
    assert list(flag.assign(pa.array(units), table)) == expected
    assert list(flag.assign(units, table.to_batches()[0])) == expected
    assert list(flag.assign(units, {"plan": held[1]} if how[1] != "generator" else {"plan": plan}, n=n)) == expected  # fmt: skip


def _there(**attributes):
    return {name: value for name, value in attributes.items() if value is not None}


@given(
    units=st.lists(texts.filter(bool) | st.integers(0, 10**12), min_size=20, max_size=60),
    how=st.sampled_from(sorted(FULL)),
    generation=st.sampled_from(["v2", "v3"]),
)
@settings(max_examples=20)
def test_ids_without_nulls(units, how, generation):
    flag = made(SPLIT, generation)
    for many in (
        [u for u in units if isinstance(u, str)],
        [u for u in units if isinstance(u, int)],
    ):
        expected = [flag.details(unit) for unit in many]
        assert list(flag.assign(FULL[how](many))) == expected
    assert list(flag.assign(units)) == [flag.details(unit) for unit in units]


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "uint64", "int64"])
def test_integers_of_every_width(kind):
    flag, info = made(SPLIT), np.iinfo(kind)
    many = np.array([info.max, 0, 9, 10, 99, 100, 1, *range(30)], dtype=kind)
    assert list(flag.assign(many)) == [flag.details(int(unit)) for unit in many]
    if info.min:
        below = np.array([info.min, -1, *range(30)], dtype=kind)
        assert list(flag.assign(below)) == [flag.details(int(unit)) for unit in below]


ODD = [0.0, -0.0, 1.0, float("nan"), float("inf"), -1.5, 1e300]


@pytest.mark.parametrize("kind", ["float64", "float32", "float16"])
def test_floats_keep_sign_and_nan(kind):
    flag = made({"if": [{"===": [{"cat": [{"var": "x"}]}, "NaN"]}, "a", {">": [{"/": [1, {"var": "x"}]}, 0]}, "b"]})  # fmt: skip
    with np.errstate(over="ignore"):
        column = np.array(ODD * 6, dtype=kind)
    units = [f"u{i}" for i in range(len(column))]
    expected = [flag.details(unit, x=float(x)) for unit, x in zip(units, column, strict=True)]
    assert list(flag.assign(units, x=column)) == expected
    assert list(flag.assign(units, x=column.tolist())) == expected
    if kind != "float16":
        assert list(flag.assign(units, x=pa.array(column))) == expected
    # NaN is pandas' null.
    missing = [flag.details(u, **({} if np.isnan(x) else {"x": float(x)})) for u, x in zip(units, column, strict=True)]  # fmt: skip
    assert list(flag.assign(units, x=pd.Series(column))) == missing


def test_types_that_are_equal_are_told_apart():
    flag = made({"if": [{"===": [{"var": "x"}, True]}, "a", {"===": [{"var": "x"}, 1]}, "b"]})
    column = [1, True, 1.0, "1", None] * 8
    units = [f"u{i}" for i in range(40)]
    expected = [flag.details(unit, x=x) for unit, x in zip(units, column, strict=True)]
    for held in (column, np.array(column, dtype=object), pd.Series(column, dtype=object)):
        assert list(flag.assign(units, x=held)) == expected


def test_dates_decimals_and_nested_values():
    flag = made({"if": [{">=": [{"var": "day"}, "2026-03-01"]}, SPLIT, {"in": ["x", {"var": "tags"}]}, "a", "b"]})  # fmt: skip
    days = [dt.date(2026, 2, 27) + dt.timedelta(days=i % 5) for i in range(40)]
    tags = [["x"], [], ["y", "x"], None][0:4] * 10
    units = [f"u{i}" for i in range(40)]
    expected = [flag.details(u, **_there(day=d, tags=t)) for u, d, t in zip(units, days, tags, strict=True)]  # fmt: skip
    for day in (days, pa.array(days), pd.Series(days), np.array(days, dtype="datetime64[D]")):
        for tag in (tags, pa.array(tags), pd.Series(tags)):
            assert list(flag.assign(units, day=day, tags=tag)) == expected


def test_only_what_a_rule_reads_is_looked_at():
    class Untouched:
        def __len__(self):
            return 40

        def __iter__(self):
            raise AssertionError("it was read")

    flag = made({"if": [PRO, SPLIT]})
    assert len(flag.assign([f"u{i}" for i in range(40)], other=Untouched(), plan=["pro"] * 40)) == 40  # fmt: skip


@pytest.mark.parametrize(
    ("units", "table", "columns"),
    [
        (["u"], None, {"plan": ["a", "b"]}),
        (["u"], None, {"plan": "p"}),
        (["u"], None, {"plan": 1}),
        (["u"], None, {"plan": np.array("p")}),
        (["u"], None, {"plan": np.zeros((1, 2))}),
        ("ann", None, {}),
        (1, None, {}),
        (["u"], pd.DataFrame({"plan": ["a", "b"]}), {}),
        (["u"], pd.DataFrame({1: ["a"]}), {}),
        (["u"], pd.DataFrame([["a", "b"]], columns=["plan", "plan"]), {}),
        (["u"], {"plan": ["a"]}, {"plan": ["a"]}),
        (["u"], {"plan": ["a", "b"]}, {}),
        (["u"], 7, {}),
        (["u"], None, {"plan": (x for x in "ab")}),
    ],
)
def test_what_is_no_column_is_refused(units, table, columns):
    with pytest.raises(ConfigurationError, match=r"Flag.assign\("):
        made({"if": [PRO, SPLIT]}).assign(units, table, **columns)


def test_nothing_is_nothing():
    flag = made({"if": [PRO, SPLIT]})
    for units in ([], np.array([], dtype=str), np.array([], dtype=int), pa.array([], pa.string()), pd.Series([], dtype=str)):  # fmt: skip
        assert len(flag.assign(units, plan=[])) == 0
        assert flag.assign(units, pd.DataFrame({"plan": []})).counts() == {}


def test_hostile_objects_do_no_harm():
    class Hostile:
        def __eq__(self, other):
            raise RuntimeError("eq")

        def __hash__(self):
            raise RuntimeError("hash")

    flag = made({"if": [PRO, SPLIT]})
    column = [Hostile(), "pro", [Hostile()], 10**5_000] * 10
    units = ["u", Hostile(), 10**5_000, "\ud800"] * 10
    expected = [flag.details(u, plan=p) for u, p in zip(units, column, strict=True)]
    assert list(flag.assign(units, plan=column)) == expected


@given(
    prefix=st.binary(max_size=13),
    texts=st.integers(1, 40).flatmap(
        lambda n: st.lists(st.binary(min_size=n, max_size=n), min_size=1, max_size=4)
    ),
)
def test_the_hash_is_murmurs(prefix, texts):
    size = len(texts[0])
    width = -(-size // 4) * 4
    rows = b"".join(text.ljust(width, b"\0") for text in texts)
    words = np.frombuffer(rows, dtype="<u4").reshape(len(texts), -1)
    hashes = hash_words(prefix, words, size).tolist()
    assert hashes == [mmh3.mmh3_32_uintdigest(prefix + text) for text in texts]
