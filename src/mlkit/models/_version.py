"""What a store gives back: a version of a model, and a change in its history."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, final

from mlkit._digest import short
from mlkit._suggest import clip
from mlkit.errors import IntegrityError, ModelStoreError, VersionNotFoundError
from mlkit.models._codec import is_format
from mlkit.models._folder import Folder, blob_path, checked_digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlkit.models._signature import Signature

__all__ = [
    "DOCUMENT_FORMAT",
    "MAX_DOCUMENT",
    "Change",
    "Facts",
    "Kind",
    "ModelVersion",
    "Payload",
    "parse_payload",
    "read_document",
]

Kind: TypeAlias = Literal[
    "saved", "imported", "signed", "promoted", "rolled_back", "refused", "alias_removed", "deleted"
]
DOCUMENT_FORMAT = 1
MAX_DOCUMENT = 16 << 20


class Change(NamedTuple):
    """One line of a model's history.

    Attributes:
        sequence: Its place in the history, counted from 1.
        kind: `"saved"`, `"imported"` (from another store), `"signed"`, `"promoted"`, `"rolled_back"`, `"refused"` (a
            check stopped a promotion), `"alias_removed"` or `"deleted"`.
        version: The number of the version it is about; for `"promoted"` and `"rolled_back"` the one that now holds
            the alias, for `"alias_removed"` the one that held it.
        alias: The alias that moved, or should have.
        previous: The number of the version that held the alias before, None if it was new.
        who: Who did it, as the store was told; by default `user@host`.
        time: When, in seconds since the Unix epoch, by the clock of the machine that did it.
        why: The reason given.
        evidence: What each check said, by its name: `"passed"`, or why not; of one that gave `Evidence` its figures,
            with `passed` and `why`.
    """

    sequence: int
    kind: Kind
    version: int
    alias: str | None
    previous: int | None
    who: str
    time: float
    why: str
    evidence: Mapping[str, Any]


class Payload(NamedTuple):
    """The stored weights of a version, as its document describes them."""

    format: str
    digest: str
    n_bytes: int
    rebuild: bool
    """Whether they are the state of an object that a spec rebuilds."""
    ties: Mapping[str, str]
    """Names of the state that are another name's tensor."""


