"""What users of other libraries trip over when they seed and restore: the usual form falls in, ours does not."""

# ruff: noqa: NPY002 - the global generators are what is tested
from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
import traceback
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from mlkit.errors import ConfigurationError
from mlkit.repro import (
    Keyed,
    KeyedSampler,
    Manifest,
    Seeds,
    audit,
    batch_invariance,
    deterministic,
    isolated,
    loader_kwargs,
    rng_state,
    seed_all,
)

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _leave_no_trace():
    with isolated():
        yield


def seed_by_hand(seed):
    """Seed as Lightning, transformers, accelerate and most scripts do."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


TAKES_SEEDS = {
    "Seeds": Seeds,
    "seed_all": seed_all,
    "isolated": isolated,
    "Keyed": lambda seeds: Keyed([1, 2], seeds),
    "KeyedSampler": lambda seeds: KeyedSampler(3, seeds),
    "loader_kwargs": loader_kwargs,
    "batch_invariance": lambda seeds: batch_invariance(abs, np.ones((2, 2)), seeds=seeds),
}
REFUSED = [-1, -(2**31), 2**128, 10**60, 1.0, 1.5, float("nan"), float("inf"), True, False, "7", "", b"7", [7], (7,),
           {}, np.float64(7), np.bool_(True), np.array(7), np.array([7]), torch.tensor(7), object(), Seeds]  # fmt: skip


@pytest.mark.parametrize("name", TAKES_SEEDS)
def test_what_is_no_seed_is_refused_before_anything_happens(name):
    before = rng_state()
    for wrong in REFUSED:
        with pytest.raises(ConfigurationError) as caught:
            TAKES_SEEDS[name](wrong)
        assert name in str(caught.value)
        assert len(str(caught.value)) <= 600
        assert rng_state() == before


@pytest.mark.parametrize(
    "name", [name for name in TAKES_SEEDS if name not in {"Seeds", "isolated"}]
)
def test_none_is_a_seed_only_where_it_says_so(name):
    before = rng_state()
    with pytest.raises(ConfigurationError):
        TAKES_SEEDS[name](None)
    assert rng_state() == before


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_a_whole_number_of_numpy_is_the_number(kind):
    assert Seeds(kind(7)) == Seeds(7)
    assert Seeds(7) / kind(3) == Seeds(7) / 3
    seed_all(kind(7))
    first = random.random(), np.random.random(), float(torch.rand(()))
    seed_all(7)
    assert (random.random(), np.random.random(), float(torch.rand(()))) == first


def test_a_seed_that_numpy_refuses_leaves_others_seeded_by_hand():
    """2**40 seeds `random`, then NumPy raises; here it is a seed like any other."""
    before = random.getstate()
    with pytest.raises(ValueError, match="2\\*\\*32"):
        seed_by_hand(2**40)
    assert random.getstate() != before
    for root in (2**32, 2**40, 2**64, 2**128 - 1):
        assert set(seed_all(root).bits.values()) == {128}


def test_seeds_that_python_takes_for_others():
    assert random.Random(-1).random() == random.Random(1).random()
    assert random.Random(True).random() == random.Random(1).random()
    for wrong in (-1, True, 1.0):
        with pytest.raises(ConfigurationError):
            seed_all(wrong)


def test_an_error_inside_does_not_leave_the_inner_generators():
    """As in three well-known libraries, whose scopes have no `finally`."""

    @contextmanager
    def usual():
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        yield
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])

    before = rng_state()
    with pytest.raises(ValueError, match="inside"), usual():  # noqa: PT012
        seed_by_hand(1)
        raise ValueError("inside")
    assert rng_state() != before
    before = rng_state()
    with pytest.raises(ValueError, match="inside"), isolated():  # noqa: PT012
        seed_by_hand(1)
        raise ValueError("inside")
    assert rng_state() == before


def test_a_nested_failure_restores_each_level():
    before = rng_state()
    levels = []

    @isolated(1)
    def outer():
        random.random()
        levels.append(rng_state())
        try:
            with isolated(2):
                seed_by_hand(5)
                with isolated(3):
                    np.random.random()
                    raise KeyboardInterrupt
        finally:
            levels.append(rng_state())
            raise GeneratorExit

    with pytest.raises(GeneratorExit):
        outer()
    assert levels[0] == levels[1]
    assert rng_state() == before


def test_an_interrupt_while_the_generators_are_put_back(monkeypatch):
    """Ctrl-C is pressed again, in the middle of it."""
    before, impatient = rng_state(), [KeyboardInterrupt()]
    setstate = random.setstate

    def interrupted(state):
        if impatient:
            raise impatient.pop()
        setstate(state)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr(random, "setstate", interrupted)
        with isolated(3):
            seed_by_hand(5)
    assert not impatient
    assert rng_state() == before


class TwoDevices:
    """Stands for a CUDA that has started with two devices."""

    def __init__(self):
        self.default_generators = (torch.Generator(), torch.Generator())

    def is_initialized(self):
        return True


def test_every_device_that_has_started_is_put_back(monkeypatch):
    """Generators of the CPU stand for those of two devices; no device was at hand."""
    devices = TwoDevices()
    monkeypatch.setattr(torch.cuda, "is_initialized", devices.is_initialized)
    monkeypatch.setattr(torch.cuda, "default_generators", devices.default_generators)
    one, two = devices.default_generators
    state = rng_state()
    assert state.generators == ("numpy", "python", "torch", "torch cuda:0", "torch cuda:1")
    kept = two.get_state()
    with pytest.raises(SystemExit), isolated():  # noqa: PT012
        torch.rand(3, generator=one)
        torch.rand(3, generator=two)
        raise SystemExit
    assert rng_state() == state
    torch.rand(3, generator=two)
    assert state.diff(rng_state()) == ("torch cuda:1",)
    state.restore()
    assert torch.equal(two.get_state(), kept)


def test_no_accelerator_is_started(monkeypatch):
    """A build with CUDA: asking for all states would start every device, which a forked worker does not survive."""

    def start(*_):
        raise AssertionError("CUDA was started")

    for module, name in (
        (torch.cuda, "_lazy_init"),
        (torch.cuda, "init"),
        (torch.cuda, "get_rng_state_all"),
        (torch.cuda, "get_rng_state"),
        (torch.cuda, "is_available"),
        (torch.cuda, "device_count"),
    ):
        monkeypatch.setattr(module, name, start)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with isolated(7):
        seed_all(8, rank=1)
    rng_state().restore()
    assert Keyed([5, 6], 1).at(0)[1] == 6


def seeds_of_cuda_when_it_starts(monkeypatch):
    """Return what two devices would draw, were CUDA to start now; CPU generators stand for theirs."""
    devices = TwoDevices()
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "default_generators", devices.default_generators)
        patch.setattr(torch.cuda.random, "device_count", lambda: 2)
        for call in torch.cuda._lazy_seed_tracker.get_calls():
            if call:
                call[0]()
    return [generator.initial_seed() for generator in devices.default_generators]


def test_cuda_is_seeded_when_it_starts(monkeypatch):
    """Fails if another version of torch keeps what waits for CUDA in another way; then it is as slow as torch's own."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    report = seed_all(7)
    assert report.bits["torch accelerators"] == 64
    first = seeds_of_cuda_when_it_starts(monkeypatch)
    seed_all(8)
    assert first[0] == first[1] != seeds_of_cuda_when_it_starts(monkeypatch)[0]
    with isolated(9):
        inside = seeds_of_cuda_when_it_starts(monkeypatch)
    seed_all(9)
    assert seeds_of_cuda_when_it_starts(monkeypatch) == inside
    devices = TwoDevices()
    monkeypatch.setattr(torch.cuda, "is_initialized", devices.is_initialized)
    monkeypatch.setattr(torch.cuda, "default_generators", devices.default_generators)
    seed_all(7)
    assert [generator.initial_seed() for generator in devices.default_generators] == first


