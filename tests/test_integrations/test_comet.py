"""Comet's archives hold what was logged: exactly, once, whatever was killed on the way."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from zipfile import ZipFile

import pytest

from mlkit._digest import digest, digest_bytes
from mlkit.errors import ConfigurationError, MissingDependencyError, SinkRejectedError
from mlkit.integrations.comet import CometSink
from mlkit.testing import SinkContract, StoredRun
from mlkit.tracking import Record, RunInfo, start_run, sync

pytest.importorskip("comet_ml")

SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
CLIENTS_OWN = {"offline_experiment", "Name"}


@pytest.fixture(scope="module", autouse=True)
def _one_client():
    """Keep the client's process, whose start costs seconds, from one test to the next."""
    sink = CometSink("unused")
    sink._run._connected()
    yield
    sink.close()


def archive_of(folder: Path, run_id: str) -> Path:
    return folder / f"{digest([run_id, {}])[7:47]}.zip"


def stored_in(path: Path) -> StoredRun:
    metrics, params, others, artifacts = [], {}, {}, {}
    with ZipFile(path) as archive:
        for line in archive.read("messages.json").splitlines():
            message = json.loads(line)
            kind, content = message["type"], message["payload"]
            if kind == "metric_msg":
                point = content["metric"]
                value = point["metricValue"]
                metrics.append((point["metricName"], point["step"], SPECIAL.get(value, value)))
            elif kind == "parameter_msg":
                assert params.setdefault(
                    content["param"]["paramName"], content["param"]["paramValue"]
                )
            elif kind == "log_other":
                others[content["key"]] = content["value"]
            elif kind == "file_upload":
                name = content["additional_params"]["fileName"]
                artifacts[name] = digest_bytes(archive.read(content["file_path"]))
    metrics = [point for point in metrics if point[0] != "process duration"]
    tags = {
        key: value
        for key, value in others.items()
        if key not in CLIENTS_OWN and not key.startswith("mlkit/")
    }
    return StoredRun(metrics, params, tags, artifacts, others["mlkit/status"])


class TestComet(SinkContract):
    def make_sink(self, place):
        return CometSink(place / "c")

    def stored(self, place, run: RunInfo) -> StoredRun:
        assert len(list((place / "c").glob("*.zip"))) <= 2
        return stored_in(archive_of(place / "c", run.id))


