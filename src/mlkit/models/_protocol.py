"""What a store of versions can do, wherever it keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import EllipsisType

    from mlkit.models._checks import Check
    from mlkit.models._compare import Comparison
    from mlkit.models._version import Change, ModelVersion

__all__ = ["VersionStore"]


@runtime_checkable
class VersionStore(Protocol):
    """A store of model versions: `ModelStore` over a folder, `MlflowModelStore` over MLflow's registry.

    Laws, which `mlkit.testing.VersionStoreContract` tests on any store:

    1. A version is immutable, its number never given again, and equal content has equal digests in every store.
    2. `load` returns what was saved, or raises `IntegrityError`; it never returns anything else.
    3. `promote` with `expect` is a compare-and-swap among all writers of this kind: of several that expect the same
       holder one succeeds.
    4. `rollback` goes to the holder before the present one, each time it is called.
    5. `history` has every change with who, when, why and evidence, refused promotions too, in one order for everybody.
    6. A version that an alias points at is not deleted.
    """

    def names(self) -> list[str]:
        """Return the names of the models, sorted."""
        ...

    def versions(self, name: str) -> list[ModelVersion]:
        """Return the versions of a model that are not deleted, oldest first."""
        ...

    def aliases(self, name: str) -> dict[str, int]:
        """Return which version each alias of a model points at."""
        ...

    def history(self, name: str) -> list[Change]:
        """Return every change of a model, oldest first."""
        ...

    def get(self, ref: str | ModelVersion) -> ModelVersion:
        """Return a version without its weights."""
        ...

    def save(
        self,
        name: str,
        model: object,
        *,
        spec: Mapping[str, Any] | None = None,
        run: str | None = None,
        metrics: Mapping[str, Any] | None = None,
        manifest: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        why: str = "",
    ) -> ModelVersion:
        """Store a model as the next version of *name*."""
        ...

    def load(
        self, ref: str | ModelVersion, *, build: Callable[[dict[str, Any]], Any] | None = None
    ) -> Any:
        """Return the model of a version, after checking every byte that is read."""
        ...

    def promote(
        self,
        name: str,
        version: int | ModelVersion,
        *,
        to: str = "champion",
        expect: int | ModelVersion | EllipsisType | None = ...,
        checks: Sequence[Check] = (),
        why: str = "",
    ) -> Change:
        """Point an alias at a version, if the alias is where it is expected to be and every check passes."""
        ...

    def rollback(
        self,
        name: str,
        alias: str = "champion",
        *,
        expect: int | ModelVersion | EllipsisType = ...,
        why: str = "",
    ) -> Change:
        """Point an alias at the version that held it before the present one did."""
        ...

    def remove_alias(
        self,
        name: str,
        alias: str,
        *,
        expect: int | ModelVersion | EllipsisType = ...,
        why: str = "",
    ) -> Change:
        """Let an alias point at nothing."""
        ...

    def compare(self, first: str | ModelVersion, second: str | ModelVersion) -> Comparison:
        """Return what differs between two versions."""
        ...

    def delete(self, name: str, version: int | ModelVersion, *, why: str = "") -> Change:
        """Delete a version that no alias points at."""
        ...
