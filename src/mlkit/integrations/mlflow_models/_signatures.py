"""Signatures of versions, kept as artifacts beside their files: `signatures/<sha256>.sig`, one Sigstore bundle each."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, final

from mlkit.errors import ConfigurationError, IntegrityError
from mlkit.integrations.mlflow_models._artifacts import is_missing, place_of
from mlkit.models._bundle import MAX_BUNDLE, files_of, sign
from mlkit.models._package import MAX_BUNDLES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlkit.integrations.mlflow_models._catalog import Catalog, Found
    from mlkit.integrations.mlflow_models._server import Server
    from mlkit.models._signing import Requirement, Signer

__all__ = ["Signatures"]

_FOLDER = "signatures"


@final
class Signatures:
    """Who must have signed what a store gives out, and who has. Thread-safe.

    Args:
        server: Where the artifacts are.
        catalog: What MLflow has.
        requirement: What each version must meet, or None.
    """

    def __init__(self, server: Server, catalog: Catalog, requirement: Requirement | None) -> None:
        self._server, self._catalog, self.requirement = server, catalog, requirement

    def check(self, found: Found, also: Requirement | None = None) -> None:
        """Raise if a version is not signed as it must be; those of other clients have no signatures.

        Args:
            found: The version.
            also: What the caller asks for beside what the store does.

        Raises:
            SignatureError: If it is not.
        """
        required = [one for one in (self.requirement, also) if one is not None]
        if required:
            ref, bundles = f"{found.name}@{found.number}", self.bundles(found)
            files = {} if found.digest is None else self._files(found)
            for requirement in required:
                requirement.check(ref, files, bundles)

    def sign(self, found: Found, key: Signer) -> bytes:
        """Return the signature of a version; it is not kept yet.

        Args:
            found: The version.
            key: Who signs.
        """
        return sign(f"{found.name}@{found.number}", self._files(found), key)

    def bundles(self, found: Found) -> list[bytes]:
        """Return the signatures that lie beside a version; of anybody.

        Args:
            found: The version.
        """
        if found.digest is None:
            return []
        with TemporaryDirectory(prefix="mlkit-") as folder:
            try:
                with self._server.asked():
                    path = Path(self._downloaded(f"{found.location}/{_FOLDER}", folder))
            except FileNotFoundError:
                return []
            files = sorted(path.glob("*.sig"))
            if len(files) > MAX_BUNDLES or any(one.stat().st_size > MAX_BUNDLE for one in files):
                expected = f"at most {MAX_BUNDLES} signatures of at most {MAX_BUNDLE} bytes"
                raise IntegrityError(f"{found.location}/{_FOLDER}", expected=expected, got="more")
            return [one.read_bytes() for one in files]

    def keep(self, found: Found, bundles: Iterable[bytes]) -> None:
        """Put signatures beside the files of a version.

        Args:
            found: The version, one of ours.
            bundles: The signatures.
        """
        from hashlib import sha256

        if found.digest is None or not found.entity.run_id:
            ref = f"{found.name}@{found.number}"
            raise ConfigurationError("sign(ref)", ref, "a version that was saved by mlkit")
        place = f"{place_of(found.digest)}/{_FOLDER}"
        for bundle in bundles:
            with TemporaryDirectory(prefix="mlkit-") as folder:
                path = Path(folder, f"{sha256(bundle).hexdigest()[:16]}.sig")
                path.write_bytes(bundle)
                with self._server.asked():
                    self._server.client.log_artifact(found.entity.run_id, str(path), place)

    def _files(self, found: Found) -> dict[str, str]:
        facts = self._catalog.version(found)._facts  # noqa: SLF001 - what is signed
        return files_of(found.name, found.number, facts)

    def _downloaded(self, uri: str, folder: str) -> str:
        try:
            return self._server.download(uri, folder)
        except Exception as error:
            if is_missing(error):
                raise FileNotFoundError(uri) from error
            raise
