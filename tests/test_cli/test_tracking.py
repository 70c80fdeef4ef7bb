"""The command on real runs, in real processes, one of them killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mlkit.cli import main
from mlkit.tracking import start_run

TRAINING = """
    import sys, time
    from mlkit.tracking import start_run
    run = start_run("k", root=sys.argv[1], sinks=["jsonl:" + sys.argv[2]], shipper="none", name="doomed")
    run.log_params({"lr": 0.1})
    inner = run.child("fold")
    inner.log_metric("loss", float("inf"), step=1)
    run.log_artifact(b"weights", name="w.bin")
    print(run.dir, flush=True)
    time.sleep(60)
"""


def command(*words: object) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "mlkit", "tracking", *map(str, words)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_what_a_killed_process_left_is_seen_and_finished_on_another_machine(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(TRAINING), tmp_path / "runs", tmp_path / "out"],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        run_dir = Path(process.stdout.readline().strip())
        rc, out, _ = command("status", tmp_path / "runs")
        assert (rc, out.count("RUNNING")) == (1, 2)
        assert f"written to by process {process.pid}" in out
        assert "0 of 3 records delivered, 3 pending" in out
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    rc, out, _ = command("status", "--json", run_dir)
    outer, inner = json.loads(out)
    assert (rc, outer["status"], outer["writers"], outer["complete"]) == (1, "KILLED", [], False)
    assert (inner["parent"], inner["delivery"]["pending"]) == (outer["id"], 2)

    copy = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "runs", copy)
    shutil.rmtree(run_dir)
    there = tmp_path / "there"
    rc, out, err = command("sync", copy, "--sink", f"jsonl:{there}")
    assert (rc, err) == (0, "")
    assert "5 of 5 records delivered" in out
    lines = [json.loads(line) for path in there.iterdir() for line in path.read_text().splitlines()]
    assert sorted(line["value"] for line in lines if line["kind"] == "status") == [
        "KILLED", "KILLED", "RUNNING", "RUNNING",
    ]  # fmt: skip
    (artifact,) = [line for line in lines if line["kind"] == "artifact"]
    assert artifact["key"] == "w.bin"
    rc, out, _ = command("sync", copy, "--sink", f"jsonl:{there}", "--json")  # twice is once
    assert (rc, json.loads(out)[0]["delivered"]) == (0, 5)
    after = [line for path in there.iterdir() for line in path.read_text().splitlines()]
    assert len(after) == len(lines)


@pytest.fixture
def left(tmp_path):
    """A run of which its sink has nothing."""
    with start_run("x", root=tmp_path / "runs", sinks=[f"jsonl:{tmp_path}/out"], shipper="none") as run:  # fmt: skip
        run.log_params({"lr": 0.1, "limit": float("inf"), "all": [float("nan")]})
        run.log_metrics({"loss": 0.5, "bad": float("-inf")}, step=3)
        run.log_metric("loss", 0.25, step=4)
        run.set_tag("note", "a\x1b[2Jb")
        run.log_artifact(b"x", name="x.txt")
        run.close(timeout=0)
    return run


def strict(text: str):
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_show_prints_what_was_logged(left, capsys):
    assert main(["tracking", "show", str(left.dir)]) == 0
    out = capsys.readouterr().out
    assert "param lr = 0.1" in out
    assert "metric loss = 0.25 at step 4 (2 points)" in out
    assert "metric bad = -inf at step 3 (1 point)" in out
    assert "artifact x.txt: sha256:" in out
    assert "\x1b" not in out
    assert main(["tracking", "show", "--json", str(left.dir.parent)]) == 0
    (shown,) = strict(capsys.readouterr().out)
    assert shown["params"] == {"lr": 0.1, "limit": "Infinity", "all": ["NaN"]}
    assert shown["metrics"]["bad"] == {"points": 1, "step": 3, "value": "-Infinity"}
    assert shown["tags"] == {"note": "a\x1b[2Jb"}


def test_no_password_is_printed(tmp_path, capsys, monkeypatch):
    pytest.importorskip("mlflow")  # here, and not in a thread that goes on when the test is over
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = start_run("x", root=tmp_path, sinks=["mlflow:http://user:secret@host:1"], shipper="none")
    run.close(timeout=0)
    for words in (["status"], ["status", "--json"], ["sync", "--timeout=0"], ["sync", "--timeout=0", "--json"]):  # fmt: skip
        assert main(["tracking", *words, str(run.dir)]) == 1
        captured = capsys.readouterr()
        assert "secret" not in captured.out + captured.err
        assert "user:***@host:1" in captured.out


def test_the_exit_status_says_whether_anything_is_left(left, tmp_path, capsys):
    assert main(["tracking", "status", str(left.dir)]) == 1
    assert main(["tracking", "sync", str(left.dir)]) == 0
    assert main(["tracking", "status", str(left.dir)]) == 0
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert main(["tracking", "sync", str(left.dir), "--sink", f"jsonl:{blocked}", "--timeout", "0.2"]) == 1  # fmt: skip
    capsys.readouterr()
    (journal,) = (left.dir / "journal").iterdir()
    journal.write_bytes(journal.read_bytes()[:-3])
    for action in ("status", "show"):
        assert main(["tracking", action, str(left.dir)]) == 1
        assert "cannot be read" in capsys.readouterr().out


def test_a_run_at_work_is_left_to_its_own_shipper(tmp_path, capsys):
    with start_run("x", root=tmp_path / "runs", sinks=[f"jsonl:{tmp_path}/out"], shipper="thread") as run:  # fmt: skip
        assert run.flush(timeout=60).complete
        assert main(["tracking", "sync", str(tmp_path / "runs")]) == 0
        assert "its own shipper is at work" in capsys.readouterr().out


def test_a_run_without_sinks_has_nothing_to_deliver(tmp_path, capsys):
    with start_run("x", root=tmp_path) as run:
        assert main(["tracking", "sync", str(run.dir)]) == 0
        assert capsys.readouterr().out == f"{run.dir}: 1 record in the journal, no sinks\n"
    assert main(["tracking", "status", str(run.dir)]) == 0
    assert "2 records in the journal, no sinks" in capsys.readouterr().out


def test_what_cannot_be_read_is_one_readable_line(tmp_path, capsys):
    with start_run("x", root=tmp_path) as run:
        pass
    (journal,) = (run.dir / "journal").iterdir()
    journal.unlink()
    journal.mkdir()
    assert main(["tracking", "show", str(run.dir)]) == 1
    assert str(journal) in capsys.readouterr().err


def test_no_run_is_one_readable_line(tmp_path, capsys):
    for action in ("status", "sync", "show"):
        assert main(["tracking", action, str(tmp_path / "nothing")]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("mlkit tracking: no run at")
