"""Long journals: a writer goes on in a new file, and what every sink has may go."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from math import inf
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkit.cli import main
from mlkit.tracking import prune, read, start_run, status, sync


@pytest.fixture
def short_segments(monkeypatch):
    monkeypatch.setattr("mlkit.tracking._writer._SEGMENT", 600)


def files(run) -> list[Path]:
    return sorted((run.dir / "journal").glob("*.mkj"))


def facts(run_dir):
    data = read(run_dir)
    last = {key: points[-1] for key, points in data.metrics.items()}
    return data.params, data.tags, data.artifacts, data.status, last, data.digest, data.torn_bytes


def record(root, count=200, **kwargs):
    with start_run("x", root=root, **kwargs) as run:
        run.log_params({"lr": 0.1})
        for step in range(count):
            run.log_metrics({"loss": 1 / (step + 1), "acc": step}, step=step)
            if step % 20 == 0:
                run.log_metric(f"rare{step % 3}", step, step=step)
                run.set_tag("stage", step)
        run.log_artifact(b"w", name="w")
    return run


@pytest.mark.usefixtures("short_segments")
def test_a_long_run_is_in_several_files_and_reads_as_one(tmp_path, memory):
    run = record(tmp_path, sinks=[memory], shipper="thread")
    assert len(files(run)) > 10
    assert max(path.stat().st_size for path in files(run)) < 800
    assert [point.step for point in read(run.dir).metrics["loss"]] == list(range(200))
    assert run.close(timeout=60).complete
    losses = [one.value for one in memory.held.values() if one.key == "loss"]
    assert losses == [1 / (step + 1) for step in range(200)]
    assert list(memory.held.values())[-1].value == "FINISHED"  # it never took the writer for dead
    assert [one.value for one in memory.held.values() if one.kind == "status"].count("KILLED") == 0


@pytest.mark.parametrize("size", [1, 100, 200])
def test_wherever_a_file_ends_the_next_one_says_all_it_needs(tmp_path, memory, monkeypatch, size):
    monkeypatch.setattr("mlkit.tracking._writer._SEGMENT", size)
    with start_run("x", root=tmp_path) as run:
        for step in range(5):
            run.log_metrics({"a": step, "b": -step}, step=step)
            run.log_points({"a": [step], "c": [step]}, steps=[step])
            run.log_param(f"p{step}", step)
    assert [point.value for point in read(run.dir).metrics["a"]] == [
        n for n in range(5) for _ in "12"
    ]
    assert sync(run.dir, sinks=[memory]).delivered == 5 * 5 + 2


def test_many_small_files_are_as_quick_as_one(tmp_path, memory_sink, monkeypatch):
    """Batches are filled across files: they are what a backend's time goes into."""
    monkeypatch.setattr("mlkit.tracking._writer._SEGMENT", 1)
    with start_run("x", root=tmp_path) as run:
        for step in range(300):
            run.log_metrics({"a": step, "b": step}, step=step)
            run.set_tag("last", step)
        run.log_metrics({f"wide{n}": n for n in range(150)})
    memory = memory_sink(max_records=100)
    assert sync(run.dir, sinks=[memory]).complete
    assert len(memory.sent) <= 13
    assert sorted(memory.sent)[-2:] == [100, 150]  # one call's records stay together
    assert [one.value for one in memory.held.values() if one.key == "last"][-1] == "299"


def test_nobody_waits_for_a_file_that_has_just_begun(tmp_path, memory, monkeypatch):
    monkeypatch.setattr("mlkit.tracking._writer._SEGMENT", 1)
    with start_run("x", root=tmp_path, sinks=[memory], shipper="thread") as run:
        run.log_metric("a", 1)
        assert run.flush(timeout=inf).complete  # or it never ends


@pytest.mark.usefixtures("short_segments")
def test_the_order_of_files_does_not_hang_on_the_clock(tmp_path, monkeypatch):
    class Back:
        now = 2e9

        def time(self):
            return self.now

    with start_run("x", root=tmp_path) as run:
        clock = Back()
        monkeypatch.setattr("mlkit.tracking._journal.current", lambda: clock)
        for step in range(100):
            run.log_metric("loss", step, step=step)
            run.set_tag("last", step)
            clock.now -= 60
    data = read(run.dir)
    assert [point.step for point in data.metrics["loss"]] == list(range(100))
    assert data.tags == {"last": "99"}


