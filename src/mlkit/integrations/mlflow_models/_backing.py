"""What a store over MLflow is made of, for the functions that do its work."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mlkit.integrations.mlflow_models._artifacts import Cache
    from mlkit.integrations.mlflow_models._catalog import Catalog
    from mlkit.integrations.mlflow_models._server import Server
    from mlkit.integrations.mlflow_models._signatures import Signatures
    from mlkit.integrations.mlflow_models._writer import Writer

__all__ = ["Backing"]


class Backing(NamedTuple):
    """One MLflow, what its registry has, files that were fetched, signatures, and who changes it. Thread-safe."""

    server: Server
    cache: Cache
    catalog: Catalog
    signatures: Signatures
    writer: Writer
