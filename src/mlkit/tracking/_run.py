"""A run while it is being recorded."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Literal, final

from mlkit._arguments import one_of, seconds
from mlkit._clock import current
from mlkit.errors import ConfigurationError, RunClosedError, TrackingWarning
from mlkit.telemetry import emit
from mlkit.tracking import _frames
from mlkit.tracking._artifacts import Artifacts
from mlkit.tracking._data import INPUT, OUTPUT, as_ref, as_text
from mlkit.tracking._delivery import shortfall
from mlkit.tracking._ending import last_line, tell
from mlkit.tracking._folder import new_folder, unwritable
from mlkit.tracking._journal import Journal
from mlkit.tracking._listen import Listening
from mlkit.tracking._read import read
from mlkit.tracking._values import (
    artifact_name,
    as_microseconds,
    as_tags,
    check_key,
    flat_params,
    table_of_points,
)
from mlkit.tracking._waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Any, SupportsFloat, SupportsIndex

    from mlkit.tracking._data import DataRef
    from mlkit.tracking._delivery import Delivery
    from mlkit.tracking._folder import Folder
    from mlkit.tracking._records import RunInfo
    from mlkit.tracking._shipper import Shipper

__all__ = ["Run"]

Status = Literal["FINISHED", "FAILED", "KILLED"]


@final
class Run:
    """A run that is being recorded. Made by `start_run`.

    Whatever a logging call was given is in the run's journal when the call returns, and survives
    the process being killed. Delivery to the sinks happens elsewhere. A disk that is full or a
    backend that is away never raises: it is counted in `Delivery` and told as a `tracking.*` event.
    A wrong argument raises at once, and so does logging after `close`.

    Thread-safe. After a fork the child logs into the same run; its `close` closes its own file
    only. Not picklable: in a spawned process call `start_run(..., resume=run.dir, rank=1)`. As a context
    manager it closes the run as finished, or as failed if the block raises, or as killed if it is
    interrupted.
    """

    def __init__(
        self,
        folder: Folder,
        info: RunInfo,
        sinks: Sequence[str],
        durability: str,
        shipper: Shipper,
        *,
        nested: bool = False,
        rank: int = 0,
    ) -> None:
        self._folder, self._info, self._sinks = folder, info, tuple(sinks)
        self._durability, self._shipper, self._nested = durability, shipper, nested
        self._rank, self._entered, self._told = rank, False, False
        self._journal = Journal(
            info.id, folder.journal, durability, f"rank-{rank}/" if rank else ""
        )
        self._listening: list[Listening] = []
        self._waiting = Waiting(folder, self._sinks, shipper, self._journal)
        self._artifacts = Artifacts(folder.artifacts, self._journal, sync=durability != "process")
        self._above: tuple[Run, ...] = ()
        self._owner = os.getpid()

    @property
    def id(self) -> str:
        """The run's id: when it was started, and what makes it unique."""
        return self._info.id

    @property
    def name(self) -> str:
        """The run's name; its id if it was given none."""
        return self._info.name

    @property
    def experiment(self) -> str:
        """What the run belongs to."""
        return self._info.experiment

    @property
    def dir(self) -> Path:
        """The run's folder, for `read` and `sync`."""
        return self._folder.path

    @property
    def step(self) -> int | None:
        """The step that this process has logged last; None before that and after `close`."""
        return self._journal.step

    @property
    def digest(self) -> str:
        """The identity of what the run has computed so far, see `RunData.digest`."""
        return read(self.dir).digest

    def log_metrics(self, metrics: Mapping[str, SupportsFloat], step: int = 0) -> None:
        """Log one point of each of several metrics.

        Args:
            metrics: Numbers by name: floats, integers, bools (as 1 and 0), NumPy scalars, tensors
                of one element. NaN and infinities are kept exactly.
            step: When, in the training's own count, from -2**63 to 2**63 - 1.

        Raises:
            ConfigurationError: If a name is not 1 to 1000 characters of text, a value no single
                number, the step no integer, or *metrics* is empty.
            RunClosedError: If the run is closed.

        Note:
            One `write` of 29 bytes and 8 for each metric; the first with new keys also names them.
        """
        self._journal.metrics(metrics, step)

    def log_points(
        self,
        metrics: Mapping[str, Iterable[SupportsFloat]],
        steps: Iterable[SupportsIndex],
        times: Iterable[SupportsFloat] | None = None,
    ) -> None:
        """Log many points of each of several metrics: a curve that is there already.

        Args:
            metrics: By name, a list, array or tensor of shape (n,) of numbers, see `log_metrics`.
            steps: Their steps, of shape (n,): integers from -2**63 to 2**63 - 1.
            times: When each was, of shape (n,), in Unix seconds; kept to the microsecond, so of points that are
                equal in all, a sink may keep one. By default now, and a millisecond apart where steps are equal.

        Raises:
            ConfigurationError: If an argument is wrong; nothing is logged then.
            RunClosedError: If the run is closed.

        Note:
            A disk that fills up keeps the first points, and `Delivery.lost` counts the others.
        """
        self._check_open()
        keys, rows = table_of_points("Run.log_points", metrics, steps)
        stamps = (
            None if times is None else as_microseconds("Run.log_points(times)", times, len(rows))
        )
        self._journal.points(keys, rows, stamps)

    def log_metric(self, key: str, value: SupportsFloat, step: int = 0) -> None:
        """Log one point of one metric.

        Args:
            key: Its name.
            value: A number, see `log_metrics`.
            step: When, in the training's own count.

        Raises:
            ConfigurationError: If an argument is wrong.
            RunClosedError: If the run is closed.
        """
        self._journal.metrics({key: value}, step)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log what the run was started with. A param never changes; logging it again with the same value is fine.

        Args:
            params: Values by name. Nested mappings are flattened to dotted names. Numbers, text,
                bools, None and lists of them are kept as they are, a set as its sorted list, any
                other value as its `str`.

        Raises:
            ParamConflictError: If one was logged before with another value. None of *params* is
                logged then.
            ConfigurationError: If a name is no text, an integer has more than 4096 bits, or a value
                has no text of its own: that of a function holds an address, which a rerun would not
                reach again.
            RunClosedError: If the run is closed.
        """
        self._check_open()
        self._journal.add_params(flat_params("Run.log_params(params)", params))

    def log_param(self, key: str, value: object) -> None:
        """Log one param.

        Args:
            key: Its name.
            value: Its value, see `log_params`.

        Raises:
            ParamConflictError: If it was logged before with another value.
            ConfigurationError: If an argument is wrong.
            RunClosedError: If the run is closed.
        """
        self.log_params({key: value})

    def set_tags(self, tags: Mapping[str, str | float]) -> None:
        """Say something about the run that may change; the last value of each name counts.

        Args:
            tags: Text, numbers or bools by name; kept as text.

        Raises:
            ConfigurationError: If a name is no text, or a value is something else.
            RunClosedError: If the run is closed.
        """
        self._check_open()
        checked = as_tags("Run.set_tags(tags)", tags)
        if checked:
            self._journal.add(_frames.TAGS, checked, len(checked))

    def set_tag(self, key: str, value: str | float) -> None:
        """Set one tag.

        Args:
            key: Its name.
            value: Its value, see `set_tags`.

        Raises:
            ConfigurationError: If an argument is wrong.
            RunClosedError: If the run is closed.
        """
        self.set_tags({key: value})

    def log_artifact(self, source: str | os.PathLike[str] | bytes, name: str | None = None) -> str:
        """Copy a file, or bytes, into the run.

        Args:
            source: The path of a file, or the content itself.
            name: Its name in the run, a relative path with `/`; by default the file's own. Needed
                for bytes. A name that is used again gets the new content.

        Returns:
            The digest of the content.

        Raises:
            ConfigurationError: If there is no file to read, or the name is missing or would lead
                out of the run.
            RunClosedError: If the run is closed.
        """
        self._check_open()
        return self._artifacts.add("Run.log_artifact", source, name)

    def log_artifacts(
        self, folder: str | os.PathLike[str], name: str | None = None
    ) -> dict[str, str]:
        """Copy all files of a folder and of the folders in it into the run. Links to folders are not followed.

        Args:
            folder: The folder.
            name: Where in the run they go, a relative path with `/`; by default to the top.

        Returns:
            The digest of each, by its name in the run.

        Raises:
            ConfigurationError: If there is no such folder, a file cannot be read, or a name would
                lead out of the run.
            RunClosedError: If the run is closed.
        """
        self._check_open()
        return self._artifacts.add_folder("Run.log_artifacts", folder, name)

    def log_text(self, text: str, name: str) -> str:
        """Keep a text as an artifact, in UTF-8.

        Args:
            text: The text.
            name: Its name in the run, such as `"notes/prompt.txt"`.

        Returns:
            The digest of the content.

        Raises:
            ConfigurationError: If an argument is no text, or the name would lead out of the run.
            RunClosedError: If the run is closed.
        """
        if not isinstance(text, str):
            raise ConfigurationError("Run.log_text(text)", text, "text")
        return self.log_artifact(text.encode("utf-8", "backslashreplace"), name)

    def log_figure(self, figure: object, name: str) -> str:
        """Keep a figure as an artifact.

        Args:
            figure: A figure of Matplotlib or Plotly, or an image of Pillow.
            name: Its name in the run, whose ending says the form: `"roc.png"`, `"roc.svg"`,
                `"roc.html"` for Plotly.

        Returns:
            The digest of the content.

        Raises:
            ConfigurationError: If it is no figure, or cannot be written in that form.
            RunClosedError: If the run is closed.
        """
        from mlkit.tracking._render import figure_bytes

        self._check_open()
        artifact_name("Run.log_figure(name)", name)
        return self.log_artifact(figure_bytes("Run.log_figure(...)", figure, name), name)

    def log_table(self, table: object, name: str) -> str:
        """Keep a table as an artifact.

        Args:
            table: Columns by name, a list of rows by column name, or a data frame of pandas, Polars
                or Arrow.
            name: Its name in the run. The ending says the form: `.json`
                (`{"columns": [...], "data": [[...], ...]}`, as MLflow's own tables), `.csv` or
                `.parquet`.

        Returns:
            The digest of the content.

        Raises:
            ConfigurationError: If it is no table, or the name has another ending.
            MissingDependencyError: If Parquet is asked for and PyArrow is not installed.
            RunClosedError: If the run is closed.
        """
        from mlkit.tracking._render import table_bytes

        self._check_open()
        artifact_name("Run.log_table(name)", name)
        return self.log_artifact(table_bytes("Run.log_table(...)", table, name), name)

    def log_input(
        self,
        name: str,
        data: object = None,
        *,
        fingerprint: str | Callable[[Any], str] | None = None,
        source: str | os.PathLike[str] = "",
        context: str = "",
    ) -> DataRef:
        """Say what data the run reads. The data itself is not kept.

        Args:
            name: What it is called, such as `"train"`. A name that is used again gets the new data.
            data: A file's path, bytes, plain data or a NumPy array; anything for which
                *fingerprint* is a callable; not needed if that is a text.
            fingerprint: Text that is the same for the same content only, or what computes it from
                *data*; by default the SHA-256 of the content.
            source: Where it is; by default the path, if *data* is one.
            context: What it is for, such as `"training"`.

        Returns:
            What was written down.

        Raises:
            ConfigurationError: If an argument is wrong, or no fingerprint can be had.
            DigestError: If *data* has no digest of its own and no fingerprint was passed.
            RunClosedError: If the run is closed.
        """
        ref = as_ref("Run.log_input", data, fingerprint, source, context)
        return self._refer(check_key("Run.log_input(name)", name), INPUT, ref)

    def log_output(
        self,
        name: str,
        data: object = None,
        *,
        fingerprint: str | Callable[[Any], str] | None = None,
        source: str | os.PathLike[str] = "",
        context: str = "",
    ) -> DataRef:
        """Say what data the run has made. The data itself is not kept, see `log_artifact`.

        Args:
            name: What it is called.
            data: As for `log_input`.
            fingerprint: As for `log_input`.
            source: As for `log_input`.
            context: As for `log_input`.

        Returns:
            What was written down.

        Raises:
            ConfigurationError: If an argument is wrong, or no fingerprint can be had.
            DigestError: If *data* has no digest of its own and no fingerprint was passed.
            RunClosedError: If the run is closed.
        """
        ref = as_ref("Run.log_output", data, fingerprint, source, context)
        return self._refer(check_key("Run.log_output(name)", name), OUTPUT, ref)

    def listen(self) -> Listening:
        """Record what the other blocks say about themselves, until the run is closed or the result is.

        Each event becomes a point of the metric `telemetry/<kind>/<name>` that counts them, with the
        numbers among its fields beside it; the other fields of the last one are the tag
        `mlkit.event.<kind>.<name>`. Counters are the metrics `telemetry/<metric>/<label>=<value>`,
        recorded at the end and by `Listening.record`. Never arguments or data: they are in neither.

        Returns:
            What listens, a context manager.

        Raises:
            RunClosedError: If the run is closed.

        Examples:
            >>> import tempfile
            >>> from mlkit.telemetry import emit
            >>> from mlkit.tracking import read, start_run
            >>> with start_run("doc", root=tempfile.mkdtemp()) as run, run.listen():
            ...     emit("resilience.breaker.opened", "ranker", failures=5)
            >>> read(run.dir).metrics["telemetry/resilience.breaker.opened/ranker/failures"][0].value
            5.0
        """
        self._check_open()
        listening = Listening(self._journal)
        self._listening.append(listening)
        return listening

    def child(self, name: str) -> Run:
        """Start a run that is nested in this one, with the same sinks and durability.

        Args:
            name: Its name.

        Returns:
            The new run, to be closed before this one.

        Raises:
            ConfigurationError: If the name is no text.
            RunClosedError: If this run is closed.
        """
        self._check_open()
        check_key("Run.child(name)", name)
        info, folder = new_folder(
            self._folder.children,
            self.experiment,
            name,
            self.id,
            self._sinks,
            sync=self._durability != "process",
        )
        run = Run(
            folder, info, self._sinks, self._durability, self._shipper, nested=True, rank=self._rank
        )
        run._above = (self, *self._above)
        for outer in run._above:
            outer._waiting.journals.append(run._journal)  # noqa: SLF001 - of the same class
        run._start({})
        self._shipper.wake_children(folder)
        return run

    def flush(self, timeout: float = 10.0) -> Delivery:
        """Wait until every sink has what was logged so far, nested runs included, but not for long.

        Args:
            timeout: The longest wait in seconds, at least 0.

        Returns:
            What has been delivered and what has not.

        Raises:
            ConfigurationError: If the timeout is no number of seconds.
        """
        deadline = current().monotonic() + seconds(
            "Run.flush(timeout=...)", timeout, zero=True, endless=True
        )
        if not self._journal.closed and self._durability != "process":
            self._journal.sync()
        return self._waiting.until(deadline)

    def close(self, status: Status = "FINISHED", timeout: float | None = None) -> Delivery:
        """End the run and wait for the sinks, but not for long. Calling it again only waits again.

        Args:
            status: How it ended: `"FINISHED"`, `"FAILED"` or `"KILLED"`.
            timeout: The longest wait in seconds, at least 0; by default 10, and 0 for a nested
                run, which its parent waits for, and for a rank other than 0. What is not delivered then is delivered by the
                shipper as long as it can, or by `sync`.

        Returns:
            What has been delivered and what has not.

        Raises:
            ConfigurationError: If an argument is wrong.
        """
        one_of("Run.close(status)", status, ("FINISHED", "FAILED", "KILLED"))
        waits = not self._nested and not self._rank
        patience = (10.0 if waits else 0.0) if timeout is None else timeout
        seconds("Run.close(timeout=...)", patience, zero=True, endless=True)
        for listening in self._listening:
            listening.close()
        own = os.getpid() == self._owner
        self._journal.close(status if own and (self._nested or not self._rank) else "")
        delivery = self.flush(patience)
        if own and waits and not self._told:
            self._told = True
            tell(last_line(self, status, delivery))
        if not self._nested:
            self._shipper.let_go()
        if not delivery.complete and self._sinks and (waits or timeout is not None):
            emit(
                "tracking.delivery.incomplete",
                self.id,
                pending=delivery.pending,
                dead_lettered=delivery.dead_lettered,
                lost=delivery.lost,
            )
        return delivery

    def __enter__(self) -> Run:
        self._entered = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        if self._journal.closed:
            return
        status: Status = "FINISHED"
        if kind is not None:
            status = "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"
        delivery = self.close(status)
        short = not delivery.complete and not self._nested and not self._rank
        if short and kind is None and os.getpid() == self._owner:
            message = shortfall(delivery, self.id, self.dir)
            warnings.warn(message, TrackingWarning, stacklevel=2)

    def __del__(self) -> None:
        journal = getattr(self, "_journal", None)
        if journal is None or journal.closed or os.getpid() != self._owner:
            return
        journal.close()
        if not self._nested:
            self._shipper.let_go()
        message = f"run {self.id} was left open and counts as killed; use `with start_run(...)` or close it"
        warnings.warn(message, TrackingWarning, stacklevel=2)

    def __repr__(self) -> str:
        state = "closed" if self._journal.closed else "open"
        return f"<Run {self.id} of {self.experiment!r}, {state}, {self.dir}>"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError(
            "a Run cannot be pickled; in the other process call "
            f"start_run({self.experiment!r}, resume={str(self.dir)!r}, rank=1)"
        )

    def _is_left_open(self) -> bool:
        """Return whether nobody closes the run: it is open, and no `with` block will end it."""
        return not self._journal.closed and not self._entered

    def _refer(self, name: str, prefix: str, ref: DataRef) -> DataRef:
        self._check_open()
        self._journal.add(_frames.TAGS, {prefix + name: as_text(ref)}, 1)
        return ref

    def _start(self, tags: Mapping[str, str]) -> None:
        """Open the journal; from here on no failure raises."""
        try:
            self._journal.open()
        except OSError as error:
            raise unwritable(self.dir, error) from error
        if self._nested or not self._rank:
            self._journal.add(_frames.STATUS, {"status": "RUNNING"}, 1)
        if tags:
            self._journal.add(_frames.TAGS, dict(tags), len(tags))

    def _check_open(self) -> None:
        if self._journal.closed:
            raise RunClosedError(self.id)
