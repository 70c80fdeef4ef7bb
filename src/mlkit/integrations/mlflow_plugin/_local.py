"""The runs of the plug-in on this machine: begun, gone on with and written to, each in a folder of `mlkit.tracking`."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast, final

from mlkit._clock import current
from mlkit.errors import ConfigurationError, TrackingError
from mlkit.integrations.mlflow_plugin._backend import RUN_TAG, is_ours
from mlkit.integrations.mlflow_plugin._calls import note
from mlkit.integrations.mlflow_plugin._refusals import not_active, unknown_run
from mlkit.tracking import Delivery, Run, start_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Literal

    from mlkit.integrations.mlflow_plugin._backend import Backend

    Durability = Literal["process", "group", "record"]
    Shipper = Literal["process", "thread", "none"]

__all__ = ["Local", "flush_all", "let_go_all"]

_ENDED = ("FINISHED", "FAILED", "KILLED")
_DEEPEST = 8  # of runs in runs in runs
_stores: list[Local] = []


class _Open(NamedTuple):
    run: Run
    late: bool  # the run has ended, and something was logged after that


@final
class Local:
    """The runs of one tracking address.

    Thread-safe. A forked child goes on with its parent's runs.

    Args:
        backend: The store that is wrapped.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.root = Path(os.environ.get("MLKIT_MLFLOW_ROOT") or "runs").absolute()
        self._durability = _choice("MLKIT_MLFLOW_DURABILITY", ("process", "group", "record"))
        self._shipper = _choice("MLKIT_MLFLOW_SHIPPER", ("process", "thread", "none"))
        self._lock = threading.RLock()
        self._open: dict[str, _Open] = {}
        self._folders: dict[str, Path] = {}
        self._undelivered: dict[str, Run] = {}
        self.adopted_params: dict[str, dict[str, str]] = {}
        self._owner = os.getpid()
        _stores.append(self)

    def create(self, experiment: str, name: str, parent: str | None, call: dict[str, Any]) -> str:
        """Begin a run and return its id. *call* says how MLflow shall make it.

        Raises:
            ConfigurationError: If the folder of the runs cannot be written to.
        """
        with self._lock:
            self._close_late()
            above = self._open.get(parent) if parent else None
            if above is not None and not above.late:
                run = above.run.child(name)
            else:
                run = self._start(experiment, name=name)
            self._keep(run, late=False)
        self.note(run.id, call)
        return run.id

    def folder(self, run_id: str) -> Path | None:
        """Return the folder of a run, None if there is none on this machine."""
        if run_id not in self._folders:
            place = next((one for one in self._places(run_id) if (one / "run.json").exists()), None)
            if place is None:
                return None
            self._folders[run_id] = place
        return self._folders[run_id]

    def run(self, run_id: str, *, status: str | None = None) -> Run:
        """Return a run to write to, gone on with if need be.

        Args:
            run_id: Our id, or MLflow's.
            status: What the run is from now on, if that is what will be written.

        Raises:
            MlflowException: If it is neither here nor in MLflow.
        """
        with self._lock:
            held = self._open.get(run_id)
            if held is not None:
                if status == "RUNNING":
                    self._open[run_id] = _Open(held.run, late=False)
                return held.run
            place = self.folder(run_id)
            if place is not None:
                about = json.loads((place / "run.json").read_text("utf-8"))
                run = self._start(about["experiment"], resume=str(place))
            else:
                run_id, experiment, call = self._adopt(run_id)
                if run_id in self._open:
                    return self._open[run_id].run
                run = self._start(experiment, run_id=run_id)
                note(run, call)
            return self._keep(run, late=status != "RUNNING")

    def note(self, run_id: str, call: dict[str, Any], *, status: str | None = None) -> None:
        """Write down a call of MLflow that is no metric, param or artifact."""
        note(self.run(run_id, status=status), call)

    def end(self, run_id: str, status: str) -> None:
        """Let go of a run that has ended; it is delivered without us."""
        with self._lock:
            held = self._open.pop(run_id, None)
        if held is not None:
            wait = 0.0  # nobody waits for a server here
            held.run.close(cast("Any", status if status in _ENDED else "FINISHED"), timeout=wait)

    def flush(self, timeout: float) -> Delivery:
        """Wait for the delivery of what this process has written, and say what has become of it."""
        deadline = current().monotonic() + timeout
        with self._lock:
            self._close_late()
            # What is said of a run is said of those nested in it, too.
            places = {run.dir for run in self._undelivered.values()}
            waiting = [
                (run_id, run)
                for run_id, run in self._undelivered.items()
                if places.isdisjoint(run.dir.parents)
            ]
        total = Delivery(0, 0, 0, 0)
        for run_id, run in waiting:
            one = run.flush(max(0.0, deadline - current().monotonic()))
            total = _sum(total, one)
            with self._lock:
                for other, nested in list(self._undelivered.items()):
                    inside = other == run_id or run.dir in nested.dir.parents
                    if inside and other not in self._open and not one.pending:
                        del self._undelivered[other]
        return total

    def flush_one(self, run_id: str, timeout: float) -> Delivery | None:
        """Wait for the delivery of one run, if this process has written to it."""
        with self._lock:
            run = self._undelivered.get(run_id)
        return None if run is None else run.flush(timeout)

    def let_go(self) -> None:
        """Close what is open, at the end of the interpreter."""
        if os.getpid() != self._owner:
            return
        for run_id, held in list(self._open.items()):
            # A run that a client has made goes on for MLflow when the client's process has ended.
            if not held.late:
                self.note(run_id, {"call": "let_go"})
            self._open.pop(run_id)
            held.run.close(timeout=10.0 if self._shipper == "thread" else 0.0)

    def _keep(self, run: Run, *, late: bool) -> Run:
        self._open[run.id] = _Open(run, late)
        self._folders[run.id] = run.dir
        self._undelivered[run.id] = run
        return run

    def _close_late(self) -> None:
        for run_id in [run_id for run_id, held in self._open.items() if held.late]:
            self._open.pop(run_id).run.close(timeout=0.0)

    def _start(self, experiment: str, **options: Any) -> Run:
        return start_run(
            experiment,
            root=self.root,
            sinks=[f"mlflow-store:{self.backend.uri}"],
            durability=cast("Durability", self._durability),
            shipper=cast("Shipper", self._shipper),
            **options,
        )

    def _places(self, run_id: str) -> Iterator[Path]:
        """Yield where the folder of a run may be: a nested one is in that of its parent."""
        yield self.root / run_id
        above = "*/"
        for _ in range(_DEEPEST if is_ours(run_id) else 0):
            above += "children/"
            yield from self.root.glob(above + run_id)
            above += "*/"

    def _adopt(self, run_id: str) -> tuple[str, str, dict[str, Any]]:
        """Mark a run of MLflow so that its journal finds it again.

        Returns:
            Its id here, the name of its experiment, and what is known of it.

        Raises:
            MlflowException: If it is not there, or cannot be asked for now.
        """
        from mlflow.entities import RunTag

        theirs = self.backend.find(run_id)
        if theirs is None:
            raise unknown_run(run_id)
        run = self.backend.call("get_run", theirs)
        if run.info.lifecycle_stage != "active":
            raise not_active(run_id, run.info.lifecycle_stage)
        name = self.backend.call("get_experiment", run.info.experiment_id).name
        known = run.data.tags.get(RUN_TAG)
        if known is None:
            known = theirs
            self.backend.call("set_tag", theirs, RunTag(RUN_TAG, theirs))
        self.backend.learn(known, theirs)
        self.adopted_params[known] = dict(run.data.params)
        call = {
            "call": "adopted",
            "experiment_id": run.info.experiment_id,
            "user_id": run.info.user_id,
            "start_time": run.info.start_time,
            "run_name": run.info.run_name,
            "status": run.info.status,
            "end_time": run.info.end_time,
            "tags": dict(run.data.tags),
        }
        return known, str(name), call


def flush_all(timeout: float) -> Delivery:
    """Wait for the delivery of the runs of all addresses."""
    deadline = current().monotonic() + timeout
    total = Delivery(0, 0, 0, 0)
    for store in _stores:
        total = _sum(total, store.flush(max(0.0, deadline - current().monotonic())))
    return total


def let_go_all() -> None:
    """Close what is open, at the end of the interpreter."""
    for store in _stores:
        try:
            store.let_go()
        except TrackingError:
            continue  # the folder is gone, say, and nobody is left to be told


def _sum(one: Delivery, other: Delivery) -> Delivery:
    reasons = "; ".join(sorted({part for part in (one.reason, other.reason) if part}))
    return Delivery(
        acked=one.acked + other.acked,
        delivered=one.delivered + other.delivered,
        pending=one.pending + other.pending,
        dead_lettered=one.dead_lettered + other.dead_lettered,
        lost=one.lost + other.lost,
        reason=reasons,
    )


def _choice(variable: str, allowed: tuple[str, ...]) -> str:
    value = os.environ.get(variable) or allowed[0]
    if value not in allowed:
        raise ConfigurationError(variable, value, " or ".join(repr(one) for one in allowed))
    return value
