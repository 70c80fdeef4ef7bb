"""Traces in files: what two processes did is compared operation by operation, in constant memory."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from mlkit.errors import ConfigurationError, FingerprintError, TraceError
from mlkit.repro import compare, isolated, record

torch.set_num_threads(1)

TRAIN = """
import sys
import numpy as np
import torch
from mlkit.repro import isolated, record

torch.set_num_threads(1)
path, nudge, keep = sys.argv[1], float(sys.argv[2]), sys.argv[3:]

with isolated(7), record(path, keep=int(keep[0]) if keep else None) as trace:
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    rows = np.linspace(-1, 1, 64, dtype="f4").reshape(8, 8)
    trace.note("rows", rows)
    net[2].bias.data.numpy()[1] += nudge  # no operation of torch
    loss = net(torch.from_numpy(rows)).square().mean()
    loss.backward()
    trace.note("metrics", {"loss": float(loss.detach()), "n": 4})
"""


@pytest.fixture
def train(tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)

    def run(name, nudge=0.0, *keep):
        words = [
            sys.executable,
            tmp_path / "train.py",
            tmp_path / name,
            str(nudge),
            *map(str, keep),
        ]
        subprocess.run(words, check=True)
        return tmp_path / name

    return run


def test_the_first_operation_that_differs_is_named_across_processes(train):
    first, second = train("a"), train("b", 2**-20)
    assert compare(first, first) is None
    found = compare(first, second)
    assert (found.op, found.module) == ("aten::addmm", "Sequential.2")
    assert found.line == "train.py:15"
    assert f"keep={found.call}" in found.reason
    assert compare(first, train("c")) is None


def test_a_second_recording_keeps_the_values(tmp_path):
    def recorded(name, nudge, keep):
        rows = torch.linspace(-1, 1, 64).reshape(8, 8)
        with record(tmp_path / name, keep=keep):
            rows.numpy()[:, 1] += np.float32(nudge)
            (rows * 3).sum()
        return tmp_path / name

    found = compare(recorded("a", 0, None), recorded("b", 2**-20, None))
    assert (found.op, found.element) == ("aten::mul", None)
    found = compare(recorded("a", 0, found.call), recorded("b", 2**-20, found.call))
    assert (found.element, found.differing, found.total) == ((0, 1), 8, 64)
    assert found.max_ulps >= 1


def test_notes_and_settings(tmp_path):
    def noted(name, *values):
        with record(tmp_path / name) as trace:
            for value in values:
                trace.note("files", value)
        return tmp_path / name

    one = noted("a", ["x", "y"], {"loss": 0.5})
    assert compare(one, noted("b", ["x", "y"], {"loss": 0.5})) is None
    found = compare(one, noted("b", ["y", "x"], {"loss": 0.5}))
    assert (
        str(found)
        == "the result at files[0]: 'x' became 'y'; test_recorder.py:"
        + found.line.partition(":")[2]
    )
    found = compare(one, noted("b", ["x", "y"], {"loss": 0.25}))
    assert (found.path, found.reason) == ("files['loss']", "0.5 became 0.25")
    assert found.max_ulps is not None
    assert "only the first trace" in compare(one, noted("b", ["x", "y"])).reason
    assert "only the second trace" in compare(noted("b", ["x", "y"]), one).reason
    assert "became" in compare(one, noted("b", ("x", 1), {"loss": 0.5})).reason
    torch.set_num_threads(2)
    try:
        assert "threads 2 instead of 1" in compare(one, noted("b", [])).setting
    finally:
        torch.set_num_threads(1)


def test_a_trace_is_of_constant_memory(tmp_path):
    import tracemalloc

    def peak(n):
        tracemalloc.start()
        with isolated(1), record(tmp_path / str(n)):
            rows = torch.zeros(4)
            for _ in range(n):
                rows.add_(1)
        compare(tmp_path / str(n), tmp_path / str(n))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(10)
    assert peak(1000) < 2 * peak(100)


def test_a_trace_that_stops_or_is_none_is_said(tmp_path):
    path, other = tmp_path / "a", tmp_path / "b"
    with record(path) as trace:
        for number in range(9):
            trace.note("n", number)
    lines = path.read_bytes().splitlines(keepends=True)
    other.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(TraceError, match="stops"):
        compare(path, other)
    other.write_bytes(b"".join(lines[:5]) + lines[5][:9])
    with pytest.raises(TraceError, match="stops"):
        compare(path, other)
    other.write_bytes(lines[0] + b"[1]\n" + lines[-1])
    with pytest.raises(TraceError, match="damaged"):
        compare(path, other)
    for content in (b"", b"{}\n", b"[]\n", b"\xff\xfe\n", b'{"schema": "mlkit.trace/2"}\n'):
        other.write_bytes(content)
        with pytest.raises(TraceError):
            compare(path, other)
    with pytest.raises(FileNotFoundError):
        compare(path, tmp_path / "none")


def test_what_was_recorded_before_an_error_is_there(tmp_path):
    def fail():
        with record(tmp_path / "a") as trace:
            trace.note("n", 1)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fail()
    assert json.loads((tmp_path / "a").read_text().splitlines()[1])[1] == "n"


def test_wrong_arguments(tmp_path):
    for keep in (-1, 1.5, True):
        with pytest.raises(ConfigurationError, match="keep"), record(tmp_path / "a", keep=keep):
            pass
    with record(tmp_path / "a") as trace:
        for name in ("", 3):
            with pytest.raises(ConfigurationError, match="note"):
                trace.note(name, 1)
        with pytest.raises(FingerprintError):
            trace.note("x", object())
        trace.note("a", np.zeros(3))
    assert compare(tmp_path / "a", tmp_path / "a") is None


def test_elements_of_a_sparse_tensor_are_kept_when_asked_for(tmp_path):
    def found(keep):
        for run in (1, 2):
            with record(tmp_path / f"{run}", keep=keep):
                torch.eye(3).to_sparse() * run
        return compare(tmp_path / "1", tmp_path / "2")

    first = found(None)
    assert (first.op, first.element) == ("aten::mul", None)
    assert found(first.call).element == (0, 0)
