"""Reading everything again: which files of a store are not what was saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mlkit.errors import (
    IntegrityError,
    ModelStoreError,
    SealError,
    SignatureError,
    VersionNotFoundError,
)
from mlkit.models._version import parse_payload, read_document

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mlkit.models._catalog import Catalog
    from mlkit.models._folder import Folder
    from mlkit.models._version import ModelVersion

__all__ = ["Broken", "Verification", "broken_by", "verify"]


class Broken(NamedTuple):
    """Something of a store that is not what was saved.

    Attributes:
        ref: The version that cannot be trusted, `"churn@7"`, or the model whose history cannot, `"churn"`.
        file: The file, or what else is wrong with it.
        problem: What was expected and what was found.
    """

    ref: str
    file: str
    problem: str


class Verification(NamedTuple):
    """What `verify` found.

    Attributes:
        n_versions: How many versions were looked at.
        n_files: How many files were read from beginning to end; one that several versions share counts once.
        broken: What is not what was saved, by model and number; empty if all is well.
    """

    n_versions: int
    n_files: int
    broken: tuple[Broken, ...]


def verify(
    names: Iterable[str],
    catalog: Catalog,
    folder: Folder,
    check: Callable[[ModelVersion], None],
) -> Verification:
    """Read every file of some models, and go on after what is broken.

    Args:
        names: The models.
        catalog: What is in the store.
        folder: The store.
        check: Raises for a version that is not signed as it must be.
    """
    broken: list[Broken] = []
    seen: dict[str, ModelStoreError | OSError | None] = {}

    def problem(digest: str) -> ModelStoreError | OSError | None:
        if digest not in seen:
            seen[digest] = None
            try:
                folder.check_blob(digest)
            except (ModelStoreError, OSError) as error:
                seen[digest] = error
        return seen[digest]

    n_versions = 0
    for name in names:
        try:
            state = catalog.state(name)
            versions = [catalog.version(name, state, number) for number in state.versions]
        except VersionNotFoundError:
            raise
        except ModelStoreError as error:
            broken.append(broken_by(name, error))
            continue
        for version in versions:
            n_versions += 1
            weights = version._facts.payload  # noqa: SLF001 - what the history says that they are
            signatures = state.signatures(version.number)
            found = [problem(digest) for digest in (version.digest, weights, *signatures)]
            wrong = [error for error in found if error is not None]
            if wrong and version.number not in catalog.state(name).versions:
                continue  # deleted since we looked
            if not wrong:
                try:
                    _check_document(version, weights)
                    check(version)
                except ModelStoreError as error:
                    wrong = [error]
            broken += [broken_by(version.ref, error) for error in wrong]
    return Verification(n_versions, len(seen), tuple(broken))


def _check_document(version: ModelVersion, weights: str) -> None:
    named = parse_payload(read_document(version)).digest
    if named != weights:
        where = f"the document of {version.ref}"
        raise IntegrityError(where, expected=f"weights {weights}", got=named)


def broken_by(ref: str, error: ModelStoreError | OSError) -> Broken:
    """Return what an error says of a version.

    Args:
        ref: The version or model.
        error: What reading it raised.
    """
    if isinstance(error, IntegrityError):
        return Broken(ref, error.path, f"expected {error.expected}, found {error.got}")
    if isinstance(error, SealError):
        return Broken(ref, error.path, str(error))
    if isinstance(error, FileNotFoundError):
        return Broken(ref, str(error.filename), "it is not there")
    if isinstance(error, OSError):
        return Broken(ref, str(error.filename or "?"), error.strerror or type(error).__name__)
    if isinstance(error, SignatureError):
        return Broken(ref, "signatures", str(error))
    return Broken(ref, type(error).__name__, str(error))
