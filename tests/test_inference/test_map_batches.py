"""Batches offline."""

import gc
import itertools
import pickle
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlkit.errors import (
    CollateError,
    ConfigurationError,
    DegradedWarning,
    MissingDependencyError,
    OutputShapeError,
    RowError,
)
from mlkit.inference import Padded, map_batches
from mlkit.testing import record_events

torch.set_num_threads(1)


def double(batch):
    return batch * 2


def numbers(n):
    return [np.array([i, -i]) for i in range(n)]


def fussy(bad, calls=None):
    """Return a model that breaks on the rows whose first number is in *bad*."""

    def model(batch):
        if calls is not None:
            calls.append(batch[:, 0].tolist())
        wrong = bad.intersection(batch[:, 0].tolist())
        if wrong:
            raise ZeroDivisionError(f"cannot take {min(wrong)}")
        return batch[:, 0] * 10

    return model


@given(st.integers(0, 40), st.integers(1, 12), st.booleans())
def test_one_result_per_row_in_order(n, batch_size, buckets):
    sizes = [2, 5, 12] if buckets else None
    results = map_batches(double, numbers(n), batch_size=batch_size, buckets=sizes)
    assert [row.tolist() for row in results] == [[2 * i, -2 * i] for i in range(n)]


@given(st.integers(1, 40), st.integers(1, 16), st.sets(st.integers(0, 39), max_size=6))
def test_bad_rows_stand_alone(n, batch_size, bad):
    bad = {index for index in bad if index < n}
    calls = []
    model = fussy(bad, calls)
    returned = list(map_batches(model, numbers(n), batch_size=batch_size, on_error="return"))
    assert len(returned) == n
    for index, result in enumerate(returned):
        if index in bad:
            assert isinstance(result, RowError)
            assert result.index == index
            assert isinstance(result.__cause__, ZeroDivisionError)
        else:
            assert result == 10 * index
    batches = -(-n // batch_size)
    assert len(calls) <= batches + len(bad) * 2 * max(1, (batch_size - 1).bit_length())
    skipped = list(map_batches(model, numbers(n), batch_size=batch_size, on_error="skip"))
    assert skipped == [10 * index for index in range(n) if index not in bad]


@given(st.integers(1, 30), st.integers(1, 16), st.integers(0, 29))
def test_raise_comes_in_the_turn_of_the_bad_row(n, batch_size, bad):
    results = map_batches(fussy({bad}), numbers(n), batch_size=batch_size)
    got = []
    if bad < n:
        with pytest.raises(RowError, match=f"row {bad}: ZeroDivisionError: cannot take") as caught:
            got.extend(results)
        copy = pickle.loads(pickle.dumps(caught.value))
        assert (copy.index, copy.error_type, str(copy)) == (
            bad,
            "ZeroDivisionError",
            str(caught.value),
        )
    else:
        got.extend(results)
    expected = [10 * index for index in range(min(n, bad))]
    got_before = [int(value) for value in map_until(fussy({bad}), n, batch_size)]
    assert got_before == expected


def map_until(model, n, batch_size):
    try:
        yield from map_batches(model, numbers(n), batch_size=batch_size)
    except RowError:
        return


def test_the_input_is_read_one_batch_ahead_and_no_further():
    read = []

    def endless():
        for i in itertools.count():
            read.append(i)
            yield np.array([i])

    results = map_batches(double, endless(), batch_size=4)
    assert read == []
    for i in range(10):
        assert next(results) == [2 * i]
        assert len(read) <= (i // 4 + 1) * 4
    results.close()


def test_nothing_of_a_finished_batch_stays():
    class Row:
        """Something that can be watched."""

    watched = []

    def rows():
        for _ in range(6):
            row = Row()
            watched.append(weakref.ref(row))
            yield row

    class Result:
        pass

    def model(batch):
        return [Result() for _ in batch]

    results = map_batches(model, rows(), batch_size=2)
    first = weakref.ref(next(results))
    gc.collect()
    assert first() is None
    for _ in range(4):
        next(results)
    gc.collect()
    # The first row is the example that all others must fit; the generator itself names its last one.
    assert {index for index, row in enumerate(watched) if row() is not None} <= {0, 5}


def test_an_error_that_is_kept_does_not_keep_its_neighbours():
    class Row:
        pass

    watched = {}

    def rows():
        for i in range(8):
            row = Row()
            row.number = i
            watched[i] = weakref.ref(row)
            yield row

    def model(batch):
        if any(row.number == 5 for row in batch):
            raise ValueError("five")
        return [row.number for row in batch]

    results = list(map_batches(model, rows(), batch_size=8, on_error="return"))
    gc.collect()
    kept = [i for i, row in watched.items() if row() is not None]
    assert isinstance(results[5], RowError)
    # The first row is the example that all others must fit.
    assert set(kept) <= {0, 5}


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        torch.OutOfMemoryError("two", "arguments"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
        RuntimeError("HIP out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_out_of_memory_halves_the_batch_and_remembers(error, wrapped):
    sizes = []

    def model(batch):
        if len(batch) > 5:
            if wrapped:
                raise LookupError("layer 3") from error
            raise error
        sizes.append(len(batch))
        return double(batch)

    with record_events("inference.") as events:
        results = list(map_batches(model, numbers(40), batch_size=20, name="job"))
    assert [row[0] for row in results] == [2 * i for i in range(40)]
    assert sizes == [5] * 8  # every row once, and the second batch knew
    assert [(event.kind, event.name, event.fields["limit"]) for event in events] == [
        ("inference.batch.split", "job", 10),
        ("inference.batch.split", "job", 5),
    ]


def test_other_errors_are_not_taken_for_out_of_memory():
    calls = []

    def model(batch):
        calls.append(len(batch))
        raise RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED")

    with (
        record_events("inference.") as events,
        pytest.warns(DegradedWarning, match="all 2 rows of the first batch failed alike"),
    ):
        list(map_batches(model, numbers(2), on_error="skip"))
    assert calls == [2, 1, 1]
    assert [event.kind for event in events] == ["inference.rows.failed"]


def test_nothing_of_the_failed_attempt_is_alive_when_the_smaller_one_runs():
    alive = []
    watched = []

    def model(batch):
        alive.append(sum(ref() is not None for ref in watched))
        activation = batch.clone()
        watched.extend([weakref.ref(activation), weakref.ref(batch)])
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return activation

    list(map_batches(model, [torch.ones(2)] * 8, batch_size=8))
    assert alive[:3] == [0, 0, 0]


def test_a_row_that_is_too_big_alone_is_named_and_the_others_stay_in_large_batches():
    sizes = []

    def model(batch):
        if 7 in batch[:, 0].tolist():
            raise MemoryError("no room")
        sizes.append(len(batch))
        return double(batch)

    results = list(map_batches(model, numbers(64), batch_size=16, on_error="return"))
    assert isinstance(results[7], RowError)
    assert sum(isinstance(result, RowError) for result in results) == 1
    assert sizes[-3:] == [16, 16, 16]


def test_a_larger_batch_is_tried_again_later():
    shortage = [True]
    sizes = []

    def model(batch):
        if shortage[0] and len(batch) > 2:
            raise MemoryError
        sizes.append(len(batch))
        shortage[0] = len(sizes) < 3
        return double(batch)

    list(map_batches(model, numbers(400), batch_size=8))
    assert sizes[0] == 2
    assert sizes[-1] == 8
    assert sum(sizes) == 400


def test_buckets_keep_their_shape_when_memory_runs_out():
    sizes = set()

    def model(batch):
        if len(batch) > 4:
            raise MemoryError
        sizes.add(len(batch))
        return double(batch)

    results = map_batches(model, numbers(21), batch_size=16, buckets=[1, 4, 16])
    assert [row[0] for row in results] == [2 * i for i in range(21)]
    assert sizes <= {1, 4}
    # With one bucket there is no smaller shape to go to: said, not worked round.
    with pytest.raises(RowError, match="MemoryError"):
        list(map_batches(model, numbers(3), batch_size=16, buckets=[16]))


def test_buckets_fix_the_shape_and_a_bad_row_is_still_found():
    shapes = set()
    model = fussy({3})

    def watched(batch):
        shapes.add(batch.shape)
        return model(batch)

    results = list(map_batches(watched, numbers(11), batch_size=4, buckets=[4], on_error="skip"))
    assert results == [10 * i for i in range(11) if i != 3]
    assert shapes == {(4, 2)}


def test_a_fixed_shape_makes_bits_independent_of_company():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 8))
    model.eval()
    rows = list(torch.randn(37, 64))
    whole = torch.stack(list(map_batches(model, rows, batch_size=16, buckets=[16])))
    single = torch.stack(
        [next(map_batches(model, [row], buckets=[16], batch_size=16)) for row in rows]
    )
    assert torch.equal(whole, single)


def test_a_module_runs_in_inference_mode_on_arrays_too():
    seen = []

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)

        def forward(self, batch):
            seen.append((torch.is_inference_mode_enabled(), type(batch["x"]), batch["x"].dtype))
            return {"y": self.layer(batch["x"]), "id": batch["id"]}

    model = Model().eval()
    rows = [{"x": np.full(3, i, "f4"), "id": f"r{i}"} for i in range(3)]
    results = list(map_batches(model, rows, batch_size=2))
    assert seen == [(True, torch.Tensor, torch.float32)] * 2
    assert [row["id"] for row in results] == ["r0", "r1", "r2"]
    assert all(type(row["y"]) is np.ndarray for row in results)
    tensors = [{"x": torch.from_numpy(row["x"]), "id": row["id"]} for row in rows]
    again = list(map_batches(model.forward, tensors, batch_size=2))
    assert all(isinstance(row["y"], torch.Tensor) for row in again)
    assert all(np.array_equal(a["y"], b["y"]) for a, b in zip(results, again, strict=True))
    assert not torch.is_inference_mode_enabled()


def test_a_module_in_training_mode_is_refused():
    with pytest.raises(ConfigurationError, match=r"model\.eval\(\)"):
        map_batches(torch.nn.Linear(1, 1), [])


def test_a_part_in_training_mode_is_named():
    part = torch.nn.Sequential(torch.nn.Dropout(0.9), torch.nn.Linear(4, 1))
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()).eval()
    net[1] = part
    for fn in (net, net.forward):
        with pytest.raises(
            ConfigurationError, match=r"Sequential\.1\.0 \(Dropout\).*model\.eval\(\)"
        ):
            map_batches(fn, [])
    part.eval()
    part.training = True  # the container alone
    with pytest.raises(ConfigurationError, match=r"Sequential\.1 \(Sequential\)"):
        map_batches(net, [])
    net.eval()
    assert list(map_batches(net, [])) == []


