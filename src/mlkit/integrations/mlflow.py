"""MLflow as a sink of `mlkit.tracking`. Needs MLflow: `pip install 'mlkit-blocks[mlflow]'`.

mlflow itself is imported in `open`, so in the shipper's process: making the sink costs the training
nothing.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, final

from mlkit._digest import digest_bytes, short
from mlkit._optional import installed, require
from mlkit._suggest import clip
from mlkit.errors import (
    ConfigurationError,
    MissingDependencyError,
    SinkRejectedError,
    SinkUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mlkit.tracking import Record, RunInfo

__all__ = ["MlflowSink"]

_RUN_TAG = "mlkit.run_id"
_SQLITE = "sqlite:///"
_MAX_KEY = 250
_MAX_PARAM = 6000
_MAX_TAG = 5000  # 8000 since MLflow 2.x; older servers and hosted ones cut earlier
_MAX_PER_CALL = 100
_MAX_CALL_BYTES = 500_000
_VALID_KEY = re.compile(r"[/\w.\- :]+")
_MARKED_KEY = re.compile(r".*-[0-9a-f]{12}", re.DOTALL)
_INPUT = "mlkit.input."  # the tag by which a run says what data it read
_MAX_DATASET_DIGEST, _MAX_DATASET_NAME, _MAX_INPUT_TAG = 36, 500, 500
_NAMES = {"param": "params", "tag": "tags"}
# What MLflow answers when the same request will never do.
_HOPELESS = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "MALFORMED_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}


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

    A new experiment in a database file keeps its artifacts in `mlartifacts` beside the file.

    Not thread-safe; picklable before `open`. Its address is `mlflow:` and the tracking URI.

    Args:
        tracking_uri: `"sqlite:///mlflow.db"` (or another database) or `"http://host:5000"`.

    Raises:
        ConfigurationError: If that is no tracking URI that MLflow writes to.
        MissingDependencyError: If MLflow is not installed.

    Examples:
        >>> MlflowSink("http://127.0.0.1:5000").uri
        'mlflow:http://127.0.0.1:5000'
    """

    tracking_uri: str
    run_id: str

    def __init__(self, tracking_uri: str) -> None:
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
        self._database = _database_file(tracking_uri)
        self.tracking_uri = f"{_SQLITE}{self._database}" if self._database else tracking_uri
        """The URI, with the path of a database file made absolute."""
        self.run_id = ""
        """MLflow's id of the run; empty before `open`."""
        self._client: Any = None

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
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        mlflow = require("mlflow", extra="mlflow", feature="MlflowSink")
        if self._database:
            self._database.parent.mkdir(parents=True, exist_ok=True)
        with _translated():
            self._client = mlflow.MlflowClient(tracking_uri=self.tracking_uri)
            experiment = self._experiment(run.experiment)
            self.run_id = self._find(experiment, run.id) or self._create(experiment, run)

    def send(self, batch: Sequence[Record]) -> None:
        """Store *batch*; MLflow ignores points that it has.

        Args:
            batch: The records.

        Raises:
            SinkUnavailableError: If MLflow does not answer.
            SinkRejectedError: If MLflow refuses a record of it.
        """
        from mlflow.entities import Metric

        metrics: list[Any] = []
        params: dict[str, str] = {}
        tags: dict[str, str] = {}
        inputs: list[Any] = []
        for record in batch:
            key = self._key(record, tags)
            if record.kind == "metric":
                value = float(record.value)
                if math.isinf(value):
                    place = f"mlkit.nonfinite.{record.key}.{record.step}.{record.milliseconds}"
                    tags[_safe_key(place)] = str(value)
                else:
                    metrics.append(Metric(key, value, record.milliseconds, record.step))
            elif record.kind == "param":
                text = self._fit(record, key, _MAX_PARAM)
                if params.setdefault(key, text) != text:
                    raise SinkRejectedError(f"param {clip(record.key)!r} has two values")
            elif record.kind == "tag":
                tags[key] = self._fit(record, key, _MAX_TAG)
                if record.key.startswith(_INPUT):
                    inputs.append(_dataset(record))
        with _translated():
            for some in _chunks(params.items()):
                self._log(params=some)
            if metrics:
                self._client.log_batch(self.run_id, metrics=metrics)
            for some in _chunks(tags.items()):
                self._log(tags=some)
            if inputs:
                self._client.log_inputs(self.run_id, datasets=inputs)
            for record in batch:
                if record.kind == "artifact":
                    self._upload(record.key, Path(record.path))
                elif record.kind == "status":
                    self._set_status(record)

    def close(self) -> None:
        """Let go of the client."""
        self._client = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}

    def __repr__(self) -> str:
        return f"MlflowSink({self.tracking_uri!r})"

    def _experiment(self, name: str) -> str:
        """Return the id of an experiment, made if need be."""
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            place = None
            if self._database:
                place = (self._database.parent / "mlartifacts").as_uri()
            try:
                return str(self._client.create_experiment(name, artifact_location=place))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self._client.get_experiment_by_name(name)  # another process was faster
        if found is None or found.lifecycle_stage != "active":
            raise SinkRejectedError(
                f"experiment {clip(name)!r} was deleted in MLflow; restore it, or use another name"
            )
        return str(found.experiment_id)

    def _find(self, experiment: str, run_id: str) -> str:
        """Return MLflow's id of a run of ours, or an empty text."""
        found = self._client.search_runs([experiment], f"tags.`{_RUN_TAG}` = '{run_id}'")
        return min((str(run.info.run_id) for run in found), default="")

    def _create(self, experiment: str, run: RunInfo) -> str:
        tags = {_RUN_TAG: run.id, "mlflow.source.name": "mlkit"}
        if run.parent is not None:
            parent = self._find(experiment, run.parent)
            if not parent:
                raise SinkUnavailableError(f"run {run.parent}, the parent, is not in MLflow yet")
            tags["mlflow.parentRunId"] = parent
        made = self._client.create_run(
            experiment, start_time=round(run.start_time * 1000), tags=tags, run_name=_text(run.name)
        )
        return str(made.info.run_id)

    def _key(self, record: Record, tags: dict[str, str]) -> str:
        """Return the name under which MLflow takes a record, and note the old one if it differs."""
        if record.kind not in {"metric", "param", "tag"}:
            return record.key
        key = _safe_key(record.key)
        if key != record.key:
            tags[f"mlkit.key.{key[-200:]}"] = _text(record.key)
        return key

    def _fit(self, record: Record, key: str, limit: int) -> str:
        """Return the text of a record, cut with a note and kept whole elsewhere if it is too long."""
        text = _text(str(record.value))
        if len(text) <= limit:
            return text
        name = f"mlkit/{_NAMES[record.kind]}/{_file_name(key)}.txt"
        with _translated(), tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / "whole"
            whole.write_text(text, encoding="utf-8")
            self._upload(name, whole)
        note = f"... [{len(text)} characters, {digest_bytes(text.encode())}, whole in {name}]"
        return text[: limit - len(note)] + note

    def _log(self, **entries: list[tuple[str, str]]) -> None:
        from mlflow.entities import Param, RunTag

        self._client.log_batch(
            self.run_id,
            params=[Param(key, value) for key, value in entries.get("params", ())],
            tags=[RunTag(key, value) for key, value in entries.get("tags", ())],
        )

    def _upload(self, name: str, source: Path) -> None:
        place = PurePosixPath(name)
        with tempfile.TemporaryDirectory() as folder:
            named = Path(folder) / place.name
            try:
                named.symlink_to(source)  # MLflow takes the name from the file
            except OSError:
                named.write_bytes(source.read_bytes())
            parent = None if place.parent == PurePosixPath() else str(place.parent)
            self._client.log_artifact(self.run_id, str(named), parent)

    def _set_status(self, record: Record) -> None:
        if record.value == "RUNNING":
            self._client.update_run(self.run_id, status="RUNNING")
        else:
            self._client.set_terminated(self.run_id, str(record.value), record.milliseconds)


