"""A tracking store for MLflow that writes into a journal first: `mlflow.set_tracking_uri("mlkit+http://host:5000")`.

Needs MLflow: `pip install 'mlkit-blocks[mlflow]'`.

MLflow finds the plug-in by its entry points, for the schemes `mlkit+http`,
`mlkit+https` and `mlkit+sqlite`; what stands behind `mlkit+` is the address of the store that is wrapped.

MLflow imports this module whenever it is imported itself, so it is small, and nothing in it may fail.
"""

from __future__ import annotations

import atexit
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlkit.tracking import Delivery

__all__ = ["artifact_repository", "flush", "registry_store", "sink", "tracking_store"]


def tracking_store(store_uri: str, artifact_uri: str | None = None) -> Any:
    """Return the store of an address like `mlkit+http://host:5000`; MLflow calls this.

    Args:
        store_uri: The address.
        artifact_uri: Where artifacts go, for a database that is wrapped.
    """
    from mlkit.integrations.mlflow_plugin._store import make_store

    return make_store(store_uri, artifact_uri)


def registry_store(store_uri: str, tracking_uri: str | None = None) -> Any:
    """Return the model registry behind an address like `mlkit+http://host:5000`; MLflow calls this.

    Args:
        store_uri: The address.
        tracking_uri: That of the tracking store, the same by default.
    """
    from mlkit.integrations.mlflow_plugin._models import make_registry

    return make_registry(store_uri, tracking_uri or store_uri)


def artifact_repository(
    artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> Any:
    """Return the artifacts of a run of the store; MLflow calls this.

    Args:
        artifact_uri: `mlkit-artifacts:/<run id>/artifacts/...`, the `artifact_uri` of such a run.
        tracking_uri: Address of the store, the current one by default.
        registry_uri: Not used.
    """
    from mlkit.integrations.mlflow_plugin._artifacts import make_repository

    return make_repository(artifact_uri, tracking_uri, registry_uri)


def sink(tracking_uri: str) -> Any:
    """Return what delivers the journal of the store, the sink `mlflow-store:<address>` of `mlkit.tracking`.

    Args:
        tracking_uri: Address of the store that is wrapped, without `mlkit+`.
    """
    from mlkit.integrations.mlflow_plugin._sink import StoreSink

    return StoreSink(tracking_uri)


def flush(timeout: float = 10.0) -> Delivery:
    """Wait until MLflow has what this process has logged through the plug-in, but not for long.

    `mlflow.flush_async_logging()` waits, too, but does not say what has become of it.

    Args:
        timeout: The longest wait in seconds, at least 0.

    Returns:
        What has been delivered and what has not, over all runs of this process that are not delivered yet, or have been
        delivered since the last call.

    Raises:
        ConfigurationError: If the timeout is no number of seconds.

    Examples:
        >>> flush(timeout=0).pending
        0
    """
    from mlkit._arguments import seconds
    from mlkit.integrations.mlflow_plugin._local import flush_all

    return flush_all(seconds("flush(timeout=...)", timeout, zero=True, endless=True))


@atexit.register
def _at_exit() -> None:
    # Registered before MLflow's own, so called after it: the active run has ended by then.
    local = sys.modules.get("mlkit.integrations.mlflow_plugin._local")
    if local is not None:
        local.let_go_all()
