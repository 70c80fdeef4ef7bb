"""A row's bits, whatever its company."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkit.errors import ConfigurationError, DegradedWarning, RowError
from mlkit.inference import map_batches
from mlkit.inference._offline.exact import same_bits
from mlkit.testing import record_events

torch.set_num_threads(1)


def exactly(fn, rows, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return list(map_batches(fn, rows, exact=True, **options))


@pytest.fixture(scope="module")
def perceptron():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(48, 96), torch.nn.GELU(), torch.nn.Linear(96, 5)]
    return torch.nn.Sequential(*layers, torch.nn.LayerNorm(5)).eval()


class Encoder(torch.nn.Module):
    """A transformer on token ids, with a mask, and the mean over the tokens."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(50, 16)
        layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.encode = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, batch):
        mask = batch.mask
        states = self.encode(self.embed(batch.values), src_key_padding_mask=~mask)
        return (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return Encoder().eval()


@settings(max_examples=15)
@given(
    st.permutations(range(20)), st.integers(1, 20), st.sampled_from([2, 7, 16]), st.integers(0, 99)
)
def test_batched_equals_one_by_one_bit_for_bit_on_a_network(perceptron, order, n, size, seed):
    rows = torch.randn(20, 48, generator=torch.Generator().manual_seed(seed))
    some = order[:n]
    together = exactly(perceptron, rows[some], batch_size=size)
    for place, index in enumerate(some):
        [alone] = exactly(perceptron, rows[index : index + 1], batch_size=size)
        assert torch.equal(together[place].view(torch.int32), alone.view(torch.int32))


def test_without_exact_the_same_network_gives_other_bits_in_other_company(perceptron):
    """That the test above can fail."""
    rows = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
    sizes = [torch.stack(list(map_batches(perceptron, rows, batch_size=n))) for n in (1, 3, 32)]
    assert torch.allclose(sizes[0], sizes[1], rtol=1e-4, atol=1e-5)
    assert torch.allclose(sizes[0], sizes[2], rtol=1e-4, atol=1e-5)
    if all(torch.equal(sizes[0], other) for other in sizes[1:]):
        pytest.skip("this machine's kernels give the same bits in batches of 1, 3 and 32 rows")


@settings(max_examples=10)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_batched_equals_one_by_one_bit_for_bit_on_a_transformer_with_padding(
    encoder, lengths, random
):
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randint(1, 50, (n,), generator=draw) for n in lengths]
    order = list(range(len(rows)))
    random.shuffle(order)
    together = exactly(encoder, [rows[i] for i in order], batch_size=4, pad=0)
    for place, index in enumerate(order):
        [alone] = exactly(encoder, [rows[index]], batch_size=4, pad=0)
        assert torch.equal(together[place], alone)


def test_every_call_has_one_number_of_rows_and_a_width_that_is_the_rows_own():
    shapes = []

    def model(batch):
        shapes.append(batch.values.shape)
        return batch.values.sum(axis=1)

    rows = [np.ones(n, np.int64) for n in (3, 30, 8, 9, 1, 200, 12)]
    assert exactly(model, rows, batch_size=4, pad=0) == [3, 30, 8, 9, 1, 200, 12]
    assert {n for n, _ in shapes} == {4}
    assert {width for _, width in shapes} == {8, 12, 32, 256}
    shapes.clear()
    exactly(model, rows, batch_size=4, pad=0, widths=[10, 100])
    assert {width for _, width in shapes} == {10, 100, 256}


def mixing(batch):
    return batch - batch.mean(axis=0)  # of the batch


def placed(batch):
    return batch + np.arange(len(batch))[:, None] * 1e-9  # by place


@pytest.mark.parametrize("fn", [mixing, placed])
def test_a_model_that_mixes_rows_runs_one_at_a_time_and_says_so(fn):
    rows = np.random.default_rng(0).normal(size=(9, 3))
    with (
        record_events("inference.") as events,
        pytest.warns(DegradedWarning, match="one at a time"),
    ):
        got = list(map_batches(fn, rows, batch_size=4, exact=True))
    assert [event.kind for event in events] == ["inference.exact.alone"]
    assert all(same_bits(one, fn(row[None])[0]) for one, row in zip(got, rows, strict=True))