def test_a_shipper_that_is_killed_while_it_writes_loses_nothing_and_doubles_nothing(tmp_path):
    with start_run("killed", root=tmp_path / "runs", shipper="none") as run:
        for step in range(600):
            run.log_metrics({"loss": 0.5, "acc": step / 3}, step=step // 2)
    uri = f"comet:{tmp_path / 'c'}"
    code = "import sys; from mlkit.tracking import sync; sync(sys.argv[1], sinks=[sys.argv[2]])"
    shipper = subprocess.Popen([sys.executable, "-c", code, run.dir, uri])
    deadline = time.monotonic() + 60
    while (
        not list((tmp_path / "c").glob("mlkit/comet/*.part/*.zip")) and time.monotonic() < deadline
    ):
        time.sleep(0.005)
    for pid in (
        *Path(f"/proc/{shipper.pid}/task/{shipper.pid}/children").read_text().split(),
        shipper.pid,
    ):
        with suppress(ProcessLookupError):  # it may have ended by itself
            os.kill(int(pid), signal.SIGKILL)
    shipper.wait()
    delivery = sync(run.dir, sinks=[uri], timeout=100)
    assert delivery.complete
    next(run.dir.glob("sinks/*/cursor.json")).unlink()  # as if killed before it was written
    assert sync(run.dir, sinks=[uri], timeout=100) == delivery
    (archive,) = (tmp_path / "c").glob("*.zip")
    stored = stored_in(archive)
    losses = [(step, value) for name, step, value in stored.metrics if name == "loss"]
    assert losses == [(step // 2, 0.5) for step in range(600)]
    assert len(stored.metrics) == 1200
    assert [path for path in (tmp_path / "c/mlkit/comet").iterdir() if path.is_dir()] == []


def test_times_states_and_what_comet_would_cut_are_kept(tmp_path):
    long = "é" * 700 + "x" * 800
    with start_run("digits", root=tmp_path / "runs", name="first", shipper="none") as run:
        run.log_params({"long": long, "Name": "taken", "n" * 150: "v", "surrogate": "\ud800"})
        run.set_tags({"note": long, "stage": "trial"})
        run.log_points(
            {"loss": [0.5, 0.25]}, steps=[7, 3], times=[1_767_323_046.5, 1_767_323_047.25]
        )
        with run.child("fold") as child:
            child.log_metric("a", 1.5)
        run.close("FAILED", timeout=0)
    assert sync(run.dir, sinks=[f"comet:{tmp_path / 'c'}"], timeout=100).complete
    stored = stored_in(archive_of(tmp_path / "c", run.id))
    assert len(stored.params["long"]) == len(stored.tags["note"]) == 1000
    assert "[1500 characters, whole in mlkit/params/long.txt]" in stored.params["long"]
    whole = digest_bytes(long.encode())
    names = stored.artifacts.pop("mlkit/names.json")
    assert stored.artifacts == {"mlkit/params/long.txt": whole, "mlkit/tags/note.txt": whole}
    assert stored.params["surrogate"] == "\\ud800"
    assert all(len(key) <= 100 for key in stored.params)
    assert [key.partition("-")[0] for key, value in stored.params.items() if value == "taken"] == [
        "Name"
    ]
    with ZipFile(archive_of(tmp_path / "c", run.id)) as opened:
        (held,) = [one for one in map(opened.read, opened.namelist()) if digest_bytes(one) == names]
        assert sorted(json.loads(held).values()) == sorted(["Name", "n" * 150])
        about = json.loads(opened.read("experiment.json"))
        messages = [json.loads(line) for line in opened.read("messages.json").splitlines()]
    times = [
        (one["payload"]["metric"]["step"], one["payload"]["local_timestamp"])
        for one in messages
        if one["type"] == "metric_msg" and one["payload"]["metric"]["metricName"] == "loss"
    ]
    assert times == [(7, 1_767_323_046_500), (3, 1_767_323_047_250)]
    assert (about["project_name"], about["tags"]) == ("digits", ["stage:trial"])
    assert (about["customer_error_reported"], about["customer_error_message"]) == (True, "FAILED")
    others = {
        one["payload"]["key"]: one["payload"]["value"]
        for one in [json.loads(line) for line in _messages(archive_of(tmp_path / "c", child.id))]
        if one["type"] == "log_other"
    }
    assert (others["mlkit/parent"], others["mlkit/run"]) == (run.id, child.id)


def _messages(archive: Path) -> list[bytes]:
    with ZipFile(archive) as opened:
        return opened.read("messages.json").splitlines()


def test_the_address_says_all_and_a_wrong_call_says_what_is_wrong(tmp_path, monkeypatch):
    sink = CometSink(tmp_path / "a?b", workspace="team", project="x y")
    again = CometSink(sink.uri.partition(":")[2])
    assert (again.uri, again.folder) == (sink.uri, sink.folder)
    assert pickle.loads(pickle.dumps(sink)).uri == sink.uri
    with pytest.raises(ConfigurationError, match="options among"):
        CometSink("c?mode=offline")
    monkeypatch.setitem(sys.modules, "comet_ml", None)
    with pytest.raises(MissingDependencyError, match=r"mlkit-blocks\[comet\]"):
        CometSink("c")


def test_what_a_sink_was_given_does_not_depend_on_where_the_run_lies(tmp_path):
    with start_run("digits", root=tmp_path / "runs", shipper="none") as run:
        run.log_artifact(b"weights", name="model/w.bin")
    uri = f"comet:{tmp_path / 'c'}"
    assert sync(run.dir, sinks=[uri], timeout=60).complete
    moved = tmp_path / "elsewhere" / run.id
    shutil.copytree(run.dir, moved)
    shutil.rmtree(run.dir)
    with start_run("digits", root=moved.parent, resume=run.id, shipper="none") as again:
        again.log_metric("loss", 0.5)
    assert sync(moved, sinks=[uri], timeout=60).complete
    with ZipFile(next((tmp_path / "c").glob("*.zip"))) as archive:
        messages = [json.loads(line) for line in archive.read("messages.json").splitlines()]
        (file,) = [one["payload"] for one in messages if one["type"] == "file_upload"]
        assert archive.read(file["file_path"]) == b"weights"


def test_an_artifact_whose_content_is_gone_is_the_only_one_refused(tmp_path):
    sink = CometSink(tmp_path / "c")
    sink.open(RunInfo("r1", "digits", "first", None, 1_767_323_045.0))
    (tmp_path / "here").write_bytes(b"a")
    good = Record("f:1:0", "artifact", "a", digest_bytes(b"a"), path=str(tmp_path / "here"))
    gone = Record("f:2:0", "artifact", "b", digest_bytes(b"b"), path=str(tmp_path / "gone"))
    with pytest.raises(SinkRejectedError, match="'b' is gone"):
        sink.send([good, gone])
    sink.send([good])
    sink.send([Record("f:3:0", "status", "status", "FINISHED", time=1_767_323_046.0)])
    sink.close()
    with ZipFile(next((tmp_path / "c").glob("*.zip"))) as archive:
        assert archive.read("messages.json").count(b'"file_upload"') == 1


THREADED = """
import os, signal, sys
from mlkit.tracking import start_run

root, uri = sys.argv[1:]
run = start_run("threaded", root=root, run_id="threaded-1", sinks=[uri], shipper="thread")
for step in range(300):
    run.log_metrics({"loss": step / 3, "acc": 0.5}, step=step)
assert run.flush(60).complete
assert not {"comet_ml", "trackio"} & set(sys.modules), "the client is in the training process"
for task in os.listdir("/proc/self/task"):
    for client in open(f"/proc/self/task/{task}/children").read().split():
        os.kill(int(client), signal.SIGKILL)
for step in range(300, 600):
    run.log_metrics({"loss": step / 3, "acc": 0.5}, step=step)
assert run.flush(60).complete
run.log_metrics({"loss": 200.0, "acc": 0.5}, step=600)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_thread_that_ships_has_the_client_elsewhere_and_may_lose_it(tmp_path):
    uri = f"comet:{tmp_path / 'c'}"
    command = [sys.executable, "-c", THREADED, str(tmp_path / "runs"), uri]
    training = subprocess.run(command, capture_output=True, text=True)
    assert (training.returncode, training.stderr) == (-signal.SIGKILL, "")
    delivery = sync(tmp_path / "runs" / "threaded-1", timeout=100)
    assert (delivery.complete, delivery.acked) == (True, 1203)  # and how it ended
    stored = stored_in(archive_of(tmp_path / "c", "threaded-1"))
    losses = sorted((step, value) for name, step, value in stored.metrics if name == "loss")
    assert losses == [(step, step / 3) for step in range(601)]
    assert len(stored.metrics) == 1202


def test_runs_of_one_process_ship_from_threads_at_once(tmp_path):
    uri = f"comet:{tmp_path / 'c'}"
    place = tmp_path / "runs"
    runs = [start_run("together", root=place, sinks=[uri], shipper="thread") for _ in range(3)]
    for step in range(50):
        for number, run in enumerate(runs):
            run.log_metrics({"loss": float(number)}, step=step)
    for number, run in enumerate(runs):
        run.log_params({"number": number})
        assert run.close(timeout=60).complete
    for number, run in enumerate(runs):
        stored = stored_in(archive_of(tmp_path / "c", run.id))
        assert sorted(stored.metrics) == [("loss", step, number) for step in range(50)]
        assert (stored.params, stored.status) == ({"number": str(number)}, "FINISHED")
