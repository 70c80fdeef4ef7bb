"""Jobs that are killed and go on."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import weakref
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlkit.errors import CheckpointError, ConfigurationError, OutputShapeError, RowError
from mlkit.inference import map_batches
from mlkit.inference._offline.columns import Payload, UnstorableError, decode, encode
from mlkit.testing import record_events


class Point(NamedTuple):
    x: object
    y: object


@dataclasses.dataclass
class Box:
    label: str
    corner: object


def same(a, b):
    """Equal in type and bits, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return not a.numel() or torch.equal(
            a.view(-1).view(torch.uint8), b.view(-1).view(torch.uint8)
        )
    if isinstance(a, float):
        return a.hex() == b.hex()
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, dict):
        return same(list(a), list(b)) and same(list(a.values()), list(b.values()))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Box):
        return same(vars(a), vars(b))
    return a == b


def arrays(dtype):
    return st.lists(st.integers(0, 3), max_size=3).flatmap(
        lambda shape: st.integers(0, 2**32 - 1).map(
            lambda seed: np.random.default_rng(seed).integers(0, 2, shape).astype(dtype)
        )
    )


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(2**70, 2**80),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=4),
    st.binary(max_size=4),
    st.sampled_from(["f4", "f8", "i1", "u2", "?", "c8", "U3", "S2", ">i4", "M8[s]"]).flatmap(
        arrays
    ),
    st.sampled_from([np.float32(1.5), np.int8(-3), np.str_("é"), np.bool_(True)]),
    arrays("f4").map(torch.from_numpy),
    st.sampled_from([torch.bfloat16, torch.bool, torch.complex64, torch.float64]).map(
        lambda dtype: torch.tensor([[1, 0]]).to(dtype)
    ),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.text(max_size=2), st.integers(0, 1)), inner, max_size=3),
        st.builds(Point, inner, inner),
        st.builds(Box, st.text(max_size=2), inner),
    ),
    max_leaves=6,
)


@given(st.lists(TREES, min_size=1, max_size=4), st.booleans())
def test_what_is_stored_comes_back_in_type_and_bits(values, repeat):
    values = values * 3 if repeat else values
    payload = Payload()
    tree = json.loads(json.dumps(encode(values, payload)))
    assert same(decode(tree, len(values), bytearray(b"".join(payload.parts))), values)


def test_arrays_that_come_back_can_be_written_to():
    payload = Payload()
    tree = encode([np.zeros(2), np.ones(2)], payload)
    first, second = decode(tree, 2, bytearray(b"".join(payload.parts)))
    first += 7
    assert second.tolist() == [1, 1]


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1, 2},
        np.array([object()]),
        np.zeros(1, [("a", "i4")]),
        np.ma.array([1]),
        type("Local", (), {})(),
        dataclasses.make_dataclass("Made", ["x"])(1),
        torch.eye(2).to_sparse(),
        {"deep": [1, {"x": lambda: 0}]},
    ],
)
def test_what_cannot_be_stored_is_refused(value):
    with pytest.raises(UnstorableError, match=r" is an? "):
        encode([value], Payload())


def numbers(n):
    return [np.array([i, -i]) for i in range(n)]


def tenfold(batch):
    if (batch[:, 0] % 7 == 6).any():
        raise ValueError("six")
    return {"y": batch[:, 0] * 10, "name": [f"r{i}" for i in batch[:, 0]]}


def shown(results):
    return [
        (str(one), one.index, one.error_type)
        if isinstance(one, RowError)
        else (int(one["y"]), type(one["y"]), one["name"])
        for one in results
    ]


