"""Makes MLflow's logged models of those that stood in for them during an outage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from mlkit.integrations.mlflow_plugin._experiments import find_or_make
from mlkit.integrations.mlflow_plugin._logged_models import MODEL_TAG

if TYPE_CHECKING:
    from mlkit.integrations.mlflow_plugin._backend import Backend

__all__ = ["DeliveredModels"]

_FOLDER_TAG = "mlkit.folder"


@final
class DeliveredModels:
    """The models of one run in MLflow, by the ids under which they stood in.

    Nothing is kept between two processes but tags of the models: `mlkit.model_id`, and `mlkit.folder`, in which of the run's
    folders the files are.

    Args:
        backend: The store.
        run_id: MLflow's id of the run.
    """

    def __init__(self, backend: Backend, run_id: str) -> None:
        self._backend = backend
        self._run_id = run_id
        self._found: dict[str, Any] | None = None
        self._absent: set[str] = set()  # a server before MLflow 3 has no such models

    def create(self, call: dict[str, Any]) -> None:
        """Make a model, unless it is there."""
        from mlflow.exceptions import MlflowException

        ours = call["model_id"]
        try:
            self._found = None  # the answer to an earlier request may have been lost
            if ours in self._models():
                return
            about = call["experiment"]
            known = str(about["experiment_id"])
            tags = {**call["tags"], MODEL_TAG: ours, _FOLDER_TAG: call["folder"]}
            experiment = find_or_make(self._backend, about) if known.startswith("mlkit-") else known
            self._models()[ours] = self._create(experiment, tags, call)
        except MlflowException as error:
            if error.error_code not in {"ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED"}:
                raise
            self._absent.add(ours)

    def _create(self, experiment: str, tags: dict[str, str], call: dict[str, Any]) -> Any:
        from mlflow.entities import LoggedModelParameter, LoggedModelTag

        about = {
            "experiment_id": experiment,
            "name": call["name"],
            "source_run_id": self._run_id,
            "model_type": call["model_type"],
        }
        if not self._backend.is_http:
            return self._backend.call(
                "create_logged_model",
                **about,
                tags=[LoggedModelTag(key, value) for key, value in tags.items()],
                params=[LoggedModelParameter(key, value) for key, value in call["params"].items()],
            )
        entries = {
            field: [{"key": key, "value": value} for key, value in pairs.items()]
            for field, pairs in (("tags", tags), ("params", call["params"]))
        }
        answer = self._backend.create("logged-models", {**about, **entries})
        return self._backend.call("get_logged_model", answer["model"]["info"]["model_id"])

    def do(self, call: dict[str, Any]) -> None:
        """Do to a model what was done to the one that stood in."""
        from mlflow.entities import LoggedModelParameter, LoggedModelStatus, LoggedModelTag

        theirs, kind = self.theirs(call["model_id"]), call["call"]
        if theirs is None:
            return
        if kind == "model_status":
            self._backend.call("finalize_logged_model", theirs, LoggedModelStatus(call["status"]))
        elif kind == "model_tags":
            tags = [LoggedModelTag(key, value) for key, value in call["tags"].items()]
            self._backend.call("set_logged_model_tags", theirs, tags)
        elif kind == "model_untag":
            if call["key"] in self._backend.call("get_logged_model", theirs).tags:
                self._backend.call("delete_logged_model_tag", theirs, call["key"])
        elif kind == "model_params":
            held = self._backend.call("get_logged_model", theirs).params or {}
            params = [
                LoggedModelParameter(key, value)
                for key, value in call["params"].items()
                if key not in held
            ]
            self._backend.call("log_logged_model_params", theirs, params)

    def theirs(self, model_id: str | None) -> str | None:
        """Return MLflow's id of a model, None if there is none."""
        if not model_id or model_id in self._absent:
            return None
        found = self._models().get(model_id)
        return model_id if found is None else str(found.model_id)

    def place(self, name: str) -> tuple[str, str] | None:
        """Return where the artifact *name* of the run belongs, if it is a model's: the model's location, and its name there."""
        for model in self._models().values():
            folder = model.tags.get(_FOLDER_TAG)
            if folder and name.startswith(f"{folder}/"):
                return model.artifact_location, name.removeprefix(f"{folder}/")
        return None

    def _models(self) -> dict[str, Any]:
        from mlflow.exceptions import MlflowException

        if self._found is None:
            experiment = self._backend.call("get_run", self._run_id).info.experiment_id
            condition = f"source_run_id = '{self._run_id}'"
            found: list[Any] = []
            token = None
            try:
                while True:
                    page = self._backend.call(
                        "search_logged_models", [experiment], condition, page_token=token
                    )
                    found += page
                    token = page.token
                    if not token:
                        break
            except MlflowException as error:
                if error.error_code not in {"ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED"}:
                    raise
            self._found = {
                one.tags[MODEL_TAG]: one for one in found if MODEL_TAG in (one.tags or {})
            }
        return self._found
