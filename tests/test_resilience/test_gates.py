"""Gates against NumPy, and their algebra."""

from __future__ import annotations

import math
import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlkit.errors import ConfigurationError
from mlkit.resilience import Gate, confidence, constant, fallback, finite, in_range, tier

torch.set_num_threads(1)
matrices = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 6), st.integers(1, 4)),
    elements=st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0, -1.0, math.nan, math.inf]),
)
probabilities = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 6), st.integers(1, 4)),
    elements=st.sampled_from(
        [0.0, 0.2, 0.5, 0.9, 1.0, -1e-4, 1.0004, math.nan, math.inf, -math.inf]
    ),
)


def algebra(*leaves):
    return st.recursive(
        st.sampled_from(leaves),
        lambda inner: st.one_of(
            st.tuples(inner, inner).map(lambda pair: pair[0] & pair[1]),
            st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1]),
            inner.map(lambda gate: ~gate),
        ),
        max_leaves=4,
    )


plain = (finite, in_range(0, 1), in_range(-math.inf, 0.5))


def judged(n_gates):
    """Gates, and a matrix that each of them can judge."""
    return st.one_of(
        st.tuples(*[algebra(*plain)] * n_gates, matrices),
        st.tuples(*[algebra(confidence(0.6), *plain)] * n_gates, probabilities),
    )


@given(matrices)
def test_masks_say_what_numpy_says(x):
    n = len(x)
    assert (finite.mask(x, n) == np.isfinite(x).all(1)).all()
    with np.errstate(invalid="ignore"):
        assert (in_range(0, 1).mask(x, n) == ((x >= 0) & (x <= 1)).all(1)).all()


@given(probabilities)
def test_confidence_is_the_largest_of_a_row_of_numbers(x):
    expected = np.isfinite(x).all(1) & (x.max(1) >= 0.6)
    assert (confidence(0.6).mask(x, len(x)) == expected).all()


@given(judged(1))
def test_a_row_is_judged_alone_and_alike_in_every_container(gate_and_x):
    gate, x = gate_and_x
    mask = gate.mask(x, len(x))
    assert mask.dtype == bool
    assert (mask == gate.mask(torch.from_numpy(x), len(x))).all()
    assert (mask == gate.mask(x.tolist(), len(x))).all()
    assert mask.tolist() == [gate(row) for row in x]


@given(judged(2))
def test_the_laws_of_and_or_not(gates_and_x):
    a, b, x = gates_and_x
    n = len(x)
    assert ((a & b).mask(x, n) == (~(~a | ~b)).mask(x, n)).all()
    assert ((a | b).mask(x, n) == (b | a).mask(x, n)).all()
    assert ((~~a).mask(x, n) == a.mask(x, n)).all()
    assert not ((~a)(x) and a(x))
    assert not ((a & ~a).mask(x, n)).any()


@given(judged(1))
def test_gates_pickle(gate_and_x):
    gate, x = gate_and_x
    copy = pickle.loads(pickle.dumps(gate))
    assert repr(copy) == repr(gate)
    assert (copy.mask(x, len(x)) == gate.mask(x, len(x))).all()


def test_the_whole_passes_if_every_row_does():
    x = np.array([[0.7, 0.3], [0.2, 0.8]])
    assert (finite & confidence(0.6))(x)
    x[1] = np.nan
    assert not finite(x)
    assert not confidence(0.6)(x)


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        (1.0, True),
        (math.nan, False),
        (3, True),
        (None, False),
        (1j * math.inf, False),
        ([1.0, [2.0, math.inf]], False),
        ({"a": 1.0, "b": (2.0,)}, True),
        ({"a": math.nan}, False),
        ([], True),
        (np.float32("nan"), False),
        (torch.tensor(1.0), True),
    ],
)
def test_finite_looks_everywhere(answer, passes):
    assert finite(answer) is passes


@pytest.mark.parametrize(
    "answer",
    [
        "nan",
        "any text",
        b"1.0",
        ("label", 0.3),
        {"label": "cat", "score": 0.3},
        [["nan"]],
        np.array(["nan", "1.0"]),
        np.array([1.0, "a"], dtype=object),
        np.str_("text"),
    ],
)
def test_finite_refuses_what_is_no_number(answer):
    with pytest.raises(ConfigurationError, match=r"finite\(answer\): expected numbers, ") as info:
        finite(answer)
    assert "cat" not in str(info.value)
    assert re.search(r"got (<class '(str|bytes)'>|dtype\(.*\)); to judge a part", str(info.value))


