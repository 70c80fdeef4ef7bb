"""The files of a version among MLflow's artifacts, and the way back into a folder where every byte is checked.

```text
mlkit/<sha256 of document.json>/
  MLmodel          for MLflow: the flavour `mlkit`, which only this store loads
  document.json    spec, signature, manifest and the digest of the weights; its own digest is the version's
  weights....      the weights, as a folder store keeps them
  spec.json ...    the parts of the document for people; nothing reads them
```

MLflow lets nobody change where a version lies, so that the digest in that path is what was saved.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, final

from mlkit._digest import digest_file
from mlkit.errors import IntegrityError
from mlkit.models import ModelVersion
from mlkit.models._folder import Folder, blob_path
from mlkit.models._version import parse_payload, read_document

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit.integrations.mlflow_models._server import Server

__all__ = ["Cache", "digest_of", "is_missing", "pack", "place_of"]

_PLACE = re.compile(r"(?:^|/)mlkit/([0-9a-f]{64})/?$")
_SUFFIXES = {"torch": "safetensors", "numpy": "safetensors", "pickle": "pickle"}
_DOCUMENT = "document.json"
# MLflow has no code for it: a folder says the first two, a server the others.
_MISSING = re.compile(r"No such artifact|No such file|\b404 Client Error|error code 404\b")


def place_of(digest: str) -> str:
    """Return where a version lies among the artifacts of its run.

    Args:
        digest: Of the version.
    """
    return f"mlkit/{digest.partition(':')[2]}"


def digest_of(location: str) -> str | None:
    """Return the digest of the version that lies at *location*, None if that is none of ours.

    Args:
        location: Where MLflow says that the artifacts are.
    """
    found = _PLACE.search(location)
    return f"sha256:{found[1]}" if found else None


def pack(version: ModelVersion, root: str, folder: Path) -> None:
    """Write the files of a version as MLflow is to have them.

    Args:
        version: A version of a folder store.
        root: The folder of that store.
        folder: Where to write; it exists.
    """
    from mlflow.models import Model

    document = read_document(version)
    payload = parse_payload(document)
    weights = _weights(payload.format)
    for name, digest in ((_DOCUMENT, version.digest), (weights, payload.digest)):
        os.link(Path(root, blob_path(digest)), folder / name)
    for part in ("spec", "signature", "manifest"):
        if document[part] is not None:
            text = json.dumps(document[part], indent=1, sort_keys=True)
            (folder / f"{part}.json").write_text(text, encoding="ascii")
    about = {"digest": version.digest, "format": payload.format, "weights": weights}
    Model(flavors={"mlkit": about}).save(str(folder / "MLmodel"))


@final
class Cache:
    """A folder of files that were downloaded, named by their content and checked whenever they are read.

    Picklable; safe for threads and processes that share it. Any of it may be removed at any time.

    Args:
        root: The folder; it need not exist.
        server: Where files come from.
    """

    def __init__(self, root: str, server: Server) -> None:
        self.folder, self._server = Folder(root), server

    def fetch(self, version: ModelVersion, location: str) -> ModelVersion:
        """Have the files of a version, and return it as one that is read from the cache.

        Args:
            version: The version.
            location: Where its artifacts are.

        Raises:
            IntegrityError: If they are not what was saved.
        """
        here = ModelVersion(self.folder, version.name, version.number, version._facts)  # noqa: SLF001
        self.have(version.digest, f"{location}/{_DOCUMENT}")
        payload = parse_payload(read_document(here))
        self.have(payload.digest, f"{location}/{_weights(payload.format)}")
        return here

    def have(self, digest: str, uri: str) -> None:
        """Download a file unless it is here and whole.

        Args:
            digest: What it must be.
            uri: Where it is.

        Raises:
            IntegrityError: If it is something else.
        """
        path = self.folder.path(blob_path(digest))
        if os.path.exists(path) and digest_file(path) == digest:  # noqa: PTH110 - a path is text here
            return
        with TemporaryDirectory() as temporary:
            with self._server.asked():
                downloaded = self._downloaded(uri, temporary)
            ours = self.folder.temporary()
            _move(downloaded, ours)
        got, _ = self.folder.settle(ours)
        if got != digest:
            self.folder.remove(f"tmp/{Path(ours).name}")
            raise IntegrityError(uri, expected=digest, got=got)
        self.folder.adopt(ours, digest)

    def _downloaded(self, uri: str, temporary: str) -> str:
        try:
            return self._server.download(uri, temporary)
        except Exception as error:
            if is_missing(error):
                raise IntegrityError(uri, expected="a file of a version", got="nothing") from error
            raise


@final
class Remote:
    """Stands for the cache folder in a version whose files may not be here yet. Picklable.

    Args:
        cache: The cache.
        location: Where the artifacts of the version are.
        digest: Of the version.
    """

    def __init__(self, cache: Cache, location: str, digest: str) -> None:
        self._cache, self._location, self._digest = cache, location, digest

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        found = getattr(self._cache.folder, name)
        return _FetchedFirst(self, found) if callable(found) else found

    def have_document(self) -> None:
        """Have what a version is asked for without being loaded."""
        self._cache.have(self._digest, f"{self._location}/{_DOCUMENT}")


class _FetchedFirst:
    def __init__(self, remote: Remote, method: Callable[..., Any]) -> None:
        self._remote, self._method = remote, method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._method(*args, **kwargs)
        except FileNotFoundError:
            self._remote.have_document()
            return self._method(*args, **kwargs)


def _weights(kind: str) -> str:
    return f"weights.{_SUFFIXES.get(kind, 'bin')}"


def _move(source: str, target: str) -> None:
    import shutil

    shutil.move(source, target)


def is_missing(error: BaseException) -> bool:
    """Return whether an error of a download says that the file is not there."""
    from mlkit.integrations.mlflow_models._server import error_code

    if isinstance(error, FileNotFoundError):
        return True
    return error_code(error) is not None and _MISSING.search(str(error)) is not None
