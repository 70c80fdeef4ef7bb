"""MLflow's model registry behind an address of the plug-in. It is asked, never journalled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from mlkit.integrations.mlflow_plugin._backend import Backend

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["make_registry"]


def make_registry(store_uri: str, tracking_uri: str) -> Any:
    """Return the registry of an address."""
    return _Registry(store_uri, tracking_uri)


@final
class _Registry:
    """The registry that is wrapped. Of its answers and arguments, ids of runs and places of artifacts are translated."""

    def __init__(self, store_uri: str, tracking_uri: str) -> None:
        from mlflow.tracking._model_registry.utils import _get_store_registry

        self._backend = Backend(store_uri)
        self._tracking_uri = tracking_uri
        registry: Any = _get_store_registry()
        build = registry.get_store_builder(self._backend.uri)
        self._make: Callable[[], Any] = lambda: build(
            store_uri=self._backend.uri, tracking_uri=tracking_uri
        )
        self._made: Any = None

    def create_model_version(
        self, name: str, source: str, run_id: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Register a model; the run that it is of is delivered first."""
        if run_id is not None:
            from mlflow.tracking._tracking_service.utils import _get_store

            run_id = _get_store(self._tracking_uri)._theirs(run_id)  # noqa: SLF001 - the other half of the plug-in
        return self._call("create_model_version", name, source, run_id, *args, **kwargs)

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
            self._made = self._make()
        return self._made

    def _call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        found = self._backend.guard(name, lambda: getattr(self._store, name)(*args, **kwargs))
        for one in found if isinstance(found, list) else [found]:
            run_id = getattr(one, "run_id", None)
            if isinstance(run_id, str) and hasattr(one, "_run_id"):
                one._run_id = self._backend.ours(run_id)  # noqa: SLF001 - the entity has no other way
        return found
