"""Logged models: MLflow's, and those that stand in for them while MLflow is away."""

from __future__ import annotations

import re
import threading
import uuid
from typing import TYPE_CHECKING, Any, final

from mlkit._clock import current
from mlkit.integrations.mlflow_plugin._view import artifact_root

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit.integrations.mlflow_plugin._backend import Backend
    from mlkit.integrations.mlflow_plugin._local import Local

__all__ = ["MODEL_TAG", "LoggedModels", "models_with"]

MODEL_TAG = "mlkit.model_id"
_ID = re.compile(r"m-[0-9a-f]{32}")


@final
class LoggedModels:
    """Models that are logged while MLflow is away, whose ids only a server can give.

    Such a model has an id of ours and is written down in the journal of its run, its files as artifacts of the run in a folder
    of its name. The sink makes MLflow's model of it, found again by the tag `mlkit.model_id`, and from then on that is what
    either id names.

    Thread-safe.

    Args:
        backend: The store that is wrapped.
        local: The runs on this machine.
        ask: Calls the wrapped store, with arguments and answers translated.
    """

    def __init__(
        self, backend: Backend, local: Local, ask: Callable[[str, dict[str, Any]], Any]
    ) -> None:
        self._backend = backend
        self._local = local
        self._ask = ask
        self._lock = threading.Lock()
        self._held: dict[str, Any] = {}
        self._theirs: dict[str, str] = {}

    def create(self, run_id: str, about: dict[str, Any], arguments: dict[str, Any]) -> Any:
        """Return a model that stands in for one.

        Args:
            run_id: The run that it is of.
            about: What is known of its experiment.
            arguments: What MLflow's `create_logged_model` was given.
        """
        from mlflow.entities import LoggedModel, LoggedModelStatus
        from mlflow.utils.name_utils import _generate_random_name

        now = int(current().time() * 1000)
        model_id = f"m-{uuid.uuid4().hex}"
        name = arguments["name"] or _generate_random_name()
        with self._lock:
            place = f"{artifact_root(run_id)}/{name}"
            if any(one.artifact_location == place for one in self._held.values()):
                place += f"-{model_id[2:10]}"
            model = LoggedModel(
                experiment_id=arguments["experiment_id"],
                model_id=model_id,
                name=name,
                artifact_location=place,
                creation_timestamp=now,
                last_updated_timestamp=now,
                model_type=arguments["model_type"],
                source_run_id=run_id,
                status=LoggedModelStatus.PENDING,
                tags=arguments["tags"],
                params=arguments["params"],
            )
            self._held[model_id] = model
        call = {
            "call": "model",
            "model_id": model_id,
            "experiment": about,
            "name": name,
            "folder": place.removeprefix(f"{artifact_root(run_id)}/"),
            "model_type": arguments["model_type"],
            "tags": {tag.key: tag.value for tag in arguments["tags"] or ()},
            "params": {param.key: param.value for param in arguments["params"] or ()},
        }
        self._local.note(run_id, call)
        return model

    def get(self, model_id: str, *, allow_deleted: bool = False) -> Any:
        """Return a model: MLflow's, or, until it has it, the one that stands in for it."""
        from mlflow.exceptions import MlflowException

        held = self._held.get(model_id)
        arguments: dict[str, Any] = {"allow_deleted": True} if allow_deleted else {}
        if held is not None:
            theirs = self.theirs(model_id) if self._backend.is_up() else model_id
            return (
                held if theirs == model_id else self._ask("get_logged_model", {"model_id": theirs})
            )
        try:
            return self._ask("get_logged_model", {"model_id": model_id, **arguments})
        except MlflowException as error:
            # Another process may have made it while MLflow was away.
            theirs = self.theirs(model_id)
            if error.error_code != "RESOURCE_DOES_NOT_EXIST" or theirs == model_id:
                raise
        return self._ask("get_logged_model", {"model_id": theirs, **arguments})

    def theirs(self, model_id: str) -> str:
        """Return MLflow's id of a model that stands in for one, the same id if there is none."""
        from mlflow.exceptions import MlflowException

        if model_id not in self._theirs and _ID.fullmatch(model_id):
            try:
                experiments = self._backend.experiment_ids()
                found = models_with(self._backend, experiments, model_id)
            except MlflowException:
                return model_id
            if not found:
                return model_id
            self._theirs[model_id] = found[0].model_id
        return self._theirs.get(model_id, model_id)

    def finalize(self, model_id: str, status: Any) -> Any:
        """Say how a model has come out."""
        held = self._held.get(model_id)
        if held is None:
            return self._ask("finalize_logged_model", {"model_id": model_id, "status": status})
        held.status = status
        self._write(held, "model_status", status=str(status))
        return held

    def tag(self, model_id: str, tags: list[Any]) -> None:
        """Tag a model."""
        held = self._held.get(model_id)
        if held is None:
            self._ask("set_logged_model_tags", {"model_id": model_id, "tags": tags})
        else:
            new = {tag.key: tag.value for tag in tags}
            held.tags.update(new)
            self._write(held, "model_tags", tags=new)

    def untag(self, model_id: str, key: str) -> None:
        """Delete a tag of a model."""
        held = self._held.get(model_id)
        if held is None:
            self._ask("delete_logged_model_tag", {"model_id": model_id, "key": key})
        else:
            held.tags.pop(key, None)
            self._write(held, "model_untag", key=key)

    def log_params(self, model_id: str, params: list[Any]) -> None:
        """Log params of a model."""
        held = self._held.get(model_id)
        if held is None:
            self._ask("log_logged_model_params", {"model_id": model_id, "params": params})
        else:
            new = {param.key: param.value for param in params}
            held.params.update(new)
            self._write(held, "model_params", params=new)

    def named(self, condition: str | None) -> list[Any]:
        """Return the models that stand in for MLflow's, those of a name if the condition asks for one, as MLflow itself does."""
        asked = re.fullmatch(r"\s*name\s*=\s*'([^']*)'\s*", condition or "")
        return [one for one in self._held.values() if asked is None or one.name == asked[1]]

    def _write(self, held: Any, call: str, **content: Any) -> None:
        held.last_updated_timestamp = int(current().time() * 1000)
        self._local.note(held.source_run_id, {"call": call, "model_id": held.model_id, **content})


def models_with(backend: Any, experiments: list[str], model_id: str) -> list[Any]:
    """Return MLflow's models for one that stood in for them: one, or none."""
    condition = f"tags.`{MODEL_TAG}` = '{model_id}'"
    return list(backend.call("search_logged_models", experiments, filter_string=condition))
