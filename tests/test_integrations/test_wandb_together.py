"""Several trackers of one run at once, each on its own client, through the shipper's process."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from zipfile import ZipFile

import pytest

from mlkit.tracking import read

for module in ("comet_ml", "trackio", "wandb"):
    pytest.importorskip(module)

CODE = """
    import os, sys
    from mlkit.tracking import start_run
    sinks = ["wandb:w?mode=offline", "comet:c", "trackio:t", "jsonl:lines"]
    with start_run("digits", root="runs", sinks=sinks, name="first") as run:
        run.log_params({"lr": 0.1})
        for step in range(20):
            run.log_metrics({"loss": step / 8}, step=step)
        run.log_artifact(b"weights", name="model/w.bin")
        delivery = run.close(timeout=100)
    assert delivery.complete, delivery
    assert not {"wandb", "comet_ml", "trackio"} & set(sys.modules)
    print(run.dir)
"""


def test_all_have_the_run_and_the_training_none_of_them(tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CODE)], cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (process.returncode, process.stderr) == (0, "")
    run_id = read(process.stdout.strip()).id
    assert (
        len(
            list((tmp_path / "w/wandb").glob(f"offline-run-*-{run_id}/files/artifacts/model/w.bin"))
        )
        == 1
    )
    with ZipFile(next((tmp_path / "c").glob("*.zip"))) as archive:
        assert archive.read("messages.json").count(b'"metricName":"loss"') == 20
    with closing(sqlite3.connect(tmp_path / "t/digits.db")) as database:
        rows = database.execute("SELECT step, metrics FROM metrics").fetchall()
    points = [(step, json.loads(text)["loss"]) for step, text in rows if len(text) > 2]
    assert sorted(points) == [(step, step / 8) for step in range(20)]
    assert len((tmp_path / f"lines/{run_id}.jsonl").read_text().splitlines()) == 24
    here = {path.name for path in tmp_path.iterdir()}
    assert here == {"c", "lines", "runs", "t", "w"}  # nothing of a client lies about