def test_a_place_that_matters_is_found_with_a_single_row():
    with pytest.warns(DegradedWarning, match="one at a time"):
        list(map_batches(placed, [np.zeros(2)], batch_size=4, exact=True))


def test_a_function_that_gives_other_bits_each_time_is_refused():
    draw = np.random.default_rng(0)
    with pytest.raises(ConfigurationError, match="same bits each time"):
        list(map_batches(lambda b: b + draw.normal(), [1.0, 2.0], exact=True, on_error="skip"))


@given(st.integers(1, 30), st.sets(st.integers(0, 29), max_size=3), st.sampled_from([1, 4, 32]))
@pytest.mark.filterwarnings("ignore::mlkit.errors.DegradedWarning")
def test_a_bad_row_fails_alone_and_does_not_change_a_bit_of_its_neighbours(n, bad, size):
    torch.manual_seed(0)
    weight = torch.randn(7, 3)

    def model(batch):
        if any(int(one) in bad for one in batch[:, 0]):
            raise ValueError("bad")
        return batch[:, 1:] @ weight

    rows = torch.randn(n, 8, generator=torch.Generator().manual_seed(3))
    rows[:, 0] = torch.arange(n)
    got = list(map_batches(model, rows, exact=True, batch_size=size, on_error="return"))
    assert [i for i, one in enumerate(got) if isinstance(one, RowError)] == sorted(
        i for i in bad if i < n
    )
    for i, one in enumerate(got):
        if i not in bad:
            [alone] = map_batches(model, rows[i : i + 1], exact=True, batch_size=size)
            assert torch.equal(one, alone)


def test_raise_comes_in_its_turn_and_nothing_beyond_is_wanted():
    def model(batch):
        if (batch == 5).any():
            raise ValueError("five")
        return batch

    job = map_batches(model, np.arange(20), exact=True, batch_size=8)
    assert [next(job) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(RowError, match="row 5: ValueError: five"):
        next(job)


def test_it_streams_and_goes_on_from_a_checkpoint(tmp_path, perceptron):
    rows = torch.randn(30, 48, generator=torch.Generator().manual_seed(5))
    truth = exactly(perceptron, rows, batch_size=8)

    def job():
        return map_batches(
            perceptron, (row for row in rows), exact=True, batch_size=8, checkpoint=tmp_path / "c"
        )

    first = job()
    taken = list(itertools.islice(first, 11))
    first.close()
    assert all(map(torch.equal, taken, truth))
    assert all(map(torch.equal, job(), truth))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"exact": 1}, "exact"),
        ({"exact": True, "batch_size": "auto"}, "a number with exact=True"),
        ({"exact": True, "batch_size": 0}, "batch_size"),
        ({"exact": True, "buckets": [32]}, "None with exact=True"),
        ({"exact": True, "collate": list}, "None with exact=True"),
        ({"exact": True, "length": len}, "None with exact=True"),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(options, words):
    with pytest.raises(ConfigurationError, match=words):
        map_batches(mixing, [], **options)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (0.0, -0.0, False),
        (float("nan"), float("nan"), True),
        (np.array([np.nan, 1]), np.array([np.nan, 1]), True),
        (np.float32(1), np.float64(1), False),
        (torch.tensor([0.0]), torch.tensor([-0.0]), False),
        (torch.tensor([torch.nan]), torch.tensor([torch.nan]), True),
        ({"a": (1, "x")}, {"a": (1, "x")}, True),
        ({"a": [1]}, {"a": [2]}, False),
        (np.array(["a", None], object), np.array(["a", None], object), True),
    ],
)
def test_same_bits(one, other, same):
    assert same_bits(one, other) is same
