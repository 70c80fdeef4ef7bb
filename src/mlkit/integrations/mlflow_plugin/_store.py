"""MLflow's interface of a tracking store, before the journal."""

from __future__ import annotations

import functools
import inspect
import re
from typing import TYPE_CHECKING, Any

from mlkit.errors import ConfigurationError, ParamConflictError
from mlkit.integrations.mlflow_plugin import _calls
from mlkit.integrations.mlflow_plugin._backend import RUN_TAG, Backend, is_ours
from mlkit.integrations.mlflow_plugin._experiments import Experiments
from mlkit.integrations.mlflow_plugin._local import Local
from mlkit.integrations.mlflow_plugin._stand_ins import StandIns
from mlkit.integrations.mlflow_plugin._view import View, artifact_root, latest, merged_metrics
from mlkit.tracking import status

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["make_store"]

_PARENT = "mlflow.parentRunId"
_NAME = "mlflow.runName"
_HISTORY = "mlflow.log-model.history"
_FRESH = 10.0  # seconds for which a question that only MLflow can answer waits for what was logged
_ID = re.compile(r"\b\d{8}-\d{6}-[0-9a-f]{8}\b")
_RUN_ARGUMENTS = {"run_id", "source_run_id"}
# These are written in terms of others in the interface itself.
_DERIVED = {
    "log_metric",
    "log_metric_async",
    "log_param",
    "log_param_async",
    "search_runs",
    "set_tag",
    "set_tag_async",
}


def make_store(store_uri: str, artifact_uri: str | None) -> Any:
    """Return the store of an address."""
    return _store_class()(store_uri, artifact_uri)


@functools.cache
def _store_class() -> type[Any]:
    """Return the class, whose base is there only with MLflow."""
    from mlflow.store.tracking.abstract_store import AbstractStore

    # What is not written here needs the server, and is its to answer.
    passed = {
        name: _passed_on(name, function)
        for name, function in vars(AbstractStore).items()
        if inspect.isfunction(function)
        and not name.startswith("__")
        and name not in _DERIVED | vars(_Store).keys()
    }
    return type("JournalStore", (_Store, AbstractStore), {"__module__": __name__, **passed})


