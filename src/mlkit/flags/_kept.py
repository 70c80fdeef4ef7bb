"""The last good document of a source that is not on this machine, kept in a file that outlives the process."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from mlkit._clock import current
from mlkit._digest import digest_bytes
from mlkit.errors import FlagFileError
from mlkit.flags._document import MAX_BYTES, Problem

if TYPE_CHECKING:
    from mlkit.flags._document import Document
    from mlkit.flags._source import Source
    from mlkit.flags._store import Store

__all__ = ["Kept"]

_FORMAT = "mlkit-flags-kept-1"
_MAX_HEAD = 65_536
# A copy that is confirmed again and again is written anew this seldom, in seconds; its age is never understated.
_REFRESH = 600.0


@final
class Kept:
    """One file: a line of JSON about the document, and the document.

    It is replaced in one step and synchronised to the disk, so that a crash leaves the old one or the new one; a copy
    that was damaged or is of another source is not used.

    Args:
        path: The file; its folder is made if need be.
        source: Digest of where the document comes from.
    """

    path: Path
    problem: Problem | None

    def __init__(self, path: str | os.PathLike[str], source: str) -> None:
        self.path, self._source = Path(path), source
        self.problem = None
        self._saved: tuple[str, float] | None = None  # what is on the disk, and of when

    def restore(self, store: type[Store], origin: Source) -> Store | None:
        """Return a store of the kept document, None if there is none that can be used.

        Args:
            store: The class to make.
            origin: Its source.
        """
        try:
            with self.path.open("rb") as file:
                line = file.readline(_MAX_HEAD)
                data = file.read(MAX_BYTES + 1)
            head = json.loads(line)
            if head["format"] != _FORMAT:
                raise ValueError("it has another format")
            if head["source"] != self._source:
                raise ValueError("it is of another source")
            if head["digest"] != digest_bytes(data):
                raise ValueError("it is damaged")
            age = max(0.0, current().time() - float(head["confirmed"]))
            mark = head["mark"] and tuple(head["mark"])
            if mark and [type(one) for one in mark] != [str, str]:
                raise ValueError("it is damaged")
            made = store(data, origin.name, origin, mark=mark or None, age=age)
        except FileNotFoundError:
            return None
        except (
            OSError,
            FlagFileError,
            ValueError,
            LookupError,
            TypeError,
            RecursionError,
        ) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            self._complain("read", reason or str(error)[:200] or type(error).__name__)
            return None
        self._saved = (head["content"], float(head["confirmed"]))
        return made

    def save(self, document: Document, data: bytes, mark: Any) -> None:
        """Keep a document; trouble with that is noted in `problem`, never raised.

        Flags that are set aside are kept as they are in force.

        Args:
            document: What it says.
            data: Its bytes.
            mark: What the source said of it.
        """
        now, content = current().time(), digest_bytes(data)
        known, when = self._saved or ("", 0.0)
        if known == content and 0 <= now - when < _REFRESH:
            return
        body = _in_force(document)
        head = {
            "format": _FORMAT,
            "source": self._source,
            "confirmed": now,
            "content": content,
            # Of other bytes than these a source must not say that they are unchanged.
            "mark": mark if body is None else None,
            "digest": digest_bytes(data if body is None else body),
        }
        try:
            _replace(
                self.path, json.dumps(head).encode() + b"\n" + (data if body is None else body)
            )
        except OSError as error:
            self._complain("written", error.strerror or type(error).__name__)
            return
        self._saved, self.problem = (content, now), None

    def _complain(self, verb: str, reason: str) -> None:
        message = f"the last good document in {str(self.path)!r} cannot be {verb}: {reason}"
        self.problem = Problem(None, "", message, kept=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, (str(self.path), self._source)


def _in_force(document: Document) -> bytes | None:
    """Return a document of the flags in force, None if that is the document itself."""
    from msgspec import Raw
    from msgspec.json import encode

    aside = [key for key in document.refused if key in document.definitions]
    if not aside:
        return None
    flags = {key: Raw(body) for key, body in document.raw.items()}
    for key in aside:
        flags[key] = Raw(encode(document.definitions[key].document))
    evaluators, metadata = document.head
    whole = {"flags": flags, "$evaluators": Raw(evaluators), "metadata": Raw(metadata)}
    return encode(whole)


def _replace(path: Path, data: bytes) -> None:
    """Write a file in one step, readable for its owner alone: flags may say what is not public yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(beside).replace(path)
    finally:
        Path(beside).unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # else the new name may be gone after a power cut
    finally:
        os.close(folder)
