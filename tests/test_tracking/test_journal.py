"""What was acknowledged is there, whole and in order, whatever happens to the process or to the file."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkit.telemetry import collect, listen
from mlkit.testing import record_events, virtual_time
from mlkit.tracking import read, start_run


def script(code: str, *args: object, **kwargs) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        stdout=subprocess.PIPE, text=True, **kwargs,
    )  # fmt: skip


def journal_of(run_dir: Path) -> Path:
    (path,) = (run_dir / "journal").iterdir()
    return path


@pytest.fixture(scope="module")
def journal(tmp_path_factory) -> tuple[Path, bytes]:
    """A small run with every kind of frame, and the bytes of its journal."""
    with start_run("cut", root=tmp_path_factory.mktemp("cut"), tags={"a": "b"}) as run:
        run.log_params({"lr": 0.1, "depth": 3})
        for step in range(4):
            run.log_metrics({"loss": 1 / (step + 1), "acc": step / 4}, step=step)
        run.log_artifact(b"x", name="x")
        run.log_metric("late", 7)
    return run.dir, journal_of(run.dir).read_bytes()


def facts(run_dir: Path) -> list[object]:
    """Everything a run holds as one list per kind, in order."""
    data = read(run_dir)
    found: list[object] = [(key, list(points)) for key, points in data.metrics.items()]
    return [*data.params.items(), *data.tags.items(), *data.artifacts.items(), *found]


def is_part(some: list[object], whole: list[object]) -> bool:
    """Return whether *some* holds nothing but a beginning of each thing in *whole*."""
    full = {key: value for key, value in whole}
    return all(
        full[key][: len(value)] == value if isinstance(value, list) else full[key] == value
        for key, value in some
    )


def test_a_file_cut_anywhere_gives_a_prefix(journal):
    run_dir, data = journal
    path = journal_of(run_dir)
    whole = facts(run_dir)
    counts, torn = [], []
    try:
        for size in range(len(data) + 1):
            path.write_bytes(data[:size])
            found = facts(run_dir)
            assert is_part(found, whole)
            counts.append(sum(len(value) if isinstance(value, list) else 1 for _, value in found))
            torn.append(read(run_dir).torn_bytes)
        assert counts == sorted(counts)
        assert facts(run_dir) == whole
        # After each byte the loss is one byte more, until a frame is whole and nothing is lost.
        assert torn[:9] == [0, 1, 2, 3, 4, 5, 6, 7, 0]
        assert all(now in {0, before + 1} for before, now in itertools.pairwise(torn))
        assert torn[-1] == 0
    finally:
        path.write_bytes(data)


@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_never_becomes_a_wrong_value(journal, where, bit):
    run_dir, data = journal
    path = journal_of(run_dir)
    whole = facts(run_dir)
    spoiled = bytearray(data)
    spoiled[int(where * len(data))] ^= 1 << bit
    try:
        path.write_bytes(spoiled)
        assert is_part(facts(run_dir), whole)
        assert read(run_dir).torn_bytes > 0
    finally:
        path.write_bytes(data)


def test_a_bit_flipped_anywhere_never_becomes_a_wrong_value(journal):
    """Every byte of the file, each with another of its bits than its neighbours."""
    run_dir, data = journal
    path = journal_of(run_dir)
    whole = facts(run_dir)
    try:
        for where in range(len(data)):
            spoiled = bytearray(data)
            spoiled[where] ^= 1 << where % 8
            path.write_bytes(spoiled)
            assert is_part(facts(run_dir), whole)
            assert read(run_dir).torn_bytes > 0
    finally:
        path.write_bytes(data)


def test_a_killed_process_group_loses_nothing_that_was_acknowledged(tmp_path):
    code = """
        import os, sys
        from mlkit.tracking import start_run
        run = start_run("kill", root=sys.argv[1])
        run.log_params({"lr": 0.1})
        print(run.dir, flush=True)
        for step in range(10**9):
            run.log_metrics({"loss": step / 3, "acc": 1.0}, step=step)
            os.write(1, f"{step}\\n".encode())   # only after the call has returned
    """
    process = script(code, tmp_path, start_new_session=True)
    run_dir = process.stdout.readline().strip()
    for _ in range(2000):
        process.stdout.readline()
    os.killpg(process.pid, signal.SIGKILL)
    acknowledged = 2000 + len(process.communicate()[0].split())
    data = read(run_dir)
    assert len(data.metrics["loss"]) in (acknowledged, acknowledged + 1)
    assert [point.step for point in data.metrics["loss"]] == list(range(len(data.metrics["loss"])))
    assert all(point.value == point.step / 3 for point in data.metrics["loss"])
    assert (data.status, data.params) == ("KILLED", {"lr": 0.1})


def test_threads_whose_first_call_it_is_keep_equal_points_apart(tmp_path):
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    barrier = threading.Barrier(4)
    try:
        with start_run("threads", root=tmp_path) as run:

            def work() -> None:
                for fresh in range(100):
                    barrier.wait()
                    run.log_metrics({f"same{fresh}": 1.0})

            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(before)
    for points in read(run.dir).metrics.values():
        assert len({round(point.time * 1e6) // 1000 for point in points}) == 4


def test_threads_lose_and_mix_nothing(tmp_path):
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    barrier = threading.Barrier(4)
    try:
        with start_run("threads", root=tmp_path) as run:

            def work(number: int) -> None:
                barrier.wait()
                for step in range(200):
                    run.log_metrics({f"t{number}": step, "all": number}, step=step)
                    run.log_metrics({"same": 1.0})

            threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(before)
    data = read(run.dir)
    for number in range(4):
        assert [point.value for point in data.metrics[f"t{number}"]] == list(range(200))
    assert len(data.metrics["all"]) == 800
    millis = [round(point.time * 1e6) // 1000 for point in data.metrics["same"]]
    assert len(set(millis)) == 800  # equal points stay apart, whichever thread logs them


def test_a_forked_child_logs_into_the_same_run(tmp_path):
    code = """
        import os, sys
        from mlkit.tracking import start_run
        with start_run("fork", root=sys.argv[1]) as run:
            run.log_metrics({"loss": 0}, step=0)
            children = []
            for number in (1, 2):
                child = os.fork()
                if child == 0:
                    for step in range(50):
                        run.log_metrics({"loss": number}, step=step)
                    run.close("FAILED")          # the run is not the child's to end
                    os._exit(0)
                children.append(child)
            for step in range(1, 50):
                run.log_metrics({"loss": 0}, step=step)
            assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
            print(run.dir)
    """
    process = script(code, tmp_path)
    run_dir = process.communicate()[0].strip()
    assert process.returncode == 0
    data = read(run_dir)
    found = sorted((point.value, point.step) for point in data.metrics["loss"])
    assert found == [(number, step) for number in (0, 1, 2) for step in range(50)]
    assert (data.status, data.torn_bytes) == ("FINISHED", 0)
    assert len(list(Path(run_dir, "journal").iterdir())) == 3


def test_a_fork_while_a_thread_logs_does_not_hang_the_child(tmp_path):
    code = """
        import os, sys, threading
        from mlkit.tracking import start_run
        run = start_run("fork", root=sys.argv[1])
        stop = threading.Event()
        def busy():
            while not stop.is_set():
                run.log_metric("busy", 1)
        thread = threading.Thread(target=busy)
        thread.start()
        for number in range(30):
            child = os.fork()
            if child == 0:
                run.log_metric("child", number)
                os._exit(0)
            os.waitpid(child, 0)
        stop.set()
        thread.join()
        run.close()
        print(run.dir)
    """
    process = script(code, tmp_path)
    run_dir = process.communicate(timeout=300)[0].strip()
    assert sorted(point.value for point in read(run_dir).metrics["child"]) == list(range(30))


def test_a_full_disk_is_counted_and_told_and_nothing_else(tmp_path):
    """A limit on the file's size gives real short writes and real errors, as a full disk does."""
    code = """
        import json, resource, signal, sys
        from mlkit.telemetry import listen
        from mlkit.tracking import start_run
        events = []
        listen(lambda event: events.append(event.kind))
        run = start_run("full", root=sys.argv[1])
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        kept = []
        def log(first, last):
            for step in range(first, last):
                before = run.flush(0).lost
                run.log_metrics({"a": step, "b": step}, step=step)
                if run.flush(0).lost == before:
                    kept.append(step)
        log(0, 10)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (900, hard))
        log(10, 40)
        run.set_tags({"not": "kept"})
        run.log_artifact(b"x" * 5000, name="too much")
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        log(40, 50)
        delivery = run.close()
        print(json.dumps([str(run.dir), kept, list(delivery[:5]), events]))
    """
    import json

    process = script(code, tmp_path)
    run_dir, kept, delivery, events = json.loads(process.communicate()[0])
    assert process.returncode == 0
    data = read(run_dir)
    assert [point.step for point in data.metrics["a"]] == kept
    assert kept[:10] == list(range(10))
    assert kept[-10:] == list(range(40, 50))
    assert 10 < len(kept) < 50
    lost = 2 * (50 - len(kept)) + 2
    assert delivery == [2 * len(kept) + 2, 0, 0, 0, lost]
    assert (data.tags, data.artifacts, data.torn_bytes) == ({}, {}, 0)
    assert events == ["tracking.journal.failed", "tracking.journal.recovered"]


