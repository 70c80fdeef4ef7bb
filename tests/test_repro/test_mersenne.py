"""NumPy's state copied as memory is the state that NumPy itself tells, and the slow way stays right."""

# ruff: noqa: NPY002 - the global generator of NumPy is what is tested
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkit.repro import _mersenne, isolated, rng_state, seed_all


@pytest.fixture(autouse=True)
def _leave_no_trace():
    with isolated():
        yield


DRAWS = {
    "normal": np.random.standard_normal,
    "uniform": np.random.random,
    "bits": lambda: np.random.randint(0, 2**31),
    "many": lambda: np.random.random(700),  # over the end of the 624 words
    "normals": lambda: np.random.standard_normal(5),
    "permutation": lambda: np.random.permutation(9),
}


@given(
    root=st.integers(0, 2**32 - 1),
    before=st.lists(st.sampled_from(sorted(DRAWS)), max_size=6),
    inside=st.lists(st.sampled_from(sorted(DRAWS)), max_size=6),
)
def test_any_draws_before_and_inside(root, before, inside):
    np.random.seed(root)
    for name in before:
        DRAWS[name]()
    state = rng_state()
    with isolated():
        assert rng_state() == state  # to look at it changes nothing
        for name in inside:
            DRAWS[name]()
    assert rng_state() == state


def test_a_kept_gaussian_survives_and_one_of_the_inside_does_not():
    """Putting the bit generator back alone, which is cheap, loses the Gaussian."""
    np.random.seed(3)
    first = np.random.standard_normal()
    expected = np.random.standard_normal()

    np.random.seed(3)
    assert np.random.standard_normal() == first
    np.random.set_bit_generator(np.random.get_bit_generator())  # the naive form
    assert np.random.standard_normal() != expected

    np.random.seed(3)
    np.random.standard_normal()
    with isolated():
        np.random.seed(9)
    assert np.random.standard_normal() == expected
    np.random.seed(3)
    with isolated():
        np.random.standard_normal()  # keeps one
    assert np.random.standard_normal() == first


def test_this_numpy_is_laid_out_as_we_know_it():
    """Where it is not, everything works, several times as slowly; then look at `_mersenne` again."""
    generator = np.random.get_bit_generator()
    state = _mersenne.copied(np.random, generator)
    if state is None:  # a Gaussian was kept
        np.random.standard_normal()
        state = _mersenne.copied(np.random, generator)
    assert state is not None
    assert np.array_equal(
        np.frombuffer(state[:-4], dtype=np.uint32),
        np.random.get_state(legacy=False)["state"]["key"],
    )


def test_another_layout_is_seeded_alike(monkeypatch):
    np.random.standard_normal()
    seed_all(11)
    state, drawn = rng_state(), np.random.standard_normal(3).tolist()
    with monkeypatch.context() as patch:
        patch.setattr(_mersenne, "_memory", [None])
        np.random.standard_normal()
        seed_all(11)
        assert rng_state() == state
        assert np.random.standard_normal(3).tolist() == drawn


def test_another_layout_is_asked_for_its_state(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(_mersenne, "_memory", [None])
        for odd in (False, True):
            np.random.seed(5)
            if odd:
                np.random.standard_normal()
            state = rng_state()
            with isolated(7):
                np.random.standard_normal()
            assert rng_state() == state
