"""What users pass and what their models do that looks harmless: each of these once gave a wrong result or a wrong word."""

from __future__ import annotations

import os
import re
import resource
import signal
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from mlkit.errors import CollateError, ConfigurationError, InferenceError, RowError
from mlkit.inference import Batcher, collate, map_batches, split

if TYPE_CHECKING:
    from pathlib import Path

ROWS = np.arange(12.0).reshape(6, 2)


# ---------------------------------------------------------------------- outputs that are overwritten


def one_array() -> Any:
    buffer = np.empty((2, 2))

    def model(batch: Any) -> Any:
        buffer[: len(batch)] = batch
        return buffer[: len(batch)]

    return model


def one_tensor() -> Any:
    buffer = torch.empty(2, 2, dtype=torch.float64)

    def model(batch: Any) -> Any:
        buffer[: len(batch)] = torch.from_numpy(batch)
        return {"out": [buffer[place] for place in range(len(batch))]}

    return model


class OneBuffer(torch.nn.Module):
    buffer: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("buffer", torch.empty(2, 2, dtype=torch.float64))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.buffer[: len(batch)] = batch
        return self.buffer[: len(batch)]


@pytest.mark.parametrize("make", [one_array, one_tensor, lambda: OneBuffer().eval()])
@pytest.mark.parametrize("options", [{}, {"prefetch": 1}, {"length": len, "window": 6}])
def test_results_survive_a_model_that_writes_over_its_last_output(make: Any, options: Any) -> None:
    results: Any = list(map_batches(make(), ROWS, batch_size=2, **options))
    values = [one["out"] if isinstance(one, dict) else one for one in results]
    assert [value.tolist() for value in values] == ROWS.tolist()


def test_a_caller_keeps_its_result_when_the_batcher_s_model_writes_over_its_last_output() -> None:
    with Batcher(one_array(), max_batch_size=2) as batcher:
        results = [batcher.call(row) for row in ROWS]
    assert [result.tolist() for result in results] == ROWS.tolist()


def test_results_of_a_module_are_ordinary_tensors() -> None:
    (result,) = map_batches(torch.nn.Identity().eval(), [torch.ones(2)])
    result += 1  # torch refuses this for a tensor of inference mode
    assert result.tolist() == [2.0, 2.0]


def test_a_model_may_empty_the_list_that_it_is_given() -> None:
    def upper(texts: list[str]) -> list[str]:
        results = [text.upper() for text in texts]
        texts.clear()
        if "bad" in [one.lower() for one in results] and len(results) > 1:
            raise ValueError("bad")
        return results

    texts = ["a", "bad", "c", "d"]
    assert list(map_batches(upper, texts, batch_size=4)) == ["A", "BAD", "C", "D"]
    assert list(map_batches(upper, texts, batch_size=4, collate=lambda rows: rows)) == [
        "A",
        "BAD",
        "C",
        "D",
    ]
    assert texts == ["a", "bad", "c", "d"]


def test_an_output_of_transformers_keeps_its_type() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")

    class Classifier(torch.nn.Module):
        def forward(self, batch: torch.Tensor) -> Any:
            return outputs.SequenceClassifierOutput(logits=batch * 2)

    first, second = map_batches(Classifier().eval(), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert isinstance(first, outputs.SequenceClassifierOutput)
    assert first.loss is None
    assert (first.logits.tolist(), second.logits.tolist()) == ([2.0, 4.0], [6.0, 8.0])


@pytest.mark.parametrize("kind", ["frozen", "exported"])
def test_a_module_that_has_no_mode_any_more_runs_as_it_is(kind: str) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout()).eval()
    rows = torch.arange(15.0).reshape(5, 3)
    model: Any
    if kind == "frozen":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated, and in use
            model = torch.jit.freeze(torch.jit.script(network))
    else:
        any_number = ({0: torch.export.Dim("n", min=1)},)
        model = torch.export.export(network, (rows,), dynamic_shapes=any_number).module()
    got = torch.stack(list(map_batches(model, rows, batch_size=2)))
    assert torch.allclose(got, network(rows))


# ---------------------------------------------------------------------- rows


