"""Trackio's store holds what was logged: exactly, once, whatever was killed on the way."""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from mlkit._digest import digest_bytes
from mlkit.errors import ConfigurationError, MissingDependencyError
from mlkit.integrations.trackio import TrackioSink
from mlkit.testing import SinkContract, StoredRun
from mlkit.tracking import Record, RunInfo, start_run, sync

pytest.importorskip("trackio")

SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for all tests, with Trackio's process, whose start costs seconds, kept from one to the next."""
    sink = TrackioSink(tmp_path_factory.mktemp("trackio"))
    sink._connected()
    yield sink.folder
    sink.close()


def project_of(place: Path) -> str:
    return f"p{digest_bytes(str(place).encode())[7:19]}"


def stored_in(folder: Path, project: str, run_id: str) -> StoredRun:
    with closing(sqlite3.connect(folder / f"{project}.db")) as database:
        rows = database.execute(
            "SELECT step, metrics FROM metrics WHERE run_id = ?", (run_id,)
        ).fetchall()
        (config,) = database.execute(
            "SELECT config FROM configs WHERE run_id = ?", (run_id,)
        ).fetchone()
        manifests = database.execute(
            "SELECT manifest FROM artifact_versions WHERE producer_run_id = ? ORDER BY id",
            (run_id,),
        ).fetchall()
    metrics = [
        (key, step, SPECIAL.get(value, value))
        for step, text in rows
        for key, value in json.loads(text).items()
    ]
    config = json.loads(config)
    own = config.pop("mlkit")
    artifacts = {}
    for (manifest,) in manifests:
        (file,) = json.loads(manifest)
        (blob,) = (folder / "artifacts" / project).rglob(f"*{file['digest']}*")
        artifacts[file["path"]] = digest_bytes(blob.read_bytes())
    assert own["artifacts"] == artifacts
    params = {key: str(value) for key, value in config.items() if not key.startswith("_")}
    return StoredRun(metrics, params, own["tags"], artifacts, own["status"])


class TestTrackio(SinkContract):
    @pytest.fixture(autouse=True)
    def _folder(self, folder):
        self.folder = folder

    def make_sink(self, place):
        return TrackioSink(self.folder, project=project_of(place))

    def stored(self, place, run: RunInfo) -> StoredRun:
        return stored_in(self.folder, project_of(place), run.id)


READ = """
import json, sys
from trackio import Api
from trackio.sqlite_storage import SQLiteStorage
(run,) = Api().runs("digits")
logs = SQLiteStorage.get_logs("digits", run.name, run_id=run.id)
print(json.dumps([run.id, run.name, run.config, logs], default=str))
"""


def test_trackio_itself_shows_the_run(folder):
    run = RunInfo("20260102-030405-0a1b2c3d", "digits", "first", None, 1_767_323_045.0)
    sink = TrackioSink(folder)
    sink.open(run)
    sink.send(
        [
            Record("f:9:0", "metric", "loss", 0.5, 3, 1_767_323_046.5),
            Record("f:9:1", "metric", "acc", math.inf, 3),
        ]
    )
    sink.send([Record("f:20:0", "param", "lr", "0.1")])
    sink.close()
    printed = subprocess.run(
        [sys.executable, "-c", READ],
        env={**os.environ, "TRACKIO_DIR": str(folder)}, capture_output=True, check=True, text=True,
    )  # fmt: skip
    run_id, name, config, logs = json.loads(printed.stdout.splitlines()[-1])
    assert (run_id, name, config["lr"]) == (run.id, "first", 0.1)
    shown = [row for row in logs if "loss" in row]
    assert shown == [
        {"loss": 0.5, "acc": math.inf, "timestamp": "2026-01-02T03:04:06.500000+00:00", "step": 3}
    ]


