"""Precision, compiling, several devices, batches that are made ahead; and what only a CUDA device can show."""

import asyncio
import gc
import threading
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlkit.errors import ConfigurationError, OutputShapeError, RowError
from mlkit.inference import Batcher, map_batches
from mlkit.inference._batch.memory import release

torch.set_num_threads(1)

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: not run")


@pytest.fixture
def network():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)]
    return torch.nn.Sequential(*layers).eval()


def features(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 8), dtype=np.float32)


# --- precision


@pytest.mark.parametrize("autocast", [True, "bfloat16", torch.bfloat16])
def test_autocast_runs_in_half_precision_and_answers_in_float32(network, autocast):
    rows = features(10)
    full = np.stack(list(map_batches(network, rows)))
    half = np.stack(list(map_batches(network, rows, autocast=autocast)))
    assert half.dtype == np.float32
    assert np.allclose(half, full, rtol=0.05, atol=0.05)
    assert not np.array_equal(half, full)
    tensors = list(map_batches(network, torch.from_numpy(rows), autocast=autocast))
    assert tensors[0].dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")  # nothing of it stays


def test_autocast_is_for_plain_functions_of_tensors_too():
    weight = torch.randn(8, 3)
    got = list(map_batches(lambda b: b @ weight, torch.ones(4, 8), autocast=True))
    assert got[0].dtype == torch.bfloat16


def test_a_batcher_casts_in_the_thread_that_runs_the_model(network):
    rows = features(10)
    full = np.stack(list(map_batches(network, rows)))
    with Batcher(network, autocast="bfloat16") as batcher:
        half = np.stack([batcher.call(row) for row in rows])
    assert half.dtype == np.float32
    assert np.allclose(half, full, rtol=0.05, atol=0.05)
    assert not np.array_equal(half, full)

    async def model(batch):
        await asyncio.sleep(0)
        return network(batch)

    with Batcher(model, autocast="bfloat16", device="cpu") as batcher:
        assert np.array_equal(np.stack([batcher.call(row) for row in rows]), half)


# --- compiling


def test_a_module_is_compiled_once_and_the_compiled_one_runs(network, monkeypatch):
    """Stands in for torch.compile, which takes ten seconds to begin with; with its backend "eager" the same was seen."""
    made, ran = [], []

    def compiled(fn, **options):
        made.append((fn, options))

        def run(batch):
            ran.append(torch.is_inference_mode_enabled())
            return fn(batch)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    rows = features(40)
    got = list(map_batches(network, rows, batch_size=8, compile={"dynamic": False}))
    assert np.array_equal(got, list(map_batches(network, rows, batch_size=8)))
    assert made == [(network, {"dynamic": False})]
    assert ran == [True] * 5

    with Batcher(network, compile={"dynamic": False}) as batcher:
        assert np.allclose([batcher.call(row) for row in rows[:3]], got[:3])
    assert made == [(network, {"dynamic": False})] * 2
    assert ran == [True] * 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"autocast": "float99"}, "autocast"),
        ({"autocast": torch.float64}, "autocast"),
        ({"compile": 1}, "compile"),
        ({"graphs": 1}, "graphs"),
        ({"graphs": True}, "False where the device is not CUDA"),
        ({"graphs": True, "compile": True}, "False together with compile="),
        ({"device": []}, "a device, or some devices"),
        ({"device": ["cpu", "gpu"]}, "a torch device"),
        ({"device": ["cpu", "cuda:99"]}, "a device that is there"),
        ({"device": ["cpu", "cpu"], "batch_size": "auto"}, "a number on several devices"),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(network, options, words):
    with pytest.raises(ConfigurationError, match=words):
        map_batches(network, [], **options)


def test_wrong_modes_of_a_batcher_are_refused(network):
    async def model(batch):
        return network(batch)

    with pytest.raises(ConfigurationError, match=r"Batcher\(autocast=...\)"):
        Batcher(network, autocast="float99")
    with pytest.raises(ConfigurationError, match="where the device is not CUDA"):
        Batcher(network, graphs=True)
    with pytest.raises(
        ConfigurationError, match=r"Batcher\(compile=...\).*async function: .*model"
    ):
        Batcher(model, compile=True)


def test_the_precision_is_part_of_the_job(network, tmp_path):
    from mlkit.errors import CheckpointError

    list(map_batches(network, features(4), checkpoint=tmp_path / "c"))
    with pytest.raises(CheckpointError, match=r"autocast was None and is torch\.bfloat16"):
        map_batches(network, features(4), checkpoint=tmp_path / "c", autocast="bfloat16")


# --- several devices; the CPU more than once is several, too


