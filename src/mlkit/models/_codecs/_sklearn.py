"""scikit-learn estimators in the format of skops: a tree of types and arrays, built only from types that are trusted."""

from __future__ import annotations

import json
import sys
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any, final
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from mlkit._optional import require
from mlkit._suggest import clip, listing
from mlkit.errors import ConfigurationError, UntrustedFormatError
from mlkit.models._zip import problem_of_archive

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SklearnCodec"]

_SCHEMA = "schema.json"


@final
class SklearnCodec:
    """The codec `"skops"`.

    Args:
        what: What to call the model in errors.
        trusted: Names of types to trust beside those that skops knows to be harmless.
    """

    __slots__ = ("_trusted", "_what")
    name = "skops"

    def __init__(self, what: str = "save(model)", trusted: Sequence[str] = ()) -> None:
        self._what, self._trusted = what, list(trusted)

    def handles(self, model: object, /) -> bool:
        """Return whether *model* is an estimator."""
        base = sys.modules.get("sklearn.base")  # whoever has one has imported it
        return base is not None and isinstance(model, base.BaseEstimator)

    def write(self, model: Any, file: IO[bytes], /) -> None:
        """Write an estimator."""
        skops = require("skops.io", extra="sklearn", feature="saving a scikit-learn model")
        try:
            content = BytesIO(skops.dumps(model))
        except Exception as error:
            reason = clip(f"{type(error).__name__}: {error}", 200)
            raise ConfigurationError(
                self._what, model, "a model that skops can store", hint=reason
            ) from error
        if (problem := _problem(content)) is not None:
            raise ConfigurationError(self._what, problem, "a model that could be loaded again")
        self._refuse(skops, content)
        _write_canonical(content, file)

    def read(self, file: IO[bytes], /) -> Any:
        """Return the estimator in *file*."""
        if (problem := _problem(file)) is not None:
            raise ValueError(problem)
        skops = require("skops.io", extra="sklearn", feature="loading a scikit-learn model")
        self._refuse(skops, file)
        return skops.load(file, trusted=self._trusted)

    def _refuse(self, skops: Any, file: IO[bytes]) -> None:
        file.seek(0)
        untrusted = set(skops.get_untrusted_types(file=file)) - set(self._trusted)
        file.seek(0)
        if untrusted:
            raise UntrustedFormatError(
                self._what,
                f"if you trust them, pass trust=[...] with their names: {listing(untrusted)}",
                reason="holds types that skops does not know to be harmless",
                types=sorted(untrusted),
            )


def _problem(file: IO[bytes]) -> str | None:
    """Return what is wrong with an archive, or with the archives in it, which sparse matrices are."""
    if (problem := problem_of_archive(file)) is not None:
        return problem
    with ZipFile(file) as archive:
        for member in archive.infolist():
            if member.compress_type != ZIP_STORED:
                return f"an archive with a file {member.filename!r} that is compressed"
            if member.filename.endswith(".npz"):
                with archive.open(member) as inner:
                    if (problem := problem_of_archive(inner)) is not None:
                        return f"an archive with a file {member.filename!r} that is {problem}"
    return None


def _write_canonical(content: IO[bytes], file: IO[bytes]) -> None:
    """Write what skops made so that equal models are equal bytes: it names by address, and gives each file a time."""
    with ZipFile(content) as source, ZipFile(file, "w", ZIP_STORED) as target:
        schema = json.loads(source.read(_SCHEMA))
        names: dict[str, str] = {}
        schema = _renamed(schema, names, {})
        members = {new: _without_padding(source.read(old)) for old, new in names.items()}
        members[_SCHEMA] = json.dumps(schema, separators=(",", ":")).encode()
        for name, data in members.items():
            target.writestr(ZipInfo(name), data)


def _without_padding(data: bytes) -> bytes:
    """Return an array with zeros between its fields: the nodes of a tree have there what was in the memory before."""
    if b"|V" not in data[:1024]:
        return data
    import numpy as np

    array = np.load(BytesIO(data), allow_pickle=False)
    if array.dtype.fields is None or not array.size:
        return data
    padding = np.ones(array.itemsize, dtype=bool)
    for dtype, offset, *_ in array.dtype.fields.values():
        padding[offset : offset + dtype.itemsize] = False
    # NumPy's own writer does not keep zeros there.
    content = np.frombuffer(bytearray(data), dtype=np.uint8)
    content[-array.nbytes :].reshape(-1, array.itemsize)[:, padding] = 0
    return content.tobytes()


def _renamed(node: Any, names: dict[str, str], numbers: dict[int, int]) -> Any:
    """Return a part of the schema with files and objects numbered in the order in which they are met."""
    if isinstance(node, list):
        return [_renamed(item, names, numbers) for item in node]
    if not isinstance(node, dict):
        return node
    loader = node.get("__loader__")
    if loader == "SetNode":
        node = node | {"content": sorted(node["content"], key=_without_numbers)}
    renamed: dict[str, Any] = {}
    for key, value in node.items():
        if key == "__id__" and loader is not None:
            if loader != "JsonNode":  # whether equal constants are one object is an accident
                renamed[key] = numbers.setdefault(value, len(numbers) + 1)
        elif key == "file" and loader is not None and isinstance(value, str):
            suffix = value.rpartition(".")[2]
            renamed[key] = names.setdefault(value, f"{len(names)}.{suffix}")
        else:
            renamed[key] = _renamed(value, names, numbers)
    return renamed


def _without_numbers(node: Any) -> str:
    return json.dumps(_renamed(node, {}, {}), sort_keys=True)
