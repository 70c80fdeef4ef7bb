"""MLflow itself: its client, its errors in our words, its names, and its downloads."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from mlkit._optional import installed, require
from mlkit._suggest import clip
from mlkit.errors import (
    ConfigurationError,
    MissingDependencyError,
    ModelStoreError,
    StoreUnavailableError,
    VersionNotFoundError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Server", "error_code"]

_SQLITE = "sqlite:///"
# What MLflow answers when the same request will never do.
_REFUSED = frozenset(
    {"BAD_REQUEST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "MALFORMED_REQUEST"}
)
# Of the thread or task that downloads.
_ours: ContextVar[bool] = ContextVar("mlkit_mlflow_download", default=False)
_MODEL_NAME = re.compile(r"[^/:'\"@\x00-\x1f]{1,200}")


@final
class Server:
    """One MLflow: a database that this process opens itself, or a tracking server. Picklable.

    Args:
        uri: Its tracking URI.
    """

    def __init__(self, uri: object) -> None:
        if not isinstance(uri, str) or "://" not in uri or uri.startswith("file:"):
            raise ConfigurationError(
                "MlflowModelStore(uri)",
                uri,
                "a tracking URI of a database or a server",
                hint="for example 'sqlite:///mlflow.db' or 'http://host:5000'",
            )
        if not installed("mlflow"):
            raise MissingDependencyError(
                feature="MlflowModelStore", module="mlflow", extra="mlflow"
            )
        self._database = _database(uri)
        self.uri = f"{_SQLITE}{self._database}" if self._database else uri

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "client"}

    @cached_property
    def client(self) -> Any:
        """MLflow's own client."""
        mlflow = require("mlflow", extra="mlflow", feature="MlflowModelStore")
        if self._database:
            self._database.parent.mkdir(parents=True, exist_ok=True)
        with self.asked():
            return mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def artifacts_of_new(self) -> str | None:
        """Return where the artifacts of a new experiment go: beside a database file, else where the server says."""
        return (self._database.parent / "mlartifacts").as_uri() if self._database else None

    @contextmanager
    def asked(self, missing: str = "") -> Iterator[None]:
        """Put the errors of MLflow that leave the block into our words.

        Args:
            missing: What was asked for, if MLflow may not have it.

        Raises:
            VersionNotFoundError: If it does not.
            StoreUnavailableError: If MLflow does not answer.
            ModelStoreError: If it refuses.
        """
        try:
            yield
        except Exception as error:
            code = error_code(error)
            if code is None and not _is_of(error, "sqlalchemy", "alembic", "requests", "urllib3"):
                raise
            said = clip(str(error), 300)
            if missing and code == "RESOURCE_DOES_NOT_EXIST":
                raise VersionNotFoundError(missing, hint=f"MLflow: {said}") from error
            if code in _REFUSED or code == "RESOURCE_DOES_NOT_EXIST":
                raise ModelStoreError(f"MLflow at {self.uri} refused: {said}") from error
            raise StoreUnavailableError(self.uri, said) from error

    def download(self, uri: str, folder: str) -> str:
        """Download an artifact, or a folder of them, and return its path.

        Args:
            uri: Where it is.
            folder: Where to put it.
        """
        from mlflow.artifacts import download_artifacts

        _silence_our_downloads()
        token = _ours.set(True)
        try:
            path: str = download_artifacts(uri, dst_path=folder, tracking_uri=self.uri)
        finally:
            _ours.reset(token)
        return path


@final
class _Shown:
    """MLflow's setting of whether downloads show a progress bar, and off within ours.

    The setting is an environment variable, which is of the whole process: set here, it would be off for others too.
    """

    def __init__(self, setting: Any) -> None:
        self._setting = setting

    def __getattr__(self, name: str) -> Any:
        return getattr(self._setting, name)

    def get(self) -> bool:
        return not _ours.get() and bool(self._setting.get())


def _silence_our_downloads() -> None:
    from mlflow.utils import file_utils

    name = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"
    setting = getattr(file_utils, name, None)
    # Without it a bar is shown, no more.
    if setting is not None and not isinstance(setting, _Shown):
        setattr(file_utils, name, _Shown(setting))


def error_code(error: BaseException) -> str | None:
    """Return MLflow's code for an error, None if the error is not one of MLflow's.

    Args:
        error: Any error.
    """
    from mlflow.exceptions import MlflowException

    return str(error.error_code) if isinstance(error, MlflowException) else None


def check_registered(where: str, name: object) -> str:
    """Return *name* if it may name a registered model of MLflow that this store can ask for.

    Args:
        where: The argument, for the error.
        name: What the caller passed.
    """
    if not isinstance(name, str) or not _MODEL_NAME.fullmatch(name):
        raise ConfigurationError(
            where, name, "the name of a registered model, without any of / : ' \" @"
        )
    return name


def _is_of(error: BaseException, *packages: str) -> bool:
    return type(error).__module__.partition(".")[0] in packages


def _database(uri: str) -> Path | None:
    path, _, query = uri.removeprefix(_SQLITE).partition("?")
    if not uri.startswith(_SQLITE) or not path or query or path == ":memory:":
        return None
    return Path(os.path.abspath(path))  # noqa: PTH100 - does not look at the disk