def test_a_shipper_that_is_killed_loses_nothing_and_doubles_nothing(folder, tmp_path):
    with start_run("killed", root=tmp_path / "runs", shipper="none") as run:
        for step in range(6000):
            run.log_metrics({"loss": 0.5, "acc": step / 3}, step=step // 2)
    uri = f"trackio:{folder}"
    code = "import sys; from mlkit.tracking import sync; sync(sys.argv[1], sinks=[sys.argv[2]])"
    shipper = subprocess.Popen([sys.executable, "-c", code, run.dir, uri])
    deadline = time.monotonic() + 60
    while not list(run.dir.glob("sinks/*/cursor.json")) and time.monotonic() < deadline:
        time.sleep(0.002)
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
    stored = stored_in(folder, "killed", run.id)
    losses = sorted((step, value) for name, step, value in stored.metrics if name == "loss")
    assert losses == [(step // 2, 0.5) for step in range(6000)]
    assert (len(stored.metrics), stored.status) == (12_000, "FINISHED")


def test_a_call_of_which_a_part_is_stored_gets_the_rest(folder):
    run = RunInfo("20260102-030405-bbbbbbbb", "parts", "first", None, 1_767_323_045.0)
    records = [Record(f"f:9:{index}", "metric", f"m{index}", index / 2, 3) for index in range(12)]
    for some in (records[3:5], records[2:9], records, records[5:]):
        sink = TrackioSink(folder)
        sink.open(run)
        sink.send(some)
        sink.close()
    stored = stored_in(folder, "parts", run.id)
    assert sorted(stored.metrics) == sorted((one.key, 3, one.value) for one in records)


def test_names_and_texts_that_trackio_would_mistake_are_kept(folder, tmp_path):
    with start_run("my.model_configs", root=tmp_path / "runs", shipper="none") as run:
        run.log_params(
            {"_Group": "g", "lr": "1e-3", "n": 3, "surrogate": "\ud800", "nan": math.nan}
        )
        run.log_metrics({"step": 1.0, "__x": 2.0, "timestamp": 3.0, "a.b": 4.0}, step=7)
        run.set_tag("stage", "\ud800")
        with run.child("fold") as child:
            child.log_metric("a", 1.5)
    assert sync(run.dir, sinks=[f"trackio:{folder}?project=shared"], timeout=100).complete
    stored = stored_in(folder, "shared", run.id)
    assert sorted(value for _, step, value in stored.metrics if step == 7) == [1.0, 2.0, 3.0, 4.0]
    assert not {"step", "timestamp", "__x"} & {key for key, _, _ in stored.metrics}
    with closing(sqlite3.connect(folder / "shared.db")) as database:
        configs = {
            run_id: json.loads(config)
            for run_id, config in database.execute("SELECT run_id, config FROM configs")
        }
    config = configs[run.id]
    assert (config["lr"], config["n"], config["surrogate"], config["nan"]) == (
        "1e-3",
        3,
        "\\ud800",
        "nan",
    )
    assert set(config["mlkit"]["names"].values()) == {"_Group", "step", "__x", "timestamp"}
    assert configs[child.id]["_Group"] == run.id
    assert sync(run.dir, sinks=[f"trackio:{folder}"], timeout=100).complete
    (own,) = folder.glob(
        "my_model_configs-*.db"
    )  # as it is, it would be the file of another project's configs
    assert own.stat().st_size


def test_the_address_says_all_and_a_wrong_call_says_what_is_wrong(tmp_path, monkeypatch):
    sink = TrackioSink(tmp_path / "a?b", project="x y")
    again = TrackioSink(sink.uri.partition(":")[2])
    assert (again.uri, again.folder) == (sink.uri, sink.folder)
    assert pickle.loads(pickle.dumps(sink)).uri == sink.uri
    with pytest.raises(ConfigurationError, match="options among"):
        TrackioSink("t?space=x")
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(MissingDependencyError, match=r"mlkit-blocks\[trackio\]"):
        TrackioSink("t")


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


def test_a_thread_that_ships_has_the_client_elsewhere_and_may_lose_it(tmp_path, folder):
    uri = f"trackio:{folder}"
    command = [sys.executable, "-c", THREADED, str(tmp_path / "runs"), uri]
    training = subprocess.run(command, capture_output=True, text=True)
    assert (training.returncode, training.stderr) == (-signal.SIGKILL, "")
    delivery = sync(tmp_path / "runs" / "threaded-1", timeout=100)
    assert (delivery.complete, delivery.acked) == (True, 1203)  # and how it ended
    stored = stored_in(folder, "threaded", "threaded-1")
    losses = sorted((step, value) for name, step, value in stored.metrics if name == "loss")
    assert losses == [(step, step / 3) for step in range(601)]
    assert len(stored.metrics) == 1202


def test_runs_of_one_process_ship_from_threads_at_once(tmp_path, folder):
    uri = f"trackio:{folder}"
    place = tmp_path / "runs"
    runs = [start_run("together", root=place, sinks=[uri], shipper="thread") for _ in range(3)]
    for step in range(50):
        for number, run in enumerate(runs):
            run.log_metrics({"loss": float(number)}, step=step)
    for number, run in enumerate(runs):
        run.log_params({"number": number})
        assert run.close(timeout=60).complete
    for number, run in enumerate(runs):
        stored = stored_in(folder, "together", run.id)
        assert sorted(stored.metrics) == [("loss", step, number) for step in range(50)]
        assert (stored.params, stored.status) == ({"number": str(number)}, "FINISHED")