@pytest.mark.parametrize(("device", "n_devices"), [("cuda", 0), ("cuda:2", 2)])
def test_a_device_that_is_not_there_is_refused_at_the_call(monkeypatch, device, n_devices):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_devices)
    with pytest.raises(
        ConfigurationError, match=rf"'{device}'; torch sees {n_devices} cuda devices"
    ):
        map_batches(double, [], device=device)


def test_rows_of_another_dtype_than_the_module_are_explained():
    net = torch.nn.Linear(2, 1).eval()

    def error(row, module=net):
        with pytest.raises(RowError) as caught:
            list(map_batches(module, [row]))
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
        return str(caught.value)

    words = "float64, the module's parameters float32: pass"
    assert error(np.ones(2)).endswith(f"; rows are {words} row.astype('float32')")
    assert error(torch.ones(2).double()).endswith(f"; rows are {words} row.to(torch.float32)")
    half = torch.nn.Linear(2, 1).to(torch.bfloat16).eval()
    assert error(np.ones(2, "f4"), half).endswith("pass torch.tensor(row, dtype=torch.bfloat16)")
    assert "rows are" not in error(np.ones(3, "f4"))

    # A module that has worked on such rows is not doubted.
    class Casts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = net

        def forward(self, batch):
            if batch.isnan().any():
                raise ValueError("not a number")
            return self.layer(batch.float())

    rows = [np.ones(2), np.full(2, np.nan)]
    (_, bad) = map_batches(Casts().eval(), rows, batch_size=1, on_error="return")
    assert str(bad) == "row 1: ValueError: not a number"


