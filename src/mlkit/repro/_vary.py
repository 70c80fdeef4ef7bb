"""What is changed for one run, and put back: threads, the order of file listings, workers of data loaders."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from mlkit.repro._generators import loaded_torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from typing import Self

    from mlkit.repro._trace import Trace

__all__ = ["Change", "listed_backwards", "other_threads", "unchanged", "workers"]

# Takes the trace of the run; gives what it changed, as words.
Change: TypeAlias = "Callable[[Trace], AbstractContextManager[str]]"


@contextmanager
def unchanged(_: Trace) -> Iterator[str]:
    """Change nothing."""
    yield ""


@contextmanager
def other_threads(_: Trace) -> Iterator[str]:
    """Let torch use another number of threads."""
    torch: Any = loaded_torch()
    before = torch.get_num_threads()
    others = 1 if before > 1 else min(4, max(2, os.cpu_count() or 2))
    torch.set_num_threads(others)
    try:
        yield f"{others} threads instead of {before}"
    finally:
        torch.set_num_threads(before)


@contextmanager
def listed_backwards(_: Trace) -> Iterator[str]:
    """Let the system list folders the other way round: no file system promises an order."""
    listdir, scandir = os.listdir, os.scandir

    class Backwards:
        """What `os.scandir` gives: an iterator that is a context manager, too."""

        def __init__(self, *args: Any, **named: Any) -> None:
            with scandir(*args, **named) as entries:
                self._entries = iter([*entries][::-1])

        def __iter__(self) -> Self:
            return self

        def __next__(self) -> Any:
            return next(self._entries)

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

        def close(self) -> None:
            self._entries = iter(())

    patched: Any = os
    patched.listdir = lambda *args, **named: listdir(*args, **named)[::-1]
    patched.scandir = Backwards
    try:
        yield "folders listed the other way round"
    finally:
        patched.listdir, patched.scandir = listdir, scandir


def workers(count: int) -> Change:
    """Return what gives every data loader *count* worker processes, and takes its batches for operations."""

    @contextmanager
    def change(trace: Trace) -> Iterator[str]:
        from torch.utils.data import DataLoader

        made = DataLoader.__iter__

        def batches(loader: Any) -> Iterator[Any]:
            own = loader.__dict__
            before = {name: own[name] for name in ("num_workers", "prefetch_factor", "timeout")}
            own |= {"num_workers": count, "prefetch_factor": 2 if count else None}
            if not count:  # a loader without workers refuses one
                own["timeout"] = 0
            try:
                # Without workers the items are made here, with operations that a worker runs unseen.
                with trace.paused():
                    found = made(loader)
                    own |= before
                while True:
                    with trace.paused():
                        batch = next(found, _END)
                    if batch is _END:
                        return
                    trace.note("DataLoader", batch)
                    yield batch
            finally:
                own |= before

        patched: Any = DataLoader
        patched.__iter__ = batches
        try:
            yield f"{count} workers instead of 0"
        finally:
            patched.__iter__ = made

    return change


_END = object()
