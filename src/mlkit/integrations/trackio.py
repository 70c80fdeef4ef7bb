"""Trackio as a place where tracked runs go: its local store, which its dashboard shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from mlkit._optional import installed
from mlkit._suggest import clip
from mlkit.errors import MissingDependencyError, SinkRejectedError, SinkUnavailableError
from mlkit.integrations._client import acquire, release
from mlkit.integrations._names import address_of, folder_and_options, plain_text, safe_name, typed

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from mlkit.integrations._client import Client
    from mlkit.tracking import Record, RunInfo

__all__ = ["TrackioSink"]

_OURS = "mlkit"
_RESERVED = {"metrics", "project", "run", "step", "time", "timestamp"}
_MAX_NAME = 500
_TIMEOUT = 90.0
_Point = tuple[str, str, float, int, float]  # of a record: id, key, value, step, time
_Row = tuple[str, int, str, dict[str, float]]  # of a call: log_id, step, timestamp, metrics


@final
class TrackioSink:
    """Writes runs into a local store of Trackio: `TRACKIO_DIR=FOLDER trackio show` shows it.

    Trackio works in a process of its own, because it has one folder a process. What a call logged is one row,
    stored before `send` returns, and known again by its `log_id`, so that none is stored twice. A project of
    Trackio's is the run's experiment, or the one that you name. Infinities and NaN are kept as Trackio
    keeps them. Params are the config, as numbers where that has the same text; tags, digests of artifacts and
    the status are under `mlkit` there. An artifact of a run is an artifact `<run>.<name>` of Trackio's, of type `run-file`.
    A nested run has its parent's id as group. A name that begins with `_` or `mlkit`, is one of Trackio's own (`step`,
    `time`, ...), is longer than 500 characters or not printable gets another one with a digest, and
    `mlkit.names` in the config says which.

    Not thread-safe; picklable before `open`. Its address is `trackio:FOLDER` or `trackio:FOLDER?project=...`.

    Args:
        folder: Trackio's folder, as `TRACKIO_DIR` says elsewhere; made when needed. A text may have options behind
            a `?`, as the address does.
        project: Trackio's project; by default the run's experiment.

    Raises:
        ConfigurationError: If an argument is wrong.
        MissingDependencyError: If trackio is not installed.

    Examples:
        >>> TrackioSink("scratch").uri.startswith("trackio:/")
        True
    """

    folder: Path

    def __init__(self, folder: str | os.PathLike[str], *, project: str | None = None) -> None:
        options = {"project": project}
        self.folder, self._options = folder_and_options("TrackioSink", folder, options)
        """Trackio's folder."""
        if not installed("trackio"):
            raise MissingDependencyError(feature="TrackioSink", module="trackio", extra="trackio")
        self._client: Client | None = None
        self._run: tuple[str, dict[str, Any]] = "", {}
        self._params: dict[str, str] = {}

    @property
    def uri(self) -> str:
        """`"trackio:"`, the absolute path of the folder, and what was passed as options."""
        return address_of("trackio", self.folder, self._options)

    @property
    def max_records(self) -> int:
        """5000."""
        return 5000

    def open(self, run: RunInfo) -> None:
        """Find the run in the store, or create it.

        Args:
            run: The run.

        Raises:
            SinkUnavailableError: If Trackio fails, hangs or dies.
        """
        self.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        client = self._connected()
        project = self._options.get("project") or run.experiment
        self._run = project, run._asdict()
        self._params = client.call("open", *self._run, timeout=_TIMEOUT)

    def send(self, batch: Sequence[Record]) -> None:
        """Store the records that Trackio does not have.

        Args:
            batch: The records.

        Raises:
            SinkUnavailableError: If Trackio fails, hangs or dies.
            SinkRejectedError: If a param changes its value.
        """
        if self._client is None:
            raise SinkUnavailableError("TrackioSink: send before open")
        params = dict(self._params)
        points: list[_Point] = []
        others: list[tuple[str, str, str, str]] = []
        for record in batch:
            if record.kind == "metric":
                value = float(record.value)
                points.append((record.id, record.key, value, record.step, record.time))
                continue
            text = plain_text(str(record.value))
            if record.kind == "param" and params.setdefault(record.key, text) != text:
                raise SinkRejectedError(f"param {clip(record.key)!r} has two values")
            others.append((record.kind, record.key, text, record.path))
        self._client.call("send", *self._run, points, others, timeout=_TIMEOUT)
        self._params = params

    def close(self) -> None:
        """Let go of Trackio."""
        client, self._client = self._client, None
        if client is not None:
            release(client)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}

    def __repr__(self) -> str:
        return f"TrackioSink({str(self.folder)!r})"

    def _connected(self) -> Client:
        if self._client is None:
            # A folder of our own choice is local; what else is set is of the training process's own runs.
            environment: dict[str, str | None] = dict.fromkeys(
                ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "SPACE_ID")
            )
            environment["TRACKIO_DIR"] = str(self.folder)
            self._client = acquire(f"{__name__}:_Store", environment)
        return self._client


@final
class _Store:
    """What works in Trackio's process, for any number of runs."""

    def __init__(self) -> None:
        self._runs: dict[str, _StoredRun] = {}

    def open(self, project: str, run: dict[str, Any]) -> dict[str, str]:
        """Find a run or create it, and return its params."""
        stored = self._runs[run["id"]] = _StoredRun(project, run)
        return stored.params()

    def send(
        self,
        project: str,
        run: dict[str, Any],
        points: list[_Point],
        others: list[tuple[str, str, str, str]],
    ) -> None:
        """Store what is new."""
        if run["id"] not in self._runs:  # the process that had opened it has died
            self.open(project, run)
        self._runs[run["id"]].store(points, others)