@final
class ModelVersion:
    """One immutable version of a model. Made by a `ModelStore`.

    What the log of the store knows (number, digest, run, metrics, ...) is in memory; `spec`, `signature` and `manifest`
    are read from the store when first asked for, checked against `digest`, and given out as a new copy each time.

    Thread-safe. Picklable; the copy reads from the same folder. Two are equal if name, number and digest are.

    Examples:
        >>> import tempfile
        >>> from mlkit.models import ModelStore
        >>> store = ModelStore(tempfile.mkdtemp())
        >>> version = store.save("prior", b"0.3", metrics={"accuracy": 0.7}, tags={"team": "risk"})
        >>> version.ref, version.metrics["accuracy"], version.format, version.n_bytes
        ('prior@1', 0.7, 'bytes', 3)
        >>> store.save("prior", b"0.3").digest == version.digest
        True
    """

    __slots__ = ("_document", "_facts", "_folder", "_name", "_number")

    def __init__(self, folder: Folder, name: str, number: int, facts: Facts) -> None:
        self._folder, self._name, self._number, self._facts = folder, name, number, facts
        self._document: bytes | None = None

    @property
    def name(self) -> str:
        """The model it is a version of."""
        return self._name

    @property
    def number(self) -> int:
        """Its number: 1, 2, ...; never given to another version, even after it was deleted."""
        return self._number

    @property
    def ref(self) -> str:
        """What to call it: `"churn@7"`."""
        return f"{self._name}@{self._number}"

    @property
    def digest(self) -> str:
        """`"sha256:..."` of weights, spec, signature and manifest together; equal content, equal digest."""
        return self._facts.digest

    @property
    def time(self) -> float:
        """When it was saved, in seconds since the Unix epoch."""
        return self._facts.time

    @property
    def who(self) -> str:
        """Who saved it."""
        return self._facts.who

    @property
    def run(self) -> str | None:
        """The id of the run that made it."""
        return self._facts.run

    @property
    def metrics(self) -> Mapping[str, float]:
        """What was measured of it, read-only."""
        return MappingProxyType(self._facts.metrics)

    @property
    def tags(self) -> Mapping[str, str]:
        """Notes for people and searches, read-only."""
        return MappingProxyType(self._facts.tags)

    @property
    def format(self) -> str:
        """How the weights are stored.

        `"torch"` or `"numpy"` (safetensors), `"bytes"`, `"skops"`, `"onnx"`, `"torchscript"`, `"pt2"`, `"pickle"`, or the
        name of a `Codec` of the store.
        """
        return self._facts.format

    @property
    def n_bytes(self) -> int:
        """The size of the stored weights in bytes."""
        return self._facts.n_bytes

    @property
    def spec(self) -> dict[str, Any] | None:
        """The plain data that rebuilds the model, without its weights; a new copy."""
        return self._part("spec")

    @property
    def signature(self) -> Signature | None:
        """What the model takes and gives: plain data, and `check` for an input."""
        from mlkit.models._signature import Signature

        part = self._part("signature")
        return None if part is None else Signature(part)

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What it was made with (code, environment, seeds, data), as plain data; a new copy."""
        return self._part("manifest")

    def __repr__(self) -> str:
        run = f" run={clip(self.run, 40)!r}" if self.run else ""
        digest = f"sha256:{short(self.digest)}"
        return f"<ModelVersion {self.ref} {digest} {self.format} {self.n_bytes:,} bytes{run}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ModelVersion):
            return NotImplemented
        return self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __reduce__(self) -> tuple[Any, ...]:
        return ModelVersion, (self._folder, self._name, self._number, self._facts)

    def _identity(self) -> tuple[str, int, str]:
        return self._name, self._number, self.digest

    def _part(self, key: str) -> dict[str, Any] | None:
        try:
            part: dict[str, Any] | None = read_document(self)[key]
        except FileNotFoundError:
            raise VersionNotFoundError(
                self.ref, hint="it was deleted meanwhile, or its files were"
            ) from None
        return part


class Facts(NamedTuple):
    """What the log knows of a version."""

    time: float
    who: str
    digest: str
    payload: str
    """The digest of the weights alone."""
    format: str
    n_bytes: int
    run: str | None
    metrics: dict[str, float]
    tags: dict[str, str]


def read_document(version: ModelVersion) -> dict[str, Any]:
    """Return a new copy of the verified document of a version: format, payload, spec, signature, manifest.

    Args:
        version: Whose.

    Raises:
        FileNotFoundError: If it is gone.
        IntegrityError: If it is not what was saved.
        ModelStoreError: If a newer mlkit wrote it.
    """
    import json

    data = version._document  # noqa: SLF001 - the cache is this module's
    if data is None:
        data = version._folder.read_blob(version.digest, limit=MAX_DOCUMENT)  # noqa: SLF001
    path = version._folder.path(blob_path(version.digest))  # noqa: SLF001
    try:
        document: dict[str, Any] = json.loads(data)
        written_in = document["format"]
        if isinstance(written_in, int) and written_in > DOCUMENT_FORMAT:
            raise ModelStoreError(
                f"{version.ref} was saved by a newer mlkit (document format {written_in}, this one reads up to "
                f"{DOCUMENT_FORMAT}): upgrade mlkit-blocks"
            )
        for key in ("spec", "signature", "manifest"):
            if document[key] is not None and not isinstance(document[key], dict):
                raise ValueError(key)
        parse_payload(document)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        raise IntegrityError(
            path, expected="the document of a version", got="something else"
        ) from None
    version._document = data  # noqa: SLF001 - equal bytes, whichever thread comes last
    return document


def parse_payload(document: dict[str, Any]) -> Payload:
    """Return the description of the weights in a document.

    Args:
        document: As it was read.
    """
    payload = document["payload"]
    ties = dict(payload["ties"])
    if not is_format(payload["format"]) or not isinstance(payload["rebuild"], bool):
        raise ValueError("payload")
    if not all(isinstance(tied, str) for tied in ties.values()):
        raise ValueError("ties")
    digest = checked_digest(payload["digest"])
    return Payload(payload["format"], digest, int(payload["n_bytes"]), payload["rebuild"], ties)
