"""Hypothesis strategies for the values that mlkit takes; needs the extra `testing`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlkit._arguments import whole
from mlkit._optional import require

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = ["digestible", "json_values", "names"]


def names(*, max_size: int = 20) -> SearchStrategy[str]:
    """Return names as people give them to models, flags, runs and streams.

    Args:
        max_size: The longest name, at least 1.
    """
    longest = whole("names(max_size=...)", max_size, low=1)
    st = _strategies()
    result: SearchStrategy[str] = st.from_regex(
        r"[a-z][a-z0-9]{0,3}([-_./][a-z0-9]+){0,3}", fullmatch=True
    ).filter(lambda name: len(name) <= longest)
    return result


def json_values(*, max_leaves: int = 20) -> SearchStrategy[Any]:
    """Return values that JSON can say exactly: no NaN, no infinities, text keys.

    Args:
        max_leaves: Roughly how many leaves the largest value has.
    """
    st = _strategies()
    leaves = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=20)
    )
    result: SearchStrategy[Any] = st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5)
        ),
        max_leaves=max_leaves,
    )
    return result


def digestible(*, max_leaves: int = 20) -> SearchStrategy[Any]:
    """Return values of every kind that has a digest, nested.

    Args:
        max_leaves: Roughly how many leaves the largest value has.
    """
    st = _strategies()
    leaves = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.complex_numbers()
        | st.text(max_size=20)
        | st.binary(max_size=20)
        | st.datetimes()
        | st.datetimes(timezones=st.just(_utc()))
        | st.dates()
        | st.times()
        | st.timedeltas()
        | st.decimals(allow_nan=False)
        | st.fractions()
        | st.uuids()
    )
    keys = st.text(max_size=10) | st.integers() | st.binary(max_size=5)
    result: SearchStrategy[Any] = st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=5)
            | st.lists(inner, max_size=5).map(tuple)
            | st.dictionaries(keys, inner, max_size=5)
            | st.frozensets(st.text(max_size=5) | st.integers(), max_size=5)
        ),
        max_leaves=max_leaves,
    )
    return result


def _utc() -> Any:
    from datetime import UTC

    return UTC


def _strategies() -> Any:
    return require("hypothesis.strategies", extra="testing", feature="mlkit.testing.strategies")
