"""Comet's archives hold what was logged: exactly, once, whatever was killed on the way."""

from __future__ import annotations

import json
import math
from pathlib import Path
from zipfile import ZipFile

import pytest

from mlkit._digest import digest_bytes
from mlkit.integrations.comet import CometSink
from mlkit.testing import SinkContract, StoredRun
from mlkit.tracking import RunInfo

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
    return folder / f"{digest_bytes(run_id.encode())[7:47]}.zip"


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