def _dataset(record: Record) -> Any:
    """Return the data that a tag describes as MLflow's input."""
    import json

    from mlflow.entities import Dataset, DatasetInput, InputTag

    ref = json.loads(str(record.value))
    digest = str(ref["fingerprint"]).removeprefix("sha256:")[:_MAX_DATASET_DIGEST]
    place = ref.get("source", "")
    dataset = Dataset(
        name=_text(record.key.removeprefix(_INPUT))[:_MAX_DATASET_NAME],
        digest=_text(digest),
        source_type="mlkit",
        source=json.dumps({"uri": place}),
    )
    context = ref.get("context", "")
    tags = [InputTag("mlflow.data.context", _text(context)[:_MAX_INPUT_TAG])] if context else []
    return DatasetInput(dataset=dataset, tags=tags)


@final
class _translated:  # noqa: N801 - reads as the statement it is: `with _translated():`
    """Context manager: MLflow's errors become those that the lane understands."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from mlflow.exceptions import MlflowException

        if isinstance(error, MlflowException):
            hopeless = error.error_code in _HOPELESS
            translated = SinkRejectedError if hopeless else SinkUnavailableError
            raise translated(f"{error.error_code}: {error.message}") from error
        if type(error).__module__.startswith(("sqlalchemy.", "alembic.")):
            raise SinkUnavailableError(f"{type(error).__name__}: {error}") from error


def _database_file(tracking_uri: str) -> Path | None:
    """Return the absolute path of an embedded database, None for anything else."""
    path, _, query = tracking_uri.removeprefix(_SQLITE).partition("?")
    if not tracking_uri.startswith(_SQLITE) or not path or query or path == ":memory:":
        return None
    return Path(path).absolute()


def _safe_key(key: str) -> str:
    """Return a name that MLflow takes: *key* itself if it is one, else one that no other key is given."""
    if _is_key(key) and not _MARKED_KEY.fullmatch(key):
        return key
    mark = f"-{short(digest_bytes(key.encode('utf-8', 'surrogatepass')))}"
    body = re.sub(r"[^/\w.\- :]", "_", key)[: _MAX_KEY - len(mark)]
    if _is_key(body + mark):
        return body + mark
    return re.sub(r"[/.]", "_", body) + mark


def _is_key(key: str) -> bool:
    from posixpath import normpath

    plain = _VALID_KEY.fullmatch(key) is not None and len(key) <= _MAX_KEY
    return plain and normpath(key) == key and key != "." and not key.startswith(("/", ".."))


def _file_name(key: str) -> str:
    return re.sub(r"[^\w.\-]", "_", key)[:100] + "-" + short(digest_bytes(key.encode()))


def _text(text: str) -> str:
    """Return *text* as UTF-8 can say it; a lone surrogate becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def _chunks(entries: Iterable[tuple[str, str]]) -> Iterable[list[tuple[str, str]]]:
    """Yield *entries* in lists that MLflow takes in one call: 100 of them, 1 MB."""
    some: list[tuple[str, str]] = []
    size = 0
    for entry in entries:
        more = 4 * len(entry[1]) + len(entry[0]) + 40
        if some and (len(some) == _MAX_PER_CALL or size + more > _MAX_CALL_BYTES):
            yield some
            some, size = [], 0
        some.append(entry)
        size += more
    if some:
        yield some
