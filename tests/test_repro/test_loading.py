"""Items and their order are functions of (seeds, epoch, index): any workers, any ranks, any restart."""

# ruff: noqa: NPY002 - the global generator of NumPy is what is tested
from __future__ import annotations

import pickle
import random
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mlkit.errors import ConfigurationError
from mlkit.repro import Keyed, KeyedSampler, Seeds, _torch_mersenne, check, loader_kwargs, rng_state

torch.set_num_threads(1)


class Noisy:
    """Augments with all three libraries, as users' datasets do."""

    def __init__(self, n=12):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if index == 99:
            raise ValueError("bad row")
        return torch.tensor(
            [index, random.random(), np.random.random(), float(torch.rand(()))], dtype=torch.float64
        )


def loader(workers, sampler, data, **options):
    return torch.utils.data.DataLoader(
        data, batch_size=4, sampler=sampler, num_workers=workers, **options
    )


def epochs(workers, count=2, **options):
    seeds = Seeds(42)
    data = Keyed(Noisy(), seeds / "data")
    loading = loader(workers, KeyedSampler(12, seeds / "order"), data, **options)
    return [torch.cat(list(loading)) for _ in range(count)]


def test_the_data_are_the_same_for_any_number_of_workers():
    none = epochs(0)
    assert all(torch.equal(one, other) for one, other in zip(none, epochs(2), strict=True))
    kept = epochs(2, persistent_workers=True)
    assert all(torch.equal(one, other) for one, other in zip(none, kept, strict=True))
    draws = torch.cat(none)[:, 1:]
    assert len(torch.unique(draws)) == draws.numel()  # no worker, epoch or library repeats another


def test_a_loader_without_keys_repeats_draws_in_its_workers():
    """The fault that Keyed is for: numpy's state is copied to each worker process."""

    class Plain(Noisy):
        def __init__(self):
            super().__init__()
            self.generator = np.random.default_rng(0)

        def __getitem__(self, index):
            return float(self.generator.random())

    batches = torch.cat(list(loader(2, None, Plain())))
    assert len(torch.unique(batches)) < 12


def test_the_training_stream_does_not_notice_the_data():
    data = Keyed(Noisy(), 1).at(0)
    before = rng_state()
    data[3]
    with pytest.raises(ValueError, match="bad row"):
        Keyed(Noisy(100), 1).at(0)[99]
    assert rng_state() == before


@given(st.integers(0, 50), st.integers(0, 11), st.permutations(range(12)))
@settings(max_examples=15)
def test_an_item_depends_on_epoch_and_index_alone(epoch, index, order):
    data = Keyed(Noisy(), Seeds(3) / "data")
    expected = data.at(epoch)[index]
    for other in order[:3]:
        data.at(epoch)[other]
        data.at(epoch + 1)[index]
    assert torch.equal(data.at(epoch)[index], expected)
    assert torch.equal(data.at(epoch)[index - 12], expected)
    assert not torch.equal(data.at(epoch + 1)[index], expected)
    assert torch.equal(pickle.loads(pickle.dumps(data)).at(epoch)[index], expected)


def test_the_first_check_in_a_process_of_keyed_data_sees_no_difference(monkeypatch):
    """How torch lays its state out is probed once, with operations that only one of two runs would have."""
    monkeypatch.setattr(_torch_mersenne, "_layout", [])
    data = Keyed([torch.ones(2)], 1).at(0)
    assert check(lambda: (data[0], torch.rand(2, generator=Seeds(1).torch()))) is None
    assert _torch_mersenne._layout


def test_a_plain_index_must_say_its_epoch():
    data = Keyed(Noisy(), 1)
    with pytest.raises(ConfigurationError, match="KeyedSampler"):
        data[0]
    with pytest.raises(ConfigurationError, match="KeyedSampler"):
        list(loader(0, None, data))
    assert len(data) == 12
    assert len(list(data.at(0))) == 12
    for wrong in (12, -13):
        with pytest.raises(IndexError):
            data.at(0)[wrong]
    for wrong in (1.0, "1", True, None):
        with pytest.raises(ConfigurationError):
            data.at(0)[wrong]
    for wrong in (-1, None, 0.5, True):
        with pytest.raises(ConfigurationError):
            data.at(wrong)


