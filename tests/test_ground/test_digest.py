"""One encoding, one hash: equal values have equal digests, whoever computes them, wherever."""

from __future__ import annotations

import datetime as dt
import enum
import json
import os
import pickle
import subprocess
import sys
from collections import OrderedDict, UserDict
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlkit._digest import canonical, digest, digest_bytes, digest_file, is_digest, short
from mlkit.errors import DigestError
from mlkit.testing.strategies import digestible, json_values


class Level(enum.IntEnum):
    LOW = 1


class Tier(enum.StrEnum):
    BIG = "big"


class Color(enum.Enum):
    RED = "r"


@dataclass
class Point:
    x: int
    y: list[int]


# Frozen: a digest that was written down years ago must still be found.
VECTORS = [
    (None, b"null"),
    (True, b"true"),
    (1, b"1"),
    (-(2**63), b"-9223372036854775808"),
    (2**63, b'{"!int":"0x8000000000000000"}'),
    (1.0, b'{"!float":"0x1.0000000000000p+0"}'),
    (-0.0, b'{"!float":"-0x0.0p+0"}'),
    (float("nan"), b'{"!float":"nan"}'),
    (float("-inf"), b'{"!float":"-inf"}'),
    (1j, b'{"!complex":[{"!float":"0x0.0p+0"},{"!float":"0x1.0000000000000p+0"}]}'),
    ("é\ud800\x00", b'"\\u00e9\\ud800\\u0000"'),
    (b"ab", b'{"!bytes":"YWI="}'),
    ([1, (2,)], b"[1,[2]]"),
    ({"b": 1, "a": []}, b'{"a":[],"b":1}'),
    ({"!float": "nan"}, b'{"!map":[["!float","nan"]]}'),
    ({2: "b", "a": 1}, b'{"!map":[["a",1],[2,"b"]]}'),
    ({3, 1}, b'{"!set":[1,3]}'),
    (dt.datetime(2026, 1, 2, tzinfo=dt.UTC), b'{"!datetime":"2026-01-02T00:00:00+00:00"}'),
    (dt.datetime(2026, 1, 2), b'{"!datetime":"2026-01-02T00:00:00"}'),
    (dt.date(2026, 1, 2), b'{"!date":"2026-01-02"}'),
    (dt.time(3, 4), b'{"!time":"03:04:00"}'),
    (dt.timedelta(hours=-1), b'{"!timedelta":[-1,82800,0]}'),
    (Decimal("1.50"), b'{"!decimal":"15e-1"}'),
    (Fraction(2, 4), b'{"!fraction":[1,2]}'),
    (UUID(int=1), b'{"!uuid":"00000000-0000-0000-0000-000000000001"}'),
    (PurePosixPath("a/b"), b'{"!path":"a/b"}'),
    (Level.LOW, b"1"),
    (Tier.BIG, b'"big"'),
    (Color.RED, b'{"!enum":["Color","RED"]}'),
    (Point(1, [2]), b'{"!dataclass":["Point",{"x":1,"y":[2]}]}'),
    (np.float32(0.5), b'{"!float":"0x1.0000000000000p-1"}'),
    (np.int8(3), b"3"),
    (np.bool_(True), b"true"),
    (np.str_("a"), b'"a"'),
    (
        np.array([[1, 2]], dtype="<i2"),
        b'{"!array":["<i2",[1,2],"sha256:'
        b'7b11c1133330cd161071bf23a0c9b6ce5320a8f3a0f83620035a72be46df4104"]}',
    ),
    (np.array(["a", "bb"]), b'{"!array":["U",[2],["a","bb"]]}'),
]


@pytest.mark.parametrize(("value", "text"), VECTORS, ids=range(len(VECTORS)))
def test_encoding_is_frozen(value: object, text: bytes) -> None:
    assert canonical(value) == text


@given(digestible())
def test_encoding_is_ascii_json_that_is_its_own_digest(value: object) -> None:
    text = canonical(value)
    assert text.isascii()
    json.loads(text)
    assert digest(value) == digest_bytes(text)
    assert is_digest(digest(value))


@given(json_values())
def test_what_goes_through_json_keeps_its_digest(value: object) -> None:
    assert digest(json.loads(json.dumps(value))) == digest(value)


@given(digestible())
def test_what_goes_through_pickle_keeps_its_digest(value: object) -> None:
    assert digest(pickle.loads(pickle.dumps(value))) == digest(value)


@given(
    st.dictionaries(st.text() | st.integers() | st.binary(), json_values(max_leaves=3)),
    st.randoms(),
)
def test_order_of_a_mapping_does_not_matter(value: dict, random) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert (
        digest(dict(items))
        == digest(value)
        == digest(OrderedDict(items))
        == digest(UserDict(items))
    )


@given(st.lists(st.tuples(json_values(max_leaves=4), json_values(max_leaves=4)), max_size=20))
def test_different_values_have_different_digests(pairs: list) -> None:
    for left, right in pairs:
        same = json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)
        assert (digest(left) == digest(right)) == same


