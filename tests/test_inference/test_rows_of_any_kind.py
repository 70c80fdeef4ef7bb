"""Rows as people have them: pydantic models, dataclasses, nested trees, and what estimators of scikit-learn take."""

import dataclasses
import pickle
from typing import NamedTuple

import numpy as np
import pydantic
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlkit.errors import CheckpointError, ConfigurationError, RowError
from mlkit.inference import Batcher, collate, map_batches, split


class Person(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True)
    name: str
    age: int = pydantic.Field(ge=0, le=150)
    scores: tuple[float, float] = (0.0, 0.0)


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    age: int


class Sealed(pydantic.BaseModel):
    age: int
    _seen: bool = pydantic.PrivateAttr(default=True)


class Image(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    pixels: np.ndarray
    owner: Person


class Point(NamedTuple):
    x: float
    y: float


@dataclasses.dataclass(frozen=True)
class Pair:
    left: Point
    right: dict


people = st.builds(
    Person,
    name=st.text(max_size=3),
    age=st.integers(0, 150),
    scores=st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)),
)


@given(st.lists(people, min_size=1, max_size=20))
def test_pydantic_rows_are_taken_apart_and_put_together_again(rows):
    batch = collate(rows)
    assert type(batch) is Person
    assert batch.name == [row.name for row in rows]
    assert batch.age.tolist() == [row.age for row in rows]
    back = split(batch, len(rows))
    assert [dict(row) for row in back] == [dict(row) for row in rows]
    assert all(type(row) is Person for row in back)


def test_a_function_gets_columns_of_pydantic_rows_and_may_answer_with_a_model():
    rows = [Image(pixels=np.full((2, 2), i), owner=Person(name=str(i), age=i)) for i in range(5)]

    def model(batch):
        assert batch.pixels.shape[1:] == (2, 2)
        return batch.model_copy(update={"pixels": batch.pixels.sum(axis=(1, 2))})

    results = list(map_batches(model, rows, batch_size=2))
    assert [int(one.pixels) for one in results] == [0, 4, 8, 12, 16]
    assert [one.owner.name for one in results] == list("01234")
    with Batcher(lambda batch: batch.age * 2) as batcher:
        assert batcher.call(rows[3].owner) == 6
    assert rows[0].pixels.shape == (2, 2)  # nothing of the user's was written to


def test_extra_fields_of_a_model_are_rows_too_and_must_agree():
    rows = [Open(age=1, city="Bern"), Open(age=2, city="Rom")]
    batch = collate(rows)
    assert batch.city == ["Bern", "Rom"]
    assert [one.city for one in split(batch, 2)] == ["Bern", "Rom"]
    assert rows[0].city == "Bern"


def test_a_pydantic_row_of_another_class_is_a_bad_row():
    rows = [Person(name="a", age=1), Person(name="b", age=2), Sealed(age=3)]
    got = list(map_batches(lambda b: b.age, rows, on_error="return"))
    assert isinstance(got[2], RowError)
    assert "Sealed" in str(got[2])


def test_pydantic_results_are_kept_in_a_checkpoint(tmp_path):
    rows = [Person(name=str(i), age=i) for i in range(3)]
    rows.append(Person(name="x", age=9, scores=(1.0, 2.0)))

    def job(model):
        return list(map_batches(model, rows, checkpoint=tmp_path / "c", name="job"))

    def same(batch):
        return list(rows)

    assert job(same) == rows
    back = job(None.__init__)  # nothing runs any more
    assert back == rows
    assert [one.model_fields_set for one in back] == [one.model_fields_set for one in rows]
    with pytest.raises(pydantic.ValidationError):
        back[0].age = 3  # still frozen
    assert pickle.loads(pickle.dumps(back[0])) == rows[0]
    with pytest.raises(CheckpointError, match="Sealed with extra or private attributes"):
        list(map_batches(lambda b: [Sealed(age=1)], [0], checkpoint=tmp_path / "d"))


numbers = st.floats(-9, 9)
trees = st.builds(Pair, st.builds(Point, numbers, numbers), st.fixed_dictionaries({"a": numbers, "b": st.tuples(st.text(max_size=2), st.booleans())}))  # fmt: skip


@given(st.lists(trees, min_size=1, max_size=9), st.integers(1, 4))
def test_trees_of_everything_come_back_in_order(rows, batch_size):
    def model(batch):
        assert isinstance(batch.left.x, np.ndarray)
        return {"row": batch, "sum": batch.left.x + batch.right["a"]}

    got = list(map_batches(model, rows, batch_size=batch_size))
    assert [one["row"] for one in got] == rows
    assert [float(one["sum"]) for one in got] == [row.left.x + row.right["a"] for row in rows]


# --- estimators


@pytest.fixture(scope="module")
def data():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(60, 3))
    return x, (x @ [1.0, -2.0, 0.5] > 0).astype(int)


def test_an_estimator_runs_on_arrays_lists_and_tuples(data):
    from sklearn.linear_model import LogisticRegression

    x, y = data
    model = LogisticRegression().fit(x, y)
    truth = model.predict(x).tolist()
    for rows in (x, x.tolist(), [tuple(row) for row in x.tolist()]):
        assert list(map_batches(model, rows, batch_size=3)) == truth  # as many rows as features
    p = list(map_batches(model.predict_proba, x.tolist(), batch_size=7))
    assert np.array_equal(np.stack(p), model.predict_proba(x))
    with Batcher(model) as batcher:
        assert [batcher.call(row) for row in x[:5].tolist()] == truth[:5]
    assert next(map_batches(model, x[:1])) == truth[0]