@pytest.mark.usefixtures("short_segments")
def test_a_new_file_that_cannot_be_made_loses_nothing(tmp_path, monkeypatch):
    import mlkit.tracking._writer

    with start_run("x", root=tmp_path) as run:

        def refuse(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(mlkit.tracking._writer.Writer, "open", refuse)
        for step in range(100):
            run.log_metric("loss", step, step=step)
        monkeypatch.undo()
    assert run.flush().lost == 0
    assert len(read(run.dir).metrics["loss"]) == 100


def test_a_process_killed_while_it_changes_files_loses_nothing(tmp_path):
    code = """
        import os, sys
        import mlkit.tracking._writer as writer
        from mlkit.tracking import start_run
        writer._SEGMENT = 200
        run = start_run("kill", root=sys.argv[1])
        print(run.dir, flush=True)
        for step in range(10**9):
            run.log_metrics({"loss": step / 3}, step=step)
            os.write(1, f"{step}\\n".encode())
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    run_dir = process.stdout.readline().strip()
    for _ in range(1000):
        process.stdout.readline()
    os.killpg(process.pid, signal.SIGKILL)
    acknowledged = 1000 + len(process.communicate()[0].split())
    points = read(run_dir).metrics["loss"]
    assert len(points) in (acknowledged, acknowledged + 1)
    assert [point.step for point in points] == list(range(len(points)))


@pytest.mark.usefixtures("short_segments")
def test_what_every_sink_has_may_go_and_the_rest_stays(tmp_path, memory, memory_sink):
    run = record(tmp_path / "r", sinks=[f"jsonl:{tmp_path}/out"], shipper="thread")
    assert run.close(timeout=60).complete
    before, held = facts(run.dir), (tmp_path / "out" / f"{run.id}.jsonl").read_bytes()
    points = sum(len(points) for points in read(run.dir).metrics.values())
    size = sum(path.stat().st_size for path in files(run))
    removed = prune(run.dir)
    assert removed > points / 2
    assert sum(path.stat().st_size for path in files(run)) < size
    assert facts(run.dir) == before
    data = read(run.dir)
    assert data.pruned_points == removed
    assert sum(len(points) for points in data.metrics.values()) == points - removed
    assert prune(run.dir) == 0
    assert [one.complete for one in status(run.dir)] == [True]
    assert sync(run.dir).pending == 0
    assert (tmp_path / "out" / f"{run.id}.jsonl").read_bytes() == held
    late = sync(run.dir, sinks=[memory])  # a sink that comes late gets the rest, and is told
    assert late.complete
    assert sum(int(r.value) for r in memory.held.values() if "pruned" in r.key) == removed
    again = start_run("x", root=tmp_path / "r", resume=run.id, shipper="none")
    again.log_metric("loss", 7, step=1000)
    again.close(timeout=0)
    assert sync(run.dir).complete
    assert read(run.dir).metrics["loss"][-1].value == 7


@pytest.mark.usefixtures("short_segments")
def test_what_some_sink_has_not_stays(tmp_path, memory, capsys):
    plain = record(tmp_path / "plain")
    assert prune(plain.dir) == 0  # no sink: the journal is all there is
    memory.away = 10**9
    sync(plain.dir, sinks=[memory], timeout=0.2)
    assert prune(plain.dir) == 0
    memory.away = 0
    sync(plain.dir, sinks=[memory])
    victim = files(plain)[3]
    victim.write_bytes(victim.read_bytes()[:-1] + b"\0")
    damaged = victim.read_bytes()
    assert main(["tracking", "prune", str(tmp_path / "plain"), "--json"]) == 0
    assert next(iter(json.loads(capsys.readouterr().out).values())) > 0
    assert victim.read_bytes() == damaged
    with start_run("x", root=tmp_path, sinks=[f"jsonl:{tmp_path}/o"], shipper="thread") as run:
        run.log_points({"a": range(20)}, steps=range(20))
        assert run.flush(timeout=60).complete
        live = [path.stat().st_ino for path in files(run)][-1]
        prune(run.dir)
        assert files(run)[-1].stat().st_ino == live  # somebody writes to it
        run.log_metric("a", 99, step=20)
    assert read(run.dir).metrics["a"][-1].value == 99


@given(
    calls=st.lists(
        st.tuples(st.sampled_from(["a", "b", "ab", "tag"]), st.integers(0, 9)), max_size=25
    ),
    cuts=st.integers(1, 3),
)
@settings(max_examples=30)
def test_pruning_changes_no_last_value(tmp_path_factory, memory_sink, calls, cuts):
    place = tmp_path_factory.mktemp("runs")
    memory, run = memory_sink(), None
    for part in range(cuts):
        with start_run("x", root=place, resume=run and run.id) as run:
            for what, value in calls[part::cuts]:
                if what == "tag":
                    run.set_tag("t", value)
                else:
                    run.log_metrics(dict.fromkeys(what, value), step=value)
        sync(run.dir, sinks=[memory])
        before = facts(run.dir)
        prune(run.dir)
        assert facts(run.dir) == before
        assert sync(run.dir, sinks=[memory]).complete
