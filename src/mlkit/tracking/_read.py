"""A run read back from its journal alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit.tracking import _frames
from mlkit.tracking._data import INPUT, OUTPUT, DataRef, take_refs
from mlkit.tracking._folder import Folder, folder_of
from mlkit.tracking._frames import metric_values, series_keys
from mlkit.tracking._prune import PRUNED
from mlkit.tracking._records import begin, walk

if TYPE_CHECKING:
    import os
    from pathlib import Path

__all__ = ["Point", "RunData", "read"]


class Point(NamedTuple):
    """One value of a metric. `numpy.array(points)` is of shape (n, 3).

    Attributes:
        step: The step it was logged with.
        time: Unix time in seconds.
        value: The number, with every bit.
    """

    step: int
    time: float
    value: float


class RunData(NamedTuple):
    """Everything that is known of a run.

    Attributes:
        id: Its id.
        experiment: What it belongs to.
        name: Its name.
        parent: Id of the run it is nested in, or None.
        start_time: Unix time in seconds.
        status: `"RUNNING"`, `"FINISHED"`, `"FAILED"` or `"KILLED"`; killed is also a run whose
            processes are gone without having closed it.
        params: By dotted name; numbers, text, bools, None and lists as they were logged, other
            values as text.
        metrics: By name, the points in the order in which each process logged them.
        tags: By name, the last value of each.
        artifacts: By name, the digest of the last content of each.
        dir: The run's folder.
        torn_bytes: Bytes at the end of journal files that are no whole frame: what a power cut or a
            full disk took.
        inputs: By name, the data that the run read.
        outputs: By name, the data that it made.
        pruned_points: How many points `prune` has removed from the journal.
    """

    id: str
    experiment: str
    name: str
    parent: str | None
    start_time: float
    status: str
    params: dict[str, Any]
    metrics: dict[str, list[Point]]
    tags: dict[str, str]
    artifacts: dict[str, str]
    dir: Path
    torn_bytes: int
    inputs: dict[str, DataRef]
    outputs: dict[str, DataRef]
    pruned_points: int

    def artifact(self, name: str) -> Path:
        """Return the file that holds an artifact's content.

        Args:
            name: Its name.

        Raises:
            UnknownNameError: If the run has none of that name.
        """
        if name not in self.artifacts:
            from mlkit.errors import UnknownNameError

            raise UnknownNameError(f"artifacts of run {self.id}", name, self.artifacts)
        return Folder(self.dir).artifacts / self.artifacts[name].removeprefix("sha256:")

    @property
    def digest(self) -> str:
        """The identity of what the run computed, which a rerun reaches again.

        It is taken over the experiment, the params, the tags whose name begins with `seed`, and
        step and value of each metric's last point: nothing that depends on when, where or how fast
        the run was made.
        """
        from mlkit._digest import digest

        return digest(
            {
                "experiment": self.experiment,
                "params": self.params,
                "seeds": {key: value for key, value in self.tags.items() if key.startswith("seed")},
                "metrics": {
                    key: [points[-1].step, points[-1].value] for key, points in self.metrics.items()
                },
            }
        )


def read(run: str | os.PathLike[str]) -> RunData:
    """Return the history of a run, live or ended, from its folder alone.

    Args:
        run: The run's folder, `run.dir`.

    Raises:
        ConfigurationError: If *run* is no path.
        RunNotFoundError: If there is no run in that folder.
        JournalError: If it was written by a version of mlkit that this one does not understand.

    Examples:
        >>> import tempfile
        >>> from mlkit.tracking import start_run
        >>> with start_run("doc", root=tempfile.mkdtemp()) as run:
        ...     run.log_metrics({"loss": 0.5}, step=1)
        >>> [(point.step, point.value) for point in read(run.dir).metrics["loss"]]
        [(1, 0.5)]

    Note:
        Time and memory are linear in the number of points.
    """
    import json

    folder = folder_of("read(run)", run)
    info, _ = folder.load()
    alive = folder.alive()
    params: dict[str, Any] = {}
    metrics: dict[str, list[Point]] = {}
    tags: dict[str, tuple[int, str]] = {}
    artifacts: dict[str, tuple[int, str]] = {}
    status = (-1, "RUNNING")
    torn = 0
    for path in folder.writers():
        series: dict[int, list[str]] = {}
        size, end = path.stat().st_size, begin(path)
        for one in walk(path, 0):
            end = one.end
            if one.kind == _frames.SERIES:
                number, keys = series_keys(one.payload)
                series[number] = keys
            elif one.kind == _frames.METRICS:
                number, step, microseconds, values = metric_values(one.payload)
                for key, value in zip(series[number], values, strict=True):
                    metrics.setdefault(key, []).append(Point(step, microseconds / 1e6, value))
            else:
                at, content = json.loads(one.payload)
                if one.kind == _frames.PARAMS:
                    for key, value in content.items():
                        params.setdefault(key, value)  # no later one changes it
                elif one.kind == _frames.TAGS:
                    for key, value in content.items():
                        tags[key] = _later(tags.get(key), (at, value))
                elif one.kind == _frames.ARTIFACT:
                    name = content["name"]
                    artifacts[name] = _later(artifacts.get(name), (at, content["digest"]))
                elif one.kind == _frames.STATUS:
                    status = _later(status, (at, content["status"]))
        torn += max(0, size - end)
    final = "KILLED" if status[1] == "RUNNING" and not alive else status[1]
    texts = {key: value for key, (_, value) in tags.items()}
    return RunData(
        *info,
        status=final,
        params=params,
        metrics=metrics,
        inputs=take_refs(texts, INPUT),
        outputs=take_refs(texts, OUTPUT),
        pruned_points=sum(int(texts.pop(key)) for key in [*texts] if key.startswith(PRUNED)),
        tags=texts,
        artifacts={key: value for key, (_, value) in artifacts.items()},
        dir=folder.path,
        torn_bytes=torn,
    )


def _later(old: tuple[int, str] | None, new: tuple[int, str]) -> tuple[int, str]:
    return new if old is None or new[0] >= old[0] else old