@given(
    st.integers(0, 70),
    st.integers(1, 9),
    st.sets(st.integers(0, 69), max_size=4),
    st.integers(1, 3),
)
def test_result_i_belongs_to_row_i_on_several_devices(n, batch_size, bad, n_devices):
    def model(batch):
        if any(int(one) in bad for one in batch):
            raise ValueError("bad")
        return batch * 10

    got = list(
        map_batches(
            model, range(n), batch_size=batch_size, device=["cpu"] * n_devices, on_error="return"
        )
    ) if not bad else _quietly(model, n, batch_size, n_devices)  # fmt: skip
    for i, one in enumerate(got):
        if i in bad:
            assert isinstance(one, RowError)
            assert one.index == i
        else:
            assert int(one) == 10 * i
    assert len(got) == n


def _quietly(model, n, batch_size, n_devices):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a first batch of bad rows only is doubted
        return list(
            map_batches(
                model,
                range(n),
                batch_size=batch_size,
                device=["cpu"] * n_devices,
                on_error="return",
            )
        )


def test_each_device_has_its_own_copy_and_its_own_thread(network):
    seen = {}
    barrier = threading.Barrier(2, timeout=60)

    class Watched(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, batch):
            first = threading.get_ident() not in seen
            seen[threading.get_ident()] = self
            if (
                first
                and len(batch) == 4
                and threading.current_thread() is not threading.main_thread()
            ):
                barrier.wait()  # both run at the same time, or this times out
            assert torch.is_inference_mode_enabled()
            return self.inner(batch)

    rows = features(64)
    got = list(map_batches(Watched().eval(), rows, batch_size=4, device=["cpu", "cpu"]))
    assert np.allclose(got, list(map_batches(network, rows)), atol=1e-6)
    workers = {ident: one for ident, one in seen.items() if ident != threading.get_ident()}
    assert len(workers) == 2
    assert len({id(one) for one in workers.values()}) == 2
    assert not [one for one in threading.enumerate() if one.name.startswith("mlkit-lane")]


def test_several_devices_with_windows_exactness_and_errors(network):
    rows = [np.ones(n % 17, np.float32) for n in range(100)]
    got = list(
        map_batches(
            lambda b: b.values.sum(1), rows, batch_size="auto", pad=0, device=["cpu", "cpu"]
        )
    )
    assert [int(one) for one in got] == [n % 17 for n in range(100)]
    x = features(50)
    one = list(map_batches(network, x, exact=True, batch_size=8))
    two = list(map_batches(network, x, exact=True, batch_size=8, device=["cpu", "cpu"]))
    assert all(map(np.array_equal, one, two))

    def breaks(batch):
        if (batch == 30).any():
            raise KeyError("thirty")
        return batch

    job = map_batches(breaks, np.arange(64), batch_size=4, device=["cpu", "cpu"])
    assert [int(next(job)) for _ in range(30)] == list(range(30))
    with pytest.raises(RowError, match="row 30: KeyError"):
        next(job)
    with pytest.raises(OutputShapeError):
        list(map_batches(lambda b: b[:1], np.arange(64), batch_size=4, device=["cpu", "cpu"]))

    def interrupted(batch):
        if (batch == 30).any():
            raise KeyboardInterrupt
        return batch

    with pytest.raises(KeyboardInterrupt):
        list(map_batches(interrupted, np.arange(64), batch_size=4, device=["cpu", "cpu"]))


# --- batches that are made ahead


def test_the_reading_thread_also_collates(network, monkeypatch):
    stacked = []
    import mlkit.inference._batch.runner as module

    plain = module.stack

    def watched(rows, *args, **options):
        stacked.append(threading.current_thread().name)
        return plain(rows, *args, **options)

    monkeypatch.setattr(module, "stack", watched)
    rows = features(40)
    got = list(map_batches(network, rows, batch_size=8, prefetch=1))
    assert stacked[1:] == ["mlkit-rows"] * (len(stacked) - 1) or "mlkit-rows" in stacked
    assert np.array_equal(got, list(map_batches(network, rows, batch_size=8)))