class _Store:
    """Writes into the journal of each run, and asks the wrapped store for what only that can say.

    Consistency is read-your-writes: `get_run` and `get_metric_history` put together what MLflow has and what the journal
    has, where the journal counts while it is not delivered, and the journal alone while the server is away. A search waits
    up to ten seconds for what this process has logged.
    """

    def __init__(self, store_uri: str, artifact_uri: str | None = None) -> None:
        super().__init__()
        self.backend = Backend(store_uri, artifact_uri)
        self.local = Local(self.backend)
        self.experiments = Experiments(self.local.root, self.backend)
        self.stand_ins = StandIns()
        self._infos: dict[str, Any] = {}

    # --- experiments -------------------------------------------------------------------------------------------

    def create_experiment(self, name: str, artifact_location: str | None, tags: list[Any]) -> str:
        """Make an experiment, in MLflow if it answers, else with the first run of it that is delivered."""
        from mlflow.utils.validation import _validate_experiment_name

        _validate_experiment_name(name)
        store = self.backend.store
        return self.backend.attempt(
            "create_experiment",
            lambda: str(store.create_experiment(name, artifact_location, tags)),
            lambda: self.experiments.create(name, artifact_location, tags or []),
        )

    def get_experiment(self, experiment_id: str) -> Any:
        """Return an experiment."""
        if not self.backend.is_up():
            known = self.experiments.by_id(str(experiment_id))
            if known is not None:
                return known
        found = self.backend.call("get_experiment", self.experiments.theirs(str(experiment_id)))
        self.experiments.learn(found)
        return self._seen(found)

    def get_experiment_by_name(self, experiment_name: str) -> Any:
        """Return an experiment, or None if there is none as far as is known."""
        store = self.backend.store

        def ask() -> Any:
            found = store.get_experiment_by_name(experiment_name)
            if found is not None:
                self.experiments.learn(found)
            return self._seen(found)

        return self.backend.attempt(
            "get_experiment_by_name", ask, lambda: self.experiments.by_name(experiment_name)
        )

    # --- runs --------------------------------------------------------------------------------------------------

    def create_run(
        self,
        experiment_id: str,
        user_id: str,
        start_time: int,
        tags: list[Any],
        run_name: str | None,
    ) -> Any:
        """Begin a run in the journal and return it at once; MLflow makes its own when it is delivered."""
        from mlflow.utils.name_utils import _generate_random_name

        given = {tag.key: tag.value for tag in tags or ()}
        _check_tags(given)
        named = given.get(_NAME)
        if run_name and named and run_name != named:
            raise _invalid(f"run_name is {run_name!r}, and the tag {_NAME!r} is {named!r}")
        name = run_name or named or _generate_random_name()
        given[_NAME] = name
        about = self.experiments.about(str(experiment_id))
        label = about.get("name") or f"experiment {experiment_id}"
        call = {
            "call": "create",
            "experiment_id": str(experiment_id),
            "experiment": about,
            "tags": given,
            "run_name": name,
            "user_id": user_id,
            "start_time": start_time,
        }
        made = self.local.create(label, name[:1000], given.get(_PARENT), call)
        run = self._from_journal(made)
        self._infos[made] = run.info
        return run

    def get_run(self, run_id: str) -> Any:
        """Return a run: of the journal, of MLflow, or of both together."""
        folder = self.local.folder(run_id)
        if folder is None:
            theirs = self._theirs(run_id)
            here = self.backend.ours(theirs)
            if here != run_id and here and self.local.folder(here) is not None:
                return self.get_run(here)
            return self._as_ours(self.backend.call("get_run", theirs))
        # Asked first: what is not to be delivered then, MLflow has when it is asked.
        ahead = any(one.delivery.pending for one in status(folder)[:1])
        stored = self._stored(run_id)
        view = View(folder)
        return view.run() if stored is None else self._merged(view, stored, ahead=ahead)

    def update_run_info(
        self, run_id: str, run_status: Any, end_time: int | None, run_name: str | None
    ) -> Any:
        """Write down how a run has ended, that it goes on, or what it is called."""
        from mlflow.entities import RunInfo, RunStatus

        run_id = self._here(run_id)
        said = None if run_status is None else RunStatus.to_string(run_status)
        call = {"call": "update", "status": said, "end_time": end_time, "run_name": run_name}
        self.local.note(run_id, call, status=said)
        # To read the journal, with all its points, would make the end of a long training slow.
        info = self._infos.get(run_id) or self._from_journal(run_id).info
        info = self._infos[run_id] = RunInfo(
            run_id=run_id,
            experiment_id=info.experiment_id,
            user_id=info.user_id,
            status=said or info.status,
            start_time=info.start_time,
            end_time=end_time,
            lifecycle_stage=info.lifecycle_stage,
            artifact_uri=info.artifact_uri,
            run_name=run_name or info.run_name,
        )
        if said is not None and RunStatus.is_terminated(run_status):
            self._infos.pop(run_id)
            self.local.end(run_id, said)
        return info

    def log_batch(
        self, run_id: str, metrics: list[Any], params: list[Any], tags: list[Any]
    ) -> None:
        """Write metrics, params and tags into the journal.

        Raises:
            MlflowException: If one of them is what MLflow would refuse.
        """
        from mlflow.utils.validation import (
            _validate_metric,
            _validate_param_keys_unique,
            _validate_param_name,
        )

        for metric in metrics:
            _validate_metric(metric.key, metric.value, metric.timestamp, metric.step)
        _validate_param_keys_unique(params)
        for param in params:
            _validate_param_name(param.key)
        given = {tag.key: tag.value for tag in tags}
        _check_tags(given)
        run_id = self._here(run_id)
        run = self.local.run(run_id)
        try:
            if params:
                run.log_params({param.key: str(param.value) for param in params})
            linked = [one for one in metrics if self._is_linked(one)]
            _log_metrics(run, [one for one in metrics if one not in linked])
        except ParamConflictError as error:
            raise _invalid(str(error)) from error
        except ConfigurationError as error:
            raise _invalid(str(error)) from error
        if linked:
            contents = [_calls.metric_to(one) for one in linked]
            self.local.note(run_id, {"call": "metrics", "metrics": contents})
        if given:
            self.local.note(run_id, {"call": "tags", "tags": given})

    def log_batch_async(
        self, run_id: str, metrics: list[Any], params: list[Any], tags: list[Any]
    ) -> Any:
        """Write into the journal at once, which is sooner than a queue could promise."""
        from concurrent.futures import Future

        from mlflow.utils.async_logging.run_operations import RunOperations

        done: Future[None] = Future()
        try:
            self.log_batch(run_id, metrics, params, tags)
        except Exception as error:  # noqa: BLE001 - it is the future's to raise
            done.set_exception(error)
        else:
            done.set_result(None)
        return RunOperations([done])

    def flush_async_logging(self) -> None:
        """Wait for the delivery of what this process has logged, ten seconds at most."""
        self.local.flush(_FRESH)

    def end_async_logging(self) -> None:
        """Do nothing: there is no queue."""

    def shut_down_async_logging(self) -> None:
        """Do nothing: there is no queue."""

    def delete_tag(self, run_id: str, key: str) -> None:
        """Delete a tag of a run.

        Raises:
            MlflowException: If it has no such tag.
        """
        run_id = self._here(run_id)
        if key not in self.get_run(run_id).data.tags:
            raise _invalid(
                f"No tag with name: {key} in run with id {run_id}", "RESOURCE_DOES_NOT_EXIST"
            )
        self.local.note(run_id, {"call": "delete_tag", "key": key})

    def log_inputs(
        self, run_id: str, datasets: list[Any] | None = None, models: list[Any] | None = None
    ) -> None:
        """Write down data and models that a run reads."""
        from mlflow.utils.validation import _validate_dataset_inputs

        if datasets:
            _validate_dataset_inputs(datasets)
        call = {
            "call": "inputs",
            "datasets": [_calls.dataset_to(one) for one in datasets or ()],
            "models": [one.model_id for one in models or () if not self._stands_in(one)],
        }
        self.local.note(self._here(run_id), call)

    def log_outputs(self, run_id: str, models: list[Any]) -> None:
        """Write down models that a run has made."""
        pairs = [[one.model_id, one.step] for one in models if not self._stands_in(one)]
        if pairs:
            self.local.note(self._here(run_id), {"call": "outputs", "models": pairs})

    def record_logged_model(self, run_id: str, mlflow_model: Any) -> None:
        """Write a model into the tag in which MLflow 2 kept them."""
        import json

        run_id = self._here(run_id)
        held = json.loads(self.get_run(run_id).data.tags.get(_HISTORY, "[]"))
        text = json.dumps([*held, mlflow_model.get_tags_dict()])
        self.local.note(run_id, {"call": "tags", "tags": {_HISTORY: text}})

    # --- models ------------------------------------------------------------------------------------------------

    def create_logged_model(  # noqa: PLR0917 - MLflow's signature
        self,
        experiment_id: str,
        name: str | None = None,
        source_run_id: str | None = None,
        tags: list[Any] | None = None,
        params: list[Any] | None = None,
        model_type: str | None = None,
    ) -> Any:
        """Make a model in MLflow, or, while that is away, one that stands in for it."""
        arguments = {
            "experiment_id": experiment_id,
            "name": name,
            "source_run_id": source_run_id,
            "tags": tags,
            "params": params,
            "model_type": model_type,
        }
        if source_run_id is None:
            return self._pass_on("create_logged_model", arguments)
        here = self._here(source_run_id)
        return self.backend.attempt(
            "create_logged_model",
            lambda: self._pass_on("create_logged_model", arguments),
            lambda: self.stand_ins.create(
                experiment_id=experiment_id,
                name=name,
                run_id=here,
                tags=tags,
                params=params,
                model_type=model_type,
            ),
        )

    def get_logged_model(self, model_id: str, allow_deleted: bool = False) -> Any:  # noqa: FBT001, FBT002 - MLflow's signature
        """Return a model."""
        held = self.stand_ins.get(model_id)
        if held is not None:
            return held
        arguments: dict[str, Any] = {"model_id": model_id}
        if allow_deleted:
            arguments["allow_deleted"] = True
        return self._pass_on("get_logged_model", arguments)

    def finalize_logged_model(self, model_id: str, status: Any) -> Any:
        """Say how a model has come out."""
        if self.stand_ins.get(model_id) is not None:
            return self.stand_ins.finalize(model_id, status)
        return self._pass_on("finalize_logged_model", {"model_id": model_id, "status": status})

    def set_logged_model_tags(self, model_id: str, tags: list[Any]) -> None:
        """Tag a model."""
        if self.stand_ins.get(model_id) is not None:
            self.stand_ins.tag(model_id, tags)
        else:
            self._pass_on("set_logged_model_tags", {"model_id": model_id, "tags": tags})

    def delete_logged_model_tag(self, model_id: str, key: str) -> None:
        """Delete a tag of a model."""
        if self.stand_ins.get(model_id) is not None:
            self.stand_ins.untag(model_id, key)
        else:
            self._pass_on("delete_logged_model_tag", {"model_id": model_id, "key": key})

    def log_logged_model_params(self, model_id: str, params: list[Any]) -> None:
        """Log params of a model."""
        if self.stand_ins.get(model_id) is None:
            self._pass_on("log_logged_model_params", {"model_id": model_id, "params": params})

    # --- reading -----------------------------------------------------------------------------------------------

    def get_metric_history(
        self,
        run_id: str,
        metric_key: str,
        max_results: int | None = None,
        page_token: str | None = None,
    ) -> Any:
        """Return the points of a metric: of the journal, of MLflow, or of both together."""
        from mlflow.store.entities.paged_list import PagedList

        folder = self.local.folder(run_id)
        if folder is None:
            return self.backend.call(
                "get_metric_history", self._theirs(run_id), metric_key, max_results, page_token
            )
        points = View(folder).metrics.get(metric_key, [])
        theirs = self.backend.find(run_id) if self.backend.is_up() else None
        if theirs is not None:
            token = None
            while True:
                page = self.backend.call("get_metric_history", theirs, metric_key, None, token)
                points = merged_metrics(page, points)
                token = page.token
                if not token:
                    break
        points.sort(key=lambda one: (one.timestamp, one.step))
        return PagedList(points, None)

    def _search_runs(  # noqa: PLR0917 - MLflow's signature
        self,
        experiment_ids: list[str],
        filter_string: str,
        run_view_type: Any,
        max_results: int,
        order_by: list[str] | None,
        page_token: str | None,
    ) -> tuple[list[Any], str | None]:
        """Search in MLflow, which gets what this process has logged first."""
        self.local.flush(_FRESH if self.backend.is_up() else 0.0)
        wanted = [self.experiments.theirs(str(one)) for one in experiment_ids]
        found = self.backend.call(
            "search_runs",
            wanted,
            self._translated(filter_string),
            run_view_type,
            max_results,
            order_by,
            page_token,
        )
        return [self._as_ours(run) for run in found], found.token

    # --- between the two ----------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        # What a newer server's store can do and the interface does not name.
        if name.startswith("_") or name in {"backend", "local", "experiments", "stand_ins"}:
            raise AttributeError(name)
        return getattr(self.backend.store, name)

    def _pass_on(self, name: str, arguments: dict[str, Any]) -> Any:
        for key, value in arguments.items():
            if key in _RUN_ARGUMENTS and isinstance(value, str):
                arguments[key] = self._theirs(value)
            elif key == "experiment_id" and value is not None:
                arguments[key] = self.experiments.theirs(str(value))
            elif key == "experiment_ids" and value is not None:
                arguments[key] = [self.experiments.theirs(str(one)) for one in value]
            elif key == "filter_string" and isinstance(value, str):
                arguments[key] = self._translated(value)
        return self._seen(self.backend.call(name, **arguments))

    def _stands_in(self, model: Any) -> bool:
        return self.stand_ins.get(model.model_id) is not None

    def _is_linked(self, metric: Any) -> bool:
        """Return whether a metric says of which model or dataset it is, which a point does not."""
        model = metric.model_id and self.stand_ins.get(metric.model_id) is None
        return bool(model or metric.dataset_name or metric.dataset_digest)

    def _here(self, run_id: str) -> str:
        """Return the id under which a run is journalled, which the caller may know by MLflow's."""
        if is_ours(run_id) or self.local.folder(run_id) is not None:
            return run_id
        return self.local.run(run_id).id

    def _theirs(self, run_id: str) -> str:
        """Return MLflow's id of a run, which gets what this process has logged first.

        Raises:
            MlflowException: If it does not have the run.
        """
        found = self.backend.find(run_id)
        if self.local.flush_one(run_id, _FRESH) is not None and found is None:
            found = self.backend.find(run_id, fresh=True)
        if found is None:
            raise _invalid(f"Run with id={run_id} not found", "RESOURCE_DOES_NOT_EXIST")
        return found

    def _stored(self, run_id: str) -> Any:
        """Return a run as MLflow has it, None if it has not or does not answer."""
        from mlflow.exceptions import MlflowException

        try:
            theirs = self.backend.find(run_id)
            return None if theirs is None else self.backend.call("get_run", theirs)
        except MlflowException:
            return None

    def _from_journal(self, run_id: str) -> Any:
        folder = self.local.folder(run_id)
        if folder is None:
            raise _invalid(f"Run with id={run_id} not found", "RESOURCE_DOES_NOT_EXIST")
        return View(folder).run()

    def _merged(self, view: View, stored: Any, *, ahead: bool) -> Any:
        """Return what the journal and MLflow have of a run; where they differ, the journal counts if it is *ahead*."""
        from mlflow.entities import Param, Run, RunData, RunInfo, RunInputs, RunOutputs, RunTag

        ours, theirs = view.run(), self._as_ours(stored)
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
        held = ours.info if ahead and view.status else theirs.info
        info = RunInfo(
            run_id=view.id,
            experiment_id=ours.info.experiment_id if view.created else theirs.info.experiment_id,
            user_id=theirs.info.user_id,
            status=held.status,
            start_time=theirs.info.start_time,
            end_time=held.end_time,
            lifecycle_stage=theirs.info.lifecycle_stage,
            artifact_uri=artifact_root(view.id),
            run_name=held.run_name,
        )
        params = {**ours.data.params, **theirs.data.params}
        data = RunData(
            metrics=[latest(some) for some in points.values()],
            params=[Param(key, value) for key, value in params.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        stored_data = _listed(theirs.inputs, "dataset_inputs")
        stored_in = _listed(theirs.inputs, "model_inputs")
        stored_out = _listed(theirs.outputs, "model_outputs")
        known = {(one.dataset.name, one.dataset.digest) for one in stored_data}
        datasets = stored_data + [
            one
            for one in ours.inputs.dataset_inputs
            if (one.dataset.name, one.dataset.digest) not in known
        ]
        into = stored_in + [one for one in ours.inputs.model_inputs if one not in stored_in]
        out = stored_out + [one for one in ours.outputs.model_outputs if one not in stored_out]
        return Run(info, data, RunInputs(datasets, into), RunOutputs(out))

    def _as_ours(self, run: Any) -> Any:
        """Return a run of MLflow under the id by which it is known here."""
        from mlflow.entities import Run, RunData, RunInfo, RunTag

        info, tags = run.info, dict(run.data.tags)
        here = self.backend.ours(info.run_id, tags) or info.run_id
        if _PARENT in tags:
            tags[_PARENT] = self.backend.ours(tags[_PARENT]) or tags[_PARENT]
        renamed = RunInfo(
            run_id=here,
            experiment_id=info.experiment_id,
            user_id=info.user_id,
            status=info.status,
            start_time=info.start_time,
            end_time=info.end_time,
            lifecycle_stage=info.lifecycle_stage,
            artifact_uri=artifact_root(here),
            run_name=info.run_name,
        )
        from mlflow.entities import Param

        data = RunData(
            metrics=run.data._metric_objs,  # noqa: SLF001 - `metrics` has no steps
            params=[Param(key, value) for key, value in run.data.params.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        return Run(renamed, data, run.inputs, run.outputs)

    def _translated(self, condition: str | None) -> str | None:
        """Return a search condition with MLflow's ids in place of ours."""
        if not condition or RUN_TAG in condition:
            return condition
        return _ID.sub(lambda found: self.backend.find(found[0]) or found[0], condition)

    def _seen(self, found: Any) -> Any:
        """Return what a call has given, with places and ids that hold here."""
        from mlflow.entities import Experiment, LoggedModel
        from mlflow.store.entities.paged_list import PagedList

        if isinstance(found, PagedList):
            return PagedList([self._seen(one) for one in found], found.token)
        if isinstance(found, (Experiment, LoggedModel)):
            found._artifact_location = self.backend.location(found.artifact_location or "")  # noqa: SLF001 - the entity has no other way
        if isinstance(found, LoggedModel):
            found._source_run_id = self.backend.ours(found.source_run_id)  # noqa: SLF001 - as above
        return found


def _passed_on(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the method that leaves a call to the wrapped store."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        arguments = {key: value for key, value in bound.arguments.items() if key != "self"}
        return self._pass_on(name, arguments)

    # An abstract method that is given is none any more.
    method.__dict__.pop("__isabstractmethod__", None)
    return method


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


def _check_tags(tags: dict[str, str]) -> None:
    from mlflow.utils.validation import _validate_tag_name

    for key in tags:
        _validate_tag_name(key)


def _listed(entity: Any, field: str) -> list[Any]:
    return list(getattr(entity, field, None) or ())


def _invalid(message: str, code: str = "INVALID_PARAMETER_VALUE") -> Exception:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import ErrorCode

    error: Exception = MlflowException(message, error_code=ErrorCode.Value(code))
    return error
