"""Models that are logged while MLflow is away."""

from __future__ import annotations

import threading
import uuid
from typing import Any, final

from mlkit._clock import current
from mlkit.integrations.mlflow_plugin._view import artifact_root

__all__ = ["StandIns"]


@final
class StandIns:
    """Stands in for MLflow's logged models, whose ids only a server can give.

    The model's files become artifacts of the run, in a folder of the model's name, as MLflow 2 did it, so that
    `runs:/<run id>/<name>` is the model; MLflow gets no entity of it. What refers to the stand-in refers to nothing there and is
    left out.

    Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: dict[str, Any] = {}

    def create(
        self,
        *,
        experiment_id: str,
        name: str | None,
        run_id: str,
        tags: list[Any] | None,
        params: list[Any] | None,
        model_type: str | None,
    ) -> Any:
        """Return a new one."""
        from mlflow.entities import LoggedModel, LoggedModelStatus
        from mlflow.utils.name_utils import _generate_random_name

        now = int(current().time() * 1000)
        named = name or _generate_random_name()
        model = LoggedModel(
            experiment_id=experiment_id,
            model_id=f"m-{uuid.uuid4().hex}",
            name=named,
            artifact_location=f"{artifact_root(run_id)}/{named}",
            creation_timestamp=now,
            last_updated_timestamp=now,
            model_type=model_type,
            source_run_id=run_id,
            status=LoggedModelStatus.PENDING,
            tags=tags,
            params=params,
        )
        with self._lock:
            self._models[model.model_id] = model
        return model

    def get(self, model_id: str | None) -> Any:
        """Return the one of an id, or None."""
        return self._models.get(model_id or "")

    def finalize(self, model_id: str, status: Any) -> Any:
        """Say how one has come out."""
        model = self._models[model_id]
        model.status = status
        return model

    def tag(self, model_id: str, tags: list[Any]) -> None:
        """Tag one."""
        self._models[model_id].tags.update({tag.key: tag.value for tag in tags})

    def untag(self, model_id: str, key: str) -> None:
        """Delete a tag of one."""
        self._models[model_id].tags.pop(key, None)