def test_rows_that_are_lists_are_explained_where_the_function_wants_an_array():
    words = "lists, so that the function gets one column per position; pass np.array rows"
    with pytest.raises(RowError, match=f"has no attribute 'sum'; rows are {words}"):
        list(map_batches(lambda batch: batch.sum(), [[1.0, 2.0]]))
    with pytest.raises(RowError, match=f"has no attribute 'sum'; rows hold {words}"):
        list(map_batches(lambda batch: batch["x"].sum(), [{"x": [1.0, 2.0]}]))
    with pytest.raises(RowError, match=r"row 0: ValueError: other$"):
        list(map_batches(raising(ValueError("other")), [[1.0, 2.0]]))


def raising(error):
    def model(batch):
        raise error

    return model


@pytest.mark.parametrize("on_error", ["skip", "return"])
def test_a_function_that_fails_alike_on_all_of_the_first_batch_is_doubted_once(on_error):
    job = map_batches(
        raising(TypeError("secret")), numbers(8), batch_size=4, on_error=on_error, name="job"
    )
    with record_events("inference.") as events, pytest.warns(DegradedWarning) as caught:
        results = list(job)
    assert len(results) == (8 if on_error == "return" else 0)
    assert [str(warning.message) for warning in caught] == [
        "all 4 rows of the first batch failed alike: TypeError: secret; is the function broken?"
    ]
    assert caught[0].filename == __file__
    assert [(event.kind, event.name, dict(event.fields)) for event in events] == [
        ("inference.rows.failed", "job", {"rows": 4, "failed": 4, "error_type": "TypeError"})
    ]


