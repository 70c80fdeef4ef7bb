"""Rows of different lengths: put together by what they cost, in order again at the end."""

import itertools
import threading
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkit.errors import ConfigurationError, OutputShapeError, RowError
from mlkit.inference import map_batches
from mlkit.inference._offline.cost import Cost, Learned, best_size, fit
from mlkit.inference._offline.plan import cut, spread
from mlkit.testing import record_events, virtual_time

lengths_of_rows = st.lists(st.integers(0, 40), max_size=60)
costs = st.builds(
    Cost, *(st.sampled_from([0.0, 0.5, 3.0, 100.0]) for _ in range(2)), st.floats(0, 2), st.floats(0, 0.1)
)  # fmt: skip


def rows_of(lengths):
    return [np.arange(1, n + 1) for n in lengths]


def total(batch):
    return (batch.values * batch.mask).sum(axis=1)


# --- the plan


def price(lengths, sizes, cost):
    ends = list(itertools.accumulate(sizes))
    assert (ends or [0])[-1] == len(lengths)
    return sum(
        cost.start + n * cost.per_row(lengths[end - 1]) for n, end in zip(sizes, ends, strict=True)
    )


@given(st.lists(st.integers(0, 30), min_size=1, max_size=9).map(sorted), costs)
def test_no_partition_is_cheaper_than_the_plan(lengths, cost):
    sizes = cut(lengths, cost, max_rows=99, cap=10**9)
    every = ([len(part) for part in parts] for parts in _partitions(lengths))
    least = min(price(lengths, one, cost) for one in every)
    assert price(lengths, sizes, cost) == pytest.approx(least)


def _partitions(lengths):
    n = len(lengths)
    for cuts in itertools.product([False, True], repeat=n - 1):
        ends = [place + 1 for place, here in enumerate(cuts) if here] + [n]
        yield [lengths[a:b] for a, b in zip([0, *ends], ends, strict=False)]


@given(
    lengths_of_rows.map(sorted), costs, st.integers(1, 9), st.integers(1, 200),
    st.sampled_from([(), (1,), (2, 8), (4, 16)]),
)  # fmt: skip
def test_no_batch_exceeds_its_limits(lengths, cost, max_rows, cap, buckets):
    sizes = cut(lengths, cost, max_rows=max_rows, cap=cap, buckets=buckets)
    assert sum(sizes) == len(lengths)
    end = 0
    for n in sizes:
        end += n
        assert 1 <= n <= max(max_rows, *buckets[:1], 1)
        called = next((size for size in buckets if size >= n), n)
        if n > 1 and not buckets:
            assert n * max(lengths[end - 1], 1) <= cap
        assert called <= max(max_rows, *buckets[:1], 1)


@given(st.integers(0, 200))
def test_spread_is_a_permutation_that_begins_all_over(n):
    order = spread(n)
    assert sorted(order) == list(range(n))
    assert n < 8 or max(order[:3]) - min(order[:3]) >= n // 4


# --- what it learns


@given(
    st.sampled_from([0.0, 1e-5, 1e-2]), st.sampled_from([1e-9, 1e-6, 1e-3]), st.sampled_from([0.0, 1e-6]),
    st.integers(0, 99),
)  # fmt: skip
def test_the_fit_finds_the_cost_again_though_some_batches_were_disturbed(
    start, entry, square, seed
):
    draw = np.random.default_rng(seed)
    truth = Cost(start, 0.0, entry, square)
    seen = []
    for _ in range(60):
        n, length = int(draw.integers(1, 40)), int(draw.integers(1, 300))
        seconds = truth.start + n * truth.per_row(length)
        seen.append((n, length, seconds * (5.0 if draw.random() < 0.05 else 1.0)))
    found = fit(seen)
    for n, length in ((4, 40), (8, 100), (30, 250), (20, 20)):
        expected = truth.start + n * truth.per_row(length)
        assert found.start + n * found.per_row(length) == pytest.approx(expected, rel=0.25)