@final
class _StoredRun:
    def __init__(self, project: str, run: dict[str, Any]) -> None:
        from trackio.sqlite_storage import SQLiteStorage

        self._storage: Any = SQLiteStorage
        self._id, self._name = run["id"], plain_text(run["name"])
        self._project = safe_name(project, self._is_project, 200)
        self._created = _timestamp(run["start_time"])
        # A row without metrics makes a run that has none known to Trackio, too.
        self._begin: _Row = (f"{self._id}:begin", 0, self._created, {})
        self._calls: dict[str, list[str]] = {}
        path = self._storage.init_db(self._project)
        with self._storage._get_connection(path) as connection:  # noqa: SLF001 - to know our own rows again
            rows = connection.execute(
                "SELECT log_id FROM metrics WHERE run_id = ? AND log_id IS NOT NULL", (self._id,)
            )
            for (log_id,) in rows:
                call, _, span = log_id.removeprefix(f"{self._id}:").rpartition("/")
                self._calls.setdefault(call, []).append(span)
        found = self._storage.get_run_config(self._project, self._name, run_id=self._id)
        self._config: dict[str, Any] = found or {
            _OURS: {
                "run": self._id, "experiment": plain_text(run["experiment"]), "status": "RUNNING",
                "tags": {}, "artifacts": {}, "names": {},
            },
            "_Username": None, "_Created": self._created, "_Group": run["parent"],
        }  # fmt: skip
        self._write([])

    def params(self) -> dict[str, str]:
        """Return the texts of the params, by the names that the user gave them."""
        names = self._config[_OURS]["names"]
        return {
            names.get(key, key): str(value)
            for key, value in self._config.items()
            if key != _OURS and not key.startswith("_")
        }

    def store(self, points: list[_Point], others: list[tuple[str, str, str, str]]) -> None:
        """Store what is new."""
        own = self._config[_OURS]
        for kind, key, text, path in others:
            if kind == "artifact":
                if own["artifacts"].get(_encodable(key)) != text:
                    self._keep(key, path)
                    own["artifacts"][_encodable(key)] = text
            elif kind == "param":
                self._config[self._key(key)] = typed(text)
            elif kind == "tag":
                own["tags"][_encodable(key)] = text
            else:
                own["status"] = text
        self._write(self._rows(points))

    def _rows(self, points: list[_Point]) -> list[_Row]:
        """Return the points that are new as rows of a call each."""
        rows = []
        calls: dict[str, dict[int, _Point]] = {}
        for point in points:
            call, _, number = point[0].rpartition(":")
            calls.setdefault(call, {})[int(number)] = point
        for call, found in calls.items():
            known = {number for span in self._calls.get(call, ()) for number in _numbers(span)}
            fresh = [number for number in sorted(found) if number not in known]
            if fresh:
                span = _span(fresh)
                self._calls.setdefault(call, []).append(span)
                _, _, _, step, time = found[fresh[0]]
                values = {self._key(found[number][1]): found[number][2] for number in fresh}
                rows.append((f"{self._id}:{call}/{span}", step, _timestamp(time), values))
        return rows

    def _write(self, rows: list[_Row]) -> None:
        """Store rows and the config, all or nothing."""
        log_ids, steps, timestamps, metrics = zip(*(rows or [self._begin]), strict=True)
        self._storage.bulk_log(
            project=self._project, run=self._name, run_id=self._id, metrics_list=list(metrics),
            steps=list(steps), timestamps=list(timestamps), log_ids=list(log_ids), config=self._config,
        )  # fmt: skip

    def _keep(self, name: str, path: str) -> None:
        """Keep a file in Trackio's store of contents."""
        from trackio import Artifact

        title = safe_name(f"{self._id}.{name}", _is_artifact, 128)
        artifact = Artifact(
            title, type="run-file", metadata={"run": self._id, "name": plain_text(name)}
        )
        artifact.add_file(path, name=_encodable(name))
        self._storage.commit_artifact_version(
            project=self._project, name=title, type=artifact.type, description=None,
            manifest=artifact._build_manifest(self._project),  # noqa: SLF001 - Run.log_artifact starts a thread
            metadata=artifact.metadata, aliases=[], run_name=self._name, run_id=self._id,
        )  # fmt: skip

    def _key(self, key: str) -> str:
        name = safe_name(key, _is_key, _MAX_NAME)
        if name != key:
            self._config[_OURS]["names"][name] = plain_text(key)
        return name

    def _is_project(self, name: str) -> bool:
        """Return whether Trackio keeps a project apart from all others: it drops other characters from file names."""
        try:
            self._storage.validate_project_name(name)
        except ValueError:
            return False
        return name.isascii() and name.replace("-", "x").replace("_", "x").isalnum()


def _is_key(name: str) -> bool:
    return (
        bool(name)
        and name.isprintable()
        and name not in _RESERVED
        and not name.startswith(("_", _OURS))
    )


def _is_artifact(name: str) -> bool:
    return name.isascii() and name.replace("-", "x").replace("_", "x").replace(".", "x").isalnum()


def _encodable(name: str) -> str:
    return safe_name(name, str.isprintable, 1000)


def _timestamp(time: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(time, UTC).isoformat()


def _span(numbers: Iterable[int]) -> str:
    """Return growing numbers as text: `0-4,7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _numbers(span: str) -> Iterable[int]:
    """Yield the numbers of `_span`."""
    for part in span.split(",") if span else ():
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
