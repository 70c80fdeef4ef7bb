"""What a run read and what it made: each by name, with a fingerprint that tells whether it is the same again."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["INPUT", "OUTPUT", "DataRef", "as_ref", "as_text", "take_refs"]

INPUT, OUTPUT = "mlkit.input.", "mlkit.output."


class DataRef(NamedTuple):
    """Data that a run read or made.

    Attributes:
        fingerprint: Text that is the same for the same content only.
        source: Where it is, if that was said.
        context: What it is for, such as `"training"`, if that was said.
    """

    fingerprint: str
    source: str = ""
    context: str = ""


def as_ref(
    where: str,
    data: object,
    fingerprint: str | Callable[[Any], str] | None,
    source: str | os.PathLike[str],
    context: str,
) -> DataRef:
    """Return what to write down of *data*.

    Raises:
        ConfigurationError: If an argument is no text, or there is no fingerprint to be had.
        DigestError: If *data* has no digest of its own and no fingerprint was passed.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise ConfigurationError(f"{where}(source=...)", source, "text or a path")
    if not isinstance(context, str):
        raise ConfigurationError(f"{where}(context=...)", context, "text")
    place = os.fspath(source)
    if not place and isinstance(data, (str, os.PathLike)):
        place = os.fspath(data)
    made = _fingerprint(where, data) if fingerprint is None else fingerprint
    found = made if isinstance(made, str) else made(data)
    if not isinstance(found, str) or not found:
        raise ConfigurationError(f"{where}(fingerprint=...)", found, "text, or a callable of it")
    return DataRef(found, place, context)


def _fingerprint(where: str, data: object) -> str:
    from mlkit._digest import digest, digest_bytes, digest_file

    if data is None:
        raise ConfigurationError(
            where, data, "the data, or its fingerprint", hint="pass fingerprint=..."
        )
    if isinstance(data, (str, os.PathLike)):
        try:
            return digest_file(data)
        except OSError as error:
            raise ConfigurationError(
                where,
                data,
                "data, or the path of a file that can be read",
                hint="pass fingerprint=... for a folder or an address",
            ) from error
    if isinstance(data, (bytes, bytearray, memoryview)):
        return digest_bytes(data)
    return digest(data)


def as_text(ref: DataRef) -> str:
    """Return the value of the tag that keeps *ref*."""
    import json

    return json.dumps({key: value for key, value in ref._asdict().items() if value})


def take_refs(tags: dict[str, str], prefix: str) -> dict[str, DataRef]:
    """Take the data of one prefix out of *tags* and return it by name."""
    import json

    found = {}
    for key in [key for key in tags if key.startswith(prefix)]:
        found[key.removeprefix(prefix)] = DataRef(**json.loads(tags.pop(key)))
    return found
