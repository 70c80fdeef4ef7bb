"""Curves, texts, figures, tables and data; ranks and ids; notebooks; what the other blocks say."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import multiprocessing
import pickle
import subprocess
import sys
import textwrap
import threading
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkit.errors import ConfigurationError, DigestError, RunClosedError, TrackingWarning
from mlkit.telemetry import Counter, emit, register
from mlkit.testing import virtual_time
from mlkit.tracking import DataRef, find_runs, read, start_run, status, sync

steps = st.integers(-(2**63), 2**63 - 1)


# --- curves --------------------------------------------------------------------------------------


@given(rows=st.lists(st.tuples(steps, st.floats(), st.integers(-5, 5)), max_size=20))
@settings(max_examples=40)
def test_a_curve_is_what_its_points_would_be(tmp_path_factory, rows):
    root = tmp_path_factory.mktemp("runs")
    with virtual_time(), start_run("x", root=root) as one:
        for step, a, b in rows:
            one.log_metrics({"a": a, "b": b}, step=step)
    with virtual_time(), start_run("x", root=root) as many:
        many.log_points({"a": [a for _, a, _ in rows], "b": np.array([b for *_, b in rows], int)},
                        steps=[step for step, *_ in rows])  # fmt: skip
    assert repr(read(many.dir).metrics) == repr(read(one.dir).metrics)


def test_arrays_and_tensors_of_many_points(tmp_path):
    torch = pytest.importorskip("torch")
    n = 12_000
    with start_run("x", root=tmp_path) as run:
        run.log_points({"a": torch.arange(n) / 2, "b": np.arange(n)}, steps=np.arange(n))
    a = np.array(read(run.dir).metrics["a"])
    assert (a.shape, a[-1, 0], a[-1, 2]) == ((n, 3), n - 1, (n - 1) / 2)
    assert run.close().acked == 2 * n + 2


@pytest.mark.parametrize(
    ("metrics", "at", "place"),
    [
        ({}, [], "non-empty"),
        ({"a": [1, 2]}, [1], "one for each of the 1 steps"),
        ({"a": [1, "x"]}, [1, 2], "one number"),
        ({"a": "12"}, [1, 2], "a list or an array"),
        ({"a": 3}, [1], "a list or an array"),
        ({"a": [[1, 2]]}, [1], "one number"),
        ({"a": [1]}, [1.5], "integer"),
        ({3: [1]}, [1], "a name"),
    ],
)
def test_a_wrong_curve_leaves_nothing(tmp_path, metrics, at, place):
    with start_run("x", root=tmp_path) as run:
        with pytest.raises(ConfigurationError, match=place):
            run.log_points(metrics, at)
        assert run.flush().acked == 1
    with pytest.raises(RunClosedError):
        run.log_points({"a": [1]}, [1])


# --- artifacts of other kinds --------------------------------------------------------------------


def test_texts_figures_and_tables_are_files(tmp_path):
    pyplot = pytest.importorskip("matplotlib.figure")
    figure = pyplot.Figure()
    figure.subplots().plot([1, 2])
    rows = [{"a": 1, "b": "ü,\n"}, {"a": float("nan"), "c": None}]
    with start_run("x", root=tmp_path) as run:
        run.log_text("prompt ü", "notes/p.txt")
        run.log_figure(figure, "plots/roc.png")
        run.log_figure(figure, "plots/roc.svg")
        run.log_table(rows, "t.json")
        run.log_table(rows, "t.csv")
        with pytest.raises(ConfigurationError, match="ending"):
            run.log_figure(figure, "roc.nothing")
        with pytest.raises(ConfigurationError, match="Matplotlib"):
            run.log_figure([1, 2], "roc.png")
        for wrong in (3, "ab", [1, 2], {"a": 1}, {"a": [1], "b": [1, 2]}):
            with pytest.raises(ConfigurationError, match="log_table"):
                run.log_table(wrong, "t.json")
        for name in ("t", "t.xlsx", "../t.json"):
            with pytest.raises(ConfigurationError, match="log_table"):
                run.log_table(rows, name)
        with pytest.raises(ConfigurationError, match="text"):
            run.log_text(b"x", "x.txt")
    data = read(run.dir)
    assert data.artifact("notes/p.txt").read_text("utf-8") == "prompt ü"
    assert data.artifact("plots/roc.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in data.artifact("plots/roc.svg").read_bytes()
    assert json.loads(data.artifact("t.json").read_text()) == {
        "columns": ["a", "b", "c"], "data": [[1, "ü,\n", None], ["NaN", None, None]],
    }  # fmt: skip
    back = list(csv.reader(io.StringIO(data.artifact("t.csv").read_text("utf-8"), newline="")))
    assert back == [["a", "b", "c"], ["1", "ü,\n", ""], ["nan", "", ""]]


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "numpy"])
def test_a_table_of_any_library_is_the_same_table(tmp_path, library):
    module = pytest.importorskip(library)
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"id": [1, 2, 3], "name": ["a", "b", "c"]}
    table = {
        "pandas": lambda: module.DataFrame(columns),
        "polars": lambda: module.DataFrame(columns),
        "pyarrow": lambda: module.table(columns),
        "numpy": lambda: {key: module.array(value) for key, value in columns.items()},
    }[library]()
    with start_run("x", root=tmp_path) as run:
        run.log_table(table, "t.json")
        run.log_table(table, "t.parquet")
    data = read(run.dir)
    held = json.loads(data.artifact("t.json").read_text())
    assert held == {"columns": ["id", "name"], "data": [[1, "a"], [2, "b"], [3, "c"]]}
    assert parquet.read_table(data.artifact("t.parquet")).to_pydict() == columns


# --- data ----------------------------------------------------------------------------------------


def test_data_is_known_by_its_fingerprint(tmp_path):
    file = tmp_path / "train.csv"
    file.write_text("a,b\n")
    with start_run("x", root=tmp_path / "runs", sinks=[f"jsonl:{tmp_path}/out"], shipper="none") as run:  # fmt: skip
        one = run.log_input("train", file, context="training")
        run.log_input("again", file.read_bytes())
        run.log_input("folder", fingerprint="tree:abc", source="s3://bucket/x")
        run.log_input("counted", [3, 4], fingerprint=lambda data: f"len:{len(data)}")
        run.log_output("predictions", np.arange(3))
        run.set_tag("note", "mine")
        for wrong in (
            lambda: run.log_input("x"), lambda: run.log_input("x", tmp_path),
            lambda: run.log_input("x", 1, fingerprint=lambda _: 3), lambda: run.log_input(3, 1),
            lambda: run.log_output("x", 1, context=3), lambda: run.log_output("x", 1, source=3),
            lambda: run.set_tag("mlkit.input.train", "forged"),
        ):  # fmt: skip
            with pytest.raises(ConfigurationError):
                wrong()
        with pytest.raises(DigestError):
            run.log_input("x", object())
        run.close(timeout=0)
    data = read(run.dir)
    assert data.inputs["train"] == one == DataRef(one.fingerprint, str(file), "training")
    assert data.inputs["again"].fingerprint == one.fingerprint
    assert data.inputs["folder"] == DataRef("tree:abc", "s3://bucket/x")
    assert data.inputs["counted"].fingerprint == "len:2"
    assert list(data.outputs) == ["predictions"]
    assert data.tags == {"note": "mine"}
    assert sync(run.dir).complete  # and every sink gets them, as tags
    out = (tmp_path / "out" / f"{run.id}.jsonl").read_text()
    assert "mlkit.input.train" in out
    assert "mlkit.output.predictions" in out


# --- who writes ----------------------------------------------------------------------------------


def rank_in_its_own_process(root, out, rank, count):
    with start_run("job", root=root, run_id="job-7", rank=rank, sinks=[f"jsonl:{out}"]) as run:
        run.log_params({"lr": 0.1})
        run.log_points({"loss": np.full(50, rank)}, steps=range(50))
        if rank == 0:
            for _ in range(20_000):
                if len(list((run.dir / "journal").glob("*.mkj"))) == count:
                    break
                threading.Event().wait(0.01)
            assert run.close(timeout=300).pending == 0


def test_every_rank_writes_and_the_first_of_them_makes_the_run(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    ranks = [
        spawn.Process(target=rank_in_its_own_process, args=(tmp_path / "r", tmp_path / "o", n, 3))
        for n in range(3)
    ]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join(300)
    assert [one.exitcode for one in ranks] == [0, 0, 0]
    (run_dir,) = find_runs(tmp_path / "r")
    assert run_dir.name == "job-7"
    assert [one.name for one in (tmp_path / "r").iterdir()] == ["job-7"]  # no half-made folder
    data = read(run_dir)
    assert (data.status, data.params) == ("FINISHED", {"lr": 0.1})
    found = {key: {point.value for point in points} for key, points in data.metrics.items()}
    assert found == {"loss": {0}, "rank-1/loss": {1}, "rank-2/loss": {2}}
    assert sync(run_dir).complete
    lines = [json.loads(line) for line in (tmp_path / "o" / "job-7.jsonl").read_text().splitlines()]
    assert sum(line["kind"] == "metric" for line in lines) == 150
    assert [line["value"] for line in lines if line["kind"] == "status"] == ["RUNNING", "FINISHED"]


def test_threads_that_start_one_run_at_once_share_it(tmp_path):
    barrier, ids = threading.Barrier(6), []

    def work(rank):
        barrier.wait()
        with start_run("x", root=tmp_path, run_id="one", rank=rank) as run:
            run.log_metric("m", rank)
            ids.append(run.id)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ids == ["one"] * 6
    assert len(read(tmp_path / "one").metrics) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


@pytest.mark.parametrize("wrong", ["", ".hidden", "a/b", "../x", "a b", "x" * 201, 3, "é"])
def test_an_id_is_the_name_of_a_folder(tmp_path, wrong):
    with pytest.raises(ConfigurationError, match="run_id"):
        start_run("x", root=tmp_path, run_id=wrong)
    with pytest.raises(ConfigurationError, match="either"):
        start_run("x", root=tmp_path, run_id="a", resume="b")
    with pytest.raises(ConfigurationError, match="rank"):
        start_run("x", root=tmp_path, rank=-1)
    start_run("x", root=tmp_path, run_id="a").close()
    with pytest.raises(ConfigurationError, match="the run's own"):
        start_run("y", root=tmp_path, run_id="a")


def test_a_run_that_is_pickled_says_what_to_do(tmp_path):
    with start_run("x", root=tmp_path) as run, pytest.raises(TypeError, match="resume="):
        pickle.dumps(run)


def test_tasks_log_beside_each_other(tmp_path):
    async def work(run, number):
        for step in range(20):
            run.log_metric(f"t{number}", step, step=step)
            await asyncio.sleep(0)
        return await asyncio.to_thread(run.flush, 5)

    async def main():
        with start_run("x", root=tmp_path) as run:
            found = await asyncio.gather(*(work(run, number) for number in range(10)))
            assert all(delivery.lost == 0 for delivery in found)
        return run

    run = asyncio.run(main())
    metrics = read(run.dir).metrics
    assert len(metrics) == 10
    assert all([point.step for point in points] == list(range(20)) for points in metrics.values())


# --- how it ends ---------------------------------------------------------------------------------


@pytest.fixture
def notebook(monkeypatch):
    shell = types.ModuleType("IPython")
    shell.get_ipython = lambda: shell
    monkeypatch.setitem(sys.modules, "IPython", shell)
    return shell


def test_a_cell_that_is_run_again_closes_the_run_it_left_open(tmp_path, notebook):
    first = start_run("x", root=tmp_path)
    with pytest.warns(TrackingWarning, match=f"run {first.id} was still open"):
        second = start_run("x", root=tmp_path)
    assert (read(first.dir).status, read(second.dir).status) == ("FINISHED", "RUNNING")
    with pytest.raises(ConfigurationError):
        start_run("x", root=tmp_path, sinks=["nowhere:x"])
    assert read(second.dir).status == "RUNNING"  # what is not started closes nothing
    second.close()
    with start_run("x", root=tmp_path) as outer, start_run("x", root=tmp_path):
        outer.log_metric("a", 1)  # a `with` block will end it, so it stays open
    assert read(outer.dir).status == "FINISHED"


def test_elsewhere_several_runs_are_open_at_once(tmp_path):
    with start_run("x", root=tmp_path) as one:
        two = start_run("x", root=tmp_path)
        three = start_run("x", root=tmp_path)
        assert [read(run.dir).status for run in (one, two, three)] == ["RUNNING"] * 3
        two.close()
        three.close()


def test_the_last_line_says_where_it_is_and_what_was_delivered(tmp_path, memory, capsys, caplog, monkeypatch):  # fmt: skip
    memory.refuse = {"bad"}
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    run = start_run("x", root=tmp_path, sinks=[memory], shipper="thread")
    run.log_metrics({"good": 1, "bad": 2})
    run.child("inner").close()
    run.close("FAILED", timeout=60)
    run.close()
    told = capsys.readouterr().err
    assert told.count("\n") == 1  # once, and not for nested runs
    assert f"run {run.id} FAILED: 6 records in {run.dir}; memory has " in told
    assert "1 refused" in told
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    with caplog.at_level("INFO", logger="mlkit.tracking"), start_run("x", root=tmp_path) as quiet:
        pass
    assert capsys.readouterr().err == ""
    assert [record.getMessage() for record in caplog.records] == [
        f"run {quiet.id} FINISHED: 2 records in {quiet.dir}"
    ]


# --- telemetry -----------------------------------------------------------------------------------


class Counting:
    def __init__(self):
        self.rows = Counter("inference_rows_total", model="digits")
        register(self.rows)


def test_what_other_blocks_say_is_recorded(tmp_path):
    counting = Counting()
    counting.rows.add(5)
    with start_run("x", root=tmp_path) as run:
        emit("resilience.breaker.opened", "before", failures=1)
        listening = run.listen()
        emit("resilience.breaker.opened", "ranker", failures=5, reason="errors")
        emit("resilience.breaker.opened", "ranker", failures=6, reason="slow")
        counting.rows.add(3)
        listening.record(step=7)
        listening.record(step=8)  # nothing has changed
        counting.rows.add(1)
        other = start_run("x", root=tmp_path)
        other.log_metric("a", 1)  # what a journal counts of itself is not recorded
        other.close()
    emit("resilience.breaker.opened", "after", failures=1)
    data = read(run.dir)
    opened = "telemetry/resilience.breaker.opened/ranker"
    rows = "telemetry/inference_rows_total/model=digits"
    ours = {key: points for key, points in data.metrics.items() if "ranker" in key or key == rows}
    assert {key: [(p.step, p.value) for p in points] for key, points in ours.items()} == {
        opened: [(1, 1), (2, 2)],
        f"{opened}/failures": [(1, 5), (2, 6)],
        rows: [(7, 8), (0, 9)],
    }
    assert not [
        key for key in data.metrics if "before" in key or "after" in key or "tracking" in key
    ]
    said = json.loads(data.tags["mlkit.event.resilience.breaker.opened.ranker"])
    assert said["reason"] == "slow"


def test_nothing_is_recorded_unless_asked(tmp_path):
    with start_run("x", root=tmp_path) as run:
        emit("resilience.breaker.opened", "ranker", failures=5)
        with run.listen():
            pass
        emit("resilience.breaker.opened", "ranker", failures=5)
    assert not [key for key in read(run.dir).metrics if "breaker" in key]
    with pytest.raises(RunClosedError):
        run.listen()


def test_ever_new_names_do_not_fill_the_run(tmp_path):
    with start_run("x", root=tmp_path) as run, run.listen():
        for number in range(1100):
            emit("flags.flag.changed", f"f{number}")
    assert len([key for key in read(run.dir).metrics if "flags.flag" in key]) == 1001
    assert read(run.dir).metrics["telemetry/flags.flag.changed/(other)"][-1].value == 100


def test_a_journal_that_fails_while_it_listens_does_not_go_round_and_round(tmp_path):
    code = """
        import shutil, sys
        from mlkit.telemetry import emit
        from mlkit.tracking import start_run
        run = start_run("x", root=sys.argv[1])
        run.listen()
        shutil.rmtree(run.dir)
        run.log_artifact(b"x", name="x")      # fails, and says so
        emit("resilience.breaker.opened", "ranker", reason="slow")
        print(run.close(timeout=0).lost > 0)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), tmp_path],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_status_names_those_who_are_at_work(tmp_path):
    with start_run("x", root=tmp_path, sinks=[f"jsonl:{tmp_path}/out"], shipper="thread") as run:
        run.flush(timeout=60)
        (one,) = status(run.dir)
        assert (one.status, len(one.writers), list(one.shipping)) == ("RUNNING", 1, list(one.delivery.sinks))  # fmt: skip
    (one,) = status(run.dir)
    assert (one.status, one.writers, one.complete) == ("FINISHED", (), True)
