"""Streams of different paths, libraries, ranks and items are unrelated: stated tests, each beside a form that fails it.

All are of fixed seeds, so that they pass for ever or never; the limits are five standard deviations of chance.
"""

# ruff: noqa: NPY002 - the global generators are what is tested
from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkit.repro import KeyedSampler, Seeds, isolated, seed_all

torch.set_num_threads(1)
STREAMS = {
    "numpy": lambda seeds, n: seeds.numpy().integers(256, size=n, dtype=np.uint8),
    "python": lambda seeds, n: np.frombuffer(seeds.python().randbytes(n), np.uint8),
    "torch": lambda seeds, n: torch.randint(0, 256, (n,), generator=seeds.torch()).numpy(),
}


@given(st.integers(0, 2**128 - 1), st.sampled_from([2, 16, 256, 4096]))
@settings(max_examples=30)
def test_libraries_agree_no_more_often_than_chance(root, n):
    with isolated():
        seed_all(root)
        everything = [
            np.random.randint(0, n, 2048),
            torch.randint(0, n, (2048,)).numpy(),
            np.array([random.randrange(n) for _ in range(2048)]),
        ]
    chance, deviation = 2048 / n, (2048 / n * (1 - 1 / n)) ** 0.5
    for one, other in ((0, 1), (0, 2), (1, 2)):
        agreed = (everything[one] == everything[other]).sum()
        assert abs(agreed - chance) <= 6 * deviation + 3  # searched for by hypothesis


def test_seeded_by_hand_numpy_and_torch_agree_in_every_draw():
    with isolated():
        random.seed(7)
        np.random.seed(7)
        torch.manual_seed(7)
        for n in (2, 256, 4096):
            assert np.array_equal(np.random.randint(0, n, 500), torch.randint(0, n, (500,)).numpy())


@pytest.mark.parametrize("kind", STREAMS)
def test_bytes_of_neighbouring_streams_are_even_and_unrelated(kind):
    streams = np.stack([STREAMS[kind](Seeds(1) / "s" / n, 256) for n in range(256)]).astype(int)
    mixed = streams.T.ravel()  # one byte of each stream in turn
    counts = np.bincount(mixed, minlength=256)
    freedom = 255
    chi = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert abs(chi - freedom) < 5 * (2 * freedom) ** 0.5
    pairs = np.bincount((streams[:-1] // 16 * 16 + streams[1:] // 16).ravel(), minlength=256)
    chi = ((pairs - pairs.mean()) ** 2 / pairs.mean()).sum()
    assert abs(chi - freedom) < 5 * (2 * freedom) ** 0.5
    correlations = np.corrcoef(streams[:80])[np.triu_indices(80, 1)]
    assert np.abs(correlations).max() < 5 / 256**0.5 + 0.05
    assert len({stream.tobytes() for stream in streams}) == 256


@pytest.mark.parametrize("kind", STREAMS)
def test_a_step_of_one_in_the_path_flips_half_of_the_bits(kind):
    heads = [STREAMS[kind](Seeds(9) / "x" / n, 16).astype(np.uint8).tobytes() for n in range(200)]
    flipped = [
        (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).bit_count()
        for one, other in pairwise(heads)
    ]
    assert abs(np.mean(flipped) - 64) < 5 * (32 / 199) ** 0.5
    assert min(flipped) > 64 - 6 * 32**0.5


def test_names_do_not_collide_where_32_bits_do():
    """Of 300,000 names, numpy.random.seed and torch.manual_seed would keep 32 bits each."""
    words = (Seeds(3) / "words").numpy().bit_generator.random_raw(300_000)
    assert len(np.unique(words)) == len(words)
    assert len(np.unique(words & 0xFFFFFFFF)) < len(words)
    assert len({(Seeds(3) / "item" / n).int(64) for n in range(10_000)}) == 10_000


def test_a_seed_and_a_rank_are_not_added():
    """A study of 20 seeds on 8 ranks: 27 seeds for 160 processes if they are added."""
    study = [(seed, rank) for seed in range(20) for rank in range(8)]
    assert len({seed + rank for seed, rank in study}) == 27
    drawn = set()
    with isolated():
        for seed, rank in study:
            seed_all(seed, rank=rank)
            drawn.add((random.random(), float(np.random.random()), float(torch.rand(()))))
    for values in zip(*drawn, strict=True):
        assert len(set(values)) == len(study)


def test_a_seed_and_an_epoch_are_not_added():
    """torch's DistributedSampler adds them, so that neighbouring seeds share most of their orders."""
    from torch.utils.data import DistributedSampler

    def naive(seed, epoch):
        sampler = DistributedSampler(range(12), num_replicas=1, rank=0, seed=seed)
        sampler.set_epoch(epoch)
        return tuple(sampler)

    def ours(seed, epoch):
        sampler = KeyedSampler(12, Seeds(seed) / "order")
        sampler.set(epoch)
        return tuple(sampler)

    grid = [(seed, epoch) for seed in range(20) for epoch in range(20)]
    assert len({naive(*where) for where in grid}) == 39
    assert len({ours(*where) for where in grid}) == 400


def test_paths_are_not_lists_of_words():
    """NumPy's seed sequence takes three pairs of different names for one."""
    seed = np.random.SeedSequence

    def word(sequence):
        return sequence.generate_state(2).tolist()

    assert word(seed(1)) == word(seed([1, 0]))
    assert word(seed(5, spawn_key=(2**32,))) == word(seed(5, spawn_key=(0, 1)))
    assert word(seed([1, 2, 3, 4, 5])) == word(seed([1, 2, 3, 4], spawn_key=(5,)))
    ours = [
        Seeds(1),
        Seeds(1) / 0,
        Seeds(5) / 2**32,
        Seeds(5) / 0 / 1,
        Seeds(5) / "0" / 1,
        Seeds(5) / "0/1",
        Seeds(5) / "01",
        Seeds(5) / 1 / 0,
        Seeds(2**32),
        Seeds(2**32 + 2**64),
        Seeds(0) / 1,
    ]
    assert len({seeds.int(128) for seeds in ours}) == len(ours)