def test_bad_rows_that_say_nothing_about_the_function_warn_of_nothing():
    # Warnings are errors here: one row alone, rows that fail differently, and rows of a later batch.
    assert list(map_batches(raising(ValueError("x")), numbers(1), on_error="skip")) == []
    assert list(map_batches(lambda batch: {}[batch[0]], ["a", "b"], on_error="skip")) == []
    assert len(list(map_batches(fussy({2}), numbers(3), batch_size=2, on_error="skip"))) == 2
    with pytest.raises(RowError):
        list(map_batches(raising(ValueError("x")), numbers(4)))


def test_bfloat16_outputs_come_back_as_float32_arrays():
    model = torch.nn.Linear(2, 2).to(torch.bfloat16).eval()

    class Cast(torch.nn.Module):
        def forward(self, batch):
            return model(batch.bfloat16())

    (row,) = map_batches(Cast().eval(), [np.ones(2, "f4")])
    assert row.dtype == np.float32


def test_device_moves_arrays_in_and_out():
    kinds = set()

    def model(batch):
        kinds.add((type(batch["x"]), batch["x"].device.type, type(batch["name"])))
        return batch["x"] + 1

    rows = [{"x": np.ones(2), "name": "a"}]
    (result,) = map_batches(model, rows, device="cpu")
    assert kinds == {(torch.Tensor, "cpu", list)}
    assert type(result) is np.ndarray
    (result,) = map_batches(model, [{"x": torch.ones(2), "name": "a"}], device=torch.device("cpu"))
    assert isinstance(result, torch.Tensor)


def test_padding_reaches_the_model_with_its_mask():
    def means(batch):
        tokens = batch["tokens"]
        assert isinstance(tokens, Padded)
        return (tokens.values * tokens.mask).sum(axis=1) / tokens.lengths

    rows = [{"tokens": np.arange(1.0, n + 1)} for n in (3, 1, 2)]
    assert list(map_batches(means, rows, pad=0)) == [2.0, 1.0, 1.5]


def test_ragged_rows_without_pad_name_row_and_leaf():
    rows = [{"x": np.ones(2)}] * 5 + [{"x": np.ones(3)}]
    with pytest.raises(
        RowError, match=r"row 5: CollateError: leaf 'x' has shape \(3,\).*pad="
    ) as e:
        list(map_batches(lambda b: b["x"], rows, batch_size=4))
    assert isinstance(e.value.__cause__, CollateError)


@pytest.mark.parametrize("batch_size", [2, 3, 4, 32])
def test_rows_that_do_not_fit_are_bad_and_the_majority_decides(batch_size):
    rows = [np.ones(2), np.ones(3), np.ones(2), np.ones(2), np.ones(3)]
    kept = map_batches(double, rows, batch_size=batch_size, on_error="skip")
    assert [len(row) for row in kept] == [2, 2, 2]
    rows = [np.ones(3), np.ones(2), np.ones(2), np.ones(2)]
    got = list(map_batches(double, rows, batch_size=4, on_error="return"))
    assert [isinstance(row, RowError) for row in got] == [True, False, False, False]


