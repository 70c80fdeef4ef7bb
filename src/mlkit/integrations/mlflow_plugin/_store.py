"""MLflow's interface of a tracking store, before the journal."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from mlkit.integrations.mlflow_plugin import _calls
from mlkit.integrations.mlflow_plugin._backend import Backend, is_ours
from mlkit.integrations.mlflow_plugin._batches import (
    Batch,
    check_tags,
    checked,
    metric_alone,
    param_alone,
    tag_alone,
    write,
)
from mlkit.integrations.mlflow_plugin._experiments import Experiments
from mlkit.integrations.mlflow_plugin._lifecycles import Lifecycles
from mlkit.integrations.mlflow_plugin._local import Local
from mlkit.integrations.mlflow_plugin._logged_models import LoggedModels
from mlkit.integrations.mlflow_plugin._refusals import invalid, unknown_run
from mlkit.integrations.mlflow_plugin._runs import merged
from mlkit.integrations.mlflow_plugin._translation import FRESH, Translation
from mlkit.integrations.mlflow_plugin._view import View, merged_metrics
from mlkit.tracking import status

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["make_store"]

_PARENT = "mlflow.parentRunId"
_NAME = "mlflow.runName"
_TRACE = (
    10.0  # seconds that a traced function waits at most, once, for a server that begins to hang
)
_HISTORY = "mlflow.log-model.history"
# These are written in terms of others in the interface itself.
_DERIVED = {
    "log_metric_async",
    "log_param_async",
    "log_spans_async",
    "search_runs",
    "set_tag_async",
}
_OWN = {"backend", "local", "experiments", "lifecycles", "models", "translation"}


def make_store(store_uri: str, artifact_uri: str | None) -> Any:
    """Return the store of an address."""
    return _store_class()(store_uri, artifact_uri)


@functools.cache
def _store_class() -> type[Any]:
    """Return the class, whose base is there only with MLflow."""
    from mlflow.store.tracking.abstract_store import AbstractStore

    # What is not written here needs the server, and is its to answer.
    passed: dict[str, Any] = {}
    for name in dir(AbstractStore):
        member = inspect.getattr_static(AbstractStore, name)
        if name.startswith("__") or name in _DERIVED | vars(_Store).keys():
            continue
        if inspect.isfunction(member):
            passed[name] = _passed_on(name, member)
        elif isinstance(member, property):
            passed[name] = _asked(name, member)
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
        self.lifecycles = Lifecycles()
        self.translation = Translation(self.backend, self.local, self.experiments)
        self.models = LoggedModels(self.backend, self.local, self._pass_on)
        self._infos: dict[str, Any] = {}
        self._linked: set[str] = set()

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
        return self.translation.seen(found)

    def get_experiment_by_name(self, experiment_name: str) -> Any:
        """Return an experiment, or None if there is none as far as is known."""
        store = self.backend.store

        def ask() -> Any:
            found = store.get_experiment_by_name(experiment_name)
            if found is not None:
                self.experiments.learn(found)
            return self.translation.seen(found)

        return self.backend.attempt(
            "get_experiment_by_name", ask, lambda: self.experiments.by_name(experiment_name)
        )

    def delete_experiment(self, experiment_id: str) -> None:
        """Delete an experiment; MLflow gets its runs first."""
        self.local.flush(FRESH if self.backend.is_up() else 0.0)
        self._pass_on("delete_experiment", {"experiment_id": experiment_id})
        self.lifecycles.delete_experiment(str(experiment_id))

    def restore_experiment(self, experiment_id: str) -> None:
        """Restore an experiment and its runs."""
        self._pass_on("restore_experiment", {"experiment_id": experiment_id})
        self.lifecycles.restore_experiment(str(experiment_id))

    def rename_experiment(self, experiment_id: str, new_name: str) -> None:
        """Give an experiment another name."""
        self._pass_on("rename_experiment", {"experiment_id": experiment_id, "new_name": new_name})
        self.experiments.rename(str(experiment_id), new_name)

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
        from mlflow.entities import Run
        from mlflow.utils.name_utils import _generate_random_name

        self.lifecycles.check_experiment(str(experiment_id))
        if not self.backend.is_http:
            # Before a shipper is started: MLflow's model registry would make the tables of a new database at the same time.
            _ = self.backend.store
        given = {tag.key: str(tag.value) for tag in tags or ()}
        check_tags(given)
        named = given.get(_NAME)
        if run_name and named and run_name != named:
            raise invalid(
                f"Both 'run_name' argument and '{_NAME}' tag are specified, but with different values (run_name='{run_name}', "
                f"{_NAME}='{named}')."
            )
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
        self.lifecycles.began(made, run.info.experiment_id)
        return Run(run.info, run.data, run.inputs)  # as MLflow gives a new one

    def get_run(self, run_id: str) -> Any:
        """Return a run: of the journal, of MLflow, or of both together."""
        folder = self.local.folder(run_id)
        if folder is None:
            theirs = self.translation.run(run_id)
            here = self.backend.ours(theirs)
            if here != run_id and here and self.local.folder(here) is not None:
                return self.get_run(here)
            return self.translation.seen(self.backend.call("get_run", theirs))
        # Asked first: what is not to be delivered then, MLflow has when it is asked.
        ahead = any(one.delivery.pending for one in status(folder)[:1])
        stored = self._stored(run_id)
        view = View(folder)
        if stored is None:
            return view.run()
        return merged(view, stored, self.backend, self.models.theirs, ahead=ahead)

    def update_run_info(
        self, run_id: str, run_status: Any, end_time: int | None, run_name: str | None
    ) -> Any:
        """Write down how a run has ended, that it goes on, or what it is called."""
        from mlflow.entities import RunInfo, RunStatus

        run_id = self._writable(run_id)
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
            end_time=info.end_time if end_time is None else end_time,
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
        self._log(run_id, checked(run_id, metrics, params, tags))

    def log_metric(self, run_id: str, metric: Any) -> None:
        """Write a metric into the journal."""
        self._log(run_id, metric_alone(metric))

    def log_param(self, run_id: str, param: Any) -> None:
        """Write a param into the journal."""
        self._log(run_id, param_alone(param))

    def set_tag(self, run_id: str, tag: Any) -> None:
        """Write a tag into the journal."""
        self._log(run_id, tag_alone(tag))

    def delete_run(self, run_id: str) -> None:
        """Delete a run, which takes nothing more from then on."""
        self._pass_on("delete_run", {"run_id": run_id})
        self.lifecycles.delete_run(self._known(run_id))

    def restore_run(self, run_id: str) -> None:
        """Restore a run."""
        self._pass_on("restore_run", {"run_id": run_id})
        self.lifecycles.restore_run(self._known(run_id))

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
        self.local.flush(FRESH)

    def end_async_logging(self) -> None:
        """Do nothing: there is no queue."""

    def shut_down_async_logging(self) -> None:
        """Do nothing: there is no queue."""

    def delete_tag(self, run_id: str, key: str) -> None:
        """Delete a tag of a run.

        Raises:
            MlflowException: If it has no such tag.
        """
        run_id = self._writable(run_id)
        if key not in self.get_run(run_id).data.tags:
            raise invalid(
                f"No tag with name: {key} in run with id {run_id}", "RESOURCE_DOES_NOT_EXIST"
            )
        self.local.note(run_id, {"call": "delete_tag", "key": key})

    def log_inputs(
        self, run_id: str, datasets: list[Any] | None = None, models: list[Any] | None = None
    ) -> None:
        """Write down data and models that a run reads."""
        from mlflow.utils.validation import _validate_dataset_inputs, _validate_run_id

        _validate_run_id(run_id)
        if datasets:
            _validate_dataset_inputs(datasets)
        call = {
            "call": "inputs",
            "datasets": [_calls.dataset_to(one) for one in datasets or ()],
            "models": [one.model_id for one in models or ()],
        }
        run = self.local.run(self._writable(run_id))
        if call["datasets"] or call["models"]:
            _calls.note(run, call)

    def log_outputs(self, run_id: str, models: list[Any]) -> None:
        """Write down models that a run has made."""
        pairs = [[one.model_id, one.step] for one in models]
        self.local.note(self._writable(run_id), {"call": "outputs", "models": pairs})

    def record_logged_model(self, run_id: str, mlflow_model: Any) -> None:
        """Write a model into the tag in which MLflow 2 kept them."""
        import json

        from mlflow.models import Model

        if not isinstance(mlflow_model, Model):
            raise TypeError(
                f"Argument 'mlflow_model' should be mlflow.models.Model, got '{type(mlflow_model)}'"
            )
        run_id = self._writable(run_id)
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
        return self.backend.attempt(
            "create_logged_model",
            lambda: self._pass_on("create_logged_model", arguments),
            lambda: self.models.create(
                self._here(source_run_id), self.experiments.about(str(experiment_id)), arguments
            ),
        )

    def get_logged_model(self, model_id: str, allow_deleted: bool = False) -> Any:  # noqa: FBT001, FBT002 - MLflow's signature
        """Return a model."""
        if model_id in self._linked and self.backend.is_up():
            self.local.flush(FRESH)  # its metrics are in a journal
            self._linked.discard(model_id)
        return self.models.get(model_id, allow_deleted=allow_deleted)

    def search_logged_models(  # noqa: PLR0917 - MLflow's signature
        self,
        experiment_ids: list[str],
        filter_string: str | None = None,
        datasets: list[dict[str, Any]] | None = None,
        max_results: int | None = None,
        order_by: list[dict[str, Any]] | None = None,
        page_token: str | None = None,
    ) -> Any:
        """Search in MLflow, which gets what this process has logged first; while it is away, look a name up here."""
        from mlflow.store.entities.paged_list import PagedList

        self.local.flush(FRESH if self.backend.is_up() else 0.0)
        arguments = {
            "experiment_ids": experiment_ids,
            "filter_string": filter_string,
            "datasets": datasets,
            "max_results": max_results,
            "order_by": order_by,
            "page_token": page_token,
        }
        held = self.models.named(filter_string)
        if not held:
            return self._pass_on("search_logged_models", arguments)
        return self.backend.attempt(
            "search_logged_models",
            lambda: self._pass_on("search_logged_models", arguments),
            lambda: PagedList([one for one in held if one.experiment_id in experiment_ids], None),
        )

    def finalize_logged_model(self, model_id: str, status: Any) -> Any:
        """Say how a model has come out."""
        return self.models.finalize(model_id, status)

    def set_logged_model_tags(self, model_id: str, tags: list[Any]) -> None:
        """Tag a model."""
        self.models.tag(model_id, tags)

    def delete_logged_model_tag(self, model_id: str, key: str) -> None:
        """Delete a tag of a model."""
        self.models.untag(model_id, key)

    def log_logged_model_params(self, model_id: str, params: list[Any]) -> None:
        """Log params of a model."""
        self.models.log_params(model_id, params)

    def delete_logged_model(self, model_id: str) -> None:
        """Delete a model."""
        self._pass_on("delete_logged_model", {"model_id": self.models.theirs(model_id)})

    # --- traces ------------------------------------------------------------------------------------------------

    def start_trace(self, trace_info: Any) -> Any:
        """Store what is said of a trace. It is not journalled, and does not hold a traced function up for long."""

        def call() -> Any:
            return self.backend.store.start_trace(self.translation.trace(trace_info))

        return self.translation.seen(self.backend.within(_TRACE, "start_trace", call))

    def log_spans(self, location: str, spans: list[Any], tracking_uri: str | None = None) -> Any:
        """Store spans of a trace, as `start_trace`."""

        def call() -> Any:
            place = self.experiments.theirs(location)
            return self.backend.store.log_spans(place, spans, tracking_uri)

        return self.backend.within(_TRACE, "log_spans", call)

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
        from mlflow.utils.search_utils import SearchUtils

        folder = self.local.folder(run_id)
        if folder is None:
            there = self.translation.run(run_id)
            return self.backend.call(
                "get_metric_history", there, metric_key, max_results, page_token
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
        start = SearchUtils.parse_start_offset_from_page_token(page_token)
        end = len(points) if max_results is None else start + max_results
        following = SearchUtils.create_page_token(end) if end < len(points) else None
        return PagedList(points[start:end], following)

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
        self.local.flush(FRESH if self.backend.is_up() else 0.0)
        wanted = [self.experiments.theirs(str(one)) for one in experiment_ids]
        found = self.backend.call(
            "search_runs",
            wanted,
            self.translation.condition(filter_string),
            run_view_type,
            max_results,
            order_by,
            page_token,
        )
        return [self.translation.seen(run) for run in found], found.token

    # --- between the two ----------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        # What a newer server's store can do and the interface does not name.
        if name.startswith("_") or name in _OWN:
            raise AttributeError(name)
        found = getattr(self.backend.store, name)
        if not inspect.ismethod(found):
            return found
        return functools.partial(_passed_on(name, found.__func__), self)

    def _pass_on(self, name: str, arguments: dict[str, Any]) -> Any:
        translated = self.translation.arguments(arguments)
        return self.translation.seen(self.backend.call(name, **translated))

    def _log(self, run_id: str, batch: Batch) -> None:
        here = self._writable(run_id)
        write(self.local.run(here), batch, self.local.adopted_params.get(here, {}))
        self._linked |= {one.model_id for one in batch.metrics if one.model_id}

    def _here(self, run_id: str) -> str:
        """Return the id under which a run is journalled, which the caller may know by MLflow's."""
        if is_ours(run_id) or self.local.folder(run_id) is not None:
            return run_id
        return self.local.run(run_id).id

    def _known(self, run_id: str) -> str:
        """Return the id of a run here, without journalling it."""
        return run_id if is_ours(run_id) else self.backend.ours(run_id) or run_id

    def _writable(self, run_id: str) -> str:
        """Return the id under which a run is journalled.

        Raises:
            MlflowException: If the run is deleted.
        """
        here = self._here(run_id)
        self.lifecycles.check_run(here)
        return here

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
            raise unknown_run(run_id)
        return View(folder).run()


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


def _asked(name: str, member: property) -> property:
    """Return the property that the wrapped store has, and the interface's own answer while the server is away."""

    def value(self: Any) -> Any:
        return self.backend.attempt(
            name, lambda: getattr(self.backend.store, name), lambda: member.__get__(self)
        )

    return property(value, doc=member.__doc__)
