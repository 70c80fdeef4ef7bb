"""What delivers the journals of the plug-in: the sink `mlflow-store:<address>`."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, final

from mlkit._optional import require
from mlkit.errors import SinkRejectedError, SinkUnavailableError
from mlkit.integrations.mlflow import MlflowSink
from mlkit.integrations.mlflow._files import placed
from mlkit.integrations.mlflow_plugin._backend import LET_GO_TAG, RUN_TAG, Backend, is_ours
from mlkit.integrations.mlflow_plugin._calls import (
    CALL,
    dataset_from,
    metric_from,
    models_in,
    models_out,
)
from mlkit.integrations.mlflow_plugin._delivered_models import DeliveredModels
from mlkit.integrations.mlflow_plugin._experiments import find_or_make
from mlkit.tracking import Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlkit.tracking import RunInfo

__all__ = ["StoreSink"]

_PARENT = "mlflow.parentRunId"
_NAME = "mlflow.runName"


@final
class StoreSink:
    """Writes a run that was recorded through MLflow's own interface into MLflow, as it would have been made there.

    Points, params and artifacts are the business of `MlflowSink`; the rest of MLflow's calls is done here. The run is found by
    its tag `mlkit.run_id`. Not thread-safe; picklable before `open`.

    Args:
        tracking_uri: Address of the store.

    Raises:
        ConfigurationError: If that is no tracking URI that MLflow writes to.
        MissingDependencyError: If MLflow is not installed.
    """

    def __init__(self, tracking_uri: str) -> None:
        self._inner = MlflowSink(tracking_uri, keep_names=True)
        self._info: RunInfo | None = None
        self._backend: Backend | None = None
        self._models: DeliveredModels | None = None
        self._run_id = ""

    @property
    def uri(self) -> str:
        """`"mlflow-store:"` and the tracking URI."""
        return f"mlflow-store:{self._inner.tracking_uri}"

    @property
    def max_records(self) -> int:
        """1000, as `MlflowSink`."""
        return self._inner.max_records

    def open(self, run: RunInfo) -> None:
        """Find the run, if it is there.

        Args:
            run: The run.

        Raises:
            SinkUnavailableError: If MLflow does not answer.
        """
        require("mlflow", extra="mlflow", feature="the MLflow plug-in")
        self._info, self._run_id = run, ""
        self._backend = Backend(f"mlkit+{self._inner.tracking_uri}")
        with _waiting():
            found = self._backend.search(f"tags.`{RUN_TAG}` = '{run.id}'")
        if found is not None:
            self._go_on(found)

    def send(self, batch: Sequence[Record]) -> None:
        """Store *batch*.

        Args:
            batch: The records.

        Raises:
            SinkUnavailableError: If MLflow does not answer, or does not take the run.
            SinkRejectedError: If MLflow refuses a record of it.
        """
        calls = [
            json.loads(str(record.value))
            for record in sorted(batch, key=lambda one: one.key)
            if record.kind == "tag" and record.key.startswith(CALL)
        ]
        if not self._run_id:
            create = next((one for one in calls if one["call"] == "create"), None)
            if create is None and all(record.kind == "status" for record in batch):
                return  # read between the journal's first record and its second, which says how to make the run
            self._make(create)
        plain = {"metric", "param", "tag"}
        self._send_plain(
            [one for one in batch if one.kind in plain and not one.key.startswith(CALL)]
        )
        at = max((record.time for record in batch), default=0.0)
        with _waiting():
            for call in calls:
                if call["call"] == "model":  # which says where its files go
                    self._made.create(call)
            self._upload([one for one in batch if one.kind == "artifact"])
            self._do(calls, at)
            if any(record.id == "killed" for record in batch):
                self._end_killed(at)

    def close(self) -> None:
        """Let go of the connection."""
        self._inner.close()
        self._backend = self._models = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_backend": None, "_models": None}

    def __repr__(self) -> str:
        return f"StoreSink({self._inner.tracking_uri!r})"

    @property
    def _store(self) -> Any:
        if self._backend is None:
            raise SinkUnavailableError("the sink is closed")
        return self._backend.store

    @property
    def _made(self) -> DeliveredModels:
        if self._models is None:
            if self._backend is None:
                raise SinkUnavailableError("the sink is closed")
            self._models = DeliveredModels(self._backend, self._run_id)
        return self._models

    def _make(self, call: dict[str, Any] | None) -> None:
        """Make the run in MLflow as the call says.

        Raises:
            SinkUnavailableError: If it cannot be made; the cause may be mended, so nothing is set aside.
        """
        from mlflow.exceptions import MlflowException

        info, backend = self._info, self._backend
        if info is None or backend is None:
            raise SinkUnavailableError("the sink is closed")
        if call is None:
            raise SinkUnavailableError(f"run {info.id} is not in MLflow any more")
        try:
            about = call["experiment"]
            known = str(about["experiment_id"])
            experiment = find_or_make(backend, about) if known.startswith("mlkit-") else known
            tags = {**call["tags"], RUN_TAG: info.id}
            if _PARENT in tags:
                tags[_PARENT] = self._parent(tags[_PARENT])
            # The answer to an earlier request may have been lost.
            theirs = backend.search(f"tags.`{RUN_TAG}` = '{info.id}'")
            if theirs is None:
                theirs = _create_run(backend, str(experiment), tags, call)
        except MlflowException as error:
            raise SinkUnavailableError(f"{error.error_code}: {error.message}") from error
        self._go_on(theirs)

    def _go_on(self, theirs: str) -> None:
        """Open the inner sink with the run that is in MLflow; it finds it by the same tag."""
        info = self._info
        with _waiting():
            run = self._store.get_run(theirs)
            experiment = self._store.get_experiment(run.info.experiment_id)
        if info is not None:
            self._inner.open(info._replace(experiment=experiment.name, parent=None))
        self._run_id = theirs
        self._models = None

    def _parent(self, run_id: str) -> str:
        """Return MLflow's id of the run that this one is nested in.

        Raises:
            SinkUnavailableError: If it is not there yet.
        """
        found = None if self._backend is None else self._backend.find(run_id)
        if found is None:
            raise SinkUnavailableError(f"run {run_id}, the parent, is not in MLflow yet")
        return found

    def _do(self, calls: list[dict[str, Any]], at: float) -> None:
        """Do what the journal says was called, in its order; the run's status comes last."""
        update: dict[str, Any] = {}
        for call in calls:
            kind = call["call"]
            if kind == "tags":
                self._tag(call["tags"], at)
                if "run_name" in update:  # which is done last, and would be the older one
                    update["run_name"] = call["tags"].get(_NAME, update["run_name"])
            elif kind == "delete_tag":
                self._delete_tag(call["key"])
            elif kind == "metrics":
                self._log_linked(call["metrics"])
            elif kind == "inputs":
                data = [dataset_from(one) for one in call["datasets"]]
                self._log_inputs(data, call["models"])
            elif kind == "outputs":
                self._log_outputs(call["models"])
            elif kind.startswith("model_"):
                self._made.do(call)
            elif kind == "update":
                if call["status"] == "RUNNING":
                    self._delete_tag(LET_GO_TAG)
                update |= {key: one for key, one in call.items() if one is not None}
            elif kind == "let_go":
                self._tag({LET_GO_TAG: "the process that logged has ended, the run has not"}, at)
        if update:
            self._update(update.get("status"), update.get("end_time"), update.get("run_name"))

    def _log_linked(self, contents: list[dict[str, Any]]) -> None:
        metrics = []
        for one in contents:
            model = one["model_id"] and self._made.theirs(one["model_id"])
            metrics.append(metric_from({**one, "model_id": model}))
        self._store.log_batch(self._run_id, metrics, [], [])

    def _log_inputs(self, data: list[Any], models: list[str]) -> None:
        theirs = [one for one in map(self._made.theirs, models) if one] if models else []
        if theirs:  # a second one of the same would be an error
            held = self._store.get_run(self._run_id).inputs.model_inputs or ()
            there = {one.model_id for one in held}
            theirs = [one for one in theirs if one not in there]
        if data or theirs:
            self._store.log_inputs(self._run_id, data, models_in(theirs) or None)

    def _log_outputs(self, models: list[list[Any]]) -> None:
        outputs = self._store.get_run(self._run_id).outputs
        there = {one.model_id for one in outputs.model_outputs or ()} if outputs else set()
        pairs = [[self._made.theirs(model_id), step] for model_id, step in models]
        new = [pair for pair in pairs if pair[0] and pair[0] not in there]
        if new:
            self._store.log_outputs(self._run_id, models_out(new))

    def _send_plain(self, records: list[Record]) -> None:
        from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

        if not records:
            return
        # MLflow remembers by the run's id where artifacts go, for the whole process. In a thread of the process that logs,
        # that may be the journal, which would get again what comes from it.
        _artifact_repos_cache.pop(self._run_id, None)
        try:
            self._inner.send(records)
        finally:
            _artifact_repos_cache.pop(self._run_id, None)

    def _upload(self, records: list[Record]) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        if not records or self._backend is None:
            return
        place = self._store.get_run(self._run_id).info.artifact_uri
        for record in records:
            found = self._made.place(record.key) if "/" in record.key else None
            root, name = found or (place, record.key)
            repository = get_artifact_repository(
                self._backend.location(root), tracking_uri=self._backend.uri
            )
            _put(repository, record.path, PurePosixPath(name))

    def _tag(self, tags: dict[str, str], at: float) -> None:
        from mlflow.entities import RunTag
        from mlflow.exceptions import MlflowException

        if _PARENT in tags and is_ours(tags[_PARENT]):
            tags = {**tags, _PARENT: self._parent(tags[_PARENT])}
        try:
            entities = [RunTag(key, value) for key, value in tags.items()]
            self._store.log_batch(self._run_id, [], [], entities)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            # Older servers take less; cut here, and kept whole elsewhere.
            records = [Record("", "tag", key, value, time=at) for key, value in tags.items()]
            self._send_plain(records)

    def _delete_tag(self, key: str) -> None:
        if key in self._store.get_run(self._run_id).data.tags:
            self._store.delete_tag(self._run_id, key)

    def _update(self, status: str | None, end_time: int | None, name: str | None) -> None:
        from mlflow.entities import RunStatus

        if status is None:
            status = self._store.get_run(self._run_id).info.status
        self._store.update_run_info(self._run_id, RunStatus.from_string(status), end_time, name)

    def _end_killed(self, at: float) -> None:
        """Mark a run whose process has died, unless it had ended or was let go of."""
        run = self._store.get_run(self._run_id)
        if run.info.status == "RUNNING" and LET_GO_TAG not in run.data.tags:
            self._update("KILLED", round(at * 1000), None)


