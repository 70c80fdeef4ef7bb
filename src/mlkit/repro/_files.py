"""Small JSON files that are whole or not there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from os import PathLike

    from mlkit.errors import ReproError

__all__ = ["read_json", "write_json"]


def write_json(path: str | PathLike[str], data: object) -> None:
    """Write *data* to *path* in one step, readable by people."""
    import json
    import os
    from pathlib import Path

    target = Path(path)
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        content = text.encode()
    except UnicodeEncodeError:  # bytes of a command line or path that are no UTF-8
        content = (json.dumps(data, indent=1, allow_nan=False) + "\n").encode()
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
