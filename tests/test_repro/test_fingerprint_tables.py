"""Tables: content and types count; memory layout, chunks and unused dictionary entries do not."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkit.errors import FingerprintError
from mlkit.repro import fingerprint

DAYS = ["2026-01-01T00:00:00", "2026-06-01T12:00:00"]


def times(zone=None, unit="ns"):
    return pd.Series(pd.to_datetime(DAYS)).dt.as_unit(unit).dt.tz_localize(zone)


FRAME = pd.DataFrame({"a": [1, 2, 3], "b": [0.5, None, -0.0], "c": ["x", None, "z"]})

BIG = pa.array([Decimal("1.5")], pa.decimal256(50, 2))
SAME = [
    (FRAME, FRAME.copy()),
    (FRAME, pd.concat([FRAME[:1], FRAME[1:]])),
    (FRAME[["a"]], pd.DataFrame({"a": np.arange(9)[::3] // 3 + 1})),  # a view with strides
    (FRAME["c"].astype("string[python]"), FRAME["c"].astype("string[pyarrow]")),
    (FRAME[1:].reset_index(drop=True), pd.DataFrame(FRAME[1:].to_dict("list"))),
    (times("UTC"), times("UTC").copy()),
    (pd.array([1, None], dtype="Int64"), pd.array([1, pd.NA], dtype="Int64")),
    (pa.table({"a": [1, 2, 3]}), pa.concat_tables([pa.table({"a": [1]}), pa.table({"a": [2, 3]})])),
    (pa.table({"a": [1, 2, 3]}).slice(1), pa.table({"a": [2, 3]})),
    (pa.table({"a": [1]}), pa.table({"a": [1]}).replace_schema_metadata({"made": "today"})),
    (pa.table({"a": [1, 2]}), pa.record_batch({"a": [1, 2]})),
    (pa.array(["a", None, "b"]), pa.array(["", "a", None, "b"])[1:]),
    (pa.array(["a", "b"]), pa.array(["a", "b"], pa.large_string())),
    (pa.array(["a", "b", "a"]).dictionary_encode(), pa.DictionaryArray.from_arrays([2, 1, 2], ["z", "b", "a"])),
    (pa.array([[1], None, [2, 3]]), pa.array([[9], [1], None, [2, 3]])[1:]),
    (pa.array([{"p": 1}, None]), pa.array([{"p": 5}, {"p": 1}, None])[1:]),
    (pl.DataFrame({"a": [1, 2], "b": ["x", None]}), pl.DataFrame({"a": [1, 2], "b": ["x", None]}).to_arrow()),
    (pl.Series([1, 2]), pa.array([1, 2])),
    (pl.concat([pl.Series([1]), pl.Series([2])], rechunk=False), pl.Series([1, 2])),
    (pl.Series(["a", None, "a"], dtype=pl.Categorical), pa.array(["a", None, "a"]).dictionary_encode()),
    (pl.Series(["b"], dtype=pl.Enum(["a", "b"])), pl.Series(["b"], dtype=pl.Enum(["a", "b"])).to_arrow()),
    (pa.chunked_array([BIG, BIG[1:]]), BIG),
    (pl.Series([], dtype=pl.Categorical), pa.array([], pa.string()).dictionary_encode()),
]  # fmt: skip

DIFFERENT = [
    FRAME, FRAME[["b", "a", "c"]], FRAME.rename(columns={"a": "A"}), FRAME[::-1], FRAME.iloc[[2, 1, 0]].reset_index(drop=True),
    FRAME.set_index("a"), FRAME.assign(b=[0.5, None, 0.0]), FRAME.assign(b=[0.5, 1.0, -0.0]), FRAME.astype({"a": "int32"}),
    FRAME.astype({"a": "Int64"}), FRAME.astype({"c": "category"}), FRAME.astype({"c": object}), FRAME[:0], FRAME[:0][["a"]],
    FRAME.rename_axis(index="row"), FRAME.rename_axis(columns="what"), pd.DataFrame(), pd.DataFrame(index=[0]),
    FRAME["a"], FRAME["a"].rename("b"), FRAME["a"].rename(None), FRAME["a"].array, FRAME["a"].to_numpy(), [1, 2, 3],
    pd.Index([1, 2, 3]), pd.Index([1, 2, 3], name="a"), pd.MultiIndex.from_tuples([(1, 2)]), pd.MultiIndex.from_tuples([(1, 3)]),
    times(), times("UTC"), times("Europe/Berlin"), times("UTC", "us"), times() - times()[0], times().dt.to_period("D"),
    pd.Series(["a", "b"], dtype="category"), pd.Series(["a", "b"], dtype=pd.CategoricalDtype(["b", "a"])),
    pd.Series(["a", "b"], dtype=pd.CategoricalDtype(["a", "b"], ordered=True)), pd.Series(["a", "b"]),
    pd.Series(["ab", ""]), pd.Series(["", "ab"]), pd.Series([None, "ab"]), pd.Series([True, False]), pd.Series([1, 0]),
    pd.Series([True, None], dtype="boolean"), pd.Series([True, None]), pd.arrays.IntervalArray.from_breaks([0, 1, 2]),
    pd.arrays.IntervalArray.from_breaks([0, 1, 2], closed="left"), pd.Series([{"k": 1}, [2]]), pd.Series([{"k": 2}, [2]]),
    pd.NA, pd.NaT, None, pd.Series([1, 2], dtype="int64[pyarrow]"), pd.Series([1, None], dtype="int64[pyarrow]"),
    pa.table({"a": [1, 2, 3]}), pa.table({"b": [1, 2, 3]}), pa.table({"a": [1, 2]}), pa.table({"a": [1.0, 2.0, 3.0]}),
    pa.table({"a": [1, 2], "b": [1, 2]}), pa.table({"b": [1, 2], "a": [1, 2]}), pa.table({}), pa.array([1, 2, 3]),
    pa.array([1, None]), pa.array([1, 0]), pa.array([None, 1]), pa.array(["a", ""]), pa.array(["a", None]), pa.array(["", "a"]),
    pa.array(["ab", "c"]), pa.array(["a", "bc"]), pa.array([b"a", b""]), pa.array([[1], [2]]), pa.array([[1, 2], []]),
    pa.array([[1, 2], None]), pa.array([{"p": 1}]), pa.array([{"q": 1}]), pa.array([None], pa.struct([("p", pa.int64())])),
    pa.array([{"p": None}], pa.struct([("p", pa.int64())])), pa.array(["a"]).dictionary_encode(), pa.array([True, None]),
    pa.array([True, False]), pa.array([1], pa.timestamp("s")), pa.array([1], pa.timestamp("s", "UTC")), pa.array([1], pa.date32()),
    pa.array([1], pa.duration("s")), pa.array([1.0, np.nan]), pa.array([1.0, None]), pa.nulls(1), pa.nulls(2),
    pd.Timedelta(0), pd.Timedelta(1, "ns"), pd.Timestamp(0), pd.Timestamp(1), BIG, pl.Series(["b"], dtype=pl.Enum(["a", "b"])),
    pa.array([dt.date(2026, 1, 1)]), pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
]  # fmt: skip


@pytest.mark.parametrize("algorithm", ["sha256", "blake3"])
@pytest.mark.parametrize("pair", range(len(SAME)))
def test_equal_content(pair, algorithm):
    one, other = SAME[pair]
    assert fingerprint(one, algorithm=algorithm) == fingerprint(other, algorithm=algorithm)


def test_different_content():
    seen: dict[str, int] = {}
    for position, value in enumerate(DIFFERENT):
        clash = seen.setdefault(fingerprint(value), position)
        assert clash == position, (DIFFERENT[clash], value)


COLUMNS = st.lists(
    st.one_of(st.none(), st.integers(-3, 3), st.text("ab\0é", max_size=2)), max_size=4
).map(lambda values: [None if value is None else str(value) for value in values])


@given(COLUMNS, COLUMNS, st.data())
@settings(max_examples=60)
def test_columns_are_equal_if_their_values_are(one, other, data):
    cut = data.draw(st.integers(0, len(one)))
    chunked = pa.chunked_array([one[:cut], one[cut:]], type=pa.string())
    assert fingerprint(chunked) == fingerprint(pa.array(one, pa.string()))
    same = fingerprint(pa.array(one, pa.string())) == fingerprint(pa.array(other, pa.string()))
    assert same is (one == other)
    frames = [pd.Series(column, dtype="str") for column in (one, other)]
    assert (fingerprint(frames[0]) == fingerprint(frames[1])) is (one == other)


def test_tables_inside_of_values():
    data = {"train": FRAME, "test": pa.table({"a": [1]})}
    assert fingerprint(data) == fingerprint(dict(reversed(data.items())))
    assert fingerprint(data) != fingerprint(data | {"train": FRAME[:2]})


def test_what_cannot_be_hashed_is_refused_with_its_column():
    with pytest.raises(FingerprintError, match=r"\$\['o'\].*|o"):
        fingerprint(pd.DataFrame({"o": [object()]}))
    with pytest.raises(FingerprintError, match="to_dense"):
        fingerprint(pd.DataFrame({"s": pd.arrays.SparseArray([0, 1])}))
    reader = pa.RecordBatchReader.from_batches(pa.schema([("a", pa.int64())]), [])
    with pytest.raises(FingerprintError, match="read_all"):
        fingerprint(reader)
    objects = pl.Series("o", [object()])  # of which polars exports the addresses
    for held in (objects, pl.DataFrame({"a": [1], "o": objects})):
        with pytest.raises(FingerprintError, match="'o' holds objects"):
            fingerprint(held)
    with pytest.raises(FingerprintError, match="Arrow cannot read it"):
        fingerprint(pl.Series([1], dtype=pl.Int128))


def test_frozen_fingerprints():
    frame, table = FRAME[["a", "b"]], pa.table({"a": [1, None], "b": ["x", "y"]})
    assert (
        fingerprint(frame)
        == "sha256:17f2f994b4a0f7d8eb0c66c4f697efaae6fe4fe86367bbd46ad777d3d068b689"
    )
    assert (
        fingerprint(table)
        == "sha256:f37cadf52ebff3674c2759424e2587b95b0e06a8b2bc76f74a03c47796f6c63e"
    )