def test_a_failing_collate_of_your_own_is_isolated_like_the_model():
    def parse(rows):
        return np.array([float(row) for row in rows])

    results = list(map_batches(double, ["1", "2", "x", "4"], collate=parse, on_error="return"))
    assert results[:2] == [2.0, 4.0]
    assert isinstance(results[2].__cause__, ValueError)
    assert results[3] == 8.0


def test_without_isolation_the_whole_batch_fails_and_the_model_is_called_once():
    calls = []
    job = map_batches(fussy({1}, calls), numbers(6), batch_size=3, isolate=False, on_error="return")
    with pytest.warns(DegradedWarning, match="or one of the rows"):
        results = list(job)
    assert [isinstance(result, RowError) for result in results] == [True] * 3 + [False] * 3
    assert [result.index for result in results[:3]] == [0, 1, 2]
    assert len(calls) == 2


@pytest.mark.parametrize("on_error", ["raise", "skip", "return"])
def test_a_wrong_number_of_results_is_never_a_rows_fault(on_error):
    calls = []

    def model(batch):
        calls.append(len(batch))
        return batch[1:]

    with pytest.raises(OutputShapeError, match=r"model was given a batch of 4 rows and returned 3"):
        list(map_batches(model, numbers(4), on_error=on_error))
    assert calls == [4]
    with pytest.raises(ConfigurationError, match="no_leaf"):
        list(map_batches(double, numbers(4), pad={"no_leaf": 0}, on_error=on_error))