def test_shapes_are_rows_too() -> None:
    sizes = [torch.zeros(n, 2).shape for n in (3, 4)]
    batch = collate([{"size": size} for size in sizes])
    assert [column.tolist() for column in batch["size"]] == [[3, 4], [2, 2]]
    assert [row["size"] for row in split(batch, 2)] == [(3, 2), (4, 2)]


@pytest.mark.parametrize("empty", [{}, [], ()])
def test_empty_parts_of_rows_come_back(empty: Any) -> None:
    rows = [{"x": n, "more": empty} for n in range(3)]
    assert list(map_batches(lambda batch: batch, rows)) == rows


class ByNumber:
    def __init__(self, n: int) -> None:
        self.n = n

    def __getitem__(self, place: int) -> Any:
        if place >= self.n:
            raise IndexError(place)
        return np.array([place, 1.0])


class Endless(torch.utils.data.Dataset[Any]):
    """As most datasets: it says its length, and does not look at the number that it is asked for."""

    def __getitem__(self, place: int) -> torch.Tensor:
        return torch.tensor([float(place), 1.0])

    def __len__(self) -> int:
        return 5


@pytest.mark.parametrize("dataset", [ByNumber(5), Endless()])
@pytest.mark.parametrize("prefetch", [0, 1])
def test_a_dataset_that_is_read_by_number_is_rows(dataset: Any, prefetch: int) -> None:
    sums = map_batches(lambda batch: batch.sum(1), dataset, batch_size=2, prefetch=prefetch)
    assert [float(one) for one in sums] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_dataset_that_fails_gives_the_rows_before_it_first() -> None:
    class Broken(Endless):
        def __getitem__(self, place: int) -> torch.Tensor:
            return torch.ones(1) if place < 3 else torch.ones(1) / {}[place]

    results = map_batches(lambda batch: batch, Broken(), batch_size=2)
    assert [float(next(results)) for _ in range(3)] == [1.0, 1.0, 1.0]
    with pytest.raises(KeyError):
        next(results)


@pytest.mark.parametrize(
    ("make", "fix"),
    [
        (lambda: pytest.importorskip("pyarrow").table({"a": [1]}), "to_pylist"),
        (lambda: pytest.importorskip("pyarrow").table({"a": [1]}).to_batches()[0], "to_pylist"),
        (lambda: pytest.importorskip("polars").LazyFrame({"a": [1]}), "collect"),
    ],
    ids=["table", "record batch", "lazy frame"],
)
def test_a_table_is_refused_with_what_gives_its_rows(make: Any, fix: str) -> None:
    with pytest.raises(ConfigurationError, match=fix):
        map_batches(len, make())


def test_a_masked_array_is_refused_for_its_mask_would_be_lost() -> None:
    rows = np.ma.masked_array([[1.0, 2.0], [3.0, 4.0]], mask=[[False, True], [False, False]])
    with pytest.raises(CollateError, match="mask"):
        collate(rows)
    with pytest.raises(CollateError, match="mask"):
        collate(rows, pad=0)


@pytest.mark.parametrize(
    "numbers", [[2**63 + 1, 3], [2**64 - 1, 0], [2**63 + 1, -3], [2**64 + 1, 1], [-(2**70), 1]]
)
def test_whole_numbers_of_any_size_stay_whole(numbers: list[int]) -> None:
    results = list(map_batches(lambda batch: batch, [{"id": one} for one in numbers]))
    assert [int(result["id"]) for result in results] == numbers


def test_lists_of_several_lengths_are_told_of_pad() -> None:
    with pytest.raises(CollateError, match="pad="):
        collate([{"tokens": [1, 2]}, {"tokens": [3]}])


