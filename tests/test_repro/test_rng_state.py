"""The state of the generators as a value: exact, comparable, kept without pickle, refused when it does not fit."""

# ruff: noqa: NPY002 - the global generator of NumPy is what is tested
from __future__ import annotations

import io
import json
import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkit.errors import ConfigurationError, RngStateError
from mlkit.repro import RngState, isolated, rng_state, seed_all

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _leave_no_trace():
    with isolated():
        yield


def draw():
    return (
        random.gauss(0, 1),
        float(np.random.standard_normal()),
        torch.randn(3).tolist(),
        random.random(),
    )


@given(st.integers(0, 2**32), st.integers(0, 5))
@settings(max_examples=20)
def test_restore_of_the_state_is_the_identity(root, before):
    with isolated(root):
        for _ in range(before):  # an odd number keeps a Gaussian
            draw()
        state = rng_state()
        expected = [draw(), draw()]
        state.restore()
        assert rng_state() == state
        assert [draw(), draw()] == expected


@given(st.integers(0, 2**32), st.booleans())
@settings(max_examples=10)
def test_a_saved_state_is_the_same_state(tmp_path_factory, root, odd):
    path = tmp_path_factory.mktemp("rng") / "state.json"
    with isolated(root):
        if odd:
            draw()
        state = rng_state()
        state.save(path)
        expected = draw()
        loaded = RngState.load(path)
        assert loaded == state
        assert hash(loaded) == hash(state)
        assert loaded.diff(state) == ()
        loaded.restore()
        assert draw() == expected
    assert [entry.name for entry in path.parent.iterdir()] == ["state.json"]


def test_diff_names_the_generators_that_differ():
    seed_all(1)
    state = rng_state()
    random.random()
    assert state.diff(rng_state()) == ("python",)
    torch.rand(1)
    assert state.diff(rng_state()) == ("python", "torch")
    assert state != rng_state()
    assert state.generators == ("numpy", "python", "torch")
    with pytest.raises(ConfigurationError, match="diff"):
        state.diff(3)


def test_it_travels_in_a_checkpoint_that_runs_no_code():
    state = rng_state()
    buffer = io.BytesIO()
    torch.save({"rng": state.to_dict()}, buffer)
    buffer.seek(0)
    assert RngState.from_dict(torch.load(buffer, weights_only=True)["rng"]) == state
    assert pickle.loads(pickle.dumps(state)) == state


@pytest.mark.parametrize("name", ["state.pt", "state.pth"])
def test_a_file_in_torchs_format_is_read_without_running_code(tmp_path, name):
    draw()
    state = rng_state()
    state.save(tmp_path / name)
    expected = draw()
    assert RngState.from_dict(torch.load(tmp_path / name, weights_only=True)) == state
    RngState.load(tmp_path / name).restore()
    assert draw() == expected
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_damaged_file_in_torchs_format_is_refused(tmp_path):
    path = tmp_path / "state.pt"
    rng_state().save(path)
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[:-200], b"{}", b"x" * 5000, pickle.dumps({"a": 1})):
        path.write_bytes(content)
        with pytest.raises(RngStateError, match=r"state\.pt"):
            RngState.load(path)
    torch.save({"rng": print}, path)  # would have to be imported
    with pytest.raises(RngStateError, match=r"state\.pt"):
        RngState.load(path)
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(RngStateError, match="expected a state of schema"):
        RngState.load(path)


def test_the_usual_way_to_keep_numpys_state_is_refused_by_a_safe_load():
    """NumPy's own tuple, which is what checkpoints hold: a safe load refuses it, and then training goes on from anywhere."""
    buffer = io.BytesIO()
    torch.save({"numpy": np.random.get_state()}, buffer)
    buffer.seek(0)
    with pytest.raises(pickle.UnpicklingError, match=r"weights_only|Weights only"):
        torch.load(buffer, weights_only=True)


def test_a_state_of_other_versions_says_which(tmp_path):
    data = rng_state().to_dict()
    assert data["versions"]["torch"] == torch.__version__
    short = resealed(rng_state(), lambda g: g.update(torch="AAAA")).to_dict()
    older = RngState.from_dict({**short, "versions": {"numpy": np.__version__, "torch": "1.0"}})
    assert older == RngState.from_dict(short)  # who wrote it is not part of the state
    before = rng_state()
    with pytest.raises(RngStateError, match=r"torch 1\.0, where this process has 2\."):
        pickle.loads(pickle.dumps(older)).restore()
    assert rng_state() == before
    for foreign in (3, None, {"torch": 5}):
        assert RngState.from_dict({**data, "versions": foreign}) == rng_state()


def test_data_that_no_state_holds_is_refused():
    data = rng_state().to_dict()
    for foreign in (object(), np.zeros(3), {1: 2}, {"words": {3, 4}}):
        wrong = {**data, "generators": {**data["generators"], "python": foreign}}
        with pytest.raises(RngStateError):
            RngState.from_dict(wrong)