def _create_run(
    backend: Backend, experiment: str, tags: dict[str, str], call: dict[str, Any]
) -> str:
    """Have MLflow make a run and return its id."""
    from mlflow.entities import RunTag

    about = {
        "experiment_id": experiment,
        "user_id": call["user_id"],
        "start_time": call["start_time"],
        "run_name": call["run_name"],
    }
    if backend.is_http:
        entries = [{"key": key, "value": value} for key, value in tags.items()]
        answer = backend.create("runs/create", {**about, "tags": entries})
        return str(answer["run"]["info"]["run_id"])
    entities = [RunTag(key, value) for key, value in tags.items()]
    return str(backend.call("create_run", **about, tags=entities).info.run_id)


def _put(repository: Any, path: Any, name: PurePosixPath) -> None:
    """Store a file under a name."""
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder) / name.name  # MLflow takes the name from the file
        try:
            named.symlink_to(path)
        except OSError:
            shutil.copyfile(path, named)
        parent = None if name.parent == PurePosixPath() else str(name.parent)
        with placed(str(name), repository.list_artifacts):
            repository.log_artifact(str(named), parent)


@final
class _waiting:  # noqa: N801 - reads as the statement it is: `with _waiting():`
    """Context manager: MLflow's errors become those that the lane understands."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from mlflow.exceptions import MlflowException

        if isinstance(error, MlflowException):
            hopeless = error.error_code in {
                "BAD_REQUEST",
                "INVALID_PARAMETER_VALUE",
                "INVALID_STATE",
                "MALFORMED_REQUEST",
                "RESOURCE_DOES_NOT_EXIST",
            }
            translated = SinkRejectedError if hopeless else SinkUnavailableError
            raise translated(f"{error.error_code}: {error.message}") from error
        if type(error).__module__.startswith(("sqlalchemy.", "alembic.", "requests.")):
            raise SinkUnavailableError(f"{type(error).__name__}: {error}") from error
