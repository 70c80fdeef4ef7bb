"""What `log_batch` is given: held to MLflow's rules, then written into a journal."""

from __future__ import annotations

from typing import Any, NamedTuple

from mlkit.errors import ConfigurationError, ParamConflictError
from mlkit.integrations.mlflow_plugin import _calls
from mlkit.integrations.mlflow_plugin._refusals import changed_params, invalid
from mlkit.tracking import read

__all__ = ["Batch", "check_tags", "checked", "metric_alone", "param_alone", "tag_alone", "write"]


class Batch(NamedTuple):
    """Metrics, params and tags that MLflow would take."""

    metrics: list[Any]
    params: dict[str, str]
    tags: dict[str, str]


def checked(run_id: str, metrics: list[Any], params: list[Any], tags: list[Any]) -> Batch:
    """Return a batch that is as MLflow wants it; what is too long is cut, as it would be there.

    Raises:
        MlflowException: If MLflow would refuse it.
    """
    from mlflow.utils.validation import (
        _validate_batch_log_data,
        _validate_batch_log_limits,
        _validate_param_keys_unique,
        _validate_run_id,
    )

    _validate_run_id(run_id)
    metrics, params, tags = _validate_batch_log_data(metrics, params, tags)
    _validate_batch_log_limits(metrics, params, tags)
    _validate_param_keys_unique(params)
    return _batch(metrics, params, tags)


def metric_alone(metric: Any) -> Batch:
    """Return one metric as a batch.

    Raises:
        MlflowException: If MLflow would refuse it.
    """
    from mlflow.utils.validation import _validate_metric

    _validate_metric(metric.key, metric.value, metric.timestamp, metric.step)
    return _batch([metric], [], [])


def param_alone(param: Any) -> Batch:
    """Return one param as a batch.

    Raises:
        MlflowException: If MLflow would refuse it.
    """
    from mlflow.utils.validation import _validate_param

    return _batch([], [_validate_param(param.key, param.value)], [])


def tag_alone(tag: Any) -> Batch:
    """Return one tag as a batch.

    Raises:
        MlflowException: If MLflow would refuse it.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_tag

    try:
        return _batch([], [], [_validate_tag(tag.key, tag.value)])
    except MlflowException:
        raise
    except Exception as error:
        raise invalid(str(error), "INTERNAL_ERROR") from error


def write(run: Any, batch: Batch, adopted: dict[str, str]) -> None:
    """Write a batch, all of it or nothing.

    Args:
        run: The run.
        batch: What to write.
        adopted: The params that MLflow had of the run before it was known here.

    Raises:
        MlflowException: If a param would change.
    """
    alone = len(batch.params) == 1 and not batch.metrics and not batch.tags
    clash = [
        (key, adopted[key], value)
        for key, value in batch.params.items()
        if adopted.get(key, value) != value
    ]
    if clash:
        raise changed_params(run.id, clash, alone=alone)
    try:
        if batch.params:
            run.log_params(batch.params)
        linked = [one for one in batch.metrics if _is_linked(one)]
        _log_metrics(run, [one for one in batch.metrics if not _is_linked(one)])
    except ParamConflictError as error:
        held = {key: str(value) for key, value in read(run.dir).params.items()}
        clash = [
            (key, held[key], value)
            for key, value in batch.params.items()
            if held.get(key, value) != value
        ]
        raise changed_params(run.id, clash, alone=alone) from error
    except ConfigurationError as error:
        raise invalid(str(error)) from error
    if linked:
        contents = [_calls.metric_to(one) for one in linked]
        _calls.note(run, {"call": "metrics", "metrics": contents})
    if batch.tags:
        _calls.note(run, {"call": "tags", "tags": batch.tags})


def check_tags(tags: dict[str, Any]) -> None:
    """Check the names of tags.

    Raises:
        MlflowException: If MLflow would refuse one.
    """
    from mlflow.utils.validation import _validate_tag_name

    for key in tags:
        _validate_tag_name(key)


def _batch(metrics: list[Any], params: list[Any], tags: list[Any]) -> Batch:
    return Batch(
        metrics,
        {param.key: str(param.value) for param in params},
        {tag.key: _text(tag.value) for tag in tags},
    )


def _text(value: Any) -> Any:
    return value if value is None else str(value)


def _is_linked(metric: Any) -> bool:
    """Return whether a metric says of which model or dataset it is, which a point does not."""
    return bool(metric.model_id or metric.dataset_name or metric.dataset_digest)


def _log_metrics(run: Any, metrics: list[Any]) -> None:
    """Write points, those of one moment together."""
    rows: list[tuple[int, int, dict[str, float]]] = []
    for metric in metrics:
        step, time = int(metric.step), int(metric.timestamp)
        if not rows or rows[-1][:2] != (step, time) or metric.key in rows[-1][2]:
            rows.append((step, time, {}))
        rows[-1][2][metric.key] = float(metric.value)
    start = 0
    while start < len(rows):
        keys = tuple(rows[start][2])
        end = start
        while end < len(rows) and tuple(rows[end][2]) == keys:
            end += 1
        some = rows[start:end]
        run.log_points(
            {key: [row[2][key] for row in some] for key in keys},
            [row[0] for row in some],
            times=[row[1] / 1000 for row in some],
        )
        start = end