@given(
    n=st.integers(0, 30),
    batch_size=st.integers(1, 8),
    taken=st.lists(st.integers(0, 31), max_size=3),
    torn=st.integers(0, 60),
)
def test_a_job_that_stopped_anywhere_goes_on(tmp_path_factory, n, batch_size, taken, torn):
    path = tmp_path_factory.mktemp("job") / "scores.ckpt"
    runs = []

    def model(batch):
        answer = tenfold(batch)
        runs.extend(batch[:, 0].tolist())
        return answer

    def job(rows, checkpoint=None):
        return map_batches(
            model,
            rows,
            name="job",
            batch_size=batch_size,
            checkpoint=checkpoint,
            prefetch=torn % 3,
            on_error="return",
        )

    straight = shown(job(numbers(n)))
    for n_taken in taken:
        part = job(numbers(n), path)
        got = shown(one for one, _ in zip(part, range(n_taken), strict=False))
        part.close()
        assert got == straight[: len(got)]
    if path.exists():  # as a kill in the middle of a write leaves it
        os.truncate(path, max(0, path.stat().st_size - torn))
    assert shown(job(numbers(n), path)) == straight
    runs.clear()
    assert shown(job(iter(numbers(n)), path)) == straight
    assert runs == []  # all of it is there


SCRIPT = """
    import os, sys, time
    import numpy as np
    from mlkit.inference import map_batches
    checkpoint, output, past = sys.argv[1], sys.argv[2], int(sys.argv[3])
    left = 3

    def model(batch):
        global left
        time.sleep(0.002)
        if os.path.exists(checkpoint) and os.path.getsize(checkpoint) >= past:
            left -= 1
            if left < 0:
                time.sleep(600)  # whoever shall kill it may take his time
        if (batch["x"] == 77).any():
            raise ValueError("seven")
        return {"y": np.sqrt(batch["x"]), "id": batch["id"]}

    rows = ({"x": np.float64(i), "id": f"r{i}"} for i in range(400))
    with open(output, "w") as file:
        for result in map_batches(model, rows, batch_size=8, on_error="return", prefetch=1, checkpoint=checkpoint or None):
            print(result, file=file)
"""


