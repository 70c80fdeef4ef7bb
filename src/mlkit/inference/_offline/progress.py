"""Telling how far a job is: a bar in a terminal, or a function of your own."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from mlkit._optional import installed, require
from mlkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["how_many", "reporter"]

_QUICK = 0.5  # seconds; a job that is over by then shows no bar that nobody asked for


def reporter(
    progress: bool | Callable[[int], object] | None,  # noqa: FBT001 - the public argument as it came
    rows: Iterable[Any],
    name: str,
) -> tuple[Callable[[int], object] | None, Callable[[], object] | None]:
    """Return what to call with the number of rows just finished and what to call at the end, each None if nothing is."""
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise ConfigurationError(
            "map_batches(progress=...)", progress, "True, False, None or a callable"
        )
    if callable(progress):
        return progress, None
    if progress is None:
        if not _in_terminal() or not installed("tqdm"):
            return None, None
    elif not progress:
        return None, None
    tqdm = require("tqdm", extra="progress", feature="map_batches(progress=True)")
    bar = tqdm.tqdm(
        total=how_many(rows), unit="row", desc=name, delay=_QUICK if progress is None else 0
    )
    return bar.update, bar.close


def how_many(rows: Iterable[Any]) -> int | None:
    """Return how many *rows* there are, if they can say so."""
    try:
        return len(rows)  # type: ignore[arg-type]
    except TypeError:
        return None


def _in_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # none, or closed
        return False
