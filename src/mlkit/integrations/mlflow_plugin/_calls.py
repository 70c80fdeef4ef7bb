"""Calls of MLflow that are neither metric, param nor artifact, as texts that a journal keeps: tags of the run.

A tag's name is `mlflow-call.<when>.<number>`, so that the order of the names is the order of the calls; the value is the call
as JSON. The sink of the plug-in takes them for what they are, `view` reads them back.
"""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

from mlkit._clock import current

__all__ = [
    "CALL",
    "call_name",
    "dataset_from",
    "dataset_to",
    "metric_from",
    "metric_to",
    "models_in",
    "models_out",
    "note",
]

CALL = "mlflow-call."
_count = itertools.count()


def call_name() -> str:
    """Return a name that sorts behind those that this process gave before."""
    return f"{CALL}{int(current().time() * 1e6):017d}.{next(_count):09d}"


def note(run: Any, call: dict[str, Any]) -> None:
    """Write a call down in a run."""
    run.set_tags({call_name(): json.dumps(call)})


def metric_to(metric: Any) -> dict[str, Any]:
    """Return a metric of MLflow as JSON can keep it."""
    value = float(metric.value)
    return {
        "key": metric.key,
        "value": value if math.isfinite(value) else repr(value),
        "timestamp": metric.timestamp,
        "step": metric.step,
        "model_id": metric.model_id,
        "dataset_name": metric.dataset_name,
        "dataset_digest": metric.dataset_digest,
    }


def metric_from(content: dict[str, Any]) -> Any:
    """Return the metric that `metric_to` has described."""
    from mlflow.entities import Metric

    return Metric(**{**content, "value": float(content["value"])})


def dataset_to(entry: Any) -> dict[str, Any]:
    """Return a dataset that a run reads as JSON can keep it."""
    data = entry.dataset
    fields = ("name", "digest", "source_type", "source", "schema", "profile")
    return {
        "dataset": {field: getattr(data, field) for field in fields},
        "tags": [[tag.key, tag.value] for tag in entry.tags or ()],
    }


def dataset_from(content: dict[str, Any]) -> Any:
    """Return the dataset that `dataset_to` has described."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    tags = [InputTag(key, value) for key, value in content["tags"]]
    return DatasetInput(dataset=Dataset(**content["dataset"]), tags=tags)


def models_in(ids: list[str]) -> list[Any]:
    """Return models that a run reads."""
    from mlflow.entities import LoggedModelInput

    return [LoggedModelInput(model_id) for model_id in ids]


def models_out(pairs: list[list[Any]]) -> list[Any]:
    """Return models that a run has made, each with its step."""
    from mlflow.entities import LoggedModelOutput

    return [LoggedModelOutput(model_id, step) for model_id, step in pairs]
