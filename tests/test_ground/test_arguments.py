"""Arguments are checked early: a bool is no number, NaN is nothing, and the error names the place."""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkit._arguments import fraction, number, one_of, seconds, whole
from mlkit.errors import ConfigurationError

NO_NUMBERS = [
    True,
    False,
    None,
    "3",
    b"3",
    math.nan,
    [3],
    3j,
    Decimal(3),
    np.bool_(True),
    np.float32("nan"),
]


@given(st.integers(-5, 5), st.integers(-5, 5), st.integers(-5, 5))
def test_a_whole_number_is_one_in_its_range(value: int, low: int, high: int) -> None:
    if low <= value <= high:
        assert whole("f(n)", value, low=low, high=high) == value
        assert type(whole("f(n)", np.int8(value), low=low, high=high)) is int
    else:
        with pytest.raises(ConfigurationError, match=r"f\(n\)"):
            whole("f(n)", value, low=low, high=high)


@pytest.mark.parametrize("value", [*NO_NUMBERS, 3.0, np.float64(3)], ids=repr)
def test_what_is_no_whole_number(value: object) -> None:
    with pytest.raises(ConfigurationError, match="whole number"):
        whole("f(n)", value)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
@pytest.mark.parametrize("check", [seconds, fraction])
def test_what_is_no_real_number(check, value: object) -> None:
    with pytest.raises(ConfigurationError):
        check("f(x)", value)


@given(st.floats(allow_nan=False) | st.integers())
def test_seconds_are_finite_and_not_negative(value: float) -> None:
    if 0 <= value < math.inf and value < 1e308:
        assert seconds("f(s)", value, zero=True) == float(value)
    elif not 0 <= value < math.inf:
        with pytest.raises(ConfigurationError, match="finite number of seconds >= 0"):
            seconds("f(s)", value, zero=True)


def test_zero_and_infinity_are_allowed_where_they_mean_something() -> None:
    assert seconds("f(s)", math.inf, endless=True) == math.inf
    with pytest.raises(ConfigurationError, match="> 0"):
        seconds("f(s)", 0)
    assert fraction("f(p)", 0, zero=True) == 0
    with pytest.raises(ConfigurationError, match=r"\(0, 1\]"):
        fraction("f(p)", 0)
    assert seconds("f(s)", np.float32(0.5)) == 0.5
    with pytest.raises(ConfigurationError):
        number("f(x)", 10**400, "a number")  # too large for a float


def test_a_misspelt_word_says_which_was_meant() -> None:
    assert one_of("f(mode=...)", "skip", ("raise", "skip")) == "skip"
    with pytest.raises(ConfigurationError, match="did you mean 'skip'"):
        one_of("f(mode=...)", "skp", ("raise", "skip"))
    with pytest.raises(ConfigurationError, match="'raise' or 'skip'"):
        one_of("f(mode=...)", None, ("raise", "skip"))
