"""What a user logs is what is read back; what a user gets wrong is said at once."""

from __future__ import annotations

import datetime as dt
import enum
import json
import math
import pickle
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkit.errors import (
    ConfigurationError,
    JournalError,
    ParamConflictError,
    RunClosedError,
    RunNotFoundError,
    TrackingWarning,
    UnknownNameError,
)
from mlkit.testing import virtual_time
from mlkit.tracking import JsonlSink, find_runs, read, start_run

keys = st.text(min_size=1, max_size=12)
steps = st.integers(-(2**63), 2**63 - 1)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


@given(calls=st.lists(st.tuples(st.dictionaries(keys, st.floats(), min_size=1), steps), max_size=8))
def test_metrics_come_back_with_every_bit(tmp_path_factory, calls):
    with start_run("laws", root=tmp_path_factory.mktemp("runs")) as run:
        for metrics, step in calls:
            run.log_metrics(metrics, step=step)
    wanted = {}
    for metrics, step in calls:
        for key, value in metrics.items():
            wanted.setdefault(key, []).append((step, bits(value)))
    found = {
        key: [(point.step, bits(point.value)) for point in points]
        for key, points in read(run.dir).metrics.items()
    }
    assert found == wanted


@given(params=st.dictionaries(keys, scalars | st.lists(scalars, max_size=3), max_size=5))
def test_params_come_back_as_they_were(tmp_path_factory, params):
    with start_run("laws", root=tmp_path_factory.mktemp("runs")) as run:
        run.log_params(params)
        run.log_params(params)  # again with equal values: fine, NaN too
    assert json.dumps(read(run.dir).params, sort_keys=True) == json.dumps(params, sort_keys=True)


@given(
    tags=st.lists(st.dictionaries(keys, st.text(max_size=20), max_size=3), max_size=4),
    contents=st.dictionaries(st.sampled_from(["a", "b/c", "b/d.txt", "é"]), st.binary(max_size=40)),
)
def test_the_last_tag_and_the_artifacts_come_back(tmp_path_factory, tags, contents):
    with start_run("laws", root=tmp_path_factory.mktemp("runs")) as run:
        for some in tags:
            run.set_tags(some)
        digests = {name: run.log_artifact(data, name=name) for name, data in contents.items()}
    data = read(run.dir)
    assert data.tags == {key: value for some in tags for key, value in some.items()}
    assert data.artifacts == digests
    assert {name: data.artifact(name).read_bytes() for name in contents} == contents


def test_numbers_of_any_make(tmp_path):
    torch = pytest.importorskip("torch")
    values = {
        "int": 3, "bool": True, "numpy": np.float32(0.5), "zero_d": np.array(2.0),
        "tensor": torch.tensor(1.5), "one": torch.ones(1), "inf": -math.inf,
    }  # fmt: skip
    with start_run("numbers", root=tmp_path) as run:
        run.log_metrics(values, step=np.int64(7))
        run.log_metric("alone", 4)
    data = read(run.dir)
    found = {key: points[0].value for key, points in data.metrics.items()}
    assert found == {"int": 3, "bool": 1, "numpy": 0.5, "zero_d": 2, "tensor": 1.5, "one": 1,
                     "inf": -math.inf, "alone": 4}  # fmt: skip
    assert data.metrics["int"][0].step == 7
    assert np.array(data.metrics["int"]).shape == (1, 3)


def keyless() -> None:
    """Its text holds where it lies in memory."""


class Speechless:
    def __str__(self):
        raise RuntimeError("no text")


