"""MLflow's model registry behind an address of the plug-in. It is asked, never journalled."""

from __future__ import annotations

import copy
from typing import Any, final

from mlkit.integrations.mlflow_plugin._backend import Backend
from mlkit.integrations.mlflow_plugin._translation import asked_by_mlflow

__all__ = ["make_registry"]


def make_registry(store_uri: str, tracking_uri: str) -> Any:
    """Return the registry of an address."""
    return _Registry(store_uri, tracking_uri)


@final
class _Registry:
    """The registry that is wrapped. Of its answers and arguments, ids of runs and places of artifacts are translated."""

    def __init__(self, store_uri: str, tracking_uri: str) -> None:
        from mlflow.tracking._model_registry.utils import _get_store

        self._backend = Backend(store_uri)
        self._tracking_uri = tracking_uri
        self._make: Any = lambda: _get_store(self._backend.uri, self._backend.uri)
        self._made: Any = None

    def create_model_version(  # noqa: PLR0917 - MLflow's signature
        self,
        name: str,
        source: str,
        run_id: str | None = None,
        tags: list[Any] | None = None,
        run_link: str | None = None,
        description: str | None = None,
        local_model_path: str | None = None,
        model_id: str | None = None,
    ) -> Any:
        """Register a model; the run that it is of is delivered first."""
        return self._call(
            "create_model_version",
            name,
            self._translation.source(source),
            run_id if run_id is None else self._translation.run(run_id),
            tags,
            run_link,
            description,
            local_model_path=local_model_path,
            model_id=model_id,
        )

    def search_model_versions(
        self, filter_string: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Return versions; a condition may name a run by its id here."""
        condition = self._translation.condition(filter_string)
        return self._call("search_model_versions", condition, *args, **kwargs)

    def copy_model_version(self, src_mv: Any, dst_name: str) -> Any:
        """Register a version under another name; MLflow is given the run of it by its own id."""
        source = copy.copy(src_mv)
        if source.run_id is not None:
            source._run_id = self._translation.run_if_there(source.run_id)  # noqa: SLF001 - the entity has no other way
        return self._call("copy_model_version", source, dst_name)

    def get_model_version_download_uri(self, name: str, version: str) -> str:
        """Return where a version is."""
        return self._backend.location(
            str(self._call("get_model_version_download_uri", name, version))
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        target = getattr(self._store, name)
        if not callable(target):
            return target
        return lambda *args, **kwargs: self._call(name, *args, **kwargs)

    @property
    def _store(self) -> Any:
        if self._made is None:
            if not self._backend.is_http:
                _ = self._backend.store  # which makes the tables alone
            self._made = self._make()
        return self._made

    @property
    def _translation(self) -> Any:
        from mlflow.tracking._tracking_service.utils import _get_store

        return _get_store(self._tracking_uri).translation  # the other half of the plug-in

    def _call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        asking = asked_by_mlflow.set(True)  # a database's registry looks up the run of a model
        try:
            found = self._backend.guard(name, lambda: getattr(self._store, name)(*args, **kwargs))
        finally:
            asked_by_mlflow.reset(asking)
        self._see(found)
        return found

    def _see(self, found: Any) -> None:
        """Give what was found the ids of runs that hold here."""
        for one in found if isinstance(found, list) else [found]:
            for version in getattr(one, "latest_versions", None) or ():
                self._see(version)
            if isinstance(getattr(one, "run_id", None), str) and hasattr(one, "_run_id"):
                one._run_id = self._backend.ours(one.run_id)  # noqa: SLF001 - the entity has no other way
