"""A version before it has a number: its weights and its document, in two temporary files."""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING, Any, cast, final

from mlkit.errors import ConfigurationError
from mlkit.models._formats import write
from mlkit.models._payload import HashedFile
from mlkit.models._plain import dump
from mlkit.models._version import DOCUMENT_FORMAT, MAX_DOCUMENT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from mlkit.models._codec import Codec
    from mlkit.models._folder import Folder
    from mlkit.models._formats import Trust

__all__ = ["Draft"]


@final
class Draft:
    """The files of one `save`. A context manager: those that were not adopted are removed at its end.

    Args:
        folder: The store.
    """

    __slots__ = ("_files", "_folder")

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._files: list[tuple[str, str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for path, _digest in self._files:
            try:
                os.unlink(path)  # noqa: PTH108 - symmetric with the rest of the store
            except OSError:
                continue  # most often it has become a blob; else it is one more file in tmp/

    def write(
        self,
        model: object,
        parts: dict[str, dict[str, Any] | None],
        trust: Trust | None,
        codecs: Mapping[str, Codec],
    ) -> dict[str, Any]:
        """Write the files durably and return what the log says of them: format, payload, n_bytes, digest.

        Args:
            model: What the caller passed to `save`.
            parts: Spec, signature and manifest, as plain data.
            trust: As for `save`.
            codecs: Those of the store.
        """
        with self._file() as file:
            written = write(
                model,
                cast("IO[bytes]", file),  # typeshed has no type between a raw file and this
                has_spec=parts["spec"] is not None,
                trust=trust,
                codecs=codecs,
            )
            payload, n_bytes = self._settle(file)
        described = {**written._asdict(), "digest": payload, "n_bytes": n_bytes}
        content = dump({"format": DOCUMENT_FORMAT, **parts, "payload": described})
        if len(content) > MAX_DOCUMENT:
            raise ConfigurationError(
                "save(manifest=...)",
                f"{len(content)} bytes of spec, signature and manifest",
                f"at most {MAX_DOCUMENT} bytes in all",
            )
        with self._file() as file:
            file.write(content)
            digest, _ = self._settle(file)
        return {
            "format": written.format,
            "payload": payload,
            "n_bytes": n_bytes,
            "digest": digest,
        }

    def adopt(self) -> None:
        """Make the files blobs of the store; the caller holds the lock."""
        for path, digest in self._files:
            self._folder.adopt(path, digest, sealed=self._folder.keys is not None)

    def _file(self) -> HashedFile:
        path = self._folder.temporary()
        self._files.append((path, ""))
        return HashedFile(path, self._folder.sealer)

    def _settle(self, file: HashedFile) -> tuple[str, int]:
        path, _ = self._files[-1]
        digest, n_bytes = file.settle()
        self._files[-1] = path, digest
        return digest, n_bytes