def test_types_that_python_calls_equal_are_kept_apart() -> None:
    assert (
        len(
            {
                digest(value)
                for value in (1, 1.0, True, "1", b"1", 1j * -1j, [1], {1}, 0.0, -0.0, 0, False)
            }
        )
        == 12
    )


@given(hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, min_side=0, max_side=4)))
def test_layout_of_an_array_does_not_matter(array: np.ndarray) -> None:
    swapped = array.astype(array.dtype.newbyteorder(">"))
    assert digest(np.array(array, order="F")) == digest(array)
    assert digest(np.repeat(array[..., None], 2, axis=-1)[..., 0]) == digest(array)
    assert digest(swapped) == digest(array)


@given(hnp.arrays(hnp.integer_dtypes() | hnp.floating_dtypes(), 3))
def test_shape_and_dtype_of_an_array_matter(array: np.ndarray) -> None:
    assert digest(array.reshape(3, 1)) != digest(array)
    other = "float32" if array.dtype.str[1:] == "f8" else "float64"
    with np.errstate(all="ignore"):
        assert digest(array.astype(other)) != digest(array)


@given(st.floats(width=32), st.integers(-(2**31), 2**31 - 1))
def test_numpy_scalars_are_the_number_they_equal(real: float, whole: int) -> None:
    assert digest(np.float32(real)) == digest(np.float64(real)) == digest(real)
    assert digest(np.int32(whole)) == digest(np.int64(whole)) == digest(whole)


def test_every_nan_is_one() -> None:
    odd = np.array([0x7FF8000000000001, 0xFFF8000000000000], dtype="u8").view("f8")
    assert digest(float("nan")) == digest(-float("nan")) == digest(odd[0]) == digest(odd[1])
    assert digest(odd) == digest(np.full(2, np.nan))


@given(st.datetimes(), st.integers(-14, 14))
def test_an_instant_is_one_in_every_zone(naive: dt.datetime, hours: int) -> None:
    if not dt.datetime.min + dt.timedelta(days=2) < naive < dt.datetime.max - dt.timedelta(days=2):
        return
    utc = naive.replace(tzinfo=dt.UTC)
    assert digest(utc) == digest(utc.astimezone(dt.timezone(dt.timedelta(hours=hours))))
    assert digest(utc) != digest(naive)


@given(st.decimals(allow_nan=False, allow_infinity=False), st.integers(0, 5))
def test_trailing_zeros_of_a_decimal_do_not_matter(value: Decimal, zeros: int) -> None:
    sign, digits, exponent = value.as_tuple()
    assert digest(Decimal((sign, digits + (0,) * zeros, exponent - zeros))) == digest(value)


def test_the_same_in_another_process_with_another_hash_seed(tmp_path: Path) -> None:
    value = {
        "names": {"a", "b", "c", "d", "e"},
        2: [1.5, None],
        "array": np.arange(3.0),
        "nested": {"z": 1, "y": 2},
    }
    (tmp_path / "value.pickle").write_bytes(pickle.dumps(value))
    code = (
        "import pickle, sys; from mlkit._digest import digest;"
        "print(digest(pickle.loads(open(sys.argv[1], 'rb').read())))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "value.pickle")],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("0", "1", "4242")
    }
    assert seen == {digest(value)}


def _holding_itself() -> list:
    value: list = [1]
    value += [value, value]
    return value


@dataclass
class Unfinished:
    loss: float = field(init=False)


def _deep(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        ({"a": [1, object()]}, "$[a][1]", "builtins.object"),
        ([{"p": Point(1, [print])}], "$[0][p].y[0]", "builtin_function"),
        (_holding_itself(), "$[1]", "holds itself"),
        (_deep(500), "$", "nested"),
        (np.array([object()]), "$", "dtype object"),
        (np.longdouble(1), "$", "dtype"),
        (np.ma.masked_array([1.0], [True]), "$", "masked"),
        ({"type": int}, "$[type]", "builtins.type"),
        (range(3), "$", "range"),
        ([Unfinished()], "$[0]", "'loss' has no value"),
    ],
)
def test_what_has_no_encoding_says_where_it_is(value: object, path: str, reason: str) -> None:
    with pytest.raises(DigestError, match=reason) as caught:
        digest(value)
    assert caught.value.path.startswith(path)
    assert isinstance(caught.value, TypeError)
    assert len(str(caught.value)) <= 600


def test_a_value_shared_twice_does_not_hold_itself() -> None:
    shared = [1]
    assert digest([shared, shared]) == digest([[1], [1]])


@given(st.binary(max_size=3_000_000))
def test_a_file_has_the_digest_of_its_bytes(data: bytes) -> None:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"mlkit-digest-{os.getpid()}"
    path.write_bytes(data)
    try:
        assert digest_file(path) == digest_bytes(data)
    finally:
        path.unlink()


def test_digests_are_recognised() -> None:
    whole = digest(1)
    assert is_digest(whole)
    assert short(whole) == whole[7:19]
    for wrong in ("", "sha256:", whole[:-1], whole.upper(), whole[7:], whole + "0"):
        assert not is_digest(wrong)