WRONG_CALLS = [
    (lambda run: run.log_metrics({}), "log_metrics(metrics)"),
    (lambda run: run.log_metrics([("a", 1)]), "log_metrics(metrics)"),
    (lambda run: run.log_metrics("loss"), "log_metrics(metrics)"),
    (lambda run: run.log_metrics(None), "log_metrics(metrics)"),
    (lambda run: run.log_metrics({1: 1.0}), "log_metrics(metrics)"),
    (lambda run: run.log_metrics({"": 1.0}), "log_metrics(metrics)"),
    (lambda run: run.log_metrics({"x" * 1001: 1.0}), "log_metrics(metrics)"),
    (lambda run: run.log_metrics({"a": "1.0"}), "log_metrics({'a': ...})"),
    (lambda run: run.log_metrics({"a": None}), "log_metrics({'a': ...})"),
    (lambda run: run.log_metrics({"a": np.ones(2)}), "log_metrics({'a': ...})"),
    (lambda run: run.log_metrics({"a": 10**400}), "log_metrics({'a': ...})"),
    (lambda run: run.log_metric("a", 1, step=1.5), "step"),
    (lambda run: run.log_metric("a", 1, step=True), "step"),
    (lambda run: run.log_metric("a", 1, step=2**63), "step"),
    (lambda run: run.log_metric("a", 1, step=None), "step"),
    (lambda run: run.log_params([]), "log_params"),
    (lambda run: run.log_params({"a": {2: 1}}), "log_params"),
    (lambda run: run.log_params({"a": object()}), "log_params(params['a'])"),
    (lambda run: run.log_params({"a": np.ones(3)}), "log_params(params['a'])"),
    (lambda run: run.log_params({"a": [keyless]}), "another one in every run"),
    (lambda run: run.log_params({"a": Speechless()}), "log_params(params['a'])"),
    (lambda run: run.log_params({"a": "x" * (17 << 20)}), "log_params"),
    (lambda run: run.log_param("a", 10**5000), "log_params(params['a']): expected an integer of"),
    (lambda run: run.log_param("a", [{"b": 1 << 4096}]), "got '4097 bits'; log its hex()"),
    (lambda run: run.set_tags({"a": -(10**5000)}), "set_tags(tags['a']): expected an integer of"),
    (lambda run: run.set_tags({"a": None}), "set_tags"),
    (lambda run: run.set_tags({1: "a"}), "set_tags"),
    (lambda run: run.set_tags("a"), "set_tags"),
    (lambda run: run.log_artifact(b"a"), "name"),
    (lambda run: run.log_artifact("/does/not/exist"), "source"),
    (lambda run: run.log_artifact(3), "source"),
    (lambda run: run.log_artifacts("/does/not/exist"), "folder"),
    (lambda run: run.child(""), "child"),
    (lambda run: run.flush(-1), "timeout"),
    (lambda run: run.flush(math.nan), "timeout"),
    (lambda run: run.close(timeout=True), "timeout"),
    (lambda run: run.close("FINISH"), "did you mean 'FINISHED'"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "place"), WRONG_CALLS, ids=list(range(len(WRONG_CALLS))))
def test_a_wrong_call_is_refused_with_its_place_and_harms_nothing(tmp_path, call, place):
    with start_run("wrong", root=tmp_path) as run:
        run.log_metric("a", 1)
        with pytest.raises(ConfigurationError) as caught:
            call(run)
        assert place in str(caught.value)
        assert pickle.loads(pickle.dumps(caught.value)).argument == caught.value.argument
        run.log_metric("a", 2)
    data = read(run.dir)
    assert [point.value for point in data.metrics["a"]] == [1, 2]
    assert (data.params, data.tags, data.artifacts) == ({}, {}, {})


@pytest.mark.parametrize(
    "name", ["../a", "/a", "a/../b", "", ".", "a//b", "a/", "a\\b", "a\0b", "\ud800"]
)
def test_an_artifact_cannot_leave_the_run(tmp_path, name):
    with start_run("escape", root=tmp_path) as run, pytest.raises(ConfigurationError):
        run.log_artifact(b"x", name=name)


@pytest.mark.parametrize(
    ("kwargs", "place"),
    [
        ({"experiment": ""}, "experiment"),
        ({"experiment": 3}, "experiment"),
        ({"name": ""}, "name"),
        ({"root": 3}, "root"),
        ({"root": b"runs"}, "root"),
        ({"root": "a\0b"}, "root"),
        ({"root": "a\ud800b"}, "root"),
        ({"durability": "fsync"}, "durability"),
        ({"durability": "recrod"}, "did you mean 'record'"),
        ({"shipper": "proces"}, "did you mean 'process'"),
        ({"tags": {"a": []}}, "tags"),
        ({"tags": []}, "tags"),
        ({"resume": 3}, "resume"),
        ({"sinks": [3], "shipper": "thread"}, "addresses or sinks"),
        ({"sinks": [JsonlSink], "shipper": "thread"}, "addresses or sinks"),
        ({"sinks": "jsonl:x"}, "pass ['jsonl:x']"),
        ({"sinks": ["http://host:5000"]}, "'mlflow:http://host:5000'"),
        ({"sinks": ["nothing"]}, "addresses"),
        ({"sinks": ["jsonl:"]}, "addresses"),
        ({"sinks": ["mlfow:sqlite:///a.db"]}, "did you mean 'mlflow'"),
        ({"sinks": ["mlflow:nothing"]}, "tracking URI"),
        ({"sinks": ["jsonl:a", "jsonl:./a"]}, "once"),
    ],
)
def test_a_wrong_start_is_refused_and_leaves_nothing(tmp_path, kwargs, place):
    root = tmp_path / "runs"
    with pytest.raises(ConfigurationError, match=r"start_run|Sink") as caught:
        start_run(**{"experiment": "x", "root": root, **kwargs})
    assert place in str(caught.value)
    assert not root.exists()


