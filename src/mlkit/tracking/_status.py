"""How the runs of a folder stand: what each sink has of them, and who is still at work."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mlkit.tracking import _frames
from mlkit.tracking._delivery import Delivery, delivery_of
from mlkit.tracking._folder import Folder, folder_of, is_locked
from mlkit.tracking._records import begin, walk
from mlkit.tracking._sink import sink_key

if TYPE_CHECKING:
    import os
    from pathlib import Path

__all__ = ["RunStatus", "find_runs", "status"]


class RunStatus(NamedTuple):
    """How one run stands; nested runs have their own.

    Attributes:
        id: Its id.
        experiment: What it belongs to.
        name: Its name.
        parent: Id of the run it is nested in, or None.
        status: As `RunData.status`.
        dir: Its folder.
        writers: Process ids of those who still write to it, on this machine.
        shipping: Addresses of the sinks that somebody delivers to at this moment.
        delivery: What of it has been delivered.
        torn_bytes: As `RunData.torn_bytes`.
    """

    id: str
    experiment: str
    name: str
    parent: str | None
    status: str
    dir: Path
    writers: tuple[int, ...]
    shipping: tuple[str, ...]
    delivery: Delivery
    torn_bytes: int

    @property
    def complete(self) -> bool:
        """Whether every record is where it should be and no journal file is damaged."""
        return self.delivery.complete and not self.torn_bytes


def find_runs(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the folders of the runs in a folder, those started first first.

    Args:
        folder: The `root` of runs, or the folder of one run, which then is the only one.

    Returns:
        A folder for each run, without those of nested runs.

    Raises:
        ConfigurationError: If *folder* is no path.
        RunNotFoundError: If there is no run.

    Examples:
        >>> import tempfile
        >>> from mlkit.tracking import start_run
        >>> root = tempfile.mkdtemp()
        >>> with start_run("doc", root=root) as run:
        ...     pass
        >>> find_runs(root) == find_runs(run.dir) == [run.dir]
        True
    """
    from mlkit.errors import RunNotFoundError

    path = folder_of("find_runs(folder)", folder).path
    try:
        if (path / "run.json").exists():
            return [path]
        found = sorted(one for one in path.iterdir() if (one / "run.json").exists())
    except (OSError, ValueError):  # ValueError of a path with a NUL in it
        found = []
    if not found:
        raise RunNotFoundError(str(path))
    return found


def status(run: str | os.PathLike[str]) -> list[RunStatus]:
    """Return how a run stands, and those nested in it.

    Nothing is changed, nobody is waited for, and no sink is asked: it is all in the run's folder.

    Args:
        run: The run's folder, `run.dir`; a copy on another machine will do.

    Returns:
        The run and then those nested in it.

    Raises:
        ConfigurationError: If the run is no path.
        RunNotFoundError: If there is no run in that folder.
        JournalError: If it was written by a version of mlkit that this one does not understand.

    Examples:
        >>> import tempfile
        >>> from mlkit.tracking import start_run
        >>> with start_run("doc", root=tempfile.mkdtemp(), sinks=["jsonl:out"], shipper="none") as run:
        ...     _ = run.close(timeout=0)
        >>> [one] = status(run.dir)
        >>> one.status, one.delivery.pending, one.writers
        ('FINISHED', 2, ())

    Note:
        It reads the journal once, and again for each sink what that sink does not have.
    """
    root = folder_of("status(run)", run)
    _, uris = root.load()
    found = []
    for folder in root.family():
        info, own = folder.load()
        # As the shipper sees it: a sink that was added to a run is its old nested runs' sink, too.
        wanted = list(dict.fromkeys([*uris, *own]))
        keys = [sink_key(uri) for uri in wanted]
        writers = tuple(_process(path) for path in folder.writers() if is_locked(path))
        said, torn = _ending(folder)
        found.append(
            RunStatus(
                info.id,
                info.experiment,
                info.name,
                info.parent,
                "KILLED" if said == "RUNNING" and not writers else said,
                folder.path,
                writers,
                tuple(
                    uri
                    for uri, key in zip(wanted, keys, strict=True)
                    if is_locked(folder.sinks / key / "lock")
                ),
                delivery_of(folder, wanted, keys),
                torn,
            )
        )
    return found


def _process(path: Path) -> int:
    """Return whose file it is; its name says so."""
    parts = path.stem.split("-")
    return int(parts[1]) if len(parts) == 3 and parts[1].isdecimal() else 0


def _ending(folder: Folder) -> tuple[str, int]:
    """Return the last status that was written, and the bytes behind the last whole frame of each file."""
    import json

    last, torn = (-1, "RUNNING"), 0
    for path in folder.writers():
        size, end = path.stat().st_size, begin(path)
        for one in walk(path, 0):
            end = one.end
            if one.kind == _frames.STATUS:
                at, content = json.loads(one.payload)
                last = max(last, (at, content["status"]), key=lambda pair: pair[0])
        torn += max(0, size - end)
    return last[1], torn