def test_what_is_no_exception_goes_through():
    def model(batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(map_batches(model, numbers(3), on_error="skip"))


def test_progress_counts_every_row(monkeypatch, capsys):
    counts = []
    list(
        map_batches(fussy({3}), numbers(10), batch_size=4, on_error="skip", progress=counts.append)
    )
    assert counts == [4, 4, 2]
    pytest.importorskip("tqdm")
    list(map_batches(double, numbers(3), progress=True))
    assert "3/3" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "tqdm", None)
    with pytest.raises(MissingDependencyError, match="progress"):
        map_batches(double, numbers(3), progress=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size.*a whole number >= 1, got 0"),
        ({"batch_size": True}, "batch_size"),
        ({"batch_size": 2.0}, "batch_size"),
        ({"batch_size": float("nan")}, "batch_size"),
        ({"on_error": "ski"}, "did you mean 'skip'"),
        ({"on_error": None}, "on_error"),
        ({"buckets": []}, "buckets"),
        ({"buckets": [1, 8]}, "largest bucket of at least batch_size=32"),
        ({"buckets": [0, 32]}, "buckets"),
        ({"buckets": "32"}, "buckets"),
        ({"buckets": 32}, "buckets"),
        ({"pad": "x"}, "pad"),
        ({"pad": 0, "collate": list}, "let collate do the padding"),
        ({"collate": 3}, "collate"),
        ({"device": "gpu9"}, "device.*torch device"),
        ({"isolate": 1}, "isolate"),
        ({"progress": 3}, "progress"),
        ({"name": ""}, "name"),
        ({"rows": "text"}, "iterable of rows"),
        ({"rows": {"x": [1, 2]}}, "columns"),
        ({"rows": 3}, "iterable of rows"),
        ({"rows": np.array(1.0)}, "iterable of rows, got array"),
        ({"rows": torch.tensor(1.0)}, "iterable of rows, got tensor"),
        ({"fn": 3}, "callable"),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(options, words):
    options = {"fn": double, "rows": [], **options}
    with pytest.raises(ConfigurationError, match=words) as caught:
        map_batches(options.pop("fn"), options.pop("rows"), **options)
    assert "map_batches(" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_table_is_refused_with_the_way_to_rows():
    class DataFrame:
        def __iter__(self):
            return iter("ab")

    with pytest.raises(ConfigurationError, match="to_dict"):
        map_batches(double, DataFrame())


def test_coroutine_functions_are_refused():
    async def model(batch):
        return batch

    class Callable:
        async def __call__(self, batch):
            return batch

    for fn in (model, Callable(), __import__("functools").partial(model)):
        with pytest.raises(ConfigurationError, match="not a coroutine function"):
            map_batches(fn, [])


def test_rows_that_fit_in_pairs_but_not_together_all_have_a_result():
    # An empty list fits both; integers and floats do not fit each other.
    results = map_batches(lambda batch: batch.lengths, [[], [1], [1.5]], pad=0, batch_size=3)
    assert [int(length) for length in results] == [0, 1, 1]


def test_a_row_that_cannot_be_stacked_fails_alone_also_beside_a_misfit():
    def row(size, number):
        return {"x": torch.ones(size), "n": number}

    rows = [row(1, 1), row(1, 2**70), row(2, 1), row(1, 3)]
    results = list(map_batches(lambda batch: batch["n"], rows, on_error="return"))
    assert [isinstance(result, RowError) for result in results] == [False, True, True, False]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (lambda b: b[1:], "returned 3 rows"),
        (lambda b: np.concatenate([b, b]), "returned 8 rows"),
        (lambda b: {"x": b, "y": b[:2]}, "returned 2 rows at 'y'"),
        (lambda _: None, "returned None"),
        (lambda _: 3.0, "returned a float"),
        (lambda _: "text", "returned a str"),
        (lambda b: b.sum(), "without a first axis"),
        (lambda b: iter(b), "returned an? .*iterator"),
        (lambda b: set(b.tolist()), "returned a set"),
        (lambda _: {}, "an empty dict"),
        (lambda b: Padded(b[:, None], np.array([1, 1, np.nan, 1])), "row 2 of the batch is .*nan"),
        (lambda b: Padded(b[:, None], np.array([1, -1, 1, 1])), "row 1 of the batch is .*-1"),
    ],
)
@pytest.mark.parametrize("on_error", ["raise", "skip", "return"])
def test_an_output_that_is_no_row_per_row_says_what_came_and_where(output, words, on_error):
    calls = []

    def model(batch):
        calls.append(len(batch))
        return batch * 2 if len(calls) == 1 else output(batch)

    job = map_batches(model, np.arange(8.0), batch_size=4, on_error=on_error)
    assert [next(job) for _ in range(4)] == [0, 2, 4, 6]
    with pytest.raises(OutputShapeError, match=rf"{words}.*it happened among rows 4 to 7$"):
        next(job)
    assert calls == [4, 4]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"x": np.ones(2)}, r"row 5: .*keys \['x'\] where the other rows have keys \['x', 'y'\]"),
        ({"x": np.ones(3), "y": 1}, r"row 5: .*leaf 'x' has shape \(3,\)"),
        ({"x": np.ones(2, "f4"), "y": 1}, "row 5: .*leaf 'x' has dtype float32"),
        ({"x": np.ones(2), "y": 1.5}, "row 5: .*leaf 'y' has a float where"),
        ({"x": np.ones(2), "y": None}, "row 5: .*leaf 'y' has None where"),
        ([np.ones(2), 1], "row 5: .*the row itself has a list where"),
        (None, "row 5: .*the row itself has None where"),
    ],
)
def test_a_row_of_another_structure_is_named_in_a_later_batch_too(row, words):
    rows = [{"x": np.ones(2), "y": 1} for _ in range(8)]
    rows[5] = row
    with pytest.raises(RowError, match=words):
        list(map_batches(lambda b: b["y"], rows, batch_size=4))
    assert len(list(map_batches(lambda b: b["y"], rows, batch_size=4, on_error="skip"))) == 7


@pytest.mark.parametrize("on_error", ["raise", "skip", "return"])
@pytest.mark.parametrize("batch_size", [4, "auto"])
def test_no_rows_have_no_results_and_run_nothing(on_error, batch_size, tmp_path):
    def never(batch):
        raise AssertionError

    for rows in ([], iter(()), np.empty((0, 3))):
        for checkpoint in (None, tmp_path / "c"):
            job = map_batches(
                never, rows, batch_size=batch_size, on_error=on_error, checkpoint=checkpoint
            )
            assert list(job) == []
