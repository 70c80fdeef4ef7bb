"""The global generators: seeded together or not at all, each with words of its own, and put back on any exit."""

# ruff: noqa: NPY002 - the global generator of NumPy is what is tested
from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from hashlib import blake2b

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkit.errors import ConfigurationError, ReproError
from mlkit.repro import Seeds, isolated, rng_state, seed_all, seed_everything
from mlkit.testing import record_events

torch.set_num_threads(1)


def draw():
    """Return a draw of every global generator; it leaves a kept Gaussian in each."""
    return (
        random.random(),
        random.gauss(0, 1),
        float(np.random.random()),
        float(np.random.standard_normal()),
        float(torch.rand(())),
        float(torch.randn(())),
    )


@pytest.fixture(autouse=True)
def _leave_no_trace():
    with isolated():
        yield


def test_the_alias_is_the_function():
    assert seed_everything is seed_all


def test_frozen_global_streams():
    seed_all(42)
    assert random.getrandbits(64) == 8802583559001177037
    assert np.random.randint(0, 2**31, 3).tolist() == [1278477435, 1527079778, 965136616]
    assert torch.empty(2, dtype=torch.int64).random_(0, 2**31).tolist() == [879991437, 1929004050]


@given(st.integers(0, 2**128 - 1))
@settings(max_examples=10)
def test_numpys_global_stream_is_what_the_documentation_says(root):
    def step(key, data):
        return blake2b(data, key=key, digest_size=16, person=b"mlkit.seeds.v1").digest()

    node = step(b"", root.to_bytes(16, "little"))
    key = int.from_bytes(step(node, b"=global:numpy"), "little")
    halves = [
        half
        for raw in np.random.Philox(key=key).random_raw(312)
        for half in divmod(int(raw), 2**32)
    ]
    words = np.array([*zip(halves[1::2], halves[::2], strict=True)], dtype=np.uint32).reshape(-1)
    words[0] |= 1 << 31
    expected = np.random.RandomState(np.random.MT19937(0))
    expected.set_state(("MT19937", words, 624, 0, 0.0))
    np.random.standard_normal()  # keeps one, which must not come out
    seed_all(root)
    assert np.random.standard_normal(3).tolist() == expected.standard_normal(3).tolist()
    assert np.random.bytes(8) == expected.bytes(8)


@given(st.integers(0, 2**128 - 1))
@settings(max_examples=10)
def test_the_same_seed_gives_the_same_draws_and_a_rank_others(root):
    with isolated():
        seen = []
        for rank in (None, 0, 1, 2):
            seed_all(Seeds(root), rank=rank)
            first = draw()
            seed_all(root, rank=rank)
            assert draw() == first
            seen.append(first)
    for values in zip(*seen, strict=True):
        assert len(set(values)) == 4


def test_numpy_torch_and_python_do_not_draw_the_same():
    """After other libraries' seed functions numpy and torch agree in every draw."""
    torch.manual_seed(42)
    np.random.seed(42)
    assert np.array_equal(np.random.randint(0, 256, 4096), torch.randint(0, 256, (4096,)).numpy())
    seed_all(42)
    drawn = [
        np.random.randint(0, 256, 4096),
        torch.randint(0, 256, (4096,)).numpy(),
        np.array([random.randrange(256) for _ in range(4096)]),
    ]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        # 16 agree by chance, with a standard deviation of 4.
        assert (drawn[one] == drawn[other]).sum() < 16 + 6 * 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"seeds": 2**128},
        {"seeds": -1},
        {"seeds": True},
        {"seeds": "7"},
        {"seeds": None},
        {"seeds": 1.5},
        {"seeds": 7, "rank": -1},
        {"seeds": 7, "rank": True},
        {"seeds": 7, "rank": 0.0},
        {"seeds": 7, "deterministic": "error"},
        {"seeds": 7, "deterministic": 1},
    ],
    ids=str,
)
def test_a_refused_call_seeds_nothing(wrong):
    draw()
    before = rng_state()
    with pytest.raises(ConfigurationError, match="seed_all"):
        seed_all(**wrong)
    assert rng_state() == before


def test_a_replaced_numpy_generator_is_reported_before_anything_is_seeded():
    before = random.getstate()
    with isolated():
        np.random.set_bit_generator(np.random.PCG64(1))
        with pytest.raises(ReproError, match="PCG64"):
            seed_all(7)
    assert random.getstate() == before
    assert isinstance(np.random.get_bit_generator(), np.random.MT19937)


