"""A signature is inferred from an example, stored, and refuses what is something else, by its place."""

import datetime as dt
import json
import pickle
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlkit.errors import ConfigurationError, ModelInputError
from mlkit.models import Field, ModelStore, Signature

torch.set_num_threads(1)
DTYPES = ["bool", "int8", "int64", "uint8", "float16", "float32", "float64", "complex64"]


@dataclass
class Example:
    tokens: object
    mask: object


class Pair(NamedTuple):
    left: object
    right: object


arrays = st.builds(
    lambda dtype, shape: np.zeros(shape, dtype),
    st.sampled_from([*DTYPES, "U3", "S2", "M8[s]"]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
tensors = st.builds(
    lambda dtype, shape: torch.zeros(shape, dtype=dtype),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn]),
    st.lists(st.integers(0, 3), max_size=3),
)
plain = st.one_of(st.integers(-5, 5), st.floats(), st.text(max_size=3), st.booleans())
columns = st.fixed_dictionaries(
    {"age": st.just([1, 2]), "name": st.just(["a", "b"])},
    optional={"x": st.just([0.5, None]), "seen": st.just([True, False])},
).map(pd.DataFrame)
values = st.recursive(
    st.one_of(arrays, tensors, plain, columns),
    lambda inner: st.one_of(
        st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, min_size=1, max_size=3),
        st.tuples(inner, inner),
        st.builds(Example, inner, inner),
        st.builds(Pair, inner, inner),
    ),
    max_leaves=5,
)


@given(values, values, st.booleans())
def test_an_example_fits_its_own_signature_and_the_signature_survives(example, output, batched):
    signature = Signature.infer(example, output, batched=batched)
    signature.check(example)
    signature.check_output(output)
    for again in (
        Signature(json.loads(json.dumps(signature.to_dict()))),
        pickle.loads(pickle.dumps(signature)),
        Signature(signature),
    ):
        assert again == signature == signature.to_dict()
        assert (again.inputs, again.outputs) == (signature.inputs, signature.outputs)
        assert str(again) == str(signature)


@given(values, values)
def test_check_and_inference_agree(example, other):
    """Without a batch axis and for dtypes that are equal, only a value of the same fields passes."""
    signature = Signature.infer(example, batched=False)
    try:
        signature.check(other)
    except ModelInputError:
        assert Signature.infer(other, batched=False).inputs != signature.inputs
    else:
        found = Signature.infer(other, batched=False).inputs
        shapes = [
            {field.name: field.shape for field in fields} for fields in (found, signature.inputs)
        ]
        assert shapes[0] == shapes[1]


def test_places_dtypes_and_shapes():
    example = {
        "image": torch.zeros(2, 3, 8, dtype=torch.bfloat16),
        "text": Example(["a", "bc"], np.ones((2, 4), bool)),
        "both": (1.5, Pair([[1, 2], [3, 4]], b"x")),
        "rows": [{"age": 3, "city": "x"}, {"age": None, "city": "y"}],
        "when": [dt.datetime(2026, 1, 1)],
    }
    assert Signature.infer(example).inputs == (
        Field("image", "bfloat16", (None, 3, 8)),
        Field("text.tokens", "string", (None,)),
        Field("text.mask", "bool", (None, 4)),
        Field("both[0]", "float64", ()),
        Field("both[1].left", "int64", (None, 2)),
        Field("both[1].right", "bytes", ()),
        Field("rows.age", "int64", (None,)),
        Field("rows.city", "string", (None,)),
        Field("when", "datetime", (None,)),
    )


def test_columns_of_every_kind():
    table = pd.DataFrame({
        "i": [1, 2], "f": [0.5, None], "s": ["a", None], "o": [float("nan"), "x"], "b": [True, False],
        "I": pd.array([1, None], dtype="Int32"), "B": pd.array([True, None], dtype="boolean"),
        "S": pd.array(["a", None], dtype="string"), "c": pd.Categorical(["x", "y"]),
        "ci": pd.Categorical([3, 4]), "t": pd.to_datetime(["2020", "2021"]),
        "z": pd.to_datetime(["2020", "2021"], utc=True), "d": pd.to_timedelta([1, 2]),
    })  # fmt: skip
    kinds = {field.name: field.dtype for field in Signature.infer(table).inputs}
    assert kinds == {
        "i": "int64", "f": "float64", "s": "string", "o": "string", "b": "bool", "I": "int32", "B": "bool",
        "S": "string", "c": "string", "ci": "int64", "t": "datetime", "z": "datetime", "d": "timedelta",
    }  # fmt: skip
    assert {field.shape for field in Signature.infer(table).inputs} == {(None,)}
    Signature.infer(table).check(table[::-1][list(reversed(table.columns))])


