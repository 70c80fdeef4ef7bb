"""W&B's own reader finds in the folders what was logged: exactly, once, whatever was killed on the way."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import pytest

from mlkit._digest import digest_bytes
from mlkit.integrations.wandb import WandbSink
from mlkit.testing import SinkContract, StoredRun
from mlkit.tracking import RunInfo

pytest.importorskip("wandb")

SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@pytest.fixture(scope="module", autouse=True)
def _one_client():
    """Keep the client's process, whose start costs seconds, from one test to the next."""
    sink = WandbSink("unused", mode="offline")
    sink._run._connected()
    yield
    sink.close()


def folders_of(place: Path, run_id: str) -> list[Path]:
    return sorted((place / "wandb").glob(f"offline-run-*-{run_id}"))


def inspect(folder: Path) -> list[dict]:
    """Return the records of a run's folder, as W&B's own `wandb leet inspect --json` prints them."""
    import wandb

    core = Path(wandb.__file__).parent / "bin" / "wandb-core"
    (path,) = folder.glob("*.wandb")
    printed = subprocess.run(
        [core, "leet", "inspect", "-json", "-no-observability", "-run-file", path],
        capture_output=True, check=True,
    )  # fmt: skip
    return [json.loads(line) for line in printed.stdout.decode().splitlines()]


def of_kind(records: list[dict], kind: str) -> list[dict]:
    return [record[kind] for record in records if record["type"] == kind]


def stored_in(folder: Path) -> StoredRun:
    records = inspect(folder)
    metrics = []
    for row in of_kind(records, "history"):
        step = row["item"].pop("mlkit/step")
        for key, value in row["item"].items():
            if not key.startswith("_"):
                metrics.append((key, step, SPECIAL.get(value, value)))
    config: dict = {}
    for update in of_kind(records, "config"):
        config |= update["update"]
    own = config.pop("mlkit")
    artifacts = {
        str(path.relative_to(folder / "files/artifacts")): digest_bytes(path.read_bytes())
        for path in (folder / "files/artifacts").rglob("*")
        if path.is_file()
    }
    uploaded = {one["path"] for files in of_kind(records, "files") for one in files["files"]}
    assert {f"artifacts/{name}" for name in artifacts} <= uploaded
    assert artifacts == own["artifacts"]
    names = own["names"]
    params = {names.get(key, key): str(value) for key, value in config.items()}
    return StoredRun(metrics, params, own["tags"], artifacts, own["status"])


class TestWandb(SinkContract):
    def make_sink(self, place):
        return WandbSink(place / "w", mode="offline")

    def stored(self, place, run: RunInfo) -> StoredRun:
        (folder,) = folders_of(place / "w", run.id)
        return stored_in(folder)
