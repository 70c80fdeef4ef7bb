"""Small files that are whole or not there: JSON, or torch's format for plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlkit._optional import require

if TYPE_CHECKING:
    from os import PathLike

    from mlkit.errors import ReproError

__all__ = ["read_json", "read_torch", "write_json", "write_torch"]


def write_json(path: str | PathLike[str], data: object) -> None:
    """Write *data* to *path* in one step, readable by people."""
    import json

    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        content = text.encode()
    except UnicodeEncodeError:  # bytes of a command line or path that are no UTF-8
        content = (json.dumps(data, indent=1, allow_nan=False) + "\n").encode()
    _write(path, content)


def write_torch(path: str | PathLike[str], data: object) -> None:
    """Write *data* to *path* in one step, for `torch.load(weights_only=True)`.

    Raises:
        MissingDependencyError: If torch is not installed.
    """
    from io import BytesIO

    torch = require("torch", extra="torch", feature="writing a .pt file")
    buffer = BytesIO()
    torch.save(data, buffer)
    _write(path, buffer.getvalue())


def _write(path: str | PathLike[str], content: bytes) -> None:
    import os
    from pathlib import Path

    target = Path(path)
    # Not tempfile, whose files are their owner's alone: colleagues read these.
    scratch = target.with_name(f".{target.name}.{os.urandom(6).hex()}")
    with scratch.open("xb") as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            scratch.replace(target)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise


def read_json(path: str | PathLike[str], error: type[ReproError]) -> Any:
    """Return the data in *path*.

    Raises:
        ReproError: Of kind *error*, if the file is not JSON.
        OSError: If it cannot be read.
    """
    import json
    from pathlib import Path

    try:
        return json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as problem:
        raise error(f"{path}: not a whole JSON file ({problem})") from None


def read_torch(path: str | PathLike[str], error: type[ReproError]) -> Any:
    """Return the plain data in *path*; nothing in the file is run.

    Raises:
        ReproError: Of kind *error*, if the file is not whole, or holds more than plain data and tensors.
        OSError: If it cannot be read.
        MissingDependencyError: If torch is not installed.
    """
    from io import BytesIO
    from pathlib import Path

    torch = require("torch", extra="torch", feature="reading a .pt file")
    content = BytesIO(Path(path).read_bytes())
    try:
        return torch.load(content, weights_only=True)
    except Exception as problem:  # noqa: BLE001 - zip, pickle and torch's C++ each have kinds of their own
        reason = str(problem).partition("\n")[0][:200]
        raise error(
            f"{path}: not a whole file of plain data in torch's format ({reason})"
        ) from None
