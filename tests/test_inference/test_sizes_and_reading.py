"""Batch sizes that are found out, rows that are read ahead, errors of the rows' own iterator, the bar."""

import itertools
import sys
import threading
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlkit.errors import ConfigurationError, InferenceError, RowError
from mlkit.inference import map_batches
from mlkit.testing import virtual_time


class Device:
    """A model whose batch of n rows takes `fixed + n * each` seconds of the clock in use, from *knee* rows on `slow` more."""

    def __init__(self, clock, fixed, each, *, knee=10**9, slow=0.0, room=10**9, cold=0.0):
        self.clock, self.fixed, self.each = clock, fixed, each
        self.knee, self.slow, self.room, self.cold = knee, slow, room, cold
        self.sizes = []

    def __call__(self, batch):
        if len(batch) > self.room:
            raise MemoryError
        seconds = self.fixed + len(batch) * self.each + (0 if self.sizes else self.cold)
        self.clock.sleep(seconds + max(0, len(batch) - self.knee) * self.slow)
        self.sizes.append(len(batch))
        return batch * 2


def run(model, n, **options):
    results = list(map_batches(model, np.arange(n), batch_size="auto", **options))
    assert results == [2 * i for i in range(n)]
    return model.sizes


@pytest.mark.parametrize(
    ("device", "chosen"),
    [
        ({"fixed": 0.0, "each": 0.001}, 8),  # the cost per row is flat: no use in more
        (
            {"fixed": 0.010, "each": 0.0001},
            2048,
        ),  # 100 rows of start-up cost, 5 % of it are left at 2048
        ({"fixed": 0.010, "each": 0.0001, "knee": 64, "slow": 0.001}, 64),
        ({"fixed": 0.010, "each": 0.0001, "knee": 64, "slow": 0.001, "cold": 9.0}, 64),
        ({"fixed": 1.0, "each": 0.0, "room": 100}, 64),  # memory ends it
    ],
)
def test_auto_finds_the_smallest_size_that_is_as_good_as_any(device, chosen):
    with virtual_time() as clock:
        sizes = run(Device(clock, **device), 30_000)
        assert sizes[-2] == chosen
        assert sizes[0] == 8
        if "room" not in device:
            assert sum(sizes) == 30_000  # the probe ran on rows of the job, each once


def test_auto_is_remembered_for_the_function_and_goes_with_it():
    with virtual_time() as clock:
        model = Device(clock, 0.010, 0.0001, knee=64, slow=0.001)
        run(model, 3000)
        model.sizes.clear()
        assert set(run(model, 640)) == {64}
        other = Device(clock, 0.0, 0.001)
        assert run(other, 640)[-1] == 8
        gone = weakref.ref(model)
        del model
        assert gone() is None


def test_auto_keeps_to_buckets_and_goes_on_from_a_checkpoint(tmp_path):
    with virtual_time() as clock:
        model = Device(clock, 0.010, 0.0001)
        assert set(run(model, 900, buckets=[4, 32])) == {4, 32}

        def fresh():  # nothing is remembered for a function of its own
            model = Device(clock, 0.010, 0.0001, knee=16, slow=1.0)
            job = map_batches(
                model, np.arange(900), batch_size="auto", checkpoint=tmp_path / "c", name="job"
            )
            return model.sizes, job

        sizes, job = fresh()
        got = list(itertools.islice(job, 400))
        job.close()
        assert sizes[-1] == 16
        sizes, job = fresh()
        assert list(job) == [2 * i for i in range(900)]
        assert set(sizes) <= {16, 900 % 16, 4, 12}
        assert got == [2 * i for i in range(400)]
    with pytest.raises(ConfigurationError, match="did you mean 'auto'"):
        map_batches(str, [], batch_size="auot")


def test_a_function_without_weak_references_is_asked_each_time():
    assert list(map_batches(np.negative, np.arange(50.0), batch_size="auto")) == [
        -i for i in range(50)
    ]


