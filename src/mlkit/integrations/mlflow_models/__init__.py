"""MLflow's model registry as a store of `mlkit.models`. Needs MLflow: `pip install 'mlkit-blocks[mlflow]'`."""

from __future__ import annotations

from mlkit.integrations.mlflow_models._store import MlflowModelStore

__all__ = ["MlflowModelStore"]
