"""Artifacts of a run: written into the journal's folder, read from there and from where MLflow keeps them."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from mlkit.errors import ConfigurationError
from mlkit.integrations.mlflow_plugin._refusals import invalid

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["make_repository"]


def make_repository(
    artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> Any:
    """Return the artifacts of a run, or of a folder in them."""
    return _repository_class()(artifact_uri, tracking_uri, registry_uri)


@functools.cache
def _repository_class() -> type[Any]:
    """Return the class, whose base is there only with MLflow."""
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

    return type("RunArtifacts", (_Repository, ArtifactRepository), {"__module__": __name__})


class _Repository:
    """The artifacts of `mlkit-artifacts:/<run id>/artifacts/<folder>`."""

    def __init__(
        self, artifact_uri: str, tracking_uri: str | None, registry_uri: str | None
    ) -> None:
        from mlflow.tracking._tracking_service.utils import _get_store, get_tracking_uri

        address = tracking_uri or get_tracking_uri()
        super().__init__(artifact_uri, address, registry_uri)  # type: ignore[call-arg]  # of the base that is added later
        parts = PurePosixPath(unquote(urlparse(artifact_uri).path)).parts
        self._run_id = parts[1]
        self._within = "/".join(parts[3:])
        self._store = _get_store(address)

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """Copy a file into the run."""
        from mlflow.store.artifact.artifact_repo import verify_artifact_path

        verify_artifact_path(artifact_path)
        if not Path(local_file).exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(local_file))
        name = self._name(artifact_path, Path(local_file).name)
        with _as_mlflow():
            self._run().log_artifact(local_file, name)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """Copy a folder into the run."""
        from mlflow.store.artifact.artifact_repo import verify_artifact_path

        verify_artifact_path(artifact_path)
        if not Path(local_dir).is_dir():
            return  # as MLflow's own, which find nothing in it
        place = self._name(artifact_path)
        with _as_mlflow():
            self._run().log_artifacts(local_dir, place or None)

    def list_artifacts(self, path: str | None = None) -> list[Any]:
        """Return what is in a folder, of the journal and of MLflow."""
        from mlflow.entities import FileInfo

        inside = self._name(path)
        found: dict[str, Any] = {}
        for name, file in self._local().items():
            rest = name.removeprefix(f"{inside}/") if inside else name
            if inside and rest == name:
                continue
            first, slash, _ = rest.partition("/")
            shown = self._shown(f"{inside}/{first}" if inside else first)
            found[shown] = FileInfo(shown, bool(slash), None if slash else file.stat().st_size)
        stored = self._stored()
        if stored is not None:
            for one in stored.list_artifacts(inside or None):
                shown = self._shown(one.path)
                found.setdefault(shown, FileInfo(shown, one.is_dir, one.file_size))
        return [found[name] for name in sorted(found)]

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        """Delete artifacts in MLflow; the journal's copies stay until the run's folder goes."""
        self._store.local.flush_one(self._run_id, 10.0)
        stored = self._stored(needed=True)
        stored.delete_artifacts(self._name(artifact_path) or None)

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        name = self._name(remote_file_path)
        held = self._local().get(name)
        if held is not None:
            Path(local_path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(held, local_path)
            return
        self._stored(needed=True)._download_file(name, local_path)  # noqa: SLF001 - as MLflow's own wrappers do

    def _run(self) -> Any:
        self._store.lifecycles.check_run(self._run_id)
        return self._store.local.run(self._run_id)

    def _name(self, path: str | None, file: str = "") -> str:
        parts = [self._within, (path or "").replace(os.sep, "/").strip("/"), file]
        joined = "/".join(part for part in parts if part)
        return "" if joined == "." else str(PurePosixPath(joined)) if joined else ""

    def _shown(self, name: str) -> str:
        return name.removeprefix(f"{self._within}/") if self._within else name

    def _local(self) -> dict[str, Path]:
        """Return the files that the journal has, by name."""
        from mlkit.tracking import read

        folder = self._store.local.folder(self._run_id)
        if folder is None:
            return {}
        data = read(folder)
        return {name: data.artifact(name) for name in data.artifacts}

    def _stored(self, *, needed: bool = False) -> Any:
        """Return where MLflow keeps the run's artifacts, None if it does not answer or has no such run.

        Raises:
            MlflowException: If it is needed and not there.
        """
        from mlflow.exceptions import MlflowException
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        backend = self._store.backend
        try:
            theirs = backend.find(self._run_id)
            if theirs is None:
                raise MlflowException(f"Run with id={self._run_id} is not in MLflow yet")
            place = backend.call("get_run", theirs).info.artifact_uri
            return get_artifact_repository(backend.location(place), tracking_uri=backend.uri)
        except MlflowException:
            if needed:
                raise
            return None


@contextlib.contextmanager
def _as_mlflow() -> Iterator[None]:
    """Context manager: what is refused is refused as MLflow does it."""
    try:
        yield
    except ConfigurationError as error:
        raise invalid(str(error)) from error