def problems(signature, value):
    with pytest.raises(ModelInputError) as caught:
        signature.check(value)
    return caught.value.problems


def test_every_problem_is_named_by_its_column():
    table = pd.DataFrame({"age": [1, 2], "name": ["a", "b"], "weight": [0.5, 1.5]})
    wrong = pd.DataFrame({"Age": [1], "name": [3], "weight": ["heavy"], "more": [0]})
    found = problems(Signature.infer(table), wrong)
    assert found == (
        "'age': is missing, must be int64[?]; is it 'Age'?",
        "'name': is int64[1], must be string[?]",
        "'weight': is string[1], must be float64[?]",
        "'Age', 'more': not in the signature, which has 'age', 'name', 'weight'",
    )
    (missing,) = problems(Signature.infer(table[["age"]]), pd.DataFrame({"age": [1, None]}))
    assert (
        missing
        == "'age': is float64[2], must be int64[?]; missing values turn whole numbers into floats"
    )


FLOATS = Signature.infer(np.zeros((2, 3), "float32"))


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((0, 3), "float32"), np.zeros((9, 3), "float16"), np.zeros((1, 3), "int16"), np.zeros((1, 3), bool),
        [[1, 2, 3]], [[0.1, 2, 3]], [np.zeros(3, "float32")] * 4, torch.zeros(5, 3), [torch.zeros(3)],
    ],
    ids=range(9),
)  # fmt: skip
def test_what_converts_without_loss_fits(value):
    FLOATS.check(value)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (np.zeros((2, 3)), "the array: is float64[2, 3], must be float32[?, 3]"),
        (np.zeros((2, 3), "int32"), "the array: is int32[2, 3], must be float32[?, 3]"),
        (torch.zeros(2, 3, dtype=torch.float16), "the array: is float16[2, 3], must be float32[?, 3]"),
        (np.zeros(3, "float32"), "the array: is float32[3], must be float32[?, 3]"),
        (np.zeros((2, 4), "float32"), "the array: is float32[2, 4], must be float32[?, 3]"),
        ([["a", "b", "c"]], "the array: is string[1, 3], must be float32[?, 3]"),
        ([[True, True, False]], "the array: is bool[1, 3], must be float32[?, 3]"),
        ({"x": [1]}, "the array: is missing, must be float32[?, 3]"),
        ([[1], [2, 3]], "the input: expected rows of one length"),
        ([torch.zeros(3), torch.zeros(2)], "the input: expected rows of one dtype and shape"),
        (object(), "the input: expected arrays"),
        (None, "the input: expected arrays"),
        ({1, 2}, "the input: expected arrays"),
    ],
    ids=range(13),
)  # fmt: skip
def test_what_does_not_fit(value, problem):
    assert problems(FLOATS, value)[0].startswith(problem)


def test_errors_say_nothing_of_what_is_in_the_values():
    for value in (
        {"name": ["Jane Doe", 3]},
        [["Jane Doe"], ["x", "y"]],
        {"a": {"b": {"Jane Doe"}}},
    ):
        with pytest.raises(ModelInputError) as caught:
            FLOATS.check(value)
        assert "Jane" not in str(caught.value)
    twice = pd.DataFrame([["Jane Doe", 1]], columns=["a", "a"])
    assert "Jane" not in problems(FLOATS, twice)[0]


def test_an_error_stays_short_and_keeps_everything():
    signature = Signature.infer({f"column {i}": [i] for i in range(1000)})
    with pytest.raises(ModelInputError) as caught:
        signature.check({"x": 1})
    assert len(caught.value.problems) == 1001
    assert len(str(caught.value)) < 600
    assert "and 998 more" in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems


