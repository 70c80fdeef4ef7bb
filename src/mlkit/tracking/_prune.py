"""Removal of what every sink has: the points of finished journal files, but for the last of each metric."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mlkit.tracking import _frames
from mlkit.tracking._delivery import Cursor
from mlkit.tracking._folder import folder_of, is_locked, sync_path
from mlkit.tracking._frames import metric_values, series_keys
from mlkit.tracking._records import walk
from mlkit.tracking._sink import sink_key

if TYPE_CHECKING:
    from pathlib import Path

    from mlkit.tracking._folder import Folder

__all__ = ["PRUNED", "prune"]

PRUNED = "mlkit.pruned."
"""Before the name of a file in the tag that says how many of its points were removed."""


def prune(run: str | os.PathLike[str]) -> int:
    """Remove the points that every sink has from the journals of a run and of those nested in it.

    A journal file is looked at once nobody writes to it any more: a process goes on in a new one after 64 MiB. Params,
    tags, artifacts and the last point of each metric stay, and `RunData.pruned_points` says how many others
    there were. A run without sinks is left as it is, and so is a file that is damaged or that some sink has not
    all of. A sink that is added later gets what is still there.

    Args:
        run: The run's folder, `run.dir`.

    Returns:
        How many points were removed; none from a file that would hardly get shorter.

    Raises:
        ConfigurationError: If the run is no path.
        RunNotFoundError: If there is no run in that folder.
        OSError: If a journal file cannot be replaced; it is then as it was.

    Examples:
        >>> import tempfile
        >>> from mlkit.tracking import start_run, sync
        >>> root = tempfile.mkdtemp()
        >>> with start_run("doc", root=root) as run:
        ...     run.log_points({"loss": range(100)}, steps=range(100))
        >>> prune(run.dir)
        0
        >>> _ = sync(run.dir, sinks=[f"jsonl:{root}/out"])
        >>> prune(run.dir)
        99
    """
    root = folder_of("prune(run)", run)
    _, uris = root.load()
    return sum(_prune_one(folder, uris) for folder in root.family())


def _prune_one(folder: Folder, uris: list[str]) -> int:
    _, own = folder.load()
    keys = {sink_key(uri) for uri in [*uris, *own]}
    if folder.sinks.is_dir():  # and those that `sync` was told of
        keys |= {place.name for place in folder.sinks.iterdir()}
    cursors = [Cursor(folder.sinks / key) for key in keys]
    removed = 0
    for path in folder.writers():
        size = path.stat().st_size
        delivered = bool(cursors) and all(cursor.done(path.name) >= size for cursor in cursors)
        if delivered and not is_locked(path):
            removed += _rewrite(path, size)
    return removed


def _rewrite(path: Path, size: int) -> int:
    """Replace a file by one without its points, and return how many there were."""
    kept, removed, end, last_time = _worth_keeping(path)
    if not removed or end != size:
        return 0
    said = {f"{PRUNED}{path.stem}": str(removed)}
    data = _frames.MAGIC + b"".join(kept) + _frames.json_frame(_frames.TAGS, last_time, said)
    if len(data) >= size:
        return 0  # little is gained, and a cursor must not stand inside the file
    fresh = path.with_name(f"{path.stem}.{os.getpid()}.pruned")
    try:
        fresh.write_bytes(data)
        sync_path(fresh)
        fresh.replace(path)
        sync_path(path.parent)
    finally:
        fresh.unlink(missing_ok=True)
    return removed


def _worth_keeping(path: Path) -> tuple[list[bytes], int, int, int]:
    """Return the frames to keep, how many points the others hold, where the last ends, and a time for what is added."""
    series: dict[int, list[str]] = {}
    last: dict[str, int] = {}  # by metric, where the frame of its last point ends
    before = end = last_time = 0
    for one in walk(path, 0):
        end = one.end
        if one.kind == _frames.SERIES:
            number, keys = series_keys(one.payload)
            series[number] = keys
        elif one.kind == _frames.METRICS:
            number, _, last_time, _ = metric_values(one.payload)
            last |= dict.fromkeys(series[number], end)
        else:
            # Earlier counts are of this file, too: they are added up.
            before += _pruned_in(one, path.stem)
    wanted, kept, removed = set(last.values()), [], 0
    for one in walk(path, 0):
        if one.kind == _frames.METRICS and one.end not in wanted:
            removed += _frames.count_records(one)
        else:
            kept.append(_frames.frame(one.kind, one.payload))
    return kept, removed + before if removed else 0, end, last_time


def _pruned_in(one: _frames.Frame, stem: str) -> int:
    import json

    if one.kind != _frames.TAGS:
        return 0
    return int(json.loads(one.payload)[1].get(f"{PRUNED}{stem}", 0))