@pytest.mark.parametrize("leaf", [np.array(2.0), torch.tensor(2.0)])
def test_a_padded_leaf_without_axes_has_no_length(leaf: Any) -> None:
    rows = [{"x": leaf}] * 3
    results = map_batches(lambda batch: batch["x"] + 1, rows, pad={"x": 0}, window=8)
    assert [float(result) for result in results] == [3.0, 3.0, 3.0]


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bool, torch.bfloat16])
@pytest.mark.parametrize("widths", [None, [8]])
def test_padded_tensors_are_filled_up_at_their_end(dtype: Any, widths: Any) -> None:
    rows = [torch.ones(size, dtype=dtype) for size in (0, 3, 1, 5)]
    seen: list[Any] = []

    def model(batch: Any) -> Any:
        seen.append(batch)
        return batch.lengths

    assert [int(one) for one in map_batches(model, rows, pad=0, widths=widths)] == [0, 3, 1, 5]
    (batch,) = seen
    assert batch.values.dtype == dtype
    assert batch.values.shape == (4, 8 if widths else 5)
    assert torch.equal(batch.values.to(torch.bool), batch.mask)


# ---------------------------------------------------------------------- errors


class UnshownError(RuntimeError):
    def __str__(self) -> str:
        raise TypeError("no text")


@pytest.mark.parametrize("on_error", ["raise", "return", "skip"])
def test_an_error_that_has_no_text_is_its_row_s(on_error: Any) -> None:
    def model(batch: Any) -> Any:
        if 4.0 in batch[:, 0]:
            raise UnshownError
        return batch.sum(axis=1)

    results = map_batches(model, ROWS, batch_size=3, on_error=on_error)
    if on_error == "raise":
        with pytest.raises(RowError, match="row 2: UnshownError: "):
            list(results)
        return
    sums = [one if isinstance(one, RowError) else float(one) for one in results]
    if on_error == "return":
        assert isinstance(sums.pop(2).__cause__, UnshownError)
    assert sums == [1.0, 5.0, 13.0, 17.0, 21.0]


def test_a_checkpoint_on_a_full_disk_says_which_file_and_is_continued_later(tmp_path: Path) -> None:
    path = tmp_path / "job.ckpt"
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    seen: list[Any] = []
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, limits[1]))  # as good as no space left
        with pytest.raises(OSError, match=re.escape(str(path))):
            seen.extend(map_batches(lambda batch: batch, ROWS, batch_size=2, checkpoint=path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    results: Any = list(map_batches(lambda batch: batch, ROWS, batch_size=2, checkpoint=path))
    assert [result.tolist() for result in results] == ROWS.tolist()


def test_a_checkpoint_holds_outputs_of_transformers(tmp_path: Path) -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")

    def model(batch: Any) -> Any:
        return outputs.SequenceClassifierOutput(logits=batch, hidden_states=(batch, batch + 1))

    def job() -> Any:
        return list(map_batches(model, torch.ones(3, 2), checkpoint=tmp_path / "job.ckpt"))

    job()
    for result in job():
        assert isinstance(result, outputs.SequenceClassifierOutput)
        assert list(result) == ["logits", "hidden_states"]
        assert result["logits"] is result.logits
        assert result.to_tuple()[1][1].tolist() == [2.0, 2.0]
        assert result.loss is None


# ---------------------------------------------------------------------- what results hold on to


@pytest.mark.parametrize("device", [None, "cpu"])
def test_results_hold_no_autograd_graph(device: Any) -> None:
    layer = torch.nn.Linear(2, 3)
    results = list(map_batches(lambda batch: layer(batch), torch.ones(4, 2), device=device))
    assert layer(torch.ones(2)).requires_grad
    assert not any(result.requires_grad or result.grad_fn for result in results)


def test_a_forked_child_is_told_that_rows_are_read_ahead_in_its_parent() -> None:
    results = map_batches(lambda batch: batch.sum(1), ROWS, batch_size=2, prefetch=1)
    assert float(next(results)) == 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other tests may have left threads
        child = os.fork()
    if not child:
        status = 1
        try:
            signal.alarm(60)  # it once waited for ever
            next(results)  # of the batch that is there
            next(results)
        except InferenceError as error:
            status = 0 if "forked" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [float(one) for one in results] == [5.0, 9.0, 13.0, 17.0, 21.0]


def test_a_wrong_length_is_said_to_be_of_a_row() -> None:
    with pytest.raises(ConfigurationError, match="takes a row"):
        map_batches(len, ROWS, length=3)  # type: ignore[call-overload]