def test_wrong_datasets():
    for wrong in (3, None, iter([1]), Noisy):
        with pytest.raises(ConfigurationError, match="dataset"):
            Keyed(wrong, 1)
    with pytest.raises(ConfigurationError, match="seeds"):
        Keyed([1], "x")


class Crop:
    """A transform that holds its generator, as those of many libraries do."""

    def __init__(self, generator):
        self.generator = generator


class Held:
    """Draws from a generator of each kind, its own and everybody's."""

    def __init__(self):
        self.transforms = {
            "train": [Crop(np.random.default_rng(0)), Crop(np.random.RandomState(0))]
        }
        self.python = random.Random(0)
        self.torch = torch.Generator()
        self.loop = self  # datasets do hold themselves

    def __len__(self):
        return 12

    def __getitem__(self, index):
        modern, legacy = (crop.generator for crop in self.transforms["train"])
        return torch.tensor(
            [
                modern.random(),
                legacy.random_sample(),
                self.python.random(),
                float(torch.rand((), generator=self.torch, dtype=torch.float64)),
                random.random(),
                np.random.random(),
                float(torch.rand((), dtype=torch.float64)),
            ],
            dtype=torch.float64,
        )


class Stream(torch.utils.data.IterableDataset):
    """Each worker reads its own rows, as a stream of shards does."""

    def __init__(self):
        self.rows = Held()

    def __iter__(self):
        for index in range(6):
            yield self.rows[index]


def test_generators_that_a_dataset_holds_are_named_too():
    def epochs(workers, rank=0, **options):
        seeds = Seeds(42) / rank
        data = Keyed(Held(), seeds / "data")
        loading = loader(workers, KeyedSampler(12, seeds / "order"), data, **options)
        return [torch.cat(list(loading)) for _ in range(2)]

    none = epochs(0)
    everything = torch.cat([*none, *epochs(0, rank=1)])
    assert len(torch.unique(everything)) == everything.numel()
    for other in (epochs(1), epochs(2)):
        assert all(torch.equal(one, two) for one, two in zip(none, other, strict=True))
    data = Keyed(Held(), 1).at(0)
    assert torch.equal(pickle.loads(pickle.dumps(data))[3], data[3])  # as to a spawned worker


class Transformed:
    """Its generator is in what it calls."""

    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return self.transform(torch.zeros(1, dtype=torch.float64))