@given(st.integers(0, 40), st.integers(1, 7), st.integers(0, 3), st.none() | st.integers(0, 40))
def test_an_error_of_the_rows_comes_after_the_results_before_it(n, batch_size, prefetch, broken):
    def rows():
        for i in range(n):
            if i == broken:
                raise LookupError("no row")
            yield np.array([i])

    got = []
    job = map_batches(lambda b: b * 2, rows(), batch_size=batch_size, prefetch=prefetch)
    if broken is not None and broken < n:
        with pytest.raises(LookupError, match="no row"):
            _drain(job, got)
        n = broken
    else:
        _drain(job, got)
    assert got == [2 * i for i in range(n)]


def _drain(job, got):
    for row in job:
        got.append(int(row[0]))


@pytest.mark.parametrize("prefetch", [1, 2, 5])
def test_prefetch_reads_while_the_model_runs_and_no_further_than_it_says(prefetch):
    read = []
    running = threading.Event()
    far = threading.Event()

    def rows():
        for i in itertools.count():
            if i >= 4:
                running.wait(60)  # what follows can be read only while the model runs
            read.append(threading.current_thread())
            if len(read) == 4 + 4 * prefetch:
                far.set()
            yield np.array([i])

    seen = []

    def model(batch):
        running.set()
        assert far.wait(60)
        seen.append(len(read))
        return batch

    job = map_batches(model, rows(), batch_size=4, prefetch=prefetch)
    for i in range(4):
        assert next(job) == [i]
        assert len(read) <= 4 + 4 * prefetch
    job.close()
    assert seen[0] == 4 + 4 * prefetch
    assert threading.current_thread() not in read
    assert not any(thread.is_alive() for thread in read)


def test_prefetch_sees_the_context_of_its_caller_and_a_bad_row_in_its_place():
    from contextvars import ContextVar

    variable = ContextVar("variable")
    variable.set(3)
    got = list(
        map_batches(
            lambda b: [1 // (one - 5) for one in b.tolist()],
            (variable.get() + i for i in range(6)),
            prefetch=1,
            batch_size=4,
            on_error="return",
        )
    )
    assert [isinstance(one, RowError) for one in got] == [False, False, True, False, False, False]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_prefetch_does_not_hang_when_the_iterator_ends_its_thread():
    def rows():
        yield 1
        raise SystemExit

    with pytest.raises(InferenceError, match="its thread ended"):
        list(map_batches(lambda b: b, rows(), prefetch=2))


def test_wrong_prefetch_is_refused():
    for wrong in (-1, True, 1.0, "1"):
        with pytest.raises(ConfigurationError, match="prefetch"):
            map_batches(str, [], prefetch=wrong)


class Terminal:
    """A standard error that is a terminal, or not."""

    def __init__(self, tty):
        self.tty, self.text, self.encoding = tty, "", "utf-8"

    def isatty(self):
        return self.tty

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.mark.parametrize("tty", [False, True])
def test_a_terminal_has_a_bar_unless_told_otherwise(monkeypatch, tty):
    pytest.importorskip("tqdm")
    monkeypatch.setattr("mlkit.inference._offline.progress._QUICK", 0)
    screen = Terminal(tty)
    monkeypatch.setattr(sys, "stderr", screen)
    list(map_batches(lambda b: b, range(5), progress=False))
    assert screen.text == ""
    list(map_batches(lambda b: b, range(5), name="job"))
    assert ("job: 100%" in screen.text and "5/5" in screen.text) is tty


def test_no_bar_without_tqdm_for_quick_jobs_or_without_a_standard_error(monkeypatch):
    screen = Terminal(tty=True)
    monkeypatch.setattr(sys, "stderr", screen)
    list(map_batches(lambda b: b, range(5)))  # over before anybody would read it
    monkeypatch.setattr("mlkit.inference._offline.progress._QUICK", 0)
    monkeypatch.setattr("mlkit.inference._offline.progress.installed", lambda _: False)
    list(map_batches(lambda b: b, range(5)))
    assert screen.text == ""
    monkeypatch.setattr(sys, "stderr", None)
    assert list(map_batches(lambda b: b, range(5))) == list(range(5))


def test_auto_and_prefetch_together_on_a_module():
    net = torch.nn.Linear(2, 1).eval()
    rows = torch.randn(20, 2)
    got = list(map_batches(net, rows, batch_size="auto", prefetch=2))
    assert torch.allclose(torch.stack(got), net(rows))