@given(
    st.integers(1, 60), st.integers(1, 9), st.sets(st.integers(0, 59), max_size=5), st.sets(st.integers(0, 59), max_size=3),
    st.sampled_from([None, [3, 9]]),
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::mlkit.errors.DegradedWarning")
def test_making_batches_ahead_changes_nothing(n, batch_size, bad, odd, buckets):
    odd -= {0}  # the first row is what the others must look like

    def model(batch):
        if bad.intersection(batch[:, 0].tolist()):
            raise ValueError("bad")
        return batch[:, 0] * 3

    rows = [np.zeros(3) if i in odd else np.array([i, 0]) for i in range(n)]

    def outcome(prefetch):
        got = map_batches(
            model,
            rows,
            batch_size=batch_size,
            buckets=buckets,
            prefetch=prefetch,
            on_error="return",
        )
        return [(one.index, str(one)) if isinstance(one, RowError) else int(one) for one in got]

    assert outcome(2) == outcome(0)


def test_a_batch_made_ahead_is_let_go():
    rows = [np.full(1000, i) for i in range(30)]
    alive = []

    def model(batch):
        alive.append(weakref.ref(batch))
        return batch.sum(axis=1) * 1

    job = map_batches(model, rows, batch_size=3, prefetch=1)
    for _ in range(27):
        next(job)
    gc.collect()
    assert sum(ref() is not None for ref in alive[:-1]) == 0


# --- memory


def test_nothing_of_a_failed_attempt_is_alive_when_the_cache_is_cleared(monkeypatch):
    """Stands in for a device: the cache is what `torch.cuda.empty_cache` would give back."""
    scratch = []
    alive_then = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(
        torch.cuda,
        "empty_cache",
        lambda: alive_then.append(sum(ref() is not None for ref in scratch)),
    )

    class Deep(torch.nn.Module):
        def forward(self, batch, depth=3):
            hidden = batch * 2
            cycle = [hidden]
            cycle.append(cycle)
            scratch.append(weakref.ref(batch))
            scratch.append(weakref.ref(hidden))
            if depth:
                return self.forward(hidden, depth - 1)
            if len(batch) > 5:
                try:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                except RuntimeError as error:
                    raise ValueError("wrapped") from error
            return batch

    model = Deep().eval()
    for options in ({}, {"prefetch": 1}, {"window": 64, "pad": 0}):
        scratch.clear()
        alive_then.clear()
        rows = [torch.full((3,), float(i)) for i in range(32)]
        fn = model if "pad" not in options else Unpadded(model).eval()
        got = list(map_batches(fn, rows, batch_size=16, **options))
        assert [float(one[0]) for one in got] == [8.0 * i for i in range(32)]
        assert alive_then == [0] * (1 if options.get("window") else 2)  # 16, then 8; from then on 4


class Unpadded(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, batch):
        return self.inner(batch.values)


def test_releasing_what_failed_lets_cycles_go_too(monkeypatch):
    cleared = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: cleared.append(True))
    tensor = torch.ones(3)
    ref = weakref.ref(tensor)
    cycle = [tensor]
    cycle.append(cycle)
    del tensor, cycle
    release(MemoryError())
    assert cleared == [True]
    assert ref() is None


# --- only on a CUDA device


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"prefetch": 1}, {"graphs": True, "buckets": [8]}, {"prefetch": 2, "graphs": True, "buckets": [8]}])  # fmt: skip
def test_on_cuda_results_are_those_of_the_cpu(network, options):
    rows = features(60)
    truth = np.stack(list(map_batches(network, rows, batch_size=8)))
    got = np.stack(list(map_batches(network.cuda(), rows, batch_size=8, **options)))
    assert np.allclose(got, truth, rtol=1e-3, atol=1e-4)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("prefetch", [0, 1])
def test_on_cuda_planned_rows_have_the_results_of_the_cpu(prefetch):
    rows = [torch.arange(1.0, 2 + place % 50) for place in range(2000)]
    results = map_batches(
        lambda batch: (batch.values * batch.mask).sum(1) / batch.lengths,
        rows,
        batch_size=16,
        pad=0,
        window=500,
        device="cuda",
        prefetch=prefetch,
    )
    for result, row in zip(results, rows, strict=True):
        assert result.device.type == "cpu"
        assert torch.allclose(result, row.mean())


@gpu
@pytest.mark.gpu
def test_on_cuda_a_model_that_waits_for_the_device_is_not_recorded(network):
    from mlkit.testing import record_events

    def asks(batch):
        return batch if batch.sum().item() > 1e9 else batch * 2

    with record_events("inference.graph") as events:
        got = list(map_batches(asks, features(8), batch_size=8, device="cuda", graphs=True))
    assert np.allclose(got, features(8) * 2)
    assert [event.kind for event in events] == ["inference.graph.refused"]


@gpu
@pytest.mark.gpu
def test_on_cuda_autocast_several_lanes_and_real_memory(network):
    rows = features(64)
    truth = np.stack(list(map_batches(network, rows)))
    half = np.stack(list(map_batches(network.cuda(), rows, autocast="bfloat16")))
    assert np.allclose(half, truth, rtol=0.05, atol=0.05)
    both = np.stack(list(map_batches(network, rows, batch_size=4, device=["cuda:0", "cuda:0"])))
    assert np.allclose(both, truth, rtol=1e-3, atol=1e-4)

    free, _ = torch.cuda.mem_get_info()

    def hungry(batch):
        torch.empty(len(batch) * (free // 20), dtype=torch.uint8, device="cuda")[:1] = 1
        return batch.sum(1)

    got = list(map_batches(hungry, rows, batch_size=64, device="cuda"))
    assert np.allclose(got, rows.sum(1), atol=1e-4)