def test_what_waits_for_cuda_is_left_as_it_was(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    torch.manual_seed(1234)
    with isolated(7):
        assert seeds_of_cuda_when_it_starts(monkeypatch) != [1234, 1234]
    assert seeds_of_cuda_when_it_starts(monkeypatch) == [1234, 1234]


def test_a_torch_that_is_not_as_we_know_it_is_seeded_by_itself(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    seed_all(7)
    expected = seeds_of_cuda_when_it_starts(monkeypatch), float(torch.rand(()))
    kept = torch.cuda._lazy_seed_tracker
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "_lazy_seed_tracker", None)
        called = []
        patch.setattr(torch, "manual_seed", called.append)
        seed_all(7)
    assert (called, float(torch.rand(()))) == ([expected[0][0]], expected[1])
    assert torch.cuda._lazy_seed_tracker is kept


def test_deterministic_exports_nothing_that_only_slows_down():
    """Another library exports CUDA_LAUNCH_BLOCKING=1 to all children, which has nothing to do with it."""
    torch.use_deterministic_algorithms(False)  # torch itself sets a variable the first time
    before = dict(os.environ)
    with deterministic():
        changed = {key for key in os.environ if os.environ[key] != before.get(key)}
        assert changed <= {"CUBLAS_WORKSPACE_CONFIG"}
    assert dict(os.environ) == before


def test_a_hash_seed_set_inside_the_process_does_not_count():
    code = (
        "import os; os.environ['PYTHONHASHSEED'] = '0'\n"
        "from mlkit.repro import audit\n"
        "print('hash-seed' in {finding.code for finding in audit()})"
    )
    for given, expected in ((None, "True"), ("5", "False"), ("0", "False")):
        environment = {} if given is None else {"PYTHONHASHSEED": given}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert done.stdout.strip() == expected, done.stderr


@pytest.mark.parametrize("cuda", [None, "13.0"])
def test_seeding_does_not_write_down_the_stack(monkeypatch, cuda):
    """`torch.manual_seed` formats the whole Python stack, in case CUDA will refuse later: 800 us at a depth of 100."""
    monkeypatch.setattr(torch.version, "cuda", cuda)
    walked = []
    monkeypatch.setattr(traceback, "format_stack", lambda *_: walked.append("all of it") or [])
    torch.manual_seed(1)
    assert walked
    walked.clear()
    seed_all(1)
    with isolated(2):
        Keyed([1], 1).at(0)[0]
    assert not walked


def test_a_workspace_that_is_set_too_late_is_told(monkeypatch):
    """cuBLAS reads its variable when CUDA starts; to set it later, as others do, changes nothing."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert "cublas-workspace" in {finding.code for finding in audit()}
    with deterministic() as findings:
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert "cublas-workspace" not in {finding.code for finding in findings}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with deterministic() as findings:
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert "before CUDA is used" in str([f for f in findings if f.code == "cublas-workspace"])


def test_what_is_named_by_a_hash_differs_although_the_hash_seed_is_fixed():
    """Before Python 3.12 `hash(None)` is an address, so that a key made with `hash` is another one in each process."""
    code = (
        "from mlkit.repro import Seeds, fingerprint\n"
        "print(hash(('data', None)))\n"
        "print(fingerprint({None: 1, 'a': {None, 2}, (None, 'b'): None}), (Seeds(1) / 'None').int())"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for _ in range(3)
    ]
    assert len({ours for _, ours in printed}) == 1
    addresses = Path("/proc/sys/kernel/randomize_va_space")
    if sys.version_info < (3, 12) and addresses.exists() and addresses.read_text().strip() != "0":
        assert len({naive for naive, _ in printed}) > 1


def test_no_rank_or_worker_is_too_high_for_its_arithmetic():
    """A sum of a seed of 32 bits and a rank runs past 2**32, where NumPy refuses it, or comes round to another's."""

    def naive(seed, worker, rank, workers):
        np.random.seed(seed % 2**32 + worker + workers * rank)

    with pytest.raises(ValueError, match=r"2\*\*32 - 1"):
        naive(2**32 - 3, 1, 1, 4)
    drawn = []
    for rank in (0, 1, 2**32, 2**63 - 1):
        seed_all(2**128 - 1, rank=rank)
        drawn.append(float(np.random.random()))
        init = loader_kwargs(Seeds(2**128 - 1) / rank)["worker_init_fn"]
        for worker in (0, 1, 2**31):
            torch.default_generator.manual_seed(2**64 - 1)  # as a worker finds it
            init(worker)
            drawn.append(float(np.random.random()))
    assert len(set(drawn)) == 16


def test_a_seed_that_comes_after_the_state_undoes_it():
    """The usual order of a resumed script, the state and then the seed, starts all streams over.

    What is named by step or item does not depend on that order.
    """
    seed_all(7)
    first = float(torch.rand(()))
    state, data = rng_state(), Keyed(Rows(), 7).at(3)
    expected, item = float(torch.rand(())), (data[2], (Seeds(7) / 5).numpy().random())
    state.restore()
    seed_all(7)
    assert float(torch.rand(())) == first != expected
    assert (data[2], (Seeds(7) / 5).numpy().random()) == item
    state.restore()
    assert float(torch.rand(())) == expected


class Rows:
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return float(np.random.random())


def seed_the_worker(worker):
    np.random.seed(42 + worker)


def test_workers_seeded_by_their_number_repeat_every_epoch():
    def two_epochs(data, **options):
        loader = torch.utils.data.DataLoader(data, batch_size=4, num_workers=2, **options)
        return [torch.cat(list(loader)).tolist() for _ in range(2)]

    naive = two_epochs(Rows(), worker_init_fn=seed_the_worker)
    assert naive[0] == naive[1]
    for ours in (
        two_epochs(Keyed(Rows(), 1), sampler=KeyedSampler(8, 2)),
        two_epochs(Rows(), **loader_kwargs(3)),
    ):
        assert len({*ours[0], *ours[1]}) == 16


def test_ranks_that_each_seed_their_sampler_do_not_share_the_epoch():
    naive = [
        torch.randperm(40, generator=torch.Generator().manual_seed(7 + rank)).tolist()[rank::4]
        for rank in range(4)
    ]
    assert len({index for share in naive for index in share}) < 40
    ours = [list(KeyedSampler(40, 7, rank=rank, world_size=4)) for rank in range(4)]
    assert sorted(index for share in ours for index in share) == list(range(40))


def test_a_run_that_is_restarted_every_epoch_sees_new_orders():
    """Seeded alike at each start, a shuffling loader gives every epoch of a preempted run one order for ever."""

    def naive():
        seed_by_hand(7)
        loader = torch.utils.data.DataLoader(range(20), batch_size=20, shuffle=True)
        return tuple(next(iter(loader)).tolist())

    assert len({naive() for _ in range(4)}) == 1
    orders, state = set(), {"epoch": 0, "consumed": 0}
    for _ in range(4):
        seed_all(7)
        sampler = KeyedSampler(20, 7)
        sampler.load_state_dict(state)
        orders.add(tuple(sampler))
        sampler.advance(20)
        state = sampler.state_dict()
    whole = KeyedSampler(20, 7)
    assert orders == {tuple(whole) for _ in range(4)}


def test_seeding_switches_nothing():
    """Another library's seed function turns cuDNN's switches as a side effect."""

    def switches():
        return (
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.are_deterministic_algorithms_enabled(),
            torch.get_num_threads(),
            dict(os.environ),
        )

    before = switches()
    seed_all(7)
    with isolated(8):
        rng_state().restore()
    assert switches() == before


def test_normal_draws_of_torch_depend_on_the_processors_instructions_and_a_manifest_says_which(
    tmp_path,
):
    code = """
        import sys, torch
        from mlkit.repro import Manifest
        torch.manual_seed(0)
        print(torch.randn(64).numpy().tobytes().hex())
        Manifest.capture().save(sys.argv[1])
    """
    drawn, manifests = set(), []
    for capability in ("default", "avx2"):
        path = tmp_path / f"{capability}.json"
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), path],
            env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        drawn.add(done.stdout)
        manifests.append(Manifest.load(path))
    if len(drawn) == 1:
        pytest.skip("this processor has no other instructions")
    assert any("cpu_capability" in str(change) for change in manifests[0].diff(manifests[1]))


def test_memory_that_is_not_filled_by_choice_stays_so():
    naive = torch.are_deterministic_algorithms_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory
    try:
        with deterministic():
            assert torch.empty(64).isnan().all()  # what the switch alone makes torch pay for
            torch.utils.deterministic.fill_uninitialized_memory = False
        with deterministic():
            assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fills
    assert torch.are_deterministic_algorithms_enabled() == naive