def test_a_folder_that_goes_away_is_counted_as_lost(tmp_path):
    import shutil

    run = start_run("gone", root=tmp_path)
    run.log_metrics({"a": 1, "b": 2})
    shutil.rmtree(run.dir)
    with record_events("tracking.") as events:
        run.log_metrics({"a": 1, "b": 2})
        run.log_artifact(b"x", name="x")
        delivery = run.close(timeout=0)
    assert (delivery.acked, delivery.lost) == (0, 7)
    assert not delivery.complete
    assert events[0].kind == "tracking.journal.failed"


def test_a_folder_that_is_put_back_while_the_run_goes_on_is_not_where_it_writes(tmp_path):
    import shutil

    run = start_run("back", root=tmp_path)
    run.log_metric("loss", 1)
    run.dir.rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", run.dir)
    shutil.rmtree(tmp_path / "moved")
    run.log_metric("loss", 2)
    assert run.flush(0).lost == 3
    assert run.close().lost == 4
    assert run.close().lost == 4
    assert [point.value for point in read(run.dir).metrics["loss"]] == [1]


def test_a_listener_may_wait_for_one_who_logs(tmp_path):
    """No lock of the journal is held while an event is told."""
    import shutil

    waited = []

    def tell(event):
        if event.kind == "tracking.journal.failed":
            other = threading.Thread(target=run.log_metric, args=("b", 1), daemon=True)
            other.start()
            other.join(60)
            waited.append(other.is_alive())

    run = start_run("told", root=tmp_path)
    shutil.rmtree(run.dir)
    with listen(tell):
        run.log_artifact(b"x", name="x")
    run.close(timeout=0)
    assert waited == [False]


