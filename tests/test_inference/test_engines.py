"""`map_batches(engine=)` with threads and processes for workers: what does not need a cluster to be seen."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import cloudpickle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkit.errors import (
    ConfigurationError,
    DegradedWarning,
    EngineError,
    OutputShapeError,
    RowError,
)
from mlkit.inference import Loaded, map_batches
from mlkit.testing import EngineContract, record_events


class Threads:
    """An engine whose workers are threads; what they run is pickled for each of them."""

    name = "threads"

    def __init__(self, n=2, threads=None):
        self.n, self.threads = n, threads
        self.sessions = []

    def check(self):
        pass

    dumps = staticmethod(cloudpickle.dumps)

    def open(self, work):
        self.sessions.append(Session(pickle.loads(pickle.dumps(work)), self.n, self.threads))
        return self.sessions[-1]

    def dataset(self, work, rows):
        return NotImplemented


class Session:
    def __init__(self, work, n, threads):
        self.work, self.n = partial(work, threads=threads), n
        self.pool = ThreadPoolExecutor(n)
        self.n_tasks = self.n_under_way = self.most = 0
        self.closed = False

    def slots(self):
        return self.n

    def submit(self, task):
        assert not self.closed
        self.n_tasks += 1
        self.n_under_way += 1
        self.most = max(self.most, self.n_under_way)
        future = self.pool.submit(self.work, task)

        def answer():
            self.n_under_way -= 1
            return future.result()

        return answer

    def close(self):
        self.closed = True
        self.pool.shutdown(cancel_futures=True)


class ByNumber:
    """A dataset that is asked for its rows by number, whether or not it has as many."""

    def __len__(self):
        return 100

    def __getitem__(self, place):
        return np.array([place, 1.0])


def strict(bad, batch):
    if any(row in bad for row in batch):
        raise ArithmeticError("bad")
    return batch * 2


class TestThreads(EngineContract):
    def make_engine(self):
        return Threads()


class Careless(Threads):
    """Breaks one law or another."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def open(self, work):
        session = super().open(work)
        submit, close, waiting = session.submit, session.close, []

        def swapped(task):
            waiting.append(submit(task))
            return lambda: waiting.pop()()

        def once():
            assert not session.closed, "closed again"
            close()

        def forgetful(task):
            if session.n_tasks % 5 == 4:
                return submit(pickle.dumps((0, [], b"")))
            return submit(task)

        if self.fault == "swaps answers":
            session.submit = swapped
        elif self.fault == "loses rows":
            session.submit = forgetful
        elif self.fault == "closes once":
            session.close = once
        elif self.fault == "has no slots":
            session.slots = lambda: 0
        return session


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("swaps answers", "test_results_are_those_of_this_process"),
        ("loses rows", "test_results_are_those_of_this_process"),
        ("closes once", "test_answers_may_be_asked_for_in_any_order"),
        ("has no slots", "test_answers_may_be_asked_for_in_any_order"),
    ],
)
def test_the_contract_bites(fault, law, tmp_path):
    class Suite(EngineContract):
        def make_engine(self):
            return Careless(fault)

    arguments = (tmp_path,) if "results" in law else ()
    with pytest.raises((AssertionError, IndexError)):
        getattr(Suite(), law)(*arguments)


def told(results):
    """Return *results* as values that can be compared."""
    return [
        (one.index, str(one), type(one.__cause__)) if isinstance(one, RowError) else one
        for one in results
    ]


@given(
    n=st.integers(0, 300),
    batch_size=st.integers(1, 40),
    bad=st.sets(st.integers(0, 299), max_size=5),
    on_error=st.sampled_from(["skip", "return"]),
    others=st.sets(st.integers(0, 299), max_size=3),
)
def test_results_are_those_without_an_engine(n, batch_size, bad, on_error, others):
    # *others* differ in shape from the majority of the first batch, unless they are its majority.
    rows = [np.full(1 + (i in others), i) for i in range(n)]

    def model(batch):
        if any(int(row[0]) in bad for row in batch):
            raise ArithmeticError(f"{sorted(bad)}")
        return batch[:, 0] * 2

    options = {"batch_size": batch_size, "on_error": on_error}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegradedWarning)
        local = told(map_batches(model, rows, **options))
        remote = told(map_batches(model, iter(rows), **options, engine=Threads()))
    assert remote == local


