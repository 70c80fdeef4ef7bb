"""Who runs the lanes: a process of its own, threads on request, or the caller of `sync`."""

from __future__ import annotations

import os
import sys
import threading
from contextvars import copy_context
from typing import TYPE_CHECKING, TypeAlias, final

from mlkit._arguments import seconds
from mlkit._clock import current
from mlkit.telemetry import emit
from mlkit.tracking._delivery import Delivery, delivery_of, merged
from mlkit.tracking._folder import Folder, folder_of
from mlkit.tracking._sink import Sink, make_sinks, maker, sink_key

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "NoShipper",
    "OtherShipper",
    "ProcessShipper",
    "Shipper",
    "ThreadShipper",
    "ship",
    "sync",
]


@final
class NoShipper:
    """Nobody ships: there is no sink, or `sync` shall do it later."""

    def why_idle(self) -> str:
        """Return that nobody was asked to."""
        return "no shipper was asked for"

    def let_go(self) -> None:
        """Do nothing."""

    def wake_children(self, folder: Folder) -> None:
        """Do nothing."""


@final
class OtherShipper:
    """Another process of the run ships, the one of rank 0."""

    def why_idle(self) -> str:
        """Return nothing: it cannot be seen from here."""
        return ""

    def let_go(self) -> None:
        """Do nothing."""

    def wake_children(self, folder: Folder) -> None:
        """Do nothing: a shipper that is a process looks for nested runs by itself."""


@final
class ProcessShipper:
    """A process that reads what the training process writes. Nothing is handed over, so nothing can block.

    Args:
        folder: The run.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._problem = ""
        self._let_go = False

    def start(self) -> None:
        """Start it. One that cannot be started is an event, not an error."""
        import subprocess

        # -P: a `code.py` in the working folder is not for the shipper to import.
        command = [sys.executable, "-P", "-m", "mlkit.tracking._ship", str(self._folder.path)]
        path = os.pathsep.join(part for part in sys.path if part and isinstance(part, str))
        try:
            with (self._folder.path / "shipper.log").open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603 - our own module
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "PYTHONPATH": path},
                    start_new_session=True,  # it outlives a SIGKILL or Ctrl-C of the training's process group
                )
        except OSError as error:
            self._problem = f"{type(error).__name__}: {error}"
            emit("tracking.shipper.failed", self._folder.path.name, error=type(error).__name__)

    def why_idle(self) -> str:
        """Return how it ended, if it has."""
        process = self._process
        if process is None:
            return f"the shipper could not be started ({self._problem})"
        if os.getpid() != self._owner or process.poll() is None:
            return ""
        return f"the shipper has ended with status {process.returncode}, see shipper.log"

    def let_go(self) -> None:
        """Have it reaped when it ends; until then it goes on."""
        process = self._process
        if self._let_go or process is None or os.getpid() != self._owner:
            return
        self._let_go = True
        if process.poll() is not None:
            return
        try:
            threading.Thread(target=process.wait, daemon=True, name="mlkit-reaper").start()
        except RuntimeError:  # the interpreter is shutting down
            process.returncode = 0  # or Popen would warn of a process that is meant to go on

    def wake_children(self, folder: Folder) -> None:
        """Do nothing: the process looks for nested runs by itself."""


@final
class ThreadShipper:
    """Threads of this process, one per run and sink, for sinks that are objects or processes that are forbidden.

    Args:
        makers: What makes each sink of the run, by its address.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Sink]]) -> None:
        self._makers = makers
        self._threads: list[threading.Thread] = []

    def start(self, folder: Folder, *, nested: bool = False) -> None:
        """Start the threads of a run."""
        from mlkit.tracking._lane import Lane

        for uri, make in self._makers.items():
            # A sink object holds one run; for a nested one another is made of its address.
            key = sink_key(uri)
            lane = Lane(folder, key, maker(uri) if nested else make)
            context = copy_context()
            thread = threading.Thread(
                target=context.run, args=(lane.run,), daemon=True, name=f"mlkit-{key}"
            )
            thread.start()
            self._threads.append(thread)

    def why_idle(self) -> str:
        """Return that the threads have ended, if all have."""
        if any(thread.is_alive() for thread in self._threads):
            return ""
        return "the shipper's threads have ended"

    def let_go(self) -> None:
        """Do nothing: the threads end when the run is delivered."""

    def wake_children(self, folder: Folder) -> None:
        """Start threads for a nested run."""
        self.start(folder, nested=True)


