"""Experiments by name: those of MLflow, and those that were asked for while it was away."""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING, Any, final

from mlkit._clock import current
from mlkit._digest import digest, short

if TYPE_CHECKING:
    from pathlib import Path

    from mlkit.integrations.mlflow_plugin._backend import Backend

__all__ = ["Experiments"]

_PREFIX = "mlkit-"


@final
class Experiments:
    """Names of experiments by id, kept in a file so that a process that starts during an outage knows them.

    An experiment that is made while MLflow is away has an id of ours, which its name determines, so that all processes agree.
    It is made in MLflow, or found there, by the first run that is delivered, and its id of ours stays good.

    Thread-safe.

    Args:
        root: Folder of the runs.
        backend: The store that is wrapped.
    """

    def __init__(self, root: Path, backend: Backend) -> None:
        self._backend = backend
        self._file = root / f".mlflow-experiments-{short(digest(backend.uri))}.json"
        self._lock = threading.Lock()
        # MLflow makes it when a store begins, and it cannot be deleted for good.
        self._known: dict[str, dict[str, Any]] = {"0": {"name": "Default"}}
        self._load()

    def learn(self, experiment: Any) -> None:
        """Remember an experiment of MLflow."""
        self._put(experiment.experiment_id, {"name": experiment.name})

    def rename(self, experiment_id: str, name: str) -> None:
        """Remember that an experiment is called otherwise now."""
        self._put(experiment_id, {**self._known.get(experiment_id, {}), "name": name})

    def create(self, name: str, artifact_location: str | None, tags: list[Any]) -> str:
        """Remember an experiment that MLflow does not have yet, and return its id."""
        made = f"{_PREFIX}{short(digest(name))}"
        entry = {
            "name": name,
            "artifact_location": artifact_location,
            "tags": {tag.key: tag.value for tag in tags},
            "time": int(current().time() * 1000),
        }
        self._put(made, entry)
        return made

    def about(self, experiment_id: str) -> dict[str, Any]:
        """Return what a run must say of its experiment, for MLflow to find or make it."""
        entry = self._known.get(experiment_id)
        if entry is None:
            self._load()  # another process may know it
            entry = self._known.get(experiment_id)
        if entry is None and self._backend.is_up():
            found = self._backend.call("get_experiment", experiment_id)
            self.learn(found)
            entry = self._known.get(experiment_id)
        return {"experiment_id": experiment_id, **(entry or {})}

    def by_name(self, name: str) -> Any:
        """Return an experiment from memory, or None."""
        self._load()
        for experiment_id, entry in self._known.items():
            if entry["name"] == name:
                return self._entity(experiment_id, entry)
        return None

    def by_id(self, experiment_id: str) -> Any:
        """Return an experiment from memory, or None."""
        entry = self._known.get(experiment_id)
        return None if entry is None else self._entity(experiment_id, entry)

    def theirs(self, experiment_id: str | None) -> str | None:
        """Return MLflow's id of an experiment; one that was made during an outage is made there now.

        Raises:
            MlflowException: If the server does not answer.
        """
        if experiment_id is None or not experiment_id.startswith(_PREFIX):
            return experiment_id
        entry = self.about(experiment_id)
        if "name" not in entry:
            return experiment_id
        return find_or_make(self._backend, entry)

    def _entity(self, experiment_id: str, entry: dict[str, Any]) -> Any:
        from mlflow.entities import Experiment, ExperimentTag

        return Experiment(
            experiment_id=experiment_id,
            name=entry["name"],
            artifact_location=entry.get("artifact_location") or "",
            lifecycle_stage="active",
            tags=[ExperimentTag(key, value) for key, value in (entry.get("tags") or {}).items()],
            creation_time=entry.get("time"),
            last_update_time=entry.get("time"),
        )

    def _put(self, experiment_id: str, entry: dict[str, Any]) -> None:
        with self._lock:
            if self._known.get(experiment_id) == entry:
                return
            self._known[experiment_id] = entry
            fresh = self._file.with_name(f"{self._file.name}.{os.getpid()}.{os.urandom(3).hex()}")
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                fresh.write_text(json.dumps({**self._read(), **self._known}), "utf-8")
                fresh.replace(self._file)
            except OSError:
                fresh.unlink(missing_ok=True)  # it is a memory, and the run says it all again

    def _load(self) -> None:
        self._known = {**self._read(), **self._known}

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            content = json.loads(self._file.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return {key: one for key, one in content.items() if isinstance(one, dict) and "name" in one}


def find_or_make(backend: Any, entry: dict[str, Any]) -> str:
    """Return MLflow's id of the experiment of a name, made if need be.

    Args:
        backend: What has `call`, of MLflow's store.
        entry: `name`, and `artifact_location` and `tags` for one that is new.
    """
    from mlflow.entities import ExperimentTag
    from mlflow.exceptions import MlflowException

    found = backend.call("get_experiment_by_name", entry["name"])
    if found is None:
        tags = [ExperimentTag(key, value) for key, value in (entry.get("tags") or {}).items()]
        try:
            return str(
                backend.call(
                    "create_experiment", entry["name"], entry.get("artifact_location"), tags
                )
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = backend.call("get_experiment_by_name", entry["name"])  # another was faster
    return str(found.experiment_id)
