"""The few things that a sink asks of MLflow: of a server in its REST API, of a database through MLflow's client."""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit.errors import SinkUnavailableError
from mlkit.integrations.mlflow._answers import content_of, translated
from mlkit.integrations.mlflow._files import alone, placed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Data", "Database", "Point", "Server", "Store"]

_MISSING = "RESOURCE_DOES_NOT_EXIST"
_PATIENCE = 20.0  # seconds for one answer; the lane asks again


class Point(NamedTuple):
    """One point of a metric, as MLflow keeps it."""

    key: str
    value: float
    timestamp: int
    step: int


class Data(NamedTuple):
    """Data that a run read, as MLflow keeps it."""

    name: str
    digest: str
    source: str
    context: str


@final
class Server:
    """A tracking server, asked in its REST API.

    MLflow's own client sends a request again whose answer was lost, which makes a second run of one; it sleeps for as
    long as a server says; and it takes an empty answer for success. Here a request is sent once, and what is no
    answer of MLflow is an error. Where to sign in is what the client would read from the environment.

    Args:
        uri: `"http://host:5000"`.
    """

    def __init__(self, uri: str) -> None:
        from mlflow.utils.credentials import get_default_host_creds

        self._uri, self._credentials = uri, get_default_host_creds(uri)
        self._timeout = None if "MLFLOW_HTTP_REQUEST_TIMEOUT" in os.environ else _PATIENCE
        self._repositories: dict[str, tuple[str, Any]] = {}

    def experiment(self, name: str) -> tuple[str, bool] | None:
        """Return the id of an experiment and whether it is not deleted; None if there is none."""
        query = {"experiment_name": name}
        found = self._ask("GET", "experiments/get-by-name", missing=True, params=query)
        if found is None:
            return None
        one = _said(found, "experiment")
        return str(_said(one, "experiment_id")), one.get("lifecycle_stage") != "deleted"

    def create_experiment(self, name: str, place: str | None) -> None:
        """Make an experiment; *place* is where its artifacts go."""
        body = {"name": name} if place is None else {"name": name, "artifact_location": place}
        self._ask("POST", "experiments/create", json=body)

    def runs_with(self, experiment: str, key: str, value: str) -> dict[str, bool]:
        """Return the ids of the runs that have a tag, and whether they hold metrics or params."""
        query = {"experiment_ids": [experiment], "filter": f"tags.`{key}` = '{value}'"}
        found = self._ask("POST", "runs/search", json=query) or {}
        return {
            str(_said(_said(run, "info"), "run_id")): any(
                run.get("data", {}).get(kind) for kind in ("metrics", "params")
            )
            for run in found.get("runs", ())
        }

    def create_run(
        self, experiment: str, name: str, start_time: int, tags: Mapping[str, str]
    ) -> None:
        """Make a run; its id is to be looked for, for the answer may be lost."""
        body = {
            "experiment_id": experiment,
            "run_name": name,
            "start_time": start_time,
            "tags": _entries(tags.items()),
        }
        self._ask("POST", "runs/create", json=body)

    def is_active(self, run_id: str) -> bool:
        """Return whether a run is there and not deleted."""
        found = self._ask("GET", "runs/get", missing=True, params={"run_id": run_id})
        if found is None:
            return False
        return bool(_said(_said(found, "run"), "info").get("lifecycle_stage") != "deleted")

    def log(
        self,
        run_id: str,
        points: Sequence[Point] = (),
        params: Iterable[tuple[str, str]] = (),
        tags: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Store points, params and tags."""
        body = {
            "run_id": run_id,
            "metrics": [
                # As the JSON of protobuf says it, which has no NaN.
                one._asdict() if not math.isnan(one.value) else {**one._asdict(), "value": "NaN"}
                for one in points
            ],
            "params": _entries(params),
            "tags": _entries(tags),
        }
        self._ask("POST", "runs/log-batch", json=body)

    def log_inputs(self, run_id: str, data: Sequence[Data]) -> None:
        """Store what data a run read."""
        datasets = [
            {
                "dataset": {
                    "name": one.name,
                    "digest": one.digest,
                    "source_type": "mlkit",
                    "source": one.source,
                },
                "tags": [{"key": "mlflow.data.context", "value": one.context}] * bool(one.context),
            }
            for one in data
        ]
        self._ask("POST", "runs/log-inputs", json={"run_id": run_id, "datasets": datasets})

    def set_status(self, run_id: str, status: str, end_time: int | None) -> None:
        """Say how a run stands."""
        body: dict[str, object] = {"run_id": run_id, "status": status}
        if end_time is not None:
            body["end_time"] = end_time
        self._ask("POST", "runs/update", json=body)

    def upload(self, run_id: str, path: str, name: str) -> None:
        """Store a file, and see that it is there if it went through the server.

        Raises:
            SinkUnavailableError: If it is not: who answers for a server that is away says 200, too.
            SinkRejectedError: If another artifact is in its way.
        """
        place, files = self._files_of(run_id)
        folder = _folder_of(name)
        with placed(name, files.list_artifacts):
            files.log_artifact(path, folder)
            if not place.startswith(("mlflow-artifacts:", "http:", "https:")):
                return
            size = Path(path).stat().st_size
            if any(
                one.path == name and one.file_size == size for one in files.list_artifacts(folder)
            ):
                return
        raise SinkUnavailableError(f"artifact {name!r} was taken and is not there")

    def _files_of(self, run_id: str) -> tuple[str, Any]:
        """Return where a run's artifacts are, and MLflow's own way to put them there.

        Its client would find that out by itself, and keep for ever what it was told by who is not MLflow.
        """
        if run_id not in self._repositories:
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

            run = _said(self._ask("GET", "runs/get", params={"run_id": run_id}) or {}, "run")
            place = str(_said(_said(run, "info"), "artifact_uri"))
            with translated():
                files = get_artifact_repository(place, tracking_uri=self._uri)
            self._repositories[run_id] = place, files
        return self._repositories[run_id]

    def _ask(
        self, method: str, endpoint: str, *, missing: bool = False, **content: Any
    ) -> dict[str, Any] | None:
        """Return what an endpoint answers; None if it says that there is no such thing and *missing* allows it."""
        from mlflow.utils.rest_utils import http_request

        with translated():
            response = http_request(
                self._credentials,
                f"/api/2.0/mlflow/{endpoint}",
                method,
                max_retries=0,
                retry_codes=frozenset(),  # they come back as answers, to be told apart here
                timeout=self._timeout,
                **content,
            )
            if missing and response.status_code == 404 and _MISSING in response.text:
                return None
            return content_of(response)


@final
class Database:
    """A database, or whatever else MLflow's client understands.

    Args:
        uri: `"sqlite:///mlflow.db"`.
    """

    def __init__(self, uri: str) -> None:
        import mlflow

        with translated(), alone(uri):
            self._client = mlflow.MlflowClient(tracking_uri=uri)

    def experiment(self, name: str) -> tuple[str, bool] | None:
        """As `Server.experiment`."""
        with translated():
            found = self._client.get_experiment_by_name(name)
        if found is None:
            return None
        return str(found.experiment_id), found.lifecycle_stage == "active"

    def create_experiment(self, name: str, place: str | None) -> None:
        """As `Server.create_experiment`."""
        with translated():
            self._client.create_experiment(name, artifact_location=place)

    def runs_with(self, experiment: str, key: str, value: str) -> dict[str, bool]:
        """As `Server.runs_with`."""
        with translated():
            found = self._client.search_runs([experiment], f"tags.`{key}` = '{value}'")
        return {str(run.info.run_id): bool(run.data.metrics or run.data.params) for run in found}

    def create_run(
        self, experiment: str, name: str, start_time: int, tags: Mapping[str, str]
    ) -> None:
        """As `Server.create_run`."""
        with translated():
            self._client.create_run(
                experiment, start_time=start_time, tags=dict(tags), run_name=name
            )

    def is_active(self, run_id: str) -> bool:
        """As `Server.is_active`."""
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage != "deleted")
        except MlflowException as error:
            return bool(error.error_code != _MISSING)

    def log(
        self,
        run_id: str,
        points: Sequence[Point] = (),
        params: Iterable[tuple[str, str]] = (),
        tags: Iterable[tuple[str, str]] = (),
    ) -> None:
        """As `Server.log`."""
        from mlflow.entities import Metric, Param, RunTag

        with translated():
            self._client.log_batch(
                run_id,
                metrics=[Metric(*point) for point in points],
                params=[Param(key, value) for key, value in params],
                tags=[RunTag(key, value) for key, value in tags],
            )

    def log_inputs(self, run_id: str, data: Sequence[Data]) -> None:
        """As `Server.log_inputs`."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                dataset=Dataset(one.name, one.digest, source_type="mlkit", source=one.source),
                tags=[InputTag("mlflow.data.context", one.context)] if one.context else [],
            )
            for one in data
        ]
        with translated():
            self._client.log_inputs(run_id, datasets=inputs)

    def set_status(self, run_id: str, status: str, end_time: int | None) -> None:
        """As `Server.set_status`."""
        with translated():
            if end_time is None:
                self._client.update_run(run_id, status=status)
            else:
                self._client.set_terminated(run_id, status, end_time)

    def upload(self, run_id: str, path: str, name: str) -> None:
        """Store a file.

        Raises:
            SinkRejectedError: If another artifact is in its way.
        """
        with placed(name, lambda folder: self._client.list_artifacts(run_id, folder)):
            self._client.log_artifact(run_id, path, _folder_of(name))


Store = Server | Database


def _said(content: dict[str, Any], name: str) -> Any:
    """Return a part of an answer.

    Raises:
        SinkUnavailableError: If it is not there, so that the answer is not MLflow's.
    """
    if name not in content:
        raise SinkUnavailableError(f"no answer of MLflow: {name!r} is missing")
    return content[name]


def _folder_of(name: str) -> str | None:
    folder = PurePosixPath(name).parent
    return None if folder == PurePosixPath() else str(folder)


def _entries(pairs: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in pairs]
