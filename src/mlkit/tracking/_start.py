"""How a run begins: what is asked for is checked, its folder made or found again, its shipper started."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from mlkit._arguments import one_of, whole
from mlkit.errors import ConfigurationError
from mlkit.tracking._delivery import given_up
from mlkit.tracking._ending import close_left_open, remember
from mlkit.tracking._folder import Folder, check_run_id, find_run, named_folder, new_folder
from mlkit.tracking._read import read
from mlkit.tracking._run import Run
from mlkit.tracking._shipper import NoShipper, OtherShipper, ProcessShipper, ThreadShipper
from mlkit.tracking._sink import make_sinks, maker, sink_key
from mlkit.tracking._values import as_tags, check_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mlkit.tracking._records import RunInfo
    from mlkit.tracking._shipper import Shipper
    from mlkit.tracking._sink import Sink

__all__ = ["start_run"]


def start_run(
    experiment: str,
    *,
    name: str | None = None,
    root: str | os.PathLike[str] = "runs",
    sinks: Sequence[str | Sink] = (),
    durability: Literal["process", "group", "record"] = "process",
    resume: str | os.PathLike[str] | None = None,
    run_id: str | None = None,
    rank: int = 0,
    tags: Mapping[str, str | float] | None = None,
    shipper: Literal["process", "thread", "none"] = "process",
) -> Run:
    """Start recording a run.

    Args:
        experiment: What the run belongs to.
        name: Its name, for people; by default its id.
        root: Folder of run folders; made when needed.
        sinks: Where the records go besides the journal: `"mlflow:sqlite:///mlflow.db"`,
            `"mlflow:http://host:5000"`, `"jsonl:FOLDER"`, `"tensorboard:FOLDER"`, or any scheme of an installed package;
            `Sink` objects with the thread shipper. An address is kept in the run's folder, in a
            file that only its owner can read.
        durability: What survives what, once a call has returned. `"process"`: everything survives
            the process group being killed. `"group"`: at most one `fdatasync` in 50 ms, by the call
            that finds it due, by `flush` and by `close`. `"record"`: `fdatasync` in every call, for
            power cuts; hundreds of microseconds.
        resume: Id or folder of a run to go on with; its params, its name and its sinks hold.
        run_id: An id for the run, such as that of the job. Of several processes that pass the same
            the first makes the run, and the others, then and later, go on with it.
        rank: Which of the processes of one run this is. Those other than 0 write into the same run
            without a shipper or a status of their own, and the names of their metrics begin with
            `rank-<rank>/`.
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
    from pathlib import Path

    check_key("start_run(experiment)", experiment)
    if name is not None:
        check_key("start_run(name=...)", name)
    one_of("start_run(durability=...)", durability, ("process", "group", "record"))
    one_of("start_run(shipper=...)", shipper, ("process", "thread", "none"))
    if not _is_path(root):
        raise ConfigurationError("start_run(root=...)", root, "the path of a folder")
    if resume is not None and not isinstance(resume, (str, os.PathLike)):
        raise ConfigurationError(
            "start_run(resume=...)",
            resume,
            "the id or the folder of a run",
            hint="pass its id" if isinstance(resume, Run) else "",
        )
    checked = as_tags("start_run(tags=...)", {} if tags is None else tags)
    if run_id is not None:
        if resume is not None:
            raise ConfigurationError("start_run(run_id=...)", run_id, "either run_id or resume")
        check_run_id("start_run(run_id=...)", run_id)
    whole("start_run(rank=...)", rank)
    makers = _makers(sinks, shipper)
    top = Path(root).absolute()
    close_left_open()
    sync, uris, taken_up = durability != "process", list(makers), True
    if resume is not None:
        folder = find_run(top, os.fspath(resume))
    elif run_id is not None:
        folder = named_folder(top, run_id, experiment, name, uris, sync=sync)
    else:
        info, folder = new_folder(top, experiment, name, None, uris, sync=sync)
        taken_up = False
    if taken_up:
        info, uris = _take_up(folder, experiment, makers, sync=sync)
    threads = ThreadShipper({uri: makers.get(uri) or maker(uri) for uri in uris})
    process = ProcessShipper(folder)
    chosen: Shipper = process if shipper == "process" else threads
    if not uris or shipper == "none":
        chosen = NoShipper()
    elif rank:
        chosen = OtherShipper()
    run = Run(folder, info, uris, durability, chosen, rank=rank)
    if taken_up:
        run._journal.params.update(read(folder.path).params)  # noqa: SLF001 - the other half of the class
    run._start(checked)  # noqa: SLF001 - as above
    for one in folder.family() if taken_up and not rank else ():
        for uri in uris:  # those who come now try again
            given_up(one, sink_key(uri)).unlink(missing_ok=True)
    if chosen is process:
        process.start()
    elif chosen is threads:
        for one in folder.family():
            threads.start(one, nested=one.path != folder.path)
    remember(run)
    return run


def _is_path(root: object) -> bool:
    """Return whether *root* is a path that the system can be asked for."""
    try:
        return isinstance(root, (str, os.PathLike)) and b"\0" not in os.fsencode(root)
    except (TypeError, UnicodeEncodeError):
        return False


def _makers(sinks: Sequence[str | Sink], shipper: str) -> dict[str, Callable[[], Sink]]:
    """Return what makes each sink, by its address; each is made once here to see that it can be."""
    makers: dict[str, Callable[[], Sink]] = {}
    made = make_sinks("start_run(sinks=...)", sinks)
    for one, sink in zip(sinks, made, strict=True):
        if isinstance(one, str):
            makers[sink.uri] = maker(sink.uri)
        elif shipper == "process":
            raise ConfigurationError(
                "start_run(sinks=...)", one, "an address, which another process can open",
                hint="pass shipper='thread' to use a sink object",
            )  # fmt: skip
        else:
            makers[sink.uri] = maker(sink.uri, sink)
    return makers


def _take_up(
    folder: Folder, experiment: str, makers: Mapping[str, object], *, sync: bool
) -> tuple[RunInfo, list[str]]:
    """Return what is known of a run that is resumed, with the sinks that were added."""
    info, known = folder.load()
    if info.experiment != experiment:
        raise ConfigurationError(
            "start_run(experiment)", experiment, f"{info.experiment!r}, the run's own",
        )  # fmt: skip
    uris = [*known, *(uri for uri in makers if uri not in known)]
    if uris != known:
        folder.describe(info, uris, sync=sync)
    return info, uris
