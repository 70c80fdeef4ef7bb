"""From the journal to a sink: everything, once, in spite of outages and refusals; and never a wrong report."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from errno import ENOSPC
from math import inf
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkit.errors import (
    ConfigurationError,
    RunNotFoundError,
    SinkRejectedError,
    TrackingWarning,
)
from mlkit.testing import record_events, virtual_time
from mlkit.tracking import Delivery, JsonlSink, _delivery, read, start_run, sync


def recorded(tmp_path, *, points=250):
    """A closed run of which nothing has been delivered."""
    with start_run("x", root=tmp_path) as run:
        run.log_params({"lr": 0.1, "depth": 3})
        for step in range(points):
            run.log_metrics({"loss": step, "acc": -step}, step=step)
        run.set_tags({"stage": "done"})
        run.log_artifact(b"weights", name="model/w.bin")
    return run, 2 + 2 + 2 * points + 1 + 1


def lines(folder: Path, run) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{run.id}.jsonl").read_text().splitlines()]


def test_sync_delivers_everything_once_in_batches(tmp_path, memory):
    run, records = recorded(tmp_path)
    delivery = sync(run.dir, sinks=[memory])
    assert delivery == Delivery(
        records, records, 0, 0, sinks={memory.uri: delivery.sinks[memory.uri]}
    )
    assert delivery.complete
    assert (len(memory.held), sum(memory.sent)) == (records, records)
    assert max(memory.sent) <= memory.max_records
    assert len(memory.sent) <= records // memory.max_records + 2
    assert [info.id for info in memory.opened] == [run.id]
    losses = [record for record in memory.held.values() if record.key == "loss"]
    assert [(record.step, record.value) for record in losses] == [(n, n) for n in range(250)]
    (artifact,) = [record for record in memory.held.values() if record.kind == "artifact"]
    assert Path(artifact.path).read_bytes() == b"weights"
    assert (artifact.key, artifact.value) == ("model/w.bin", read(run.dir).artifacts["model/w.bin"])
    assert list(memory.held.values())[-1].value == "FINISHED"
    again = sync(run.dir, sinks=[memory])
    assert again == delivery
    assert sum(memory.sent) == records  # nothing is sent twice


def test_a_call_with_more_records_than_a_batch_stays_whole(tmp_path, memory):
    with start_run("wide", root=tmp_path) as run:
        run.log_metrics({f"k{n}": n for n in range(1000)})
    assert sync(run.dir, sinks=[memory]).delivered == 1002
    assert max(memory.sent) == 1000


@given(bad=st.sets(st.integers(0, 59), max_size=6), max_records=st.integers(1, 200))
@settings(max_examples=25)
def test_refused_records_harm_no_other(tmp_path_factory, memory_sink, bad, max_records):
    memory = memory_sink(max_records=max_records)
    memory.refuse = {f"k{n}" for n in bad}
    with start_run("poison", root=tmp_path_factory.mktemp("runs")) as run:
        for n in range(60):
            run.log_metric(f"k{n}", n)
    delivery = sync(run.dir, sinks=[memory])
    assert delivery[:4] == (62, 62 - len(bad), 0, len(bad))
    wanted = {f"k{n}" for n in range(60) if n not in bad} | {"status"}
    assert set(memory.keys) == wanted
    (place,) = (run.dir / "sinks").iterdir()
    dead = []
    if bad:
        dead = [json.loads(line) for line in (place / "dead.jsonl").read_text().splitlines()]
    assert sorted(entry["key"] for entry in dead) == sorted(memory.refuse)
    assert all("not welcome" in entry["reason"] for entry in dead)
    assert sync(run.dir, sinks=[memory]) == delivery


def test_one_refused_record_costs_few_more_calls(tmp_path, memory_sink):
    run, records = recorded(tmp_path, points=400)
    memory = memory_sink(max_records=1000)
    memory.refuse = {"stage"}
    sync(run.dir, sinks=[memory])
    assert len(memory.sent) <= 2 * 10 + 1
    assert len(memory.held) == records - 1


def test_an_outage_is_waited_for(tmp_path, memory):
    run, records = recorded(tmp_path, points=5)
    memory.away = 6
    with virtual_time() as clock, record_events("tracking.") as events:
        delivery = sync(
            run.dir, sinks=[memory], timeout=inf
        )  # 1000 s would fly by while a disk is slow
    assert (delivery.delivered, delivery.pending) == (records, 0)
    kinds = [event.kind for event in events]
    assert kinds == ["tracking.sink.unavailable", "tracking.sink.recovered"]
    assert clock.monotonic() > 1005  # it waited longer and longer


def test_a_sink_that_stays_away_leaves_it_pending_with_the_reason(tmp_path, memory):
    run, records = recorded(tmp_path, points=5)
    memory.away = 10**9
    for _ in range(100):
        delivery = sync(run.dir, sinks=[memory], timeout=0.5)
        if delivery.reason:  # else the machine was too busy to ask even once
            break
    assert delivery[:4] == (records, 0, records, 0)
    assert "nobody at home" in delivery.reason
    memory.away = 0
    assert sync(run.dir, sinks=[memory]).complete


def test_a_dead_sink_delays_no_other(tmp_path, memory_sink):
    good, bad = memory_sink("memory:good"), memory_sink("memory:bad")
    bad.away = 10**9
    with start_run("two", root=tmp_path, sinks=[good, bad], shipper="thread") as run:
        for step in range(50):
            run.log_metric("loss", step, step=step)
        delivery = run.close(timeout=0.2)
    for _ in range(600):
        if not delivery.sinks["memory:good"].pending and delivery.reason:
            break
        delivery = run.close(timeout=0.1)
    assert len(good.held) == 52
    assert delivery.sinks["memory:good"][:4] == (52, 52, 0, 0)
    assert delivery.sinks["memory:bad"][:4] == (52, 0, 52, 0)
    assert delivery[:4] == (52, 0, 52, 0)  # the furthest behind
    assert "nobody at home" in delivery.reason


def test_the_thread_delivers_while_the_run_goes_on(tmp_path, memory):
    with start_run("live", root=tmp_path, sinks=[memory], shipper="thread") as run:
        run.log_metric("loss", 1)
        assert run.flush(timeout=60)[:4] == (2, 2, 0, 0)
        assert "loss" in memory.keys
        run.log_metric("loss", 2)
    assert run.close()[:4] == (4, 4, 0, 0)


def test_nested_runs_go_to_the_sink_too(tmp_path):
    out = tmp_path / "out"
    uri = f"jsonl:{out}"
    with start_run("n", root=tmp_path / "r", sinks=[uri], shipper="thread") as run:
        with run.child("one") as child:
            child.log_metric("a", 1)
        with start_run("n", root=tmp_path / "r", resume=run.dir / "children" / child.id) as again:
            again.log_metric("a", 2)
    assert [line["value"] for line in lines(out, child) if line["kind"] == "metric"] == [1, 2]
    both = sync(run.dir)
    assert both.acked == both.delivered == 8
    assert len(lines(out, run)) == 2


def test_a_run_answers_for_those_nested_in_it(tmp_path):
    import shutil

    run = start_run("n", root=tmp_path / "r")
    with run.child("one") as child, child.child("two") as grandchild:
        grandchild.log_metrics({"a": 1, "b": 2})
    assert run.flush()[:5] == (1 + 2 + 4, 0, 0, 0, 0)
    shutil.rmtree(grandchild.dir)
    assert (child.close().lost, run.flush().lost) == (4, 4)
    with pytest.warns(TrackingWarning, match=r": 4 lost$"):
        run.__exit__(None, None, None)
    with start_run("n", root=tmp_path / "r", resume=run.id, sinks=[f"jsonl:{tmp_path}/late"],
                   shipper="thread") as again:  # fmt: skip
        delivery = again.close(timeout=60)
    assert delivery.complete
    assert len(lines(tmp_path / "late", child)) == 2  # an old nested run has the new sink, too


@given(
    writers=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=6), min_size=2, max_size=4),
    max_records=st.integers(1, 12),
)
@settings(max_examples=25)
def test_what_was_logged_first_is_sent_first(tmp_path_factory, memory_sink, writers, max_records):
    root, n = tmp_path_factory.mktemp("runs"), 0
    run = None
    for calls in writers:  # one after the other, as a training that is resumed
        with start_run("n", root=root, resume=None if run is None else run.id) as run:
            for width in calls:
                run.log_metrics({f"k{key}": n + key for key in range(width)})
                n += width
    memory = memory_sink(max_records=max_records)
    assert sync(run.dir, sinks=[memory]).complete
    sent = [record.value for record in memory.held.values() if record.kind == "metric"]
    assert sent == list(range(n))


def test_a_sink_object_is_for_the_run_and_not_for_those_nested_in_it(tmp_path, memory_sink):
    for number in range(20):
        with start_run("n", root=tmp_path) as run, run.child("inner") as child:
            child.log_metric("a", 1)
        memory = memory_sink(f"memory:{number}")
        again = start_run("n", root=tmp_path, resume=run.id, sinks=[memory], shipper="thread")
        delivery = again.close(timeout=60)
        assert [info.id for info in memory.opened] == [run.id]
        assert delivery[:4] == (4 + 3, 4, 3, 0)
        assert "a scheme among" in delivery.reason


def test_a_sink_added_later_gets_the_history(tmp_path):
    run, records = recorded(tmp_path / "runs")
    with start_run("x", root=tmp_path / "runs", resume=run.id, sinks=[f"jsonl:{tmp_path}/late"],
                   shipper="none") as again:  # fmt: skip
        again.log_metric("more", 1)
        with pytest.warns(TrackingWarning, match="sync"):
            again.__exit__(None, None, None)
    assert sync(run.dir).delivered == records + 3
    assert len(lines(tmp_path / "late", run)) == records + 3


def test_an_incomplete_end_is_said(tmp_path, memory):
    memory.away = 10**9
    with (
        pytest.warns(TrackingWarning, match="3 records pending.*sync"),
        record_events("tracking.delivery.") as events,
        virtual_time(),
        start_run("short", root=tmp_path, sinks=[memory], shipper="thread") as run,
    ):
        run.log_metric("loss", 1)
    assert [event.fields["pending"] for event in events] == [3]


def test_a_truthful_report_without_a_shipper(tmp_path):
    run = start_run("none", root=tmp_path, sinks=[f"jsonl:{tmp_path}/out"], shipper="none")
    run.log_metrics({"a": 1, "b": 2})
    with virtual_time() as clock:
        start = clock.monotonic()
        delivery = run.close(timeout=60)
        assert clock.monotonic() == start  # nobody is at work, so that waiting is no use
    assert delivery[:5] == (4, 0, 4, 0, 0)
    assert "no shipper" in delivery.reason
    assert pickle.loads(pickle.dumps(delivery)) == delivery
    assert sync(run.dir).complete


def test_a_lost_cursor_only_costs_a_replay(tmp_path):
    run, records = recorded(tmp_path / "runs", points=20)
    uri = f"jsonl:{tmp_path}/out"
    sync(run.dir, sinks=[uri])
    (cursor,) = run.dir.glob("sinks/*/cursor.json")
    for content in ("", "[]", "{}"):
        cursor.write_text(content)
        assert sync(run.dir, sinks=[uri]).delivered == records
    assert len(lines(tmp_path / "out", run)) == records


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ({"timeout": -1}, ConfigurationError),
        ({"timeout": "1"}, ConfigurationError),
        ({"sinks": ["nowhere:x"]}, ConfigurationError),
        ({"sinks": "jsonl:x"}, ConfigurationError),
        ({"sinks": [3]}, ConfigurationError),
        ({"sinks": [JsonlSink]}, ConfigurationError),
        ({"sinks": ["jsonl:a", "jsonl:./a"]}, ConfigurationError),
    ],
)
def test_sync_refuses_what_is_wrong(tmp_path, args, error):
    run, _ = recorded(tmp_path, points=1)
    with pytest.raises(error):
        sync(run.dir, **args)
    with pytest.raises(RunNotFoundError):
        sync(tmp_path / "no such run", **{**args, "timeout": 1})


@pytest.mark.parametrize("wrong", [3, None, "the run"])
def test_a_run_is_named_by_its_folder(tmp_path, wrong):
    run, _ = recorded(tmp_path, points=1)
    wrong = run if wrong == "the run" else wrong
    for call in (read, sync):
        with pytest.raises(ConfigurationError, match=rf"{call.__name__}\(run\).*pass run\.dir"):
            call(wrong)


def test_who_does_not_wait_leaves_nobody_at_work(tmp_path, memory_sink):
    run, records = recorded(tmp_path, points=5)
    at_work, go_on, before = threading.Event(), threading.Event(), set(threading.enumerate())

    class Slow(memory_sink):
        def send(self, batch):
            at_work.set()
            assert go_on.wait(60)
            super().send(batch)

    sink = Slow(max_records=1)
    assert sync(run.dir, sinks=[sink], timeout=0).pending == records
    assert not at_work.wait(0.1)
    assert sync(run.dir, sinks=[sink], timeout=0.1).pending == records
    assert at_work.wait(60)
    go_on.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    assert sink.sent == [1]  # that it was in the middle of
    assert sync(run.dir, sinks=[sink]).complete


def test_a_disk_that_is_full_for_a_moment_does_not_end_the_delivery(tmp_path, memory, monkeypatch):
    full, refused, write = threading.Event(), threading.Event(), _delivery.replace_text

    def replace(*args, **kwargs):
        if full.is_set():
            refused.set()
            raise OSError(ENOSPC, "no space left on device")
        write(*args, **kwargs)

    monkeypatch.setattr(_delivery, "replace_text", replace)
    memory.refuse = {"bad"}
    with start_run("full", root=tmp_path, sinks=[memory], shipper="thread") as run:
        run.log_metric("loss", 0.5)
        assert run.flush(60).complete
        full.set()
        run.log_metrics({"loss": 0.25, "bad": 1})
        assert refused.wait(60)
        full.clear()
        delivery = run.close(timeout=60)
    assert (delivery.pending, delivery.dead_lettered) == (0, 1)
    assert [one.value for one in memory.held.values() if one.key == "loss"] == [0.5, 0.25]


def test_a_folder_that_goes_away_does_not_disturb_the_threads(tmp_path, memory):
    import shutil

    with record_events("tracking.") as events:
        run = start_run("gone", root=tmp_path, sinks=[memory], shipper="thread")
        run.flush(timeout=60)
        shutil.rmtree(run.dir)
        run.log_metric("loss", 1)
        assert run.close(timeout=60).lost == 3
    assert events[-1].kind == "tracking.delivery.incomplete"


# --- the process ---------------------------------------------------------------------------------


def test_the_process_delivers_and_the_training_imports_nothing(tmp_path):
    code = """
        import sys
        from mlkit.tracking import start_run
        with start_run("p", root=sys.argv[1], sinks=["jsonl:" + sys.argv[2]]) as run:
            run.log_params({"lr": 0.1})
            with run.child("inner") as child:
                child.log_metric("a", 1)
            for step in range(100):
                run.log_metrics({"loss": step}, step=step)
            delivery = run.close(timeout=60)
        assert delivery[:5] == (106, 106, 0, 0, 0), delivery   # the nested run's three, too
        assert child.flush(timeout=0)[:5] == (3, 3, 0, 0, 0)
        heavy = {"mlflow", "tenacity", "asyncio", "numpy", "pydantic"} & set(sys.modules)
        assert not heavy, heavy
        import threading
        assert threading.active_count() <= 2   # the main thread, and who waits for the shipper's end
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), tmp_path / "r", tmp_path / "o"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    (run_dir,) = (tmp_path / "r").iterdir()
    assert (run_dir / "shipper.log").read_text() == ""
    assert len(list((tmp_path / "o").iterdir())) == 2