def test_the_report_says_what_was_seeded():
    with record_events("repro.") as events:
        report = seed_all(Seeds(7) / "run", rank=3)
    assert report.seeds == Seeds(7) / "run" / "rank" / 3
    assert report.bits == {"python": 128, "numpy": 128, "torch": 128}
    assert not report.skipped
    assert "torch: 128 bits" in str(report)
    assert [event.kind for event in events] == ["repro.generators.seeded"]


def test_torch_is_neither_imported_nor_forgotten():
    code = (
        "import sys; from mlkit.repro import seed_all, isolated, audit, rng_state\n"
        "report = seed_all(7)\n"
        "with isolated(3): pass\n"
        "audit(); rng_state()\n"
        "assert 'torch' not in sys.modules\n"
        "print(report.skipped['torch'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "it is not imported; import it before seed_all", done.stderr


def test_torch_seeding_does_not_depend_on_the_depth_of_the_stack():
    def deep(levels):
        return seed_all(3) if levels == 0 else deep(levels - 1)

    deep(50)
    first = draw()
    seed_all(3)
    assert draw() == first


class Stop(BaseException):
    """Not an Exception."""


def ways_out():
    def fall_through():
        return None

    def fail(error):
        def leave():
            raise error

        return leave

    return [
        fall_through,
        *(fail(error) for error in (ValueError("x"), KeyboardInterrupt(), GeneratorExit(), SystemExit(1), Stop())),
    ]  # fmt: skip


@pytest.mark.parametrize("leave", ways_out(), ids=range(6))
@pytest.mark.parametrize("seed", [None, 7])
def test_every_way_out_restores(leave, seed):
    draw()  # a Gaussian is kept in each generator
    before = rng_state()
    expected = draw()
    before.restore()
    try:
        with isolated(seed):
            draw()
            np.random.seed(1)
            torch.manual_seed(1)
            random.seed(1)
            leave()
    except BaseException:
        pass
    assert rng_state() == before
    assert draw() == expected


def test_inside_the_draws_follow_the_seed():
    with isolated(7):
        inside = draw()
    seed_all(7)
    assert draw() == inside


def test_it_nests_and_can_be_entered_again():
    scope = isolated(7)
    before = rng_state()
    with scope:
        outer = draw()
        middle = rng_state()
        with scope:
            assert draw() == outer
        assert rng_state() == middle
    assert rng_state() == before


def test_a_swapped_bit_generator_is_put_back():
    before = np.random.get_bit_generator()
    state = rng_state()
    with isolated():
        np.random.set_bit_generator(np.random.PCG64(1))
        np.random.random()
    assert np.random.get_bit_generator() is before
    assert rng_state() == state


def test_a_decorated_function_keeps_its_result_and_name():
    @isolated(7)
    def noise(scale: float) -> float:
        """Draw."""
        return scale * random.random()

    before = rng_state()
    assert noise(2.0) == noise(2.0) > 0
    assert rng_state() == before
    assert (noise.__name__, noise.__doc__) == ("noise", "Draw.")


def test_a_recursive_decorated_function():
    @isolated()
    def down(n):
        random.random()
        if n:
            down(n - 1)
        elif n == 0:
            raise ValueError("bottom")

    before = rng_state()
    with pytest.raises(ValueError, match="bottom"):
        down(3)
    assert rng_state() == before


def test_a_decorated_coroutine_function():
    @isolated(7)
    async def noise():
        await asyncio.sleep(0)
        return random.random()

    before = rng_state()

    async def twice():
        return await noise(), await noise()

    first, second = asyncio.run(twice())
    assert first == second
    assert rng_state() == before


def test_wrong_uses_of_isolated():
    with pytest.raises(ConfigurationError, match="isolated"):
        isolated("7")
    with pytest.raises(ConfigurationError, match="isolated"):
        isolated(True)
    with pytest.raises(ConfigurationError, match="generator function"):

        @isolated(7)
        def rows():
            yield random.random()

    with pytest.raises(ConfigurationError, match="function"):
        isolated(7)(3)


def test_a_generator_that_is_closed_inside_restores():
    def rows():
        with isolated(7):
            yield random.random()
            yield random.random()

    before = rng_state()
    running = rows()
    next(running)
    running.close()
    assert rng_state() == before


def test_an_object_that_is_called_like_a_coroutine_function():
    class Draw:
        async def __call__(self):
            return random.random()

    class Stream:
        def __call__(self):
            yield random.random()

    before = rng_state()
    assert asyncio.run(isolated(7)(Draw())()) == asyncio.run(isolated(7)(Draw())())
    assert rng_state().diff(before) == ()
    with pytest.raises(ConfigurationError, match="no generator function"):
        isolated(7)(Stream())
