"""What batch_invariance says is what an exhaustive look at the function says."""

# ruff: noqa: NPY002 - the global generator of NumPy is what is tested
from __future__ import annotations

import numpy as np
import pytest
import torch

from mlkit.errors import ConfigurationError
from mlkit.repro import batch_invariance, rng_state
from mlkit.testing import virtual_time

torch.set_num_threads(1)
ROWS = np.random.default_rng(0).standard_normal((20, 6))


def test_a_function_of_each_row_is_free():
    report = batch_invariance(lambda batch: batch**2, ROWS)
    assert set(report.stable) == {1, 2, 4, 8, 16, 32, 64}
    assert all(report.stable.values())
    assert not report.size_matters
    assert report.smallest == 2
    assert "do not depend on its batch, for sizes" in str(report)


def test_a_function_of_the_neighbours_is_never_stable():
    report = batch_invariance(lambda batch: batch - batch.mean(axis=0), ROWS, sizes=[8, 2, 2])
    assert report.stable == {2: False, 8: False}
    assert report.smallest is None
    assert "at every size" in str(report)


def test_a_function_of_the_size_needs_a_fixed_shape():
    report = batch_invariance(lambda batch: batch * len(batch), ROWS, sizes=[2, 4])
    assert report.stable == {2: True, 4: True}
    assert report.size_matters
    assert report.smallest == 2
    assert "every batch has 2 rows" in str(report)


def test_a_tail_that_another_path_computes_is_found():
    """As in vectorised kernels: whole blocks of 4 rows one way, the rest another way."""

    def fn(batch):
        whole = len(batch) - len(batch) % 4
        return np.concatenate([batch[:whole] * 3.0, batch[whole:] * 3.0000000001])

    report = batch_invariance(fn, ROWS, sizes=[1, 3, 4, 6, 8, 9])
    assert report.stable == {1: True, 3: True, 4: True, 6: False, 8: True, 9: False}
    assert report.size_matters
    assert "not so with [6, 9]" in str(report)


def test_torch_functions_and_nested_results():
    layer = torch.nn.Linear(6, 4)

    def fn(batch):
        with torch.no_grad():
            hidden = layer(batch)
        return {
            "logits": hidden,
            "parts": [hidden.sum(1), hidden.argmax(1)],
            "half": hidden.bfloat16(),
        }

    before = rng_state()
    report = batch_invariance(fn, torch.from_numpy(ROWS).float(), sizes=[1, 16], trials=4)
    assert rng_state() == before
    assert report.threads == 1
    assert report.trials == 4
    assert report.stable[1]


def test_draws_are_found():
    report = batch_invariance(
        lambda batch: batch + np.random.random(batch.shape), ROWS, sizes=[1, 4]
    )
    assert report.stable == {1: False, 4: False}


def test_the_same_seeds_make_the_same_measurement():
    seen = []

    def fn(batch):
        seen.append(batch.copy())
        return batch

    batch_invariance(fn, ROWS, sizes=[4], seeds=3)
    first = list(seen)
    seen.clear()
    batch_invariance(fn, ROWS, sizes=[4], seeds=3)
    assert all(np.array_equal(one, other) for one, other in zip(first, seen, strict=True))


class Gru(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = torch.nn.GRU(16, 24)
        self.head = torch.nn.Linear(24, 3)

    def forward(self, batch):
        return self.head(self.cell(batch.transpose(0, 1))[0][-1])  # time first inside


class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, batch):
        return self.encoder(batch).mean(1)


def models():
    nn = torch.nn
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {
            "linear": (nn.Linear(96, 80), torch.randn(32, 96)),
            "mlp with a sigmoid head": (
                nn.Sequential(nn.Linear(30, 50), nn.Sigmoid(), nn.Linear(50, 1), nn.Sigmoid()),
                torch.randn(32, 30),
            ),
            "conv": (
                nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)),
                torch.randn(32, 3, 8, 8),
            ),
            "gru": (Gru(), torch.randn(32, 6, 16)),
            "encoder": (Encoder(), torch.randn(32, 3, 32)),
        }


def served(model, rows, fixed):
    """Return the results of each row in many random batches, each padded to *fixed* rows, or as it is for 0."""
    draw, seen = np.random.default_rng(5), [set() for _ in rows]
    for _ in range(40):
        size = int(draw.integers(1, (fixed or 33) + 1))
        index = draw.integers(len(rows), size=max(fixed, size))
        results = model(rows[torch.from_numpy(index)])
        for place in range(size):
            seen[index[place]].add(results[place].numpy().tobytes())
    return all(len(bits) <= 1 for bits in seen)


@pytest.mark.parametrize("name", models())
def test_what_it_says_of_a_model_holds_when_the_model_serves(name):
    model, rows = models()[name]
    model.eval()
    with torch.no_grad():
        report = batch_invariance(model, rows, sizes=[1, 2, 7, 16, 32])
        assert report.smallest is not None
        for size, is_stable in report.stable.items():
            if is_stable:
                assert served(model, rows, size), size
        matters = report.size_matters or not all(report.stable.values())
        assert (report.op is not None) == matters
        if not matters:
            assert served(model, rows, 0)
        else:  # on every CPU seen so far: the naive form, batches as they come, has other bits
            assert report.op.startswith("aten::")
            assert f"{type(model).__name__}" in report.op
            assert "test_invariance.py" in report.op


