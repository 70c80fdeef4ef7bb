"""Models that others logged: loaded by MLflow, which unpickles, and only if the caller said so."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mlkit._digest import digest, digest_file
from mlkit.errors import IntegrityError, RebuildError, UntrustedFormatError

if TYPE_CHECKING:
    from mlkit.integrations.mlflow_models._server import Server

__all__ = ["digest_of_files", "load"]

# Those whose own object is worth more than the wrapper that MLflow makes of it; asked in this order.
_NATIVE = (
    "sklearn",
    "pytorch",
    "xgboost",
    "lightgbm",
    "catboost",
    "onnx",
    "keras",
    "tensorflow",
    "transformers",
    "sentence_transformers",
    "spacy",
    "statsmodels",
)


def load(server: Server, ref: str, location: str, *, trust: object, pinned: str | None) -> Any:
    """Return a model as its own library has it, or as MLflow's `PyFuncModel` where MLflow knows no more.

    Args:
        server: Where it is.
        ref: What to call it in errors.
        location: Where its artifacts are.
        trust: What the caller decided.
        pinned: The digest of its files when it was promoted here, if it was.

    Raises:
        UntrustedFormatError: If the caller did not say that code in it may run.
        IntegrityError: If its files were changed since it was promoted here.
        RebuildError: If it is no model to MLflow.
    """
    if trust != "pickle":
        raise UntrustedFormatError(
            f"{ref}, which another client than mlkit logged in MLflow,",
            "pass trust='pickle' if you trust whoever can write to that MLflow; what MLflow serves is not verified",
        )
    with TemporaryDirectory() as folder:
        with server.asked():
            path = server.download(location, folder)
        if pinned is not None and (got := _digest(Path(path))) != pinned:
            raise IntegrityError(location, expected=f"the files of {ref}: {pinned}", got=got)
        if not Path(path, "MLmodel").is_file():
            raise RebuildError(ref, "MLflow cannot load files without an MLmodel among them")
        from mlflow.models import Model

        flavours = Model.load(path).flavors
        native = next((name for name in _NATIVE if name in flavours), "pyfunc")
        return import_module(f"mlflow.{native}").load_model(path)


def digest_of_files(server: Server, location: str) -> str:
    """Return one digest over the names and contents of all artifacts of a version.

    Args:
        server: Where they are.
        location: Where there.
    """
    with TemporaryDirectory() as folder:
        with server.asked():
            path = server.download(location, folder)
        return _digest(Path(path))


def _digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    # MLflow writes this one when it serves a registered version, with the time and the number in it.
    named = {
        path.relative_to(folder).as_posix(): digest_file(str(path))
        for path in files
        if path.name != "registered_model_meta"
    }
    return digest(named)
