"""Trackio's store holds what was logged: exactly, once, whatever was killed on the way."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from mlkit._digest import digest_bytes
from mlkit.integrations.trackio import TrackioSink
from mlkit.testing import SinkContract, StoredRun
from mlkit.tracking import RunInfo

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
    from mlkit.tracking import Record

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
