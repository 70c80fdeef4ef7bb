"""What `compare` says differs is what differs: every place of the plain data, every tensor, by how much."""

import copy
import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkit.models import ModelStore
from mlkit.models._compare import _differ

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats().map(lambda x: x + 0.0) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@pytest.fixture
def store(tmp_path):
    return ModelStore(tmp_path)


def weights_of(store, first, second):
    store.save("m", first)
    store.save("m", second)
    found = store.compare("m@1", "m@2")
    return {one.path: one for one in found.differences}, found.n_equal_tensors


def test_each_tensor_is_told_apart(store):
    first = {
        "same": np.arange(3), "gone": np.zeros(1), "shape": np.zeros((2, 3)), "type": np.zeros(2),
        "moved": np.array([1.0, 5.0]), "nan": np.array([np.nan, 1.0]), "inf": np.array([np.inf, 0.0]),
        "big": np.array([2**62], "int64"), "bool": np.array([True, False]), "empty": np.zeros(0),
    }  # fmt: skip
    second = {
        "same": np.arange(3), "new": np.zeros(1), "shape": np.zeros((3, 2)),
        "type": np.zeros(2, "float32"), "moved": np.array([1.25, 4.5]),
        "nan": np.array([np.nan, np.nan]), "inf": np.array([np.inf, 0.5]),
        "big": np.array([-(2**62)], "int64"), "bool": np.array([True, True]), "empty": np.zeros(0),
    }  # fmt: skip
    found, n_equal = weights_of(store, first, second)
    assert n_equal == 2
    assert set(found) == set(first | second) - {"same", "empty"}
    assert (found["gone"].after, found["new"].before) == (None, None)
    assert (found["shape"].before, found["shape"].after) == ("F64 (2, 3)", "F64 (3, 2)")
    assert found["type"].after == "F32 (2,)"
    assert found["moved"].change == 0.5
    assert math.isnan(found["nan"].change)
    assert found["inf"].change == 0.5
    assert found["big"].change == 2.0**63
    assert found["bool"].change == 1.0


def test_torchs_dtypes_and_ties(store):
    torch = pytest.importorskip("torch")
    first = {
        "w": torch.tensor([1.0, -2.0], dtype=torch.bfloat16),
        "f8": torch.ones(2).to(torch.float8_e4m3fn),
    }
    second = {
        "w": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "f8": torch.zeros(2).to(torch.float8_e4m3fn),
    }
    first["tied"], second["tied"] = first["w"], second["w"].clone()
    found, n_equal = weights_of(store, first, second)
    assert n_equal == 0
    assert (found["w"].change, found["tied"].change, found["f8"].change) == (0.5, 0.5, None)
    assert str(found["f8"]) == "weights.f8: F8_E4M3 (2,), other values"


def test_other_formats_differ_as_a_whole(store):
    found, n_equal = weights_of(store, b"one", b"three")
    assert (found[""].before, found[""].after, n_equal) == ("3 bytes", "5 bytes", None)
    store.save("m", {"w": np.zeros(2)})
    assert [one.part for one in store.compare("m@1", "m@3").differences] == ["format"]


def test_what_is_equal_is_not_read(store, tmp_path):
    store.save("m", {"w": np.zeros(1000)}, spec={"a": {"b": [1, 2]}}, metrics={"x": math.nan})
    store.save("m", {"w": np.zeros(1000)}, spec={"a": {"b": [1, 3, 4]}}, metrics={"x": math.nan})
    for path in (tmp_path / "blobs").rglob("*"):
        if path.is_file() and path.stat().st_size > 4000:
            path.unlink()
    found = store.compare("m@1", "m@2")
    assert [(one.path, one.before, one.after) for one in found.differences] == [
        ("a.b[1]", 2, 3),
        ("a.b[2]", None, 4),
    ]
    assert json.loads(json.dumps(found.to_dict()))["second"] == "m@2"
    assert str(pickle.loads(pickle.dumps(found))) == str(found)
    assert repr(found) == "<Comparison m@1 -> m@2, 2 differences>"


def leaves(value, path=""):
    if isinstance(value, dict):
        return {leaf for key, one in value.items() for leaf in leaves(one, f"{path}.{key!r}")}
    if isinstance(value, list):
        return {leaf for place, one in enumerate(value) for leaf in leaves(one, f"{path}[{place}]")}
    return set() if value is None else {(path, json.dumps(value))}


@given(PLAIN, PLAIN)
def test_a_difference_is_found_exactly_where_there_is_one(before, after):
    assert not list(_differ("spec", "", before, copy.deepcopy(before)))
    if leaves(before) != leaves(after):
        assert list(_differ("spec", "", before, after))
