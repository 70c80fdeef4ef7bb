"""How a run ends: the line that says where it is, and the run that a notebook left open."""

from __future__ import annotations

import sys
import warnings
import weakref
from typing import TYPE_CHECKING

from mlkit.errors import TrackingWarning

if TYPE_CHECKING:
    from mlkit.tracking._delivery import Delivery
    from mlkit.tracking._run import Run

__all__ = ["close_left_open", "last_line", "remember", "tell"]

_open_run: list[weakref.ref[Run]] = []


def last_line(run: Run, status: str, delivery: Delivery) -> str:
    """Return in one line how a run ended, where it is, and what of it was delivered."""
    parts = []
    for uri, one in delivery.sinks.items():
        rest = [f"{one.pending} pending"] if one.pending else []
        rest += [f"{one.dead_lettered} refused"] if one.dead_lettered else []
        # Of an address the scheme alone: the rest may hold a password.
        parts.append(f"{uri.partition(':')[0]} has {', '.join([str(one.delivered), *rest])}")
    lost = f", {delivery.lost} lost" if delivery.lost else ""
    sinks = f"; {'; '.join(parts)}" if parts else ""
    return f"run {run.id} {status}: {delivery.acked} records in {run.dir}{lost}{sinks}"


def tell(line: str) -> None:
    """Print *line* where a person watches; elsewhere it goes to the logger `mlkit.tracking`."""
    stream = sys.stderr
    try:
        watched = stream is not None and (stream.isatty() or in_notebook())
        if watched:
            stream.write(f"{line}\n")
            return
    except (OSError, ValueError):  # a terminal that is gone
        return
    if "logging" in sys.modules:  # or nobody can have asked for it
        import logging

        logging.getLogger("mlkit.tracking").info(line)


def in_notebook() -> bool:
    """Return whether this is an interactive IPython, whose cells are run again and again."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return shell is not None and shell() is not None


def remember(run: Run) -> None:
    """Keep in mind that a run was started in a notebook."""
    if in_notebook():
        _open_run[:] = [weakref.ref(run)]


def close_left_open() -> None:
    """Close the run that an earlier cell of the notebook started and did not close."""
    left = _open_run.pop()() if _open_run and in_notebook() else None
    if left is None or not left._is_left_open():  # noqa: SLF001 - the other half of the class
        return
    left.close(timeout=0)
    message = f"run {left.id} was still open and is closed now, because another one is started"
    warnings.warn(message, TrackingWarning, stacklevel=3)
