"""Rows to a batch and back."""

import pickle
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlkit.errors import CollateError, ConfigurationError, OutputShapeError
from mlkit.inference import Padded, collate, split


class Point(NamedTuple):
    x: object
    y: object


@dataclass(frozen=True, slots=True)
class Sample:
    features: object
    text: str
    kind: ClassVar[str] = "sample"


@dataclass
class Strict:
    size: object
    seen: list = field(default_factory=list, repr=False)

    def __post_init__(self):
        if not isinstance(self.size, int):
            raise TypeError("one number, please")


DTYPES = st.sampled_from(["float32", "float64", "int64", "int8", "bool", "complex64", "<U3"])


def leaves(draw, n):
    """Return n values for one leaf."""
    kind = draw(st.sampled_from(["array", "tensor", "int", "float", "bool", "text", "none"]))
    if kind == "array":
        dtype = draw(DTYPES)
        shape = draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=3))
        return [draw(hnp.arrays(dtype, shape)) for _ in range(n)]
    if kind == "tensor":
        shape = draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=3))
        dtype = draw(st.sampled_from(["float32", "int64", "bool"]))
        return [torch.from_numpy(np.array(draw(hnp.arrays(dtype, shape)))) for _ in range(n)]
    values = {
        "int": st.integers(-(2**63), 2**63 - 1),
        "float": st.floats(width=32),
        "bool": st.booleans(),
        "text": st.text(max_size=5),
        "none": st.none(),
    }[kind]
    return [draw(values) for _ in range(n)]


@st.composite
def tables(draw, depth=2):
    """Return n rows of one structure."""

    def columns(n, depth):
        kind = draw(st.sampled_from(["leaf", "dict", "tuple", "list", "point", "sample"]))
        if depth == 0 or kind == "leaf":
            return leaves(draw, n)
        if kind == "point":
            return [
                Point(*parts)
                for parts in zip(columns(n, depth - 1), columns(n, depth - 1), strict=True)
            ]
        if kind == "sample":
            return [Sample(part, "t") for part in columns(n, depth - 1)]
        width = draw(st.integers(1, 3))
        parts = list(zip(*[columns(n, depth - 1) for _ in range(width)], strict=True))
        if kind == "dict":
            return [dict(zip("abc", part, strict=False)) for part in parts]
        return parts if kind == "tuple" else [list(part) for part in parts]

    return columns(draw(st.integers(1, 4)), depth)