def test_a_size_from_which_on_work_takes_longer_is_found():
    cost = Cost(0.0, 0.0, 1.0, 0.0)
    flat = [(n, 100, n * 100.0) for n in (1, 2, 4, 8, 16, 32) for _ in range(4)]
    assert best_size(flat, cost) is None
    slow = [
        (n, 100, n * 100.0 * (2 if n > 8 else 1)) for n in (1, 2, 4, 8, 16, 32) for _ in range(4)
    ]
    assert 800 <= best_size(slow, cost) < 1600


class Device:
    """A model whose batches take what *cost* says of the clock in use, and which has *room* for so many entries."""

    def __init__(self, clock, cost, room=10**9, noise=0.0):
        self.clock, self.cost, self.room = clock, cost, room
        self.spent, self.shapes, self.failed = 0.0, [], 0
        self._noise, self._draw = noise, np.random.default_rng(0)

    def __call__(self, batch):
        n, width = batch.values.shape
        if n * width > self.room:
            self.failed += 1
            raise MemoryError
        seconds = self.cost.start + n * self.cost.per_row(width)
        self.spent += seconds
        self.shapes.append((n, width))
        self.clock.sleep(seconds * (1 + self._draw.exponential(self._noise) if self._noise else 1))
        return total(batch)

    def limit(self, lengths, most=2048):
        """The seconds without any filling, each row in the best batch for its length of at most *most* entries."""
        return sum(self.cost.start / max(1, most // n) + self.cost.per_row(n) for n in lengths)


def documents(n, seed=0):
    draw = np.random.default_rng(seed)
    return np.clip(np.exp(draw.normal(3.4, 1.0, n)), 1, 256).astype(int).tolist()


# As MiniLM-L6 on one core: 8 ms per call, 0.2 ms per entry.
MINILM = Cost(0.008, 0.0, 0.0002, 1e-7)


@pytest.mark.parametrize(("window", "bound"), [(None, 1.10), (128, 1.15)])
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_without_configuration_it_comes_near_the_padding_free_limit(window, bound, noise):
    lengths = documents(1024)
    with virtual_time() as clock:
        device = Device(clock, MINILM, noise=noise)
        options = {} if window is None else {"window": window}
        got = list(map_batches(device, rows_of(lengths), batch_size="auto", pad=0, **options))
    assert got == [n * (n + 1) // 2 for n in lengths]
    assert device.spent <= bound * device.limit(lengths)


@pytest.mark.parametrize(
    ("cost", "few"),
    [
        (Cost(1.0, 0.0, 1e-9, 0.0), True),  # a call costs all: as few as may be
        (Cost(0.0, 0.0, 1e-3, 0.0), False),  # only entries cost: hardly any filling
    ],
)
def test_the_plan_follows_the_model(cost, few):
    lengths = documents(4096)
    with virtual_time() as clock:
        device = Device(clock, cost)
        list(map_batches(device, rows_of(lengths), batch_size="auto", pad=0))
    entries = sum(n * width for n, width in device.shapes)
    if few:
        assert len(device.shapes) < 24
    else:
        assert entries < 1.02 * sum(lengths)


def test_what_was_learned_is_remembered_for_the_function_and_goes_with_it():
    lengths = documents(512)
    with virtual_time() as clock:
        device = Device(clock, MINILM)
        list(map_batches(device, rows_of(lengths), batch_size="auto", pad=0))
        first = device.spent
        device.spent = 0.0
        list(map_batches(device, rows_of(lengths), batch_size="auto", pad=0))
        assert device.spent < first
        gone = weakref.ref(device)
        del device
        assert gone() is None


# --- the results


@settings(max_examples=60)
@given(
    lengths_of_rows,
    st.sampled_from(["auto", 1, 3, 32]),
    st.integers(1, 70),
    st.sampled_from([None, [4, 8, 64]]),
    st.booleans(),
)
def test_result_i_belongs_to_row_i(lengths, batch_size, window, widths, tensors):
    rows = rows_of(lengths)
    if tensors:
        rows = [torch.from_numpy(row) for row in rows]
    got = map_batches(total, rows, batch_size=batch_size, window=window, widths=widths, pad=0)
    assert [int(one) for one in got] == [n * (n + 1) // 2 for n in lengths]


@given(
    lengths_of_rows.filter(bool), st.sets(st.integers(0, 59), max_size=5), st.integers(1, 70),
    st.sampled_from(["raise", "skip", "return"]),
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::mlkit.errors.DegradedWarning")
def test_a_bad_row_fails_alone_and_in_its_turn(lengths, bad, window, on_error):
    rows = [(n, place) for place, n in enumerate(lengths)]

    def model(batch):
        places = batch[1].tolist()
        if bad.intersection(places):
            raise ValueError("bad")
        return batch[1] * 10

    job = map_batches(model, rows, window=window, length=lambda row: row[0], on_error=on_error)
    got, raised = [], None
    try:
        for one in job:
            got.append(one)
    except RowError as error:
        raised = error
    here = sorted(place for place in bad if place < len(rows))
    if on_error == "raise":
        end = here[0] if here else len(rows)
        assert [int(one) for one in got] == [10 * i for i in range(end)]
        assert (raised.index if raised else None) == (here[0] if here else None)
    elif on_error == "skip":
        assert [int(one) for one in got] == [10 * i for i in range(len(rows)) if i not in bad]
    else:
        assert [i for i, one in enumerate(got) if isinstance(one, RowError)] == here
        assert [one.index for one in got if isinstance(one, RowError)] == here


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (float("nan"), "its length is nan"),
        (-3, "its length is -3"),
        (2.5, "its length is 2.5"),
        (float("inf"), "its length is inf"),
        ("7", "its length is a str"),
        (None, "its length is a NoneType|its length is None"),
    ],
)
def test_a_length_that_is_none_names_its_row(wrong, words):
    rows = [3, wrong, 5]
    got = list(
        map_batches(lambda b: b, rows, length=lambda row: row, on_error="return", collate=list)
    )
    assert (got[0], got[2]) == (3, 5)
    assert isinstance(got[1], RowError)
    assert got[1].index == 1
    assert any(word in str(got[1]) for word in words.split("|")), str(got[1])
    assert "whole number >= 0" in str(got[1])


def test_what_the_length_function_raises_is_the_rows():
    got = list(
        map_batches(lambda b: b, ["ab", 3, "c"], length=len, on_error="return", collate=list)
    )
    assert got[0] == "ab"
    assert "row 1: TypeError: object of type 'int' has no len()" in str(got[1])


def test_odd_rows_fail_whatever_batch_comes_first():
    rows = rows_of([5, 6, 7] * 10)
    rows[0] = np.zeros(0)  # floats: the shortest row of all, yet not what the others must look like
    rows[9] = "text"
    got = list(map_batches(total, rows, batch_size="auto", pad=0, on_error="return"))
    assert [i for i, one in enumerate(got) if isinstance(one, RowError)] == [0, 9]
    assert "dtype float64" in str(got[0])


def test_after_a_bad_row_nothing_behind_it_is_run():
    ran = []

    def model(batch):
        ran.extend(batch)
        raise RuntimeError("broken")

    with pytest.raises(RowError, match="row 0: RuntimeError: broken"):
        list(map_batches(model, list(range(1000)), length=lambda _: 5, batch_size=64, collate=list))
    assert len(ran) < 300


def test_a_wrong_number_of_results_is_the_functions_fault():
    with pytest.raises(OutputShapeError):
        list(
            map_batches(
                lambda b: b.values[:-1], rows_of([1, 2, 3]), pad=0, window=8, on_error="skip"
            )
        )


# --- memory


def test_a_window_is_all_that_is_read_ahead_and_nothing_stays_after_delivery():
    class Row:
        def __init__(self, n):
            self.n = n

    read, alive = [], weakref.WeakSet()

    def endless():
        for i in itertools.count():
            row = Row(i % 13)
            alive.add(row)
            read.append(i)
            yield row
            del row

    job = map_batches(
        lambda rows: [Row(row.n) for row in rows], endless(), length=lambda row: row.n, window=50, collate=list
    )  # fmt: skip
    for i in range(400):
        result = next(job)
        assert result.n == i % 13
        assert len(read) <= (i // 50 + 1) * 50
    del result
    assert len(alive) <= 2  # what all others must look like, and the one that was read last
    job.close()
    assert len(alive) == 0


def test_memory_runs_out_by_entries_not_by_rows_and_each_row_runs_once():
    """4000 short rows with 8 long ones in their middle: halving by rows would shrink the batches of the short ones."""
    lengths = [4] * 2000 + [1000] * 8 + [4] * 2000
    ran = []

    def model(batch):
        n, width = batch.values.shape
        if n * width > 5000:
            raise torch.OutOfMemoryError
        ran.extend(batch.lengths.tolist())
        return total(batch)

    with record_events("inference.") as events:
        got = list(map_batches(model, rows_of(lengths), batch_size="auto", pad=0))
    assert got == [n * (n + 1) // 2 for n in lengths]
    assert sorted(ran) == sorted(lengths)
    assert 1 <= len(events) <= 4


def test_a_larger_batch_is_tried_again_later():
    room = [2000]
    shapes = []

    def model(batch):
        n, width = batch.values.shape
        if n * width > room[0]:
            raise MemoryError
        shapes.append(n * width)
        if len(shapes) == 20:
            room[0] = 10**9
        return total(batch)

    list(map_batches(model, rows_of([10] * 60_000), batch_size="auto", pad=0, window=20_000))
    assert max(shapes) > 4000


def test_the_limit_of_memory_is_kept_and_raised_with_patience():
    learned = Learned()
    learned.ran_out(1000)
    assert learned.cap == 1000
    for _ in range(16):
        learned.fitted(10, 90)
    assert learned.cap == 2000
    learned.ran_out(1000)  # not yet
    for _ in range(31):
        learned.fitted(10, 90)
    assert learned.cap == 1000
    learned.fitted(10, 90)
    assert learned.cap == 2000


# --- the rest of map_batches


def test_a_planned_job_goes_on_from_its_checkpoint(tmp_path):
    lengths = documents(300)
    ran = []

    def model(batch):
        ran.extend(batch.lengths.tolist())
        return total(batch)

    def job(**options):
        options = {"window": 64, "pad": 0, "checkpoint": tmp_path / "c", **options}
        return map_batches(model, rows_of(lengths), **options)

    first = job()
    taken = list(itertools.islice(first, 100))
    first.close()
    assert len(ran) == 128
    assert list(job()) == [n * (n + 1) // 2 for n in lengths]
    assert len(ran) == 300
    assert taken == [n * (n + 1) // 2 for n in lengths[:100]]
    from mlkit.errors import CheckpointError

    with pytest.raises(CheckpointError, match="window was 64"):
        job(window=32)
    with pytest.raises(CheckpointError, match="widths was None"):
        job(widths=[64])
    with pytest.raises(CheckpointError, match="window was 64 and is None"):
        job(window=None)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_rows_of_padded_leaves_in_a_tree_and_a_limit_of_rows(prefetch):
    lengths = documents(200)
    seen = []

    def model(batch):
        seen.append(len(batch["id"]))
        return {"id": batch["id"], "sum": total(batch["tokens"]) + total(batch["more"][0])}

    rows = [
        {"id": str(i), "tokens": np.ones(n, int), "more": (list(range(3)),)}
        for i, n in enumerate(lengths)
    ]
    got = list(
        map_batches(
            model, rows, batch_size=16, window=100, prefetch=prefetch, pad={"tokens": 0, "more[0]": 0}
        )
    )  # fmt: skip
    assert [int(one["sum"]) for one in got] == [n + 3 for n in lengths]
    assert [one["id"] for one in got] == [str(i) for i in range(200)]
    assert 8 < max(seen) <= 16


def test_progress_is_told_of_each_batch_and_of_each_row_once(tmp_path):
    lengths = documents(300)
    told = []

    def job():
        return map_batches(
            total, rows_of(lengths), window=100, pad=0, progress=told.append, checkpoint=tmp_path / "c"
        )  # fmt: skip

    first = job()
    next(first)
    assert len(told) > 3
    assert sum(told) == 100  # the first window has run
    first.close()
    told.clear()
    assert len(list(job())) == 300
    assert sum(told) == 300
    told.clear()
    list(map_batches(total, rows_of(lengths), exact=True, pad=0, progress=told.append))
    assert sum(told) == 300
    told.clear()
    devices = ["cpu", "cpu"]
    list(
        map_batches(total, rows_of(lengths), window=50, pad=0, progress=told.append, device=devices)
    )
    assert sum(told) == 300


def test_widths_are_kept_to():
    shapes = set()

    def model(batch):
        shapes.add(batch.values.shape[1])
        return total(batch)

    lengths = documents(300)
    list(map_batches(model, rows_of(lengths), batch_size="auto", pad=0, widths=[16, 64]))
    assert shapes <= {16, 64, 96, 128, 192, 256}
    shapes.clear()
    assert list(map_batches(total, rows_of([3, 5]), pad=0, widths=[4])) == [6, 15]
    tensors = [torch.ones(n, 2) for n in (3, 5)]
    wide = list(map_batches(lambda b: b.values, tensors, pad=-1, widths=[7]))
    assert [tuple(one.shape) for one in wide] == [(7, 2), (7, 2)]
    assert wide[0][3:].eq(-1).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 0, "pad": 0}, "window"),
        ({"window": True, "pad": 0}, "window"),
        ({"window": 9}, "None without pad= or length="),
        ({"length": 3}, "length"),
        ({"widths": [0], "pad": 0}, "widths"),
        ({"widths": "16", "pad": 0}, "widths"),
        ({"widths": [], "pad": 0}, "widths"),
        ({"widths": 16, "pad": 0}, "widths"),
        ({"widths": [16]}, "None without pad="),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(options, words):
    with pytest.raises(ConfigurationError, match=words):
        map_batches(total, [], **options)


@pytest.mark.parametrize("kind", ["arrays", "tensors"])
def test_with_prefetch_a_window_s_next_batch_is_collated_while_the_model_runs(kind):
    rows = [np.arange(1, 2 + place % 40) for place in range(800)]
    if kind == "tensors":
        rows = [torch.from_numpy(row) for row in rows]
    here, threads, ahead, ran = threading.current_thread(), set(), set(), set()
    changed, seen = threading.Condition(), []

    class Row(dict):
        """Says when its leaf is asked for in another thread."""

        def __getitem__(self, key):
            if threading.current_thread() is not here:
                with changed:
                    threads.add(threading.current_thread())
                    ahead.add(int(super().__getitem__("place")))
                    changed.notify_all()
            return super().__getitem__(key)

    def model(batch):
        with changed:
            ran.update(batch["place"].tolist())
            # The last batch of a window has none after it; until enough is learned, none is made ahead.
            seen.append(changed.wait_for(lambda: bool(ahead - ran), timeout=0.02))
        return batch["x"].values.sum(axis=1)

    dicts = [Row(x=row, place=place) for place, row in enumerate(rows)]
    results = map_batches(model, dicts, batch_size=8, pad={"x": 0}, window=400, prefetch=1)
    assert [int(one) for one in results] == [int(row.sum()) for row in rows]
    assert sum(seen) > 50
    assert all(thread.name.startswith("mlkit-batches") for thread in threads)
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("on_error", ["raise", "return", "skip"])
@pytest.mark.parametrize("bad", [0, 333, 799])
def test_a_bad_row_is_found_whether_or_not_batches_are_made_ahead(on_error, bad):
    def model(batch):
        if (batch.values == 999).any():
            raise ValueError("bad")
        return batch.values.sum(axis=1)

    rows = [np.full(1 + place % 40, 999 if place == bad else 1) for place in range(800)]
    outcomes = []
    for prefetch in (0, 1):
        got = []
        try:
            for one in map_batches(
                model,
                rows,
                batch_size=8,
                pad=0,
                window=400,
                prefetch=prefetch,
                on_error=on_error,
            ):
                got.append(str(one) if isinstance(one, RowError) else int(one))
        except RowError as error:
            got.append(str(error))
        outcomes.append(got)
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0]) == {"raise": bad + 1, "return": 800, "skip": 799}[on_error]


def test_memory_that_runs_out_with_a_batch_made_ahead_costs_no_row():
    def model(batch):
        if batch.values.size > 100:
            raise MemoryError
        return batch.values.sum(axis=1)

    rows = [np.ones(1 + place % 40) for place in range(2000)]
    results = list(map_batches(model, rows, batch_size=64, pad=0, window=1000, prefetch=1))
    assert [int(one) for one in results] == [len(row) for row in rows]
