"""Files that MLflow keeps: a database that several find empty at once, and artifacts whose names get into each other's way."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from errno import ENAMETOOLONG
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlkit._clock import current
from mlkit._suggest import clip
from mlkit.errors import SinkRejectedError, SinkUnavailableError
from mlkit.integrations.mlflow._answers import translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["SQLITE", "alone", "database_file", "placed"]

SQLITE = "sqlite:///"
# Seconds: one that was frozen while it made its tables must not stop the others for good.
_PATIENCE = 60.0


def database_file(tracking_uri: str) -> Path | None:
    """Return the absolute path of an embedded database, None for anything else."""
    path, _, query = tracking_uri.removeprefix(SQLITE).partition("?")
    if not tracking_uri.startswith(SQLITE) or not path or query or path == ":memory:":
        return None
    return Path(path).absolute()


@contextmanager
def alone(tracking_uri: str) -> Iterator[None]:
    """Context manager: no other process or thread of ours opens a database of the same folder meanwhile.

    MLflow makes the tables of a new one when it opens it, without a lock; two who do so at once can leave a database that
    nobody opens any more. The lock is on the folder, so that no file is left behind.
    """
    file = database_file(tracking_uri)
    try:
        folder = -1 if file is None else os.open(file.parent, os.O_RDONLY)
    except OSError:
        folder = -1  # MLflow says what is wrong with it
    try:
        if folder >= 0:
            _lock(folder)
        yield
    finally:
        if folder >= 0:
            os.close(folder)


def _lock(folder: int) -> None:
    deadline = current().monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if current().monotonic() >= deadline:
                return
            current().sleep(0.05)
        except OSError:  # a file system without locks
            return
        else:
            return


@contextmanager
def placed(name: str, listed: Callable[[str | None], Iterable[Any]]) -> Iterator[None]:
    """Context manager around the upload of an artifact.

    A journal has artifacts `a` and `a/b` side by side, folders do not. Their error is one of the moment for all that it says.

    Args:
        name: The artifact's name.
        listed: What is in a folder of the run's artifacts, as MLflow's repositories tell it.

    Raises:
        SinkRejectedError: If the name is too long, or another artifact is where a folder would have to be, or the other way.
        SinkUnavailableError: If it is for another reason that MLflow does not take it.
    """
    try:
        with translated():
            yield
    except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise _refused(name, "another artifact is in its way") from error
    except SinkUnavailableError as error:
        if _is_in_the_way(name, listed):
            raise _refused(name, "another artifact is in its way") from error
        raise
    except OSError as error:
        if error.errno == ENAMETOOLONG:
            raise _refused(name, "the name is too long") from error
        raise


def _refused(name: str, why: str) -> SinkRejectedError:
    return SinkRejectedError(f"artifact {clip(name)!r} cannot be kept there: {why}")


def _is_in_the_way(name: str, listed: Callable[[str | None], Iterable[Any]]) -> bool:
    """Return whether a file is where a folder of *name* should be, or a folder where the file should be."""
    parts = name.split("/")
    # A server that says 500 may drop the connection, of which the next request hears.
    for _ in range(2):
        try:
            return any(_is_other_kind(parts, depth, listed) for depth in range(1, len(parts) + 1))
        except Exception:  # noqa: BLE001, S112 - who cannot be asked is away, and that was the question
            continue
    return False


def _is_other_kind(
    parts: list[str], depth: int, listed: Callable[[str | None], Iterable[Any]]
) -> bool:
    """Return whether what has the name of the first *depth* parts is a file and should be a folder, or the other way."""
    here, above = "/".join(parts[:depth]), "/".join(parts[: depth - 1]) or None
    return any(one.path == here and one.is_dir == (depth == len(parts)) for one in listed(above))