Shipper: TypeAlias = "NoShipper | OtherShipper | ProcessShipper | ThreadShipper"


def ship(path: Path) -> None:
    """Deliver a run and all nested in it, until nobody writes to them any more.

    Args:
        path: The run's folder.
    """
    from mlkit.tracking._lane import Lane

    root = Folder(path)
    known: set[Path] = set()
    threads: list[threading.Thread] = []
    while True:
        # Asked before looking for nested runs: who dies between the two has made them before.
        alive = root.alive()
        for folder in root.family():
            # A nested run without a journal is just being made: its lane would find nobody alive.
            if folder.path in known or not folder.writers():
                continue
            known.add(folder.path)
            # A sink that was added to a run is its old nested runs' sink, too.
            for uri in dict.fromkeys([*root.load()[1], *folder.load()[1]]):
                lane = Lane(folder, sink_key(uri), maker(uri))
                threads.append(threading.Thread(target=lane.run, daemon=True))
                threads[-1].start()
        if not alive and not any(thread.is_alive() for thread in threads):
            return
        current().sleep(0.1)


def sync(
    run: str | os.PathLike[str],
    *,
    sinks: Sequence[str | Sink] | None = None,
    timeout: float = 60.0,
) -> Delivery:
    """Deliver what is left of a run and of those nested in it: after a crash, an outage, or to a sink added later.

    It works in this process, with a thread per run and sink. A run whose writers have died is
    marked as killed. Another shipper that is at work is waited for. Calling it again is harmless.

    Args:
        run: The run's folder, `run.dir`; a copy on another machine will do.
        sinks: Where to deliver; by default the sinks that the run was started with.
        timeout: Seconds until it returns anyway, at least 0; with 0 nothing is delivered. What a sink is in the middle of
            then goes on in its thread: a batch, or an import.

    Returns:
        What has been delivered and what has not, summed over the runs.

    Raises:
        RunNotFoundError: If there is no run in that folder.
        ConfigurationError: If the run is no path, or a sink or the timeout is wrong.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mlkit.tracking import start_run
        >>> root = Path(tempfile.mkdtemp())
        >>> with start_run("doc", root=root) as run:
        ...     run.log_metric("loss", 0.5)
        >>> sync(run.dir, sinks=[f"jsonl:{root / 'export'}"]).delivered
        3
    """
    from mlkit.tracking._lane import Lane

    allowed = seconds("sync(timeout=...)", timeout, zero=True, endless=True)
    root = folder_of("sync(run)", run)
    _, uris = root.load()
    chosen = [] if sinks is None else make_sinks("sync(sinks=...)", sinks)
    if sinks is not None:
        uris = [sink.uri for sink in chosen]
    keys = [sink_key(uri) for uri in uris]
    lanes = []
    for folder in root.family():
        for index, (uri, key) in enumerate(zip(uris, keys, strict=True)):
            # A sink object holds one run; for a nested one another is made of its address.
            given = chosen[index] if chosen and folder.path == root.path else None
            lanes.append(Lane(folder, key, maker(uri, given), once=True, patience=allowed))
    threads = [
        threading.Thread(target=copy_context().run, args=(lane.run,), daemon=True) for lane in lanes
    ]
    deadline = current().monotonic() + allowed
    for thread in threads if allowed else ():  # nobody would wait for the client that they import
        thread.start()
    pause = 0.005
    while any(thread.is_alive() for thread in threads) and current().monotonic() < deadline:
        current().sleep(pause)
        pause = min(2 * pause, 0.05)
    for lane in lanes:
        lane.stop()
    each = {str(folder.path): delivery_of(folder, uris, keys) for folder in root.family()}
    return merged(each, worst=False)
