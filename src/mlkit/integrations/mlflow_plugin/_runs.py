"""A run of MLflow under the id by which it is known here, and put together with what the journal has of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlkit.integrations.mlflow_plugin._backend import LET_GO_TAG, RUN_TAG
from mlkit.integrations.mlflow_plugin._view import artifact_root, latest

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit.integrations.mlflow_plugin._backend import Backend
    from mlkit.integrations.mlflow_plugin._view import View

__all__ = ["as_ours", "merged"]

_PARENT = "mlflow.parentRunId"
_OWN = (RUN_TAG, LET_GO_TAG)  # what the plug-in tells itself


def as_ours(run: Any, backend: Backend) -> Any:
    """Return a run of MLflow under the id by which it is known here."""
    from mlflow.entities import Param, Run, RunData, RunTag

    info, tags = run.info, dict(run.data.tags)
    here = backend.ours(info.run_id, tags) or info.run_id
    if _PARENT in tags:
        tags[_PARENT] = backend.ours(tags[_PARENT]) or tags[_PARENT]
    data = RunData(
        metrics=run.data._metric_objs,  # noqa: SLF001 - `metrics` has no steps
        params=[Param(key, value) for key, value in run.data.params.items()],
        tags=[RunTag(key, value) for key, value in tags.items() if key not in _OWN],
    )
    return Run(_info(info, here, info), data, run.inputs, run.outputs)


def merged(
    view: View, stored: Any, backend: Backend, model_of: Callable[[str], str], *, ahead: bool
) -> Any:
    """Return what the journal and MLflow have of a run.

    Args:
        view: What the journal says.
        stored: The run in MLflow.
        backend: The store that is wrapped.
        model_of: Gives MLflow's id of a model that stood in for one.
        ahead: Whether the journal counts where they differ.
    """
    from mlflow.entities import Param, Run, RunData, RunInputs, RunOutputs, RunTag

    ours, theirs = view.run(), as_ours(stored, backend)
    first, second = (theirs, ours) if ahead else (ours, theirs)
    tags = {**first.data.tags, **second.data.tags}
    if ahead:
        tags = {key: value for key, value in tags.items() if key not in view.deleted}
    else:
        gone = ours.data.tags.keys() - theirs.data.tags.keys()
        tags = {key: value for key, value in tags.items() if key not in gone}
    points = {one.key: [one] for one in theirs.data._metric_objs}  # noqa: SLF001 - the only way to the points
    for key, some in view.metrics.items():
        points[key] = [*points.get(key, []), *some]
    data = RunData(
        metrics=[latest(some) for some in points.values()],
        params=[
            Param(key, value) for key, value in {**ours.data.params, **theirs.data.params}.items()
        ],
        tags=[RunTag(key, value) for key, value in tags.items()],
    )
    known = {_dataset(one) for one in theirs.inputs.dataset_inputs or ()}
    datasets = _more(
        theirs.inputs.dataset_inputs,
        [one for one in ours.inputs.dataset_inputs if _dataset(one) not in known],
    )
    for one in [*ours.inputs.model_inputs, *ours.outputs.model_outputs]:
        if one.model_id in view.stand_ins:
            one._model_id = model_of(one.model_id)  # noqa: SLF001 - the entity has no other way
    into = _more(theirs.inputs.model_inputs, ours.inputs.model_inputs)
    out = _more(theirs.outputs and theirs.outputs.model_outputs, ours.outputs.model_outputs)
    info = _info(theirs.info, view.id, ours.info if ahead and view.status else theirs.info)
    if view.created:  # the experiment of a run that was begun in an outage keeps its id here
        info._experiment_id = ours.info.experiment_id  # noqa: SLF001 - as above
    return Run(info, data, RunInputs(datasets, into), RunOutputs(out))


def _info(info: Any, run_id: str, state: Any) -> Any:
    """Return what is said of a run under the id *run_id*, its state and name taken from *state*."""
    from mlflow.entities import RunInfo

    return RunInfo(
        run_id=run_id,
        experiment_id=info.experiment_id,
        user_id=info.user_id,
        status=state.status,
        start_time=info.start_time,
        end_time=state.end_time,
        lifecycle_stage=info.lifecycle_stage,
        artifact_uri=artifact_root(run_id),
        run_name=state.run_name,
    )


def _dataset(entry: Any) -> tuple[str, str]:
    return entry.dataset.name, entry.dataset.digest


def _more(held: Any, others: list[Any]) -> list[Any]:
    found = list(held or ())
    return found + [one for one in others if one not in found]