def test_a_sink_object_needs_the_thread(tmp_path, memory):
    with pytest.raises(ConfigurationError, match="shipper='thread'"):
        start_run("x", root=tmp_path, sinks=[memory])


def test_a_root_that_is_a_file(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(ConfigurationError, match="root"):
        start_run("x", root=tmp_path / "runs")


def test_a_param_never_changes(tmp_path):
    with start_run("params", root=tmp_path) as run:
        run.log_params({"net": {"depth": 3, "act": "relu"}, "empty": {}})
        run.log_param("net.depth", 3)
        with pytest.raises(ParamConflictError, match=r"'net\.depth' is 3 and cannot become 4"):
            run.log_params({"other": 1, "net.depth": 4})
        with pytest.raises(ParamConflictError):
            run.log_param("net.depth", 3.0)
        with pytest.raises(ParamConflictError):
            run.log_params({"a.b": 1, "a": {"b": 2}})
    assert read(run.dir).params == {"net.depth": 3, "net.act": "relu", "empty": {}}


def test_other_values_are_kept_as_their_text(tmp_path):
    class Colour(enum.Enum):
        RED = 1

    params = {"path": Path("a/b"), "day": dt.date(2026, 1, 2), "enum": Colour.RED,
              "numpy": np.int64(3), "tuple": (1, np.float64(0.5)), "set": {"b", "a", "c"}}  # fmt: skip
    with start_run("params", root=tmp_path) as run:
        run.log_params(params)
        run.set_tags({"seed": np.int64(7), "half": np.float32(0.5), "done": np.True_})
    assert read(run.dir).params == {"path": "a/b", "day": "2026-01-02", "enum": "Colour.RED",
                                    "numpy": 3, "tuple": [1, 0.5], "set": ["a", "b", "c"]}  # fmt: skip
    assert read(run.dir).tags == {"seed": "7", "half": "0.5", "done": "True"}


def together(work) -> list[object]:
    """Call *work* with 0, 1, 2, 3 in threads at once; return what came back or was raised."""
    barrier, found = threading.Barrier(4), []

    def one(number: int) -> None:
        barrier.wait()
        try:
            found.append(work(number))
        except Exception as error:
            found.append(type(error))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    return found


def test_of_threads_that_log_one_param_one_wins(tmp_path):
    for _ in range(20):
        with start_run("race", root=tmp_path) as run:
            found = together(lambda number, run=run: run.log_param("p", number))
        assert sorted(found, key=str) == [ParamConflictError] * 3 + [None]


def test_threads_may_close_at_once(tmp_path):
    for _ in range(20):
        run = start_run("race", root=tmp_path)
        assert [delivery.acked for delivery in together(lambda _, run=run: run.close())] == [2] * 4


def test_files_and_folders_are_copied_before_the_call_returns(tmp_path):
    source = tmp_path / "out"
    (source / "deep").mkdir(parents=True)
    (source / "a.txt").write_text("old")
    (source / "deep" / "b.txt").write_text("b")
    with start_run("files", root=tmp_path / "runs") as run:
        run.log_artifact(source / "a.txt")
        names = run.log_artifacts(source, name="all")
        (source / "a.txt").write_text("new")
        run.log_artifact(str(source / "a.txt"), name="again")
    data = read(run.dir)
    assert sorted(data.artifacts) == ["a.txt", "again", "all/a.txt", "all/deep/b.txt"]
    assert data.artifact("a.txt").read_text() == "old"
    assert data.artifact("again").read_text() == "new"
    assert names["all/a.txt"] == data.artifacts["a.txt"]  # one content, kept once
    assert len(list((run.dir / "artifacts").iterdir())) == 3
    with pytest.raises(UnknownNameError, match="did you mean"):
        data.artifact("agian")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that only opens")
def test_a_file_that_opens_and_cannot_be_read_is_a_wrong_call(tmp_path):
    with start_run("files", root=tmp_path) as run:
        with pytest.raises(ConfigurationError, match="can be read"):
            run.log_artifact("/proc/self/mem")
        assert run.close().lost == 0


def test_the_import_brings_no_more_than_it_needs():
    code = (
        "import sys; before = set(sys.modules); import mlkit.tracking\n"
        "late = {'importlib.metadata', 'json', 'pathlib', 'shutil', 'subprocess', 'tenacity'}\n"
        "print(sorted(late & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")],
)
def test_the_block_says_how_it_ended(tmp_path, error, status):
    def block() -> None:
        with start_run("status", root=tmp_path):
            if error:
                raise error

    if error:
        with pytest.raises(error):
            block()
    else:
        block()
    (found,) = tmp_path.iterdir()
    assert read(found).status == status


