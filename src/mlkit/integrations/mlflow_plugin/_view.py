"""A run as MLflow would show it, from the journal alone; and both put together."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, final

from mlkit.integrations.mlflow_plugin._calls import (
    CALL,
    dataset_from,
    metric_from,
    models_in,
    models_out,
)
from mlkit.tracking import read

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["View", "artifact_root", "latest", "merged_metrics"]


def artifact_root(run_id: str) -> str:
    """Return the `artifact_uri` of a run."""
    return f"mlkit-artifacts:/{run_id}/artifacts"


@final
class View:
    """What the journal of one run says.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        data = read(folder)
        self.id = data.id
        self.params: dict[str, str] = {key: str(value) for key, value in data.params.items()}
        self.artifacts = data.artifacts
        self.tags: dict[str, str] = {}
        self.deleted: set[str] = set()
        self.created: dict[str, Any] | None = None
        self.status: str | None = None
        self.end_time: int | None = None
        self.name: str | None = None
        self.datasets: list[Any] = []
        self.models_in: list[str] = []
        self.models_out: list[list[Any]] = []
        self.stand_ins: set[str] = set()
        self.metrics: dict[str, list[Any]] = {}
        self._start = round(data.start_time * 1000)
        for key, points in data.metrics.items():
            self.metrics[key] = [_metric(key, point) for point in points]
        for name in sorted(key for key in data.tags if key.startswith(CALL)):
            self._apply(json.loads(data.tags[name]))
        self.metrics = {key: merged_metrics(points) for key, points in self.metrics.items()}

    def run(self) -> Any:
        """Return the run as an entity of MLflow."""
        from mlflow.entities import (
            Param as RunParam,
        )
        from mlflow.entities import (
            Run,
            RunData,
            RunInfo,
            RunInputs,
            RunOutputs,
            RunTag,
        )

        made = self.created or {}
        info = RunInfo(
            run_id=self.id,
            experiment_id=str(made.get("experiment_id", "0")),
            user_id=made.get("user_id") or "unknown",
            status=self.status or "RUNNING",
            start_time=made.get("start_time", self._start),
            end_time=self.end_time,
            lifecycle_stage="active",
            artifact_uri=artifact_root(self.id),
            run_name=self.name,
        )
        data = RunData(
            metrics=[latest(points) for points in self.metrics.values()],
            params=[RunParam(key, value) for key, value in self.params.items()],
            tags=[RunTag(key, value) for key, value in self.tags.items()],
        )
        inputs = RunInputs([dataset_from(one) for one in self.datasets], models_in(self.models_in))
        return Run(info, data, inputs, RunOutputs(models_out(self.models_out)))

    def _apply(self, call: dict[str, Any]) -> None:
        kind = call["call"]
        if kind in {"create", "adopted"}:
            self.created = call
            self.tags |= call["tags"]
            self.name, self.status = call["run_name"], call.get("status", "RUNNING")
            self.end_time = call.get("end_time")
        elif kind == "tags":
            self.tags |= call["tags"]
            self.deleted -= set(call["tags"])
            self.name = call["tags"].get("mlflow.runName", self.name)
        elif kind == "delete_tag":
            self.tags.pop(call["key"], None)
            self.deleted.add(call["key"])
        elif kind == "metrics":
            for one in call["metrics"]:
                self.metrics.setdefault(one["key"], []).append(metric_from(one))
        elif kind == "update":
            self.status = call["status"] or self.status
            if call["end_time"] is not None:
                self.end_time = call["end_time"]
            if call["run_name"]:
                self.name = self.tags["mlflow.runName"] = call["run_name"]
        elif kind == "inputs":
            known = {_of(one) for one in self.datasets}
            self.datasets += [one for one in call["datasets"] if _of(one) not in known]
            self.models_in += [one for one in call["models"] if one not in self.models_in]
        elif kind == "outputs":
            self.models_out += [one for one in call["models"] if one not in self.models_out]
        elif kind == "model":
            self.stand_ins.add(call["model_id"])


def latest(points: list[Any]) -> Any:
    """Return the point that MLflow takes for a metric's value."""
    return max(points, key=lambda one: (one.step, one.timestamp, one.value == one.value, one.value))


def merged_metrics(*histories: list[Any]) -> list[Any]:
    """Return the points of histories, each once and in MLflow's order: by time, step and value."""
    from mlflow.entities import Metric

    found = {}
    for metric in (point for points in histories for point in points):
        value = float(metric.value)
        nan = math.isnan(value)
        found[metric.timestamp, metric.step, 0.0 if nan else value, nan] = Metric(
            metric.key, value, metric.timestamp, metric.step
        )
    return [found[key] for key in sorted(found)]


def _of(dataset: dict[str, Any]) -> tuple[str, str]:
    return dataset["dataset"]["name"], dataset["dataset"]["digest"]


def _metric(key: str, point: Any) -> Any:
    from mlflow.entities import Metric

    return Metric(key, point.value, round(point.time * 1e6) // 1000, point.step)