def test_the_operation_that_mixes_rows_is_named():
    net = torch.nn.Sequential(
        torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5, track_running_stats=False), torch.nn.ReLU()
    )
    with torch.no_grad():
        report = batch_invariance(net, torch.from_numpy(ROWS).float(), sizes=[4, 9])
    assert report.smallest is None
    assert "batch_norm in Sequential.1" in report.op
    assert report.op in str(report)


def test_an_operation_that_one_size_alone_runs_is_named():
    def fn(batch):
        return batch.exp() if len(batch) > 4 else batch.mul(1.0).exp().add(1e-9)

    report = batch_invariance(fn, torch.from_numpy(ROWS), sizes=[2, 4, 8])
    assert report.size_matters
    assert "test_invariance.py" in report.op
    assert "aten::exp" in report.op
    assert "aten::mul" in report.op


def test_without_torch_operations_none_is_named():
    report = batch_invariance(lambda batch: batch * len(batch), ROWS, sizes=[2, 4])
    assert report.op is None


def test_the_first_number_of_threads_that_is_stable_is_reported():
    """As with kernels that give each thread a part of the rows, and start anew at each border."""

    def fn(batch):
        border = len(batch) // torch.get_num_threads()
        return torch.cat([batch[:border] * 3.0, batch[border:] * 3.0000001])

    rows = torch.from_numpy(ROWS)
    torch.set_num_threads(2)
    try:
        report = batch_invariance(fn, rows, sizes=[1, 4, 8])
        assert (report.threads, report.smallest) == (1, 4)
        assert "on 1 thread;" in f"{report};"
        assert torch.get_num_threads() == 2
        report = batch_invariance(fn, rows, sizes=[4, 8], threads=[2])
        assert (report.threads, report.smallest) == (2, None)
        assert batch_invariance(lambda batch: batch, rows, sizes=[4]).threads == 2
        assert batch_invariance(fn, rows, sizes=[4], threads=[1, 2]).threads == 1
        with pytest.raises(ZeroDivisionError):
            batch_invariance(lambda batch: 1 / 0, rows, threads=[1])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_what_padding_costs():
    with virtual_time() as clock:

        def fn(batch):
            clock.advance(
                1.0 + 0.25 * len(batch)
            )  # as most do: something for the call, something for a row
            return batch * len(batch)

        report = batch_invariance(fn, ROWS, sizes=[1, 4, 16])
    assert set(report.costs) == {4, 16}
    assert report.costs[4] == pytest.approx({1: 2 / 1.25, 4: 1, 16: 4 * 2 / 5})
    assert report.costs[16] == pytest.approx({1: 5 / 1.25, 4: 5 / 2, 16: 1})
    assert [report.cheapest(size) for size in (1, 4, 16)] == [4, 4, 16]
    assert "1.6x for 1, 1x for 4, 1.6x for 16" in str(report)
    with pytest.raises(ConfigurationError, match="measured"):
        report.cheapest(5)
    nothing = batch_invariance(lambda batch: batch - batch.mean(axis=0), ROWS, sizes=[4])
    assert nothing.cheapest(4) is None
    assert nothing.costs == {}


def test_a_value_that_only_some_rows_show_is_found():
    """One row in forty is rounded otherwise at the last place: following four rows would miss it."""
    rows = np.arange(1.0, 33.0)[:, None]

    def fn(batch):
        out = batch * 3.0
        if batch[-1, 0] == 29.0:
            out[-1] += 1e-9
        return out

    assert not batch_invariance(fn, rows, sizes=[16]).stable[16]


@pytest.mark.parametrize(
    ("fn", "sample", "options", "name"),
    [
        (3, ROWS, {}, "fn"),
        (abs, [1, 2], {}, "sample"),
        (abs, np.zeros(()), {}, "sample"),
        (abs, np.zeros((1, 2)), {}, "sample"),
        (abs, ROWS, {"sizes": []}, "sizes"),
        (abs, ROWS, {"sizes": [0]}, "sizes"),
        (abs, ROWS, {"sizes": [2.0]}, "sizes"),
        (abs, ROWS, {"trials": 1}, "trials"),
        (abs, ROWS, {"threads": []}, "threads"),
        (abs, ROWS, {"threads": [0]}, "threads"),
        (abs, ROWS, {"threads": [True]}, "threads"),
        (abs, ROWS, {"seeds": "x"}, "seeds"),
        (lambda batch: batch[:1], ROWS, {"sizes": [4]}, "shape"),
        (lambda batch: 1.0, ROWS, {}, "shape"),
    ],
    ids=range(14),
)
def test_wrong_arguments(fn, sample, options, name):
    with pytest.raises(ConfigurationError, match=name):
        batch_invariance(fn, sample, **options)