@pytest.mark.parametrize("durability", ["process", "record"])
def test_stronger_durability_keeps_the_names_too(tmp_path, durability, monkeypatch):
    """A file that was brought to the disk is lost if the folder that names it was not."""
    synced = set()
    fsync = os.fsync

    def note(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", note)
    with start_run("names", root=tmp_path / "runs", durability=durability) as run:
        run.log_artifact(b"x", name="x")
        with run.child("inner") as child:
            pass
    folders = [tmp_path, tmp_path / "runs", run.dir, run.dir / "artifacts", run.dir / "run.json"]
    folders += [run.dir / "children", child.dir, child.dir / "run.json"]
    folders += [run.dir / "journal", child.dir / "journal"]
    missing = [path for path in folders if path.stat().st_ino not in synced]
    assert missing == ([] if durability == "record" else folders)


@pytest.mark.parametrize("durability", ["group", "record"])
def test_stronger_durability_syncs(tmp_path, durability, monkeypatch):
    calls = []
    monkeypatch.setattr("mlkit.tracking._writer._fdatasync", calls.append)
    with virtual_time() as clock, start_run("sync", root=tmp_path, durability=durability) as run:
        calls.clear()
        for step in range(20):
            run.log_metric("loss", step, step=step)
            clock.advance(0.010)
        assert len(calls) == 20 if durability == "record" else 3 <= len(calls) <= 4
        run.log_artifact(b"x", name="x")
    assert len(read(run.dir).metrics["loss"]) == 20


def test_what_is_written_and_lost_can_be_collected(tmp_path):
    def total() -> float:
        return sum(sample.value for sample in collect() if sample.name == "tracking_records_total")

    before = total()
    with start_run("count", root=tmp_path) as run:
        run.log_metrics({"a": 1, "b": 2})
        assert total() - before == 3


def test_a_metric_call_costs_what_the_docs_say(tmp_path):
    with start_run("bytes", root=tmp_path) as run:
        sizes = []
        for step in range(3):
            run.log_metrics({"a": 1, "b": 2}, step=step)
            sizes.append(journal_of(run.dir).stat().st_size)
    assert sizes[2] - sizes[1] == 29 + 2 * 8


def test_ever_new_keys_and_a_wide_call_are_fine(tmp_path):
    with start_run("keys", root=tmp_path) as run:
        for number in range(1500):
            run.log_metric(f"k{number}", number)
        run.log_metrics({f"k{number}": -1 for number in range(10_000)}, step=1)
        run.log_metric("k0", 5, step=2)
    data = read(run.dir)
    assert [point.value for point in data.metrics["k0"]] == [0, -1, 5]
    assert len(data.metrics) == 10_000


def test_a_signal_handler_may_log(tmp_path):
    with start_run("signal", root=tmp_path) as run:
        fired, seen = [], []

        def log(*_):
            fired.append(1)
            run.log_metric("handler", 1, step=len(seen))

        previous = signal.signal(signal.SIGALRM, log)
        try:
            while len(fired) < 100:  # ends, or the test's time is over
                signal.setitimer(signal.ITIMER_REAL, 0.0002)
                run.log_metric("loop", len(seen), step=len(seen))
                seen.append(1)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
    data = read(run.dir)
    assert [point.value for point in data.metrics["loop"]] == list(range(len(seen)))
    assert data.metrics["handler"]
