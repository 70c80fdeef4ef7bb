"""Faults that make runs differ, planted one by one: check must name each where it is, and nothing else.

The kernel whose rows depend on their batch is `batch_invariance`'s to find: test_invariance.py.
"""

from __future__ import annotations

import importlib
import os
import random
import sys
import threading
from itertools import count

import numpy as np
import pytest
import torch

from mlkit.errors import ConfigurationError, ReproError
from mlkit.repro import Keyed, KeyedSampler, check

torch.set_num_threads(1)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.Dropout(), torch.nn.Linear(16, 4)
        )

    def forward(self, x):
        return self.body(x)


X = torch.linspace(-1, 1, 64).reshape(8, 8)


def step(x, net=None):
    net = Net() if net is None else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(x).square().mean().backward()
    optimizer.step()
    return {name: value.detach() for name, value in net.state_dict().items()}


def test_nothing_is_planted():
    assert check(step, X, vary=["threads", "order", "workers"]) is None


def test_unseeded_augmentation():
    def train(x):
        noise = np.random.default_rng().normal(size=(8, 8))
        return step(x + torch.from_numpy(noise).float())

    found = check(train, X)
    assert found.op == "aten::lift_fresh"  # where the noise enters torch
    assert found.line.startswith("test_faults.py:")
    assert found.differing == 64


def test_a_reduction_that_depends_on_the_threads():
    rows = torch.linspace(-1, 1, 40_000)
    index = torch.zeros(40_000, dtype=torch.int64)

    def pool():
        return torch.zeros(4).index_put_((index,), rows.sin(), accumulate=True)

    found = check(pool, vary=["threads"])
    if found is not None:  # how it is cut is torch's to decide; where it differs, it is this one
        assert found.op == "aten::index_put_"
        assert "threads instead of 1" in found.setting

    class Cut(torch.nn.Module):
        """Sums in as many parts as there are threads, as parallel kernels do."""

        def forward(self, x):
            return torch.stack([part.sum() for part in x.chunk(torch.get_num_threads())]).sum()

    found = check(lambda: Cut()(rows.sin()), vary="threads")
    assert found.module == "Cut"
    assert "threads instead of 1" in str(found)


def test_state_of_dropout_that_is_kept_between_runs():
    kept = torch.Generator().manual_seed(3)

    class Drop(torch.nn.Module):
        def forward(self, x):
            return x * torch.empty_like(x).bernoulli_(0.5, generator=kept)

    net = torch.nn.Sequential(torch.nn.Linear(8, 8), Drop())
    found = check(lambda x: net(x).detach(), X)
    assert (found.op, found.module) == ("aten::bernoulli_", "Sequential.1")


def test_a_write_in_place_that_races():
    """Another thread scales the weights: between the layers in one run, before them in the other."""
    runs = count()

    def train(x):
        net, late = Net().eval(), next(runs) % 2
        writer = threading.Thread(target=lambda: net.body[2].weight.data.mul_(2))
        if late:
            net.body[2].register_forward_hook(
                lambda *_: (writer.start(), writer.join())[:0] or None
            )
        else:
            writer.start()
            writer.join()
        return net(x).detach()

    found = check(train, X)
    assert (found.op, found.module) == ("aten::addmm", "Net.body.2")


def test_drift_of_a_dtype():
    runs = count()

    def scaled(x):
        drifted = next(runs) % 2
        return Net()(x) * torch.tensor(2.0, dtype=torch.float64 if drifted else torch.float32)

    assert "float32[] became float64[]" in check(scaled, X).reason


def test_a_library_with_a_generator_of_its_own():
    class Library:
        """Caches its generator when it is imported, as several do."""

        generator = np.random.RandomState(0)

        @classmethod
        def jitter(cls, x):
            return x + torch.from_numpy(cls.generator.normal(size=x.shape)).float()

    found = check(lambda x: step(Library.jitter(x)), X)
    assert found.op == "aten::lift_fresh"
    seeded = np.random.normal
    assert check(lambda x: step(x + torch.from_numpy(seeded(size=(8, 8))).float()), X) is None


class Noisy:
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return index, random.random()


def test_data_that_depend_on_the_workers():
    def read(keyed):
        data = Keyed(Noisy(), 1) if keyed else Noisy()
        sampler = KeyedSampler(8, 1) if keyed else None
        loader = torch.utils.data.DataLoader(data, batch_size=4, sampler=sampler)
        return [rows.sum() for _, rows in loader]

    found = check(read, False, vary=["workers"])
    assert found.op == "DataLoader"
    assert found.setting == "2 workers instead of 0"
    assert found.path == "$[0][1]"
    assert check(read, True, vary=["workers"]) is None


def test_the_order_in_which_files_are_listed(tmp_path):
    for name in "abc":
        (tmp_path / name).write_text(name)
    reads = {
        "listdir": lambda: os.listdir(tmp_path),  # noqa: PTH208 - what is tested
        "scandir": lambda: [entry.name for entry in os.scandir(tmp_path)],
        "iterdir": lambda: [path.name for path in tmp_path.iterdir()],
        "glob": lambda: [path.name for path in tmp_path.glob("*")],
        "walk": lambda: [names for _, _, names in os.walk(tmp_path)],
    }
    for read in reads.values():
        found = check(read, vary=["order"])
        assert found.setting == "folders listed the other way round"
        assert (
            check(lambda read=read: sorted(map(str, read())), vary="order") is None
            or read is reads["walk"]
        )
    with os.scandir(tmp_path) as entries:
        assert len([*entries]) == 3  # as it was


HASHED = """
import os

names = {"weight", "bias", "scale", "shift", "gain"}

def by_set(x):
    for number, name in enumerate(names):  # the order of a set
        x = x * (2 + len(name)) + number
    return x

def parameters():
    return {name: 0.5 for name in names}

def steady():
    return {name: 0.5 for name in sorted(names)}

def failing():
    if os.environ.get("PYTHONHASHSEED") == "1":
        raise ValueError("only there")
"""


@pytest.fixture
def hashed(tmp_path, monkeypatch):
    """A module that new processes can import."""
    (tmp_path / "hashed_faults.py").write_text(HASHED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    yield importlib.import_module("hashed_faults")
    del sys.modules["hashed_faults"]


def test_the_order_of_a_set(hashed):
    found = check(hashed.by_set, torch.ones(3), vary=["hashseed"])
    assert (found.op, found.line) == ("aten::mul", "hashed_faults.py:8")
    assert found.setting == "hash seed 1 instead of 0"
    assert found.differing == 3


def test_the_order_of_parameters(hashed):
    assert check(hashed.parameters, vary=["hashseed"]).path.startswith("result")
    assert check(hashed.steady, vary=["hashseed"]) is None


def test_an_error_in_the_new_process_is_told(hashed):
    said = "fn raised in a new process: ValueError: only there"
    with pytest.raises(ReproError, match=said):
        check(hashed.failing, vary="hashseed")


def test_what_a_new_process_cannot_import_is_refused():
    with pytest.raises(ConfigurationError, match="hashseed"):
        check(lambda: 1, vary=["hashseed"])
    with pytest.raises(ConfigurationError, match="did you mean 'workers'"):
        check(lambda: 1, vary=["worker"])
