"""A run's records, put where MLflow can hold them."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, final

from mlkit._digest import digest_bytes
from mlkit._optional import installed, require
from mlkit._suggest import clip
from mlkit.errors import (
    ConfigurationError,
    MissingDependencyError,
    SinkRejectedError,
    SinkUnavailableError,
)
from mlkit.integrations.mlflow._files import SQLITE, database_file
from mlkit.integrations.mlflow._names import (
    MAX_PARAM,
    MAX_TAG,
    artifact_path,
    as_text,
    chunks,
    file_name,
    safe_key,
)
from mlkit.integrations.mlflow._stores import Data, Database, Point, Server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlkit.integrations.mlflow._stores import Store
    from mlkit.tracking import Record, RunInfo

__all__ = ["MlflowSink"]

_RUN_TAG = "mlkit.run_id"
_INPUT = "mlkit.input."  # the tag by which a run says what data it read
_MAX_DATASET_DIGEST, _MAX_DATASET_NAME, _MAX_INPUT_TAG = 36, 500, 500
_NAMES = {"param": "params", "tag": "tags"}
_MOST_POINTS, _FEWEST_POINTS = 1000, 50  # of one request


@final
class MlflowSink:
    """Writes a run into MLflow: into its database file, or through a tracking server.

    The run is found again by its tag `mlkit.run_id`, so that nothing is made twice. What MLflow
    cannot hold is put where it can be seen, never changed or cut in silence:

    - A name that MLflow refuses gets its bad characters replaced and a digest appended; the tag
      `mlkit.key.<new name>` keeps the old one, and different names stay different.
    - An infinite metric becomes a tag `mlkit.nonfinite.<name>.<step>.<milliseconds>` of `inf` or
      `-inf`. NaN is a metric.
    - Data that the run read is one of its datasets, too. MLflow keeps 36 characters of a digest; the tag
      `mlkit.input.<name>` has it whole.
    - A param or tag that is too long is cut with a note of its length and digest, and kept whole as
      an artifact `mlkit/params/<name>.txt` or `mlkit/tags/<name>.txt`.
    - An artifact whose name does not survive the way to a server (`#`, `?`, `;`, `%`, `:`, control characters, a space that
      begins a part), or is too long for a file, is `mlkit/artifacts/<digest>/<last part>`, and the tag `mlkit.key.<that>` keeps
      the name. One that would be a folder of another, or in a folder that is another, is refused.

    A new experiment in a database file keeps its artifacts in `mlartifacts` beside the file.

    Not thread-safe; picklable before `open`. Its address is `mlflow:` and the tracking URI.

    Args:
        tracking_uri: `"sqlite:///mlflow.db"` (or another database) or `"http://host:5000"`.
        keep_names: Whether every name is one that MLflow takes, and is kept as it is; false by default, so that no two names
            become one.

    Raises:
        ConfigurationError: If that is no tracking URI that MLflow writes to.
        MissingDependencyError: If MLflow is not installed.

    Examples:
        >>> MlflowSink("http://127.0.0.1:5000").uri
        'mlflow:http://127.0.0.1:5000'
    """

    tracking_uri: str
    run_id: str

    def __init__(self, tracking_uri: str, *, keep_names: bool = False) -> None:
        if not isinstance(tracking_uri, str) or "://" not in tracking_uri:
            raise ConfigurationError(
                "MlflowSink(tracking_uri)",
                tracking_uri,
                "a tracking URI such as 'sqlite:///mlflow.db' or 'http://host:5000'",
            )
        if tracking_uri.startswith("file:"):
            raise ConfigurationError(
                "MlflowSink(tracking_uri)",
                tracking_uri,
                "a database or a server, for MLflow has given up folders",
                hint="use 'sqlite:///mlflow.db'",
            )
        if not installed("mlflow"):
            raise MissingDependencyError(feature="MlflowSink", module="mlflow", extra="mlflow")
        self._database = database_file(tracking_uri)
        self.tracking_uri = f"{SQLITE}{self._database}" if self._database else tracking_uri
        """The URI, with the path of a database file made absolute."""
        self.run_id = ""
        """MLflow's id of the run; empty before `open`."""
        self._keep_names = keep_names
        self._store: Store | None = None
        self._points_at_once = _MOST_POINTS

    @property
    def uri(self) -> str:
        """`"mlflow:"` and the tracking URI."""
        return f"mlflow:{self.tracking_uri}"

    @property
    def max_records(self) -> int:
        """1000, MLflow's own limit."""
        return 1000

    def open(self, run: RunInfo) -> None:
        """Find the run by its tag, or create it, and its experiment if need be.

        Args:
            run: The run.

        Raises:
            SinkUnavailableError: If MLflow does not answer, or the run it is nested in is not there
                yet.
            SinkRejectedError: If MLflow refuses the experiment.
        """
        if os.environ.get("MLKIT_SHIPPER"):  # the process is ours, and the lane does the retrying
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
            os.environ.setdefault("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", "false")
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        require("mlflow", extra="mlflow", feature="MlflowSink")
        if self._database:
            self._database.parent.mkdir(parents=True, exist_ok=True)
        on_server = self.tracking_uri.startswith(("http://", "https://"))
        self._store = Server(self.tracking_uri) if on_server else Database(self.tracking_uri)
        experiment = self._experiment(self._store, run.experiment)
        self.run_id = self._find(self._store, experiment, run.id)
        if not self.run_id:
            self._create(self._store, experiment, run)
            self.run_id = self._find(self._store, experiment, run.id)
        if not self.run_id:
            raise SinkUnavailableError(f"run {run.id} was made and is not there")

    def send(self, batch: Sequence[Record]) -> None:
        """Store *batch*; MLflow ignores points that it has.

        Args:
            batch: The records.

        Raises:
            SinkUnavailableError: If MLflow does not answer, or the run was deleted there, which can be undone.
            SinkRejectedError: If MLflow refuses a record of it.
        """
        store = self._store
        if store is None:
            raise SinkUnavailableError("the sink is not open")
        try:
            self._send(store, batch)
        except SinkRejectedError:
            if not store.is_active(self.run_id):
                raise SinkUnavailableError(
                    f"run {self.run_id} was deleted in MLflow; restore it"
                ) from None
            raise

    def close(self) -> None:
        """Let go of the client."""
        self._store = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None}

    def __repr__(self) -> str:
        return f"MlflowSink({self.tracking_uri!r})"

    def _experiment(self, store: Store, name: str) -> str:
        """Return the id of an experiment, made if need be."""
        found = store.experiment(name)
        if found is None:
            place = None
            if self._database:
                place = (self._database.parent / "mlartifacts").as_uri()
            try:
                store.create_experiment(name, place)
            except SinkRejectedError:
                if store.experiment(name) is None:  # or another process was faster
                    raise
            found = store.experiment(name)
        if found is None or not found[1]:
            raise SinkRejectedError(
                f"experiment {clip(name)!r} was deleted in MLflow; restore it, or use another name"
            )
        return found[0]

    def _find(self, store: Store, experiment: str, run_id: str) -> str:
        """Return MLflow's id of a run of ours, or an empty text.

        There may be two, if somebody made one while we did, or a proxy sent a request twice. All who look take the
        same of them, one that holds something if there is one.
        """
        found = store.runs_with(experiment, _RUN_TAG, run_id)
        return min(found, key=lambda one: (not found[one], one), default="")

    def _create(self, store: Store, experiment: str, run: RunInfo) -> None:
        tags = {_RUN_TAG: run.id, "mlflow.source.name": "mlkit"}
        if run.parent is not None:
            parent = self._find(store, experiment, run.parent)
            if not parent:
                raise SinkUnavailableError(f"run {run.parent}, the parent, is not in MLflow yet")
            tags["mlflow.parentRunId"] = parent
        store.create_run(experiment, as_text(run.name), round(run.start_time * 1000), tags)

    def _log_points(self, store: Store, points: list[Point]) -> None:
        """Send points in requests that the server answers in time: one that is too slow for many gets fewer."""
        start = 0
        while start < len(points):
            some = points[start : start + self._points_at_once]
            try:
                store.log(self.run_id, points=some)
            except SinkUnavailableError:
                self._points_at_once = max(_FEWEST_POINTS, self._points_at_once // 2)
                raise
            start += len(some)
        self._points_at_once = min(_MOST_POINTS, 2 * self._points_at_once)

    def _send(self, store: Store, batch: Sequence[Record]) -> None:
        points: list[Point] = []
        params: dict[str, str] = {}
        tags: dict[str, str] = {}
        inputs: list[Data] = []
        for record in batch:
            key = self._key(record, tags)
            if record.kind == "metric":
                value = float(record.value)
                if math.isinf(value):
                    place = f"mlkit.nonfinite.{record.key}.{record.step}.{record.milliseconds}"
                    tags[safe_key(place)] = str(value)
                else:
                    points.append(Point(key, value, record.milliseconds, record.step))
            elif record.kind == "param":
                text = self._fit(store, record, key, MAX_PARAM)
                if params.setdefault(key, text) != text:
                    raise SinkRejectedError(f"param {clip(record.key)!r} has two values")
            elif record.kind == "tag":
                tags[key] = self._fit(store, record, key, MAX_TAG)
                if record.key.startswith(_INPUT):
                    inputs.append(_dataset(record))
        for some in chunks(params.items()):
            store.log(self.run_id, params=some)
        self._log_points(store, points)
        for some in chunks(tags.items()):
            store.log(self.run_id, tags=some)
        if inputs:
            store.log_inputs(self.run_id, inputs)
        for record in batch:
            if record.kind == "artifact":
                self._upload(store, self._key(record, {}), Path(record.path))
            elif record.kind == "status":
                running = record.value == "RUNNING"
                end_time = None if running else record.milliseconds
                store.set_status(self.run_id, str(record.value), end_time)

    def _key(self, record: Record, tags: dict[str, str]) -> str:
        """Return the name under which MLflow takes a record, and note the old one if it differs."""
        if self._keep_names or record.kind == "status":
            return record.key
        if record.kind == "artifact":
            key = artifact_path(record.key, in_url=self._database is None)
        else:
            key = safe_key(record.key)
        if key != record.key:
            tags[f"mlkit.key.{key[-200:]}"] = as_text(record.key)
        return key

    def _fit(self, store: Store, record: Record, key: str, limit: int) -> str:
        """Return the text of a record, cut with a note and kept whole elsewhere if it is too long."""
        text = as_text(str(record.value))
        if len(text) <= limit:
            return text
        name = f"mlkit/{_NAMES[record.kind]}/{file_name(key)}.txt"
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / "whole"
            whole.write_text(text, encoding="utf-8")
            self._upload(store, name, whole)
        note = f"... [{len(text)} characters, {digest_bytes(text.encode())}, whole in {name}]"
        return text[: limit - len(note)] + note

    def _upload(self, store: Store, name: str, source: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            named = Path(folder) / PurePosixPath(name).name
            try:
                named.symlink_to(source)  # MLflow takes the name from the file
            except OSError:
                named.write_bytes(source.read_bytes())
            store.upload(self.run_id, str(named), name)


def _dataset(record: Record) -> Data:
    """Return the data that a tag describes."""
    ref = json.loads(str(record.value))
    digest = str(ref["fingerprint"]).removeprefix("sha256:")[:_MAX_DATASET_DIGEST]
    return Data(
        name=as_text(record.key.removeprefix(_INPUT))[:_MAX_DATASET_NAME],
        digest=as_text(digest),
        source=json.dumps({"uri": ref.get("source", "")}),
        context=as_text(ref.get("context", ""))[:_MAX_INPUT_TAG],
    )
