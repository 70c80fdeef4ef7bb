"""Content digests of values, arrays, tensors, tables, files and folders; never a guess, never pickle."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from mlkit._digest import plain_array
from mlkit._suggest import clip
from mlkit.errors import DigestError, FingerprintError
from mlkit.repro._hashing import Algorithm, Hashing, hashing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike
    from pathlib import Path

    from mlkit.repro._stat_cache import StatCache

__all__ = ["fingerprint"]

_MAX_DEPTH = 200
_PIECE = 1 << 19  # bytes


def fingerprint(
    value: object,
    *,
    cache: str | PathLike[str] | None = None,
    algorithm: Algorithm = "sha256",
) -> str:
    """Return `"sha256:<64 hex digits>"` of the content of *value*.

    - **A `Path`** is what lies there. A file has the SHA-256 of its bytes, as `sha256sum` prints it. A folder has the
      digest of all its entries: relative names, bytes, whether executable, where a link points (links are not
      followed), empty folders. Times, owners and the folder's own name do not count.
    - **A torch tensor** is its dtype, shape and elements, not its device, strides or `requires_grad`.
    - **A pandas object** is its index, its labels in order, and type and values of each column; `attrs` do not count.
      **Arrow data**, and what exports it as polars does, is names, types and values of the columns; chunks, unused
      dictionary entries and metadata do not count. Types do: the same numbers as pandas and as Arrow differ.
    - **Anything else** is a value: numbers, text, bytes, lists, mappings, dates, NumPy arrays, dataclasses of these,
      with tensors, tables and paths inside (a `state_dict()`, a list of files). A `str` is text, never a file name.
      Lists and tuples are alike, `1` and `1.0` and `True` are not, all NaN are one.

    Args:
        value: What to fingerprint.
        cache: A SQLite file that remembers what files contained, so that those whose inode, size, mode, mtime and
            ctime are as before are not read again; made when it is not there. Files that changed less than two
            seconds before the call are not remembered. Trust it as far as those who can write it.
        algorithm: `"blake3"` is several times as fast on large arrays and files, needs the extra `blake3`, and its
            fingerprints (`"blake3:..."`) compare with each other only.

    Returns:
        The fingerprint: the same in every process and on every machine.

    Raises:
        FingerprintError: If something has no faithful content hash (an arbitrary object, a sparse tensor, a socket),
            cannot be read, or changes while it is read. There is no fallback to pickle.
        ConfigurationError: If *algorithm* is none of the two, or *cache* is another kind of file, lies in a folder
            that does not exist or in the one to fingerprint.
        MissingDependencyError: If a package that *algorithm* or Arrow data need is not installed.

    Examples:
        >>> fingerprint({"b": [1, 2], "a": None}) == fingerprint({"a": None, "b": (1, 2)})
        True
        >>> fingerprint(1) == fingerprint(1.0)
        False

    Note:
        One pass at the speed of the hash. Safe to call from many threads and processes, with one cache too.
    """
    contents = _Contents(hashing(algorithm), None)
    if cache is not None:
        from mlkit.repro._stat_cache import StatCache

        contents = contents._replace(cache=StatCache(cache, contents.hashing))
    from pathlib import Path

    try:
        if isinstance(value, Path):
            return contents.of_path(value)
        return contents.hashing.of_plain(contents.resolved(value, "$", 0))
    except DigestError as error:
        raise FingerprintError(error.path, str(error).partition(": ")[2]) from None
    except RecursionError:
        raise FingerprintError("$", "nested too deeply for the stack of this thread") from None


def _mark(kind: str, content: object) -> Any:
    """Return a stand-in for a tensor, table or path whose encoding is no other value's.

    The class name is part of a dataclass's encoding, and no class statement can make one with a colon.
    """
    from dataclasses import make_dataclass

    made = _marks.get(kind)
    if made is None:
        made = make_dataclass("mark", ["content"], frozen=True)
        made.__qualname__ = f"mlkit:{kind}"
        _marks[kind] = made
    return made(content)


_marks: dict[str, Any] = {}
_PLAIN = frozenset({str, int, float, bool, bytes, type(None)})


class _Contents(NamedTuple):
    """How contents are hashed and where known ones are found."""

    hashing: Hashing
    cache: StatCache | None

    def of_path(self, path: Path) -> str:
        from mlkit.repro._tree import of_path

        return of_path(path, self.hashing, self.cache, _mark)

    def resolved(self, value: Any, path: str, depth: int) -> Any:
        """Return *value* with the tensors, tables and paths in it replaced by what stands for their content."""
        kind = type(value)
        if kind in _PLAIN:
            return value
        if depth > _MAX_DEPTH:
            reason = f"it holds itself, or is nested deeper than {_MAX_DEPTH} levels"
            raise FingerprintError(path, reason)
        if kind is not dict and kind not in {list, tuple}:
            return self._resolved_rare(value, path, depth)
        items = value.items() if kind is dict else enumerate(value)
        resolved = [
            (key, item)
            if type(item) in _PLAIN
            else (key, self.resolved(item, f"{path}[{clip(key, 40)}]", depth + 1))
            for key, item in items
        ]
        return dict(resolved) if kind is dict else [item for _, item in resolved]

    def _resolved_rare(self, value: Any, path: str, depth: int) -> Any:
        """Do the same for what is not a plain dict, list or tuple."""
        import dataclasses
        from collections.abc import Mapping
        from pathlib import Path

        if isinstance(value, Mapping):
            return self.resolved(dict(value), path, depth)
        if isinstance(value, (list, tuple)):
            return self.resolved(list(value), path, depth)
        if isinstance(value, (set, frozenset)):
            if _holds_path(value):
                reason = (
                    "it is a set that holds paths; pass a list, or a mapping from names to paths"
                )
                raise FingerprintError(path, reason)
            return value
        if isinstance(value, Path):
            return _mark("path", self.of_path(value))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._resolved_dataclass(value, path, depth)
        return self._resolved_data(value, path, depth)

    def _resolved_dataclass(self, value: Any, path: str, depth: int) -> Any:
        import copy
        import dataclasses

        resolved = copy.copy(value)
        for field in dataclasses.fields(value):
            if not hasattr(value, field.name):
                continue  # refused as what has no canonical encoding
            content = self.resolved(getattr(value, field.name), f"{path}.{field.name}", depth + 1)
            object.__setattr__(resolved, field.name, content)  # also where it is frozen
        return resolved

    def _resolved_data(self, value: Any, path: str, depth: int) -> Any:
        """Do the same for arrays, tensors and tables."""
        torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
        if torch is not None and isinstance(value, torch.Tensor):
            return _mark("tensor", self._of_tensor(torch, value, path))
        if torch is not None and isinstance(value, torch.nn.Module):
            raise FingerprintError(path, "it is a module; pass module.state_dict()")
        if numpy is not None and isinstance(value, numpy.ndarray):
            return self._of_array(numpy, value)
        from mlkit.repro._tables import of_arrow, of_pandas

        table = of_pandas(value, path) or of_arrow(value, path)
        if table is None:
            return value
        kind, content = table
        return _mark(kind, self.resolved(content, path, depth + 1))

    def _of_array(self, numpy: Any, array: Any) -> Any:
        if self.hashing.name == "sha256" or numpy.ma.isMaskedArray(array):
            return array  # as the canonical encoding has it
        row = numpy.ascontiguousarray(array).reshape(-1)
        if (found := plain_array(row[:0])) is None:
            return array
        pieces = (cast("Any", plain_array(piece))[1] for piece in _pieces(row))
        return _mark("array", [found[0], list(array.shape), self.hashing.of_pieces(pieces)])

    def _of_tensor(self, torch: Any, tensor: Any, path: str) -> list[Any]:
        """Return dtype, shape and the digest of the elements."""
        from mlkit.repro._tensors import is_dense

        if not is_dense(torch, tensor):
            raise FingerprintError(
                path, f"it is {_kind(torch, tensor)}; pass what it is made of (values, indices)"
            )
        if sys.byteorder != "little":
            raise FingerprintError(path, "tensors are fingerprinted on little-endian machines only")
        try:
            flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
            content = self.hashing.of_pieces(_plain_tensor(torch, piece) for piece in _pieces(flat))
        except RuntimeError as error:  # inside torch.vmap, say
            raise FingerprintError(path, f"its elements cannot be read ({error})") from error
        return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), content]


def _holds_path(value: Any) -> bool:
    """Return whether a path is in a set, or in what a set may hold."""
    from pathlib import Path

    inside = isinstance(value, (set, frozenset, tuple))
    return isinstance(value, Path) or (inside and any(map(_holds_path, value)))


def _kind(torch: Any, tensor: Any) -> str:
    if tensor.is_nested or tensor.is_quantized:
        return f"a {'nested' if tensor.is_nested else 'quantized'} tensor"
    if tensor.layout is torch.strided and not tensor.is_meta:
        return f"a {type(tensor).__name__}"
    return f"a {tensor.layout} on {tensor.device} tensor"


def _pieces(row: Any) -> Iterator[Any]:
    """Cut a row so that a piece is still in the cache of the processor when it is read a second time."""
    length = _PIECE // row.itemsize
    for start in range(0, len(row), length):
        yield row[start : start + length]


def _plain_tensor(torch: Any, row: Any) -> memoryview:
    """Return the bytes of a contiguous row of elements, all NaN one."""
    try:
        found = plain_array(row.numpy())  # which looks for NaN in half of torch's time
    except TypeError:  # NumPy has no such type: bfloat16, eighths
        found = None
    if found is not None:
        return found[1]
    if row.element_size() == 1 and row.is_floating_point():
        return _plain_eighths(torch, row)
    if _may_hold_nan(torch, row):
        row = row.masked_fill(torch.isnan(row), float("nan"))
    return cast("memoryview", row.view(torch.uint8).numpy().data)


def _plain_eighths(torch: Any, row: Any) -> memoryview:
    """Return the bytes of floats of 8 bits, which torch can neither order nor fill; pairs of 4 bits have no NaN."""
    data = row.view(torch.uint8)
    if not str(row.dtype).endswith("_x2"):
        missing = torch.isnan(row)
        if missing.any():
            one = torch.tensor(float("nan")).to(row.dtype).view(torch.uint8)
            data = torch.where(missing, one, data)
    return cast("memoryview", data.numpy().data)


def _may_hold_nan(torch: Any, row: Any) -> bool:
    if row.is_complex():
        row = torch.view_as_real(row)
    # A NaN wins a minimum, which is several times as fast as asking each element.
    return row.is_floating_point() and bool(torch.isnan(row.min()))