def test_a_model_is_asked_without_being_changed():
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2), torch.nn.Dropout())
    net[2].eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    before = torch.random.get_rng_state()
    signature = Signature.infer(torch.zeros(4, 3), net)
    assert str(signature) == "(float32[?, 3]) -> float32[?, 2]"
    assert [module.training for module in net.modules()] == [True, True, True, False]
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert torch.equal(before, torch.random.get_rng_state())
    assert Signature.infer([1.0], lambda rows: {"score": sum(rows)}).outputs == (
        Field("score", "float64", ()),
    )

    class Fails(torch.nn.Linear):
        def forward(self, x):
            raise RuntimeError("no")

    net = Fails(1, 1)
    with pytest.raises(RuntimeError, match="no"):
        Signature.infer(torch.zeros(1, 1), net)
    assert net.training


@pytest.mark.parametrize(
    "example",
    [
        None,
        object(),
        {},
        (),
        {"a": object()},
        np.array([object()]),
        np.zeros(2, dtype=[("a", "f4")]),
        pd.DataFrame({"rows": [[1], [2, 3]]}),
        [None],
        [1, "a"],
        lambda: 0,
    ],
    ids=lambda example: repr(example).partition(" at 0x")[0],
)
def test_what_has_no_dtype_has_no_signature(example):
    with pytest.raises(ConfigurationError, match="infer"):
        Signature.infer(example)


def test_what_holds_itself_is_refused():
    endless = {}
    endless["again"] = endless
    with pytest.raises(ConfigurationError, match="16 levels"):
        Signature.infer(endless)
    assert len(problems(FLOATS, endless)) == 1


def test_a_store_keeps_it(tmp_path):
    store = ModelStore(tmp_path)
    net = torch.nn.Linear(3, 2)
    inferred = store.save("m", net, spec={}, example=torch.zeros(4, 3), output=net)
    given_ = store.save(
        "m", net, spec={}, signature=Signature.infer(torch.zeros(1, 3), torch.zeros(1, 2))
    )
    assert inferred.digest == given_.digest, "it is content"
    signature = ModelStore(tmp_path).get("m@1").signature
    assert str(signature) == "(float32[?, 3]) -> float32[?, 2]"
    signature.check(torch.zeros(7, 3))
    with pytest.raises(ModelInputError):
        signature.check(torch.zeros(7, 4))
    assert store.save("m", b"x").signature is None
    free = store.save("m", b"x", signature={"inputs": "whatever I like", "n": 3}).signature
    assert free == {"inputs": "whatever I like", "n": 3}
    assert free.to_dict() == dict(free)
    assert len(free) == 2
    for ask in (
        lambda: free.inputs,
        lambda: free.check([1]),
        lambda: signature_without_outputs().check_output(1),
    ):
        with pytest.raises(ConfigurationError, match="signature"):
            ask()
    assert "whatever" in str(free)


def signature_without_outputs():
    return Signature.infer([1.0])


def test_arguments_that_exclude_each_other(tmp_path):
    store = ModelStore(tmp_path)
    with pytest.raises(ConfigurationError, match="not both"):
        store.save("m", b"x", signature={}, example=[1])
    with pytest.raises(ConfigurationError, match="example="):
        store.save("m", b"x", output=[1])
    with pytest.raises(ConfigurationError, match="example"):
        store.save("m", b"x", example=object())
    assert store.names() == []


@pytest.mark.parametrize(
    "inputs",
    [3, "x", [{}], [{"name": 1, "dtype": "x", "shape": []}], [{"name": "a", "dtype": "x", "shape": [1.5]}],
     [{"name": "a", "dtype": "x", "shape": [-2]}], [{"name": "a", "dtype": "x", "shape": 3}]],
    ids=range(7),
)  # fmt: skip
def test_another_form_is_plain_data(inputs):
    signature = Signature({"inputs": inputs})
    assert signature == {"inputs": inputs}
    with pytest.raises(ConfigurationError, match=r"Signature\.infer"):
        signature.check([1])


def test_minus_one_means_any_too():
    signature = Signature({"inputs": [{"name": "", "dtype": "float32", "shape": [-1, 2]}]})
    signature.check(np.zeros((5, 2), "float32"))
    assert signature.inputs[0].shape == (None, 2)