def same(a, b):
    """Whether two rows are equal, dtype and container included; Python numbers count as their 0-d arrays."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        a, b = (x if isinstance(x, torch.Tensor) else torch.tensor(x) for x in (a, b))
        return a.dtype == b.dtype and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
    if isinstance(a, (np.ndarray, np.generic, int, float)):
        a, b = np.asarray(a), np.asarray(b)
        kinds = a.dtype == b.dtype or a.dtype.kind == b.dtype.kind == "U"
        return kinds and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Sample):
        return same(a.features, b.features) and a.text == b.text
    return a == b


@given(tables())
def test_split_undoes_collate(rows):
    # A row made of nothing but None has no leaf to cut.
    if collate(rows) is None:
        with pytest.raises(OutputShapeError):
            split(collate(rows), len(rows))
        return
    back = split(collate(rows), len(rows))
    assert len(back) == len(rows)
    assert all(map(same, back, rows)), (back, rows)


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=6),
    st.sampled_from(["float32", "int16", "bool"]),
    st.integers(0, 1),
    st.booleans(),
)
def test_padding_keeps_rows_lengths_and_dtype(lengths, dtype, pad, tensors):
    rows = [np.arange(2 * n).reshape(n, 2).astype(dtype) for n in lengths]
    if tensors:
        rows = [torch.from_numpy(row) for row in rows]
    batch = collate(rows, pad=pad)
    assert isinstance(batch, Padded)
    assert batch.values.dtype == rows[0].dtype
    assert batch.lengths.tolist() == lengths
    assert batch.mask.sum() == sum(lengths)
    filling = batch.values[~batch.mask]
    assert (filling == pad).all()
    for back, row in zip(split(batch, len(rows)), rows, strict=True):
        assert type(back) is type(row)
        assert back.tolist() == row.tolist()


def test_a_batch_keeps_the_structure():
    batch = collate(
        [
            {"point": Point(np.float32(1), "a"), "tags": ["x", 1], "pair": (True, None)},
            {"point": Point(np.float32(2), "b"), "tags": ["y", 2], "pair": (False, None)},
        ]
    )
    assert isinstance(batch["point"], Point)
    assert batch["point"].x.dtype == np.float32
    assert batch["point"].y == ["a", "b"]
    assert isinstance(batch["tags"], list)
    assert batch["tags"][1].tolist() == [1, 2]
    assert batch["pair"][0].dtype == bool
    assert batch["pair"][1] is None


def test_a_dataclass_that_checks_itself_is_not_constructed_again():
    rows = [Strict(3), Strict(4)]
    batch = collate([{"s": row.size} for row in rows])
    assert batch["s"].tolist() == [3, 4]
    assert collate([Sample(np.ones(2), "a"), Sample(np.ones(2), "b")]).text == ["a", "b"]
    batch = collate([Strict(3, [1]), Strict(4, [2])])
    assert batch.size.tolist() == [3, 4]
    assert [row.size for row in split(batch, 2)] == [3, 4]


def test_numbers_become_tensors_beside_tensors_and_arrays_elsewhere():
    batch = collate([{"x": torch.ones(2), "weight": 0.5, "n": 3}])
    assert batch["weight"].dtype == torch.float32
    assert batch["n"].dtype == torch.int64
    assert collate([{"x": np.ones(2), "weight": 0.5}])["weight"].dtype == np.float64


def test_other_objects_are_handed_on_as_a_list():
    rows = [object(), frozenset({1}), 3j.conjugate]
    assert collate(rows) == rows
    assert split(rows, 3) == rows


def test_a_mapping_of_another_type_gives_plain_dicts():
    assert split(collate([OrderedDict(a=1), OrderedDict(a=2)]), 2) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("rows", "index", "words"),
    [
        ([{"x": 1}, {"y": 1}], 1, ["keys", "'y'", "'x'"]),
        ([{"x": np.ones(2)}, {"x": np.ones(2)}, {"x": np.ones(3)}], 2, ["'x'", "(3,)", "pad="]),
        ([{"a": {"b": 1}}, {"a": {"b": 1.0}}], 1, ["'a.b'", "float", "int"]),
        ([(1, np.ones(2, "f4")), (1, np.ones(2))], 1, ["'[1]'", "float64", "float32"]),
        ([torch.ones(2), torch.ones(2, dtype=torch.int64)], 1, ["row itself", "int64"]),
        ([torch.ones(2), np.ones(2)], 1, ["ndarray", "Tensor"]),
        ([Point(1, 2), Point(1, "2")], 1, ["'y'", "str", "int"]),
        ([[1, 2], [1]], 1, ["length 1", "length 2"]),
        (["a", None], 1, ["None", "str"]),
        ([None, "a"], 1, ["str", "None"]),
        ([object(), 3], 1, ["an int", "an object"]),
        ([1, True], 1, ["bool", "int"]),
        ([np.ones(2), np.ones((2, 1))], 1, ["(2, 1)", "(2,)"]),
        ([1, np.int64(1)], 1, ["int64", "int"]),
        ([np.float64(1), 1.0], 1, ["float"]),
    ],
)
def test_a_row_that_differs_is_named(rows, index, words):
    with pytest.raises(CollateError) as caught:
        collate(rows)
    assert caught.value.index == index
    for word in [f"row {index}", *words]:
        assert word in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_ragged_rows_with_different_inner_shapes_stay_refused():
    with pytest.raises(CollateError, match=r"row 1.*\(3, 4\)"):
        collate([np.ones((2, 5)), np.ones((3, 4))], pad=0)


def test_no_rows():
    with pytest.raises(CollateError, match="no rows"):
        collate([])
    assert split([], 0) == []


def test_padding_a_list_of_numbers():
    batch = collate([{"ids": [1, 2, 3], "n": 3}, {"ids": [], "n": 0}, {"ids": [4], "n": 1}], pad=9)
    assert batch["ids"].values.tolist() == [[1, 2, 3], [9, 9, 9], [4, 9, 9]]
    assert batch["ids"].values.dtype == np.int64
    assert batch["n"].tolist() == [3, 0, 1]
    tensors = collate([{"ids": [1, 2], "x": torch.ones(1)}], pad={"ids": 0})
    assert tensors["ids"].values.dtype == torch.int64
    assert isinstance(tensors["x"], torch.Tensor)
    with pytest.raises(CollateError, match="float and int"):
        collate([[1, 2.0]], pad=0)


def test_padding_floats_may_be_nan_and_text_is_never_padded():
    assert np.isnan(collate([np.ones(2), np.ones(1)], pad=float("nan")).values[1, 1])
    assert np.float32(0.1) == collate([np.ones(2, "f4"), np.ones(1, "f4")], pad=0.1).values[1, 1]
    assert collate([np.array(["a"]), np.array(["bb"])], pad=0).tolist() == [["a"], ["bb"]]


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize(
    ("dtype", "pad"),
    [("int64", 0.5), ("int8", 300), ("uint8", -1), ("bool", 2), ("int64", float("nan"))],
)
def test_a_pad_value_that_does_not_fit_is_refused(convert, dtype, pad):
    rows = [convert(np.zeros(n, dtype)) for n in (1, 2)]
    with pytest.raises(ConfigurationError, match="can hold"):
        collate(rows, pad=pad)


def test_a_pad_for_a_leaf_that_is_not_there_is_refused():
    with pytest.raises(ConfigurationError, match="did you mean 'tokens'"):
        collate([{"tokens": np.ones(2)}], pad={"token": 0})
    for wrong in ("0", [0], {"x": "0"}, 1j):
        with pytest.raises(ConfigurationError, match="pad"):
            collate([{"x": np.ones(2)}], pad=wrong)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (None, "None"),
        (np.float64(3), "without a first axis"),
        (np.array(3), "without a first axis"),
        (torch.tensor(3), "without a first axis"),
        (np.ones(2), "2 rows"),
        (torch.ones(4, 2), "4 rows"),
        ([1, 2], "2 rows"),
        ({}, "an empty dict"),
        ((), "an empty tuple"),
        (collate([[], [], []]), "an empty list"),
        ({"p": np.ones(3), "loss": 0.5}, "a float at 'loss'"),
        ({"p": np.ones((3, 2)), "q": {"r": np.ones(5)}}, "5 rows at 'q.r'"),
        ("abc", "a str"),
        ((i for i in range(3)), "a generator"),
        (3, "an int"),
    ],
)
def test_what_is_not_three_rows_is_refused(output, words):
    with pytest.raises(OutputShapeError, match="batch of 3 rows") as caught:
        split(output, 3)
    assert words in str(caught.value)
    assert caught.value.expected == 3


@pytest.mark.parametrize("length", [float("nan"), float("inf"), -1, 4, 1.5])
def test_a_length_that_cannot_be_is_refused_with_its_row(length):
    batch = Padded(np.zeros((3, 3)), np.array([3, length, 0.0]))
    with pytest.raises(OutputShapeError, match=r"length for row 1 of the batch is .*from 0 to 3"):
        split(batch, 3)
    batch = Padded(torch.zeros(3, 3), torch.tensor([3, length, 0.0]))
    with pytest.raises(OutputShapeError, match=r"length for row 1 of the batch"):
        split({"x": batch}, 3)


@pytest.mark.parametrize("n_rows", [-1, 1.0, float("nan"), True, None, "2"])
def test_a_number_of_rows_that_cannot_be_is_refused(n_rows):
    with pytest.raises(ConfigurationError, match="n_rows"):
        split(np.zeros(2), n_rows)
