"""What batch_invariance says is what an exhaustive look at the function says."""

# ruff: noqa: NPY002 - the global generator of NumPy is what is tested
from __future__ import annotations

import numpy as np
import pytest
import torch

from mlkit.errors import ConfigurationError
from mlkit.repro import batch_invariance, rng_state

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
        (abs, ROWS, {"seeds": "x"}, "seeds"),
        (lambda batch: batch[:1], ROWS, {"sizes": [4]}, "shape"),
        (lambda batch: 1.0, ROWS, {}, "shape"),
    ],
    ids=range(11),
)
def test_wrong_arguments(fn, sample, options, name):
    with pytest.raises(ConfigurationError, match=name):
        batch_invariance(fn, sample, **options)
