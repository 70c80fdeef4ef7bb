"""Comet as a place where tracked runs go: as archives for `comet upload`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, final
from zipfile import ZipFile

from mlkit._digest import digest, digest_bytes
from mlkit._optional import installed
from mlkit.errors import MissingDependencyError
from mlkit.integrations._deferred import Deferred
from mlkit.integrations._names import address_of, folder_and_options, plain_text, safe_name
from mlkit.integrations._spool import Follower

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from mlkit.tracking import Record, RunInfo

__all__ = ["CometSink"]

_OURS = "mlkit/"
_MAX_NAME, _MAX_TEXT = 100, 1000
# What the client logs by itself, or shows in another way.
_TAKEN = {
    "Name",
    "Created from",
    "curr_epoch",
    "curr_step",
    "offline_experiment",
    "process duration",
}
# What would make our client go on with an experiment of the training process, or log what nobody asked for.
_NOT_OURS = (
    "COMET_EXPERIMENT_KEY",
    "COMET_START_EXPERIMENT_KEY",
    "COMET_START_MODE",
    "COMET_START_ONLINE",
)
_QUIET = {
    "COMET_DISABLE_AUTO_LOGGING": "1",
    "COMET_ERROR_TRACKING_ENABLE": "false",
    "COMET_INTERNAL_REPORTING": "false",
    "COMET_LOGGING_CONSOLE": "CRITICAL",
}


@final
class CometSink:
    """Writes each run as an archive of Comet's client, which `comet upload FOLDER/*.zip` uploads.

    The client works in a process of its own, in its offline mode. It keeps what it is given in a temporary folder
    until the experiment ends, and of one that is killed leaves an empty archive. So the sink keeps the run
    itself, in `FOLDER/mlkit`, and the archive `FOLDER/<key>.zip` is written when the run ends or the
    shipper does, complete before `send` returns, and replaced as a whole when there is more
    (then `comet upload --force-upload`). The key is of the run's id.

    A metric has its time and step, in any order; infinities and NaN are the texts `Infinity`, `-Infinity` and `NaN`, as
    Comet keeps them. Tags are Comet's "other" values, and labels `name:value`; `mlkit/status`, `mlkit/run` and for a
    nested run `mlkit/parent` are others, too. Artifacts are assets. A name of more than 100 characters, or one that
    Comet uses itself, gets another one with a digest, and the asset `mlkit/names.json` says which it was. A param or tag
    of more than 1,000 characters is cut with a note, and whole as the asset `mlkit/params/<name>.txt` or
    `mlkit/tags/<name>.txt`.

    Not thread-safe; picklable before `open`. Its address is `comet:FOLDER` or `comet:FOLDER?project=...`.

    Args:
        folder: Where the archives go; made when needed. A text may have options behind a `?`, as the address does.
        workspace: Comet's workspace; by default the client's own setting.
        project: Comet's project; by default the run's experiment.

    Raises:
        ConfigurationError: If an argument is wrong.
        MissingDependencyError: If comet_ml is not installed.

    Examples:
        >>> CometSink("scratch", project="digits").uri.endswith("/scratch?project=digits")
        True
    """

    folder: Path

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        workspace: str | None = None,
        project: str | None = None,
    ) -> None:
        options = {"workspace": workspace, "project": project}
        self.folder, self._options = folder_and_options("CometSink", folder, options)
        """Where the archives go."""
        if not installed("comet_ml"):
            raise MissingDependencyError(feature="CometSink", module="comet_ml", extra="comet")
        environment: dict[str, str | None] = {**dict.fromkeys(_NOT_OURS), **_QUIET}
        self._run = Deferred(self.folder, f"{__name__}:_Writer", environment, self._options)

    @property
    def uri(self) -> str:
        """`"comet:"`, the absolute path of the folder, and what was passed as options."""
        return address_of("comet", self.folder, self._options)

    @property
    def max_records(self) -> int:
        """5000."""
        return 5000

    def open(self, run: RunInfo) -> None:
        """Find what is kept of the run.

        Args:
            run: The run.
        """
        self.close()
        self._run.open(run)

    def send(self, batch: Sequence[Record]) -> None:
        """Keep what is new; if the run has ended, have the archive written.

        Args:
            batch: The records.

        Raises:
            SinkUnavailableError: If the client fails, hangs or dies.
            SinkRejectedError: If a param changes its value.
        """
        self._run.send(batch)

    def close(self) -> None:
        """Have the client write what it has not, and end it.

        Raises:
            SinkUnavailableError: If the client fails, hangs or dies. What was sent is kept.
        """
        self._run.close()

    def __repr__(self) -> str:
        return f"CometSink({str(self.folder)!r})"


@final
class _Writer:
    """What works in the client's process."""

    def write(self, spool: str, folder: str, options: dict[str, str], _: bool) -> None:  # noqa: FBT001 - called over a pipe
        """Write a run as an archive, and put it in the place of the one before."""
        path = Path(spool)
        story = Follower(path)
        beside = path.with_suffix(".part")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        experiment = _Experiment(story, beside, options)
        points = 0
        for row in story.read():
            for key, value in row.values.items():
                experiment.add_metric(key, value, row.step, round(row.time * 1e6) // 1000)
            points += len(row.values)
        experiment.describe(story)
        experiment.end(story)
        archive = beside / f"{experiment.key}.zip"
        _check(archive, points)
        archive.replace(Path(folder) / archive.name)
        shutil.rmtree(beside, ignore_errors=True)


@final
class _Experiment:
    """An experiment of the client."""

    key: str

    def __init__(self, story: Follower, folder: Path, options: dict[str, str]) -> None:
        import comet_ml

        # Of one run in two projects, two experiments.
        self.key = digest([story.run["id"], options]).removeprefix("sha256:")[:40]
        quiet: dict[str, Any] = dict.fromkeys(
            (
                "log_code", "log_graph", "auto_param_logging", "auto_metric_logging", "parse_args",
                "auto_output_logging", "log_env_details", "log_git_metadata", "log_git_patch", "log_env_gpu",
                "log_env_host", "log_env_cpu", "log_env_network", "log_env_disk",
            ),
            False,
        )  # fmt: skip
        self._folder = folder
        self._names: dict[str, str] = {}
        self._client: Any = comet_ml.OfflineExperiment(
            project_name=plain_text(options.get("project") or story.run["experiment"]),
            workspace=options.get("workspace"), offline_directory=str(folder),
            experiment_key=self.key, display_summary_level=0, **quiet,
        )  # fmt: skip
        self._client.set_name(plain_text(story.run["name"]))

    def add_metric(self, key: str, value: float, step: int, milliseconds: int) -> None:
        """Add a point."""
        from comet_ml.messages import MetricMessage

        # log_metric has no time, and makes a param of every step.
        message: Any = MetricMessage(timestamp=milliseconds)
        message.set_metric(self._name(key), value, step=step)
        self._client._enqueue_message(message)  # noqa: SLF001 - as above

    def describe(self, story: Follower) -> None:
        """Add all that is no metric."""
        for key, value in story.params.items():
            self._client.log_parameter(self._name(key), self._fit("params", key, value))
        for key, value in story.tags.items():
            self._client.log_other(self._name(key), self._fit("tags", key, value))
            label = plain_text(f"{key}:{value}")
            if len(label) <= _MAX_NAME and not key.startswith("mlkit."):
                self._client.add_tag(label)
        for name, (_, source) in story.artifacts.items():
            self._client.log_asset(str(source), file_name=plain_text(name), copy_to_tmp=False)
        for key, value in (
            ("run", story.run["id"]),
            ("status", story.status),
            ("parent", story.run["parent"]),
        ):
            if value is not None:
                self._client.log_other(_OURS + key, plain_text(value))
        if self._names:
            self._keep(json.dumps(self._names, indent=1), f"{_OURS}names.json")

    def end(self, story: Follower) -> None:
        """End it, as the run has ended."""
        self._client.start_time = round(story.run["start_time"] * 1000)
        if story.status not in {"FINISHED", "RUNNING"}:
            self._client.customer_error_reported = True
            self._client.customer_error_message = story.status
        self._client.end()

    def _name(self, key: str) -> str:
        name = safe_name(key, _is_key, _MAX_NAME)
        if name != key:
            self._names[name] = key
        return name

    def _fit(self, kind: str, key: str, text: str) -> str:
        """Return a text, cut with a note and kept whole elsewhere if it is too long."""
        text = plain_text(text)
        if len(text) <= _MAX_TEXT:
            return text
        name = f"{_OURS}{kind}/{safe_name(key, _is_file, _MAX_NAME)}.txt"
        self._keep(text, name)
        note = f"... [{len(text)} characters, whole in {name}]"
        return text[: _MAX_TEXT - len(note)] + note

    def _keep(self, text: str, name: str) -> None:
        """Add a text as an asset."""
        whole = self._folder / digest_bytes(text.encode()).removeprefix("sha256:")
        whole.write_text(text, encoding="utf-8")
        self._client.log_asset(str(whole), file_name=name, copy_to_tmp=False)


def _is_key(name: str) -> bool:
    return (
        name.isprintable()
        and bool(name.strip())
        and name not in _TAKEN
        and not name.startswith(_OURS)
    )


def _is_file(name: str) -> bool:
    return name.replace("-", "").replace("_", "").replace(".", "").isalnum()


def _check(archive: Path, points: int) -> None:
    """Look whether the archive is whole.

    Raises:
        OSError: If it does not have as many points as were logged.
    """
    with ZipFile(archive) as opened, opened.open("messages.json") as lines:
        metrics = (
            json.loads(line)["payload"]["metric"] for line in lines if b'"metric_msg"' in line
        )
        found = sum(metric["metricName"] not in _TAKEN for metric in metrics)
    if found != points:
        raise OSError(f"{archive} has {found} of {points} points")