def note_batch(folder, batch):
    (folder / f"{int(batch[0])}-{len(batch)}").touch()
    return batch


def test_batches_are_those_without_an_engine(tmp_path):
    (local := tmp_path / "local").mkdir()
    (remote := tmp_path / "remote").mkdir()
    list(map_batches(partial(note_batch, local), range(1_003), batch_size=7))
    list(map_batches(partial(note_batch, remote), range(1_003), batch_size=7, engine=Threads()))
    assert {one.name for one in local.iterdir()} == {one.name for one in remote.iterdir()}


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": "auto"},
        {"batch_size": 16, "buckets": iter([4, 16])},
        {"pad": 0, "window": 64, "widths": iter([8, 64])},
        {"pad": 0, "batch_size": 8, "exact": True},
        {"pad": 0, "length": len},
    ],
)
def test_batches_are_planned_in_the_workers(options):
    rows = [np.arange(1.0 + (i * 7) % 13) for i in range(700)]

    def model(batch):
        if isinstance(batch, np.ndarray):
            return batch
        return (batch.values * batch.mask).sum(axis=1)

    if "pad" not in options:
        rows = list(range(700))
        wanted = rows
    else:
        wanted = [float(row.sum()) for row in rows]
    assert [float(one) for one in map_batches(model, rows, **options, engine=Threads())] == wanted


refused = []


def small_device(batch):
    if len(batch) > 4:
        refused.append(len(batch))
        raise MemoryError
    return batch


def test_what_memory_allowed_is_learned_once_by_a_worker():
    refused.clear()
    results = map_batches(small_device, range(200), batch_size=16, engine=Threads(1))
    assert list(results) == list(range(200))
    assert refused[:2] == [16, 8]
    assert len(refused) < 8  # a larger size is tried again now and then, as without an engine


