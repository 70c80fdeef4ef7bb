"""Content digests of values, arrays, tensors, files and folders; never a guess, never pickle."""

from __future__ import annotations

import stat
import sys
from typing import TYPE_CHECKING, Any

from mlkit._digest import digest, digest_bytes, digest_file
from mlkit._suggest import clip
from mlkit.errors import DigestError, FingerprintError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["fingerprint"]

_MAX_DEPTH = 200


def fingerprint(value: object) -> str:
    """Return `"sha256:<64 hex digits>"` of the content of *value*.

    - **A `Path`** is what lies there. A file has the SHA-256 of its bytes, as `sha256sum` prints it. A folder has the
      digest of all its entries: relative names, bytes, whether executable, where a link points (links are not
      followed), empty folders. Times, owners and the folder's own name do not count.
    - **A torch tensor** is its dtype, shape and elements, not its device, strides or `requires_grad`.
    - **Anything else** is a value: numbers, text, bytes, lists, mappings, dates, NumPy arrays, dataclasses of these,
      with tensors and paths inside (a `state_dict()`, a list of files). A `str` is text, never a file name. Lists and
      tuples are alike, `1` and `1.0` and `True` are not, all NaN are one.

    Args:
        value: What to fingerprint.

    Returns:
        The fingerprint: the same in every process and on every machine.

    Raises:
        FingerprintError: If something has no faithful content hash (an arbitrary object, an object array, a sparse
            tensor, a socket), cannot be read, or changes while it is read. There is no fallback to pickle.

    Examples:
        >>> fingerprint({"b": [1, 2], "a": None}) == fingerprint({"a": None, "b": (1, 2)})
        True
        >>> fingerprint(1) == fingerprint(1.0)
        False

    Note:
        One pass at the speed of SHA-256. A folder is read whole each time.
    """
    from pathlib import Path

    try:
        return _of_path(value) if isinstance(value, Path) else digest(_resolved(value, "$", 0))
    except DigestError as error:
        raise FingerprintError(error.path, str(error).partition(": ")[2]) from None
    except RecursionError:
        raise FingerprintError("$", "nested too deeply for the stack of this thread") from None


def _mark(kind: str, content: object) -> Any:
    """Return a stand-in for a tensor or path whose encoding is no other value's.

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


def _resolved(value: Any, path: str, depth: int) -> Any:
    """Return *value* with the tensors and paths in it replaced by what stands for their content."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if depth > _MAX_DEPTH:
        reason = f"it holds itself, or is nested deeper than {_MAX_DEPTH} levels"
        raise FingerprintError(path, reason)
    if kind is not dict and kind not in {list, tuple}:
        return _resolved_rare(value, path, depth)
    items = value.items() if kind is dict else enumerate(value)
    resolved = [
        (key, item)
        if type(item) in _PLAIN
        else (key, _resolved(item, f"{path}[{clip(key, 40)}]", depth + 1))
        for key, item in items
    ]
    return dict(resolved) if kind is dict else [item for _, item in resolved]


_PLAIN = frozenset({str, int, float, bool, bytes, type(None)})


def _resolved_rare(value: Any, path: str, depth: int) -> Any:
    """Do the same for what is not a plain dict, list or tuple."""
    import dataclasses
    from collections.abc import Mapping
    from pathlib import Path

    if isinstance(value, Mapping):
        return _resolved(dict(value), path, depth)
    if isinstance(value, (list, tuple)):
        return _resolved(list(value), path, depth)
    if isinstance(value, (set, frozenset)) and any(isinstance(item, Path) for item in value):
        reason = "it is a set that holds paths; pass a list, or a mapping from names to paths"
        raise FingerprintError(path, reason)
    if isinstance(value, Path):
        return _mark("path", _of_path(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _resolved_dataclass(value, path, depth)
    torch = sys.modules.get("torch")
    if torch is not None:
        if isinstance(value, torch.Tensor):
            return _mark("tensor", _of_tensor(torch, value, path))
        if isinstance(value, torch.nn.Module):
            raise FingerprintError(path, "it is a module; pass module.state_dict()")
    return value


def _resolved_dataclass(value: Any, path: str, depth: int) -> Any:
    import copy
    import dataclasses

    resolved = copy.copy(value)
    for field in dataclasses.fields(value):
        content = _resolved(getattr(value, field.name), f"{path}.{field.name}", depth + 1)
        object.__setattr__(resolved, field.name, content)  # also where it is frozen
    return resolved


def _of_tensor(torch: Any, tensor: Any, path: str) -> list[Any]:
    """Return dtype, shape and the digest of the elements."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        what = "quantized" if tensor.is_quantized else f"{tensor.layout} on {tensor.device}"
        raise FingerprintError(
            path, f"it is a {what} tensor; pass what it is made of (values, indices)"
        )
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    if flat.is_floating_point() or flat.is_complex():
        missing = torch.isnan(flat)
        if missing.any():
            flat = flat.masked_fill(missing, float("nan"))
    if sys.byteorder != "little":
        raise FingerprintError(path, "tensors are fingerprinted on little-endian machines only")
    content = digest_bytes(flat.view(torch.uint8).numpy().data)
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), content]


def _of_path(path: Path) -> str:
    try:
        mode = path.stat().st_mode  # follows a link: this path was named by the caller
        if stat.S_ISDIR(mode):
            return digest(_mark("tree", dict(_entries(path, ""))))
        return _of_file(path)
    except OSError as error:
        raise FingerprintError(str(path), f"it cannot be read ({error})") from error


def _entries(folder: Path, prefix: str) -> list[tuple[str, Any]]:
    """Return (relative name, what is there) of everything below *folder*."""
    import os
    from pathlib import Path

    found: list[tuple[str, Any]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name, place = f"{prefix}{entry.name}", Path(entry.path)
            if entry.is_symlink():
                found.append(
                    (
                        name,
                        [
                            "link",
                            os.readlink(entry.path),  # noqa: PTH115 - as text, also where it dangles
                        ],
                    )
                )
            elif entry.is_dir():
                found.append((name, ["folder"]))
                found += _entries(place, f"{name}/")
            else:
                executable = bool(entry.stat().st_mode & stat.S_IXUSR)
                found.append((name, ["file", executable, _of_file(place)]))
    return found


def _of_file(path: Path) -> str:
    before = path.stat()
    if not stat.S_ISREG(before.st_mode):  # reading a pipe would wait for ever
        raise FingerprintError(str(path), "it is neither a file, a folder nor a link")
    content = digest_file(path)
    after = path.stat()
    if _signature(before) != _signature(after):
        raise FingerprintError(str(path), "it changed while it was read; stop what writes to it")
    return content


def _signature(status: Any) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
