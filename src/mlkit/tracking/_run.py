"""A run while it is being recorded."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

from mlkit import telemetry
from mlkit._clock import current
from mlkit.errors import ConfigurationError, ParamConflictError, RunClosedError, TrackingWarning
from mlkit.tracking import _frames
from mlkit.tracking._artifacts import keep_bytes, keep_file
from mlkit.tracking._delivery import Cursor, Delivery, delivery_of, merged
from mlkit.tracking._folder import Folder, find_run, new_id
from mlkit.tracking._journal import Journal
from mlkit.tracking._read import read
from mlkit.tracking._records import RunInfo, count_from
from mlkit.tracking._shipper import NoShipper, ProcessShipper, ThreadShipper, check_timeout
from mlkit.tracking._sink import make_sink, maker, sink_key
from mlkit.tracking._values import artifact_name, as_tags, check_key, choice, flat_params

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import SupportsFloat

    from mlkit.tracking._shipper import Shipper
    from mlkit.tracking._sink import Sink

__all__ = ["Run", "start_run"]

Status = Literal["FINISHED", "FAILED", "KILLED"]


@final
class Run:
    """A run that is being recorded. Made by `start_run`.

    Whatever a logging call was given is in the run's journal when the call returns, and survives
    the process being killed. Delivery to the sinks happens elsewhere. A disk that is full or a
    backend that is away never raises: it is counted in `Delivery` and told as a `tracking.*` event.
    A wrong argument raises at once, and so does logging after `close`.

    Thread-safe. After a fork the child logs into the same run; its `close` closes its own file
    only. Not picklable: in a spawned process call `start_run(..., resume=run.id)`. As a context
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
    ) -> None:
        self._folder, self._info, self._sinks = folder, info, tuple(sinks)
        self._keys = tuple(sink_key(uri) for uri in sinks)
        self._durability, self._shipper, self._nested = durability, shipper, nested
        self._journal = Journal(info.id, folder.journal, durability)
        self._journals = [self._journal]  # and those of the runs nested in it
        self._above: tuple[Run, ...] = ()
        self._params: dict[str, Any] = {}
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
            One `write` of 33 bytes and 8 for each metric.
        """
        self._journal.metrics(metrics, step)

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
                bools, None and lists of them are kept as they are, any other value as its `str`.

        Raises:
            ParamConflictError: If one was logged before with another value. None of *params* is
                logged then.
            ConfigurationError: If a name is no text, or a value has no text of its own.
            RunClosedError: If the run is closed.
        """
        self._check_open()
        flat = flat_params("Run.log_params(params)", params)
        fresh = {}
        for key, value in flat.items():
            if key not in self._params:
                fresh[key] = value
            elif json.dumps(self._params[key]) != json.dumps(value):
                raise ParamConflictError(key, self._params[key], value)
        if fresh and self._journal.add(_frames.PARAMS, fresh, len(fresh)):
            self._params.update(fresh)

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
        where = "Run.log_artifact(name=...)"
        if isinstance(source, (bytes, bytearray, memoryview)):
            if name is None:
                raise ConfigurationError(where, name, "a name, because bytes have none")
            return self._keep(bytes(source), artifact_name(where, name))
        path = _readable("Run.log_artifact(source)", source)
        return self._keep(path, artifact_name(where, path.name if name is None else name))

    def log_artifacts(
        self, folder: str | os.PathLike[str], name: str | None = None
    ) -> dict[str, str]:
        """Copy all files of a folder and of the folders in it into the run.

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
        top = Path(folder) if isinstance(folder, (str, os.PathLike)) else None
        if top is None or not top.is_dir():
            raise ConfigurationError("Run.log_artifacts(folder)", folder, "the path of a folder")
        prefix = f"{artifact_name('Run.log_artifacts(name=...)', name)}/" if name else ""
        found = {
            artifact_name("Run.log_artifacts(folder)", prefix + path.relative_to(top).as_posix()):
            _readable("Run.log_artifacts(folder)", path)
            for path in sorted(top.rglob("*"))
            if path.is_file()
        }  # fmt: skip
        return {entry: self._keep(path, entry) for entry, path in found.items()}

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
        info, folder = _new_folder(
            self._folder.children, self.experiment, name, self.id, self._sinks
        )
        run = Run(folder, info, self._sinks, self._durability, self._shipper, nested=True)
        run._above = (self, *self._above)
        for outer in run._above:
            outer._journals.append(run._journal)  # noqa: SLF001 - of the same class
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
        deadline = current().monotonic() + check_timeout("Run.flush(timeout=...)", timeout)
        if not self._journal.closed and self._durability != "process":
            self._journal.sync()
        pause = 0.005
        while not self._caught_up() and current().monotonic() < deadline:
            if self._shipper.why_idle():
                break
            current().sleep(min(pause, max(0.0, deadline - current().monotonic())))
            pause = min(pause * 1.5, 0.05)
        return self._delivery()

    def close(self, status: Status = "FINISHED", timeout: float | None = None) -> Delivery:
        """End the run and wait for the sinks, but not for long. Calling it again only waits again.

        Args:
            status: How it ended: `"FINISHED"`, `"FAILED"` or `"KILLED"`.
            timeout: The longest wait in seconds, at least 0; by default 10, and 0 for a nested
                run, which its parent waits for. What is not delivered then is delivered by the
                shipper as long as it can, or by `sync`.

        Returns:
            What has been delivered and what has not.

        Raises:
            ConfigurationError: If an argument is wrong.
        """
        choice("Run.close(status)", status, ("FINISHED", "FAILED", "KILLED"))
        patience = (0.0 if self._nested else 10.0) if timeout is None else timeout
        check_timeout("Run.close(timeout=...)", patience)
        if not self._journal.closed:
            if os.getpid() == self._owner:
                self._journal.add(_frames.STATUS, {"status": status}, 1)
            self._journal.close()
        delivery = self.flush(patience)
        if not self._nested:
            self._shipper.let_go()
        if not delivery.complete and self._sinks and not (self._nested and timeout is None):
            telemetry.emit(
                "tracking.delivery.incomplete",
                self.id,
                pending=delivery.pending,
                dead_lettered=delivery.dead_lettered,
                lost=delivery.lost,
            )
        return delivery

    def __enter__(self) -> Run:
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
        shortfall = not delivery.complete and not self._nested
        if shortfall and kind is None and os.getpid() == self._owner:
            warnings.warn(_shortfall(self, delivery), TrackingWarning, stacklevel=2)

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

    def _start(self, tags: Mapping[str, str]) -> None:
        """Open the journal; from here on no failure raises."""
        try:
            self._journal.open()
        except OSError as error:
            raise ConfigurationError(
                "start_run(root=...)", str(self._folder.path), "a folder that can be written to",
                hint=f"{type(error).__name__}: {error.strerror}",
            ) from error  # fmt: skip
        self._journal.add(_frames.STATUS, {"status": "RUNNING"}, 1)
        if tags:
            self._journal.add(_frames.TAGS, dict(tags), len(tags))

    def _check_open(self) -> None:
        if self._journal.closed:
            raise RunClosedError(self.id)

    def _keep(self, source: Path | bytes, name: str) -> str:
        from mlkit._digest import digest_bytes, digest_file

        store, sync = self._folder.artifacts, self._durability != "process"
        try:
            if isinstance(source, bytes):
                digest, size = keep_bytes(store, source, sync=sync), len(source)
            else:
                digest, size = keep_file(store, source, sync=sync)
        except OSError as error:
            self._journal.count_lost(error, 1)
            return digest_bytes(source) if isinstance(source, bytes) else digest_file(source)
        self._journal.add(_frames.ARTIFACT, {"name": name, "digest": digest, "size": size}, 1)
        return digest

    def _caught_up(self) -> bool:
        """Return whether every sink is past all that is written; cheap while the own file is not delivered."""
        own = self._journal.path
        for key in self._keys:
            cursor = Cursor(self._folder.sinks / key)
            for path in [own] if own else []:
                try:
                    if cursor.done(path.name) < path.stat().st_size:
                        return False
                except FileNotFoundError:
                    return False
        return not any(
            count_from(path, cursor.done(path.name))
            for folder in self._folder.family()
            for cursor in [Cursor(folder.sinks / key) for key in self._keys]
            for path in folder.writers()
        )

    def _delivery(self) -> Delivery:
        """Say how things stand; a journal that somebody has removed is lost, not delivered."""
        lost = sum(
            journal.lost + (journal.records if journal.path and not journal.path.exists() else 0)
            for journal in self._journals
        )
        idle = self._shipper.why_idle() if self._sinks else ""
        each = {
            str(folder.path): delivery_of(
                folder,
                self._sinks,
                self._keys,
                lost=lost if folder.path == self._folder.path else 0,
                reason=idle,
            )
            for folder in self._folder.family()
        }
        return merged(each, worst=False)


def start_run(
    experiment: str,
    *,
    name: str | None = None,
    root: str | os.PathLike[str] = "runs",
    sinks: Sequence[str | Sink] = (),
    durability: Literal["process", "group", "record"] = "process",
    resume: str | None = None,
    tags: Mapping[str, str | float] | None = None,
    shipper: Literal["process", "thread", "none"] = "process",
) -> Run:
    """Start recording a run.

    Args:
        experiment: What the run belongs to.
        name: Its name, for people; by default its id.
        root: Folder of run folders; made when needed.
        sinks: Where the records go besides the journal: `"mlflow:sqlite:///mlflow.db"`,
            `"mlflow:http://host:5000"`, `"jsonl:FOLDER"`, or any scheme of an installed package;
            `Sink` objects with the thread shipper. An address is kept in the run's folder, in a
            file that only its owner can read.
        durability: What survives what, once a call has returned. `"process"`: everything survives
            the process group being killed. `"group"`: at most one `fdatasync` in 50 ms, by the call
            that finds it due, by `flush` and by `close`. `"record"`: `fdatasync` in every call, for
            power cuts; hundreds of microseconds.
        resume: Id or folder of a run to go on with; its params hold.
        tags: Tags to begin with.
        shipper: Who delivers: a process of its own (its imports and its work tax no training loop),
            threads of this process, or nobody until `sync` is called.

    Returns:
        The run, a context manager.

    Raises:
        ConfigurationError: If an argument is wrong, or the folder cannot be made.
        RunNotFoundError: If there is no run to resume.
        MissingDependencyError: If a sink needs a package that is not installed.

    Examples:
        >>> import tempfile
        >>> with start_run("digits", root=tempfile.mkdtemp()) as run:
        ...     run.log_params({"lr": 0.1, "net": {"depth": 3}})
        ...     for step in range(2):
        ...         run.log_metrics({"loss": 1 / (step + 1)}, step=step)
        >>> data = read(run.dir)
        >>> data.status, data.params, data.metrics["loss"][-1].value
        ('FINISHED', {'lr': 0.1, 'net.depth': 3}, 0.5)
    """
    check_key("start_run(experiment)", experiment)
    if name is not None:
        check_key("start_run(name=...)", name)
    choice("start_run(durability=...)", durability, ("process", "group", "record"))
    choice("start_run(shipper=...)", shipper, ("process", "thread", "none"))
    if not isinstance(root, (str, os.PathLike)):
        raise ConfigurationError("start_run(root=...)", root, "the path of a folder")
    checked = as_tags("start_run(tags=...)", tags or {})
    makers = _makers(sinks, shipper)
    top = Path(root).absolute()
    if resume is None:
        info, folder = _new_folder(top, experiment, name, None, list(makers))
        uris = list(makers)
    else:
        folder = find_run(top, os.fspath(resume))
        info, uris = _take_up(folder, experiment, makers)
    by_key = {sink_key(uri): makers.get(uri) or maker(uri) for uri in uris}
    threads = ThreadShipper(by_key)
    process = ProcessShipper(folder)
    working = uris and shipper != "none"
    chosen = (process if shipper == "process" else threads) if working else NoShipper()
    run = Run(folder, info, uris, durability, chosen)
    if resume is not None:
        run._params.update(read(folder.path).params)  # noqa: SLF001 - the other half of the class
    run._start(checked)  # noqa: SLF001 - as above
    if chosen is process:
        process.start()
    elif chosen is threads:
        for one in folder.family():
            threads.start(one)
    return run


def _makers(sinks: object, shipper: str) -> dict[str, Callable[[], Sink]]:
    """Return what makes each sink, by its address; each is made once here to see that it can be."""
    if isinstance(sinks, (str, bytes)) or not isinstance(sinks, (list, tuple)):
        raise ConfigurationError("start_run(sinks=...)", sinks, "a list of addresses or sinks")
    makers: dict[str, Callable[[], Sink]] = {}
    for one in sinks:
        if isinstance(one, str):
            sink = make_sink(one)
            make = maker(sink.uri)
        else:
            if shipper == "process":
                raise ConfigurationError(
                    "start_run(sinks=...)", one, "an address, which another process can open",
                    hint="pass shipper='thread' to use a sink object",
                )  # fmt: skip
            sink, make = one, maker(one.uri, one)
        if sink.uri in makers:
            raise ConfigurationError("start_run(sinks=...)", sink.uri, "each sink once")
        makers[sink.uri] = make
    return makers


def _new_folder(
    root: Path, experiment: str, name: str | None, parent: str | None, sinks: Sequence[str]
) -> tuple[RunInfo, Folder]:
    """Make the folder of a new run.

    Raises:
        ConfigurationError: If it cannot be made.
    """
    for _ in range(10):
        microseconds = int(current().time() * 1e6)
        run_id = new_id(microseconds)
        info = RunInfo(run_id, experiment, name or run_id, parent, microseconds / 1e6)
        folder = Folder(root / run_id)
        try:
            folder.create(info, sinks)
        except FileExistsError:
            if not folder.path.is_dir():
                break  # a file is where a folder should be
            continue
        except OSError as error:
            raise ConfigurationError(
                "start_run(root=...)", str(root), "a folder that can be written to",
                hint=f"{type(error).__name__}: {error.strerror}",
            ) from error  # fmt: skip
        else:
            return info, folder
    raise ConfigurationError("start_run(root=...)", str(root), "a folder, not a file")


def _take_up(
    folder: Folder, experiment: str, makers: Mapping[str, object]
) -> tuple[RunInfo, list[str]]:
    """Return what is known of a run that is resumed, with the sinks that were added."""
    info, known = folder.load()
    if info.experiment != experiment:
        raise ConfigurationError(
            "start_run(experiment)", experiment, f"{info.experiment!r}, the run's own",
        )  # fmt: skip
    uris = [*known, *(uri for uri in makers if uri not in known)]
    if uris != known:
        folder.describe(info, uris)
    return info, uris


def _readable(where: str, source: object) -> Path:
    """Return the path of a file if it can be read."""
    path = Path(source) if isinstance(source, (str, os.PathLike)) else None
    try:
        if path is not None and path.is_file():
            path.open("rb").close()
            return path
    except OSError:
        pass
    raise ConfigurationError(where, source, "the path of a file that can be read, or bytes")


def _shortfall(run: Run, delivery: Delivery) -> str:
    parts = [f"{delivery.pending} records pending"] if delivery.pending else []
    if delivery.dead_lettered:
        parts.append(f"{delivery.dead_lettered} refused (see {run.dir}/sinks)")
    if delivery.lost:
        parts.append(f"{delivery.lost} lost")
    reason = f" ({delivery.reason})" if delivery.reason else ""
    hint = f"; finish with mlkit.tracking.sync({str(run.dir)!r})" if delivery.pending else ""
    return f"run {run.id}: {', '.join(parts)}{reason}{hint}"