def test_killed_at_random_points_the_output_is_that_of_an_uninterrupted_run(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(textwrap.dedent(SCRIPT))

    def start(checkpoint, output, past):
        return subprocess.Popen([sys.executable, script, checkpoint, tmp_path / output, str(past)])

    assert start("", "straight.txt", 0).wait(300) == 0
    straight = (tmp_path / "straight.txt").read_text()
    assert len(straight.splitlines()) == 400
    path = tmp_path / "job.ckpt"
    rng = np.random.default_rng(5)
    # A kill comes when the file has grown past a random size, in the middle of what follows.
    sizes = []
    while True:
        past = (path.stat().st_size if path.exists() else 0) + int(rng.integers(1, 9000))
        run = start(path, "output.txt", past)
        while run.poll() is None and not (path.exists() and path.stat().st_size >= past):
            os.sched_yield()
        if run.poll() is not None:
            break
        run.send_signal(signal.SIGKILL)
        run.wait(60)
        sizes.append(path.stat().st_size)
    assert run.returncode == 0
    assert len(sizes) >= 2
    assert (tmp_path / "output.txt").read_text() == straight


def drained(path, rows, fn=tenfold, **options):
    return list(map_batches(fn, rows, checkpoint=path, **{"on_error": "skip", **options}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": numbers(9)}, "of another job: rows was 10 and is 9"),
        ({"batch_size": 5}, "batch_size was 4 and is 5"),
        ({"buckets": [4]}, r"buckets was None and is \[4\]"),
        ({"pad": 0}, "pad was None and is 0"),
        ({"fn": lambda batch: batch}, "function was tenfold and is <lambda>"),
        ({"collate": np.stack}, "collate was None and is stack"),
        ({"device": "cpu"}, "device was None and is cpu"),
    ],
)
def test_the_checkpoint_of_another_job_is_refused_at_the_call(tmp_path, change, words):
    path = tmp_path / "scores.ckpt"
    drained(path, numbers(10), batch_size=4)
    before = path.read_bytes()
    options = {"fn": tenfold, "rows": numbers(10), "batch_size": 4, **change}
    with pytest.raises(CheckpointError, match=words) as caught:
        map_batches(options.pop("fn"), options.pop("rows"), checkpoint=path, **options)
    assert "delete the file" in str(caught.value)
    assert path.read_bytes() == before


def test_other_weights_are_another_job(tmp_path):
    path = tmp_path / "scores.ckpt"
    rows = list(torch.ones(5, 3))
    net = torch.nn.Linear(3, 2).eval()
    before = drained(path, rows, net)
    assert all(torch.equal(a, b) for a, b in zip(before, drained(path, rows, net), strict=True))
    with torch.no_grad():
        net.weight += 1e-3
    with pytest.raises(CheckpointError, match="weights was"):
        drained(path, rows, net)


@pytest.mark.parametrize("stopped", [False, True])
def test_other_rows_are_refused(tmp_path, stopped):
    path = tmp_path / "scores.ckpt"
    if stopped:
        next(map_batches(tenfold, iter(numbers(5)), checkpoint=path, batch_size=4))
    else:
        drained(path, iter(numbers(8)), batch_size=4)
    other = [*numbers(4), *numbers(4)] if not stopped else [row + 1 for row in numbers(5)]
    with pytest.raises(CheckpointError, match=f"row {0 if stopped else 4} is not what it was"):
        drained(path, iter(other), batch_size=4)
    n_fewer = 3 if stopped else 7
    with pytest.raises(CheckpointError, match=f"and now there are {n_fewer}"):
        drained(path, iter(numbers(n_fewer)), batch_size=4)
    if not stopped:
        with pytest.raises(CheckpointError, match="8 rows, and now there are more"):
            drained(path, iter(numbers(9)), batch_size=4)
    assert len(drained(path, iter(numbers(5 if stopped else 8)), batch_size=4)) == (
        5 if stopped else 7
    )


def test_a_file_of_somebody_else_is_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    for text in ("mine", "mlkit-map-batches-2\n and more of it"):
        path.write_text(text)
        with pytest.raises(CheckpointError, match="is no checkpoint"):
            map_batches(tenfold, [], checkpoint=path)
        assert path.read_text() == text
    for wrong in (tmp_path, tmp_path / "none" / "x", 3):
        with pytest.raises(ConfigurationError, match="checkpoint"):
            map_batches(tenfold, [], checkpoint=wrong)


def test_damage_that_no_kill_makes_never_costs_what_is_stored_before_it(tmp_path):
    path = tmp_path / "scores.ckpt"
    straight = shown(drained(path, numbers(10), batch_size=2, on_error="return"))
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        damaged = path.read_bytes()
        try:
            with record_events("inference.job") as events:
                again = shown(drained(path, numbers(10), batch_size=2, on_error="return"))
        except CheckpointError as error:  # in the format or the job: said, and nothing is cut off
            assert "damaged" in str(error) or "no checkpoint" in str(error)
            assert path.read_bytes() == damaged
            continue
        assert again == straight
        assert [event.fields["torn_bytes"] > 0 for event in events] == [True]


@pytest.mark.parametrize(
    "results",
    [
        None,
        3,
        ["what"],
        ["array", "O", [], 0],
        ["array", "f8", [1], 10**9],
        ["rows", []],
        ["none", 1],
    ],
)
def test_a_file_made_to_mislead_is_refused(tmp_path, results, monkeypatch):
    path = tmp_path / "scores.ckpt"
    with monkeypatch.context() as patch:
        patch.setattr("mlkit.inference._offline.checkpoint.encode", lambda *_: results)
        drained(path, numbers(3))
    with pytest.raises(CheckpointError, match="cannot be read"):
        drained(path, numbers(3))


def test_numpy_integers_are_sizes_too(tmp_path):
    for size in (np.int64(2), 2):
        assert len(drained(tmp_path / "c", numbers(3), batch_size=size)) == 3


def test_rows_and_results_of_finished_batches_are_let_go(tmp_path):
    watched = []

    def rows():
        for i in range(60):
            row = np.array([i, i])
            watched.append(weakref.ref(row))
            yield row

    def job():
        return map_batches(
            lambda b: b * 2, rows(), batch_size=4, prefetch=2, checkpoint=tmp_path / "c", name="job"
        )

    for _ in range(2):  # once run, once read back
        watched.clear()
        most, results = 0, []
        for result in job():
            results = [*results[-3:], weakref.ref(result)]
            alive = sum(row() is not None for row in watched)
            most = max(most, alive)
        # The running batch, two that are read ahead, the example, and the row that the generator names.
        assert most <= 4 * 3 + 2
        del result
        assert not any(ref() is not None for ref in results)


def test_two_jobs_do_not_share_a_file(tmp_path):
    path = tmp_path / "scores.ckpt"
    first = map_batches(tenfold, numbers(5), checkpoint=path, batch_size=2)
    next(first)
    with pytest.raises(CheckpointError, match="in use"):
        drained(path, numbers(5), batch_size=2)
    first.close()
    assert len(drained(path, numbers(5), batch_size=2)) == 5


def test_a_result_that_cannot_be_stored_is_named_before_anything_is_yielded(tmp_path):
    def model(batch):
        return {"y": [object() if i == 5 else 1.0 for i in batch[:, 0]]}

    job = map_batches(model, numbers(8), batch_size=4, checkpoint=tmp_path / "c", on_error="skip")
    assert [next(job) for _ in range(4)] == [{"y": 1.0}] * 4
    with pytest.raises(CheckpointError, match=r"result of row 5: leaf 'y' is a builtins\.object"):
        next(job)


def test_after_a_bad_row_ended_the_job_it_can_go_on_without_it(tmp_path):
    path = tmp_path / "scores.ckpt"
    calls = []

    def model(batch):
        calls.append(len(batch))
        return tenfold(batch)

    with pytest.raises(RowError, match="row 6"):
        drained(path, numbers(10), model, batch_size=3, on_error="raise")
    calls.clear()
    assert [one["name"] for one in drained(path, numbers(10), model, batch_size=3)] == [
        f"r{i}" for i in range(10) if i != 6
    ]
    assert sum(calls) < 10  # the six rows before it did not run again
    with pytest.raises(RowError, match="row 6: ValueError: six"):
        drained(path, numbers(10), model, batch_size=3, on_error="raise")


def test_a_broken_function_leaves_nothing_behind_and_is_asked_again(tmp_path):
    path = tmp_path / "scores.ckpt"
    with pytest.raises(OutputShapeError):
        drained(path, numbers(3), lambda batch: batch[1:], name="job")
    assert len(drained(path, numbers(3), tenfold, name="job")) == 3


def test_which_row_the_others_must_fit_is_remembered(tmp_path):
    rows = [np.ones(3), np.ones(2), np.ones(2), np.ones(3), np.ones(2), np.ones(3)]

    def total(batch):
        return batch.sum(axis=1)

    def job(path):
        return map_batches(total, rows, batch_size=3, on_error="return", checkpoint=path)

    straight = list(map(str, job(None)))
    part = job(tmp_path / "c")
    next(part)
    part.close()
    assert list(map(str, job(tmp_path / "c"))) == straight
    assert [text[:3] for text in straight] == ["row", "2.0", "2.0", "row", "2.0", "row"]


def test_what_memory_allowed_is_remembered(tmp_path):
    sizes = []

    def model(batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise MemoryError
        return batch * 2

    def job():
        return map_batches(model, numbers(16), batch_size=8, checkpoint=tmp_path / "c")

    part = job()
    next(part)
    part.close()
    assert sizes == [8, 4, 2, 2, 2, 2]
    sizes.clear()
    assert [row[0] for row in job()] == [2 * i for i in range(16)]
    assert sizes == [2] * 4


def test_a_class_that_is_not_loaded_is_not_imported(tmp_path, monkeypatch):
    def model(batch):
        return [Point(i, 0.5) for i in batch]

    assert drained(tmp_path / "c", [1, 2], model) == [Point(1, 0.5), Point(2, 0.5)]
    monkeypatch.delattr(sys.modules[__name__], "Point")
    with pytest.raises(CheckpointError, match="holds a Point of module"):
        drained(tmp_path / "c", [1, 2], model)
