"""Rows of every container, against the obvious thing: ask the tiers for each row alone."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlkit.errors import AllTiersFailedError, ConfigurationError, RowsMismatchError
from mlkit.resilience import Gate, constant, fallback, finite, in_range, stale, tier

torch.set_num_threads(1)


class Pair(NamedTuple):
    score: Any
    label: Any


@dataclasses.dataclass(frozen=True)
class Prediction:
    probs: Any
    parts: dict[str, Any]
    note: str | None = None
    seen: int = dataclasses.field(default=0, init=False)

    def __post_init__(self):
        object.__setattr__(self, "seen", len(self.probs))


class Scores(OrderedDict):
    """As the outputs of some model libraries are: a mapping of their own type."""


def score(v: float, at: int) -> float:
    """What tier *at* says about input *v*; rows that it must not answer are NaN."""
    return v + 100 * at if at >= v % 4 else math.nan


# From the numbers of the rows to an answer in some container, and from such an answer to plain rows.
OUTPUTS: dict[str, tuple[Any, Any]] = {
    "float32": (lambda v: np.array(v, np.float32), lambda y: y.tolist()),
    "float64, two columns": (lambda v: np.array([v, v]).T.reshape(-1, 2), lambda y: y.tolist()),
    "fortran": (
        lambda v: np.asfortranarray(np.array([v, v]).T.reshape(-1, 2)),
        lambda y: y.tolist(),
    ),
    "complex": (lambda v: np.array(v, np.complex64), lambda y: y.tolist()),
    "object": (lambda v: np.array(v, object), lambda y: y.tolist()),
    "tensor": (lambda v: torch.tensor(v, dtype=torch.float32), lambda y: y.tolist()),
    "bfloat16": (lambda v: torch.tensor(v, dtype=torch.bfloat16), lambda y: y.tolist()),
    "tensor with a graph": (
        lambda v: torch.tensor(v, dtype=torch.float64, requires_grad=True) * 1,
        lambda y: y.tolist(),
    ),
    "list": (list, list),
    "tuple of rows": (tuple, list),
    "list of dicts": (lambda v: [{"s": x} for x in v], list),
    "dict": (
        lambda v: {"s": np.array(v), "t": torch.tensor(v), "model": "m"},
        lambda y: list(zip(y["s"].tolist(), y["t"].tolist(), strict=True)),
    ),
    "a mapping of its own type": (lambda v: Scores(s=np.array(v)), lambda y: y["s"].tolist()),
    "tuple of columns": (
        lambda v: (np.array(v), [x * 2 for x in v], None),
        lambda y: list(zip(y[0].tolist(), y[1], strict=True)),
    ),
    "named tuple": (
        lambda v: Pair(np.array(v), tuple(v)),
        lambda y: list(zip(y.score.tolist(), y.label, strict=True)),
    ),
    "nested dataclass": (
        lambda v: Prediction(
            np.array([v, v]).T.reshape(-1, 2), {"a": list(v), "b": (np.array(v),)}
        ),
        lambda y: list(zip(y.probs.tolist(), y.parts["a"], y.parts["b"][0].tolist(), strict=True)),
    ),
    "series": (lambda v: pd.Series(v, dtype=np.float32, name="s"), lambda y: y.tolist()),
    "nullable series": (lambda v: pd.Series(v, dtype="Float64"), lambda y: y.tolist()),
    "table": (
        lambda v: pd.DataFrame({"s": np.array(v, float), "t": np.array(v, np.float32)}),
        lambda y: y.to_numpy().tolist(),
    ),
}

INPUTS: dict[str, tuple[Any, Any]] = {
    "array": (lambda v: np.array(v, float), lambda x: x.tolist()),
    "tensor": (
        lambda v: torch.tensor(v, dtype=torch.float32, requires_grad=True),
        lambda x: x.tolist(),
    ),
    "list": (list, list),
    "tuple": (tuple, list),
    "dict": (lambda v: {"x": np.array(v, float), "mask": None}, lambda x: x["x"].tolist()),
    "columns": (lambda v: (np.array(v, float), list(v)), lambda x: x[1]),
    "dataclass": (lambda v: Prediction(list(v), {}), lambda x: x.probs),
    "table": (
        lambda v: pd.DataFrame({"x": np.array(v, float)}, index=range(7, 7 + len(v))),
        lambda x: x["x"].tolist(),
    ),
}


def shape_of(y: Any) -> Any:
    """Return kinds, dtypes and devices, without the data."""
    if isinstance(y, dict):
        return type(y), {key: shape_of(part) for key, part in y.items()}
    if dataclasses.is_dataclass(y):
        return type(y), shape_of(y.probs), shape_of(y.parts)
    if isinstance(y, pd.DataFrame):
        return type(y), list(y.dtypes), list(y.columns)
    if isinstance(y, pd.Series):
        return type(y), y.dtype, y.name
    if isinstance(y, (np.ndarray, torch.Tensor)):
        return type(y), y.dtype, getattr(y, "device", None), tuple(y.shape[1:])
    if isinstance(y, tuple):
        columns = any(isinstance(part, (np.ndarray, torch.Tensor, list)) for part in y)
        return type(y), [shape_of(part) for part in y] if columns else None
    return type(y)


ok = Gate(lambda y: [math.isfinite(abs(v)) for v in numbers_of(y)], name="ok")


def numbers_of(y: Any) -> list[Any]:
    """Return one number of each row of an answer of any of the OUTPUTS."""
    for column in (lambda: y.probs[:, 0], lambda: y.score, lambda: y["s"], lambda: y[0]):
        try:
            found = column()
        except (AttributeError, IndexError, KeyError, TypeError):
            continue
        if (
            not isinstance(found, (float, dict, complex))
            and getattr(found, "ndim", 1) == 1
            and hasattr(found, "__len__")
        ):
            if hasattr(y, "shape") and not isinstance(y, pd.DataFrame):
                break
            return [complex(v) if not isinstance(v, type(pd.NA)) else math.nan for v in found]
    rows = y.detach().tolist() if isinstance(y, torch.Tensor) else list(y)
    flat = [v["s"] if isinstance(v, dict) else v for v in rows]
    flat = [v[0] if hasattr(v, "__len__") else v for v in flat]
    return [math.nan if v is pd.NA else v for v in flat]


values = st.lists(st.integers(0, 3).map(float), max_size=9)


@given(
    values=values,
    made=st.sampled_from(sorted(OUTPUTS)),
    asked=st.sampled_from(sorted(INPUTS)),
    broken=st.sampled_from([-1, 0, 1, 2]),
)
def test_a_batch_is_answered_as_its_rows_would_be_alone(values, made, asked, broken):
    make, read = OUTPUTS[made]
    give, take = INPUTS[asked]
    seen: list[list[float]] = []

    def level(at: int) -> Any:
        def answer(x):
            rows = take(x)
            seen.append(rows)
            if at == broken:
                raise ConnectionError
            return make([score(v, at) for v in rows])

        return tier(answer, accept=ok, name=f"t{at}", policy=None)

    chain = fallback(*[level(at) for at in range(4)], per_row=True)
    x = give(values)
    before = copy.deepcopy(take(x))

    # Row by row: the first tier that is not broken and knows the row.
    where = [
        next(at for at in range(4) if at != broken and at >= v % 4) if v < 3 else 3 for v in values
    ]
    answer = chain.explain(x)
    expected = make([score(v, at) for v, at in zip(values, where, strict=True)])
    assert read(answer.value) == read(expected)
    assert shape_of(answer.value) == shape_of(expected)
    assert answer.rows == tuple(f"t{at}" for at in where)
    assert sum(answer.tier_counts.values()) == len(values)
    assert take(x) == before
    assert chain(x) is not None
    for i, at in enumerate(where):
        assert answer.path(i) == (f"t{at}",)
        assert answer.why(i).count("t") >= at
    for rows in seen[1:]:
        assert all(v in values for v in rows)


@given(
    masks=st.integers(0, 6).flatmap(
        lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=4)
    ),
    library=st.sampled_from(["numpy", "torch", "list", "dict"]),
)
def test_a_rejected_row_is_never_returned(masks, library):
    """Tier t answers row i with 10 t + i, and its gate takes it or not, by the masks."""
    n = len(masks[0])
    wrap = {
        "numpy": lambda v: np.array(v, int),
        "torch": lambda v: torch.tensor(v, dtype=torch.int64),
        "list": list,
        "dict": lambda v: {"a": np.array(v, int)},
    }[library]
    plain = lambda y: [int(v) for v in (y["a"] if isinstance(y, dict) else y)]

    def level(at):
        def answer(x):
            return wrap([10 * at + int(i) for i in x])

        gate = Gate(lambda y, x: [masks[at][int(i)] for i in x], name="mask", arguments=True)
        return tier(answer, accept=gate, name=f"t{at}", policy=None)

    chain = fallback(*[level(at) for at in range(len(masks))], per_row=True)
    left = [i for i in range(n) if not any(mask[i] for mask in masks)]
    if left:
        with pytest.raises(AllTiersFailedError) as info:
            chain(list(range(n)))
        assert info.value.rows == tuple(left)
        assert f"no tier answered {len(left)} of {n} rows" in str(info.value)
        return
    first = [next(at for at, mask in enumerate(masks) if mask[i]) for i in range(n)]
    assert plain(chain(list(range(n)))) == [10 * at + i for i, at in enumerate(first)]


@pytest.mark.parametrize("made", sorted(OUTPUTS))
def test_what_answers_every_row_comes_back_itself(made):
    answer = OUTPUTS[made][0]([1.0, 2.0])
    up = fallback(tier(lambda x: answer, name="a", accept=ok), constant(0.0), per_row=True)
    assert up([1, 2]) is answer

    def fails(x):
        raise ConnectionError

    down = fallback(fails, tier(lambda x: answer, name="b"), per_row=True)
    assert down([1, 2]) is answer


@pytest.mark.parametrize("made", sorted(OUTPUTS))
def test_no_answer_is_changed(made):
    make, read = OUTPUTS[made]
    first, second = make([1.0, math.nan, 3.0]), make([5.0])
    before = repr(first), repr(second)
    chain = fallback(
        tier(lambda x: first, accept=ok, name="a"), tier(lambda x: second, name="b"), per_row=True
    )
    assert read(chain([0, 0, 0])) == read(make([1.0, 5.0, 3.0]))
    assert (repr(first), repr(second)) == before


class TestArguments:
    def test_several_batches_by_place_and_by_name(self):
        seen = []

        def big(ids, mask=None, *, temperature=1.0):
            return np.where(ids > 1, np.nan, ids * temperature)

        def small(ids, mask=None, *, temperature=1.0):
            seen.append((ids.tolist(), mask, temperature))
            return ids * 0.0

        chain = fallback(tier(big, accept=finite), small, per_row=("ids", "mask"))
        ids = np.array([1, 2, 3, 1])
        for call in (
            lambda: chain(ids, ["a", "b", "c", "d"], temperature=2.0),
            lambda: chain(ids, mask=["a", "b", "c", "d"], temperature=2.0),
            lambda: chain(mask=["a", "b", "c", "d"], ids=ids, temperature=2.0),
        ):
            assert call().tolist() == [2.0, 0.0, 0.0, 2.0]
            assert seen.pop() == ([2, 3], ["b", "c"], 2.0)
        assert chain(ids, None).tolist() == [1.0, 0.0, 0.0, 1.0]
        assert seen.pop() == ([2, 3], None, 1.0)

    def test_the_first_argument_by_keyword(self):
        def big(x, scale=1):
            return [v if v < 2 else math.nan for v in x]

        chain = fallback(tier(big, accept=finite), constant(0.0), per_row=True)
        assert chain(x=[1, 5], scale=3) == [1, 0.0]
        with pytest.raises(ConfigurationError, match="a batch as its first argument"):
            chain(scale=3)

    def test_batches_of_several_lengths(self):
        chain = fallback(lambda a, b: a, constant(0), per_row=("a", "b"))
        with pytest.raises(ConfigurationError, match="as many rows"):
            chain([1, 2], [1])

    def test_a_name_that_is_no_parameter(self):
        def big(ids, mask):
            return ids

        with pytest.raises(ConfigurationError, match=r"'ids' or 'mask'.*did you mean 'mask'"):
            fallback(big, per_row=("ids", "mas"))

    def test_none_of_the_names_is_given(self):
        def big(ids=None, *, other=None):
            return ids

        with pytest.raises(ConfigurationError, match="at least one of the arguments"):
            fallback(big, per_row=("ids",))(other=1)

    def test_a_method(self):
        class Model:
            bias = 10

            def big(self, x):
                return [v + self.bias if v < 2 else math.nan for v in x]

            score = fallback(
                tier(big, accept=finite),
                tier(lambda self, x: [self.bias] * len(x), name="b"),
                per_row=True,
            )

        model = Model()
        assert model.score([1, 2]) == [11, 10]
        assert model.score(x=[1, 2]) == [11, 10]
        assert model.score.explain([1, 2]).rows == ("big", "b")


class TestMisfits:
    def failed(self, second, first=None):
        given = (
            {"probs": np.zeros((2, 3), np.float32), "label": ["a", "b"]} if first is None else first
        )
        chain = fallback(
            tier(lambda x: given, accept=lambda y: np.array([True, False]), name="big"),
            tier(lambda x: second, name="small"),
            per_row=True,
        )
        with pytest.raises(AllTiersFailedError) as info:
            chain([1, 2])
        error = info.value.exceptions[1]
        assert isinstance(error, RowsMismatchError)
        assert error.tier == "small"
        return error

    def test_shapes(self):
        error = self.failed({"probs": np.zeros((1, 2), np.float32), "label": ["c"]})
        assert error.place == "answer['probs']"
        assert (
            str(error)
            == "tier 'small': answer['probs']: rows of shape (2,) do not fit among rows of shape (3,)"
        )

    def test_dtypes(self):
        error = self.failed({"probs": np.zeros((1, 3), complex), "label": ["c"]})
        assert (
            str(error) == "tier 'small': answer['probs']: complex128 rows do not fit into float32"
        )

    def test_number_of_rows(self):
        error = self.failed({"probs": np.zeros((2, 3)), "label": ["c", "d"]})
        assert str(error) == "tier 'small': answer: 2 rows came back for 1"

    def test_columns(self):
        error = self.failed({"probs": np.zeros((1, 3))})
        assert str(error) == "tier 'small': answer: ['probs'] do not fit among ['probs', 'label']"

    def test_kinds(self):
        error = self.failed([1])
        assert str(error) == "tier 'small': answer: a list does not fit where a dict is"
        error = self.failed({"probs": {"a": [1]}, "label": ["c"]})
        assert error.place == "answer['probs']"
        error = self.failed([1], Prediction(np.zeros(2), {}))
        assert "Prediction" in str(error)

    def test_what_is_about_the_whole(self):
        error = self.failed(
            Prediction(np.zeros(1), {}, note="v2"), Prediction(np.zeros(2), {}, note="v1")
        )
        assert error.place == "answer.note"

    def test_tables(self):
        first = pd.DataFrame({"a": [1.0, 2.0], "kind": pd.Categorical(["x", "y"])})
        error = self.failed(pd.DataFrame({"b": [1.0]}), first)
        assert "['b'] does not fit into a table of the columns ['a', 'kind']" in str(error)
        error = self.failed(pd.DataFrame({"a": [1.0], "kind": ["z"]}), first)
        assert "another category" in str(error)

    def test_the_first_to_give_a_row_decides_if_nothing_of_the_tiers_above_is_used(self):
        chain = fallback(
            tier(lambda x: np.full((2, 0), np.nan), accept=lambda y: False, name="big"),
            tier(lambda x: ["a", "b"], name="small"),
            per_row=True,
        )
        assert chain(np.zeros(2)) == ["a", "b"]
        same = fallback(
            tier(lambda x: np.full(2, np.nan, np.float32), accept=finite, name="big"),
            tier(lambda x: np.ones(2), name="small"),
            per_row=True,
        )
        assert same(np.zeros(2)).dtype == np.float32


class TestConstantRows:
    prior = {"label": "unknown", "probs": np.array([0.5, 0.5])}

    def chain(self, answer):
        def big(x):
            if answer is None:
                raise ConnectionError
            return answer

        return fallback(
            tier(big, accept=lambda y: np.array([True, False, False])),
            constant(self.prior),
            per_row=True,
        )

    def test_columns_of_a_structure(self):
        answer = {"label": ["a", "b", "c"], "probs": torch.ones(3, 2)}
        y = self.chain(answer)(torch.zeros(3))
        assert y["label"] == ["a", "unknown", "unknown"]
        assert y["probs"].tolist() == [[1, 1], [0.5, 0.5], [0.5, 0.5]]
        assert y["probs"].dtype == torch.float32

    def test_rows_of_a_list(self):
        y = self.chain([{"label": "a"}] * 3)(["x", "y", "z"])
        assert [row["label"] for row in y] == ["a", "unknown", "unknown"]
        assert y[1] is not y[2]
        assert y[1]["probs"] is not self.prior["probs"]

    def test_if_nobody_answered_the_batch_says_in_what(self):
        y = self.chain(None)(["x", "y", "z"])
        assert [row["label"] for row in y] == ["unknown"] * 3
        y = self.chain(None)(np.zeros((3, 4)))
        assert y["probs"].shape == (3, 2)
        assert list(y["label"]) == ["unknown"] * 3
        y = self.chain(None)(torch.zeros(3, 4))
        assert y["probs"].tolist() == [[0.5, 0.5]] * 3
        assert list(y["label"]) == ["unknown"] * 3
        y = fallback(tier(lambda x: 1 / 0), constant(0.5), per_row=True)(
            pd.DataFrame({"a": [1, 2]})
        )
        assert isinstance(y, np.ndarray)
        assert y.tolist() == [0.5, 0.5]

    def test_a_function(self):
        prior = {"now": 0.5}
        chain = fallback(
            tier(lambda x: [1.0, math.nan], accept=finite),
            constant(lambda: prior["now"]),
            per_row=True,
        )
        assert chain([1, 2]) == [1.0, 0.5]
        prior["now"] = 0.7
        assert chain([1, 2]) == [1.0, 0.7]
        assert fallback(tier(lambda x: 1 / 0), constant(lambda x: x + 1))(3) == 4

    def test_table_rows(self):
        table = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": ["x", "y", "z"]})
        chain = fallback(
            tier(lambda x: table, accept=lambda y: np.array([True, False, True])),
            constant({"a": 0.0, "b": "none"}),
            per_row=True,
        )
        y = chain(pd.DataFrame({"x": [1, 2, 3]}))
        assert y["a"].tolist() == [1.0, 0.0, 3.0]
        assert y["b"].tolist() == ["x", "none", "z"]
        assert table["a"].tolist() == [1.0, 2.0, 3.0]
        assert list(y.dtypes) == list(table.dtypes)


class TestStaleRows:
    @pytest.mark.parametrize("made", sorted(OUTPUTS))
    @pytest.mark.parametrize("asked", sorted(set(INPUTS)))
    def test_rows_of_every_kind_are_kept_and_found(self, made, asked):
        make, read = OUTPUTS[made]
        give, take = INPUTS[asked]
        state = {"up": True}

        def live(x):
            if not state["up"]:
                raise ConnectionError
            return make([v + 0.5 for v in take(x)])

        chain = fallback(tier(live, policy=None), stale(60), per_row=True)
        first = chain(give([1.0, 2.0, 3.0]))
        state["up"] = False
        answer = chain.explain(give([3.0, 1.0]))
        assert read(answer.value) == read(make([3.5, 1.5]))
        assert shape_of(answer.value) == shape_of(first)
        with pytest.raises(AllTiersFailedError) as info:
            chain(give([3.0, 9.0]))
        assert info.value.rows == (1,)

    def test_what_is_kept_is_changed_by_nobody(self):
        state = {"up": True}

        def live(x):
            if not state["up"]:
                raise ConnectionError
            return {"a": np.array([1.0]), "b": [[1]]}

        chain = fallback(tier(live, policy=None), stale(60))
        chain(1)["a"][0] = 7
        state["up"] = False
        chain(1)["a"][0] = 8
        assert chain(1)["a"].tolist() == [1.0]

    def test_a_key_of_a_row(self):
        state, seen = {"up": True}, []

        def live(x, extra):
            if not state["up"]:
                raise ConnectionError
            return [row["id"] for row in x]

        def key(row):
            seen.append(row)
            return row["id"]

        chain = fallback(tier(live, policy=None), stale(60, key=key), per_row=True)
        chain([{"id": 1, "t": 5}], object())
        state["up"] = False
        assert chain([{"id": 1, "t": 6}], object()) == [1]
        assert seen == [{"id": 1, "t": 5}, {"id": 1, "t": 6}]


def test_an_inference_tensor_can_be_completed_outside_of_its_mode():
    def big(x):
        with torch.inference_mode():
            return torch.tensor([1.0, math.nan])

    y = fallback(tier(big, accept=finite), constant(0.0), per_row=True)(torch.zeros(2))
    assert y.tolist() == [1.0, 0.0]


def test_gradients_flow_through_the_rows_of_each_tier():
    w = torch.tensor(2.0, requires_grad=True)
    v = torch.tensor(3.0, requires_grad=True)
    chain = fallback(
        tier(lambda x: torch.where(x > 1, x * math.nan, x * w), accept=finite, name="a"),
        tier(lambda x: x * v, name="b"),
        per_row=True,
    )
    y = chain(torch.tensor([1.0, 5.0]))
    assert y.tolist() == [2.0, 15.0]
    y[1].backward()
    assert v.grad.item() == 5.0


def test_the_columns_of_a_table_may_have_one_name():
    table = pd.DataFrame(np.array([[1.0, np.nan], [2.0, 3.0]]), columns=["a", "a"])
    chain = fallback(
        tier(lambda x: table, accept=finite, name="a"), constant({"a": 0.0}), per_row=True
    )
    with pytest.raises(AllTiersFailedError):
        fallback(tier(lambda x: table, accept=finite), per_row=True)([1, 2])
    assert chain is not None


def test_gates_look_into_structures():
    y = Prediction(np.array([1.0, math.nan, 3.0]), {"a": [1.0, 2.0, math.inf]})
    assert finite.mask(y, 3).tolist() == [True, False, False]
    assert not finite(y)
    assert finite.mask(pd.DataFrame({"a": [1.0, None]}), 2).tolist() == [True, False]
    assert in_range(0, 1).mask(pd.Series([0.5, None, 2.0]), 3).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("dtype", "below", "fits"),
    [
        ("M8[D]", np.array(["2026-03-01T00:00"], "M8[m]"), True),
        ("M8[D]", np.array(["2026-03-01T10:30"], "M8[m]"), False),
        ("M8[ns]", np.array(["2026-03-01"], "M8[D]"), True),
        ("M8[ns]", np.array(["NaT"], "M8[D]"), True),
        ("M8[ns]", np.array(["3000-01-01"], "M8[D]"), False),  # nanoseconds end in 2262
        ("m8[s]", np.array([1500], "m8[ms]"), False),
    ],
)
def test_a_time_that_the_unit_cannot_hold_becomes_no_other_time(dtype, below, fits):
    def above(x):
        return np.array([1, "NaT"], dtype)

    chain = fallback(tier(above, accept=finite), tier(lambda _: below, name="below"), per_row=True)
    if fits:
        assert np.array_equal(chain(np.zeros(2))[1:], below, equal_nan=True)
    else:
        with pytest.raises(AllTiersFailedError) as info:
            chain(np.zeros(2))
        assert isinstance(info.value.exceptions[1], RowsMismatchError)
