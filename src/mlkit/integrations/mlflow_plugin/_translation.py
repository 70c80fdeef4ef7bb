"""Between what is known here and what is known to MLflow: ids of runs and experiments, places of artifacts."""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, final

from mlkit.integrations.mlflow_plugin._backend import RUN_TAG
from mlkit.integrations.mlflow_plugin._refusals import invalid, unknown_run
from mlkit.integrations.mlflow_plugin._runs import as_ours

if TYPE_CHECKING:
    from mlkit.integrations.mlflow_plugin._backend import Backend
    from mlkit.integrations.mlflow_plugin._experiments import Experiments
    from mlkit.integrations.mlflow_plugin._local import Local

__all__ = ["FRESH", "Translation", "asked_by_mlflow"]

FRESH = 10.0  # seconds for which a question that only MLflow can answer waits for what was logged
asked_by_mlflow = ContextVar("asked_by_mlflow", default=False)
"""Whether it is MLflow's own store that asks, to write down what it is told."""
_ID = re.compile(r"\b\d{8}-\d{6}-[0-9a-f]{8}\b")
_PLACE = re.compile(r"^mlkit-artifacts:/([^/]+)/artifacts")
_RUN_FIELDS = ("run_id", "_run_id", "source_run_id", "_source_run_id")
_SOURCE_RUN = "mlflow.sourceRun"
_PLACE_TAG = "mlflow.artifactLocation"


@final
class Translation:
    """Translates arguments on the way to MLflow, and answers on the way back.

    Args:
        backend: The store that is wrapped.
        local: The runs on this machine.
        experiments: The experiments that are known.
    """

    def __init__(self, backend: Backend, local: Local, experiments: Experiments) -> None:
        self._backend = backend
        self._local = local
        self._experiments = experiments

    def run(self, run_id: str, *, wait: float = FRESH) -> str:
        """Return MLflow's id of a run, which gets what this process has logged first.

        Args:
            run_id: The run.
            wait: For how many seconds at most.

        Raises:
            MlflowException: If it does not have the run.
        """
        found = self._backend.find(run_id)
        said = self._local.flush_one(run_id, wait)
        if said is not None and found is None:
            found = self._backend.find(run_id, fresh=True)
            if found is None and said.pending:
                raise invalid(
                    f"Run with id={run_id} is not in MLflow yet: {said.reason or 'it is being delivered'}",
                    "TEMPORARILY_UNAVAILABLE",
                )
        if found is None:
            raise unknown_run(run_id)
        return found

    def run_if_there(self, run_id: str, *, wait: float = FRESH) -> str:
        """Return MLflow's id of a run, or the id itself if there is no such run there, see `run`."""
        from mlflow.exceptions import MlflowException

        try:
            return self.run(run_id, wait=wait)
        except MlflowException:
            return run_id

    def condition(self, text: str | None) -> str | None:
        """Return a search condition, or an address, with MLflow's ids in place of ours."""
        if not text or RUN_TAG in text:
            return text
        return _ID.sub(lambda found: self._backend.find(found[0]) or found[0], text)

    def source(self, uri: str) -> str:
        """Return where something lies so that a client without the plug-in finds it."""
        place = _PLACE.match(uri)
        if place is None:
            return str(self.condition(uri))
        root = self._backend.call("get_run", self.run(place[1])).info.artifact_uri
        return f"{root}{uri[place.end() :]}"

    def arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return arguments of a call with MLflow's ids in place of ours."""
        return {
            key: value if value is None else self._argument(key, value)
            for key, value in given.items()
        }

    def _argument(self, key: str, value: Any) -> Any:
        if key in {"run_id", "source_run_id"}:
            return self.run(value)
        if key == "run_ids":
            return [self.run(one) for one in value]
        if key in {"experiment_id", "location"}:
            return self._experiments.theirs(str(value))
        if key in {"experiment_ids", "locations"}:
            return [self._experiments.theirs(str(one)) for one in value]
        if key.startswith("filter_string") and isinstance(value, str):
            return self.condition(value)
        return value

    def trace(self, info: Any) -> Any:
        """Return what is said of a trace, with MLflow's ids in place of ours."""
        import dataclasses

        metadata = dict(info.trace_metadata)
        if _SOURCE_RUN in metadata:
            metadata[_SOURCE_RUN] = self.run_if_there(metadata[_SOURCE_RUN], wait=FRESH / 2)
        place = info.trace_location
        if place.mlflow_experiment is not None:
            known = place.mlflow_experiment.experiment_id
            place = type(place).from_experiment_id(self._experiments.theirs(known))
        return dataclasses.replace(info, trace_metadata=metadata, trace_location=place)

    def seen(self, found: Any) -> Any:
        """Return what a call has given, with ids and places that hold here."""
        from mlflow.entities import Experiment, LoggedModel, Run, Trace, TraceInfo
        from mlflow.store.entities.paged_list import PagedList

        if asked_by_mlflow.get():
            return found
        if isinstance(found, PagedList):
            return PagedList([self.seen(one) for one in found], found.token)
        if type(found) in {list, tuple}:
            return type(found)(self.seen(one) for one in found)
        if isinstance(found, Run):
            return as_ours(found, self._backend)
        if isinstance(found, Trace):
            found.info = self.seen(found.info)
        elif isinstance(found, TraceInfo):
            self._see_trace(found)
        elif type(found).__module__.startswith("mlflow.entities."):
            if isinstance(found, (Experiment, LoggedModel)):
                found._artifact_location = self._backend.location(found.artifact_location or "")  # noqa: SLF001 - the entity has no other way
            if isinstance(found, LoggedModel):
                self.seen(list(found.metrics or ()))
            self._rename(found)
        return found

    def _see_trace(self, info: Any) -> None:
        if _SOURCE_RUN in info.trace_metadata:
            ours = self._backend.ours(info.trace_metadata[_SOURCE_RUN])
            info.trace_metadata[_SOURCE_RUN] = ours
        if _PLACE_TAG in info.tags:
            info.tags[_PLACE_TAG] = self._backend.location(info.tags[_PLACE_TAG])

    def _rename(self, entity: Any) -> None:
        fields = getattr(entity, "__dict__", {})
        for field in _RUN_FIELDS:
            if isinstance(fields.get(field), str):
                fields[field] = self._backend.ours(fields[field])
