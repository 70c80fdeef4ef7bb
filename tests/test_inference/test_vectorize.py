"""Functions of one row, lifted to batches."""

import dataclasses
import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlkit.errors import ConfigurationError, RowError
from mlkit.inference import Batcher, map_batches, vectorize

torch.set_num_threads(1)


def polynomial(row):
    return {"y": (row["x"] ** 2).sum() - row["b"], "pair": (row["x"].flip(0), row["b"] > 0)}


def branch(row):
    return row["x"] * 2 if row["b"] > 0 else row["x"] - 1


def number(row):
    return float(row["b"])


def in_place(row):
    total = torch.zeros(())
    total += row["x"].sum()
    return total


def rows(n, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [
        {"x": torch.randn(3, generator=draw), "b": torch.randn((), generator=draw)}
        for _ in range(n)
    ]


def plain(result):
    """Return *result* with tensors as nested lists."""
    if isinstance(result, dict):
        return {key: plain(value) for key, value in result.items()}
    if isinstance(result, tuple):
        return tuple(map(plain, result))
    return result.tolist() if isinstance(result, torch.Tensor) else result


@given(
    st.sampled_from([(polynomial, "vmap"), (branch, "loop"), (number, "loop"), (in_place, "loop")]),
    st.integers(1, 20),
    st.integers(1, 8),
)
def test_it_equals_the_function_row_by_row(case, n, batch_size):
    fn, how = case
    lifted = vectorize(fn)
    data = rows(n)
    got = list(map_batches(lifted, data, batch_size=batch_size))
    assert len(got) == n
    for result, row in zip(got, data, strict=True):
        torch.testing.assert_close(result, fn(row))
    assert lifted.how == how
    assert lifted.why


def test_vmap_calls_the_function_once_per_batch_a_loop_once_per_row():
    calls = []

    def fn(row):
        calls.append(row["x"].shape)
        return row["x"].sum()

    list(map_batches(vectorize(fn), rows(64), batch_size=16))
    assert len(calls) == 4 + 4  # four batches, and four rows of the first one alone
    calls.clear()
    list(map_batches(vectorize(lambda row: float(fn(row))), rows(64), batch_size=16))
    assert len(calls) <= 64 + 1


def test_a_function_that_vmap_would_get_wrong_loops():
    def order(row):  # under vmap it sees one row only, and so counts once
        order.n += 1
        return row["b"] * 0 + order.n

    order.n = 0
    lifted = vectorize(order)
    got = [float(one) for one in map_batches(lifted, rows(6), batch_size=6)]
    assert lifted.how == "loop"
    assert "row 0 another value" in lifted.why
    assert len(set(got)) == 6


@pytest.mark.parametrize("branches", [False, True])
def test_a_function_that_writes_over_its_row_gets_each_row_once(branches):
    def fn(row):
        row["b"].add_(1)
        return row["b"] * 2 if not branches or row["b"].sum() > 5 else -row["b"]

    data = [{"b": torch.tensor([float(n), 1.0])} for n in range(7)]
    truth = [fn({"b": row["b"].clone()}) for row in data]
    for size in (1, 3, 7):
        lifted = vectorize(fn)
        got = list(map_batches(lifted, data, batch_size=size))
        assert all(map(torch.equal, got, truth))
        assert lifted.how == ("loop" if branches else "vmap")


def test_a_random_function_loops():
    lifted = vectorize(lambda row: row["b"] + torch.rand(()))
    list(map_batches(lifted, rows(3)))
    assert lifted.how == "loop"
    assert "vmap cannot run it" in lifted.why


@dataclasses.dataclass
class Sample:
    x: object


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([np.ones(2)] * 3, "no tensors"),
        ([1.0, 2.0], "no tensors"),
        (["a", "b"], "no tensors"),
        ([{"x": torch.ones(2), "id": "a"}] * 2, r"other leaves than tensors \(str\)"),
        ([[torch.ones(2), torch.ones(1)]] * 2, "lists or dataclasses"),
        ([Sample(torch.ones(2))] * 2, "lists or dataclasses"),
    ],
)
def test_what_vmap_does_not_take_loops_and_says_why(data, words):
    seen = []
    lifted = vectorize(lambda row: seen.append(row) or len(seen))
    assert list(map_batches(lifted, data)) == list(range(1, len(data) + 1))
    assert all(type(one) is type(data[0]) or isinstance(one, float) for one in seen)
    assert lifted.how == "loop"
    assert re.search(words, lifted.why)


def test_padded_rows_have_their_own_length_again():
    lifted = vectorize(lambda row: row.mean())
    data = [torch.ones(3), torch.full((1,), 4.0)]
    assert [float(one) for one in map_batches(lifted, data, pad=9.0)] == [1.0, 4.0]
    assert "padded" in lifted.why


def test_a_module_runs_in_inference_mode_and_in_evaluation_mode_only():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU())
    with pytest.raises(ConfigurationError, match=r"model\.eval\(\)"):
        map_batches(vectorize(net), [])
    layer = torch.nn.Linear(3, 2).eval()
    lifted = vectorize(layer)
    data = [np.ones(3, "f4"), np.zeros(3, "f4")]
    got = list(map_batches(lifted, data))
    assert lifted.how == "vmap"
    assert type(got[0]) is np.ndarray
    assert np.allclose(got[0], layer(torch.ones(3)).detach())


@pytest.mark.parametrize("how", ["vmap", "loop"])
def test_a_bad_row_fails_alone(how):
    def fn(row):
        if row["x"].shape == (1,) or (how == "loop" and float(row["b"]) > 100):
            raise ValueError("bad")
        return row["x"].sum()

    data = rows(8)
    data[5]["b" if how == "loop" else "x"] = torch.tensor(1e6) if how == "loop" else torch.ones(1)
    lifted = vectorize(fn)
    got = list(map_batches(lifted, data, batch_size=4, on_error="return"))
    assert [i for i, one in enumerate(got) if isinstance(one, RowError)] == [5]
    assert lifted.how == how


def test_what_vmap_cannot_do_later_is_done_row_by_row():
    def fn(row):
        return row["x"].sum() if row["x"].shape == (3,) else row["x"].sum() * (row["b"] > 0).item()

    lifted = vectorize(fn)
    first, later = rows(4), [{"x": torch.ones(2), "b": torch.tensor(1.0)}] * 2
    assert torch.is_tensor(lifted({key: torch.stack([r[key] for r in first]) for key in first[0]}))
    assert lifted.how == "vmap"
    got = lifted({key: torch.stack([r[key] for r in later]) for key in later[0]})
    assert [float(one) for one in got] == [2.0, 2.0]


def test_online_too_and_across_processes():
    lifted = pickle.loads(pickle.dumps(vectorize(polynomial)))
    with Batcher(lifted, max_batch_size=4) as batcher:
        (row,) = rows(1)
        torch.testing.assert_close(batcher.call(row), polynomial(row))
    assert lifted.how == "vmap"
    assert repr(lifted) == "<vectorize(polynomial): vmap>"
    assert pickle.loads(pickle.dumps(lifted)).how == "vmap"


def test_what_is_no_function_of_a_row_is_refused():
    async def fn(row):
        return row

    for wrong in (3, None, fn, vectorize(polynomial)):
        with pytest.raises(ConfigurationError, match="vectorize"):
            vectorize(wrong)