def test_a_model_that_never_works_is_found_out_by_its_first_batch():
    engine = Threads()
    with pytest.raises(RowError, match="row 0: ZeroDivisionError"):
        list(map_batches(lambda _: 1 // 0, range(1000), batch_size=4, engine=engine))
    assert engine.sessions[0].n_tasks == 1
    with pytest.warns(DegradedWarning, match="all 4 rows of the first batch"):
        list(map_batches(lambda _: 1 // 0, range(9), batch_size=4, on_error="skip", engine=engine))
    assert all(session.closed for session in engine.sessions)


def test_a_few_tasks_are_under_way_and_no_more():
    engine = Threads(3)
    results = map_batches(np.negative, range(3_000), batch_size=8, engine=engine)
    assert next(results) == 0
    session = engine.sessions[0]
    assert session.n_tasks == 1
    list(results)
    assert session.most == 6
    assert session.closed


def test_one_thread_at_a_time_runs_the_model_and_one_loads_it(tmp_path):
    def load():
        (tmp_path / str(len(list(tmp_path.iterdir())))).touch()
        busy = []

        def model(batch):
            busy.append(1)
            assert len(busy) == 1
            result = batch * 2
            busy.pop()
            return result

        return model

    results = map_batches(Loaded(load), range(2_000), batch_size=4, engine=Threads(4))
    assert sum(int(one) for one in results) == 2_000 * 1_999
    assert len(list(tmp_path.iterdir())) == 1


def test_a_module_runs_with_the_threads_of_its_worker():
    import torch

    class Threaded(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return x * self.weight + torch.get_num_threads()

    rows = list(np.arange(40, dtype=np.float32))
    model = Threaded().eval()
    ours = torch.get_num_threads()
    results = list(map_batches(model, rows, batch_size=8, engine=Threads(threads=3)))
    assert torch.get_num_threads() == ours
    assert [type(result) for result in results] == [np.float32] * 40
    assert [float(result) for result in results] == [2.0 * i + 3 for i in range(40)]
    with pytest.raises(ConfigurationError, match="evaluation mode"):
        map_batches(model.train(), rows, engine=Threads())


def test_an_estimator_is_pickled_with_its_method():
    linear = pytest.importorskip("sklearn.linear_model")
    x = np.arange(20.0).reshape(10, 2)
    model = linear.LinearRegression().fit(x, x.sum(axis=1))
    for fn in (model.predict, Loaded(lambda: model.predict)):
        results = list(map_batches(fn, list(x), batch_size=4, engine=Threads()))
        assert np.allclose(results, x.sum(axis=1))


def test_what_the_rows_raise_comes_after_the_results_of_those_before():
    def rows():
        yield from range(100)
        raise OSError("the disk is gone")

    results = map_batches(np.negative, rows(), batch_size=8, engine=Threads())
    got = []
    with pytest.raises(OSError, match="the disk is gone"):
        got.extend(results)
    assert got == [-i for i in range(100)]


def test_a_wrong_number_of_outputs_names_the_rows():
    def model(batch):
        return batch[1:] if 50 in batch else batch

    results = map_batches(model, range(100), batch_size=8, on_error="skip", engine=Threads())
    got = []
    with pytest.raises(OutputShapeError, match="among rows 48 to 55"):
        got.extend(results)
    assert got == list(range(48))


def test_progress_counts_rows():
    counts = []
    list(
        map_batches(np.negative, range(100), batch_size=8, engine=Threads(), progress=counts.append)
    )
    assert sum(counts) == 100


@pytest.mark.parametrize("first", ["here", "engine"])
@pytest.mark.parametrize("then", ["here", "engine"])
def test_a_checkpoint_is_continued_here_and_there(first, then, tmp_path):
    (tmp_path / "ran").mkdir()

    def job(where):
        return map_batches(
            partial(noted, str(tmp_path / "ran")),
            range(500),
            batch_size=8,
            on_error="return",
            checkpoint=tmp_path / "job.ckpt",
            engine=Threads() if where == "engine" else None,
            name="job",
        )

    killed = job(first)
    for _ in range(35):
        next(killed)
    killed.close()
    whole = told(job(then))
    assert [one if isinstance(one, tuple) else int(one) for one in whole] == [
        (77, "row 77: ArithmeticError: bad", ArithmeticError) if i == 77 else -i for i in range(500)
    ]
    n_ran = len(list((tmp_path / "ran").iterdir()))
    assert [one[:2] if isinstance(one, tuple) else one for one in told(job("engine"))] == [
        one[:2] if isinstance(one, tuple) else one for one in whole
    ]
    assert len(list((tmp_path / "ran").iterdir())) == n_ran


KILLED = """
import os, pickle, signal, sys
import numpy as np
from concurrent.futures import ThreadPoolExecutor
from mlkit.inference import map_batches

class Session:
    def __init__(self, work):
        self.work, self.pool = work, ThreadPoolExecutor(2)
    def slots(self):
        return 2
    def submit(self, task):
        return self.pool.submit(self.work, task).result
    def close(self):
        pass

class Engine:
    name, dumps = "threads", staticmethod(pickle.dumps)
    def check(self):
        pass
    def open(self, work):
        return Session(work)
    def dataset(self, work, rows):
        return NotImplemented

results = map_batches(
    np.negative, range(5_000), batch_size=8, engine=Engine(), checkpoint=sys.argv[1], name="job"
)
for place, _ in enumerate(results):
    if place == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("place", [0, 700])
def test_a_driver_that_is_killed_goes_on_where_it_was(place, tmp_path):
    path = tmp_path / "job.ckpt"
    done = subprocess.run([sys.executable, "-c", KILLED, path, str(place)], check=False)
    assert done.returncode == -signal.SIGKILL
    with record_events("inference.job") as events:
        results = list(
            map_batches(
                np.negative,
                range(5_000),
                batch_size=8,
                engine=Threads(),
                checkpoint=path,
                name="job",
            )
        )
    assert results == [-i for i in range(5_000)]
    assert place < events[0].fields["rows"] < 5_000


def noted(folder, batch):
    import os
    from pathlib import Path

    Path(folder, os.urandom(6).hex()).touch()
    if 77 in batch:
        raise ArithmeticError("bad")
    return np.negative(batch)


class Holder:
    def __init__(self, part):
        self.part = part

    def __call__(self, batch):
        return batch


def test_what_cannot_be_pickled_is_named_with_its_place():
    lock, engine = threading.Lock(), Threads()
    cases = [
        (lambda batch: lock and batch, r"fn -> lock cannot"),
        (Holder({"deep": [1, lock]}), r"fn\.part\['deep'\]\[1\] cannot"),
        (partial(strict, lock), r"fn\.args\[0\] cannot"),
        (Holder(lock).__call__, r"fn\.part cannot"),
        (Loaded(partial(strict, lock)), r"fn\.args\[0\] cannot"),
    ]
    for model, place in cases:
        with pytest.raises(ConfigurationError, match=place) as caught:
            map_batches(model, range(3), engine=engine)
        assert "pass Loaded(make)" in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"\['collate'\] -> lock cannot"):
        map_batches(np.negative, range(3), collate=lambda rows: lock and rows, engine=engine)
    with pytest.raises(ConfigurationError, match="row 20 cannot"):
        list(map_batches(list, [*"a" * 20, lock], batch_size=8, engine=engine))
    assert len(engine.sessions) == 1


def test_a_result_that_cannot_be_sent_is_named():
    def model(batch):
        return [threading.Lock() if row == 3 else row for row in batch]

    with pytest.raises(
        EngineError, match=r"for rows 0 to 7, .* result 3 of these, a lock"
    ) as caught:
        list(map_batches(model, range(8), batch_size=8, engine=Threads()))
    assert isinstance(caught.value.__cause__, TypeError)


def test_wrong_arguments_are_refused_at_the_call():
    engine = Threads()
    for wrong in ({"batch_size": 0}, {"buckets": [0]}, {"on_error": "skp"}, {"isolate": 1}):
        with pytest.raises(ConfigurationError):
            map_batches(np.negative, range(3), engine=engine, **wrong)
    with pytest.raises(ConfigurationError, match="an iterable of rows"):
        map_batches(np.negative, 3, engine=engine)
    with pytest.raises(ConfigurationError, match="an engine"):
        map_batches(np.negative, range(3), engine="dask")
    with pytest.raises(ConfigurationError, match="returns the model"):
        Loaded(3)
    assert not engine.sessions


def test_loaded_works_without_an_engine_too():
    made = []

    def make():
        made.append(1)
        return np.negative

    assert list(map_batches(Loaded(make), range(100), batch_size=8)) == [-i for i in range(100)]
    assert made == [1]
    assert repr(Loaded(partial(make))).startswith("Loaded(test_loaded_works")
    with pytest.raises(ConfigurationError, match="a callable model"):
        map_batches(Loaded(lambda: 3), range(3))


class Parts(Threads):
    """An engine whose datasets are lists of lists."""

    def dataset(self, work, rows):
        if not isinstance(rows, list):
            return NotImplemented
        runs = [work.partition(i) for i in range(len(rows))]
        return [run(part[:3]) + run(part[3:]) for run, part in zip(runs, rows, strict=True)]


def test_parts_of_a_dataset_count_their_own_rows():
    def model(batch):
        if (batch < 0).any():
            raise ArithmeticError("negative")
        return batch * 2

    one, two = (
        [np.float64(i) for i in range(5)],
        [np.zeros(2), np.zeros(2), np.ones(2), -np.ones(2)],
    )
    first, second = map_batches(model, [one, two], on_error="return", engine=Parts())
    assert first == [0, 2, 4, 6, 8]
    assert [result.tolist() for result in second[:3]] == [[0, 0], [0, 0], [2, 2]]
    assert (second[3].index, second[3].partition) == (3, 1)
    assert isinstance(second[3].__cause__, ArithmeticError)
    # What rows look like is settled by the first batch of each part.
    (mixed,) = map_batches(model, [[*one, np.zeros(2)]], on_error="return", engine=Parts())
    assert "row 5 of partition 0: CollateError" in str(mixed[5])
    with pytest.raises(RowError, match="row 3 of partition 1: ArithmeticError: negative"):
        map_batches(model, [one, two], engine=Parts())
    with pytest.raises(EngineError, match="loading the model failed"):
        map_batches(Loaded(lambda: 1 // 0), [one], engine=Parts())
    with pytest.raises(OutputShapeError):
        map_batches(lambda batch: batch[1:], [one], engine=Parts())


def same(one, other):
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if type(one).__module__ == "torch":
        return one.dtype == other.dtype and one.shape == other.shape and one.equal(other)
    if isinstance(one, (np.ndarray, np.generic)):
        return (
            one.dtype == other.dtype
            and one.tobytes() == other.tobytes()
            and one.shape == other.shape
        )
    return one == other


def _leaves():
    import torch

    kinds = st.sampled_from(["f4", "i8", "?", "M8[s]", ">f4", "O", "U3", "c8"])
    shapes = st.sampled_from([(), (2,), (1, 3), (0,)])
    arrays = st.builds(lambda kind, shape: np.zeros(shape, kind), kinds, shapes)
    scalars = st.builds(lambda kind: np.zeros(1, kind)[0], kinds)
    tensors = st.builds(
        lambda kind, shape: torch.ones(shape, dtype=kind),
        st.sampled_from([torch.float32, torch.int64, torch.bool, torch.bfloat16]),
        shapes,
    )
    return arrays | scalars | tensors | st.integers() | st.text(max_size=3) | st.none()


@given(st.data())
def test_packing_changes_nothing(data):
    from mlkit.inference._engines.packing import packed, unpacked

    leaves = _leaves()
    row = leaves | st.dictionaries(st.sampled_from("abc"), leaves)
    alike = st.builds(lambda one, n: [one] * n, row, st.integers(0, 4))
    # NumPy's own pickles are not exact: an array of one big-endian number comes back in the native order.
    values = pickle.loads(pickle.dumps(data.draw(alike | st.lists(row, max_size=4))))
    back = unpacked(pickle.loads(pickle.dumps(packed(values))))
    assert [type(one) for one in back] == [type(one) for one in values]
    assert all(same(one, other) for one, other in zip(values, back, strict=True))


def test_columns_of_results():
    from mlkit.inference._engines.tables import added

    bad = RowError(1, ValueError("x"))
    assert added([bad, {"a": 1}, bad, {"a": 2}], "return") == (
        None,
        {"a": [None, 1, None, 2], "error": [str(bad), None, str(bad), None]},
    )
    assert added([bad, {"a": 1}], "skip") == ([1], {"a": [1]})
    assert added([3, 4], "raise") == (None, {"result": [3, 4]})
    assert added([bad], "return", ["a"]) == (None, {"a": [None], "error": [str(bad)]})
    for wrong in ({"b": 1}, {"a": 1, "b": 2}, 3):
        with pytest.raises(ConfigurationError, match="results with the columns"):
            added([wrong], "raise", ["a"])


def test_a_dataset_that_is_read_by_number_is_read_here(tmp_path):
    def run(**options):
        return map_batches(lambda batch: batch.sum(1), ByNumber(), batch_size=8, **options)

    truth = list(run())
    assert list(run(engine=Threads())) == truth == [place + 1.0 for place in range(100)]
    stopped = run(engine=Threads(), checkpoint=tmp_path / "job")
    assert next(stopped) == 1.0
    stopped.close()
    told = []
    assert list(run(engine=Threads(), checkpoint=tmp_path / "job", progress=told.append)) == truth
    assert sum(told) == 100