@pytest.mark.parametrize("with_pandas", [True, False])
def test_an_estimator_gets_the_columns_it_was_fitted_on(data, with_pandas, monkeypatch):
    import pandas as pd
    from sklearn.tree import DecisionTreeClassifier

    x, y = data
    frame = pd.DataFrame(x, columns=["a", "b", "c"])
    model = DecisionTreeClassifier(random_state=0).fit(frame, y)
    truth = model.predict(frame).tolist()
    rows = [{"id": i, "c": c, "a": a, "b": b} for i, (a, b, c) in enumerate(x.tolist())]
    if not with_pandas:
        monkeypatch.setattr("mlkit.inference._batch.estimator.installed", lambda _: False)
        model.feature_names_in_ = model.feature_names_in_[:]
        monkeypatch.setattr(
            type(model), "_check_feature_names", lambda *_, **__: None, raising=False
        )
    import warnings

    with warnings.catch_warnings():
        if not with_pandas:
            warnings.simplefilter("ignore")  # scikit-learn's own remark on arrays without names
        assert list(map_batches(model, rows, batch_size=8)) == truth

    class Row(pydantic.BaseModel):
        a: float
        b: float
        c: float

    if with_pandas:
        models = [Row(a=a, b=b, c=c) for a, b, c in x.tolist()]
        assert list(map_batches(model, models)) == truth


@pytest.mark.parametrize("batch_size", [2, 7])  # as many rows as targets; others
def test_probabilities_of_several_targets_are_each_row_s_own(data, batch_size):
    from sklearn.tree import DecisionTreeClassifier

    x, y = data
    model = DecisionTreeClassifier(max_depth=2).fit(x, np.stack([y, 1 - y], axis=1))
    first, second = model.predict_proba(x)
    got = list(map_batches(model.predict_proba, x, batch_size=batch_size))
    assert np.array_equal(np.stack([one for one, _ in got]), first)
    assert np.array_equal(np.stack([other for _, other in got]), second)


@pytest.mark.parametrize("method", ["transform", "score_samples"])
def test_an_estimator_that_predicts_nothing_gets_rows_of_numbers_too(data, method):
    from sklearn.neighbors import KernelDensity
    from sklearn.preprocessing import StandardScaler

    x, _ = data
    estimator = {"transform": StandardScaler, "score_samples": KernelDensity}[method]().fit(x)
    run = getattr(estimator, method)
    got = list(map_batches(run, x.tolist(), batch_size=3))  # as many rows as features
    assert np.allclose(np.stack(got), run(x))


@pytest.mark.parametrize("kind", [list, tuple])
def test_rows_of_text_and_numbers_are_not_taken_for_columns(kind):
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    rows = [kind(row) for row in [(1.5, "red"), (2.0, "blue"), (3.0, "red"), (0.1, "blue")]]
    prepare = make_column_transformer((StandardScaler(), [0]), (OneHotEncoder(), [1]))
    model = make_pipeline(prepare, LogisticRegression())
    model.fit(np.array(rows, object), [1, 0, 1, 0])
    assert list(map_batches(model, rows, batch_size=2)) == [1, 0, 1, 0]


def test_a_pipeline_on_text_or_dicts_gets_them_as_they_are():
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline

    texts = ["good film", "bad film", "good book", "bad book"] * 3
    labels = [1, 0, 1, 0] * 3
    model = make_pipeline(CountVectorizer(), RidgeClassifier()).fit(texts, labels)
    assert list(map_batches(model, texts, batch_size=5)) == labels
    rows = [{"word": text, "n": len(text)} for text in texts]
    model = make_pipeline(DictVectorizer(), RidgeClassifier()).fit(rows, labels)
    assert list(map_batches(model, rows, batch_size=5)) == labels


def test_a_bad_row_of_an_estimator_is_named(data):
    from sklearn.linear_model import LogisticRegression

    x, y = data
    model = LogisticRegression().fit(x, y)
    rows = x.copy()
    rows[17, 1] = np.nan
    got = list(map_batches(model, rows, on_error="return", batch_size=16))
    assert [i for i, one in enumerate(got) if isinstance(one, RowError)] == [17]
    assert "NaN" in str(got[17])


def test_what_has_no_predict_and_is_no_function_is_refused():
    for wrong in (3, "predict", object()):
        with pytest.raises(ConfigurationError, match="a callable"):
            map_batches(wrong, [1])


def test_a_row_of_tensors_in_a_model_of_pydantic():
    class Sample(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
        tokens: torch.Tensor
        weight: float

    rows = [Sample(tokens=torch.arange(i), weight=i) for i in range(1, 6)]
    got = list(
        map_batches(lambda b: b.tokens[0].sum(1) * b.weight, rows, pad={"tokens": 0}, batch_size=2)
    )
    assert [float(one) for one in got] == [sum(range(i)) * i for i in range(1, 6)]
