"""From a version of a folder store to a registered version of MLflow: its run, its artifacts, its tags."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, final

from mlkit.integrations.mlflow_models._artifacts import place_of
from mlkit.integrations.mlflow_models._catalog import pages
from mlkit.integrations.mlflow_models._server import error_code

if TYPE_CHECKING:
    from pathlib import Path

    from mlkit.integrations.mlflow_models._history import History
    from mlkit.integrations.mlflow_models._server import Server
    from mlkit.models import ModelVersion

__all__ = ["VERSION_RUN", "register"]

VERSION_RUN = "mlkit.version_of"
_ABOUT = ("time", "who", "payload", "format", "n_bytes", "run", "metrics")


@final
class suppress_existing:  # noqa: N801 - reads as the statement it is: `with suppress_existing():`
    """Context manager: that something exists already is no error."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        return error is not None and error_code(error) == "RESOURCE_ALREADY_EXISTS"


def register(server: Server, history: History, local: ModelVersion, packed: Path, why: str) -> Any:
    """Upload the files of a version, register it, and return what MLflow made of it.

    Args:
        server: Where.
        history: Of the model.
        local: The version in a folder store.
        packed: The folder of its files.
        why: Why.
    """
    client = server.client
    run = _run_of(server, history, local)
    place, facts = place_of(local.digest), local._facts  # noqa: SLF001
    about = facts._asdict() | {"metrics": {k: repr(v) for k, v in facts.metrics.items()}}
    about = {key: about[key] for key in _ABOUT}
    tags = dict(local.tags) | {
        "mlkit.digest": local.digest,
        "mlkit.format": local.format,
        "mlkit.facts": json.dumps(about, sort_keys=True),
    }
    with server.asked():
        client.log_artifacts(run.info.run_id, str(packed), place)
        with suppress_existing():
            client.create_registered_model(local.name)
        return client.create_model_version(
            local.name,
            f"{run.info.artifact_uri.rstrip('/')}/{place}",
            run_id=run.info.run_id,
            tags=tags,
            description=why or None,
        )


def _run_of(server: Server, history: History, local: ModelVersion) -> Any:
    """Return MLflow's run that a version came from, or a new one that stands for it."""
    client = server.client
    with server.asked():
        if local.run is not None:
            every = [one.experiment_id for one in pages(client.search_experiments)]
            query = f"tags.`mlkit.run_id` = '{local.run}'"
            if "'" not in local.run and (runs := client.search_runs(every, query)):
                return runs[0]
            try:
                return client.get_run(local.run)
            except Exception as error:
                if error_code(error) is None:
                    raise
        tags = {VERSION_RUN: local.name, "mlflow.source.name": "mlkit"}
        experiment = history.experiment_id()
        run = client.create_run(experiment, tags=tags, run_name=local.digest[7:19])
        for key, value in local.metrics.items():
            with suppress(Exception):  # names that MLflow refuses are in the tags of the version
                client.log_metric(run.info.run_id, key, value)
        client.update_run(run.info.run_id, status="FINISHED")  # set_terminated prints
        return run