def test_another_bit_generator_of_numpy_is_kept_too(tmp_path):
    with isolated():
        np.random.set_bit_generator(np.random.PCG64(5))
        np.random.standard_normal()
        state = rng_state()
        state.save(tmp_path / "state.json")
        expected = float(np.random.standard_normal()), float(np.random.random())
        np.random.set_bit_generator(np.random.MT19937(1))
        RngState.load(tmp_path / "state.json").restore()
        assert (float(np.random.standard_normal()), float(np.random.random())) == expected


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"schema": "mlkit.rng-state/2"}', '{"schema": "mlkit.rng-state/1"}',
     '{"schema": "mlkit.rng-state/1", "generators": {"python": {}}}', "[" * 100_000],
    ids=range(8),
)  # fmt: skip
def test_a_file_that_is_no_state_is_refused(tmp_path, text):
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(RngStateError, match=r"state\.json"):
        RngState.load(path)


def test_a_changed_file_is_refused(tmp_path):
    path = tmp_path / "state.json"
    rng_state().save(path)
    data = json.loads(path.read_text())
    data["generators"]["numpy"]["state"]["pos"] = 5
    path.write_text(json.dumps(data))
    with pytest.raises(RngStateError, match="changed"):
        RngState.load(path)
    with pytest.raises(FileNotFoundError):
        RngState.load(tmp_path / "none.json")


def resealed(state, change):
    generators = state.to_dict()["generators"]
    change(generators)
    return RngState(generators)


def test_a_state_that_does_not_fit_changes_nothing():
    state = rng_state()
    draw()
    before = rng_state()
    broken = [
        resealed(state, lambda g: g.update(torch="AAAA")),
        resealed(state, lambda g: g["python"].update(words="AAAA")),
        resealed(state, lambda g: g["numpy"].update(bit_generator="NoSuch")),
        resealed(state, lambda g: g["numpy"].update(bit_generator="RandomState")),
        resealed(state, lambda g: g.update({"torch cuda:0": "AAAA"})),
    ]
    for wrong in broken:
        with pytest.raises(RngStateError):
            wrong.restore()
        assert rng_state() == before


def test_a_state_without_a_generator_that_is_here_is_refused_if_strict():
    state = resealed(rng_state(), lambda g: g.pop("torch"))
    random.random()
    with pytest.raises(RngStateError, match="strict=False"):
        state.restore()
    expected = torch.get_rng_state()
    state.restore(strict=False)
    assert state.diff(rng_state()) == ("torch",)
    assert torch.equal(torch.get_rng_state(), expected)
    with pytest.raises(ConfigurationError, match="strict"):
        state.restore(strict=1)


@pytest.mark.parametrize("suffix", ["json", "pt"])
def test_a_state_is_given_back_to_its_own_rank(tmp_path, suffix):
    """Files that are mixed up restore without a word elsewhere: of 256 ranks 252 drew what another should have."""
    drawn = {}
    for rank in range(3):
        seed_all(7, rank=rank)
        rng_state(rank=rank).save(tmp_path / f"{rank}.{suffix}")
        drawn[rank] = draw()
    before = rng_state()
    states = [RngState.load(tmp_path / f"{rank}.{suffix}") for rank in (2, 0, 1)]  # mixed up
    for rank, state in enumerate(states):
        with pytest.raises(RngStateError, match=f"rank {state.rank}, and this is rank {rank}"):
            state.restore(rank=rank)
        with pytest.raises(RngStateError, match="did not say its rank"):
            state.restore()
        assert rng_state() == before
    for state in states:
        pickle.loads(pickle.dumps(state)).restore(rank=state.rank)
        assert draw() == drawn[state.rank]


def test_a_rank_that_is_new_does_not_draw_what_another_draws(tmp_path):
    """After a scale-up there is no state for the new ranks: one for all, or none, has them all draw alike."""
    seed_all(7)
    everyones = rng_state()
    with pytest.raises(RngStateError, match=r"seed_all\(seeds, rank=3\)"):
        everyones.restore(rank=3)
    with pytest.raises(FileNotFoundError):  # not passed over
        RngState.load(tmp_path / "rank-3.json").restore(rank=3)
    seen = []
    for rank in range(4):
        if rank < 2:
            seed_all(7, rank=rank)
            state = rng_state(rank=rank)
            draw()
            state.restore(rank=rank)
        else:
            seed_all(7, rank=rank)
        seen.append(draw())
    assert len({repr(value) for values in seen for value in values}) == 4 * len(seen[0])


@pytest.mark.parametrize("rank", [-1, True, 1.0, "0", 2**63])
def test_what_is_no_rank_is_refused(rank):
    for call in (lambda: rng_state(rank=rank), lambda: rng_state().restore(rank=rank)):
        with pytest.raises(ConfigurationError, match="rank"):
            call()


def test_the_rank_of_a_file_cannot_be_changed(tmp_path):
    data = rng_state(rank=1).to_dict()
    for wrong in (2, None, -1, "1", True):
        with pytest.raises(RngStateError):
            RngState.from_dict({**data, "rank": wrong})
    assert RngState.from_dict(data).rank == 1
    assert rng_state(rank=1) != rng_state()
    assert "rank 1" in repr(rng_state(rank=1))


def test_the_dictionary_is_a_copy():
    state = rng_state()
    digest = state.digest
    state.to_dict()["generators"].clear()
    assert state.digest == digest
    with pytest.raises(AttributeError, match="immutable"):
        state.x = 1