def test_the_shipper_outlives_a_killed_process_group_and_tells(tmp_path):
    code = """
        import sys, time
        from mlkit.tracking import start_run
        run = start_run("k", root=sys.argv[1], sinks=["jsonl:" + sys.argv[2]])
        for step in range(500):
            run.log_metrics({"loss": step}, step=step)
        print(run.dir, flush=True)
        time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path / "r", tmp_path / "o"],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    run_dir = Path(process.stdout.readline().strip())
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    path = tmp_path / "o" / f"{run_dir.name}.jsonl"
    for _ in range(3000):  # nobody but the shipper is left to write it
        if path.exists() and '"KILLED"' in path.read_text():
            break
        time.sleep(0.1)
    out = [
        json.loads(line)
        for line in (tmp_path / "o" / f"{run_dir.name}.jsonl").read_text().splitlines()
    ]
    losses = [line for line in out if line["key"] == "loss"]
    assert [line["value"] for line in losses] == list(range(500))
    assert [line["value"] for line in out if line["kind"] == "status"] == ["RUNNING", "KILLED"]
    assert sync(run_dir, timeout=60).complete


def test_a_path_in_sys_path_that_is_no_text_keeps_no_run_from_starting(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])  # Python passes over it
    with start_run("x", root=tmp_path, sinks=[f"jsonl:{tmp_path / 'out'}"]) as run:
        assert run.close(timeout=60).complete


def test_a_killed_shipper_is_reported_and_sync_goes_on(tmp_path):
    out = tmp_path / "out"
    run = start_run("s", root=tmp_path / "r", sinks=[f"jsonl:{out}"])
    run.log_metric("loss", 1)
    run.flush(timeout=60)
    os.kill(run._shipper._process.pid, signal.SIGKILL)
    run.log_metric("loss", 2)
    delivery = run.close(timeout=60)
    assert delivery[:4] == (4, 2, 2, 0)
    assert "ended with status -9" in delivery.reason
    assert sync(run.dir).complete
    assert len(lines(out, run)) == 4


def test_closing_again_waits_for_the_process_again(tmp_path):
    run = start_run("s", root=tmp_path / "r", sinks=[f"jsonl:{tmp_path}/out"])
    run.log_metric("loss", 1)
    first = run.close(timeout=0)
    assert (first.acked, first.reason) == (3, "")
    assert run.flush(timeout=60).complete
    assert run.close(timeout=60)[:4] == (3, 3, 0, 0)


def test_a_nested_run_that_is_slow_to_begin_is_delivered(tmp_path, monkeypatch):
    import mlkit.tracking._journal

    begin = mlkit.tracking._journal.Journal.open

    def slowly(journal):
        time.sleep(0.5)  # several looks of the shipper, which is another process
        begin(journal)

    with start_run("s", root=tmp_path / "r", sinks=[f"jsonl:{tmp_path}/out"]) as run:
        run.flush(timeout=60)
        monkeypatch.setattr("mlkit.tracking._journal.Journal.open", slowly)
        with run.child("slow") as child:
            child.log_metric("loss", 1)
        assert run.close(timeout=60).complete
    assert len(lines(tmp_path / "out", child)) == 3


def test_a_shipper_that_cannot_start_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/does/not/exist")
    with record_events("tracking.") as events:
        run = start_run("s", root=tmp_path / "r", sinks=[f"jsonl:{tmp_path}/out"])
        run.log_metric("loss", 1)
        delivery = run.close(timeout=60)
    assert delivery[:4] == (3, 0, 3, 0)
    assert "could not be started" in delivery.reason
    assert [event.kind for event in events] == [
        "tracking.shipper.failed", "tracking.delivery.incomplete",
    ]  # fmt: skip


def test_a_line_that_a_killed_sink_did_not_finish_is_dropped(tmp_path):
    run, records = recorded(tmp_path / "r", points=3)
    sink = JsonlSink(tmp_path / "out")
    sync(run.dir, sinks=[sink])
    path = tmp_path / "out" / f"{run.id}.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    next(run.dir.glob("sinks/*/cursor.json")).unlink()
    sync(run.dir, sinks=[sink.uri])
    assert len(lines(tmp_path / "out", run)) == records


@pytest.mark.parametrize("nested", [False, True])
def test_nobody_waits_for_a_backend_that_refuses_the_run_for_good(tmp_path, memory_sink, nested):
    class Refusing(memory_sink):
        def open(self, run):
            raise SinkRejectedError("the experiment was deleted")

    good, bad = memory_sink("memory:good"), Refusing("memory:bad")
    with start_run("x", root=tmp_path, sinks=[good, bad], shipper="thread") as run:
        run.log_metric("loss", 1)
        inner = run.child("inner") if nested else None
        delivery = run.flush(timeout=inf)  # the run goes on, so its shipper does, too
        assert delivery.sinks["memory:bad"][:4] == (2 + nested, 0, 2 + nested, 0)
        assert "deleted" in delivery.reason
        if inner:
            inner.close()
        run.close(timeout=inf)
    assert len(good.held) == 3


def test_who_resumes_a_run_that_was_refused_waits_for_the_new_attempt(tmp_path, memory_sink):
    class Refusing(memory_sink):
        def open(self, run):
            raise SinkRejectedError("the experiment was deleted")

    run = start_run("x", root=tmp_path, sinks=[Refusing()], shipper="thread")
    assert run.close(timeout=60).pending == 2
    (marker,) = run.dir.glob("sinks/*/given_up")
    good = memory_sink()
    with start_run("x", root=tmp_path, resume=run.id, sinks=[good], shipper="thread") as again:
        assert not marker.exists()
        assert again.flush(timeout=60).delivered == 3