class Shift(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = np.random.default_rng()

    def forward(self, x):
        return x + self.generator.random()


def shifted(x, generator):
    return x + generator.random()


@pytest.mark.parametrize(
    "made",
    [
        lambda: torch.utils.data.Subset(Transformed(Shift()), range(6)),
        lambda: torch.utils.data.random_split(Transformed(Shift()), [6, 6])[1],
        lambda: torch.utils.data.ConcatDataset([Transformed(Shift()), Transformed(Shift())]),
        lambda: Transformed(torch.nn.Sequential(torch.nn.Identity(), Shift())),
        lambda: Transformed(Shift().forward),
        lambda: Transformed(partial(shifted, generator=np.random.default_rng())),
        lambda: torch.utils.data.Subset(
            torch.utils.data.ConcatDataset(
                [Transformed(torch.nn.Sequential(torch.nn.Sequential(Shift())))]
            ),
            range(6),
        ),
    ],
    ids=["subset", "split", "chain", "modules", "method", "partial", "deep"],
)
def test_generators_inside_of_what_torch_wraps_around_a_dataset_are_named_too(made):
    items = [Keyed(made(), 1).at(0)[3] for _ in range(2)]
    assert torch.equal(*items)
    assert not torch.equal(items[0], Keyed(made(), 1).at(1)[3])


@pytest.mark.parametrize("dataset", [Held, Stream])
def test_a_loader_with_our_arguments_repeats_nothing(dataset):
    def epochs(seeds, workers=2, **options):
        loading = torch.utils.data.DataLoader(
            dataset(), batch_size=3, num_workers=workers, **options, **loader_kwargs(seeds)
        )
        return torch.cat([torch.cat(list(loading)) for _ in range(2)])

    seeds = Seeds(42) / "train"
    draws = [epochs(seeds / rank) for rank in range(2)]
    assert len(torch.unique(torch.cat(draws))) == torch.cat(draws).numel()
    assert torch.equal(epochs(seeds / 0), draws[0])
    if dataset is Held:
        shuffled = epochs(seeds / 0, shuffle=True)
        assert torch.equal(epochs(seeds / 0, shuffle=True), shuffled)
    kept = epochs(seeds / 0, persistent_workers=True)
    assert len(torch.unique(kept)) == kept.numel()


def test_loader_arguments_need_a_seed():
    with pytest.raises(ConfigurationError, match="loader_kwargs"):
        loader_kwargs("train")


def test_frozen_order():
    sampler = KeyedSampler(8, Seeds(42) / "order")
    assert list(sampler) == [1, 2, 0, 4, 6, 7, 3, 5]


@given(
    n=st.integers(1, 40),
    world=st.integers(1, 5),
    even=st.booleans(),
    shuffle=st.booleans(),
    root=st.integers(0, 9),
)
@settings(max_examples=40)
def test_ranks_share_each_epoch(n, world, even, shuffle, root):
    world = min(world, n)
    options = {"world_size": world, "even": even, "shuffle": shuffle}
    samplers = [KeyedSampler(n, root, rank=rank, **options) for rank in range(world)]
    whole = KeyedSampler(n, root, shuffle=shuffle)
    for _ in range(3):
        shares = [list(sampler) for sampler in samplers]
        order = list(whole)
        assert sorted(order) == list(range(n))
        assert [len(share) for share in shares] == [len(sampler) for sampler in samplers]
        together = [index for share in shares for index in share]
        assert len(set(together)) == len(together)
        kept = n - n % world if even else n
        assert sorted(together) == sorted(order[:kept])
        if not shuffle:
            assert order == list(range(n))


@given(
    n=st.integers(2, 40), done=st.integers(0, 10), before=st.integers(1, 3), after=st.integers(1, 3)
)
def test_training_goes_on_with_another_number_of_ranks(n, done, before, after):
    before, after = min(before, n), min(after, n)
    done = min(done, n // before)
    order = list(KeyedSampler(n, 5))
    first = [KeyedSampler(n, 5, rank=rank, world_size=before, even=False) for rank in range(before)]
    seen = []
    for sampler in first:
        running = iter(sampler)
        seen += [next(running) for _ in range(done)]
        sampler.advance(done)
    state = first[0].state_dict()
    assert state == {"epoch": 0, "consumed": done * before}
    for rank in range(after):
        sampler = KeyedSampler(n, 5, rank=rank, world_size=after, even=False)
        sampler.load_state_dict(state)
        if done * before == n:
            assert sampler.state_dict() == {"epoch": 1, "consumed": 0}
        else:
            seen += list(sampler)
    assert sorted(seen) == sorted(order)


@given(
    n=st.integers(2, 30),
    world=st.integers(1, 4),
    even=st.booleans(),
    stop=st.integers(1, 3),
    batch=st.integers(1, 7),
)
@settings(max_examples=40)
def test_saved_at_the_end_of_an_epoch_no_epoch_is_lost(n, world, even, stop, batch):
    """A checkpoint after each epoch is the commonest one: the next pass must not be the empty rest of the last."""
    world = min(world, n)

    def make(rank):
        return KeyedSampler(n, 5, rank=rank, world_size=world, even=even)

    for rank in range(world if even else 1):  # without even, it is rank 0 that knows the most
        sampler, whole = make(rank), make(rank)
        expected = [list(whole) for _ in range(stop + 1)]
        for done in range(stop):
            order = list(sampler)
            assert order == expected[done]
            for start in range(0, len(order), batch):
                sampler.advance(len(order[start : start + batch]))
            state = sampler.state_dict()
            sampler = make(rank)
            sampler.load_state_dict(state)
        assert list(sampler) == expected[stop]


def test_epochs_have_orders_of_their_own():
    """seed + epoch gives neighbouring seeds the same orders; hashed paths do not."""
    orders = set()
    for root in range(20):
        sampler = KeyedSampler(20, root)
        orders |= {tuple(sampler) for _ in range(20)}
    assert len(orders) == 400


class Sampling(RuleBasedStateMachine):
    """The sampler against two integers."""

    def __init__(self):
        super().__init__()
        self.n = 10
        self.sampler = KeyedSampler(self.n, 7)
        self.epoch, self.consumed, self.begun = 0, 0, False

    def order(self, epoch):
        fresh = KeyedSampler(self.n, 7)
        fresh.set(epoch)
        return list(fresh)

    @rule(take=st.integers(0, 12))
    def iterate(self, take):
        if self.begun:
            self.epoch, self.consumed = self.epoch + 1, 0
        self.begun = True
        running = iter(self.sampler)
        got = [index for index, _ in zip(running, range(take), strict=False)]
        assert got == self.order(self.epoch)[self.consumed :][:take]

    @rule(share=st.floats(0, 1))
    def advance(self, share):
        count = int(share * (self.n - self.consumed))
        self.sampler.advance(count)
        self.consumed += count

    @precondition(lambda self: self.consumed == self.n)
    @rule()
    def cannot_advance_beyond_the_epoch(self):
        with pytest.raises(ConfigurationError, match="advance"):
            self.sampler.advance(1)

    @rule(epoch=st.integers(0, 5), consumed=st.integers(0, 10))
    def set(self, epoch, consumed):
        self.sampler.set(epoch, consumed)
        self.epoch, self.consumed, self.begun = epoch, consumed, False

    @rule(through_pickle=st.booleans())
    def restart(self, through_pickle):
        if through_pickle:
            self.sampler = pickle.loads(pickle.dumps(self.sampler))
            return
        state = self.sampler.state_dict()
        self.sampler = KeyedSampler(self.n, 7)
        self.sampler.load_state_dict(state)
        self.begun = False
        if self.consumed == self.n:  # it would have gone on with the next epoch
            self.epoch, self.consumed = self.epoch + 1, 0

    @invariant()
    def two_integers(self):
        assert self.sampler.state_dict() == {"epoch": self.epoch, "consumed": self.consumed}


TestSampling = Sampling.TestCase
TestSampling.settings = settings(max_examples=25, stateful_step_count=15)


@pytest.mark.parametrize(
    ("n", "options", "name"),
    [
        (0, {}, "n"),
        (-1, {}, "n"),
        (True, {}, "n"),
        (2.0, {}, "n"),
        ("abc", {}, "n"),
        ([], {}, "n"),
        (5, {"world_size": 0}, "world_size"),
        (5, {"world_size": 6}, "world_size"),
        (5, {"rank": 1}, "rank"),
        (5, {"rank": -1}, "rank"),
        (5, {"shuffle": 1}, "shuffle"),
        (5, {"even": "no"}, "even"),
        (5, {"seeds": None}, "seeds"),
    ],
)
def test_wrong_samplers(n, options, name):
    seeds = options.pop("seeds", 1)
    with pytest.raises(ConfigurationError, match=name):
        KeyedSampler(n, seeds, **options)


def test_wrong_states():
    sampler = KeyedSampler([1, 2, 3], 1)
    for state in ({}, {"epoch": 0}, {"epoch": 0, "consumed": 1, "x": 2}, {"epoch": 0, "consumed": 4}, {"epoch": -1, "consumed": 0}):  # fmt: skip
        with pytest.raises(ConfigurationError):
            sampler.load_state_dict(state)
    for count in (-1, 4, True, 1.0):
        with pytest.raises(ConfigurationError, match="advance"):
            sampler.advance(count)
    assert sampler.state_dict() == {"epoch": 0, "consumed": 0}