def test_closing_again_changes_nothing(tmp_path):
    run = start_run("close", root=tmp_path)
    assert read(run.dir).status == "RUNNING"
    assert run.close("FAILED").acked == 2
    assert run.close().acked == 2
    assert read(run.dir).status == "FAILED"
    for call in (
        lambda: run.log_metric("a", 1), lambda: run.log_param("a", 1), lambda: run.set_tag("a", 1),
        lambda: run.log_artifact(b"a", name="a"), lambda: run.log_artifacts("."),
        lambda: run.child("a"),
    ):  # fmt: skip
        with pytest.raises(RunClosedError, match=run.id):
            call()


def test_a_run_left_open_is_named_and_counts_as_killed(tmp_path):
    run = start_run("open", root=tmp_path)
    where = run.dir
    with pytest.warns(TrackingWarning, match="left open"):
        del run
    assert read(where).status == "KILLED"


def test_resuming_goes_on_with_the_same_run(tmp_path):
    with start_run("resume", root=tmp_path, name="first", tags={"stage": "one"}) as run:
        run.log_params({"lr": 0.1})
        run.log_metric("loss", 1, step=1)
    with start_run("resume", root=tmp_path, resume=run.id, tags={"stage": "two"}) as again:
        assert (again.id, again.name, again.dir) == (run.id, "first", run.dir)
        assert read(run.dir).status == "RUNNING"
        with pytest.raises(ParamConflictError):
            again.log_param("lr", 0.2)
        again.log_metric("loss", 0.5, step=2)
    with pytest.raises(ConfigurationError, match="pass its id"):
        start_run("resume", root=tmp_path, resume=run)
    data = read(run.dir)
    assert (data.status, data.tags, data.params) == ("FINISHED", {"stage": "two"}, {"lr": 0.1})
    assert [point.step for point in data.metrics["loss"]] == [1, 2]
    with pytest.raises(ConfigurationError, match="the run's own"):
        start_run("another", root=tmp_path, resume=run.id)
    with pytest.raises(RunNotFoundError, match="did you mean"):
        start_run("resume", root=tmp_path, resume=run.id[:-1] + "x")


def test_nested_runs_have_their_own_record(tmp_path):
    with start_run("nested", root=tmp_path) as run:
        run.log_param("a", 1)
        with run.child("fold-1") as child:
            child.log_param("a", 2)
    data = read(child.dir)
    assert (data.parent, data.experiment, data.name) == (run.id, "nested", "fold-1")
    assert (data.params, read(run.dir).params) == ({"a": 2}, {"a": 1})


def test_the_digest_is_of_what_was_computed(tmp_path):
    def digest(*, loss=0.5, lr=0.1, seed=1, note="x", extra=True):
        with start_run("digest", root=tmp_path) as run:
            run.log_params({"lr": lr})
            run.set_tags({"seed": seed, "note": note})
            for step in range(3 if extra else 2):
                run.log_metric("loss", loss + (2 - step), step=step)
        assert run.digest == read(run.dir).digest
        return run.digest

    assert digest() == digest(note="y")
    assert (
        len({digest(), digest(loss=0.6), digest(lr=0.2), digest(seed=2), digest(extra=False)}) == 5
    )


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_what_cannot_be_a_path_is_no_run(tmp_path, name):
    with pytest.raises(RunNotFoundError):
        start_run("x", root=tmp_path, resume=name)
    with pytest.raises(RunNotFoundError):
        find_runs(tmp_path / name)


def test_reading_what_is_no_run(tmp_path):
    with pytest.raises(RunNotFoundError):
        read(tmp_path / "nothing")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(JournalError):
        read(tmp_path)
    (tmp_path / "run.json").write_text('{"format": 99}')
    with pytest.raises(JournalError, match="format 99"):
        read(tmp_path)


def test_equal_points_differ_in_their_milliseconds(tmp_path):
    with virtual_time(), start_run("time", root=tmp_path) as run:
        for _ in range(5):
            run.log_metric("loss", 1.0)
        for step in range(3):
            run.log_metric("other", 1.0, step=step)
    data = read(run.dir)
    millis = [round(point.time * 1e6) // 1000 for point in data.metrics["loss"]]
    assert millis == [millis[0] + n for n in range(5)]
    assert (
        len({point.time for point in data.metrics["other"]}) <= 2
    )  # where the step tells them apart


def test_only_the_owner_reads_the_addresses(tmp_path):
    run = start_run("secret", root=tmp_path, sinks=[f"jsonl:{tmp_path}/out"], shipper="none")
    run.close(timeout=0)
    assert (run.dir / "run.json").stat().st_mode & 0o077 == 0
    assert repr(run).startswith(f"<Run {run.id} of 'secret', closed")
