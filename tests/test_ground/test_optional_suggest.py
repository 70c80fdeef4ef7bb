"""A missing package names its install line, and a misspelt name the right one."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from hashlib import blake2b
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkit._optional import installed, require
from mlkit._suggest import clip, closest, did_you_mean, listing
from mlkit.errors import MissingDependencyError


def test_a_missing_package_names_feature_and_install_line() -> None:
    with pytest.raises(MissingDependencyError) as caught:
        require("no_such_package.sub", extra="mlflow", feature="MlflowSink")
    assert "MlflowSink needs 'no_such_package.sub'" in str(caught.value)
    assert "pip install 'mlkit-blocks[mlflow]'" in str(caught.value)
    assert caught.value.name == "no_such_package"
    assert isinstance(caught.value, ImportError)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import absent_dependency_of_it", ModuleNotFoundError),
        ("raise ImportError('ABI')", ImportError),
    ],
)
def test_a_broken_package_raises_its_own_error(
    tmp_path: Path, monkeypatch, source: str, error: type
) -> None:
    (tmp_path / "broken_package_xyz.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(error) as caught:
        require("broken_package_xyz", extra="mlflow", feature="MlflowSink")
    assert not isinstance(caught.value, MissingDependencyError)


def test_an_installed_package_comes_back() -> None:
    import json

    assert require("json", extra="torch", feature="anything") is json


def test_whether_something_is_installed_is_known_without_importing_it() -> None:
    assert installed("json")
    assert not installed("no_such_package")
    assert installed("antigravity")
    assert "antigravity" not in sys.modules


@given(st.text(min_size=1, max_size=30), st.lists(st.text(max_size=30)))
def test_suggestions_are_known_names(name: str, names: list[str]) -> None:
    assert set(closest(name, names)) <= set(names)
    assert name not in names or closest(name, [name]) == [name]


def test_case_and_dashes_do_not_matter() -> None:
    assert closest("RESNET_18", ["vit", "resnet-18"]) == ["resnet-18"]
    assert did_you_mean("resnt18", ["resnet18"]) == "; did you mean 'resnet18'?"
    assert did_you_mean("zzz", ["resnet18"]) == ""


@given(st.text(), st.integers(5, 200))
def test_clipped_text_fits_and_short_text_is_whole(text: str, limit: int) -> None:
    clipped = clip(text, limit)
    assert len(clipped) <= limit
    assert len(text) > limit or clipped == text


def test_a_listing_stays_short() -> None:
    assert listing([]) == "(none)"
    assert listing(["b", "a"]) == "a, b"
    assert listing(f"n{i:04}" for i in range(1_000)).endswith("and 992 more")


@given(st.integers(0, 9_999), st.sampled_from("abcxyz"), st.booleans())
def test_a_slip_in_one_of_very_many_names_is_found(
    number: int, slip: str, at_the_end: bool
) -> None:
    names = [f"resnet-{n:04}-imagenet" for n in range(10_000)]
    meant = names[number]
    typed = meant + slip if at_the_end else slip + meant
    assert meant in closest(typed, names)


def test_strategies_without_hypothesis_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlkit.testing import strategies

    monkeypatch.setitem(sys.modules, "hypothesis", None)
    monkeypatch.delitem(sys.modules, "hypothesis.strategies", raising=False)
    with pytest.raises(MissingDependencyError, match=r"mlkit-blocks\[testing\]"):
        strategies.names()


def folded(name: str) -> str:
    return name.lower().replace("_", "-")


@given(
    st.text("abcB-_1\n", max_size=9),
    st.lists(st.text("abcB-_1\n", max_size=9), max_size=80),
    st.integers(1, 5),
)
def test_what_is_suggested_is_exactly_what_difflib_suggests(
    name: str, names: list[str], limit: int
) -> None:
    first = {folded(one): one for one in reversed(names)}
    expected = get_close_matches(folded(name), list(first), n=limit, cutoff=0.6)
    assert closest(name, names, limit=limit) == [first[one] for one in expected]


@given(st.integers(0, 9_999), st.text("resnt18-_x", max_size=12))
def test_it_is_also_among_many_names_that_are_alike(number: int, other: str) -> None:
    names = [f"resnet{n}-a{n % 7}" for n in range(0, 9_999, 23)]
    for name in (f"resnet{number}_a3", other):
        assert closest(name, names) == get_close_matches(folded(name), names)


@given(st.integers(0, 9_999), st.integers(0, 15), st.sampled_from(["", "0", "ab"]))
@settings(max_examples=10)
def test_a_slip_is_found_where_all_names_have_the_same_letters(
    number: int, place: int, slip: str
) -> None:
    names = [blake2b(b"%d" % n, digest_size=8).hexdigest() for n in range(10_000)]
    meant = names[number]
    typed = meant[:place] + slip + meant[place + 1 :]
    assert closest(typed, names)[0] == meant


def test_long_texts_are_judged_as_difflib_judges_them() -> None:
    names = ["ab" * 150, "ba" * 150, "a" * 250, "x" * 300]
    assert closest("ab" * 149, names) == get_close_matches("ab" * 149, names)