@pytest.mark.parametrize(
    "answer",
    [
        [[3.0, -1.0]],
        [[0.9, 0.1], [-3.0, 1.0]],
        np.array([[3, 0]]),
        torch.tensor([[3.0, -1.0]], dtype=torch.float16),
        torch.tensor(3),
        np.float32(3.0),
        3.0,
        [[math.nan, 3.0]],
        [[-math.inf, 3.0]],
    ],
)
def test_logits_are_no_confidence(answer):
    with pytest.raises(
        ConfigurationError, match=r"in \[0, 1\], got -?3(\.0)?; apply softmax first"
    ):
        confidence(0.6)(answer)


def test_logits_stop_a_fallback_instead_of_going_down_its_tiers():
    logits = np.array([[3.0, -1.0], [0.1, 0.2]])
    score = fallback(
        tier(lambda _: logits, accept=finite & confidence(0.6), name="big"),
        constant(np.array([0.5, 0.5])),
        per_row=True,
    )
    with pytest.raises(ConfigurationError, match="softmax"):
        score(np.zeros((2, 3)))


@pytest.mark.parametrize("gate", [confidence(0.5), in_range(0, 1)], ids=repr)
def test_text_is_not_read_as_numbers(gate):
    for answer in ("0.7", ["0.7", "0.3"], np.array(["0.7"]), [0.7, "nan"]):
        with pytest.raises(ConfigurationError, match="expected numbers"):
            gate(answer)
    assert not gate([0.7, None])


def test_rounding_beyond_one_is_no_mistake():
    half = torch.tensor([[5.0, 0.0, 0.1]]).softmax(-1).half()
    assert confidence(0.6)(half)
    assert confidence(0.6)([1.0005, -0.0005])


def test_what_is_masked_is_missing():
    scores = np.ma.array([0.5, 0.7, 0.2], mask=[False, True, False])
    assert finite.mask(scores, 3).tolist() == [True, False, True]
    assert in_range(0.4, 1.0).mask(scores, 3).tolist() == [True, False, False]
    assert (~in_range(0.4, 1.0)).mask(scores, 3).tolist() == [False, False, True]
    assert not finite(scores)
    assert finite(scores.filled(0.0))


def test_empty_batches_pass():
    for gate in (finite, confidence(0.5), in_range(0, 1), finite & ~confidence(0.5)):
        assert gate.mask(np.zeros((0, 3)), 0).shape == (0,)


def test_repr_is_how_it_is_written():
    a, b, c = finite, confidence(0.6), in_range(0, 1)
    assert repr((a | b) & ~c) == "(finite | confidence(0.6)) & ~in_range(0, 1)"
    assert repr(~(a & b) | c) == "~(finite & confidence(0.6)) | in_range(0, 1)"


def test_a_callable_is_a_gate_and_one_bool_decides_about_all_rows():
    switch = {"on": True}
    gate = finite & (lambda _: switch["on"])
    assert gate.mask(np.array([1.0, math.nan]), 2).tolist() == [True, False]
    switch["on"] = False
    assert gate.mask(np.array([1.0, math.nan]), 2).tolist() == [False, False]
    assert not gate(1.0)


def test_cheap_gates_come_first():
    asked = []
    gate = Gate(lambda _: False) & (lambda y: asked.append(y) or True)
    assert not gate(1)
    assert asked == []


def test_wrong_use_is_named():
    for make in (
        lambda: confidence(0),
        lambda: confidence(60),
        lambda: confidence(math.nan),
        lambda: in_range(1, 0),
        lambda: in_range(math.nan, 1),
        lambda: in_range("0", 1),
        lambda: Gate(3),
        lambda: finite & 3,
        lambda: finite(object()),
        lambda: in_range(0, 1)("text"),
        lambda: Gate(lambda _: "yes")(1),
        lambda: Gate(lambda _: 1)(1),
        lambda: Gate(lambda _: [True])(1) and Gate(lambda _: [True]).mask(1, 2),
        lambda: confidence(0.5).mask(np.zeros(3), 3),
    ):
        with pytest.raises(ConfigurationError):
            make()


def test_words_that_would_drop_a_gate_are_refused():
    for wrong in (
        lambda: finite and confidence(0.6),
        lambda: finite or confidence(0.6),
        lambda: not finite,
    ):
        with pytest.raises(ConfigurationError, match=r"bool\(finite\).*compose gates by & \| ~"):
            wrong()
