"""MLflow as a sink of `mlkit.tracking`. Needs MLflow: `pip install 'mlkit-blocks[mlflow]'`.

mlflow itself is imported in `MlflowSink.open`, so in the shipper's process: making the sink costs the
training nothing.
"""

from __future__ import annotations

from mlkit.integrations.mlflow._sink import MlflowSink

__all__ = ["MlflowSink"]
